"""Makes the weights that come with the project out of checkpoints, and the page that says what they are.

    python -m mnist_lightning fit --run shipped
    python benchmarks/pretrained.py checkpoints/shipped/best.ckpt --made_by "python -m mnist_lightning fit"

The temperature and the limits below which an answer counts as unsure come from training images that were held out;
the test images are only counted. --limit NAME=VALUE sets one that was found in another way.
"""

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mnist_lightning import MNISTDataModule, Predictor, __version__
from mnist_lightning.files import write_whole
from mnist_lightning.predictor import pretrained
from mnist_lightning.training.checkpoint_content import FOUND
from mnist_lightning.training.checkpoints import read_weights, write_checkpoint

NO_DIGIT = 10  # the class of what is none, as photos.py writes it
REFUSED = 0.01  # the part of the held-out images that either limit may refuse
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

The energy is the log-sum-exp of the logits, which are divided by the temperature before.
{note}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="One, or several of a network whose mean is taken.")
    parser.add_argument(
        "--made_by",
        default="`python -m mnist_lightning fit`, then `python benchmarks/pretrained.py CHECKPOINT`",
        help="The command that trained it.",
    )
    parser.add_argument("--source", default="MNIST's training images", help="What it was trained on.")
    parser.add_argument("--note", default="", help="A last paragraph for the page.")
    parser.add_argument("--limit", action="append", default=[], help="temperature, least_probability or least_energy")
    asked = parser.parse_args()
    checkpoint = without_none(mean_of([read_weights(file) for file in asked.checkpoints]))
    write_checkpoint(checkpoint, pretrained())
    predictor, data = Predictor(), MNISTDataModule(source="mnist")
    data.setup("fit")
    held_out = data.read("train").images[data._subsets["val"]], data.labels("val").long()
    found = limits(predictor, *held_out) | {k: float(v) for k, v in (limit.split("=") for limit in asked.limit)}
    test = data.read("test")
    right = int((predictor(test.images).argmax(1) == test.labels).sum())
    share = right / len(test.labels)
    network = f"{type(predictor.model).__name__}, {sum(p.numel() for p in predictor.model.parameters()):,} parameters"
    mean, std = predictor.normalize
    content = {
        "state_dict": checkpoint["state_dict"],
        "hyper_parameters": checkpoint["hyper_parameters"],
        "MNISTDataModule": {"source": "mnist", "mean": mean, "std": std, "classes": predictor.classes},
        FOUND: found | {"origin": f"{network.split(',')[0]}, {share:.2%} of MNIST's test images"},
    }
    write_checkpoint(content, pretrained())
    page = PAGE.format(
        size=pretrained().stat().st_size / 1000, accuracy=share, wrong=len(test.labels) - right, network=network,
        source=asked.source, made_by=asked.made_by, ours=__version__, torch=version("torch"),
        note=asked.note and f"\n{asked.note}\n", **found,
    )  # fmt: skip
    write_whole(page, pretrained().with_name("README.md"))
    print(page)


def mean_of(checkpoints: list[dict[str, Any]]) -> dict[str, Any]:
    """What the first checkpoint says, with the mean of all weights; without limits, which were another network's."""
    states = [checkpoint["state_dict"] for checkpoint in checkpoints]
    mean = {name: sum(state[name] for state in states) / len(states) for name in states[0]}
    known = {name: checkpoints[0][name] for name in ("hyper_parameters", "MNISTDataModule")}
    return known | {"state_dict": {name: value.to(states[0][name].dtype) for name, value in mean.items()}}


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


def limits(predictor: Predictor, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Temperature of the least cross entropy, then what all but few of the rightly read images keep above."""
    logits = predictor.logits(images) * predictor.temperature
    losses = {t: float(torch.nn.functional.cross_entropy(logits / t, labels)) for t in torch.linspace(0.5, 3, 251)}
    temperature = float(min(losses, key=lambda t: losses[t]))
    kept = (logits / temperature)[logits.argmax(1) == labels]
    probability = float(kept.softmax(1).amax(1).quantile(REFUSED))
    energy = float(kept.logsumexp(1).quantile(REFUSED))
    return {"temperature": temperature, "least_probability": min(probability, 0.5), "least_energy": energy}


if __name__ == "__main__":
    main()
