"""The commands, their settings, and what a person sees when something is wrong."""

import difflib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnist_lightning import __version__
from mnist_lightning.errors import BadSetting, UserError

USAGE = f"""mnist_lightning {__version__}: train, evaluate and use handwritten-digit classifiers

  python -m mnist_lightning fit                                    train a CNN, test it, keep it in checkpoints/cnn
  python -m mnist_lightning fit --config configs/simple_mlp.yaml   train a recipe
  python -m mnist_lightning fit --ckpt_path last                   go on with the newest run
  python -m mnist_lightning test                                   test the newest run, or --run NAME
  python -m mnist_lightning validate | predict                     likewise: validation images; a table of predictions
  python -m mnist_lightning convert --split train --output FILE    write images as tab-delimited text

  python -m mnist_lightning COMMAND --help                         all settings of a command
"""

# What plain `fit` does. configs/cnn.yaml says the same, with comments.
FIT_DEFAULTS: dict[str, Any] = {
    "trainer.default_root_dir": "checkpoints",
    "trainer.max_epochs": 5,
    "trainer.num_sanity_val_steps": 0,
    "trainer.log_every_n_steps": 50,
}
EVALUATION_DEFAULTS: dict[str, Any] = {"trainer.default_root_dir": "checkpoints"}


def main(args: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 done, 1 failed, 2 wrong words, 130 Ctrl-C, 143 SIGTERM."""
    args = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    command, *words = args
    if command not in COMMANDS:
        return _say(f"there is no command {command!r}; {_nearest(command, COMMANDS)}", 2)

    from mnist_lightning.training.signals import Interrupted, Signals

    signals = Signals()
    signals.install()
    try:
        COMMANDS[command](words, signals)
    except (UserError, OSError) as error:
        if debug:
            raise
        if isinstance(error, OSError):
            return _say(f"{error.filename or command}: {error.strerror or error}", 1)
        return _say(str(error), 2 if isinstance(error, BadSetting) else 1)
    except Interrupted as interrupted:
        return _say(str(interrupted), 128 + interrupted.signum)
    return 0


def _say(message: str, status: int) -> int:
    from mnist_lightning.runs import is_first_process

    if is_first_process():  # several processes fail alike; one speaks
        print(f"mnist_lightning: {message}", file=sys.stderr)
    return status


# ---------------------------------------------------------------------- the commands


def fit(words: list[str], signals: Any) -> None:
    from mnist_lightning.commands import fit as run

    run(words, signals)


def validate(words: list[str], signals: Any) -> None:
    from mnist_lightning.commands import evaluate

    evaluate("validate", words, signals)


def test(words: list[str], signals: Any) -> None:
    from mnist_lightning.commands import evaluate

    evaluate("test", words, signals)


def predict(words: list[str], signals: Any) -> None:
    from mnist_lightning.commands import evaluate

    evaluate("predict", words, signals)


def convert(words: list[str], signals: Any) -> None:
    from mnist_lightning.commands import convert as run

    run(words)


COMMANDS: dict[str, Callable[[list[str], Any], None]] = {
    "fit": fit,
    "validate": validate,
    "test": test,
    "predict": predict,
    "convert": convert,
}

# ---------------------------------------------------------------------- the settings


def parser_of(command: str) -> Any:
    """The jsonargparse parser of a command. (LightningCLI builds one for each command at every start.)"""
    from jsonargparse import ArgumentParser
    from lightning.pytorch import Trainer

    from mnist_lightning.data.module import MNISTDataModule
    from mnist_lightning.models import DigitClassifier

    parser = ArgumentParser(prog=f"python -m mnist_lightning {command}", exit_on_error=False)
    if command == "convert":
        parser.add_argument("--split", choices=["train", "test"], default="train", help="Which images to write.")
        parser.add_argument("--rows", type=int | None, default=None, help="Write only the first so many.")
        parser.add_argument("--output", type=str, required=True, help="The text file to write.")
        parser.add_class_arguments(MNISTDataModule, "data")
        return parser
    parser.add_argument("--config", action="config", help="A YAML file with settings, such as a recipe of configs/.")
    parser.add_argument("--run", type=str | None, default=None, help="Name of the run: its folder's name.")
    parser.add_argument("--ckpt_path", type=str | None, default=None, help="last, best, or a checkpoint file.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    if command == "fit":
        parser.add_argument("--seed", type=int, default=0, help="Seed of weights, order and dropout.")
        parser.add_argument(
            "--checkpoint.every_n_seconds", type=float | None, default=30.0,
            help="Write last.ckpt this often inside an epoch; it is written at each epoch's end anyway.",
        )  # fmt: skip
        parser.add_argument(
            "--checkpoint.every_n_steps", type=int | None, default=None,
            help="Write last.ckpt after so many optimizer steps, too.",
        )  # fmt: skip
        parser.add_subclass_arguments(DigitClassifier, "model", help="MLP or CNN.")
    parser.add_class_arguments(MNISTDataModule, "data")
    parser.add_class_arguments(Trainer, "trainer", instantiate=False, skip={"logger", "plugins"})
    parser.set_defaults(FIT_DEFAULTS if command == "fit" else EVALUATION_DEFAULTS)
    return parser


def parse(parser: Any, words: list[str]) -> Any:
    """The settings; raises BadSetting in one line, with the nearest right word."""
    from jsonargparse import ArgumentError

    from mnist_lightning.models import MODELS

    for word, value in _pairs(words):
        if word == "--model" and value not in MODELS and "." not in value:
            raise BadSetting(f"there is no model {value!r}; {_nearest(value, MODELS)}")
    try:
        return parser.parse_args(words)
    except ArgumentError as error:
        raise BadSetting(_explain(str(error), parser)) from error


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    """Flags and their values, written `--flag value` or `--flag=value`."""
    pairs = []
    for word, value in zip(words, [*words[1:], ""], strict=True):
        flag, equals, rest = word.partition("=")
        if flag.startswith("--"):
            pairs.append((flag, rest if equals else value))
    return pairs


def option(words: list[str], flag: str) -> str | None:
    """The value of one flag, before there is a parser for all."""
    values = [value for word, value in _pairs(words) if word == flag]
    return values[-1] if values else None


def _explain(message: str, parser: Any) -> str:
    """One line from jsonargparse's several."""
    from mnist_lightning.models import MODELS

    if found := re.search(r"unrecognized arguments: (\S+)", message):
        flag = found[1].partition("=")[0]
        flags = [name for name in parser._option_string_actions if name.startswith("--")]
        return f"there is no flag {flag}; {_nearest(flag, flags)}"
    if found := re.search(r"(?:Option|Key|key) '([\w.]+)' is not (?:accepted|expected)", message):
        import inspect

        names = {name for kind in (*MODELS.values(), MODELS["MLP"].__base__) for name in inspect.signature(kind).parameters}
        names |= {flag.removeprefix("--") for flag in parser._option_string_actions}
        return f"there is no setting {found[1]!r} here; {_nearest(found[1], names)}"
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    key = re.search(r'[Pp]arser key "([\w.]+)"', message)
    value = re.search(r"Given value: (.*)", message)
    expected = re.findall(r"Expected an? (.*)", message)
    if key and value and expected:
        kinds = " or ".join(dict.fromkeys(re.sub(r"<class '(\w+)'>", r"\1", kind).rstrip(".") for kind in expected))
        return f"--{key[1]}: {value[1]!r} is not what it takes: {kinds}"
    return " ".join(lines)[:300]


def _nearest(word: str, words: Any) -> str:
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(words)[:12])}"


def settings_file(path: str) -> Path:
    """The path, once it is known to be there."""
    if not Path(path).is_file():
        recipes = [str(file) for file in sorted(Path(path).parent.glob("*.yaml"))]
        hint = _nearest(path, recipes) if recipes else "give the path of a YAML file"
        raise BadSetting(f"there is no configuration {path}; {hint}")
    return Path(path)
