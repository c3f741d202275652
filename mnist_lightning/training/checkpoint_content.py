"""What a checkpoint may hold, and nothing else: a file can come from anybody, with a checksum that is right."""

import io
import pickletools
import re
import sys
import zipfile
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGEST = 2 << 30  # bytes; no digit classifier comes near
VALUES = 1_000_000  # at most so many values in a checkpoint: a shared list of shared lists would never end
STATE = "mnist_lightning"  # our own entry in a checkpoint: position, identity, metrics of the running epoch
FORMAT = 2  # of that entry; those of commit 3207afc and before have none

# What a checkpoint of tensors and plain values needs of pickle, and nothing else.
TYPES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool", "ComplexFloat")
ALLOWED = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "__builtin__ set",
    *(f"torch {kind}Storage" for kind in TYPES),
}

Maybe = type(None)
Entries = dict[str, Any]  # from the name of an entry to what it must be
ENTRIES: Entries = {
    STATE: dict, "state_dict": dict, "hyper_parameters": dict, "datamodule_hyper_parameters": dict, "epoch": int,
    "global_step": int, "optimizer_states": list, "lr_schedulers": list, "callbacks": dict, "MNISTDataModule": dict,
}  # fmt: skip
OF_OURS = {"hyper_parameters", "datamodule_hyper_parameters", "MNISTDataModule"}  # a user's module may have none
STATE_ENTRIES: Entries = {
    "epoch": int, "batch": int, "step": int, "batches": int, "best": (list, tuple, Maybe), "model": str,
    "precision": str, "global_batch_size": (int, Maybe), "world_size": int, "metrics_csv": (dict, Maybe),
}  # fmt: skip
FORMAT_2: Entries = {
    "accumulate": int, "metrics": dict, "loggers": dict, "loaders": list, "scheduled_steps": (int, Maybe),
}  # fmt: skip
TABLE_ENTRIES: Entries = {"columns": int, "rows": int, "crc32": int, "last": list}
DATA_ENTRIES: Entries = {"source": str, "mean": float, "std": float, "fingerprint": str}


def plain(value: Any) -> Any:
    """A copy with dicts, lists, tuples, sets, strings, numbers and compact CPU tensors only.

    Strings are interned: pickle writes a string once for each object, so equal states give equal files only if
    equal strings are one object, however the state came about.
    """
    if isinstance(value, Tensor):  # a copy: training goes on, and a view has the whole tensor behind it
        value = value.detach()
        return (value if value.layout is torch.strided else value.to_dense()).to("cpu", copy=True)
    if isinstance(value, np.generic):
        value = value.item()
    elif isinstance(value, np.ndarray):
        wide = value.dtype.kind == "u" and value.dtype.itemsize > 1
        try:
            return torch.tensor(value.astype(np.int64 if wide else value.dtype.newbyteorder("=")))
        except TypeError:  # of strings or objects
            return plain(value.tolist())
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        kind = next(kind for kind in (list, tuple, set, frozenset) if isinstance(value, kind))
        return (set if kind is frozenset else kind)(map(plain, value))
    if value is None or isinstance(value, bool):
        return value
    for number in (int, float):  # of their subclasses just the number
        if isinstance(value, number):
            return number(value)
    return sys.intern(re.sub(r" at 0x[0-9a-f]+", "", str(value)))  # where an object lay is no part of it


def load_plain(data: bytes) -> dict[str, Any]:
    """What a file of torch.save holds, if that is a checkpoint of tensors and plain values; runs none of it."""
    _check_archive(data)
    # True is said here because TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD would otherwise decide
    checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    check_values(checkpoint)
    check_entries(checkpoint)
    return checkpoint


def _check_archive(data: bytes) -> None:
    """Refuses an archive that unpacks to more than it is, and a pickle that names more than tensors need."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = []
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > len(data):
                raise ValueError("it is compressed")
            names.append(member.filename)
        pickles = [name for name in names if name.endswith(".pkl")]
        if len(pickles) != 1 or len(set(names)) != len(names):
            raise ValueError("its archive is not laid out as torch.save does it")
        if bad := archive.testzip():
            raise ValueError(f"{bad} in it is damaged")
        for opcode, argument, _ in pickletools.genops(archive.read(pickles[0])):
            if opcode.name in ("GLOBAL", "INST") and argument not in ALLOWED:
                raise ValueError(f"it names {argument}")
            if opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"):
                raise ValueError("it names what a checkpoint does not need")


def check_values(checkpoint: Any) -> None:
    """Refuses anything but tensors and plain values, and a structure that is larger than its file can say."""
    todo, count = [checkpoint], 0
    while todo:
        value = todo.pop()
        count += 1
        if count > VALUES:
            raise ValueError("it has too many values")
        if isinstance(value, dict):
            if "class_path" in value:  # settings that are read from here must not say what is imported
                raise ValueError("it names a class")
            todo += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            todo += value
        elif isinstance(value, Tensor):
            if value.numel() * value.element_size() > LARGEST:
                raise ValueError("a tensor is larger than the file")
        elif not isinstance(value, bool | int | float | str | None):
            raise ValueError(f"it holds a {type(value).__name__}")
        elif isinstance(value, int) and abs(value) >= 2**1024:
            raise ValueError("a number is larger than any that is written")


def check_entries(checkpoint: Any) -> None:
    """Refuses what has no weights of a model, and as a checkpoint of a run has not what that looks for."""
    if not isinstance(checkpoint, dict) or STATE not in checkpoint:
        _check(checkpoint, {"state_dict": dict})
        return _check({"hyper_parameters": {}} | checkpoint, {"hyper_parameters": dict})
    _check(checkpoint, {name: kind for name, kind in ENTRIES.items() if name in checkpoint or name not in OF_OURS})
    state, data = checkpoint[STATE], checkpoint.get("MNISTDataModule")
    if "format" in state and state["format"] != FORMAT:
        raise ValueError("another version of the project wrote it")
    _check(state, STATE_ENTRIES | (FORMAT_2 if "format" in state else {}), f"{STATE}/")
    if data is not None:
        _check(data, DATA_ENTRIES, "MNISTDataModule/")
    best, table = state["best"], state["metrics_csv"]
    if best is not None and [type(number) for number in best] != [float, float]:
        raise ValueError("its best is wrong")
    if table is not None:
        _check(table, TABLE_ENTRIES if "format" in state else {}, f"{STATE}/metrics_csv/")


def _check(entries: Any, kinds: Entries, place: str = "") -> None:
    if not isinstance(entries, dict):
        raise ValueError(f"it holds a {type(entries).__name__}")
    for name, kind in kinds.items():
        value = entries.get(name)
        if not isinstance(value, kind) or (isinstance(value, int) and not 0 <= value < 2**63):
            raise ValueError(f"its {place}{name} is missing or wrong")
