"""The end of a search: who is trained anew, what is compared with what, and the recipe that comes of it."""

from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState, create_trial

from mnist_lightning.searching import end
from mnist_lightning.searching.end import START, Finalist
from mnist_lightning.searching.space import Dimension
from mnist_lightning.settings import parsed
from mnist_lightning.words import file_pairs, merged

RANGE = optuna.distributions.FloatDistribution(0, 1)


class Search:
    """A study of the trials (value, loss, learning rate)."""

    def __init__(self, *rows: tuple[float | None, float, float]) -> None:
        self._study = optuna.create_study(direction="maximize")
        for value, loss, rate in rows:
            state = TrialState.FAIL if value is None else TrialState.COMPLETE
            self._study.add_trial(create_trial(
                state=state, value=value, params={"model.lr": rate}, distributions={"model.lr": RANGE},
                user_attrs={"loss": loss},
            ))  # fmt: skip

    def trials(self):
        return self._study.trials


def test_the_best_are_trained_anew_each_once():
    search = Search((0.9, 0.3, 0.1), (0.95, 0.2, 0.2), (0.95, 0.1, 0.3), (None, 0, 0.4), (0.95, 0.1, 0.3))
    assert end.best_numbers(search, True, 2, None) == [START, 2, 1]
    assert end.best_numbers(search, True, 9, None) == [START, 2, 1, 0]
    assert end.best_numbers(search, True, 2, {"model.lr": 0.3}) == [START, 1, 0]  # the start's own again
    assert end.best_numbers(search, False, 1, None) == [START, 0]


def test_settings_are_compared_at_the_same_seeds():
    start = Finalist(START, {}, {1: 0.90, 2: 0.92, 3: 0.91}, {1: 0.3, 2: 0.3, 3: 0.3})
    better = Finalist(4, {"model.lr": 0.1}, {1: 0.93, 2: 0.94, 3: 0.95, 9: 0.5}, {1: 0.2, 2: 0.2, 3: 0.2, 9: 0.9})
    mean, std, p = better.beside(start)
    assert mean == pytest.approx(0.03)
    assert std == pytest.approx(0.01)
    assert p == pytest.approx(0.0351, abs=1e-3)
    assert start.beside(start) is None
    assert better.beside(Finalist(5, {}, {7: 0.9}, {7: 0})) is None
    one = Finalist(6, {}, {1: 0.95}, {1: 0.1})
    assert (one.std, one.beside(start)) == (None, (pytest.approx(0.05), None, None))


def test_of_equals_the_start_is_kept():
    start, same = (Finalist(number, {}, {1: 0.9, 2: 0.8}, {1: 0.3, 2: 0.3}) for number in (START, 2))
    surer = Finalist(7, {}, {1: 0.9, 2: 0.8}, {1: 0.2, 2: 0.2})
    assert end.winner_of([same, start], True) is start
    assert end.winner_of([same, start, surer], True) is surer
    assert end.winner_of([Finalist(1, {}, {1: 0.1}, {1: 0.1}), start], False).number == 1


def test_the_recipe_is_read_by_fit(tmp_path: Path):
    start = [*file_pairs(Path("cnn")), ("trainer.max_epochs", "3"), ("model.lr", "1e-2")]
    space = [
        Dimension("model.hidden", ([64], [128])),
        Dimension("model.optimizer_args.weight_decay", (), 0.0, 1.0),
        Dimension("data.batch_size", (64, 128)),
    ]
    params = {"model.hidden": "[64]", "model.optimizer_args.weight_decay": 0.25, "data.batch_size": 64}
    file = tmp_path / "best.yaml"
    file.write_text(end.recipe(start, space, params, ["Found by search", "trial 3: 99 %"]))
    assert file.read_text().startswith("# Found by search\n# trial 3: 99 %\nmodel:\n  class_path: CNN\n")
    config = parsed("fit", merged(file_pairs(file)))
    assert config.model.settings["hidden"] == [64]
    assert config.model.settings["lr"] == 0.01
    assert config.model.settings["optimizer_args"] == {"betas": [0.7, 0.9], "weight_decay": 0.25}
    assert config.model.settings["channels"] == [32, 64, 64]
    assert (config.data.settings["batch_size"], config.trainer.settings["max_epochs"]) == (64, 3)


def test_the_recipe_of_a_model_of_the_users(tmp_path: Path):
    text = end.recipe([("model", "mine.Net"), ("model.width", 8)][1:], [], {}, [])
    assert yaml.safe_load(text) == {"model": {"width": 8}}
