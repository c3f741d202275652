"""Which of the training images are held out for validation: chosen at random by a seed that is always the same."""

import numpy as np
import torch
from torch import Tensor

from mnist_lightning.errors import BadSetting

SPLIT_SEED = 0  # the validation images stay the same whatever the seed of the training is


def check_folds(folds: int | None, fold: int | None) -> None:
    """Raises BadSetting unless they name one of at least two folds, or none."""
    if folds is None and fold is None:
        return
    if folds is None or folds < 2:
        raise BadSetting(f"--data.folds is {folds}; it must be at least 2, as one fold is held out")
    if fold is None or not 0 <= fold < folds:
        raise BadSetting(f"--data.fold is {fold}; of {folds} folds it is from 0 to {folds - 1}")


def size_held_out(images: int, val_size: int | None, folds: int | None, fold: int | None) -> int:
    """How many of so many training images are for validation: those of the fold, else as many as are asked for."""
    if not folds or fold is None:
        return min(5000, images // 6) if val_size is None else val_size
    if folds > images:
        raise BadSetting(f"--data.folds is {folds}, but there are only {images} training images")
    size = (fold + 1) * images // folds - fold * images // folds
    if val_size not in (None, size):
        raise BadSetting(f"--data.val_size is {val_size}; fold {fold} of {folds} has {size} images: leave it out")
    return size


def divided(images: int, val_size: int, train_size: int | None, drawn: int, first: int = 0) -> dict[str, Tensor | None]:
    """Positions int [n] of the images of "train" and "val"; None means all, in their order.

    Held out are `val_size` of the shuffled images, from the `first` of them on. What is trained on keeps its order;
    digits that are drawn besides come after them, and are all trained on.
    """
    if val_size >= images:
        raise BadSetting(f"--data.val_size is {val_size}, but there are only {images} training images")
    if train_size is not None and train_size > images - val_size:
        raise BadSetting(f"--data.train_size is {train_size}, but only {images - val_size} images are there")
    if val_size == 0 and train_size in (None, images):
        return {"val": torch.arange(0), "train": None}  # at no cost, however many images there are
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    shuffled = torch.randperm(images, generator=generator, dtype=torch.int32)
    held_out = shuffled[first : first + val_size].sort().values
    rest = np.delete(np.arange(images, dtype=np.int32), held_out.numpy())
    more = np.arange(images, images + drawn, dtype=np.int32)
    return {"val": held_out, "train": torch.from_numpy(np.concatenate([rest[:train_size], more]))}
