"""The recipes of two well-known programs: the networks as those write them; the same weights, the same outputs."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_lightning.models import DigitClassifier
from mnist_lightning.settings import parsed
from mnist_lightning.words import merged, with_files


class ExamplesNet(nn.Module):
    """pytorch/examples, mnist/main.py."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 1)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = self.dropout1(F.max_pool2d(x, 2))
        x = self.dropout2(F.relu(self.fc1(torch.flatten(x, 1))))
        return F.log_softmax(self.fc2(x), dim=1)


class TemplateNet(nn.Module):
    """ashleve/lightning-hydra-template, src/models/components/simple_dense_net.py."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(784, 64), nn.BatchNorm1d(64), nn.ReLU(),
            nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(),
            nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(),
            nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.view(x.size(0), -1))


PEERS = {"examples_cnn": ExamplesNet, "template_mlp": TemplateNet}


def settings(name: str):
    return parsed("fit", merged(with_files([("config", name)])))


def pair(name: str) -> tuple[DigitClassifier, nn.Module]:
    """The recipe's network, and the peer's with its weights: both have them in the same order."""
    ours, theirs = settings(name).model.make(), PEERS[name]()
    names = list(theirs.state_dict())
    theirs.load_state_dict(dict(zip(names, ours.state_dict().values(), strict=True)))
    return ours, theirs


@pytest.mark.parametrize("name", PEERS)
def test_the_network_is_the_peers(name: str):
    ours, theirs = pair(name)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    images = torch.randn(6, 1, 28, 28)
    with torch.no_grad():
        expected = theirs.eval()(images).softmax(1)
        torch.testing.assert_close(ours.eval()(images).softmax(1), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PEERS)
def test_a_step_is_the_peers(name: str):
    """In training, too, where batch normalisation takes its statistics from the batch; without dropout, drawn anew."""
    ours, theirs = pair(name)
    for network in (ours, theirs):
        for layer in network.train().modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
    images, labels = torch.randn(16, 1, 28, 28), torch.arange(16) % 10
    for network in (ours, theirs):
        F.cross_entropy(network(images), labels).backward()  # of log-probabilities as of logits
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)
    for one, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("name", "shares"), [("examples_cnn", [0.25, 0.5]), ("template_mlp", [])])
def test_dropout_is_where_the_peer_has_it(name: str, shares: list[float]):
    assert [layer.p for layer in settings(name).model.make().modules() if isinstance(layer, nn.Dropout)] == shares


def test_the_training_is_the_peers():
    config = settings("examples_cnn")
    known = config.model.settings | config.data.settings | {"max_epochs": config.trainer.settings["max_epochs"]}
    assert known.items() >= {
        "optimizer": "Adadelta", "lr": 1.0, "scheduler": "StepLR", "scheduler_args": {"step_size": 1, "gamma": 0.7},
        "scheduler_interval": "epoch", "batch_size": 64, "val_size": 0, "normalize": (0.1307, 0.3081), "max_epochs": 14,
    }.items()  # fmt: skip
    config = settings("template_mlp")
    known = config.model.settings | config.data.settings | {"max_epochs": config.trainer.settings["max_epochs"]}
    assert known.items() >= {
        "optimizer": "Adam", "lr": 0.001, "scheduler": "ReduceLROnPlateau", "batch_size": 128, "val_size": 5000,
        "scheduler_args": {"mode": "min", "factor": 0.1, "patience": 10}, "scheduler_monitor": "val_loss",
        "max_epochs": 10,
    }.items()  # fmt: skip


def test_adadeltas_rate_falls_each_epoch(fit, tiny_mnist: Path):
    words = "--config examples_cnn --model CNN --model.hidden [8] --model.channels [2,4] --run a --trainer.max_epochs 3"
    fit(*words.split(), "--data.val_size", 50)
    rates = [line.split(",") for line in Path("checkpoints/a/metrics.csv").read_text().splitlines()]
    column = rates[0].index("lr")
    found = sorted({float(row[column]) for row in rates[1:] if row[column]}, reverse=True)
    assert found == pytest.approx([0.7, 0.49, 0.343])  # after each
