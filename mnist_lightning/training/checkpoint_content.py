"""What a checkpoint may hold, and nothing else: a file can come from anybody, with a checksum that is right."""

import io
import math
import pickletools
import re
import sys
import zipfile
from enum import Enum
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGEST = 2 << 30  # bytes; no digit classifier comes near
VALUES = 1_000_000  # at most so many values in a checkpoint: a shared list of shared lists would never end
STATE = "mnist_lightning"  # our own entry in a checkpoint: position, identity, metrics of the running epoch
FOUND = "predictor"  # another: temperature and limits of doubt, found on training images after the training
FORMAT = 2  # of that entry; those of commit 3207afc and before have none

# What tensors and plain values need of pickle. torch would call some more, of which a few can be made to fill memory.
NAMES = re.compile(
    r"collections OrderedDict|__builtin__ set|torch\._utils _rebuild_tensor_v[23]"
    r"|torch(\.storage)? \w+Storage|torch [a-z]+\d\w*"  # the latter are types, such as uint16
)

Kinds = dict[str, Any]  # from the name of an entry to what it must be; a dict for one that has entries itself
OF_OURS = {"hyper_parameters", "datamodule_hyper_parameters", "MNISTDataModule"}  # a user's module may have none
OF_ANY: Kinds = {"state_dict": dict, "hyper_parameters": dict}
OF_A_RUN: Kinds = {
    **OF_ANY, "datamodule_hyper_parameters": dict, "epoch": int, "global_step": int, "optimizer_states": list,
    "lr_schedulers": list, "callbacks": dict,
    "MNISTDataModule": {"source": str, "mean": float, "std": float, "fingerprint": str},
    STATE: {"epoch": int, "batch": int, "step": int, "model": str, "precision": str},
}  # fmt: skip
FORMAT_2: Kinds = {
    "batches": int, "best": (list, tuple, NoneType), "global_batch_size": (int, NoneType), "world_size": int,
    "accumulate": int, "scheduled_steps": (int, NoneType), "metrics": dict, "metrics_csv": (dict, NoneType),
    "loggers": dict, "loaders": list,
}  # fmt: skip
TABLE: Kinds = {"columns": int, "rows": int, "crc32": int, "last": list}


def plain(value: Any) -> Any:
    """A copy with dicts, lists, tuples, sets, strings, numbers and compact CPU tensors only.

    Strings are interned: pickle writes a string once for each object, so equal states give equal files only if
    equal strings are one object, however the state came about.
    """
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Tensor):  # a copy: training goes on, and a view has the whole tensor behind it
        value = value.detach()
        return (value if value.layout is torch.strided else value.to_dense()).to("cpu", copy=True)
    if isinstance(value, np.ndarray):
        try:
            return torch.tensor(value.astype(value.dtype.newbyteorder("=")))
        except TypeError:  # of strings or objects
            return plain(value.tolist())
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        kind = list if isinstance(value, list) else tuple if isinstance(value, tuple) else set
        return kind(map(plain, value))
    for number in (bool, int, float):  # of their subclasses just the number
        if isinstance(value, number):
            return number(value)
    if value is None:
        return None
    return sys.intern(re.sub(r" at 0x[0-9a-f]+", "", str(value)))  # where an object lay is no part of it


def load_plain(data: bytes) -> dict[str, Any]:
    """What a file of torch.save holds, if that is a checkpoint of tensors and plain values; runs none of it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()  # torch takes the first of a name, in small letters or capitals
        if sum(member.file_size for member in members) > len(data):
            raise ValueError("it unpacks to more than it is")
        if bad := archive.testzip():
            raise ValueError(f"{bad} in it is damaged")
        for pickled in [archive.read(member) for member in members if member.filename.lower().endswith(".pkl")]:
            for opcode, argument, _ in pickletools.genops(pickled):
                if opcode.name == "GLOBAL" and not NAMES.fullmatch(str(argument)):
                    raise ValueError(f"it names {argument}")
    # True is said here because TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD would otherwise decide
    checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    check_values(checkpoint)
    check_entries(checkpoint)
    return checkpoint


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
    if not isinstance(checkpoint, dict):
        raise ValueError(f"it holds a {type(checkpoint).__name__}")
    _check(checkpoint, OF_A_RUN if STATE in checkpoint else OF_ANY)
    _check_found(checkpoint.get(FOUND, {}))
    state = checkpoint.get(STATE, {})
    if "format" not in state:  # it can be tested and used, not continued
        return
    if state["format"] != FORMAT:
        raise ValueError("another version of the project wrote it")
    _check(state, FORMAT_2, f"{STATE}/")
    if state["best"] is not None and [type(number) for number in state["best"]] != [float, float]:
        raise ValueError("its best is wrong")
    if state["metrics_csv"] is not None:
        _check(state["metrics_csv"], TABLE, f"{STATE}/metrics_csv/")


def _check_found(found: Any) -> None:
    """Refuses what a Predictor cannot compute with."""
    if not isinstance(found, dict):
        raise ValueError(f"its {FOUND} is wrong")
    for name in ("temperature", "least_probability", "least_energy"):
        value = found.get(name, 1.0)
        if not isinstance(value, float) or not math.isfinite(value) or (name == "temperature" and value <= 0):
            raise ValueError(f"its {FOUND}/{name} is wrong")


def _check(entries: dict[str, Any], kinds: Kinds, place: str = "") -> None:
    for name, kind in kinds.items():
        if name in OF_OURS and name not in entries:
            continue
        value, inner = entries.get(name), kind if isinstance(kind, dict) else {}
        if not isinstance(value, dict if inner else kind) or (isinstance(value, int) and not 0 <= value < 2**63):
            raise ValueError(f"its {place}{name} is missing or wrong")
        _check(value, inner, f"{place}{name}/")
