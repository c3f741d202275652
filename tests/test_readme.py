"""README.md: what can be pasted is run as a newcomer would, on few images; what it names is there. No downloads."""

import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from samples import write_mnist

from mnist_lightning.cli import main
from mnist_lightning.data.synthetic import synthetic_digits

PROJECT = Path(__file__).parents[1]
TEXT = (PROJECT / "README.md").read_text()
PROSE = re.sub(r"^```.*?^```", "", TEXT, flags=re.M | re.S)
OTHERS = ("pip", "tensorboard", "pytest", "serve")  # not run: they install, serve, or would run this


class Block(NamedTuple):
    """A fenced block, and its name: the heading that it stands under, and the line."""

    name: str
    text: str

    def commands(self) -> list[list[str]]:
        lines = self.text.replace("\\\n", "").replace(" && ", "\n").splitlines()
        return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def blocks(language: str) -> list[Block]:
    found, heading = [], ""
    for match in re.finditer(r"^#+ (.*?)$|^```(\w*)\n(.*?)^```", TEXT, re.M | re.S):
        heading = match[1] or heading
        if match[1] is None and match[2] == language:
            line = TEXT.count("\n", 0, match.start()) + 2
            found.append(Block(f"{heading}, line {line}", match[3]))
    return found


def cases(language: str) -> list[Any]:
    """Those that take long are marked so."""
    long = [pytest.mark.slow], ("torchrun", "WandbLogger", "MLFlowLogger", "--seeds", " search ")
    marks = [long[0] * any(word in block.text for word in long[1]) for block in blocks(language)]
    return [pytest.param(block, marks=mark, id=block.name) for block, mark in zip(blocks(language), marks, strict=True)]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many as plain `fit` and the recipes need."""
    return write_mnist(tmp_path_factory.mktemp("digits"), synthetic_digits(6100, 0), synthetic_digits(100, 1))


@pytest.fixture(scope="module")
def used(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the first command of README and one for another recipe were called; what the first printed."""
    folder, out = tmp_path_factory.mktemp("used"), StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in (("MNIST_ROOT", str(digits)), ("PL_GLOBAL_SEED", "0"), ("PL_SEED_WORKERS", "0")):
            patch.setenv(name, value)
        with redirect_stdout(out):
            assert main(["fit", "--trainer.max_epochs", "2"]) == 0
        with redirect_stdout(StringIO()):
            assert main(["fit", "--config", "simple_mlp", "--trainer.max_epochs", "1"]) == 0
    write_digits_of_many_forms(folder)
    for block in blocks("python"):
        if name := re.match(r"# (\w+\.py)\n", block.text):
            (folder / name[1]).write_text(block.text)
    return folder, out.getvalue()


def write_digits_of_many_forms(folder: Path) -> None:
    """What README takes for a user's own, under its names."""
    images, labels = synthetic_digits(120, 2)
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        place = folder / "pictures" / ("test" if number % 6 == 0 else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(place / f"{number}.png")
    for name in ("drawings", "scans", "kaggle"):
        (folder / name).mkdir()
    for name in ("photo.jpg", "drawings/a.png", "scans/b.png"):
        Image.fromarray(255 - images[0].numpy()).resize((140, 140)).save(folder / name)
    rows = [[label, *image.flatten().tolist()] for image, label in zip(images, labels.tolist(), strict=True)]
    pixels = ",".join(f"pixel{number}" for number in range(784))
    for name, header, start in (("train", f"label,{pixels}", 0), ("test", pixels, 1)):
        lines = [",".join(map(str, row[start:])) for row in rows]
        (folder / "kaggle" / f"{name}.csv").write_text("\n".join([header, *lines]) + "\n")
    letters = (images.transpose(1, 2), labels + 1)  # EMNIST's lie mirrored, and count from 1
    written = write_mnist(folder / "emnist", letters, letters)
    for file in written.rglob("*ubyte*"):
        name = file.name.replace("t10k", "test")
        file.rename(folder / "emnist" / f"emnist-letters-{name}")


@pytest.fixture
def newcomer(cli, used: tuple[Path, str], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`newcomer(words)` calls a command in a copy of that folder."""
    shutil.copytree(used[0], tmp_path, dirs_exist_ok=True)
    for name, value in (("MNIST_ROOT", str(digits)), ("WANDB_MODE", "offline"), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)

    def call(words: list[str]) -> None:
        words = [str(digits) if word == "FOLDER" else word for word in words]
        if "fit" in words and not {"--trainer.max_epochs", "--ckpt_path"} & set(words):
            words += ["--trainer.max_epochs", "1"]
        if words[:3] == ["python", "-m", "mnist_lightning"] and not {"--trainer.devices", "serve"} & set(words):
            result = cli(*words[3:])
            assert result.status == 0, result.err
            said = re.sub(r"mnist_lightning: with .*", "", result.err)  # the weights that read
            assert "mnist_lightning:" not in said  # W&B and MLflow use that stream, too
        elif words[0] == "echo":
            Path(words[-1]).write_text(words[1])
        elif not set(OTHERS) & set(words):
            run_processes(words)

    yield call
    sys.modules.pop("mine", None)


def run_processes(words: list[str]) -> None:
    """Of several processes; on two nodes, which are both this machine."""
    on_gpus = "--trainer.devices" in words and "cpu" not in words
    if on_gpus and torch.cuda.device_count() < 2:
        return
    own = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}
    with socket.create_server(("localhost", 0)) as server:
        free = server.getsockname()[1]
    words = own[words[0]] + [word.replace("HOST:29400", f"localhost:{free}") for word in words[1:]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    nodes = [subprocess.Popen(words, **pipes) for _ in range(2 if "--nnodes" in words else 1)]
    for node in nodes:
        try:
            out = node.communicate(timeout=300)[0]
        finally:
            node.kill()
        assert node.returncode == 0, out


@pytest.mark.filterwarnings("default:::mlflow", "default:::wandb")
@pytest.mark.parametrize("block", cases("sh"))
def test_commands(block: Block, newcomer):
    for extra in ("wandb", "mlflow"):
        if extra in block.text.lower() and find_spec(extra) is None:
            pytest.skip(f"{extra} is not installed: pip install -e '.[{extra}]'")
    for words in block.commands():
        newcomer(words)


@pytest.mark.filterwarnings("default")  # a plain Trainer has much to say
@pytest.mark.parametrize("block", cases("python"))
def test_python(block: Block, newcomer):
    exec(compile(block.text, "README.md", "exec"), {"__name__": "readme"})


def test_what_the_first_command_prints(used: tuple[Path, str]):
    def shapes(text: str) -> list[str]:
        return [re.sub(r"[\d.,]+", "0", re.sub(r"[─\s]+", " ", line)).strip() for line in text.splitlines()]

    printed = shapes(re.sub(r"^Digits of .*?:", "Digits of data:", used[1], flags=re.M))
    assert [line for line in shapes(blocks("text")[0].text) if line not in printed] == ["…", "…"]


def test_the_test_command_is_what_is_run_before_anything_lands():
    assert 'pip install -e ".[test]" && python -m pytest\n' in (PROJECT / ".ci" / "run").read_text()
    assert 'pip install -e ".[test]" && python -m pytest\n' in TEXT


def test_what_is_installed():
    with (PROJECT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    named = {extra for found in re.findall(r"pip install -e \"\.\[(.*?)\]\"", TEXT) for extra in found.split(",")}
    assert "test" in named
    assert named | {"wandb", "mlflow", "bench"} == set(extras)


def test_flags_in_the_prose(cli):
    help_ = "".join(cli(command, "--help").out for command in ("fit", "convert", "search"))
    flags = set(re.findall(r"`(--[a-z_]+(?:\.[a-z_]+)?)(?=[ `])", PROSE))
    assert {"--data.root", "--ckpt_path"} <= flags
    assert [flag for flag in flags if not re.search(rf"{flag}\b", help_)] == []


def test_places_in_the_prose():
    places = set(re.findall(r"\]\((?!http)(.*?)\)", PROSE)) | set(re.findall(r"\b(?:python )(\w+/\w+\.py)", PROSE))
    table = re.findall(r"^\| (`.*?`) \|", PROSE.partition("## Where things are")[2], re.M)
    places |= {place for cell in table for place in re.findall(r"`(.*?)`", cell)}
    assert "mnist_lightning/training/" in places
    inside = {place: (PROJECT / "mnist_lightning" / place) for place in places}
    assert [place for place in places if not (PROJECT / place).exists() and not inside[place].exists()] == []


def test_all_recipes_are_in_the_table():
    rows = re.findall(r"^\| (\w+) \|", PROSE.partition("## Recipes")[2].partition("## ")[0], re.M)
    assert sorted(["fast", "pretrained", *rows]) == sorted(
        ["recipe", *(file.stem for file in PROJECT.glob("configs/*.yaml"))]
    )


def test_it_is_short():
    assert TEXT.count("\n") < 250
