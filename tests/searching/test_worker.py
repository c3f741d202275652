"""What a worker makes of a task, in this process: values, pruning, going on, failing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from outcome import rows, same

from mnist_lightning.data import lent
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.run import Run
from mnist_lightning.searching.worker import outcome, work

PROJECT = Path(__file__).parents[2]
TRIALS = Path("checkpoints") / "trials"


class Line:
    """Answers to what a worker says: so many epochs go on."""

    def __init__(self, epochs: int = 100) -> None:
        self.epochs, self.said = epochs, []

    def say(self, **message) -> None:
        self.said.append(message)

    def hear(self) -> dict:
        return {"goes_on": len(self.said) < self.epochs}


@pytest.fixture
def task(cli, tiny_mnist: Path):
    """`task("trial0", model__lr=0.1)`: that of a small MLP, three epochs."""

    def make(name: str = "trial0", **settings):
        pairs = {
            "model": "MLP", "model.hidden": [8], "data.source": "mnist", "data.val_size": 50, "data.batch_size": 32,
            "data.root": str(tiny_mnist), "trainer.max_epochs": 3, "trainer.logger": False,
        }  # fmt: skip
        pairs |= {setting.replace("__", "."): value for setting, value in settings.items()}
        return {"train": name, "root": str(TRIALS), "settings": list(pairs.items())}

    return make


def test_a_trial_comes_to_its_best_epoch_and_sees_no_test(task):
    line = Line()
    answer = work(task(), line)
    assert [message["epoch"] for message in line.said] == [1, 2, 3]
    best = max(line.said, key=lambda message: (message["acc"], -message["loss"]))
    assert answer == {"done": pytest.approx(best)}
    assert (TRIALS / "trial0" / "best.ckpt").exists()
    assert not (TRIALS / "trial0" / "test.json").exists()
    assert not any("test" in column for column in rows("trials/trial0")[-1])


def test_a_pruned_trial_ends_at_its_epoch(task):
    line = Line(epochs=2)
    assert work(task(), line) == {"pruned": True}
    assert [message["epoch"] for message in line.said] == [1, 2]


def test_a_trial_that_was_cut_off_goes_on_to_the_same_end(task):
    whole = work(task("whole"), Line())
    work(task("cut"), Line(epochs=1))
    line = Line()
    assert work(task("cut"), line) == whole
    assert [message["epoch"] for message in line.said] == [2, 3]
    assert same(Path(TRIALS / "cut" / "last.ckpt"), Path(TRIALS / "whole" / "last.ckpt"))
    assert work(task("cut"), Line()) == whole  # killed after its end, before anybody knew


def test_a_damaged_checkpoint_is_begun_anew(task):
    whole = work(task("whole"), Line())
    work(task("cut"), Line(epochs=1))
    for file in (TRIALS / "cut").glob("*.ckpt"):
        file.write_bytes(b"damaged")
    assert work(task("cut"), Line()) == whole


@pytest.mark.parametrize(("settings", "told"), [
    ({"model__dropout": 2}, "--model MLP: dropout probability has to be between 0 and 1"),
    ({"model__optimizer_args": {"speed": 1}}, "speed"),
    ({"model__lr": 1e30}, "is not finite"),
])  # fmt: skip
def test_a_value_that_the_model_refuses_fails_the_trial(task, settings: dict, told: str):
    answer = work(task(**settings), Line())
    assert told in answer["failed"]
    assert "\n" not in answer["failed"]


def test_a_training_limited_to_steps_is_validated_in_the_end(task):
    line = Line()
    answer = work(task(trainer__max_epochs=-1, trainer__max_steps=5), line)["done"]
    assert line.said == []
    assert 0 <= answer["acc"] <= 1


def test_the_end_of_a_run_without_a_table(tmp_path: Path):
    assert outcome(Run(tmp_path)) is None


def test_lent_digits_are_those_of_the_files(tiny_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lent, "_lent", {})
    data = MNISTDataModule(root=str(tiny_mnist), source="mnist")
    lent.write(tmp_path, data, "train")
    lent.take(tmp_path)
    other = MNISTDataModule(root=str(tiny_mnist), source="mnist")
    monkeypatch.setattr(MNISTDataModule, "_read_files", lambda *_: pytest.fail("read again"))
    assert other.read("train").images.equal(data.read("train").images)
    assert other.read("train").labels.equal(data.read("train").labels)
    monkeypatch.undo()
    elsewhere = MNISTDataModule(root=str(tiny_mnist), source="mnist", subset="digits")
    assert lent.lent(elsewhere, "train") is None


@pytest.mark.slow
def test_a_worker_ends_when_its_starter_does(tmp_path: Path):
    words = [sys.executable, "-m", "mnist_lightning.searching.worker"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as worker:
        assert json.loads(worker.stdout.readline()) == {"ready": True}
        (tmp_path / "lent").mkdir()
        print(json.dumps({"take": str(tmp_path / "lent")}), file=worker.stdin, flush=True)
        print(json.dumps({"test": "no", "root": str(tmp_path), "settings": []}), file=worker.stdin, flush=True)
        assert "there is no run 'no'" in json.loads(worker.stdout.readline())["failed"]
        worker.stdin.close()
        assert worker.wait(30) == 0
    assert not (tmp_path / "lent").exists()
