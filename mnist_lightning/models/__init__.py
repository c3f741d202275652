"""From batches to logits."""

from mnist_lightning.models.classifier import DigitClassifier
from mnist_lightning.models.cnn import CNN
from mnist_lightning.models.mlp import MLP

MODELS: dict[str, type[DigitClassifier]] = {"MLP": MLP, "CNN": CNN}

__all__ = ["CNN", "MLP", "MODELS", "DigitClassifier"]
