"""What is written of a run's settings means the same when it is read, whatever classes it names."""

import sys
from pathlib import Path

import pytest
import yaml

from mnist_lightning.config_yaml import as_yaml, resumable
from mnist_lightning.settings import parsed
from mnist_lightning.words import merged, pairs_of, pairs_of_words

MINE = """
import enum, torch
from lightning.pytorch import Callback

class Colour(enum.Enum):
    RED = 1

class Mesh:
    def __init__(self, size: int = 3):
        self.size = size

class Any(Callback):
    def __init__(self, device: torch.device = torch.device("cpu"), dtype: torch.dtype = torch.float32, thing=Mesh(),
                 hook=print, colour: Colour = Colour.RED, mesh: Mesh = Mesh(4), **more):
        self.device, self.dtype, self.mesh = device, dtype, mesh

class Grows(Callback):
    def __init__(self, value: list[str] | int = 1):  # what is written is another kind of value
        self.value = value
"""


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "any_of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("any_of_mine", None)


def read(*words: str):
    return parsed("fit", merged(pairs_of_words(["--model", "MLP", *words])))


def read_again(text: str):
    return parsed("fit", merged(pairs_of(yaml.safe_load(text))))


def test_defaults_that_no_file_holds_come_again():
    text, lost = resumable(read("--trainer.callbacks", "any_of_mine.Any"))
    assert lost == []
    callback = read_again(text).trainer.arguments()["callbacks"][0]
    assert (str(callback.device), str(callback.dtype), callback.mesh.size) == ("cpu", "torch.float32", 4)


def test_what_was_said_in_words_is_read_again():
    words = ["device=cuda:1", "dtype=bfloat16", "mesh={class_path: any_of_mine.Mesh, init_args: {size: 9}}"]
    flags = [f"--trainer.callbacks.{word}" for word in words]
    text, lost = resumable(read("--trainer.callbacks", "any_of_mine.Any", *flags))
    assert lost == []
    callback = read_again(text).trainer.arguments()["callbacks"][0]
    assert (str(callback.device), str(callback.dtype), callback.mesh.size) == ("cuda:1", "torch.bfloat16", 9)


def test_an_object_given_in_python_is_told_and_the_rest_reads_back():
    from lightning.pytorch.callbacks import EarlyStopping, Timer

    callbacks = [EarlyStopping("val_loss"), {"class_path": "LearningRateMonitor"}, Timer("00:00:01:00")]
    config = parsed("fit", merged(pairs_of({"model": "MLP", "trainer": {"callbacks": callbacks}})))
    text, lost = resumable(config)
    assert lost == ["EarlyStopping", "Timer"]
    (kept,) = read_again(text).trainer.settings["callbacks"]
    assert kept.kind.__name__ == "LearningRateMonitor"


def test_a_class_whose_settings_do_not_read_back_is_left_out_and_told(monkeypatch: pytest.MonkeyPatch):
    config = read("--trainer.callbacks", "any_of_mine.Grows", "--trainer.callbacks+", "LearningRateMonitor")
    sys.modules["any_of_mine"].Grows.__init__.__annotations__["value"] = float  # another version of the file
    config.trainer.settings["callbacks"][0].settings["value"] = "many"
    config.trainer.settings["callbacks"][0].given["value"] = "many"
    text, lost = resumable(config)
    assert lost == ["Grows"]
    assert [part.kind.__name__ for part in read_again(text).trainer.settings["callbacks"]] == ["LearningRateMonitor"]


def test_what_reads_back_is_written_in_full():
    config = read("--freeze", "net.1", "net.3", "--trainer.max_time", "00:00:01:00")
    text, lost = resumable(config)
    assert (text, lost) == as_yaml(config)
    assert yaml.safe_load(text)["freeze"] == ["net.1", "net.3"]
    assert "hidden" in text
