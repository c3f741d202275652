"""MLP: fully connected layers, e.g. 784 -> 256 -> 128 -> 10."""

from typing import Any

from torch import nn

from mnist_lightning.models.classifier import DigitClassifier
from mnist_lightning.models.layers import Network, activation_layer, fully_connected


class MLP(DigitClassifier):
    """Fully connected network.

    Args:
        hidden: Widths of the hidden layers.
        activation: Name of a torch.nn activation after each hidden layer.
        norm: Batch normalisation before each hidden activation.
        dropout: Dropout after each hidden activation, one value or one a layer.
        output_activation: Name of a torch.nn activation of the outputs; cross-entropy wants none.
        kwargs: Loss, optimizer and scheduler: see DigitClassifier.
    """

    def __init__(
        self,
        hidden: list[int] = [256, 128],  # noqa: B006  (read only; --help shows it)
        activation: str = "ReLU",
        norm: bool = False,
        dropout: float | list[float] = 0.0,
        output_activation: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # [n, 1, 28, 28] -> [n, classes]
        layers = [nn.Flatten(), *fully_connected(28 * 28, hidden, self.classes, dropout, activation, norm)]
        if output_activation:
            layers.append(activation_layer(output_activation, "--model.output_activation"))
        self.net = Network(*layers)
