"""TensorLoader: the order is a function, ranks neither pad nor repeat, a position is two integers."""

from itertools import chain

import pytest
import torch
from torch import Tensor

from mnist_lightning.data.loader import TensorLoader, derived_seed


def loader(count: int = 23, **options) -> TensorLoader:
    """Images that show their own number, with labels 0 to 9 in turn."""
    numbers = torch.arange(count)
    images = numbers.to(torch.uint8).view(-1, 1, 1).expand(-1, 28, 28).contiguous()
    return TensorLoader(images, (numbers % 10).to(torch.uint8), **{"batch_size": 4, "shuffle": True} | options)


def batches(loader: TensorLoader) -> list[list[int]]:
    """The numbers of the images in each mini-batch of one pass."""
    return [images[:, 0, 0].tolist() for images, _ in loader]


def flat(lists) -> list[int]:
    return list(chain.from_iterable(lists))


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_a_mini_batch_is_images_and_their_labels(at_once: int):
    some = loader()
    some.at_once = at_once  # mini-batches that are gathered together
    for images, labels in some:
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert images.shape == (len(labels), 28, 28)
        assert (images == images[:, :1, :1]).all()
        assert labels.tolist() == [number % 10 for number in images[:, 5, 7].tolist()]
    assert batches(loader()) == [part.tolist() for part in loader().order(0).split(4)]


def test_images_are_prepared_many_at_once():
    calls: list[int] = []

    def prepare(images: Tensor) -> Tensor:
        calls.append(len(images))
        return images.unsqueeze(1).float() + 0.5

    some = loader(23, prepare=prepare, shuffle=False)
    some.at_once = 4
    found = [images for images, _ in some]
    assert [images.shape for images in found] == [(4, 1, 28, 28)] * 5 + [(3, 1, 28, 28)]
    assert torch.cat(found)[:, 0, 0, 0].tolist() == [number + 0.5 for number in range(23)]
    assert calls == [16, 7]


@pytest.mark.parametrize(("batch_size", "at_once"), [(10, 409), (64, 64), (512, 8), (4096, 1), (10_000, 1)])
def test_about_4096_images_are_gathered_at_once(batch_size: int, at_once: int):
    assert loader(batch_size=batch_size).at_once == at_once


def test_without_shuffling_the_order_is_that_of_the_data():
    assert batches(loader(10, shuffle=False)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("done", [0, 3])
def test_images_in_order_are_prepared_as_they_lie(done: int):
    in_order, gathered = (
        loader(shuffle=False, prepare=lambda images: images.float() / 2, subset=subset)
        for subset in (None, torch.arange(23, dtype=torch.int32))
    )
    kept = in_order.images.clone()
    for some in (in_order, gathered):
        some.at_once = 2
        some.load_state_dict({"epoch": 1, "batch": done})
    pairs = list(zip(in_order, gathered, strict=True))
    assert len(pairs) == 6 - done
    for (images, labels), (others, their_labels) in pairs:
        assert torch.equal(images, others)
        assert torch.equal(labels, their_labels)
        images.zero_()  # a step may change its batch
    assert torch.equal(in_order.images, kept)


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


@pytest.mark.parametrize(("count", "sizes"), [(23, [4, 4, 4, 4, 4, 3]), (24, [4] * 6), (3, [3]), (0, [])])
def test_a_last_smaller_batch_is_kept(count: int, sizes: list[int]):
    assert [len(batch) for batch in batches(loader(count))] == sizes
    assert len(loader(count)) == len(sizes)


# ---------------------------------------------------------------------- ranks


def shares(count: int, ranks: int, size: int, **options) -> list[list[list[int]]]:
    """[rank][mini-batch] -> numbers"""
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
        some = loader(count, rank=0, world_size=ranks, batch_size=12 // ranks, seed=5)
        for done in range(len(some) + 1):
            assert some.positions(done, rank).tolist() == flat(parts[rank][:done])


def test_a_rank_can_have_no_image_in_the_last_batch():
    assert [[len(batch) for batch in part] for part in shares(13, 4, 3)] == [[3, 1], [3, 0], [3, 0], [3, 0]]


@pytest.mark.parametrize(("count", "ranks"), [(13, 3), (14, 3), (16, 3), (12, 3), (23, 2), (23, 1)])
def test_a_rank_knows_its_share_of_each_mini_batch(count: int, ranks: int):
    """Weighted so, the ranks' mean losses come to the mean over the whole mini-batch's images."""
    whole = {"batch_size": 4, "world_size": ranks, "seed": 5}
    single = batches(loader(count, batch_size=4 * ranks, seed=5))
    for batch, images in enumerate(single):
        weights = [loader(count, rank=rank, **whole).weight(batch) for rank in range(ranks)]
        sizes = [len(part[batch]) for part in shares(count, ranks, 4)]
        assert weights == pytest.approx([size / len(images) * ranks for size in sizes])


# ---------------------------------------------------------------------- positions


def test_a_pass_after_a_pass_is_the_next_epoch():
    running, fresh = loader(seed=3), loader(seed=3)
    for epoch in range(3):
        running.set_epoch(epoch)  # as Lightning does; says nothing new
        fresh.set_epoch(epoch)
        assert batches(running) == batches(fresh) == [part.tolist() for part in fresh.order(epoch).split(4)]
    assert batches(running) == [part.tolist() for part in fresh.order(3).split(4)]  # and where it does not


def test_a_pass_that_was_left_early_is_an_epoch_too():
    some = loader(seed=3)
    next(iter(some))
    assert batches(some) == [part.tolist() for part in some.order(1).split(4)]


def test_set_epoch_starts_an_epoch_over_only_if_it_is_another():
    some = loader()
    some.load_state_dict({"epoch": 1, "batch": 4})
    some.set_epoch(1)
    assert some.state_dict() == {"epoch": 1, "batch": 4}
    some.set_epoch(2)
    assert some.state_dict() == {"epoch": 2, "batch": 0}


@pytest.mark.parametrize("done", [0, 1, 4, 5, 6])
@pytest.mark.parametrize("ranks", [1, 2])
def test_state_in_the_middle_of_an_epoch(done: int, ranks: int):
    options = {"seed": 7, "world_size": ranks, "rank": ranks - 1, "batch_size": 4 // ranks}
    whole, first, rest = (loader(**options) for _ in range(3))
    whole.set_epoch(2)
    expected = batches(whole)
    first.set_epoch(2)
    iterator = iter(first)
    begun = [next(iterator)[0][:, 0, 0].tolist() for _ in range(done)]
    state = {"epoch": 2, "batch": done} if done < 6 else {"epoch": 3, "batch": 0}
    assert first.state_dict() == state
    rest.load_state_dict(state)
    if done < 6:
        assert begun + batches(rest) == expected
    whole.set_epoch(3)
    assert batches(rest) == batches(whole)


def test_state_at_the_end_of_an_epoch_is_the_start_of_the_next():
    some = loader()
    list(some)
    assert some.state_dict() == {"epoch": 1, "batch": 0}
    assert loader().state_dict() == {"epoch": 0, "batch": 0}


def test_subset_restricts_to_some_images():
    subset = torch.tensor([3, 5, 8, 13, 21], dtype=torch.int32)
    assert sorted(flat(batches(loader(subset=subset, batch_size=2)))) == subset.tolist()
    assert batches(loader(subset=subset, batch_size=2, shuffle=False)) == [[3, 5], [8, 13], [21]]


def test_images_after_so_many_batches():
    some = loader(23)  # 6 mini-batches: five of 4, one of 3
    assert [some.images_after(done, 6) for done in (0, 1, 5, 6, 7, 12)] == [0, 4, 20, 23, 27, 46]
    assert [some.images_after(done, 2) for done in (1, 2, 3)] == [4, 8, 12]  # --trainer.limit_train_batches 2
    ranked = loader(23, batch_size=2, world_size=2)
    assert [ranked.images_after(done, 6) for done in (5, 6, 7)] == [20, 23, 27]
