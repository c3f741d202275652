"""Which of the parts that lie under a root are one set of digits, which set is meant, and what of it is for testing."""

import re
from pathlib import Path

from mnist_lightning.data.digits import Part
from mnist_lightning.errors import BadSetting

SPLITS = ("train", "test", "val")
_NOT_OF_THE_SET = re.compile(
    r"(?<![a-z])([xy]|images?|imgs?|labels?|lbls?|idx\d?|ubyte|int|csv|tsv|txt|gz|bz2|xz|zip|parquet|np[yz]|pth?|mat|\d+|of"
    r"|raw|processed|data|set|folders?|training|train|trn|tra|testing|test|tst|tes|t10k|valid(ation)?|val|dev|eval)(?![a-z])"
)


def set_name(part: Part, root: Path) -> str:
    """What the parts of one set have in common: the names of file and folders, less the words for splits and forms."""
    inside = part.where.relative_to(root).parts if part.where != root else (root.name,)
    words = [_NOT_OF_THE_SET.sub(" ", re.sub(r"_", "-", name.lower())) for name in inside]
    name = "/".join("-".join(re.findall(r"[a-z0-9]+", word)) for word in words).strip("/")
    return "/".join(dict.fromkeys(name.split("/"))) or "digits"


def paired_sets(sets: dict[str, list[Part]]) -> dict[str, list[Part]]:
    """Sets as they are; where none has both splits, but two of them would together, these two as one."""
    if any(len({part.kind for part in parts} & {"train", "test"}) == 2 for parts in sets.values()):
        return sets
    kinds = {name: {part.kind for part in parts} for name, parts in sets.items()}
    train = [name for name, found in kinds.items() if found <= {"train", "unknown", "val"}]
    test = [name for name, found in kinds.items() if found == {"test"}]
    if len(train) == 1 and len(test) == 1:
        return {train[0]: sets[train[0]] + sets[test[0]]}
    unknown = [parts for parts in sets.values() if len(parts) == 1 and parts[0].kind == "unknown" and parts[0].count]
    if len(sets) == len(unknown) == 2 and unknown[0][0].form == unknown[1][0].form:
        return {next(iter(sets)): [*unknown[0], *unknown[1]]}
    return sets


def chosen_set(sets: dict[str, list[Part]], subset: str | None, root: Path) -> str:
    """The set that is meant; of several, one with both splits, of digits, in the order of the readers, the largest."""
    if subset is not None:
        named = [name for name in sets if subset.lower() == name] or [name for name in sets if subset.lower() in name]
        if len(named) != 1:
            raise BadSetting(f"--data.subset {subset}: {root} holds {', '.join(sorted(sets))}")
        return named[0]

    def merit(name: str) -> tuple[object, ...]:
        kinds = {part.kind for part in sets[name]}
        whole = len(sets[name]) > 1 and ("test" in kinds or kinds == {"unknown"})
        count = sum(part.count or 0 for part in sets[name])
        return whole, "train" in kinds or "unknown" in kinds, name.endswith("digits"), count, -name.count("/")

    return max(sets, key=merit)


def split_of(parts: list[Part]) -> tuple[dict[str, list[Part]], str]:
    """The parts to train on (what is meant for validation among them), and to test on; how they were told apart."""
    by_kind = {kind: [part for part in parts if part.kind == kind] for kind in (*SPLITS, "unknown")}
    train, test, unknown = by_kind["train"] + by_kind["val"], by_kind["test"], by_kind["unknown"]
    if not train and not test and len(unknown) == 2 and all(part.count for part in unknown):
        larger, smaller = sorted(unknown, key=lambda part: -(part.count or 0))
        told = f"told apart by size, the larger, {larger.where.name}, to train on (else call them train and test)"
        return {"train": [larger], "test": [smaller]}, told
    if by_kind["train"] + unknown and by_kind["val"] and not test:
        train, test = by_kind["train"], by_kind["val"]
    if train + unknown and test:
        val = ", those for validation with the training images" if by_kind["val"] and by_kind["val"] != test else ""
        told = "those for validation to test on" if test == by_kind["val"] else f"train and test by their names{val}"
        return {"train": train + unknown, "test": test}, told
    if test:
        return {"test": test}, "test"
    return {"train": train + unknown}, "only one split, of which a sixth, drawn by a fixed seed, is held out to test on"
