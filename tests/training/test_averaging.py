"""Batch normalisation of averaged weights: its statistics are those of the images, through those weights."""

import pytest
import torch
from outcome import RUNS
from samples import write_mnist

from mnist_lightning import load_model
from mnist_lightning.data.module import MNISTDataModule

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


def test_sorted_images_and_one_too_many(fit, tiny_digits, tmp_path):
    (images, labels), test = tiny_digits
    order = labels.argsort()
    images, labels = images[order].repeat(4, 1, 1)[:1061], labels[order].repeat(4)[:1061]
    root = write_mnist(tmp_path / "sorted", (images, labels), test)
    words = ("--data.root", root, "--data.batch_size", "99", "--data.val_size", "60", "--model.norm", "true")
    fit(*words, *AVERAGED, "--run", "a")  # 1,001 images are left
    data = MNISTDataModule(root=str(root), source="mnist", val_size=60)
    data.setup("fit")
    norm, first = load_model(RUNS / "a" / "last.ckpt").net[2], load_model(RUNS / "a" / "last.ckpt").net[1]
    with torch.no_grad():
        mean = first(data.normalized(data.images("train")).flatten(1)).mean(0)
    assert torch.allclose(norm.running_mean, mean, atol=2e-3)


def test_statistics_of_frozen_layers_stay(fit):
    fit("--model.norm", "true", "--run", "a")
    frozen = ("--init_from", "a", "--freeze", "net.1", "--freeze+", "net.2", "--data.val_size", "60")
    fit("--model.norm", "true", "--run", "b", *frozen, *AVERAGED)
    norms = [load_model(RUNS / run / "best.ckpt").net[2] for run in ("a", "b")]
    assert torch.allclose(norms[0].running_mean, norms[1].running_mean, atol=1e-6)  # the mean of equal ones rounds
