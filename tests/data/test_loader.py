"""TensorLoader: the order is a function, ranks neither pad nor repeat, a position is two integers."""

from itertools import chain

import pytest
import torch
from torch import Tensor

from mnist_lightning.data.loader import Block, TensorLoader, derived_seed


def loader(count: int = 23, **options) -> TensorLoader:
    """Images that show their own number, with labels 0 to 9 in turn."""
    numbers = torch.arange(count)
    images = numbers.to(torch.uint8).view(-1, 1, 1).expand(-1, 28, 28).contiguous()
    return TensorLoader(images, (numbers % 10).to(torch.uint8), **{"batch_size": 4, "shuffle": True} | options)


def batches(loader: TensorLoader) -> list[list[int]]:
    """Positions of each mini-batch of one pass, whatever the blocks."""
    return [part.tolist() for block in loader for part in block.positions.split(block.sizes)]


def flat(lists) -> list[int]:
    return list(chain.from_iterable(lists))


def test_blocks_hold_what_their_positions_say():
    for block in loader(steps_per_block=2):
        assert block.images.dtype == torch.uint8
        assert block.images.shape == (len(block), 28, 28)
        assert block.images[:, 5, 7].tolist() == block.positions.tolist()
        assert block.labels.tolist() == [number % 10 for number in block.positions.tolist()]
        assert sum(block.sizes) == len(block)


def test_without_shuffling_the_order_is_that_of_the_data():
    assert batches(loader(10, shuffle=False)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = {(seed, epoch): loader(seed=seed).order(epoch).tolist() for seed in (0, 1) for epoch in (0, 1)}
    assert len({tuple(order) for order in orders.values()}) == 4
    for (seed, epoch), order in orders.items():
        again = loader(seed=seed)
        again.set_epoch(epoch)
        assert flat(batches(again)) == order
        assert sorted(order) == list(range(23))


def test_the_order_does_not_depend_on_the_global_random_state():
    torch.manual_seed(1)
    first = batches(loader())
    torch.manual_seed(2)
    assert batches(loader()) == first


def test_this_order_stays_as_it_is():
    # a checkpoint of an older version counts on it
    assert derived_seed(0, "order", 0) == 1829853113658518448
    assert loader(8, seed=0).order(0).tolist() == [0, 6, 4, 5, 3, 2, 7, 1]


def test_a_last_smaller_batch_is_kept():
    assert [len(batch) for batch in batches(loader(23))] == [4, 4, 4, 4, 4, 3]
    assert loader(23).batches == 6
    assert [len(batch) for batch in batches(loader(24))] == [4] * 6
    assert [len(batch) for batch in batches(loader(3))] == [3]


def shares(count: int, ranks: int, size: int, **options) -> list[list[list[int]]]:
    """[rank][mini-batch] -> positions"""
    whole = {"batch_size": size, "world_size": ranks, "seed": 5}
    return [batches(loader(count, rank=rank, **whole | options)) for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [24, 23, 22, 21, 13, 5])
def test_ranks_share_each_batch_without_padding_or_repeats(count: int, ranks: int):
    parts = shares(count, ranks, 12 // ranks)
    together = [flat(part[i] for part in parts) for i in range(len(parts[0]))]
    assert sorted(flat(together)) == list(range(count))
    single = batches(loader(count, batch_size=12, seed=5))
    assert [sorted(batch) for batch in together] == [sorted(batch) for batch in single]
    for i in range(len(together)):  # as evenly as can be
        sizes = [len(part[i]) for part in parts]
        assert max(sizes) - min(sizes) <= 1
    for rank in range(ranks):
        for block in loader(count, rank=rank, world_size=ranks, batch_size=12 // ranks, seed=5):
            assert block.global_sizes == [len(batch) for batch in single[: len(block.global_sizes)]] or (
                block.global_sizes == [len(single[-1])]
            )


def test_a_rank_can_have_no_image_in_the_last_batch():
    assert [[len(batch) for batch in part] for part in shares(13, 4, 3)] == [[3, 1], [3, 0], [3, 0], [3, 0]]


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6, 7, 100])
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_size_of_a_block_changes_nothing(steps: int, ranks: int):
    options = {"world_size": ranks, "rank": ranks - 1, "batch_size": 4 // ranks}
    blocked = loader(23, steps_per_block=steps, **options)
    assert len(blocked) == len(list(loader(23, steps_per_block=steps, **options))) == -(-6 // steps)
    assert batches(blocked) == batches(loader(23, **options))


def test_a_pass_after_a_pass_is_the_next_epoch():
    running, fresh = loader(seed=3), loader(seed=3)
    for epoch in range(3):
        running.set_epoch(epoch)  # as Lightning does; says nothing new
        fresh.set_epoch(epoch)
        assert batches(running) == batches(fresh) == [part.tolist() for part in fresh.order(epoch).split(4)]
    assert batches(running) == [part.tolist() for part in fresh.order(3).split(4)]  # and where it does not


def test_set_epoch_starts_an_epoch_over_only_if_it_is_another():
    some = loader()
    some.load_state_dict({"epoch": 1, "batch": 4})
    some.set_epoch(1)
    assert some.state_dict() == {"epoch": 1, "batch": 4}
    some.set_epoch(2)
    assert some.state_dict() == {"epoch": 2, "batch": 0}


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_state_in_the_middle_of_an_epoch(steps: int):
    whole = loader(seed=7, steps_per_block=steps)
    whole.set_epoch(2)
    expected = batches(whole)
    first = loader(seed=7, steps_per_block=steps)
    first.set_epoch(2)
    iterator = iter(first)
    done = [part.tolist() for block in [next(iterator)] for part in block.positions.split(block.sizes)]
    assert first.state_dict() == {"epoch": 2, "batch": steps}
    for later in (1, 3):  # the blocks may be of another size afterwards
        rest = loader(seed=7, steps_per_block=later)
        rest.load_state_dict(first.state_dict())
        assert done + batches(rest) == expected


def test_state_at_the_end_of_an_epoch_is_the_start_of_the_next():
    some = loader()
    list(some)
    assert some.state_dict() == {"epoch": 1, "batch": 0}
    assert loader().state_dict() == {"epoch": 0, "batch": 0}


def test_subset_restricts_to_some_images():
    subset = torch.tensor([3, 5, 8, 13, 21])
    assert sorted(flat(batches(loader(subset=subset, batch_size=2)))) == subset.tolist()
    assert batches(loader(subset=subset, batch_size=2, shuffle=False)) == [[3, 5], [8, 13], [21]]


@pytest.mark.parametrize(("limit", "kept"), [(1.0, 6), (0.5, 3), (0.4, 2), (1, 1), (4, 4), (99, 6), (0, 0), (0.0, 0)])
def test_limit_counts_mini_batches_or_is_a_share_of_them(limit: float, kept: int):
    some = loader(23, limit=limit, steps_per_block=4)
    assert some.batches == kept
    assert batches(some) == batches(loader(23))[:kept]


def test_images_after_so_many_steps():
    some = loader(23)  # 6 mini-batches: five of 4, one of 3
    assert [some.images_after(steps) for steps in (0, 1, 5, 6, 7, 12)] == [0, 4, 20, 23, 27, 46]
    limited = loader(23, limit=2)
    assert [limited.images_after(steps) for steps in (1, 2, 3)] == [4, 8, 12]
    ranked = loader(23, batch_size=2, world_size=2)
    assert [ranked.images_after(steps) for steps in (5, 6, 7)] == [20, 23, 27]


def test_a_block_moves_and_splits():
    block: Block = next(iter(loader(10, steps_per_block=3))).to("cpu")
    assert block.labels.dtype == torch.int64
    parts: list[tuple[Tensor, Tensor, float]] = list(block.split(block.labels))
    assert [(len(images), len(labels), share) for images, labels, share in parts] == [
        (4, 4, 1.0),
        (4, 4, 1.0),
        (2, 2, 1.0),
    ]
    assert torch.equal(torch.cat([images for images, _, _ in parts]), block.images)


def test_a_rank_knows_its_share_of_each_mini_batch():
    options = {"batch_size": 4, "world_size": 3, "steps_per_block": 2}  # 13 images: 12, then 1
    for rank, expected in ((0, [4 / 12, 1.0]), (2, [4 / 12, 0.0])):
        block = next(iter(loader(13, rank=rank, **options)))
        assert [share for _, _, share in block.split(block.labels)] == expected


def test_images_in_order_are_cut_where_they_lie():
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1).expand(10, 28, 28).contiguous()
    loader = TensorLoader(images, torch.arange(10), batch_size=2, steps_per_block=2)
    blocks = [(block.images[:, 0, 0].tolist(), block.labels.tolist()) for block in loader]
    assert blocks == [([0, 1, 2, 3], [0, 1, 2, 3]), ([4, 5, 6, 7], [4, 5, 6, 7]), ([8, 9], [8, 9])]
