"""CNN: convolutional stages, then fully connected layers."""

from typing import Any, Literal

import torch
from torch import nn

from mnist_lightning.errors import BadSetting
from mnist_lightning.models.classifier import DigitClassifier
from mnist_lightning.models.layers import Dropout, Network, activation_layer, fully_connected, per_layer

Part = Literal["conv", "norm", "activation", "pool", "dropout"]


class CNN(DigitClassifier):
    """Convolutional network. Values given once hold for every stage or layer.

    Args:
        channels: Channels of each convolutional stage.
        kernel_size: Side of the kernel of each stage.
        padding: Zeros around the input of each stage; negative: so much less of its border.
        stride: Step of the kernel of each stage; 2 halves the sides, and learns how.
        pool: Side of the max-pooling window of each stage; 1 is no pooling.
        order: The parts of a stage, in their order.
        conv_dropout: Dropout of each stage.
        dropout2d: Drop whole channels in the stages, not single values.
        hidden: Widths of the fully connected hidden layers.
        dropout: Dropout after each hidden activation.
        activation: Name of a torch.nn activation.
        kwargs: Loss, optimizer and scheduler: see DigitClassifier.
    """

    def __init__(
        self,
        channels: list[int] = [32, 64],  # noqa: B006  (read only; --help shows it)
        kernel_size: int | list[int] = 3,
        padding: int | list[int] = 0,
        stride: int | list[int] = 1,
        pool: int | list[int] = 2,
        order: list[Part] = ["conv", "activation", "pool", "dropout"],  # noqa: B006
        conv_dropout: float | list[float] = 0.0,
        dropout2d: bool = False,
        hidden: list[int] = [128],  # noqa: B006
        dropout: float | list[float] = 0.0,
        activation: str = "ReLU",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if order.count("conv") != 1 or len(set(order)) != len(order):
            raise BadSetting(f"--model.order {order} must name conv once, and no part twice")
        stages = len(channels)
        layers: list[nn.Module] = []
        width, side = 1, 28  # [n, 1, 28, 28]
        for out, kernel, pad, step, window, drop in zip(
            per_layer(channels, stages, "channels"),
            per_layer(kernel_size, stages, "kernel_size"),
            per_layer(padding, stages, "padding"),
            per_layer(stride, stages, "stride"),
            per_layer(pool, stages, "pool"),
            per_layer(conv_dropout, stages, "conv_dropout"),
            strict=True,
        ):
            for part in order:
                if part == "conv":
                    if pad < 0:
                        layers.append(nn.ZeroPad2d(pad))
                    layers.append(nn.Conv2d(width, out, kernel, step, padding=max(pad, 0)))
                elif part == "norm":
                    layers.append(nn.BatchNorm2d(out))
                elif part == "activation":
                    layers.append(activation_layer(activation))
                elif part == "pool" and window > 1:
                    layers.append(nn.MaxPool2d(window))
                elif part == "dropout" and drop:
                    layers.append(nn.Dropout2d(drop) if dropout2d else Dropout(drop))
            width, side = out, ((side + 2 * pad - kernel) // step + 1) // window  # [n, width, side, side]
            if side < 1:
                raise BadSetting("--model: the stages leave nothing of 28x28; pool less or pad more")
        # [n, width, side, side] -> [n, classes]
        layers += [nn.Flatten(), *fully_connected(width * side * side, hidden, self.classes, dropout, activation)]
        # the layout that convolution kernels work in; what it is worth tells benchmarks/tricks.py
        self.net = Network(*layers).to(memory_format=torch.channels_last)
        self.net.at_once = 250  # 32 channels of them take 25 MB
