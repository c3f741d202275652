"""config.yaml: all settings of a run, written so that they read back as what they are."""

from datetime import timedelta
from enum import Enum
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

from mnist_lightning.errors import BadSetting
from mnist_lightning.settings import GROUPS, Part, parsed, yaml_value
from mnist_lightning.words import merged, pairs_of

LOST = object()  # in the place of what YAML cannot hold
OF_A_RUN = (*GROUPS, "seed", "freeze")


def resumable(config: Any) -> tuple[str, list[str]]:
    """The settings of a run as YAML that reads back, and what it cannot hold, to be given again to go on.

    Each setting is written as it turned out to be, of the user's own classes else as it was given; a class whose
    settings do not read back either way is left out.
    """
    text, lost = as_yaml(config)
    if _reads_back(text, text):
        return text, lost
    in_words, _ = as_yaml(config, as_given=True)
    if _reads_back(in_words, text):
        return in_words, lost
    left_out, settings = [], config.trainer.settings
    for name in ("callbacks", "logger"):
        kept, several = [], settings[name] or []
        for part in several:
            settings[name] = [part]
            alone, _ = as_yaml(config)
            if _reads_back(alone, alone):
                kept.append(part)
            else:
                left_out.append((part.kind if isinstance(part, Part) else type(part)).__name__)
        settings[name] = kept if several else settings[name]
    text, lost = as_yaml(config)
    return text, [*lost, *(left_out or ["what means something else in YAML"])]


def _reads_back(text: str, meaning: str) -> bool:
    """Whether a text means these settings to the parser that will read it."""
    try:
        return as_yaml(parsed("fit", merged(pairs_of(yaml_value(text)))))[0] == meaning
    except (BadSetting, ValueError):
        return False


def as_yaml(config: Any, as_given: bool = False) -> tuple[str, list[str]]:
    """All settings of a run; and the kinds of objects, given in Python, that are left out as no file holds them.

    With `as_given`, those of callbacks, loggers and classes of the user's as they were written, without defaults.
    """
    import yaml

    lost: list[str] = []
    of_the_run = {name: value for name, value in vars(config).items() if name in OF_A_RUN}
    return yaml.safe_dump(_plain(of_the_run, lost, as_given), sort_keys=False), lost


def _plain(value: Any, lost: list[str], as_given: bool) -> Any:
    """As YAML holds it."""
    if isinstance(value, Part):
        return _of_part(value, lost, as_given)
    value = vars(value) if type(value).__name__ == "Namespace" else value
    if isinstance(value, dict):
        return {key: item for key, old in value.items() if (item := _plain(old, lost, as_given)) is not LOST}
    if isinstance(value, list | tuple | set):
        return [item for old in value if (item := _plain(old, lost, as_given)) is not LOST]
    if isinstance(value, Enum):
        return value.value if isinstance(value, str) else value.name
    if isinstance(value, FunctionType | BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Path):
        return value.as_posix()  # which Windows takes, too
    if isinstance(value, timedelta) or type(value).__name__ in ("device", "dtype"):
        return str(value)
    if value is not None and not isinstance(value, bool | int | float | str):
        lost.append(type(value).__name__)
        return LOST
    return value


def _of_part(part: Part, lost: list[str], as_given: bool) -> Any:
    """A class and its settings; of one that YAML cannot hold, what the user wrote; a default is left to come again."""
    if part.flag == "trainer":
        return _plain(part.settings, lost, as_given)
    ours = part.flag in ("model", "data") and part.kind.__module__.startswith("mnist_lightning.")
    settings: dict[str, Any] = {}
    for name, value in (part.given if as_given and not ours else part.settings).items():
        missing: list[str] = []
        settings[name] = _plain(value, missing, as_given)
        given = part.given.get(name, LOST)
        if missing and (given is LOST or _plain(given, [], as_given) == given):
            settings[name] = given
        else:
            lost += missing
    path = part.kind.__name__ if ours else f"{part.kind.__module__}.{part.kind.__qualname__}"
    return {"class_path": path, "init_args": {name: value for name, value in settings.items() if value is not LOST}}
