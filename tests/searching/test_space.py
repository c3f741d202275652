"""The space of a search: from YAML and by rule; what cannot be set is said at once."""

from pathlib import Path

import pytest

from mnist_lightning.errors import BadSetting
from mnist_lightning.searching.space import Dimension, checked, default_space, read_space, start_values
from mnist_lightning.words import file_pairs, recipe

MLP = [("model", "MLP"), ("model.lr", 0.01)]
CONFIGS = sorted(recipe("*").parent.glob("*.yaml"))


def space_of(tmp_path: Path, text: str) -> list[Dimension]:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    return read_space(file)


def test_all_forms(tmp_path: Path):
    space = space_of(tmp_path, """
model.lr: {log: [1e-4, 1e-2]}
model:
  hidden: [[64], [128, 64]]
  optimizer: [Adam, SGD]
  optimizer_args: {weight_decay: {uniform: [0.0, 1e-3]}}
  init_args: {dropout: {uniform: [0.0, 0.5], step: 0.1}}
data.batch_size: {int: [32, 256], step: 32}
""")  # fmt: skip
    assert space == [
        Dimension("model.lr", (), 1e-4, 1e-2, log=True),
        Dimension("model.hidden", ([64], [128, 64])),
        Dimension("model.optimizer", ("Adam", "SGD")),
        Dimension("model.optimizer_args.weight_decay", (), 0.0, 1e-3),
        Dimension("model.dropout", (), 0.0, 0.5, step=0.1),
        Dimension("data.batch_size", (), 32, 256, whole=True, step=32),
    ]


WRONG = [
    ("model.lr: 0.1", "model.lr takes a list of values, {log: [low, high]}"),
    ("model.lr: {log: [0.1]}", "model.lr takes a list of values"),
    ("model.lr: {log: [0.1, 0.2], base: 10}", "model.lr takes a list of values"),
    ("model.lr: {log: [0, 0.1]}", "model.lr goes from 0 to 0.1: the first must be above 0"),
    ("model.lr: {uniform: [0.2, 0.1]}", "model.lr goes from 0.2 to 0.1: the first must be the lower one"),
    ("model.lr: {uniform: [0.1, 0.2], step: 1}", "step is 1"),
    ("data.batch_size: {int: [1.5, 8]}", "data.batch_size is of whole numbers"),
    ("model.lr: []", "model.lr is an empty list"),
    ("model.lr: [1]\nmodel: {lr: [2]}", "model.lr is there twice"),
    ("data.val_size: [1000, 2000]", "trials are compared on the same validation images"),
    ("data: {root: [a, b]}", "trials are compared on the same validation images"),
    ("seed: [0, 1]", "seed is no setting to search for"),
    ("trainer.devices: [1, 2]", "a trial is one process"),
    ("checkpoint.every_n_steps: [5, 6]", "it changes no network"),
    ("- model.lr", "holds no settings"),
    ("", "holds no settings"),
    ("model.lr: {log: [1", "line 1 is not YAML"),
]


@pytest.mark.parametrize(("text", "told"), WRONG, ids=[text for text, _ in WRONG])
def test_what_is_no_space(tmp_path: Path, text: str, told: str):
    with pytest.raises(BadSetting) as error:
        space_of(tmp_path, text)
    assert told in str(error.value)
    assert str(error.value).startswith(f"--space {tmp_path / 'space.yaml'}")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(BadSetting, match="cannot be read: No such file"):
        read_space(tmp_path / "space.yaml")


UNSETTABLE = [
    (Dimension("model.lrr", (0.1,)), "there is no flag --model.lrr; did you mean --model.lr?"),
    (Dimension("modle.lr", (0.1,)), "there is no group of flags --modle; did you mean --model?"),
    (Dimension("model.channels", ([8],)), "there is no flag --model.channels"),  # an MLP has none
    (Dimension("model.lr", (0.1, "fast")), "--model.lr: 'fast' is not what it takes"),
    (Dimension("data.batch_size", (), 8.5, 16.5), "--data.batch_size: 8.5 is not what it takes"),
]


@pytest.mark.parametrize(("dimension", "told"), UNSETTABLE, ids=[told for _, told in UNSETTABLE])
def test_what_cannot_be_set_is_said_at_once(dimension: Dimension, told: str):
    with pytest.raises(BadSetting) as error:
        checked([Dimension("model.dropout", (), 0.0, 0.5), dimension], MLP, "--space x.yaml")
    assert str(error.value).startswith("--space x.yaml: ")
    assert told in str(error.value)


def test_whole_numbers_where_a_setting_takes_no_others():
    space = [Dimension("data.batch_size", (), 16, 64, log=True), Dimension("model.lr", (), 1, 10, log=True)]
    assert [one.whole for one in checked(space, MLP, "the space")] == [True, False]


@pytest.mark.parametrize("config", CONFIGS, ids=[file.stem for file in CONFIGS])
def test_every_recipe_has_a_space_that_holds_its_own_settings(config: Path):
    from mnist_lightning.settings import parsed
    from mnist_lightning.words import merged

    pairs = file_pairs(config)
    settings = parsed("fit", merged(pairs))
    groups = {group: settings[group].settings for group in ("model", "data")}
    space = checked(default_space(groups["model"], groups["data"], "accuracy"), pairs, "the space")
    assert {"model.lr", "data.batch_size", "data.augment"} <= {one.name for one in space}
    first = start_values([one for one in space if "momentum" not in one.name], groups)
    assert first is not None
    assert (first["model.lr"], first["data.batch_size"]) == (groups["model"]["lr"], groups["data"]["batch_size"])


def test_label_smoothing_is_not_searched_where_the_loss_counts():
    settings = {"loss": "cross_entropy", "label_smoothing": 0.0, "lr": 0.1}
    names = [[one.name for one in default_space(settings, {}, what)] for what in ("accuracy", "loss")]
    assert names == [["model.lr", "model.label_smoothing"], ["model.lr"]]


def test_a_start_outside_the_space_is_no_first_trial():
    groups = {"model": {"lr": 1.0, "hidden": [64], "scheduler": None, "dropout": True}}
    assert start_values([Dimension("model.lr", (), 1e-3, 1e-1)], groups) is None
    assert start_values([Dimension("model.dropout", (), 0.0, 2.0)], groups) is None
    assert start_values([Dimension("model.optimizer_args.momentum", (), 0.0, 0.9)], groups) is None
    inside = [Dimension("model.hidden", ([32], [64])), Dimension("model.scheduler", (None, "OneCycleLR"))]
    assert start_values(inside, groups) == {"model.hidden": "[64]", "model.scheduler": None}


def test_lists_are_words_to_optuna_and_lists_to_a_model():
    hidden = Dimension("model.hidden", ([32], [64, 32]))
    assert hidden.drawn([64, 32]) == "[64, 32]"
    assert hidden.setting("[64, 32]") == [64, 32]
