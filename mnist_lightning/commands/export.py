"""`export`: a trained network as ONNX, as a torch.export program, or as one page that reads what is drawn on it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table
from torch import Tensor

from mnist_lightning.console import console, say
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.data.synthetic import synthetic_digits
from mnist_lightning.errors import BadSetting, UserError
from mnist_lightning.exporting import files as exported
from mnist_lightning.files import is_device, write_whole
from mnist_lightning.predictor import Predictor, chosen
from mnist_lightning.processes import Signals
from mnist_lightning.words import few_flags

USAGE = """usage: python -m mnist_lightning export --output FILE [--run NAME | --ckpt_path FILE] [--int8]

Writes a network for use elsewhere, and checks the file on 1,000 images. It takes grey images as they lie in MNIST's
files, uint8 [N, 28, 28], bright on black, and gives probabilities and logits [N, classes].

  --output FILE     .onnx: for onnxruntime and others; .pt2: for torch.export.load; .html: one page that reads what is
                    drawn on it, without a server
  --int8            ONNX with weights and activations in 8 bits; tells what that costs
  --run NAME        the run whose best checkpoint is meant; without, the newest, else the shipped weights
  --ckpt_path FILE  a checkpoint; last or best of the run; pretrained: the shipped weights
  --data.root FOLDER  where the test images lie that the file is checked on; without, $MNIST_ROOT, else drawn digits
  --trainer.default_root_dir FOLDER   where the runs are (checkpoints)
"""
ROOT = "trainer.default_root_dir"
FLAGS = ("output", "int8", "run", "ckpt_path", "data.root", ROOT, "debug")
CHECKED = 1000  # images that each file is checked on
CLOSE = {".onnx": 1e-4, ".pt2": 1e-4, ".html": 1e-3}  # how far a probability may be from the network's


class Check(NamedTuple):
    """What a file makes of images, beside what the network does."""

    agree: int  # images of the same class
    images: int
    difference: float  # the largest of a probability
    microseconds: float  # an image, many at once
    networks_microseconds: float


def command(name: str, words: list[str], signals: Signals) -> None:
    """Writes the network of a run, by default the newest, else the shipped weights, and checks what it wrote."""
    asked = few_flags(words, FLAGS, USAGE)
    if asked is None:
        return
    if "output" not in asked:
        raise BadSetting("--output is missing: a file's name that ends in .onnx, .pt2 or .html")
    output, int8 = Path(asked["output"]), "int8" in asked
    form = output.suffix.lower()
    if form not in CLOSE:
        raise BadSetting(f"--output is {output}; it ends in .onnx, .pt2 or .html, which says what is written")
    if int8 and form != ".onnx":
        raise BadSetting("--int8 makes a smaller ONNX file: let --output end in .onnx")
    if output.is_dir() or is_device(output):
        raise UserError(f"{output} is a folder, a pipe or a device: give a file's name")
    if not output.parent.is_dir():
        raise UserError(f"{output} cannot be written: there is no folder {output.parent}: make it first")
    predictor = chosen(Path(asked.get(ROOT, "checkpoints")), asked.get("run"), asked.get("ckpt_path"))
    images, labels, source = known_images(MNISTDataModule(asked.get("data.root")))
    content, reads = exported.FORMS[form](predictor)
    exact = None
    if int8:
        exact, (content, reads) = reads, exported.quantized(content, images[-CHECKED:])
    write_whole(content, output)
    if reads is None:
        say(f"{output}: {_size(len(content))}. Not checked: no Chromium, Chrome or Edge was found to open it with.")
        return
    check = checked(predictor, reads, images[:CHECKED])
    _tell(output, len(content), check, source)
    if exact:
        right = [float((one(images)[0].argmax(1) == labels).double().mean()) for one in (exact, reads)]
        say(
            f"8-bit weights and activations: {right[1]:.2%} of {len(images):,} {source} images right, {right[0]:.2%} "
            "in float32."
        )
    elif check.agree < check.images or check.difference > CLOSE[form]:
        raise UserError(f"{output} answers otherwise than the network (table above): do not use it; please report this")


def known_images(data: MNISTDataModule) -> tuple[Tensor, Tensor, str]:
    """Test images and their labels, from where --data.root says; else digits that the program draws."""
    try:
        digits = data.read("test")
        return digits.images, digits.labels, "test"
    except UserError:
        return *synthetic_digits(2 * CHECKED, seed=1), "synthetic"


def checked(predictor: Predictor, reads: exported.Reads, images: Tensor) -> Check:
    """Reads the images with both, and compares."""
    (own, own_seconds), (other, seconds) = exported.timed(predictor)(images), reads(images)
    agree = int((own.argmax(1) == other.argmax(1)).sum())
    times = (each / len(images) * 1e6 for each in (seconds, own_seconds))
    return Check(agree, len(images), float((own - other).abs().max()), *times)


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _tell(output: Path, size: int, check: Check, source: str) -> None:
    table = Table(title="Exported", show_header=False, min_width=50)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("file", escape(str(output)))
    table.add_row("size", _size(size))
    table.add_row("checked on", f"{check.images:,} {source} images")
    table.add_row("same answer", f"{check.agree:,} of {check.images:,}")
    table.add_row("largest difference", f"{check.difference:.1e} of a probability")
    table.add_row("an image", f"{check.microseconds:.1f} µs (the network here: {check.networks_microseconds:.1f} µs)")
    console.print(table)
