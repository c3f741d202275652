"""What can be set: described once, parsed once, checked where it is described."""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, lru_cache
from importlib import import_module
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from mnist_lightning.errors import BadSetting, UserError, first_line, nearest

GROUPS = ("model", "data", "trainer", "loop", "checkpoint")
DEFAULTS = {"trainer.default_root_dir": "checkpoints"}
FIT_DEFAULTS = DEFAULTS | {"trainer.max_epochs": 5, "trainer.num_sanity_val_steps": 0, "trainer.log_every_n_steps": 50}
# Settings that are classes: where a name without a dot is looked for, what it must be, and what there is.
CLASSES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "model": ("mnist_lightning.models", "LightningModule", ("CNN", "MLP")),
    "data": ("mnist_lightning", "LightningDataModule", ("MNISTDataModule",)),
    "trainer.callbacks": ("lightning.pytorch.callbacks", "Callback", ()),
    "trainer.logger": ("lightning.pytorch.loggers", "Logger", ()),
}
# The least and the most that a number may be. Lightning looks at its own too late, or never.
RANGES = {
    "seed": (0, 2**32 - 1),
    "seeds": (1, None),
    "folds": (2, None),
    "checkpoint.every_n_seconds": (0, None),
    "checkpoint.every_n_steps": (1, None),
    "trainer.accumulate_grad_batches": (1, None),
    "trainer.check_val_every_n_epoch": (1, None),
    "trainer.gradient_clip_val": (0, None),
    "trainer.val_check_interval": (1e-9, None),
}

# ---------------------------------------------------------------------- classes and their settings


def class_of(flag: str, name: Any) -> type:
    """The class that a setting names: one of the project's or of Lightning's, or any by its import path."""
    home, base, names = CLASSES[flag]
    path, _, last = str(name).rpartition(".")
    try:
        found = name if isinstance(name, type) else getattr(import_module(path or home), last, None)
    except Exception as error:  # whatever a module of the user's comes to
        if not isinstance(error, ModuleNotFoundError) or not f"{path}.".startswith(f"{error.name}."):
            raise BadSetting(f"--{flag} {name}: {path} cannot be imported: {first_line(error)}") from error
        found = None
    if isinstance(found, type) and base in {kind.__name__ for kind in found.__mro__}:
        return found
    why = f"{name!r} is no {base}" if isinstance(found, type) else f"there is no {name!r}"
    raise BadSetting(f"--{flag}: {why}; {nearest(last, names or import_module(home).__all__)}")


class Part:
    """A class and the checked settings of its constructor; `given` has those that were set, as they were written."""

    def __init__(self, flag: str, kind: type, parser: Any, config: Any, given: Mapping[str, Any]) -> None:
        self.flag, self.kind, self._parser = flag, kind, parser
        self.given = {name[len(flag) + 1 :]: value for name, value in given.items() if name.startswith(f"{flag}.")}
        self.settings: dict[str, Any] = vars(config[flag]) if flag in config else {}

    def arguments(self) -> dict[str, Any]:
        """The settings, with what they describe made."""
        from jsonargparse import Namespace

        made = self._parser.instantiate(Namespace({f"{self.flag}.{name}": v for name, v in self.settings.items()}))
        return {name: _made(value) for name, value in vars(made.get(self.flag, Namespace())).items()}

    def make(self) -> Any:
        """The object; raises BadSetting in one line."""
        try:
            return self.kind(**self.arguments())
        except UserError:
            raise
        except Exception as error:  # whatever a constructor of the user's comes to
            raise BadSetting(f"--{self.flag} {self.kind.__name__}: {first_line(error)}") from error


def _made(value: Any) -> Any:
    return [one.make() if isinstance(one, Part) else one for one in value] if isinstance(value, list) else value


def _parts(flag: str, items: list[Any]) -> list[Any]:
    """Of classes, named or as class_path and init_args; what is an object already stays it."""
    parts: list[Any] = []
    for item in items:
        item = {"class_path": item} if isinstance(item, str | type) else item
        if isinstance(item, Mapping):
            args = item.get("init_args") or {}
            if "class_path" not in item or set(item) - {"class_path", "init_args"} or not isinstance(args, Mapping):
                raise BadSetting(f"--{flag} takes a class's name, or class_path and init_args; this is {item}")
            kind = class_of(flag, item["class_path"])
            parser = _add_class(_parser(), flag, kind)
            settings = {f"{flag}.{name}": setting for name, setting in args.items()}
            item = Part(flag, kind, parser, _checked(parser, settings), settings)
        else:
            class_of(flag, type(item))
        parts.append(item)
    return parts


def several(value: Any) -> list[Any]:
    """A list, in a word written as YAML, of what may be given once or not at all."""
    with suppress(ValueError):
        value = yaml_value(value) if isinstance(value, str) else value
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def yaml_value(text: str) -> Any:
    """What a text means as YAML; raises ValueError. (1e-3 is a string to pyyaml, and a number to jsonargparse.)"""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


# ---------------------------------------------------------------------- parsed once


@cache
def _know_torchs_types() -> None:
    """Lets devices and number types be written as words: cpu, cuda:1, float32."""
    import torch
    from jsonargparse.typing import register_type

    register_type(torch.device, str, torch.device)
    register_type(torch.dtype, str, lambda name: getattr(torch, str(name).removeprefix("torch.")))


def _parser(**options: Any) -> Any:
    from jsonargparse import ArgumentParser

    _know_torchs_types()
    return ArgumentParser(exit_on_error=False, **options)


def _add_class(parser: Any, flag: str, kind: type) -> Any:
    """The parser, with the settings of a constructor under `flag`."""
    names = ", ".join((*CLASSES[flag][2], f"or the import path of any {CLASSES[flag][1]}"))
    group = parser.add_argument_group(f"--{flag} CLASS", f"{names}. {kind.__name__} takes:")
    group.add_class_arguments(kind, flag, as_group=False, instantiate=False, fail_untyped=False)
    flags = _flags(parser)
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.default is parameter.empty and f"--{flag}.{name}" in flags:
            flags[f"--{flag}.{name}"].required = True  # also where it has no type
    return parser


@lru_cache(maxsize=16)  # a training parses its settings twice
def _parser_of(command: str, classes: tuple[tuple[str, type], ...]) -> Any:
    """The jsonargparse parser of a command, with these classes of model and data."""
    from lightning.pytorch import Trainer

    name = f"python -m mnist_lightning {command}"
    parser = _parser(prog=name, usage=f"{name} [--SETTING VALUE …]")
    add = parser.add_argument
    if command == "convert":
        add("--split", type=Literal["train", "test"], default="train", help="Which images to write.")
        add("--rows", type=int | None, default=None, help="Write only the first so many.")
        add("--output", type=str, required=True, help="The file to write; for idx and png a folder to write into.")
        form = Literal["text", "idx", "npz", "png", "csv", "parquet"] | None
        add("--form", type=form, default=None, help="What to write; by default what the file's name ends in.")
    else:
        files = "A YAML file or a recipe's name; several are merged in their order; what is set beside them wins."
        add("--config", type=str, default=None, help=files)
        add("--run", type=str | None, default=None, help="Name of the run: its folder's name.")
        add("--ckpt_path", type=str | None, default=None, help="last, best, or a checkpoint file.")
    add("--debug", type=bool, default=False, help="Show the traceback of an error.")
    if command == "test":
        shifts = "shifts: also the mean of five readings of each image, moved by a pixel each way."
        add("--tta", type=Literal["none", "shifts"], default="none", help=shifts)
    if command == "fit":
        weights = "A run or checkpoint whose weights a new training starts from; layers of another shape are fresh."
        add("--init_from", type=str | None, default=None, help=weights)
        frozen = "Layers or parameters that are not trained, several names or patterns, e.g. 'net.0*'."
        add("--freeze", type=list[str] | str | None, default=None, help=frozen)
        add("--seed", type=int, default=0, help="Seed of weights, order and dropout.")
        members = "Train so many networks one after the other, from --seed on; test averages them."
        add("--seeds", type=int | None, default=None, help=members)
        folds = "Train so many networks, each validated on another share of the training images."
        add("--folds", type=int | None, default=None, help=folds)
        how = "How optimizer steps are taken: eager; graph: recorded and replayed, on a GPU (its default); compiled: "
        how += "several at once, on a CPU; auto: what is faster in the end."
        add("--loop.step", type=Literal["eager", "graph", "compiled", "auto"] | None, default=None, help=how)
        seconds = "Write last.ckpt this often inside an epoch; it is written at epochs' ends anyway."
        add("--checkpoint.every_n_seconds", type=float | None, default=30.0, help=seconds)
        steps = "Write last.ckpt after so many optimizer steps, too."
        add("--checkpoint.every_n_steps", type=int | None, default=None, help=steps)
    for flag, kind in classes:
        _add_class(parser, flag, kind)
    if command != "convert":
        parser.add_class_arguments(Trainer, "trainer", instantiate=False, skip={"callbacks", "logger", "plugins"})
        several = "A class's name or import path, its settings after a dot, more with +; or a list, as in YAML"
        add("--trainer.callbacks", type=Any, default=None, help=f"{several}.")
        add("--trainer.logger", type=Any, default=None, help=f"{several}. false: none but metrics.csv.")
        parser.set_defaults(FIT_DEFAULTS if command == "fit" else DEFAULTS)
    return parser


def parsed(command: str, settings: Mapping[str, Any]) -> Any:
    """All settings of a command, checked: a Namespace, with a Part for each of model, data and trainer."""
    from lightning.pytorch import Trainer

    defaults = {"model": "CNN", "data": "MNISTDataModule"} if command == "fit" else {"data": "MNISTDataModule"}
    classes = {flag: settings[flag] if flag in settings else class_of(flag, name) for flag, name in defaults.items()}
    classes |= {flag: settings[flag] for flag in ("model", "data") if flag in settings}
    given = {name: value for name, value in settings.items() if name not in classes}
    helps = given.pop("help", False)  # with what is given in the place of the defaults
    ours = all(kind.__module__.startswith("mnist_lightning.") for kind in classes.values())  # others may change
    parser = (_parser_of if ours and not helps else _parser_of.__wrapped__)(command, tuple(classes.items()))
    if helps:
        parser.set_defaults({name: value for name, value in given.items() if f"--{name}" in _flags(parser)})
        parser.print_help()
        raise SystemExit(0)
    several_classes = {name: given.pop(name, None) for name in CLASSES if "." in name and command != "convert"}
    config = _checked(parser, given)
    for name, value in several_classes.items():
        kinds = several(value)
        config[name] = False if kinds == [False] else _parts(name, [kind for kind in kinds if kind is not True])
    for flag, kind in classes.items() if command == "convert" else (classes | {"trainer": Trainer}).items():
        config[flag] = Part(flag, kind, parser, config, given)
    return config


def _checked(parser: Any, settings: Mapping[str, Any]) -> Any:
    """What the parser makes of one value for each setting; raises BadSetting in one line."""
    from jsonargparse import ArgumentError

    flags = _flags(parser)
    for name in settings:
        if not any(flag == f"--{name}" or ("." in name and flag.startswith(f"--{name}.")) for flag in flags):
            raise BadSetting(_unknown(f"--{name}", [*flags, "--model", "--data"]))
    for flag, action in flags.items():
        if action.required and action.dest not in settings:
            raise BadSetting(f"{flag} is missing; see --help")
        kinds = list(get_args(action._typehint))
        if int in kinds and float in kinds:
            # 1 is one batch where 1.0 is all of them, and the parser takes what fits first; typing may have handed out
            # an equal union, in which another module has them the other way round.
            kinds.remove(int)
            kinds.insert(kinds.index(float), int)
            action._typehint = Union[tuple(kinds)]  # noqa: UP007
    try:
        config = parser.parse_object(dict(settings))
    except ArgumentError as error:
        raise BadSetting(_what_is_wrong(flags, settings) or first_line(error)) from error
    for name, (least, most) in RANGES.items():
        value = config.get(name)
        if isinstance(value, int | float) and not least <= value <= (most or value):
            bounds = f"from {least} to {most}" if most else f"at least {least}"
            raise BadSetting(f"--{name} is {value}; it must be {'above 0' if 0 < least < 1 else bounds}")
    return config


def taken_by(flag: str, kind: type) -> set[str]:
    """The settings of a class."""
    return {name.removeprefix("--") for name in _flags(_add_class(_parser(), flag, kind))}


def _flags(parser: Any) -> dict[str, Any]:
    """What describes each setting: a parser's actions, by their flags."""
    return {action.option_strings[0]: action for action in parser._actions if hasattr(action, "_typehint")}


def _what_is_wrong(flags: dict[str, Any], settings: Mapping[str, Any]) -> str | None:
    """Which value its setting does not take, each asked alone, and what it does take."""
    from jsonargparse import ArgumentError

    for name, value in settings.items():
        if f"--{name}" in flags:
            kind = flags[f"--{name}"]._typehint
            alone = _parser()
            alone.add_argument("--it", type=kind)
            try:
                alone.parse_object({"it": value})
            except ArgumentError:
                return f"--{name}: {value!r} is not what it takes: {_takes(kind)}"
    return None


def _takes(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(dict.fromkeys(_takes(one) for one in get_args(kind) if one is not type(None)))
    return str(kind) if get_origin(kind) else getattr(kind, "__name__", str(kind))


def _unknown(flag: str, flags: list[str]) -> str:
    group, dot, _ = flag.partition(".")
    inside = [name for name in flags if name.startswith(f"{group}.")]
    if dot and not inside:
        groups = {name.partition(".")[0] for name in flags if "." in name}
        return f"there is no group of flags {group}; {nearest(group, groups)}"
    near = inside if dot or len(inside) == 1 else [name for name in flags if "." not in name]
    return f"there is no flag {flag}; {nearest(flag, near)}"
