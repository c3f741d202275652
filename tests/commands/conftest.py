"""Classes of a user's own."""

import sys
from pathlib import Path

import pytest

MINE = """
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(LightningModule):
    def __init__(self, width: int, rate: float = 0.1):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
        self.rate = rate

    def loss(self, name, batch):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log(f"{name}_loss", loss, on_epoch=True, on_step=False)
        return loss

    def training_step(self, batch, index):
        return self.loss("train", batch)

    def validation_step(self, batch, index):
        self.loss("val", batch)

    def test_step(self, batch, index):
        self.loss("test", batch)
        self.log("test_ones", (batch[1] == 1).float().mean())

    def predict_step(self, batch, index):
        return self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.rate)

class TrainsOnly(Net):
    test_step = LightningModule.test_step

class Data(LightningDataModule):
    def __init__(self, images: int = 40):
        super().__init__()
        self.images = images

    def train_dataloader(self):
        torch.manual_seed(1)
        digits = TensorDataset(torch.rand(self.images, 1, 28, 28), torch.arange(self.images) % 10)
        return DataLoader(digits, batch_size=10)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader

class Object(Callback):
    def __init__(self, thing=None):
        self.thing = thing
"""


@pytest.fixture
def mine(cli, tmp_path: Path):
    """A module `mine` in the folder that commands are called from; only they find it."""
    (tmp_path / "mine.py").write_text(MINE)
    yield
    sys.modules.pop("mine", None)
