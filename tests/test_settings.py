"""What can be set: files, names, words and dicts, merged in order; classes of anybody; one line for each mistake."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import LightningModule, callbacks, loggers

from mnist_lightning.config_yaml import as_yaml as yaml_and_lost
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.errors import BadSetting
from mnist_lightning.models import CNN, MLP
from mnist_lightning.settings import parsed
from mnist_lightning.words import file_pairs, merged, pairs_of, pairs_of_words, recipe, with_files

RECIPES = sorted(recipe("cnn").parent.glob("*.yaml"))


def as_yaml(config: Any) -> str:
    text, lost = yaml_and_lost(config)
    assert not lost
    return text


def read(*words: object) -> Any:
    """The settings of a `fit` with these words."""
    given = merged([("model", "MLP"), *with_files(pairs_of_words([str(word) for word in words]))])
    return parsed("fit", given)


def wrong(*words: object) -> str:
    with pytest.raises(BadSetting) as raised:
        read(*words)
    assert "\n" not in str(raised.value)
    return str(raised.value)


class Counts(MLP):
    """Its hints are what typing makes of `int | float` once somebody has written `float | int`."""

    def __init__(self, share: float | int | None = None, other: float | int = 2.0) -> None:
        super().__init__()


def test_a_whole_number_stays_one():
    config = read("--model", f"{__name__}.Counts", "--model.share", 1, "--model.other", "1.0")
    assert [type(config.model.arguments()[name]) for name in ("share", "other")] == [int, float]
    for flag in ("limit_train_batches", "limit_test_batches", "overfit_batches", "val_check_interval"):
        for value, kind in ((1, int), ("1", int), ("1.0", float), (1.0, float), (0.5, float)):
            made = read(f"--trainer.{flag}", value).trainer.arguments()[flag]
            assert (made, type(made)) == (float(value), kind)


# ---------------------------------------------------------------------- merged in order


def test_words_win_over_files_and_later_files_over_earlier(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("run: a\nseed: 1\nmodel: {class_path: MLP, init_args: {lr: 1e-2, hidden: [3]}}\n")
    (tmp_path / "b.yaml").write_text("run: b\nmodel: {init_args: {lr: 2e-2}}\ntrainer: {max_epochs: 2}\n")
    config = read("--trainer.max_epochs", 7, "--config", tmp_path / "a.yaml", f"--config={tmp_path}/b.yaml")
    assert (config.run, config.seed, config.trainer.settings["max_epochs"]) == ("b", 1, 7)
    assert (config.model.kind, config.model.settings["lr"], config.model.settings["hidden"]) == (MLP, 0.02, [3])
    config = read("--config", tmp_path / "b.yaml", "--config", tmp_path / "a.yaml", "--run=c", "--model.lr=3e-2")
    assert (config.run, config.trainer.settings["max_epochs"], config.model.settings["lr"]) == ("c", 2, 0.03)


@pytest.mark.slow
def test_a_recipe_is_found_by_its_name_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for file in RECIPES:
        assert as_yaml(read("--config", file.stem)) == as_yaml(read("--config", file)), file.stem
    (tmp_path / "cnn").write_text("model: MLP")  # a file of that name comes first
    assert read("--config", "cnn").model.kind is MLP


def test_another_class_keeps_what_it_takes(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("model: {class_path: CNN, init_args: {channels: [4], hidden: [9], lr: 0.5}}\n")
    config = read("--config", tmp_path / "a.yaml", "--model", "MLP")
    assert (config.model.settings["hidden"], config.model.settings["lr"]) == ([9], 0.5)
    assert "channels" not in config.model.settings
    words = ["--config", tmp_path / "a.yaml", "--model=MLP", "--model.channels=[1]"]
    assert "there is no flag --model.channels" in wrong(*words)


def test_the_order_of_class_and_settings_does_not_matter():
    assert read("--model.channels", "[3]", "--model", "CNN").model.settings["channels"] == [3]
    assert read("--model.init_args.hidden", "[3]", "--model.class_path", "MLP").model.settings["hidden"] == [3]


def test_a_dict_is_replaced_and_its_items_are_set(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("model: {optimizer_args: {momentum: 0.5, nesterov: true}}\n")
    words = ["--config", tmp_path / "a.yaml"]
    args = read(*words, "--model.optimizer_args.momentum", "9e-1").model.settings["optimizer_args"]
    assert (args["momentum"], args["nesterov"]) == (0.9, True)
    args = read(*words, "--model.optimizer_args", "{momentum: 0.1}").model.settings["optimizer_args"]
    assert args == {"momentum": 0.1}


def test_settings_of_python_are_those_of_yaml():
    given = {
        "config": ["simple_mlp"],
        "model": {"class_path": MLP, "init_args": {"hidden": [5]}},
        "trainer": {"max_epochs": 2, "callbacks": [{"class_path": "Timer"}, callbacks.LearningRateMonitor()]},
        "seed": 3,
    }
    config = parsed("fit", merged(with_files(pairs_of(given))))
    assert (config.model.settings["hidden"], config.trainer.settings["max_epochs"], config.seed) == ([5], 2, 3)
    assert config.data.settings["source"] == "mnist"
    assert [type(one).__name__ for one in config.trainer.arguments()["callbacks"]] == ["Timer", "LearningRateMonitor"]


# ---------------------------------------------------------------------- classes of anybody


MINE = """
from dataclasses import dataclass
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import nn

class Net(LightningModule):
    def __init__(self, width, *, depth: int = 3, head: nn.Module | None = None):
        super().__init__()
        self.width, self.depth, self.head = width, depth, head

class Bare(LightningModule):
    pass

@dataclass
class Sizes:
    first: int = 1
    second: int = 2

class Grouped(LightningModule):
    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes = sizes

class Data(LightningDataModule):
    def __init__(self, folder: str = "here"):
        super().__init__()
        self.folder = folder

class Breaks(LightningModule):
    def __init__(self, size: int = 1):
        super().__init__()
        raise ValueError(f"no size {size}")

class Note(Callback):
    def __init__(self, text: str, level: float = 0.5):
        self.text, self.level = text, level
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module `mine` of the user's."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine", None)


def test_own_classes_have_their_own_settings(mine):
    words = ["--model", "mine.Net", "--model.width", "7", "--data", "mine.Data", "--data.folder", "there"]
    words += ["--trainer.callbacks", "mine.Note", "--trainer.callbacks.text", "a"]
    config = read(*words, "--model.head", "torch.nn.Tanh")
    model = config.model.make()
    assert (model.width, model.depth, type(model.head).__name__) == (7, 3, "Tanh")
    assert config.data.make().folder == "there"
    assert config.trainer.arguments()["callbacks"][0].text == "a"
    text = as_yaml(config)
    assert yaml.safe_load(text)["model"]["class_path"] == "mine.Net"
    assert as_yaml(parsed("fit", merged(pairs_of(yaml.safe_load(text))))) == text
    assert isinstance(read("--model", "mine.Bare").model.make(), LightningModule)
    config = read("--model", "mine.Grouped", "--model.sizes.second", "7")
    assert config.model.make().sizes.second == 7
    assert yaml.safe_load(as_yaml(config))["model"]["init_args"] == {"sizes": {"first": 1, "second": 7}}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--model mine.Net", "--model.width is missing; see --help"),
        ("--model mine.Net --model.wdth 3", "there is no flag --model.wdth; did you mean --model.width?"),
        ("--model mine.Net --model.width 1 --model.depth x", "--model.depth: 'x' is not what it takes: int"),
        ("--model mine.Nit", "--model: there is no 'mine.Nit'; there are CNN, MLP"),
        ("--model mine.Data", "--model: 'mine.Data' is no LightningModule; there are CNN, MLP"),
        ("--data mine.Net", "--data: 'mine.Net' is no LightningDataModule; there are MNISTDataModule"),
        ("--model nowhere.Net", "--model: there is no 'nowhere.Net'; there are CNN, MLP"),
        ("--model broken.Net", "--model broken.Net: broken cannot be imported: No module named 'missing'"),
        ("--trainer.callbacks mine.Note", "--trainer.callbacks.text is missing; see --help"),
    ],
)
def test_mistakes_with_own_classes(mine, tmp_path: Path, words: str, told: str):
    (tmp_path / "broken.py").write_text("import missing")
    assert wrong(*words.split()) == told


def test_a_constructor_that_refuses_is_one_line(mine):
    with pytest.raises(BadSetting, match=r"^--model Breaks: no size 1$"):
        read("--model", "mine.Breaks").model.make()


# ---------------------------------------------------------------------- callbacks and loggers


def test_callbacks_in_words():
    words = "--trainer.callbacks EarlyStopping --trainer.callbacks.monitor val_loss --trainer.callbacks+ Timer"
    early, timer = read(*words.split(), "--trainer.callbacks.duration", "00:00:01:00").trainer.arguments()["callbacks"]
    assert (early.monitor, timer.time_remaining()) == ("val_loss", 60)
    several = "[{class_path: EarlyStopping, init_args: {monitor: val_acc}}, LearningRateMonitor]"
    early, monitor = read("--trainer.callbacks", several).trainer.arguments()["callbacks"]
    assert (early.monitor, type(monitor)) == ("val_acc", callbacks.LearningRateMonitor)


def test_other_classes_of_the_trainer():
    words = ["--trainer.profiler", "SimpleProfiler", "--trainer.profiler.filename", "times"]
    made = read(*words, "--trainer.strategy", "{class_path: DDPStrategy}").trainer.arguments()
    assert (type(made["strategy"]).__name__, made["profiler"].filename) == ("DDPStrategy", "times")


def test_loggers_in_words(tmp_path: Path):
    assert read().trainer.settings["logger"] == []
    assert read("--trainer.logger", "false").trainer.settings["logger"] is False
    words = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", tmp_path]
    words += ["--trainer.logger+", "TensorBoardLogger"]
    one, other = read(*words, f"--trainer.logger.save_dir={tmp_path}").trainer.arguments()["logger"]
    assert (type(one), type(other), str(one.save_dir)) == (loggers.CSVLogger, loggers.TensorBoardLogger, str(tmp_path))


NEEDED = {
    "EarlyStopping": {"monitor": "val_loss"},
    "GradientAccumulationScheduler": {"scheduling": {0: 2}},
    "ModelPruning": {"pruning_fn": "l1_unstructured"},
    "OnExceptionCheckpoint": {"dirpath": "."},
    "StochasticWeightAveraging": {"swa_lrs": 0.1},
    "ThroughputMonitor": {"batch_size_fn": "builtins.len"},
    "CSVLogger": {"save_dir": "."},
    "TensorBoardLogger": {"save_dir": "."},
}


@pytest.mark.parametrize("name", [*callbacks.__all__, *(n for n in loggers.__all__ if n != "Logger")])
def test_what_is_written_is_read_again(name: str):
    kind = "callbacks" if name in callbacks.__all__ else "logger"
    trainer = {kind: [{"class_path": name, "init_args": NEEDED.get(name, {})}], "max_time": {"hours": 1}}
    config = parsed("fit", merged(pairs_of({"model": "MLP", "data": {"normalize": (0.1, 0.3)}, "trainer": trainer})))
    text = as_yaml(config)
    again = parsed("fit", merged(pairs_of(yaml.safe_load(text))))
    assert as_yaml(again) == text
    assert again.trainer.settings[kind][0].settings.keys() == config.trainer.settings[kind][0].settings.keys()


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_is_read_and_written(file: Path):
    config = parsed("fit", merged(file_pairs(file)))
    assert as_yaml(parsed("fit", merged(pairs_of(yaml.safe_load(as_yaml(config)))))) == as_yaml(config)
    assert isinstance(config.model.make(), MLP | CNN)
    assert isinstance(config.data.make(), MNISTDataModule)


# ---------------------------------------------------------------------- mistakes


WORDS = [
    ("--modle MLP", "there is no flag --modle; did you mean --model?"),
    ("--data.batchsize 3", "there is no flag --data.batchsize; did you mean --data.batch_size?"),
    ("--data.steps_per_block 3", "there is no flag --data.steps_per_block; did you mean --data.test_each_epoch?"),
    ("--trainer.max_epoch 3", "there is no flag --trainer.max_epoch; did you mean --trainer.max_epochs?"),
    ("--dat.root x", "there is no group of flags --dat; did you mean --data?"),
    (
        "--trainer x",
        "there is no flag --trainer; there are --ckpt_path, --config, --data, --debug, --folds, --freeze, --init_from, "
        "--model, --run, --seed, --seeds",
    ),
    ("--model.hiden [3]", "there is no flag --model.hiden; did you mean --model.hidden?"),
    ("--model MPL", "--model: there is no 'MPL'; did you mean MLP?"),
    ("--model cnn", "--model: there is no 'cnn'; did you mean CNN?"),
    ("--model torch.nn.Linear", "--model: 'torch.nn.Linear' is no LightningModule; there are CNN, MLP"),
    ("stray", "there is a word too many: 'stray'; a setting is written --name value"),
    ("--seed", "--seed takes a value; see --help"),
    ("--run --seed 3", "--run takes a value; see --help"),
    ("--seed -1", "--seed is -1; it must be from 0 to 4294967295"),
    ("--data.batch_size x", "--data.batch_size: 'x' is not what it takes: int"),
    (
        "--data.source emnist",
        "--data.source: 'emnist' is not what it takes: one of 'auto', 'mnist', 'text', 'synthetic'",
    ),
    (
        "--data.normalize [1]",
        "--data.normalize: '[1]' is not what it takes: one of 'auto', 'none' or tuple[float, float]",
    ),
    ("--model.lr fast", "--model.lr: 'fast' is not what it takes: float"),
    ("--model.loss nll", "--model.loss: 'nll' is not what it takes: one of 'cross_entropy', 'mse'"),
    ("--trainer.max_epochs 1.5", "--trainer.max_epochs: '1.5' is not what it takes: int"),
    ("--trainer.val_check_interval 0", "--trainer.val_check_interval is 0; it must be above 0"),
    ("--trainer.check_val_every_n_epoch 0", "--trainer.check_val_every_n_epoch is 0; it must be at least 1"),
    ("--trainer.gradient_clip_val -1", "--trainer.gradient_clip_val is -1; it must be at least 0"),
    ("--checkpoint.every_n_steps 0", "--checkpoint.every_n_steps is 0; it must be at least 1"),
    (
        "--trainer.callbacks EarlyStoping",
        "--trainer.callbacks: there is no 'EarlyStoping'; did you mean EarlyStopping?",
    ),
    ("--trainer.callbacks EarlyStopping", "--trainer.callbacks.monitor is missing; see --help"),
    ("--trainer.logger CSVLoger", "--trainer.logger: there is no 'CSVLoger'; did you mean CSVLogger?"),
    (
        "--config nowhere/x.yaml",
        f"--config: there is no file 'nowhere/x.yaml'; there are {', '.join(file.stem for file in RECIPES)}",
    ),
    ("--config simple_mpl", "--config: there is no file 'simple_mpl'; did you mean simple_mlp?"),
]


@pytest.mark.parametrize(("words", "told"), WORDS, ids=[words for words, _ in WORDS])
def test_wrong_words(words: str, told: str):
    assert wrong(*words.split()) == told


FILES = [
    ("model: {class_path: MPL}", "--model: there is no 'MPL'; did you mean MLP?"),
    ("model: {init_args: {hiden: [3]}}", "there is no flag --model.hiden; did you mean --model.hidden?"),
    ("model: {lr: x}", "--model.lr: 'x' is not what it takes: float"),
    ("modle: {class_path: MLP}", "there is no flag --modle; did you mean --model?"),
    ("data: {sorce: mnist}", "there is no flag --data.sorce; did you mean --data.source?"),
    ("data: {batch_size: many}", "--data.batch_size: 'many' is not what it takes: int"),
    ("run: 3", "--run: 3 is not what it takes: str"),
    ("trainer: 3", "trainer holds no settings: indent them below it, or leave it out"),
    ("model:\n", "model holds no settings"),
    ("3", "holds no settings"),
    ("", "holds no settings"),
    ("model: [\n", "line 2 is not YAML"),
    ("\xff", "is not YAML"),
    ("config: other.yaml", "config is for the command line"),
    ("trainer: {callbacks: [{class_path: EarlyStopping}]}", "--trainer.callbacks.monitor is missing"),
    ("trainer: {callbacks: [{monitor: val_loss}]}", "--trainer.callbacks takes a class's name, or class_path"),
    ("model: {init_args: [1]}", "model holds no settings"),
    ("trainer: {callbacks: [{class_path: Timer, init_args: [1]}]}", "--trainer.callbacks takes a class's name"),
    ("trainer: {callbacks: 3}", "--trainer.callbacks: <class 'int'> is no Callback"),
]


@pytest.mark.parametrize(("content", "told"), FILES, ids=[repr(content) for content, _ in FILES])
def test_wrong_files(tmp_path: Path, content: str, told: str):
    (tmp_path / "wrong.yaml").write_bytes(content.encode("latin1"))
    assert told in wrong("--config", tmp_path / "wrong.yaml")


def test_a_class_that_changes_in_place():
    """As IPython's autoreload does."""

    class Net(MLP):
        def __init__(self, first: int = 1) -> None:
            super().__init__(hidden=[first])

    assert parsed("fit", merged([("model", Net), ("model.first", 2)])).model.settings == {"first": 2}

    def changed(self: Net, second: int = 1) -> None:
        MLP.__init__(self, hidden=[second])

    Net.__init__ = changed  # type: ignore[assignment, method-assign]
    assert parsed("fit", merged([("model", Net), ("model.second", 3)])).model.settings == {"second": 3}
    with pytest.raises(BadSetting, match="first"):
        parsed("fit", merged([("model", Net), ("model.first", 3)]))
