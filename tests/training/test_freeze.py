"""Frozen layers stay as they are, to the bit, and so does a run that goes on."""

import shlex

import pytest
import torch
from torch import nn

from mnist_lightning.cli import main
from mnist_lightning.errors import BadSetting
from mnist_lightning.training.checkpoints import read_checkpoint
from mnist_lightning.training.freeze import freeze


def network() -> nn.Module:
    """net.0, net.1 (batch normalisation), net.3 and net.30, as of a deeper one."""
    layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))
    layers.add_module("30", nn.Linear(3, 3, bias=False))
    return nn.ModuleDict({"net": layers})


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        (["net.0"], ["net.0.weight", "net.0.bias"]),
        (["net.3*"], ["net.3.weight", "net.3.bias", "net.30.weight"]),
        (["net.3.*"], ["net.3.weight", "net.3.bias"]),
        (["*.bias", "net.30"], ["net.0.bias", "net.1.bias", "net.3.bias", "net.30.weight"]),
        ([], []),
    ],
)
def test_what_patterns_name(patterns, frozen):
    model = network()
    assert freeze(model, patterns) == frozen
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == frozen


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        (["net.0", "nett.3"], r"--freeze nett\.3 names no layer; did you mean net\.3\?"),
        (["*"], r"--freeze \* names all layers: nothing is left to train"),
        (["net"], "nothing is left to train"),
    ],
)
def test_what_cannot_be_frozen(patterns, told):
    with pytest.raises(BadSetting, match=told):
        freeze(network(), patterns)


@pytest.mark.slow
def test_frozen_layers_keep_weights_and_statistics_also_when_resumed(cli, tiny_mnist, tmp_path):
    net = shlex.split("--model CNN --model.channels [2,2] --model.hidden [8] --model.order [conv,norm,activation,pool]")
    net += ["--model.optimizer_args", "{weight_decay: 0.1}", "--data.root", str(tiny_mnist)]
    net += shlex.split("--data.source mnist --data.val_size 50 --data.batch_size 50 --trainer.val_check_interval 0.5")

    def fit(run: str, *words: object) -> dict[str, torch.Tensor]:
        assert main(["fit", "--run", run, *map(str, words)]) == 0
        return read_checkpoint(tmp_path / "checkpoints" / run / "last.ckpt")

    base = fit("base", *net, "--trainer.max_epochs", 1)["state_dict"]
    words = [*net, "--init_from", "base", "--model.classes", 12, "--freeze", "net.0*", "net.1"]
    whole = fit("whole", *words, "--trainer.max_epochs", 2)
    fit("parts", *words, "--trainer.max_steps", 3)  # stopped inside an epoch
    parts = fit("parts", "--ckpt_path", "last", "--trainer.max_steps", -1, "--trainer.max_epochs", 2)
    for name, now in whole["state_dict"].items():
        assert torch.equal(now, parts["state_dict"][name])
        if name in base and now.shape == base[name].shape:
            assert torch.equal(now, base[name]) == name.startswith(("net.0.", "net.1."))
    (group,) = whole["optimizer_states"][0]["param_groups"]
    assert len(group["params"]) == 8  # of 12
    result = cli("fit", "--run", "parts", "--ckpt_path", "last", "--trainer.max_epochs", 3, "--freeze", "net.0")
    assert result.status == 1
    assert "--freeze was ['net.0*', 'net.1'], is ['net.0']" in result.err


def test_a_checkpoint_alone_goes_on_frozen(cli, tiny_mnist, tmp_path):
    words = shlex.split("--model MLP --model.hidden [8] --data.source mnist --data.val_size 50 --trainer.max_epochs 1")
    words += ["--data.root", str(tiny_mnist)]
    assert cli("fit", *words, "--freeze", "net.1").status == 0
    (tmp_path / "checkpoints" / "mlp" / "last.ckpt").rename(tmp_path / "model.ckpt")
    result = cli("fit", "--ckpt_path", "model.ckpt", "--run", "b", "--trainer.max_epochs", 2)
    assert (result.status, result.err) == (0, "")
    assert "Frozen are net.1.weight, net.1.bias\n" in result.out
    assert "model.ckpt: MLP, 250 training images" in result.out
    assert "metrics.csv is not there: the table begins with what is trained now" in result.out
    old, new = (read_checkpoint(tmp_path / file)["state_dict"] for file in ("model.ckpt", "checkpoints/b/last.ckpt"))
    assert [torch.equal(old[f"net.{layer}.weight"], new[f"net.{layer}.weight"]) for layer in (1, 3)] == [True, False]
