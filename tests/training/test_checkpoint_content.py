"""A checkpoint holds tensors and plain values, whatever the states of others are made of."""

import io
from collections import Counter, OrderedDict, namedtuple
from enum import Enum, IntEnum
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import content, content_of_3207afc, trained
from torch import Tensor

from mnist_lightning.training.checkpoint_content import FOUND, STATE, check_entries, check_values, load_plain, plain

Pair = namedtuple("Pair", "a b")
Colour = Enum("Colour", {"RED": "red"})
TABLE = {"columns": 2, "rows": 1, "crc32": 2, "last": ["0", "1"]}
Number = IntEnum("Number", {"ONE": 1})


class Text(str):
    """As a user may have one."""


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (np.float32(1.5), 1.5),
        (np.float64(1.5), 1.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array([1, 2], np.uint16), torch.tensor([1, 2], dtype=torch.uint16)),
        (np.array([1, 2], ">i4"), torch.tensor([1, 2], dtype=torch.int32)),
        (np.array([[0.5]]), torch.tensor([[0.5]], dtype=torch.float64)),
        (np.array(["a", "b"]), ["a", "b"]),
        (Path("a") / "b", "a/b"),
        (Text("a"), "a"),
        (Colour.RED, "red"),
        (Number.ONE, 1),
        ({Colour.RED: Number.ONE}, {"red": 1}),
        ({1, 2}, {1, 2}),
        (frozenset({"a"}), {"a"}),
        (Pair(1, [2]), (1, [2])),
        (torch.Size([1, 2]), (1, 2)),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=None), {"a": None}),
        (torch.float32, "torch.float32"),
        (torch.device("cpu"), "cpu"),
        (object(), "<object object>"),  # not where it lay
        (torch.zeros(2).to_sparse(), torch.zeros(2)),
        (torch.nn.Parameter(torch.zeros(2)), torch.zeros(2)),
        (2**100, 2**100),  # as random generators have them
    ],
)
def test_states_of_any_kind_become_plain_and_are_read_again(value, wanted):
    found = plain({"state_dict": {}, "state": value})
    file = io.BytesIO()
    torch.save(found, file)
    for result in (found["state"], load_plain(file.getvalue())["state"]):
        assert type(result) is type(wanted)
        if isinstance(wanted, Tensor):
            assert result.dtype == wanted.dtype
            assert torch.equal(result, wanted)
            assert not result.requires_grad
        else:
            assert result == wanted


def test_a_copy_does_not_change_with_what_it_was_made_of():
    weights, metrics = torch.zeros(2), [1]
    copy = plain({"weights": weights, "metrics": metrics})
    weights += 1
    metrics.append(2)
    assert copy["weights"].tolist() == [0, 0]
    assert copy["metrics"] == [1]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (object(), "it holds a object"),
        (b"a", "it holds a bytes"),
        ({"class_path": "a.B"}, "it names a class"),
        (2**1024, "larger than any"),
        (torch.zeros(1).expand(2**30), "a tensor is larger"),
    ],
)
def test_what_is_not_plain_is_refused(value, reason):
    check_values(content())
    with pytest.raises(ValueError, match=reason):
        check_values({**content(), "callbacks": {"a": [value]}})


def test_a_list_in_itself_is_refused():
    endless: list = []
    endless.append(endless)
    with pytest.raises(ValueError, match="too many values"):
        check_values({"a": endless})


@pytest.mark.parametrize("make", [content, trained, content_of_3207afc])
def test_what_a_run_needs_is_there(make):
    check_entries(make())
    for name in make():
        checkpoint = make()
        del checkpoint[name]
        if name in ("hyper_parameters", "datamodule_hyper_parameters", "MNISTDataModule", STATE):
            check_entries(checkpoint)  # a user's own module may have none; a plain Trainer's is of no run
            checkpoint[name] = "3"
        with pytest.raises(ValueError, match=f"its {name} is missing or wrong"):
            check_entries(checkpoint)


@pytest.mark.parametrize(
    "name", [name for name in content()[STATE] if name not in ("format", "metrics_csv", "best", "loaders")]
)
def test_an_entry_of_ours_that_is_wrong_is_refused(name):
    for wrong in ([], -1, 2**63):
        with pytest.raises(ValueError, match=f"its {STATE}/{name} is missing or wrong"):
            check_entries(content(**{name: wrong}))


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"best": [1, 2]}, "its best is wrong"),
        ({"metrics_csv": {**TABLE, "rows": "1"}}, f"its {STATE}/metrics_csv/rows is missing or wrong"),
        ({"format": 3}, "another version"),
        ({"format": "2"}, "another version"),
    ],
)
def test_entries_of_ours_that_are_wrong_inside_are_refused(state, reason):
    check_entries(content(best=(0.5, -1.0), metrics_csv=TABLE))
    with pytest.raises(ValueError, match=reason):
        check_entries(content(**state))


@pytest.mark.parametrize("make", [content, trained, lambda: {"state_dict": {}, "hyper_parameters": {}}])
def test_what_was_found_after_the_training_can_be_computed_with(make):
    check_entries({**make(), FOUND: {"temperature": 1.5, "least_energy": -2.0, "origin": "a"}})
    wrong = [{"temperature": value} for value in (0.0, -1.0, float("nan"), float("inf"), "2", 2, None)]
    for found in ("a", 3, *wrong, {"least_energy": float("nan")}, {"least_probability": [0.5]}):
        with pytest.raises(ValueError, match=f"its {FOUND}.* is wrong"):
            check_entries({**make(), FOUND: found})
