"""Checkpoints that no training had to write, and digits in files."""

import copy
import gzip
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnist_lightning.models import CNN
from mnist_lightning.training.checkpoint_content import FORMAT, STATE

STATE_2 = {
    "format": FORMAT, "epoch": 0, "batch": 1, "step": 1, "batches": 24, "best": None, "model": "CNN",
    "precision": "32-true", "global_batch_size": 10, "world_size": 1, "accumulate": 1, "metrics": {},
    "metrics_csv": None, "loggers": {}, "loaders": [], "scheduled_steps": None,
}  # fmt: skip


def content(step: int = 1, /, **state: Any) -> dict[str, Any]:
    """The least that is a checkpoint of a run; its weights fit no model."""
    return {
        "state_dict": {"net.weight": torch.arange(1000.0) + step}, "hyper_parameters": {"lr": 0.1},
        "datamodule_hyper_parameters": {}, "optimizer_states": [], "lr_schedulers": [], "callbacks": {},
        "MNISTDataModule": {"source": "mnist", "mean": 0.1, "std": 0.3, "fingerprint": "0"},
        "epoch": 0, "global_step": step, STATE: {**STATE_2, "batch": step, "step": step, **state},
    }  # fmt: skip


def content_of_3207afc(step: int = 1) -> dict[str, Any]:
    """What that commit wrote: no format, other entries, settings of the model that are gone; a CNN that works."""
    checkpoint = trained(step)
    state = checkpoint[STATE]
    for name in ("format", "accumulate", "metrics", "loggers", "loaders"):
        del state[name]
    state |= {"train_metrics": {"train_acc/tp": torch.zeros(1)}, "metrics_csv": {"bytes": 1, "crc32": 2}}
    checkpoint["hyper_parameters"] |= {"gradient_clip_val": 1.0, "seed": 5}
    del checkpoint["hyper_parameters"]["classes"]
    return checkpoint


def trained(step: int = 1) -> dict[str, Any]:
    """A CNN's, with the state of an optimizer, a scheduler and callbacks."""
    model = CNN(channels=[4], hidden=[16], scheduler="StepLR", scheduler_args={"step_size": 20})
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.zeros(2, 1, 28, 28)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 20)
    checkpoint = content(step, metrics={"logged": [{"name": "train_loss", "value": torch.ones(())}]}, best=(0.5, -1.0))
    checkpoint |= {
        "state_dict": dict(model.state_dict()), "hyper_parameters": dict(model.hparams),
        "datamodule_hyper_parameters": {"val_size": 60, "batch_size": 10, "normalize": [0.1, 0.3], "root": "data"},
        "optimizer_states": [optimizer.state_dict()], "lr_schedulers": [scheduler.state_dict()],
        "callbacks": {"EarlyStopping": {"wait_count": 0, "best_score": torch.ones(())}},
    }  # fmt: skip
    return copy.deepcopy(checkpoint)


def write_mnist(folder: Path, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], gz: bool = True) -> Path:
    """The four IDX files of these images (uint8 [n, 28, 28]) and labels (uint8 [n])."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (images, labels) in (("train", train), ("t10k", test)):
        content = {
            f"{name}-images-idx3-ubyte": struct.pack(">4I", 0x803, *images.shape) + images.numpy().tobytes(),
            f"{name}-labels-idx1-ubyte": struct.pack(">2I", 0x801, len(labels)) + labels.numpy().tobytes(),
        }
        for file, data in content.items():
            if gz:
                (folder / f"{file}.gz").write_bytes(gzip.compress(data, mtime=0))
            else:
                (folder / file).write_bytes(data)
    return folder
