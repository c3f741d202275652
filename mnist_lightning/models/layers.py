"""What the networks are made of: layers and torch classes by name, and values given for one layer or for each."""

import difflib
from typing import Any, TypeVar

from torch import nn

from mnist_lightning.errors import BadSetting

T = TypeVar("T", int, float)
MAY_BE_ZERO = ("dropout", "conv_dropout", "padding")


def named(module: Any, name: str, base: type, flag: str) -> Any:
    """The subclass of `base` that `module` calls `name`."""
    kinds = {k: v for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, base) and v is not base}
    kinds = {k: v for k, v in kinds.items() if k not in ("LBFGS", "SparseAdam")}  # these take no plain step
    if name not in kinds:
        lower = {kind.lower(): kind for kind in kinds}
        near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.4) or sorted(lower)[:1]
        raise BadSetting(f"{flag}: there is no {name!r}; did you mean {lower[near[0]]}?")
    return kinds[name]


def activation_layer(name: str) -> nn.Module:
    return named(nn.modules.activation, name, nn.Module, "--model.activation")()


def fully_connected(width: int, hidden: list[int], dropout: float | list[float], activation: str) -> list[nn.Module]:
    """Layers from [n, width] over the hidden widths to [n, 10]."""
    layers: list[nn.Module] = []
    drops = per_layer(dropout, len(hidden), "dropout")
    for size, drop in zip(per_layer(hidden, len(hidden), "hidden"), drops, strict=True):
        layers += [nn.Linear(width, size), activation_layer(activation)]
        if drop:
            layers.append(nn.Dropout(drop))
        width = size
    return [*layers, nn.Linear(width, 10)]


def per_layer(value: T | list[T], layers: int, name: str) -> list[T]:
    """One value for each layer, from one for all or a list."""
    values = value if isinstance(value, list) else [value] * layers
    if name not in MAY_BE_ZERO and any(v < 1 for v in values):
        raise BadSetting(f"--model.{name} is {value}; it must be at least 1")
    if len(values) != layers:
        raise BadSetting(f"--model.{name} has {len(values)} values for {layers} layers: {values}")
    return values
