"""`--freeze`: layers that a training leaves as they are."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mnist_lightning.errors import BadSetting, nearest


def freeze(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Takes parameters out of the training, by patterns of their names or of their layers'; returns their names.

    Raises BadSetting for a pattern that names nothing, and if nothing is left to train.
    """
    parameters, frozen = dict(model.named_parameters()), set()
    for pattern in patterns:
        named = [name for name in parameters if _names(pattern, name)]
        if not named and not any(_names(pattern, name) for name, _ in _norms(model)):
            raise BadSetting(f"--freeze {pattern} names no layer; {nearest(pattern, _layers(parameters))}")
        frozen |= set(named)
    if parameters and len(frozen) == len(parameters):
        raise BadSetting(f"--freeze {' '.join(patterns)} names all layers: nothing is left to train")
    for name in frozen:
        parameters[name].requires_grad_(False)
    return [name for name in parameters if name in frozen]


def _names(pattern: str, name: str) -> bool:
    """Whether the pattern is that of a parameter or of a layer that it is in: `net.0` is `net.0.weight`, too."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def _layers(parameters: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in parameters))


def _norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, _NormBase)]


class FrozenStatistics(Callback):
    """Keeps the running means and variances of frozen batch normalisation, which no gradient changes."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = list(patterns)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        for name, layer in _norms(module):
            if any(_names(pattern, name) or _names(pattern, f"{name}.weight") for pattern in self.patterns):
                layer.eval()

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.on_train_start(trainer, module)

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        if trainer.state.fn == "fit":
            self.on_train_start(trainer, module)
