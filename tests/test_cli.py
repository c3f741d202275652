"""What every command has in common: help, exit statuses, one line for an error, a process left as it was."""

import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from outcome import RUNS, one_line

from mnist_lightning.cli import COMMANDS, main

PROJECT = Path(__file__).parents[1]
ALL = ", ".join(sorted(COMMANDS))


@pytest.mark.parametrize("command", ["fit", "validate", "test", "convert"])
def test_help_of_a_command(cli, command: str):
    result = cli(command, "--help")
    assert (result.status, result.err) == (0, "")
    assert f"usage: python -m mnist_lightning {command}" in result.out
    assert "--data.root" in result.out
    assert "Folder with digits in any form" in result.out


def test_help_shows_what_is_set(cli):
    assert "--model.lr LR" in cli("fit", "--help").out
    out = " ".join(cli("fit", "--config", "simple_mlp", "--model.lr", 0.125, "--help").out.split())
    assert "MLP takes:" in out
    assert "Learning rate. (type: float, default: 0.125)" in out


def test_help_without_a_command(cli):
    for words in ([], ["--help"], ["-h"]):
        result = cli(*words)
        assert (result.status, result.err) == (0, "")
        assert all(f"mnist_lightning {command} " in result.out for command in ("fit", "test", "validate", "convert"))


@pytest.mark.parametrize(("words", "frozen"), [("", True), ('["report", "nope"]', False)])
def test_the_program_alone_puts_its_imports_out_of_the_collectors_sight(words: str, frozen: bool):
    code = f"import gc, sys; from mnist_lightning.cli import main; main({words}); print(gc.get_freeze_count() > 1000)"
    done = subprocess.run([sys.executable, "-c", code, "report", "nope"], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout == f"{frozen}\n"


def test_version(cli):
    assert cli("--version").out == "0.1.0\n"


WORDS = [
    ("fti", "there is no command 'fti'; did you mean fit?"),
    ("--modle MLP", f"there is no command '--modle'; there are {ALL}"),
    ("fit --modle MLP", "there is no flag --modle; did you mean --model?"),
    ("fit stray", "there is a word too many: 'stray'; a setting is written --name value"),
    ("fit --data.batch_size 0", "--data.batch_size is 0; it must be at least 1"),
    ("fit --model.dropout 2", "--model CNN: dropout probability has to be between 0 and 1, but got 2.0"),
    ("fit --model MLP --model.optimizer Adamm", "--model.optimizer: there is no 'Adamm'; did you mean Adam?"),
    ("fit --model MLP --model.activation Relu", "--model.activation: there is no 'Relu'; did you mean ReLU?"),
    ("fit --model MLP --model.activation GLU", "--model.activation: GLU does not map [n, width] to [n, width]"),
    ("fit --trainer.accelerator abacus", "--trainer: "),
    ("fit --trainer.strategy ddp_fork --trainer.devices 2", "--trainer.strategy ddp_fork is for notebooks: use ddp"),
]


@pytest.mark.parametrize(("words", "told"), WORDS, ids=[words for words, _ in WORDS])
def test_wrong_words(cli, words: str, told: str):
    result = cli(*words.split())
    assert result.status == 2
    assert one_line(result).startswith(told)
    assert not RUNS.exists()


FAILS = [
    ("--data.source mnist --data.root {empty}", "put the four files into"),
    ("--data.root {truncated}", "truncated or damaged gzip file"),
    ("--data.source text --data.train_file no.txt --data.test_file no.txt", "no.txt cannot be read"),
    ("--data.source text --data.train_file {letter} --data.test_file {letter}", "line 2"),
    ("--trainer.max_epochs 0 --data.val_size 50 --data.root {tiny}", "there was no step to train"),
    ("--trainer.default_root_dir /proc/x --data.val_size 50 --data.root {tiny}", "no run folder can be made"),
]


@pytest.mark.parametrize(("words", "told"), FAILS, ids=[words for words, _ in FAILS])
@pytest.mark.filterwarnings("ignore:Total length of")
def test_failures(cli, tiny_mnist: Path, tmp_path: Path, words: str, told: str):
    places = {name: tmp_path / "data" / name for name in ("empty", "truncated", "letter")}
    for name in ("empty", "truncated"):
        places[name].mkdir(parents=True)
    for file in tiny_mnist.iterdir():
        (places["truncated"] / file.name).write_bytes(file.read_bytes()[:-30])
    places["letter"].write_text("\t".join(["0"] * 785) + "\n" + "\t".join(["0"] * 784) + "\tx\n")
    left = sorted(path.name for path in tmp_path.iterdir())
    result = cli("fit", *words.format(tiny=tiny_mnist, **places).split())
    assert (result.status, told in one_line(result)) == (1, True)
    assert not list(RUNS.glob("*"))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "checkpoints") == left


def test_debug_shows_the_traceback(cli):
    with pytest.raises(Exception, match="batch_size"):
        cli("fit", "--data.batch_size", "0", "--debug")


# ---------------------------------------------------------------------- a good guest


def test_what_is_taken_is_given_back(cli, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch):
    def state():
        log = logging.getLogger("lightning.pytorch").level, len(warnings.filters), torch.get_num_threads()
        return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.path[:], dict(os.environ), log

    monkeypatch.delenv("PL_GLOBAL_SEED")
    before = state()
    words = "--model MLP --data.val_size 50 --trainer.max_epochs 1 --data.root"
    assert cli("fit", *words.split(), tiny_mnist).status == 0
    assert cli("fit", "--data.batch_size", "0").status == 2
    assert state() == before


def test_in_a_thread(cli, tiny_mnist: Path):
    words = [
        "fit",
        "--data.root",
        str(tiny_mnist),
        *["--model", "MLP", "--data.val_size", "50", "--trainer.max_epochs", "1"],
    ]
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(main(words)))
    thread.start()
    thread.join()
    assert statuses == [0]


# ---------------------------------------------------------------------- a process of its own


def process(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mnist_lightning", *map(str, words)],
        capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"PYTHONPATH": str(PROJECT)} | environment,
    )  # fmt: skip


@pytest.mark.slow
def test_a_process(cli, tiny_mnist: Path):
    """MNIST_ROOT, exit statuses, and nothing on the screen that is not ours."""
    words = "--model MLP --model.hidden [8] --data.source mnist --data.val_size 50 --trainer.max_epochs 1"
    result = process("fit", *words.split(), MNIST_ROOT=str(tiny_mnist))
    assert (result.returncode, result.stderr) == (0, "")
    recognised, starts, *_ = result.stdout.splitlines()
    assert recognised.startswith(f"Digits of {tiny_mnist}: IDX, 300 to train on and 100 to test on, 28×28, 10 classes")
    assert starts == "Run checkpoints/mlp starts: MLP, 250 training images of mnist"
    assert process("fti").returncode == 2
    wrong = process("test", "--run", "nope")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr == "mnist_lightning: there is no run 'nope' in checkpoints; there are: mlp\n"
