"""Batch normalisation of averaged weights: its statistics are those of the images, through those weights."""

import pytest
import torch
from outcome import RUNS

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
