"""A run that was killed at any moment and resumed leaves the same bytes as one that nobody disturbed."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import NET, same_run

from mnist_lightning.training.checkpoints import read_checkpoint

ROOT = Path(__file__).parents[2]
INSIDE = ("--trainer.val_check_interval", "0.3")  # validates within the epoch, too


def same_weights(run: Path, undisturbed: Path) -> None:
    """For blocks that were cut elsewhere: an epoch's metrics are summed up block by block, in another order."""
    runs = [read_checkpoint(folder / "last.ckpt") for folder in (run, undisturbed)]
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(runs[0][key], runs[1][key], rtol=0, atol=0)


def killed_and_resumed(start, root: Path, words: tuple, again: tuple = (), **cut) -> None:
    process = start("fit", *words, "--run", "a", **cut)
    assert process.wait() == -signal.SIGKILL, process.text()
    last = ("--ckpt_path", "last") if any((root / "runs" / "a").glob("*.ckpt")) else ()
    process = start("fit", *words, *again, *last, "--run", "a")
    assert process.wait() == 0, process.text()


# Blocks have 3 steps, epochs 8 blocks; a checkpoint is written at the start, every 6 steps and at each epoch's end.
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("set-up", 1),  # before there is anything
        ("block", 1),
        ("block", 13),  # in the middle of an epoch
        ("row", 1),
        ("validation", 2),  # at the end of the second epoch
        ("epoch end", 2),
        ("sync", 4),  # a checkpoint is half written
        ("name", 11),  # best.ckpt is the new one already, last.ckpt not yet
        ("name", 12),  # previous.ckpt, too
        ("fit end", 1),
        ("test", 1),
    ],
)
def test_a_kill_at_any_moment_changes_nothing(start, undisturbed, tmp_path, moment, number):
    whole = undisturbed(start, *NET)
    killed_and_resumed(start, tmp_path, (*NET,), moment=moment, number=number)
    same_run(tmp_path / "runs" / "a", whole)


@pytest.mark.parametrize(("moment", "number"), [("validation", 2), ("block", 3), ("block", 12), ("name", 5)])
def test_a_kill_with_validations_inside_the_epoch_changes_nothing(start, undisturbed, tmp_path, moment, number):
    whole = undisturbed(start, *NET, *INSIDE)
    killed_and_resumed(start, tmp_path, (*NET, *INSIDE), moment=moment, number=number)
    same_run(tmp_path / "runs" / "a", whole)


@pytest.mark.parametrize("steps", [1, 5, 24])
def test_the_size_of_a_block_may_change_on_resuming(start, undisturbed, tmp_path, steps):
    words = (*NET, "--checkpoint.every_n_seconds", "null")
    whole = undisturbed(start, *words)
    killed_and_resumed(start, tmp_path, words, ("--data.steps_per_block", steps), moment="block", number=14)
    same_weights(tmp_path / "runs" / "a", whole)


def test_without_validation_images_best_is_the_last_even_after_a_kill_at_the_very_end(start, undisturbed, tmp_path):
    words = (*NET, "--data.val_size", "0")
    whole = undisturbed(start, *words)
    killed_and_resumed(start, tmp_path, words, moment="fit end")
    same_run(tmp_path / "runs" / "a", whole)


def test_max_steps_inside_an_epoch_then_more(start, undisturbed, tmp_path):
    """Stopped by max_steps at 26 (in an epoch's first block) and at 31, then going on, it is the run of 72 steps."""
    whole = undisturbed(start, *NET)
    more = ("--ckpt_path", "last", "--trainer.max_steps", -1)
    for words in (("--trainer.max_steps", 26), ("--ckpt_path", "last", "--trainer.max_steps", 31), more):
        process = start("fit", *NET, "--run", "a", *words)
        assert process.wait() == 0, process.text()
    same_weights(tmp_path / "runs" / "a", whole)


def test_a_complete_run_resumed_is_tested_again_and_left_as_it_is(start, undisturbed, tmp_path):
    whole = undisturbed(start, *NET)
    folder = tmp_path / "runs" / "a"
    shutil.copytree(whole, folder)
    (folder / "test.json").unlink()
    process = start("fit", "--run", "a", "--ckpt_path", "last")
    assert process.wait() == 0, process.text()
    same_run(folder, whole)


def test_resumed_in_another_folder(start, undisturbed, tmp_path):
    """A checkpoint file may be continued as a run of its own; the first is left as it was."""
    whole = undisturbed(start, *NET)
    killed = start("fit", *NET, "--run", "a", moment="block", number=4)
    assert killed.wait() == -signal.SIGKILL
    before = (tmp_path / "runs" / "a" / "last.ckpt").read_bytes()
    process = start("fit", "--run", "b", "--ckpt_path", tmp_path / "runs" / "a" / "last.ckpt")
    assert process.wait() == 0, process.text()
    same_run(tmp_path / "runs" / "b", whole)
    assert (tmp_path / "runs" / "a" / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--model.lr", "0.02"), "--model.lr was 0.01, is 0.02"),
        (("--data.batch_size", "20"), "--data.batch_size"),
        (("--data.val_size", "50"), "--data.val_size was 60, is 50"),
        (("--trainer.limit_train_batches", "0.5"), "--trainer.limit_train_batches"),
        (("--trainer.precision", "bf16-mixed"), "--trainer.precision"),
        (("--seed", "1"), "seed"),
        (("--model", "MLP"), "holds a CNN, this is a MLP"),
    ],
)
def test_another_setting_is_refused_by_name(start, undisturbed, tmp_path, words, named):
    shutil.copytree(undisturbed(start, *NET), tmp_path / "runs" / "a")
    settings = ["--data.source", "mnist"] if words[0] == "--model" else NET
    process = start("fit", *settings, *words, "--run", "a", "--ckpt_path", "last", "--trainer.max_epochs", "4")
    assert process.wait() == 1
    assert named in process.text()
    assert "Traceback" not in process.text()


def test_another_length_of_a_schedule_is_refused(start, tmp_path):
    words = [word for word in NET if "scheduler" not in word] + ["--model.scheduler", "OneCycleLR"]
    assert start("fit", *words, "--run", "a", "--trainer.max_epochs", 1).wait() == 0
    process = start("fit", *words, "--run", "a", "--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert process.wait() == 1
    assert "the schedule was made for 24 steps" in process.text()


def test_two_processes_never_write_to_one_run(start, tmp_path):
    first = start("fit", *NET, "--run", "a", "--trainer.max_epochs", 10_000)
    first.wait_for("epoch 1/")
    second = start("fit", "--run", "a", "--ckpt_path", "last")
    assert second.wait() == 1
    assert "is being trained by another process" in second.text()
    assert first.process.is_alive()


def test_a_run_killed_before_its_first_checkpoint_gives_its_name_back(start, tmp_path):
    """Nothing was lost, so `--run a` may simply be said again; a folder of somebody else's is not taken."""
    assert start("fit", *NET, "--run", "a", moment="sync", number=1).wait() == -signal.SIGKILL
    assert start("fit", *NET, "--run", "a", "--trainer.max_epochs", 1).wait() == 0
    (tmp_path / "runs" / "mine").mkdir()
    (tmp_path / "runs" / "mine" / "notes.txt").write_text("")
    process = start("fit", *NET, "--run", "mine")
    assert process.wait() == 1
    assert "is there already" in process.text()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [file.stem for file in sorted((ROOT / "configs").glob("*.yaml"))])
def test_kills_in_every_recipe(start, undisturbed, tmp_path, recipe):
    """Three kills hit one run: in the middle of an epoch, where it is validated, and in the writing of a checkpoint."""
    words = [
        "--config",
        ROOT / "configs" / f"{recipe}.yaml",
        "--data.batch_size",
        "20",
        "--trainer.max_epochs",
        "3",
    ]
    words += ["--data.train_size", "200", "--data.val_size", "60", "--data.steps_per_block", "2"]
    words += ["--checkpoint.every_n_steps", "2", "--trainer.max_steps", "30"]
    whole = undisturbed(start, *words)
    killed = start("fit", *words, "--run", "a", moment="block", number=3)
    assert killed.wait() == -signal.SIGKILL, killed.text()
    for moment, number in (("validation", 2), ("name", 3), ("epoch end", 1)):
        killed = start("fit", *words, "--run", "a", "--ckpt_path", "last", moment=moment, number=number)
        assert killed.wait() == -signal.SIGKILL, killed.text()
    process = start("fit", *words, "--run", "a", "--ckpt_path", "last")
    assert process.wait() == 0, process.text()
    same_run(tmp_path / "runs" / "a", whole)


def test_a_kill_between_the_two_names_of_the_final_checkpoint(start, undisturbed, tmp_path):
    """best.ckpt is the final one already, last.ckpt not yet: there is no step left to write it."""
    run = tmp_path / "runs" / "a"
    shutil.copytree(undisturbed(start, *NET), run)
    final = (run / "last.ckpt").read_bytes()
    (run / "best.ckpt").unlink()
    (run / "last.ckpt").rename(run / "best.ckpt")
    os.link(run / "previous.ckpt", run / "last.ckpt")
    process = start("fit", "--run", "a", "--ckpt_path", "last")
    assert process.wait() == 0, process.text()
    assert "has all its steps" in process.text()
    assert (run / "last.ckpt").read_bytes() == final


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 40, 3))
@pytest.mark.parametrize("moment", ["block", "sync", "name", "row"])
def test_kills_all_along(start, undisturbed, tmp_path, moment, number):
    whole = undisturbed(start, *NET, *INSIDE)
    process = start("fit", *NET, *INSIDE, "--run", "a", moment=moment, number=number)
    if process.wait() == 0:
        pytest.skip("the run ends before")
    last = ("--ckpt_path", "last") if any((tmp_path / "runs" / "a").glob("*.ckpt")) else ()
    process = start("fit", *NET, *INSIDE, "--run", "a", *last)
    assert process.wait() == 0, process.text()
    same_run(tmp_path / "runs" / "a", whole)


@pytest.mark.slow
def test_kill_py_finds_no_difference(real_mnist):
    command = [
        sys.executable,
        ROOT / "benchmarks" / "kill.py",
        "--kills",
        "4",
        "--recipes",
        "nextjournal_cnn",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "4 kills in" in done.stdout
