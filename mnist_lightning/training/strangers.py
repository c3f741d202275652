"""What a checkpoint may hold: a file can come from anybody, with a checksum that is right."""

import io
import pickletools
import zipfile
from typing import Any

from torch import Tensor

LARGEST = 2 << 30  # bytes; no digit classifier comes near
VALUES = 1_000_000  # at most so many values in a checkpoint: a shared list of shared lists would never end
STATE = "mnist_lightning"  # our own entry in a checkpoint: position, identity, metrics of the running epoch

# What a checkpoint of tensors and plain values needs of pickle, and nothing else.
ALLOWED = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char")),
    *(f"torch {kind}Storage" for kind in ("Byte", "Bool")),
}

Maybe = type(None)
ENTRIES: dict[str, Any] = {
    "state_dict": dict, "hyper_parameters": dict, "datamodule_hyper_parameters": dict, "optimizer_states": list,
    "lr_schedulers": list, "callbacks": dict, "MNISTDataModule": dict, "epoch": int, "global_step": int,
}  # fmt: skip
STATE_ENTRIES: dict[str, Any] = {
    "epoch": int, "batch": int, "step": int, "model": str, "precision": str, "global_batch_size": int, "batches": int,
    "world_size": int, "scheduled_steps": (int, Maybe), "best": (list, tuple, Maybe), "train_metrics": dict,
    "metrics_csv": (dict, Maybe),
}  # fmt: skip
DATA_ENTRIES: dict[str, Any] = {"source": str, "mean": float, "std": float, "fingerprint": str}


def check_pickle(data: bytes) -> None:
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
        for opcode, argument, _ in pickletools.genops(archive.read(pickles[0])):
            if opcode.name in ("GLOBAL", "INST") and argument not in ALLOWED:
                raise ValueError(f"it names {argument}")
            if opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"):
                raise ValueError("it names what a checkpoint does not need")


def check_values(checkpoint: Any) -> None:
    """Refuses anything but tensors and plain values, and a structure that is larger than its file can say."""
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(STATE), dict):
        raise ValueError("it has no entry of this project")
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
        elif isinstance(value, list | tuple):
            todo += value
        elif isinstance(value, Tensor):
            if value.numel() * value.element_size() > LARGEST:
                raise ValueError("a tensor is larger than the file")
        elif not isinstance(value, bool | int | float | str | None):
            raise ValueError(f"it holds a {type(value).__name__}")
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError("a number is larger than any that is written")
    for entries, kinds, place in (
        (checkpoint, ENTRIES, ""),
        (checkpoint[STATE], STATE_ENTRIES, f"{STATE}/"),
        (checkpoint.get("MNISTDataModule"), DATA_ENTRIES, "MNISTDataModule/"),
    ):
        if not isinstance(entries, dict):
            raise ValueError(f"its {place} is missing")
        for key, kind in kinds.items():
            if not isinstance(entries.get(key), kind) or (kind is int and entries[key] < 0):
                raise ValueError(f"its {place}{key} is missing or wrong")
    tensors = [*checkpoint["state_dict"].values(), *checkpoint[STATE]["train_metrics"].values()]
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise ValueError("its state_dict or train_metrics is wrong")
    best, table = checkpoint[STATE]["best"], checkpoint[STATE]["metrics_csv"]
    if best is not None and [type(number) for number in best] != [float, float]:
        raise ValueError("its best is wrong")
    if table is not None and not all(isinstance(table.get(key), int) for key in ("bytes", "crc32")):
        raise ValueError("its metrics_csv is wrong")
