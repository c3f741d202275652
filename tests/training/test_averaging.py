"""Batch normalisation of averaged weights: its statistics are those of the images, through those weights."""

import pytest
import torch
from outcome import RUNS
from samples import write_mnist

from mnist_lightning import load_model
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.training import averaging

AVERAGED = ("--trainer.callbacks", "EMAWeightAveraging", "--trainer.callbacks.decay", "0.9")


@pytest.mark.parametrize("averaged", [True, False])
def test_statistics_are_those_of_the_averaged_weights(fit, tiny_mnist, averaged):
    fit("--model.norm", "true", "--run", "a", "--data.val_size", "60", *(AVERAGED if averaged else ()))
    model = load_model(RUNS / "a" / "last.ckpt")
    data = MNISTDataModule(root=str(tiny_mnist), source="mnist", val_size=60)
    data.setup("fit")
    with torch.no_grad():
        first = model.net[1](model.net[0](data.normalized(data.images("train"))))
    norm = model.net[2]
    assert torch.allclose(norm.running_mean, first.mean(0), atol=1e-5) is averaged
    assert torch.allclose(norm.running_var, first.var(0), rtol=1e-3) is averaged


@pytest.mark.slow
def test_a_resumed_training_ends_in_the_same_bits(fit):
    words = ("--model.norm", "true", "--data.val_size", "60", *AVERAGED, "--trainer.max_epochs")
    fit(*words, "3", "--run", "whole")
    fit(*words, "2", "--run", "parts")
    fit(*words, "3", "--run", "parts", "--ckpt_path", "last")
    assert (RUNS / "parts" / "last.ckpt").read_bytes() == (RUNS / "whole" / "last.ckpt").read_bytes()


@pytest.fixture
def sorted_by_class(tiny_digits, tmp_path):
    """A folder with 1,061 images to train on, which lie class by class."""
    (images, labels), test = tiny_digits
    order = labels.argsort(stable=True).repeat_interleave(4)[:1061]
    return write_mnist(tmp_path / "sorted", (images[order], labels[order]), test)


@pytest.mark.parametrize(("images", "at_once", "tolerance"), [(10_000, 1000, 0.002), (250, 100, 0.05)])
def test_images_from_all_of_the_set_in_equal_parts(fit, sorted_by_class, monkeypatch, images, at_once, tolerance):
    monkeypatch.setattr(averaging, "IMAGES", images)
    monkeypatch.setattr(averaging, "AT_ONCE", at_once)
    words = ("--data.root", sorted_by_class, "--data.batch_size", "99", "--data.val_size", "60", "--model.norm", "true")
    fit(*words, *AVERAGED, "--run", "a")  # 1,001 images are left: one more than a part has
    data = MNISTDataModule(root=str(sorted_by_class), source="mnist", val_size=60)
    data.setup("fit")
    net = load_model(RUNS / "a" / "last.ckpt").net
    with torch.no_grad():
        mean = net[1](data.normalized(data.images("train")).flatten(1)).mean(0)
    assert (net[2].running_mean - mean).abs().max() < tolerance


def test_statistics_of_frozen_layers_stay(fit):
    fit("--model.norm", "true", "--run", "a")
    frozen = ("--init_from", "a", "--freeze", "net.1", "--freeze+", "net.2", "--data.val_size", "60")
    fit("--model.norm", "true", "--run", "b", *frozen, *AVERAGED)
    norms = [load_model(RUNS / run / "best.ckpt").net[2] for run in ("a", "b")]
    assert torch.allclose(norms[0].running_mean, norms[1].running_mean, atol=1e-6)  # the mean of equal ones rounds
