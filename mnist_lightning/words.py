"""From words, files and dicts to one value for each setting: all become pairs, and of those the last counts."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from mnist_lightning.errors import BadSetting, first_line, nearest
from mnist_lightning.settings import CLASSES, GROUPS, class_of, several, taken_by, yaml_value

Pairs = list[tuple[str, Any]]

# ---------------------------------------------------------------------- words, files and dicts become pairs


def pairs_of_words(words: Iterable[str]) -> Pairs:
    """`--name value` or `--name=value` each; values stay strings. `--debug` and `--help` take none; `--freeze` many."""
    pairs: Pairs = []
    left = iter(words)
    for word in left:
        if word in ("-h", "--help", "--debug", "--int8"):
            pairs.append(("help" if word == "-h" else word[2:], True))
            continue
        if not word.startswith("--") and pairs and pairs[-1][0] == "freeze":
            pairs[-1] = ("freeze", [*several(pairs[-1][1]), word])
            continue
        if not word.startswith("--"):
            raise BadSetting(f"there is a word too many: {word!r}; a setting is written --name value")
        name, equals, value = word.removeprefix("--").partition("=")
        value = value if equals else next(left, "--")
        if value.startswith("--") and not equals:
            raise BadSetting(f"--{name} takes a value; see --help")
        pairs.append((name, value))
    return pairs


def few_flags(words: Iterable[str], known: Collection[str], usage: str) -> dict[str, Any] | None:
    """The flags of a command that takes few and no settings; None where help was asked for, and has been printed."""
    asked = dict(pairs_of_words(words))
    if "help" in asked:
        print(usage, end="")
        return None
    for flag in asked.keys() - set(known):
        raise BadSetting(f"there is no flag --{flag}; {nearest(flag, [f'--{one}' for one in known])}")
    return asked


def pairs_of(settings: Mapping[str, Any], where: str = "settings") -> Pairs:
    """Those of a nested dict, as YAML holds it."""
    pairs: Pairs = []
    for name, value in settings.items():
        if name == "config":
            pairs += [(name, file) for file in several(value)]
        elif name not in GROUPS or (name in CLASSES and isinstance(value, str | type)):
            pairs.append((str(name), value))
        elif isinstance(value, Mapping) and isinstance(value.get("init_args") or {}, Mapping):
            inside = dict(value)
            if name in CLASSES and "class_path" in inside:
                pairs.append((name, inside.pop("class_path")))
            if name in CLASSES:
                inside |= inside.pop("init_args", None) or {}
            pairs += [(f"{name}.{key}", item) for key, item in inside.items()]
        else:
            raise BadSetting(f"{where}: {name} holds no settings: indent them below it, or leave it out")
    return pairs


def with_files(pairs: Pairs) -> Pairs:
    """The pairs, after those of the files that they name with `config`: words win over files, later over earlier."""
    return [pair for name, file in pairs if name == "config" for pair in file_pairs(Path(file))] + pairs


def file_pairs(path: Path) -> Pairs:
    """Those of a YAML file, or of the recipe of that name."""
    pairs = pairs_of(_read(path), str(path))
    if any(name == "config" for name, _ in pairs):
        raise BadSetting(f"{path}: config is for the command line; name there all files that are to be merged")
    return pairs


def recipe(name: str) -> Path:
    """The file of one of configs/, which is installed with the package, or beside it."""
    installed = Path(__file__).with_name("configs")
    folder = installed if installed.is_dir() else Path(__file__).parents[1] / "configs"
    return folder / f"{name.removesuffix('.yaml')}.yaml"


def is_recipe(path: Path) -> bool:
    """Whether a name or a path means one of configs/."""
    file = _found(path)
    return file.is_file() and file.resolve() == recipe(file.stem).resolve()


def _found(path: Path) -> Path:
    return path if path.is_file() or not recipe(str(path)).is_file() else recipe(str(path))


def _read(path: Path) -> dict[str, Any]:
    file = _found(path)
    if not file.is_file():
        names = [str(other) for other in path.parent.glob("*.yaml")]
        names += [other.stem for other in recipe("*").parent.glob("*.yaml")]
        raise BadSetting(f"--config: there is no file {str(path)!r}; {nearest(str(path), names)}")
    try:
        settings = yaml_value(file.read_text(encoding="utf-8"))
    except ValueError as error:
        mark = getattr(error.__cause__, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error.__cause__, "problem", None) or first_line(error)
        raise BadSetting(f"{file}{where} is not YAML: {problem}") from error
    if not isinstance(settings, dict):
        raise BadSetting(f"{file} holds no settings: it takes lines such as those of {recipe('cnn')}")
    return settings


# ---------------------------------------------------------------------- pairs become one value for each setting


def merged(pairs: Pairs) -> dict[str, Any]:
    """The last value of each setting. `--trainer.callbacks.patience 3` goes into the value that is there.

    With another class of model or data, of what was set for the one before that is kept which the other takes, too.
    """
    settings: dict[str, Any] = {}
    for name, value in pairs:
        group, *inside = name.split(".")
        if group in CLASSES and inside[:1] in (["init_args"], ["class_path"]):
            del inside[0]
        if group in CLASSES and not inside:
            kind = class_of(group, value)
            if settings.get(group, kind) is not kind:
                taken = taken_by(group, kind)
                settings = {k: v for k, v in settings.items() if not k.startswith(f"{group}.") or k in taken}
            settings[group] = kind
        elif name != "config":
            name, plus, _ = ".".join([group, *inside[:1]]).partition("+")
            old = settings.get(name)
            settings[name] = [*several(old), value] if plus else _put(old, inside[1:], value)
    return settings


def root_and_name(settings: Mapping[str, Any]) -> tuple[Path, str | None]:
    """Where runs lie, and which is named; before all settings are parsed."""
    root, name = Path(str(settings.get("trainer.default_root_dir") or "checkpoints")), settings.get("run")
    if name is not None and (not isinstance(name, str) or Path(name).name != name or name in ("", "..")):
        raise BadSetting(f"--run {name!r} is no folder's name; where runs lie says --trainer.default_root_dir")
    return root, name


def _put(old: Any, inside: list[str], value: Any) -> Any:
    """`old` with another value at a place inside it: an item, a class's setting, of several classes the last's."""
    if not inside:
        return value
    *before, last = several(old) or [{}]
    last = {"class_path": last} if isinstance(last, str) else dict(last) if isinstance(last, Mapping) else {}
    if "class_path" in last and inside[0] not in ("class_path", "init_args"):
        inside = ["init_args", *inside]
    last[inside[0]] = _put(last.get(inside[0]), inside[1:], value)
    return [*before, last] if before else last
