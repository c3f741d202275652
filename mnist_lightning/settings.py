"""What can be set, read from words and YAML files, and one line for each mistake in them."""

import difflib
import re
from pathlib import Path
from typing import Any

from mnist_lightning.errors import BadSetting, UserError

FIT_DEFAULTS: dict[str, Any] = {
    "trainer.default_root_dir": "checkpoints",
    "trainer.max_epochs": 5,
    "trainer.num_sanity_val_steps": 0,
    "trainer.log_every_n_steps": 50,
}
# What `fit` does when it is told neither a model nor a configuration: configs/cnn.yaml, on whatever digits there are.
PLAIN_FIT: dict[str, Any] = {
    "model": {
        "class_path": "CNN",
        "init_args": {
            "channels": [32, 64, 64],
            "kernel_size": [5, 3, 3],
            "pool": [2, 1, 2],
            "order": ["conv", "pool", "activation", "dropout"],
            "conv_dropout": [0.0, 0.0, 0.25],
            "hidden": [128],
            "dropout": 0.5,
            "lr": 0.003,
            "optimizer_args": {"betas": [0.7, 0.9]},
            "scheduler": "OneCycleLR",
        },
    },
    "data.batch_size": 128,
    "trainer.max_epochs": 6,
    "trainer.precision": "bf16-mixed",
}
EVALUATION_DEFAULTS: dict[str, Any] = {"trainer.default_root_dir": "checkpoints"}


def parser_of(command: str) -> Any:
    """The jsonargparse parser of a command. (LightningCLI builds one for each command at every start.)"""
    from jsonargparse import ArgumentParser
    from lightning.pytorch import Trainer

    from mnist_lightning.data.module import MNISTDataModule
    from mnist_lightning.models import DigitClassifier

    name = f"python -m mnist_lightning {command}"
    parser = ArgumentParser(prog=name, exit_on_error=False, allow_abbrev=False)
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
        if word == "--model" and value.rpartition(".")[2] not in MODELS:
            raise BadSetting(f"there is no model {value!r}; {nearest(value, MODELS)}")
    try:
        return parser.parse_args(words)
    except ArgumentError as error:
        raise BadSetting(_explain(str(error), parser)) from error


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    """Flags and their values, written `--flag value` or `--flag=value`."""
    pairs = []
    for word, value in zip(words, [*words, ""][1:], strict=True):
        flag, equals, rest = word.partition("=")
        if flag.startswith("--"):
            pairs.append((flag, rest if equals else value))
    return pairs


def option(words: list[str], flag: str) -> str | None:
    """The value of one flag, before there is a parser for all."""
    values = [value for word, value in _pairs(words) if word == flag]
    if values and not values[-1]:
        raise BadSetting(f"{flag} takes a value; see --help")
    return values[-1] if values else None


def given(words: list[str], flag: str) -> str | None:
    """The value of one flag, among the words or in the configuration file that they name."""
    file, value = option(words, "--config"), option(words, flag)
    if value is not None or file is None:
        return value
    found: Any = settings_file(file)
    for key in flag.removeprefix("--").split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return None if found is None else str(found)


def instantiate(parser: Any, config: Any) -> Any:
    """The model and data that the settings describe; raises BadSetting in one line, as `parse` does."""
    from jsonargparse import ArgumentError

    try:
        return parser.instantiate(config)
    except (ArgumentError, ValueError, TypeError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None:  # jsonargparse wraps ours into its own
            if isinstance(cause, UserError):
                raise cause from error
            cause = cause.__cause__ or cause.__context__
        reasons = re.findall(r"^ *- (.*)", str(error), re.MULTILINE)
        raise BadSetting(f"--model: {reasons[0]}" if reasons else _explain(str(error), parser)) from error


def _explain(message: str, parser: Any) -> str:
    """One line from jsonargparse's several."""
    keys = re.findall(r'[Pp]arser key "([\w.]+)"', message)
    flag = "--" + ".".join(dict.fromkeys(keys))
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        if not found[1].startswith("-"):
            return f"there is a word too many: {found[1]!r}; a setting is written --name value"
        name = found[1].partition("=")[0]
        return _unknown_flag(f"{flag}.{name.lstrip('-')}" if keys else name, parser)
    if found := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        return _unknown_flag(f"--{found[1]}.{found[2]}", parser)
    if found := re.search(r"Option '([\w.]+)' is not accepted", message):
        kind = re.search(r"given class_path '([\w.]+)'", message)
        if kind is None:
            return _unknown_flag(f"--{found[1]}", parser)
        hint = nearest(found[1], _settings_of(kind[1]))
        if kind[1].endswith("DigitClassifier") and not hint.startswith("did you mean"):
            return f"{flag}.{found[1]}: say first which network, --model MLP or CNN"
        return f"{flag}: there is no setting {found[1]!r}; {hint}"
    if found := re.search(r"Expected a dot import path string: (.*)", message):
        return f"{flag}: there is no {found[1]!r}; {nearest(found[1], _classes_for(flag))}"
    if found := re.search(r"arguments are required: (.*)", message):
        return f"{flag}: {found[1]} is missing" if keys else f"--{found[1].lstrip('-')} is missing"
    value = re.search(r"Got value: (.*)", message) or re.search(r"Given value: (.*)", message)
    kinds = re.findall(r"Expected an? (?!path)(.*?)(?:\. Got value: .*)?$", message, re.MULTILINE)
    if keys and value and kinds:
        named = [re.sub(r"<class '(\w+)'>", r"\1", kind).rstrip(".") for kind in kinds]
        named = [re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", kind) for kind in named]
        takes = " or ".join(dict.fromkeys(kind for kind in named if kind != "NoneType"))
        return f"{flag}: {value[1]!r} is not what it takes: {takes}"
    return " ".join(line.strip(" -") for line in message.splitlines() if line.strip())[:300]


def _unknown_flag(flag: str, parser: Any) -> str:
    names = {name for name in parser._option_string_actions if name.startswith("--")}
    groups = {name.partition(".")[0] for name in names if "." in name}
    group, dot, _ = flag.partition(".")
    if dot and group not in groups:
        return f"there is no group of flags {group}; {nearest(group, groups)}"
    near = {name for name in names if name.startswith(group + dot)} if dot else names - groups | {"--model"}
    return f"there is no flag {flag}; {nearest(flag, near & names)}"


def _settings_of(class_path: str) -> set[str]:
    """Names of all arguments of a class, and of what it hands on to its bases."""
    import inspect
    from importlib import import_module

    module, _, name = class_path.rpartition(".")
    bases = getattr(import_module(module), name).__mro__[:-1]
    names = {name for base in bases for name in inspect.signature(base.__init__).parameters}
    return names - {"self", "args", "kwargs"} | {"class_path", "init_args"}


def _classes_for(flag: str) -> list[str]:
    from lightning.pytorch import callbacks

    from mnist_lightning.models import MODELS

    return list(MODELS) if flag == "--model" else callbacks.__all__


def nearest(word: str, words: Any) -> str:
    """What was meant, as the end of a message."""
    names = {name.lstrip("-").lower(): name for name in words}
    near = difflib.get_close_matches(word.lstrip("-").lower(), names, n=1)
    if near:
        return f"did you mean {names[near[0]]}?"
    return f"there are {', '.join(sorted(words))}" if len(words) <= 12 else "see --help"


def settings_file(path: str) -> dict[str, Any]:
    """The settings in a YAML file, so far as to be sure that it holds some."""
    import yaml

    if not Path(path).is_file():
        recipes = [str(file) for file in sorted(Path(path).parent.glob("*.yaml"))]
        hint = nearest(path, recipes) if recipes else "give the path of a YAML file"
        raise BadSetting(f"--config: there is no file {path!r}; {hint}")
    try:
        settings = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise BadSetting(f"{path}{where} is not YAML: {problem}") from error
    if not isinstance(settings, dict):
        raise BadSetting(f"{path} holds no settings: it takes lines such as those of configs/cnn.yaml")
    for group in ("model", "data", "trainer", "checkpoint"):
        if group in settings and not isinstance(settings[group], dict | str if group == "model" else dict):
            raise BadSetting(f"{path}: {group} holds no settings: indent them below it, or leave it out")
    return settings
