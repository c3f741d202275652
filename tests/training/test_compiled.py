"""Steps that are compiled several at once: the same training but for rounding, exact after a kill, or said why not."""

import csv
import os
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from outcome import RUNS
from processes import LAST, ended, same_run
from test_resume import killed_and_resumed

from mnist_lightning import MLP, MNISTDataModule, quick
from mnist_lightning.errors import UserError
from mnist_lightning.training import compiled
from mnist_lightning.training.compiled import AT_ONCE, CompiledSteps
from mnist_lightning.training.several import _passes_none
from mnist_lightning.training.trainer import make_trainer

# 24 steps an epoch on tiny_mnist: four times five, and four one by one, in the first
SMALL = shlex.split(
    "--model MLP --model.hidden=[16] --model.lr=0.05 --data.source mnist --data.val_size 60 --data.batch_size 10 "
    "--trainer.max_epochs 3 --trainer.log_every_n_steps 5 --checkpoint.every_n_steps 5"
)
ADAM = [*SMALL, "--model.lr=0.002"]
MOMENTUM = [*SMALL, "--model.optimizer=SGD", '--model.optimizer_args={"momentum": 0.9, "nesterov": true}']
DECAY = [
    *SMALL, "--model.optimizer=AdamW", "--model.lr=0.002", "--model.label_smoothing=0.1", "--model.activation=PReLU",
    "--model.scheduler=StepLR", '--model.scheduler_args={"step_size": 1, "gamma": 0.5}',
    "--model.scheduler_interval=epoch", "--data.balance=loss",
]  # fmt: skip
COMPILED = ("--loop.step", "compiled")
has_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="there is no C++ compiler for torch.compile"
)


def table(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@has_compiler
@pytest.mark.slow
@pytest.mark.parametrize("words", [ADAM, MOMENTUM, DECAY])
def test_compiled_steps_train_as_eager_ones_do(fit, tmp_path, words):
    for way in ("eager", "compiled"):
        told = fit(*words, "--loop.step", way, "--run", way)
        assert "Steps are eager" not in told.out
    eager, ours = table(tmp_path / "checkpoints" / "eager"), table(tmp_path / "checkpoints" / "compiled")
    assert [row.keys() for row in ours] == [row.keys() for row in eager]
    for one, other in zip(ours, eager, strict=True):
        assert {name for name in one if one[name]} == {name for name in other if other[name]}
        for name in one:
            assert one[name] == other[name] or float(one[name]) == pytest.approx(float(other[name]), rel=1e-3, abs=1e-5)
    states = [
        torch.load(tmp_path / "checkpoints" / way / "last.ckpt", weights_only=True) for way in ("eager", "compiled")
    ]
    for name, weights in states[0]["state_dict"].items():
        assert torch.allclose(weights, states[1]["state_dict"][name], atol=1e-4), name
    assert [state["global_step"] for state in states] == [72, 72]


@has_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("moment", "number"), [("batch end", 3), ("batch end", 7), ("step", 6), ("row", 9)])
def test_a_kill_between_compiled_steps_changes_nothing(start, undisturbed, tmp_path, moment, number):
    words = [*MOMENTUM, *COMPILED]
    whole = undisturbed(start, *words)
    killed_and_resumed(start, tmp_path, *words, moment=moment, number=number)
    same_run(tmp_path / "runs" / "a", whole)


@has_compiler
@pytest.mark.slow
def test_auto_goes_on_as_the_checkpoint_was_trained(start, tmp_path):
    ended(start("fit", *SMALL, *COMPILED, "--run", "a"))
    process = start("fit", *SMALL, "--loop.step", "auto", "--trainer.max_epochs", "4", *LAST, "--run", "a")
    ended(process)
    assert "being compiled" in process.text()
    assert "Steps are eager" not in process.text()


def test_auto_is_eager_where_compiling_takes_longer(fit):
    assert "Steps are eager: compiling would take longer than it saves" in fit(*SMALL, "--loop.step", "auto").out


def test_another_arithmetic_than_the_checkpoints_is_said(fit, monkeypatch):
    fit(*SMALL, "--run", "a")
    monkeypatch.setattr(compiled, "has_compiler", lambda: False)
    told = fit(*SMALL, *COMPILED, "--run", "a", "--ckpt_path", "last", "--trainer.max_epochs", "4").out
    assert "--loop.step was eager, is compiled: the same training but for rounding" in told
    assert "Steps are eager: there is no C++ compiler (install g++)" in told


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--model.dropout 0.5", "Dropout is not compiled"),
        ("--model.norm true", "BatchNorm1d is not compiled"),
        ("--model.activation RReLU", "RReLU is not compiled"),
        ("--model.optimizer Adadelta", "Adadelta as it is set is not compiled"),
        ("--model.optimizer_args {amsgrad:\\ true}", "Adam as it is set is not compiled"),
        ("--trainer.precision bf16-mixed", "precision bf16-mixed is not compiled"),
        ("--trainer.gradient_clip_val 1", "clipping is not compiled"),
        ("--model.scheduler OneCycleLR", "a schedule that goes by steps is not compiled"),
        ("--trainer.callbacks ModelCheckpoint", "ModelCheckpoint looks at each step"),
        ("--trainer.accumulate_grad_batches 2", "--trainer.accumulate_grad_batches 2 goes step by step"),
        ("--trainer.detect_anomaly true", "somebody looks into each step"),
        ("--data.batch_size 100", "an epoch has fewer than 5 whole batches"),
        (
            "--trainer.callbacks StochasticWeightAveraging --trainer.callbacks.swa_lrs 0.01",
            "StochasticWeightAveraging takes a step with the last gradients",
        ),
        (
            "--model.optimizer SGD --model.optimizer_args {momentum:\\ 0.9} --model.scheduler CyclicLR "
            "--model.scheduler_interval epoch --model.scheduler_args {base_lr:\\ 0.01,\\ max_lr:\\ 0.1,\\ "
            "max_momentum:\\ 0.95}",
            "SGD as it is set is not compiled",  # the schedule changes its momentum, too
        ),
        ("--trainer.log_every_n_steps 2", "--trainer.log_every_n_steps 2 looks at them one by one"),
        ("--trainer.profiler simple", "Lightning's own code takes them here"),
    ],
)
def test_what_is_not_compiled_is_trained_step_by_step_and_said(fit, words, reason):
    told = fit(*SMALL, *COMPILED, "--trainer.max_epochs", "2", *shlex.split(words))
    assert told.out.count("Steps are eager: ") == 1
    assert f"Steps are eager: {reason}" in told.out


def test_a_network_with_steps_of_its_own_is_not_compiled(tiny_mnist, capsys):
    class Own(MLP):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx)

    trainer = make_trainer({"max_epochs": 1, "enable_checkpointing": False}, [], fit=True, step="compiled")
    trainer.fit(Own(hidden=[4]), datamodule=MNISTDataModule(root=str(tiny_mnist), source="mnist"))
    assert "what is made of it without steps of its own" in capsys.readouterr().out


@has_compiler
@pytest.mark.slow
def test_validations_are_where_they_were(fit):
    often = ("--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", "7")
    steps = {}
    for way in ("eager", "compiled"):
        fit(*MOMENTUM, *often, "--loop.step", way, "--run", way)
        steps[way] = [row["step"] for row in table(RUNS / way) if row["val_loss"]]
    assert steps["compiled"] == steps["eager"]
    assert len(steps["eager"]) == 10


def test_a_compiler_that_fails_is_told_and_ctrl_c_ends_it_as_any_training(cli, tiny, monkeypatch):
    def fails(self, *args):
        raise RuntimeError("g++: fatal error: Killed")

    monkeypatch.setattr(CompiledSteps, "ready", True)
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: fails)
    failed = cli("fit", *tiny, *MOMENTUM, "--model.optimizer_args", "{}", *COMPILED)
    assert failed.status == 1
    assert "the steps cannot be compiled (g++: fatal error: Killed): give --loop.step eager" in failed.err

    def interrupted(self, *args):
        os.kill(os.getpid(), signal.SIGINT)
        fails(self)

    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: interrupted)
    stopped = cli("fit", *tiny, *MOMENTUM, "--model.optimizer_args", "{}", *COMPILED)
    assert stopped.status == 130
    assert "has everything: continue with" in stopped.err


def test_a_hook_on_a_weight_is_called(tiny_mnist, capsys):
    model = MLP(hidden=[4])
    model.net[1].weight.register_hook(torch.zeros_like)
    before = model.net[1].weight.detach().clone()
    trainer = make_trainer({"max_epochs": 1, "enable_checkpointing": False}, [], fit=True, step="compiled")
    trainer.fit(model, datamodule=MNISTDataModule(root=str(tiny_mnist), source="mnist", batch_size=10))
    assert "Steps are eager: a hook looks into each step" in capsys.readouterr().out
    assert torch.equal(model.net[1].weight, before)


@has_compiler
@pytest.mark.slow
def test_more_trainings_in_a_process_than_torch_compiles_a_code():
    for _ in range(10):
        model = MLP(hidden=[3], optimizer="SGD", lr=0.1)
        steps = CompiledSteps(model, torch.optim.SGD(model.parameters(), lr=0.1))
        batches = [(torch.rand(2, 1, 28, 28), torch.arange(2))] * AT_ONCE
        *_, losses, logits = steps(batches, [])
        assert (losses.shape, logits.shape) == ((AT_ONCE,), (2 * AT_ONCE, 10))


@has_compiler
@pytest.mark.slow
def test_anybodys_trainer_takes_compiled_steps(tiny_mnist, tmp_path):
    from lightning.pytorch import Trainer

    seen = []

    class Watcher(Callback):
        takes_several = True

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append((outputs["loss"].numel(), batch_idx))

    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        callbacks=[Watcher()],
    )  # fmt: skip
    data = MNISTDataModule(root=str(tiny_mnist), source="mnist", batch_size=10, val_size=60)
    quick(trainer, step="compiled").fit(MLP(hidden=[4], optimizer="SGD"), datamodule=data)
    first = [(10, 9), (10, 19)] + [(1, at) for at in range(20, 24)]
    # the 25th step ends a five: those of the second epoch begin after it
    assert seen == [*first, (1, 0), (10, 10), (10, 20), *((1, at) for at in (21, 22, 23))]
    assert trainer.global_step == 48


PLACES = [(0, 5, True), (5, 5, True), (5, 7, False), (5, 50, True), (45, 50, True), (0, 1, False), (3, 0, True)]


@pytest.mark.parametrize(("at", "every", "none"), PLACES)
def test_nothing_happens_between_steps_taken_together(at, every, none):
    assert _passes_none(at, AT_ONCE, every) is none


def test_a_way_that_there_is_not():
    from lightning.pytorch import Trainer

    with pytest.raises(UserError, match="step is 'fast'; it is eager, graph, compiled, auto"):
        quick(Trainer(accelerator="cpu", logger=False, enable_progress_bar=False), step="fast")
