"""MLP and CNN: what their settings build, and what they refuse."""

from typing import Any

import pytest
import torch
from torch import nn

from mnist_lightning.errors import BadSetting
from mnist_lightning.models import CNN, MLP, DigitClassifier
from mnist_lightning.models.layers import per_layer


def shapes(model: DigitClassifier) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in model.parameters()]


def test_mlp():
    assert shapes(MLP(hidden=[20, 30])) == [(20, 784), (20,), (30, 20), (30,), (10, 30), (10,)]
    assert shapes(MLP(hidden=[])) == [(10, 784), (10,)]
    model = MLP(hidden=[4, 5, 6], dropout=[0.1, 0.0, 0.3], activation="Tanh", output_activation="Sigmoid")
    layers = " ".join(type(part).__name__ for part in model.net)
    assert layers == "Flatten Linear Tanh Dropout Linear Tanh Linear Tanh Dropout Linear Sigmoid"
    assert [part.p for part in model.net if isinstance(part, nn.Dropout)] == [0.1, 0.3]
    assert [part.p for part in MLP(hidden=[4, 5], dropout=0.2).net if isinstance(part, nn.Dropout)] == [
        0.2,
        0.2,
    ]


@pytest.mark.parametrize(
    ("options", "flat"),
    [
        ({"channels": [3]}, 3 * 13 * 13),  # 28 - 2 = 26, halved
        ({"channels": [3], "padding": 1}, 3 * 14 * 14),
        ({"channels": [3], "kernel_size": 5, "pool": 1}, 3 * 24 * 24),
        ({"channels": [3, 7], "pool": [2, 1], "padding": [1, 0]}, 7 * 12 * 12),
        ({"channels": [3, 7], "kernel_size": [5, 3], "pool": [1, 3]}, 7 * 7 * 7),  # 24, 22, a third
        ({"channels": [3], "padding": -2, "kernel_size": 5}, 3 * 10 * 10),  # 24, 20, halved
        ({"channels": [3, 7], "stride": [1, 2], "pool": 1, "kernel_size": [3, 5], "padding": [0, 2]}, 7 * 13 * 13),
        ({"channels": [3], "stride": 3, "kernel_size": 5}, 3 * 4 * 4),  # 24 and less by threes: 8, halved
        ({"channels": [3, 4, 7], "stride": 2, "pool": 1, "padding": 1}, 7 * 4 * 4),  # 14, 7, 4
        ({"channels": []}, 784),
    ],
)
def test_cnn_knows_the_size_that_its_stages_leave(options: dict[str, Any], flat: int):
    model = CNN(hidden=[5], **options)
    assert next(part for part in model.net if isinstance(part, nn.Linear)).in_features == flat
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        (MLP, {"hidden": [4, 5], "dropout": [0.1]}, "--model.dropout has 1 values for 2 layers: [0.1]"),
        (
            CNN,
            {"channels": [4], "kernel_size": [3, 3]},
            "--model.kernel_size has 2 values for 1 layers: [3, 3]",
        ),
        (CNN, {"channels": [4, 5], "padding": [1]}, "--model.padding has 1 values for 2 layers: [1]"),
        (CNN, {"channels": [4, 5], "pool": [1]}, "--model.pool has 1 values for 2 layers: [1]"),
        (CNN, {"channels": [4], "stride": 0}, "--model.stride is 0; it must be at least 1"),
        (CNN, {"channels": [4], "conv_dropout": []}, "--model.conv_dropout has 0 values for 1 layers: []"),
        (CNN, {"hidden": [], "dropout": [0.5]}, "--model.dropout has 1 values for 0 layers: [0.5]"),
        (CNN, {"order": ["pool"]}, "--model.order ['pool'] must name conv once, and no part twice"),
        (
            CNN,
            {"order": ["conv", "pool", "pool"]},
            "--model.order ['conv', 'pool', 'pool'] must name conv once, and no part twice",
        ),
        (
            CNN,
            {"channels": [4], "kernel_size": 29},
            "--model: the stages leave nothing of 28x28; pool less or pad more",
        ),
        (CNN, {"channels": [4] * 4}, "--model: the stages leave nothing of 28x28; pool less or pad more"),
        (MLP, {"label_smoothing": 1.0}, "--model.label_smoothing is 1.0; it is from 0 to 1, and for cross_entropy"),
        (MLP, {"label_smoothing": 0.1, "loss": "mse"}, "--model.label_smoothing is 0.1; it is"),
        (MLP, {"activation": "Relu"}, "--model.activation: there is no 'Relu'; did you mean ReLU?"),
        (MLP, {"optimizer": "adam"}, "--model.optimizer: there is no 'adam'; did you mean Adam?"),
        (MLP, {"optimizer": "Optimizer"}, "--model.optimizer: there is no 'Optimizer'; there are ASGD, "),
        (MLP, {"scheduler": "StepLr"}, "--model.scheduler: there is no 'StepLr'; did you mean StepLR?"),
    ],
)
def test_refused(kind: type[DigitClassifier], options: dict[str, Any], expected: str):
    with pytest.raises(BadSetting) as caught:
        kind(**options)
    assert str(caught.value).startswith(expected)


def test_per_layer():
    assert per_layer(3, 2, "kernel_size") == [3, 3]
    assert per_layer([3, 5], 2, "kernel_size") == [3, 5]
    assert per_layer(0.5, 0, "dropout") == []


def test_negative_padding_crops():
    images = torch.rand(2, 1, 28, 28)
    cropped = images.clone()
    for edge in (slice(0, 2), slice(26, 28)):
        cropped[:, :, edge], cropped[..., edge] = 7, 7
    model = CNN(channels=[3], padding=-2).eval()
    assert torch.equal(model(images), model(cropped))


def test_dropout_is_off_when_evaluating():
    model = MLP(hidden=[50], dropout=0.5).eval()
    images = torch.rand(3, 1, 28, 28)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_dropout2d_drops_whole_channels():
    torch.manual_seed(0)
    model = CNN(channels=[40], order=["conv", "dropout"], conv_dropout=0.5, dropout2d=True, hidden=[]).train()
    maps = model.net[:2](torch.rand(1, 1, 28, 28))[0]
    dropped = (maps == 0).flatten(1).all(1)
    assert 5 < dropped.sum() < 35
    assert (maps[~dropped] != 0).all()


def test_relu_runs_after_pooling_in_training_and_computes_the_same_bits():
    torch.manual_seed(0)
    model = CNN(channels=[4, 8], padding=1)
    assert " ".join(type(part).__name__ for part in model.net[:3]) == "Conv2d ReLU MaxPool2d"
    assert [type(part).__name__ for part in model.net.in_training()[:3]] == ["Conv2d", "MaxPool2d", "ReLU"]
    found = []
    for net in (model.net, nn.Sequential(*model.net)):
        output = net(torch.arange(30 * 784).remainder(7).float().view(30, 1, 28, 28))  # ties too
        found.append((output, *torch.autograd.grad(output.square().sum(), list(net.parameters()))))
    for ours, plain in zip(*found, strict=True):
        assert torch.equal(ours, plain)
    assert [type(part).__name__ for part in CNN(activation="SiLU").net.in_training()[:2]] == ["Conv2d", "SiLU"]
