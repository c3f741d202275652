"""What the networks are made of: layers and torch classes by name, and values given for one layer or for each."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mnist_lightning.errors import BadSetting, nearest

T = TypeVar("T", int, float)
SHARE = 2**16  # weights of a thread that are worth keeping together: 256 KB
MAY_BE_ZERO = ("dropout", "conv_dropout", "padding")


class Linear(nn.Linear):
    """torch's; in training on the CPU each thread keeps to its own share of a large weight matrix.

    Gradient and optimizer step of a share then find it in the cache of the core that used it last. torch divides each
    product as it comes; what this is worth tells benchmarks/tricks.py.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or torch.compiler.is_compiling():
            return super().forward(input)
        threads = torch.get_num_threads()
        if threads == 1 or not self._divides(input, threads):
            return super().forward(input)
        shares = self.weight.view(threads, -1, self.in_features)
        outputs = torch.baddbmm(self.bias.view(threads, -1, 1), shares, input.t().expand(threads, -1, -1))
        return outputs.view(self.out_features, len(input)).t()

    def _divides(self, input: Tensor, threads: int) -> bool:
        return (
            self.weight.numel() >= SHARE * threads
            and self.out_features % threads == 0
            and len(input) >= 32  # products of few rows are slower one by one
            and not input.requires_grad  # the shares' gradients for it would have to be added up
            and (input.device.type, input.dtype) == ("cpu", torch.float32)
            and not torch.is_autocast_enabled("cpu")
        )


class Network(nn.Sequential):
    """Layers one after the other, in the order and the portions that are fastest.

    In training a ReLU before max-pooling runs after it, where it has a quarter to do: the two commute, the same bits
    come out, in the gradients too. In evaluation a large batch goes through in parts that suit a processor's cache.
    """

    at_once = 1000  # images of one evaluation forward on a CPU

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            return _through(self.in_training(), input)
        most = self.at_once * (1 if input.device.type == "cpu" else 10)
        if torch.compiler.is_compiling() or len(input) <= most:
            return _through(self, input)
        return torch.cat([_through(self, part) for part in input.split(most)])

    def in_training(self) -> list[nn.Module]:
        layers = list(self)
        for i, (first, then) in enumerate(pairwise(layers)):
            if isinstance(first, nn.ReLU) and isinstance(then, nn.MaxPool2d):
                layers[i : i + 2] = [then, first]
        return layers


def _through(layers: Iterable[nn.Module], input: Tensor) -> Tensor:
    for layer in layers:
        input = layer(input)
    return input


class Dropout(nn.Dropout):
    """torch's dropout, faster on the CPU: there torch draws 64 random bits for each value, this 16.

    p is rounded to a multiple of 2**-16, and the scale goes with it, so that the mean stays exact.
    """

    def forward(self, input: Tensor) -> Tensor:
        dropped = round(self.p * 2**16)
        if not self.training or input.device.type != "cpu" or dropped == 2**16:
            return super().forward(input)
        bits = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        noise = torch.empty_like(input)  # dense, in the layout of the input
        kept = bits[: input.numel()].as_strided(noise.shape, noise.stride()) >= dropped - 2**15
        return input * noise.copy_(kept).mul_(2**16 / (2**16 - dropped))


def named(module: Any, name: str, base: type, flag: str) -> Any:
    """The subclass of `base` that `module` calls `name`."""
    kinds = {k: v for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, base) and v is not base}
    if name not in kinds or name == "SparseAdam":  # it takes no dense gradients
        raise BadSetting(f"{flag}: there is no {name!r}; {nearest(name, kinds)}")
    return kinds[name]


def activation_layer(name: str, flag: str = "--model.activation") -> nn.Module:
    """The torch.nn activation of that name; raises BadSetting for one that changes the shape or takes arguments."""
    kind = named(nn.modules.activation, name, nn.Module, flag)
    try:
        layer = kind()
        if layer(torch.zeros(3, 5)).shape == (3, 5):
            return layer
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
        pass
    raise BadSetting(f"{flag}: {name} does not map [n, width] to [n, width]; take another, such as ReLU")


def fully_connected(
    width: int, hidden: list[int], classes: int, dropout: float | list[float], activation: str, norm: bool = False
) -> list[nn.Module]:
    """Layers from [n, width] over the hidden widths to [n, classes]; with `norm` batch normalisation before each
    activation."""
    layers: list[nn.Module] = []
    drops = per_layer(dropout, len(hidden), "dropout")
    for size, drop in zip(per_layer(hidden, len(hidden), "hidden"), drops, strict=True):
        layers += [Linear(width, size), *[nn.BatchNorm1d(size)] * norm, activation_layer(activation)]
        if drop:
            layers.append(Dropout(drop))
        width = size
    return [*layers, Linear(width, classes)]


def per_layer(value: T | list[T], layers: int, name: str) -> list[T]:
    """One value for each layer, from one for all or a list."""
    values = value if isinstance(value, list) else [value] * layers
    if name not in MAY_BE_ZERO and any(v < 1 for v in values):
        raise BadSetting(f"--model.{name} is {value}; it must be at least 1")
    if len(values) != layers:
        raise BadSetting(f"--model.{name} has {len(values)} values for {layers} layers: {values}")
    return values
