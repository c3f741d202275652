"""Every recipe of configs/: its network, layer by layer, and its training, as its article has them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mnist_lightning.models import CNN, DigitClassifier
from mnist_lightning.settings import parsed
from mnist_lightning.words import merged, with_files

CONFIGS = Path(__file__).parents[2] / "configs"

ADAM = {
    "optimizer": "Adam",
    "lr": 1e-3,
    "loss": "cross_entropy",
    "scheduler": None,
}
SGD = ADAM | {"optimizer": "SGD"}
SIMPLE = {"batch_size": 64, "normalize": "none", "max_epochs": 5, "train_size": None}
FIDLE = {"batch_size": 512, "normalize": "none", "max_epochs": 32, "train_size": None}

# network, parameters, optimizer and loss, data and epochs
ARTICLES: dict[str, tuple[str, int, dict[str, Any], dict[str, Any]]] = {
    "mccaffrey_cnn": (
        "conv 1 32 k5, ReLU, pool 2, dropout 0.25, conv 32 64 k5, ReLU, pool 2, flatten, "
        "fc 1024 512, ReLU, dropout 0.5, fc 512 256, ReLU, fc 256 10",
        832 + 51_264 + 524_800 + 131_328 + 2_570,
        SGD | {"lr": 0.005},
        {"batch_size": 10, "normalize": "none", "max_epochs": 50, "train_size": 1000},
    ),
    "nextjournal_cnn": (
        "conv 1 10 k5, pool 2, ReLU, conv 10 20 k5, dropout2d 0.5, pool 2, ReLU, flatten, "
        "fc 320 50, ReLU, dropout 0.5, fc 50 10",
        260 + 5_020 + 16_050 + 510,
        SGD | {"lr": 0.01, "optimizer_args": {"momentum": 0.5}},
        {"batch_size": 64, "normalize": (0.1307, 0.3081), "max_epochs": 8, "train_size": None},
    ),
    "simple_mlp": (
        "flatten, fc 784 256, ReLU, fc 256 128, ReLU, fc 128 10",
        200_960 + 32_896 + 1_290,
        ADAM,
        SIMPLE,
    ),
    "simple_cnn": (
        "conv 1 32 k3 p1, ReLU, pool 2, conv 32 64 k3 p1, ReLU, pool 2, flatten, fc 3136 128, ReLU, fc 128 10",
        320 + 18_496 + 401_536 + 1_290,
        ADAM,
        SIMPLE,
    ),
    "fidle_dnn": (
        "flatten, fc 784 100, ReLU, fc 100 100, ReLU, fc 100 10",
        78_500 + 10_100 + 1_010,
        ADAM,
        FIDLE,
    ),
    "fidle_cnn": (
        "conv 1 6 k3 p1, ReLU, pool 2, flatten, fc 1176 64, ReLU, fc 64 10",
        60 + 75_328 + 650,
        ADAM,
        FIDLE,
    ),
    "fidle_cnn2": (
        "conv 1 6 k3 p1, ReLU, pool 2, conv 6 6 k3 p1, ReLU, pool 2, conv 6 6 k3 p1, ReLU, flatten, "
        "fc 294 64, ReLU, fc 64 10",
        60 + 330 + 330 + 18_880 + 650,
        ADAM,
        FIDLE,
    ),
    "nielsen_mlp": (
        "flatten, fc 784 100, Sigmoid, fc 100 10, Sigmoid",
        78_500 + 1_010,
        SGD | {"lr": 3.0, "loss": "mse"},
        {"batch_size": 10, "normalize": "none", "max_epochs": 30, "train_size": None},
    ),
}


def layer(module: nn.Module) -> str:
    match module:
        case nn.Conv2d():
            assert module.bias is not None
            assert (module.stride, module.dilation, module.groups) == ((1, 1), (1, 1), 1)
            padding = f" p{module.padding[0]}" if module.padding[0] else ""
            return f"conv {module.in_channels} {module.out_channels} k{module.kernel_size[0]}{padding}"
        case nn.Linear():
            assert module.bias is not None
            return f"fc {module.in_features} {module.out_features}"
        case nn.MaxPool2d():
            assert (module.stride, module.padding) == (module.kernel_size, 0)
            return f"pool {module.kernel_size}"
        case nn.Dropout2d():
            return f"dropout2d {module.p}"
        case nn.Dropout():
            return f"dropout {module.p}"
        case nn.Flatten():
            return "flatten"
    return type(module).__name__


def settings(name: str) -> Any:
    return parsed("fit", merged(with_files([("config", str(CONFIGS / f"{name}.yaml"))])))


def built(config: Any) -> DigitClassifier:
    return config.model.make()


def test_every_article_has_one_recipe():
    assert {file.stem for file in CONFIGS.glob("*")} >= {*ARTICLES, "cnn"}


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*")), ids=lambda file: file.stem)
def test_every_recipe_parses_builds_and_is_explicit(file: Path):
    config = settings(file.stem)
    assert file.suffix == ".yaml"
    assert config.data.settings["source"] == "mnist"  # never synthetic digits in silence
    model = built(config)
    assert model.eval()(model.example_input_array).shape == (1, 10)


@pytest.mark.parametrize("name", ARTICLES)
def test_the_network_is_the_articles(name: str):
    network, parameters, _, _ = ARTICLES[name]
    model = built(settings(name))
    assert ", ".join(map(layer, model.net)) == network
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("name", ARTICLES)
def test_the_training_is_the_articles(name: str):
    _, _, training, data = ARTICLES[name]
    config = settings(name)
    model = built(config)
    assert {key: model.hparams[key] for key in training} == training
    assert {key: config.data.settings[key] for key in data if key != "max_epochs"} == {
        key: value for key, value in data.items() if key != "max_epochs"
    }
    assert config.trainer.settings["max_epochs"] == data["max_epochs"]
    assert config.data.settings["val_size"] == 0  # the articles train on all images, and report the last epoch
    assert config.trainer.settings["gradient_clip_val"] is None
    if training is ADAM:
        assert not model.hparams["optimizer_args"]


def test_nextjournal_evaluates_before_training_and_logs_every_ten_batches():
    config = settings("nextjournal_cnn")
    assert config.trainer.settings["num_sanity_val_steps"] == -1
    assert config.trainer.settings["log_every_n_steps"] == 10
    assert config.data.settings["test_each_epoch"] is True


def test_initial_weights_are_torchs_own():
    torch.manual_seed(5)
    ours = built(settings("simple_cnn"))
    torch.manual_seed(5)
    plain = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1))
    plain.extend([nn.Linear(3136, 128), nn.Linear(128, 10)])
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


NAMES = sorted(file.stem for file in CONFIGS.glob("*"))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "best_gpu")) for n in NAMES])
def test_every_recipe_trains(name: str, cli, tiny_mnist: Path):
    words = ["--data.root", tiny_mnist, "--data.train_size", 200, "--trainer.max_steps", 2]
    if name not in ARTICLES:
        words += ["--data.val_size", 50]
    if "drawn:" in (CONFIGS / f"{name}.yaml").read_text():
        words += ["--data.drawn", 20]  # drawing thousands takes longer than all the rest
    result = cli("fit", "--config", CONFIGS / f"{name}.yaml", *words)
    assert result.err == ""
    assert result.status == 0
    assert (Path("checkpoints") / name / "test.json").exists()


def test_the_order_of_a_stage_can_hold_normalisation():
    model = CNN(channels=[4], order=["conv", "norm", "pool", "activation"], pool=3, hidden=[])
    assert ", ".join(map(layer, model.net)) == "conv 1 4 k3, BatchNorm2d, pool 3, ReLU, flatten, fc 256 10"
