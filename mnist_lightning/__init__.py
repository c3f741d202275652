"""Handwritten-digit classifiers with PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Imported when first used: `--help` and a wrong command need not wait for torch.
_HOMES = {
    "MNISTDataModule": "mnist_lightning.data.module",
    "TensorLoader": "mnist_lightning.data.loader",
    "DigitClassifier": "mnist_lightning.models",
    "MLP": "mnist_lightning.models",
    "CNN": "mnist_lightning.models",
    "Predictor": "mnist_lightning.predictor",
    "load_model": "mnist_lightning.training.checkpoints",
    "quick": "mnist_lightning.training.trainer",
    "fit": "mnist_lightning.commands.fit",
    "Result": "mnist_lightning.commands.fit",
    "UserError": "mnist_lightning.errors",
}
__all__ = [
    "CNN", "MLP", "DigitClassifier", "MNISTDataModule", "Predictor", "Result", "TensorLoader", "UserError", "fit",
    "load_model", "quick",
]  # fmt: skip

if TYPE_CHECKING:
    from mnist_lightning.commands.fit import Result, fit
    from mnist_lightning.data.loader import TensorLoader
    from mnist_lightning.data.module import MNISTDataModule
    from mnist_lightning.errors import UserError
    from mnist_lightning.models import CNN, MLP, DigitClassifier
    from mnist_lightning.predictor import Predictor
    from mnist_lightning.training.checkpoints import load_model
    from mnist_lightning.training.trainer import quick


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
