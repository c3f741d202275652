"""A run that was killed at any moment and resumed leaves the same bytes as one that nobody disturbed."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import LAST, NET, ended, same_run, told

ROOT = Path(__file__).parents[2]
INSIDE = ("--trainer.val_check_interval", "0.3")  # validates within the epoch, too


def go_on(start, root: Path, *words: object) -> None:
    """To the end, from wherever the run `a` is."""
    last = LAST if any((root / "runs" / "a").glob("*.ckpt")) else ()
    ended(start("fit", *words, *last, "--run", "a"))


def killed_and_resumed(start, root: Path, *words: object, **cut) -> None:
    ended(start("fit", *words, "--run", "a", **cut), status=-signal.SIGKILL)
    go_on(start, root, *words)


# Epochs have 24 steps; a checkpoint is written at the start, every 5 steps and at each epoch's end.
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("set-up", 1),  # before there is anything
        ("step", 1),
        ("step", 37),  # in the middle of an epoch
        ("batch end", 24),  # an epoch's last batch is done, not yet validated
        ("row", 1),
        ("validation", 2),  # at the end of the second epoch
        ("epoch end", 2),
        ("sync", 7),  # a checkpoint is half written
        ("name", 10),  # best.ckpt is the one before, last.ckpt of this moment not yet
        ("name", 11),
        ("name", 12),  # previous.ckpt, too
        ("fit end", 1),
        ("test", 1),
    ],
)
def test_a_kill_at_any_moment_changes_nothing(start, undisturbed, tmp_path, moment, number):
    whole = undisturbed(start, *NET)
    killed_and_resumed(start, tmp_path, *NET, moment=moment, number=number)
    same_run(tmp_path / "runs" / "a", whole)


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "number"), [("validation", 2), ("step", 8), ("step", 30), ("name", 5)])
def test_a_kill_with_validations_inside_the_epoch_changes_nothing(start, undisturbed, tmp_path, moment, number):
    whole = undisturbed(start, *NET, *INSIDE)
    killed_and_resumed(start, tmp_path, *NET, *INSIDE, moment=moment, number=number)
    same_run(tmp_path / "runs" / "a", whole)


@pytest.mark.slow
def test_without_validation_images_best_is_the_last_even_after_a_kill_at_the_very_end(start, undisturbed, tmp_path):
    words = (*NET, "--data.val_size", "0")
    whole = undisturbed(start, *words)
    killed_and_resumed(start, tmp_path, *words, moment="fit end")
    same_run(tmp_path / "runs" / "a", whole)


@pytest.mark.slow
def test_max_steps_inside_an_epoch_then_more(start, undisturbed, tmp_path):
    """Stopped by max_steps at 26 and at 31, then going on, it is the run of 72 steps."""
    whole = undisturbed(start, *NET)
    for words in (("--trainer.max_steps", 26), (*LAST, "--trainer.max_steps", 31), (*LAST, "--trainer.max_steps", -1)):
        ended(start("fit", *NET, "--run", "a", *words))
    same_run(tmp_path / "runs" / "a", whole)


def test_a_complete_run_resumed_is_tested_again_and_left_as_it_is(start, undisturbed, tmp_path):
    whole = undisturbed(start, *NET)
    folder = tmp_path / "runs" / "a"
    shutil.copytree(whole, folder)
    (folder / "test.json").unlink()
    ended(start("fit", "--run", "a", *LAST))
    same_run(folder, whole)


def test_resumed_in_another_folder(start, undisturbed, tmp_path):
    """A checkpoint file may be continued as a run of its own; the first is left as it was."""
    whole = undisturbed(start, *NET)
    ended(start("fit", *NET, "--run", "a", moment="step", number=10), status=-signal.SIGKILL)
    before = (tmp_path / "runs" / "a" / "last.ckpt").read_bytes()
    ended(start("fit", "--run", "b", "--ckpt_path", tmp_path / "runs" / "a" / "last.ckpt"))
    same_run(tmp_path / "runs" / "b", whole)
    assert (tmp_path / "runs" / "a" / "last.ckpt").read_bytes() == before


@pytest.mark.slow
def test_two_processes_never_write_to_one_run(start, tmp_path):
    first = start("fit", *NET, "--run", "a", "--trainer.max_epochs", 10_000)
    first.wait_for("epoch 1/")
    second = start("fit", "--run", "a", *LAST)
    ended(second, status=1)
    assert "is being trained by another process" in told(second)
    assert first.process.is_alive()


def test_a_run_killed_before_its_first_checkpoint_gives_its_name_back(start, tmp_path):
    """Nothing was lost, so `--run a` may simply be said again."""
    ended(start("fit", *NET, "--run", "a", moment="sync", number=1), status=-signal.SIGKILL)
    ended(start("fit", *NET, "--run", "a", "--trainer.max_epochs", 1))


def test_a_kill_between_the_two_names_of_the_final_checkpoint(start, undisturbed, tmp_path):
    """best.ckpt is the final one already, last.ckpt not yet: there is no step left to write it."""
    run = tmp_path / "runs" / "a"
    shutil.copytree(undisturbed(start, *NET), run)
    final = (run / "last.ckpt").read_bytes()
    (run / "best.ckpt").unlink()
    (run / "last.ckpt").rename(run / "best.ckpt")
    os.link(run / "previous.ckpt", run / "last.ckpt")
    process = start("fit", "--run", "a", *LAST)
    ended(process)
    assert "has all its steps" in process.text()
    assert (run / "last.ckpt").read_bytes() == final


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [file.stem for file in sorted((ROOT / "configs").glob("*.yaml"))])
def test_kills_in_every_recipe(start, undisturbed, tmp_path, recipe):
    """Four kills hit one run: inside an epoch, when it is validated, in writing a checkpoint, at an epoch's end."""
    words = ["--config", recipe, "--data.batch_size", 20, "--trainer.max_epochs", 3]
    words += ["--data.train_size", 200, "--data.val_size", 60, "--data.drawn", 0, "--checkpoint.every_n_steps", 2]
    words += ["--trainer.max_steps", 30]
    whole = undisturbed(start, *words)
    for moment, number in (("step", 6), ("validation", 2), ("name", 3), ("epoch end", 1)):
        last = () if moment == "step" else LAST
        killed = start("fit", *words, "--run", "a", *last, moment=moment, number=number)
        ended(killed, status=-signal.SIGKILL)
    go_on(start, tmp_path, *words)
    same_run(tmp_path / "runs" / "a", whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 40, 3))
@pytest.mark.parametrize("moment", ["step", "sync", "name", "row"])
def test_kills_all_along(start, undisturbed, tmp_path, moment, number):
    number *= 2 if moment == "step" else 1
    whole = undisturbed(start, *NET, *INSIDE)
    process = start("fit", *NET, *INSIDE, "--run", "a", moment=moment, number=number)
    if process.wait() == 0:
        pytest.skip("the run ends before")
    go_on(start, tmp_path, *NET, *INSIDE)
    same_run(tmp_path / "runs" / "a", whole)


@pytest.mark.slow
def test_kill_py_finds_no_difference(real_mnist):
    command = [sys.executable, ROOT / "benchmarks" / "kill.py", "--kills", "4", "--cases", "nextjournal_cnn"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "4 kills in" in done.stdout
