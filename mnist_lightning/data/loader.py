"""Batches cut straight out of a tensor, in an order that is computed and never remembered.

Batch `i` of epoch `e` under seed `s` is a function of (s, e, i), and rank `r` of `w` takes its share of it. A
position in the data is therefore two integers, a resume is exact, and ranks neither pad nor repeat.
"""

import hashlib
import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed for one purpose, e.g. `derived_seed(seed, "order", epoch)`: equal parts, equal seed."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def global_seed() -> int:
    """The seed given to Lightning's `seed_everything`, or 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def unchanged(images: Tensor) -> Tensor:
    return images


class Block:
    """Several mini-batches in one piece, cut apart by `split` only when they are used.

    A plain object with a `to`, because Lightning walks tuples and dataclasses element by element at each batch.
    """

    __slots__ = ("global_sizes", "images", "labels", "positions", "prepare", "sizes")

    def __init__(
        self, images: Tensor, labels: Tensor, positions: Tensor, sizes: list[int], global_sizes: list[int]
    ) -> None:
        self.images = images  # uint8 [n, 28, 28]
        self.labels = labels  # int64 [n]
        self.positions = positions  # int32 [n]: which images of the data set these are
        self.sizes = sizes  # images of each mini-batch on this rank; adds up to n
        self.global_sizes = global_sizes  # images of each mini-batch on all ranks together
        self.prepare: Callable[[Tensor], Tensor] = unchanged  # to what a network takes; set by the data module

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Block":
        images = self.images.to(device, non_blocking=non_blocking)
        labels = self.labels.to(device, torch.int64, non_blocking=non_blocking)
        return Block(images, labels, self.positions, self.sizes, self.global_sizes)

    def parts(self, most: int) -> Iterator[Tensor]:
        """Prepared images, at most so many at a time: they stay in the processor's cache."""
        return map(self.prepare, self.images.split(most))

    def split(self, targets: Tensor) -> Iterator[tuple[Tensor, Tensor, float]]:
        """(prepared images, targets, this rank's share of the images) of each mini-batch."""
        shares = (size / whole for size, whole in zip(self.sizes, self.global_sizes, strict=True))
        images = self.prepare(self.images)  # at once: a mini-batch may be of ten images
        return zip(images.split(self.sizes), targets.split(self.sizes), shares, strict=True)


class TensorLoader:
    """An iterable of `Block`s over `images` uint8 [N, 28, 28] and `labels` [N], as MNISTDataModule makes it.

    `subset` (int [M]) restricts it to some images. `batch_size` counts images on this rank, as everywhere in
    Lightning; one mini-batch of all ranks together has `batch_size * world_size`. A last, smaller mini-batch is
    kept and shared out as evenly as possible. `limit` keeps so many mini-batches of each epoch, or such a share.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        subset: Tensor | None = None,
        *,
        batch_size: int,
        steps_per_block: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        limit: int | float = 1.0,
    ) -> None:
        self.images, self.labels, self.subset = images, labels, subset
        self.size = len(labels) if subset is None else len(subset)
        self.steps_per_block = steps_per_block
        self.shuffle, self.seed = shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.global_batch_size = batch_size * world_size
        self.batches = -(-self.size // self.global_batch_size)  # mini-batches an epoch
        self.batches = min(self.batches, limit if isinstance(limit, int) else int(self.batches * limit))
        self.epoch = 0
        self.batch = 0  # mini-batches of this epoch that have been handed out

    # Lightning tells the epoch to what it finds as the sampler, at every epoch and after a resume.
    sampler = batch_sampler = property(lambda self: self)

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.batch = epoch, 0

    def state_dict(self) -> dict[str, int]:
        if self.batch >= self.batches:
            return {"epoch": self.epoch + 1, "batch": 0}
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]

    def __len__(self) -> int:
        """Blocks of a whole epoch, wherever in it the loader stands."""
        return -(-self.batches // self.steps_per_block)

    def images_after(self, steps: int) -> int:
        """Images that all ranks together have trained on after so many steps from the start of the training."""
        epochs, batches = divmod(steps, self.batches)
        epoch = min(self.size, self.batches * self.global_batch_size)
        return epochs * epoch + min(batches * self.global_batch_size, epoch)

    def __iter__(self) -> Iterator[Block]:
        if self.batch >= self.batches:  # the end of an epoch is the start of the next
            self.epoch, self.batch = self.epoch + 1, 0
        order = self.order(self.epoch)
        while self.batch < self.batches:
            start, self.batch = self.batch, min(self.batch + self.steps_per_block, self.batches)
            yield self._block(order, start, self.batch)

    def order(self, epoch: int) -> Tensor:
        """All images in this epoch's order, int32 [M] (half the memory of int64), on the images' device."""
        if self.shuffle:
            # drawn on the CPU so that the order is the same on every device
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", epoch))
            order = torch.randperm(self.size, generator=generator, dtype=torch.int32)
        else:
            order = torch.arange(self.size, dtype=torch.int32)
        order = order if self.subset is None else self.subset.index_select(0, order)  # `[order]` makes int64 of it
        return order.to(self.images.device)

    def _block(self, order: Tensor, start: int, end: int) -> Block:
        """Mini-batches `start` to `end` of an epoch: this rank's share of each."""
        size, ranks = self.global_batch_size, self.world_size
        positions = order[start * size : end * size]
        full, rest = divmod(len(positions), size)
        sizes, global_sizes = [size // ranks] * full, [size] * full
        if rest:
            sizes.append(rest // ranks + (self.rank < rest % ranks))
            global_sizes.append(rest)
        if ranks > 1:
            whole = positions[: full * size].view(full, ranks, size // ranks)[:, self.rank].flatten()
            last = positions[full * size :].tensor_split(ranks)[self.rank]
            positions = torch.cat([whole, last])
        in_order = ranks == 1 and not self.shuffle and self.subset is None
        images = self.images[start * size : end * size] if in_order else self._gathered(positions)
        return Block(images, self.labels.index_select(0, positions), positions, sizes, global_sizes)

    def _gathered(self, positions: Tensor) -> Tensor:
        # gathering flat rows is several times faster than gathering [28, 28] pictures
        return self.images.flatten(1).index_select(0, positions).view(-1, *self.images.shape[1:])
