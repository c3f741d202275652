"""Makes the weights that come with the project out of a checkpoint, and the page that says what they are.

    python benchmarks/photos.py pens-train.txt.gz --write both --fonts FONTS
    python -m mnist_lightning fit --config pretrained --data.root both --run shipped
    python benchmarks/pretrained.py checkpoints/shipped/best.ckpt --least_energy -0.7

The temperature is the checkpoint's own, from images that its training held out; the test images are only counted.
"""

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mnist_lightning import MNISTDataModule, Predictor, __version__
from mnist_lightning.files import write_whole
from mnist_lightning.predictor import LEAST_PROBABILITY, pretrained
from mnist_lightning.training.checkpoint_content import FOUND
from mnist_lightning.training.checkpoints import read_weights, write_checkpoint

NO_DIGIT = 10  # the class of what is none, as photos.py writes it
PAGE = """# The weights that come with the project

`digits.ckpt` ({size:.0f} KB, tensors and plain values only) is what `predict`, `serve`, `export` and `report` use where
there is no run yet, and with `--ckpt_path pretrained` always; in Python `Predictor()`.

| | |
| --- | --- |
| accuracy | {accuracy:.2%} of MNIST's 10,000 test images ({wrong} wrong) |
| network | {network} |
| trained on | {source} |
| made by | {made_by} |
| versions | mnist_lightning {ours}, torch {torch} |
| unsure below | a probability of {least_probability:.3f}, or an energy of {least_energy:.3f} |
| temperature | {temperature:.3f} |

The energy is the log-sum-exp of the logits, which are divided by the temperature before: here
the log-odds of a digit against none, as training had images without one in a class of their own.
{note}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--least_energy", type=float, required=True, help="Of an answer that is not unsure.")
    parser.add_argument("--made_by", default="", help="The commands that trained it.")
    parser.add_argument("--source", default="MNIST's training images", help="What it was trained on.")
    parser.add_argument("--note", default="", help="A last paragraph for the page.")
    asked = parser.parse_args()
    checkpoint = without_none(read_weights(asked.checkpoint))
    trained = checkpoint["MNISTDataModule"]
    content = {
        "state_dict": checkpoint["state_dict"],
        "hyper_parameters": checkpoint["hyper_parameters"],
        "MNISTDataModule": {"source": "mnist", "mean": trained["mean"], "std": trained["std"], "classes": NO_DIGIT},
    }
    write_checkpoint(content, pretrained())
    predictor, data = Predictor(), MNISTDataModule(source="mnist")
    found = {
        "temperature": checkpoint[FOUND]["temperature"],
        "least_probability": LEAST_PROBABILITY,
        "least_energy": asked.least_energy,
    }
    test = data.read("test")
    right = int((predictor(test.images).argmax(1) == test.labels).sum())
    share = right / len(test.labels)
    network = f"{type(predictor.model).__name__}, {sum(p.numel() for p in predictor.model.parameters()):,} parameters"
    content[FOUND] = found | {"origin": f"{network.split(',')[0]}, {share:.2%} of MNIST's test images"}
    write_checkpoint(content, pretrained())
    page = PAGE.format(
        size=pretrained().stat().st_size / 1000, accuracy=share, wrong=len(test.labels) - right, network=network,
        source=asked.source, made_by=asked.made_by, ours=__version__, torch=version("torch"),
        note=asked.note and f"\n{asked.note}\n", **found,
    )  # fmt: skip
    write_whole(page, pretrained().with_name("README.md"))
    print(page)


def without_none(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A network of eleven classes, of which the last is no digit, as one of ten: its logits less the eleventh.

    The softmax over the ten stays what it was, and their log-sum-exp becomes the log-odds of a digit.
    """
    state, settings = dict(checkpoint["state_dict"]), dict(checkpoint["hyper_parameters"])
    if settings.get("classes") != NO_DIGIT + 1:
        return checkpoint
    for name in list(state)[-2:]:  # weight [11, n] and bias [11] of the last layer
        state[name] = state[name][:NO_DIGIT] - state[name][NO_DIGIT]
    settings |= {"classes": NO_DIGIT, "class_names": None}
    return checkpoint | {"state_dict": state, "hyper_parameters": settings}


if __name__ == "__main__":
    main()
