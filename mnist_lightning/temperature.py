"""Temperature: the number that a network's logits are divided by so that its probabilities mean what they say.

It is fitted on validation images when a training ends, and kept in the run's checkpoints, whose weights and state stay
as they are (Guo et al. 2017, On calibration of modern neural networks).
"""

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.errors import UserError, first_line
from mnist_lightning.run import Run
from mnist_lightning.training.checkpoint_content import FOUND, plain
from mnist_lightning.training.checkpoints import read_weights, write_checkpoint

MOST = 100.0  # and a hundredth is the least
HALVINGS = 40  # of the range of its logarithm: to the last of four decimals
AT_ONCE = 1000  # images of one forward


def fitted(logits: Tensor, labels: Tensor) -> float | None:
    """The temperature of the least cross entropy: logits [n, classes], labels int64 [n] -> a number, to four decimals.

    None where there is no least: all images are read right, so that the loss only falls as the probabilities grow.
    """
    logits = logits.double()
    given = logits.gather(1, labels.view(-1, 1)).squeeze(1)
    if not logits.isfinite().all() or not bool((given < logits.amax(1)).any()):
        return None

    def rises(temperature: float) -> bool:
        """Whether the loss, which is convex in 1 / temperature, rises with it here."""
        expected = ((logits / temperature).softmax(1) * logits).sum(1)
        return float((expected - given).mean()) > 0

    low, high = 1 / MOST, MOST
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if rises(middle) else (low, middle)
    return round(high, 4)


def keep_temperature(run: Run, model: LightningModule, data: MNISTDataModule) -> str | None:
    """Fits one for `best.ckpt` and `last.ckpt` each, as far as they have none; returns what kept it from being so.

    Nothing is fitted without validation images, nor for a module that has no `forward` from images to logits.
    """
    images, labels = data.images("val"), data.labels("val").long()
    if not len(labels) or type(model).forward is LightningModule.forward:
        return None
    files = [file for file in (run.last, run.best) if file.exists()]
    if len(files) == 2 and files[0].samefile(files[1]):
        files.pop()
    try:
        for file in files:
            checkpoint = read_weights(file)
            if FOUND in checkpoint:
                continue
            temperature = fitted(_logits(model, checkpoint["state_dict"], data, images), labels.cpu())
            if temperature is not None:
                also = run.best if len(files) == 1 and run.best.exists() else None
                write_checkpoint(plain(checkpoint | {FOUND: {"temperature": temperature}}), file, also=also)
    except Exception as error:  # what a module of the user's comes to; a disk that is full now
        return f"no temperature is kept in {run}: {first_line(error)[:200]}"
    return None


def _logits(model: LightningModule, state: dict[str, Tensor], data: MNISTDataModule, images: Tensor) -> Tensor:
    """What the module says of the images with other weights, float32 [n, classes]; its own stay in place."""
    if state.keys() != model.state_dict().keys():
        raise UserError(f"its weights are not those of this {type(model).__name__}")
    modes = {module: module.training for module in model.modules()}
    weights = {name: value.to(model.device) for name, value in state.items()}
    try:
        model.eval()
        with torch.inference_mode():
            rows = [
                torch.func.functional_call(model, weights, (data.normalized(part.to(model.device)),)).float().cpu()
                for part in images.split(AT_ONCE)
            ]
    finally:
        for module, mode in modes.items():
            module.training = mode
    return torch.cat(rows)
