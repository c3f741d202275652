"""What several ranks have summed up, another number of ranks goes on with."""

import torch
from torch import tensor

from mnist_lightning.training.loop_state import merged


def kept(value: float, images: int, most: float, parts: list[float]) -> dict:
    """Of a rank, as `epoch_sums` gives it."""
    states = {
        "tp": tensor([images]), "most": tensor(most), "mean": tensor(value), "list": [tensor(part) for part in parts],
        "cat": tensor(parts), "own": 3,
    }  # fmt: skip
    how = {name: f"dim_zero_{how}" for name, how in (("tp", "sum"), ("most", "max"), ("mean", "mean"), ("cat", "cat"))}
    return {
        "logged": [
            {"meta": {"name": "loss", "reduce_fx": "mean"}, "value": tensor(value), "images": tensor(images)},
            {"meta": {"name": "least", "reduce_fx": "min"}, "value": tensor(-most), "images": None},
            {"meta": {"name": "acc", "reduce_fx": "mean"}, "value": None, "images": None},
        ],
        "metrics": {"acc": {"count": 2, "states": states, "how": {**how, "list": "", "own": ""}}},
        "shown": {},
    }


def test_the_first_of_another_number_of_ranks_has_all():
    ranks = [kept(6.0, 30, 2.0, [1.0, 2.0]), kept(1.0, 12, 5.0, [3.0])]
    assert merged(ranks, 2, 1) is ranks[1]
    first, other = merged(ranks, 3, 0), merged(ranks, 3, 2)
    assert [(item["value"], item["images"]) for item in first["logged"]] == [(7.0, 42), (-5.0, None), (None, None)]
    assert [(item["value"], item["images"]) for item in other["logged"]] == [(0.0, 0), (-5.0, None), (None, None)]
    assert first["logged"][0]["images"].dtype == torch.int64
    states = first["metrics"]["acc"]["states"]
    assert states["tp"].tolist() == [42]
    assert (states["most"], states["mean"], states["own"]) == (5.0, 3.5, 3)
    assert states["list"] == [1.0, 2.0, 3.0]
    assert states["cat"].tolist() == [1.0, 2.0, 3.0]
    assert other["metrics"] == {}


def test_a_rank_that_had_no_image_yet_adds_nothing():
    ranks = [kept(6.0, 30, 2.0, [1.0]), {**kept(0.0, 0, 0.0, []), "metrics": {}}]
    assert merged(ranks, 1, 0)["metrics"]["acc"]["states"]["tp"].tolist() == [30]
