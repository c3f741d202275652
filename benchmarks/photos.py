"""How pictures as people make them are read: drawn by program from the pen trajectories of writers.

python benchmarks/photos.py pens-test.txt.gz --count 60 --seed 12
python benchmarks/photos.py                                              # digits that are cut out closely, or are small
python benchmarks/photos.py pens-train.txt.gz --write FOLDER --fonts FOLDER   # what the shipped weights learn from
"""

import argparse
import string
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mnist_lightning import MNISTDataModule, Predictor
from mnist_lightning.data.digits import Digits
from mnist_lightning.data.module import DRAWN_SEED
from mnist_lightning.data.photo import prepare
from mnist_lightning.data.synthetic import synthetic_digits
from mnist_lightning.data.writing import write

sys.path.insert(0, str(Path(__file__).parent))
from no_digit import GREEK, bent, blank, draws, fonts_in, letter, matplotlib_fonts, no_digits, scene, scribble, several
from pens import Strokes, clean, digit_pictures, read_pens, small

NO_DIGIT = 10  # the class of what is none


def write_with_mnist(
    pens: list[tuple[int, Strokes]], folder: Path, fonts: list[Path], printed: int, drawn: int, nothing: int
) -> None:
    """MNIST in `folder`, and after its training images others, in their order: each of `pens` three times; `printed`
    digits of fonts; `drawn` of the program's own; `nothing` images that are no digits, with a class of their own (see
    pretrained.py). Digits of fonts are there because letters are: else what is printed would be none.
    """
    rng, data = np.random.default_rng(5), MNISTDataModule(source="mnist")
    images, labels = [], []
    for number in np.tile(rng.permutation(len(pens)), 3):
        label, strokes = pens[number]
        seen = prepare((small if rng.random() < 0.25 else clean)(strokes, rng))
        if seen.image is not None:
            images.append(seen.image)
            labels.append(label)
    with_digits = [font for font in fonts if draws(font, string.digits)]
    for number in range(printed):
        seen = prepare(bent(letter(rng, with_digits, str(number % 10), 150), rng))
        if seen.image is not None:
            images.append(seen.image)
            labels.append(number % 10)
    for image, digit in zip(*synthetic_digits(drawn, seed=DRAWN_SEED), strict=True):
        images.append(image)
        labels.append(int(digit))
    images += no_digits(fonts, pens, sample_photos(), nothing, rng)
    labels += [NO_DIGIT] * (len(images) - len(labels))
    train = data.read("train")
    assert train.labels is not None
    labels_of_all = torch.cat([train.labels, torch.tensor(labels, dtype=torch.uint8)])
    names = (*map(str, range(10)), "x")
    write(Digits(torch.cat([train.images, torch.stack(images)]), labels_of_all, names), "train", folder, "idx")
    write(data.read("test"), "test", folder, "idx")


def sample_photos() -> list[Image.Image]:
    """Three photos that come with scikit-learn and matplotlib: a temple, a flower, a portrait."""
    from matplotlib.cbook import get_sample_data
    from sklearn.datasets import load_sample_images

    with get_sample_data("grace_hopper.jpg") as file:
        portrait = Image.open(file).convert("RGB")
    return [*map(Image.fromarray, load_sample_images().images), portrait]


def made(pens: list[tuple[int, Strokes]], count: int, seed: int) -> list[tuple[str, str, Image.Image]]:
    """Kind, what is to be read, and picture: `count` of each kind."""
    rng, fonts = np.random.default_rng([seed, 99]), matplotlib_fonts()  # which the shipped weights have not seen
    pictures = [(kind, str(label), picture) for kind, label, picture in digit_pictures(pens, count, seed)]
    pictures += [("printed digit", str(at % 10), letter(rng, fonts, str(at % 10))) for at in range(count)]
    without = {
        "letter": partial(letter, fonts=fonts),
        "greek letter": partial(letter, fonts=fonts, letters=GREEK),
        "scribble": scribble,
        "blank": blank,
        "scene": scene,
    }
    for kind, draw in without.items():
        pictures += [(kind, "", draw(rng)) for _ in range(count)]
    return pictures + [("several", *several(pens, rng)) for _ in range(count)]


def cut_out() -> Iterator[tuple[str, str, Image.Image]]:
    """Kind, digit and picture: of 8 x 8 pixels, and without room around them, from MNIST's last training images."""
    from sklearn.datasets import load_digits

    eight = load_digits()
    for image, label in zip(eight.images[::2], eight.target[::2], strict=True):
        yield "8x8", str(label), Image.fromarray((255 - image * (255 / 16)).astype(np.uint8))
    train = MNISTDataModule(source="mnist").read("train")
    for image, label in zip(train.images[55_000:55_300].numpy(), train.labels[55_000:55_300].tolist(), strict=True):
        rows, columns = (np.flatnonzero((image > 40).any(axis)) for axis in (1, 0))
        digit = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        for side in (16, 48, 300):
            size = [max(1, round(extent * side / max(digit.shape))) for extent in digit.shape[::-1]]
            for margin in (0, 2):
                cut = np.pad(Image.fromarray(digit).resize(size, Image.Resampling.BICUBIC), margin)
                yield f"{side} pixels, margin {margin}, dark", str(label), Image.fromarray(255 - cut)
                yield f"{side} pixels, margin {margin}, light", str(label), Image.fromarray(cut)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pens", type=Path, nargs="?", help="Trajectories; without them: digits that are cut out.")
    parser.add_argument("--count", type=int, default=40, help="Pictures of each kind.")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--write", type=Path, help="A folder for MNIST with these drawings among its training images.")
    parser.add_argument("--fonts", type=Path, help="With --write: a folder of fonts, of letters that are no digits.")
    parser.add_argument("--printed", type=int, default=6000, help="With --write: digits of these fonts.")
    parser.add_argument("--drawn", type=int, default=6000, help="With --write: digits of the program's own forms.")
    parser.add_argument("--nothing", type=int, default=15_000, help="With --write: images that are no digits.")
    parser.add_argument("--ckpt_path", help="A checkpoint or run in the place of the shipped weights.")
    asked = parser.parse_args()
    if asked.write and not asked.pens:
        parser.error("--write takes trajectories")
    if asked.write:
        fonts = fonts_in(asked.fonts) if asked.fonts else matplotlib_fonts()
        return write_with_mnist(read_pens(asked.pens), asked.write, fonts, asked.printed, asked.drawn, asked.nothing)
    predictor = Predictor(asked.ckpt_path)
    pictures = made(read_pens(asked.pens), asked.count, asked.seed) if asked.pens else [*cut_out()]
    tally: dict[str, list[int]] = {}  # of a kind: pictures, those read right, those refused or unsure
    for kind, label, picture in pictures:
        seen, counts = prepare(picture), tally.setdefault(kind, [0, 0, 0])
        rows = predictor.logits(torch.stack(seen.parts)) if seen.parts else torch.zeros(0, 10)
        counts[0] += 1
        counts[1] += label != "" and "".join(map(str, rows.argmax(1).tolist())) == label
        counts[2] += not len(rows) or bool(predictor.unsure(rows).any())
    for kind, (count, right, refused) in tally.items():
        print(f"{kind:24} {count:4}  right {right / count:6.1%}  refused or unsure {refused / count:6.1%}")


if __name__ == "__main__":
    main()
