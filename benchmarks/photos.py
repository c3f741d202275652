"""How pictures as people make them are read: drawn by program from the pen trajectories of writers.

python benchmarks/photos.py pens-test.txt.gz --count 40 --seed 11
python benchmarks/photos.py pens-train.txt.gz --write FOLDER --fonts FOLDER    # what the shipped weights learn from
"""

import argparse
import sys
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
from no_digit import GREEK, blank, fonts_in, letter, matplotlib_fonts, no_digits, scene, scribble, several
from pens import Strokes, clean, digit_pictures, read_pens, small

NO_DIGIT = 10  # the class of what is none


def write_with_mnist(
    pens: list[tuple[int, Strokes]], folder: Path, fonts: list[Path], drawn: int, nothing: int
) -> None:
    """MNIST in `folder`, and after its training images others, in their order: each of `pens` three times; `drawn`
    digits of the program's own; `nothing` images that are no digits, with a class of their own (see pretrained.py).
    """
    rng, data = np.random.default_rng(5), MNISTDataModule(source="mnist")
    images, labels = [], []
    for number in np.tile(rng.permutation(len(pens)), 3):
        label, strokes = pens[number]
        seen = prepare((small if rng.random() < 0.25 else clean)(strokes, rng))
        if seen.image is not None:
            images.append(seen.image)
            labels.append(label)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pens", type=Path)
    parser.add_argument("--count", type=int, default=40, help="Pictures of each kind.")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--write", type=Path, help="A folder for MNIST with these drawings among its training images.")
    parser.add_argument("--fonts", type=Path, help="With --write: a folder of fonts, whose letters are no digits.")
    parser.add_argument("--drawn", type=int, default=6000, help="With --write: digits of the program's own forms.")
    parser.add_argument("--nothing", type=int, default=15_000, help="With --write: images that are no digits.")
    parser.add_argument("--ckpt_path", help="A checkpoint or run in the place of the shipped weights.")
    asked = parser.parse_args()
    if asked.write:
        fonts = fonts_in(asked.fonts) if asked.fonts else matplotlib_fonts()
        return write_with_mnist(read_pens(asked.pens), asked.write, fonts, asked.drawn, asked.nothing)
    pens, predictor, rng = read_pens(asked.pens), Predictor(asked.ckpt_path), np.random.default_rng([asked.seed, 99])
    tally: dict[str, list[int]] = {}  # of a kind: pictures, those read right, those refused or unsure
    pictures = [(kind, str(label), picture) for kind, label, picture in digit_pictures(pens, asked.count, asked.seed)]
    fonts = matplotlib_fonts()  # none of which is among those that the shipped weights have seen
    without = {
        "letter": partial(letter, fonts=fonts),
        "greek letter": partial(letter, fonts=fonts, letters=GREEK),
        "scribble": scribble,
        "blank": blank,
        "scene": scene,
    }
    for kind, draw in without.items():
        pictures += [(kind, "", draw(rng)) for _ in range(asked.count)]
    pictures += [("several", *several(pens, rng)) for _ in range(asked.count)]
    for kind, label, picture in pictures:
        seen, counts = prepare(picture), tally.setdefault(kind, [0, 0, 0])
        rows = predictor.logits(torch.stack(seen.parts)) if seen.parts else torch.zeros(0, 10)
        counts[0] += 1
        counts[1] += label != "" and "".join(map(str, rows.argmax(1).tolist())) == label
        counts[2] += not len(rows) or bool(predictor.unsure(rows).any())
    for kind, (count, right, refused) in tally.items():
        print(f"{kind:14} {count:4}  right {right / count:6.1%}  refused or unsure {refused / count:6.1%}")


if __name__ == "__main__":
    main()
