"""Batches cut straight out of a tensor, in an order that is computed and never remembered.

Batch `i` of epoch `e` under seed `s` is a function of (s, e, i), and rank `r` of `w` takes its share of it. A
position in the data is therefore two integers, a resume is exact, and ranks neither pad nor repeat.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from mnist_lightning.data.augment import Augment

AT_ONCE = 4096  # images gathered and prepared together: few enough for the processor's cache


@lru_cache
def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed for one purpose, e.g. `derived_seed(seed, "order", epoch)`: equal parts, equal seed."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_generators(device: torch.device, seed: int) -> None:
    """`torch.manual_seed` for just the generators that a step draws from: 1 us instead of 20."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


class TensorLoader:
    """An iterable of mini-batches (images, labels int64 [n]) of `images` uint8 [N, 28, 28] and `labels` [N].

    `subset` (int [M]) restricts it to some images. With `shuffle` and `balanced` an epoch's M images are drawn evenly
    from the classes that are there: of a rare one some several times, of a common one others each epoch. `prepare`
    makes of images, which it leaves as they are, what a network takes, after `augment` has changed them by random
    numbers of their own (data/augment.py). `batch_size` counts images on this rank, as everywhere in Lightning; a
    mini-batch of all ranks together has `batch_size * world_size`. A last, smaller mini-batch is kept and shared out
    as evenly as possible. The next `iter` is the next epoch, unless `set_epoch` or `load_state_dict` says otherwise.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        subset: Tensor | None = None,
        *,
        batch_size: int,
        prepare: Callable[[Tensor], Tensor] | None = None,
        augment: Augment | None = None,
        shuffle: bool = False,
        balanced: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images, self.labels, self.subset = images, labels, subset
        self.size = len(labels) if subset is None else len(subset)
        self.prepare, self.augment, self.shuffle, self.seed = prepare, augment, shuffle, seed
        self._of_class = _by_class(labels if subset is None else labels.cpu()[subset]) if balanced and shuffle else None
        self.rank, self.world_size = rank, world_size
        self.global_batch_size = batch_size * world_size
        self.at_once = max(1, AT_ONCE // batch_size)  # mini-batches
        self.epoch = self.batch = 0  # the place: `batch` mini-batches of this epoch have been handed out
        self._start: int | None = 0  # where in this epoch the next `iter` starts; None: with the next epoch

    # Lightning tells the epoch to what it finds as the sampler, at every epoch and after a resume.
    sampler = batch_sampler = property(lambda self: self)
    device = property(lambda self: self.images.device)

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.batch, self._start = epoch, 0, 0
        self._start = self._start or 0

    def state_dict(self) -> dict[str, int]:
        if self.batch >= len(self):
            return {"epoch": self.epoch + 1, "batch": 0}
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch = state["epoch"]
        self.batch = self._start = state["batch"]

    def __len__(self) -> int:
        return -(-self.size // self.global_batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._start is None:
            self.epoch += 1
        self.batch, self._start = self._start or 0, None
        order = self.order(self.epoch)
        seed = derived_seed(self.seed, "augment", self.epoch)
        drawn = self.augment.draw(len(self.labels), seed).to(self.device) if self.augment else None
        as_they_lie = not self.shuffle and self.subset is None and self.world_size == 1
        while self.batch < len(self):
            positions, sizes = self._share(order, self.batch, self.batch + self.at_once, self.rank)
            if as_they_lie:
                first = self.batch * self.global_batch_size
                images = self.images[first : first + len(positions)]
            else:  # gathering flat rows is several times faster than gathering [28, 28] pictures
                images = self.images.flatten(1).index_select(0, positions).view(-1, *self.images.shape[1:])
            if self.augment and drawn is not None:
                images = self.augment(images, drawn.index_select(0, positions))
            images = images if self.prepare is None else self.prepare(images)
            if images.untyped_storage().data_ptr() == self.images.untyped_storage().data_ptr():
                images = images.clone()  # what happens to a batch does not happen to the data set
            labels = self.labels.index_select(0, positions).long()
            for pair in zip(images.split(sizes), labels.split(sizes), strict=True):
                self.batch += 1
                yield pair

    def order(self, epoch: int) -> Tensor:
        """All images in this epoch's order, int32 [M] (half the memory of int64), on the images' device."""
        if self.shuffle:
            # drawn on the CPU so that the order is the same on every device
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", epoch))
            order = _drawn(self._of_class, self.size, generator) if self._of_class else _shuffled(self.size, generator)
        else:
            order = torch.arange(self.size, dtype=torch.int32)
        order = order if self.subset is None else self.subset.index_select(0, order)  # `[order]` makes int64 of it
        return order.to(self.images.device)

    def positions(self, batches: int, rank: int) -> Tensor:
        """Which images of the data set the first so many mini-batches of this epoch have on a rank, int32 [n]."""
        return self._share(self.order(self.epoch), 0, batches, rank)[0]

    def images_after(self, batches: int, batches_an_epoch: int) -> int:
        """Images that all ranks together have seen after so many mini-batches from the start of the training."""
        epochs, rest = divmod(batches, batches_an_epoch)
        epoch = min(self.size, batches_an_epoch * self.global_batch_size)
        return epochs * epoch + min(rest * self.global_batch_size, epoch)

    def weight(self, batch: int) -> float:
        """How many times its even share of a mini-batch's images this rank has: 1 but for the last."""
        images = min(self.size - batch * self.global_batch_size, self.global_batch_size)
        return len(range(self.rank, images, self.world_size)) * self.world_size / images

    def _share(self, order: Tensor, start: int, end: int, rank: int) -> tuple[Tensor, int | list[int]]:
        """A rank's images of the mini-batches from `start` to `end`, and how many each has."""
        size = self.global_batch_size
        positions = order[start * size : end * size]
        if self.world_size == 1:
            return positions, size
        parts = [batch.tensor_split(self.world_size)[rank] for batch in positions.split(size)]
        return torch.cat(parts), [len(part) for part in parts]


def _shuffled(count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator, dtype=torch.int32)


def _by_class(labels: Tensor) -> list[Tensor]:
    """The positions of each class that is there, int32."""
    labels = labels.cpu()
    return [(labels == label).nonzero().flatten().int() for label in labels.unique()]


def _drawn(of_class: list[Tensor], size: int, generator: torch.Generator) -> Tensor:
    """`size` positions, equally many of each class: all its images in a random order, again and again as needed."""
    parts = []
    for at, positions in enumerate(of_class):
        wanted = (at + 1) * size // len(of_class) - at * size // len(of_class)
        rounds = [positions[_shuffled(len(positions), generator)] for _ in range(-(-wanted // len(positions)))]
        parts += [torch.cat(rounds)[:wanted]] if rounds else []
    drawn = torch.cat(parts)
    return drawn[_shuffled(len(drawn), generator)]
