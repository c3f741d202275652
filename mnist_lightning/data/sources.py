"""Where digits come from: files in any form under a root, recognised by their content.

`find` says what lies there and which of it is to train on and to test on; `Found.read` reads it. Whatever is wrong
with a file ends in one UserError.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mnist_lightning.data import arrays, emnist, folders, idx, parquet, tables
from mnist_lightning.data.digits import TEN, Digits, Part, sample
from mnist_lightning.data.sets import chosen_set, paired_sets, set_name, split_of
from mnist_lightning.errors import BadSetting, UserError
from mnist_lightning.files import is_device

TAKES = "IDX files, EMNIST's, .npz, .npy, .pt, .mat, CSV, TSV and text, Parquet, folders of pictures, also in archives"
LABELS = (
    "they are taken from folders named after the classes, from pictures' names such as 7_0012.png or a table of names "
    "and labels beside them, from a column of a table, and from an array of labels as long as that of the images"
)
SPLIT_SEED = 0  # which images of one split are held out to test on
_DEPTH, _MOST_FILES = 5, 2_000_000


def files_under(root: Path) -> list[Path]:
    """All files in a folder and up to four folders below, hidden ones left out, in the order of their names."""
    if is_device(root):
        raise UserError(f"{root} is a pipe or a device: give the folder or the file of the digits with --data.root")
    if not root.is_dir():
        return [root] if root.is_file() else []
    files: list[Path] = []

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be listed ({error.strerror}): check its permissions") from error

    seen: set[tuple[int, int]] = set()
    for folder, inner, names in os.walk(root, onerror=refuse, followlinks=True):
        here = Path(folder)
        one = ((status := here.stat()).st_dev, status.st_ino)
        if one in seen:  # by a link
            inner[:] = []
            continue
        seen.add(one)
        deep = len(here.parts) - len(root.parts) + 1 >= _DEPTH
        inner[:] = [] if deep else sorted(name for name in inner if not name.startswith((".", "__")))
        files += [here / name for name in sorted(names) if not name.startswith(".")]
        if len(files) > _MOST_FILES:
            raise UserError(f"{root} holds over {_MOST_FILES:,} files: give the folder of the digits with --data.root")
    return files


@dataclass
class Found:
    """Digits that lie under a root, recognised: which parts of them are to train on, and to test on."""

    root: Path
    name: str  # of the set, such as "emnist-letters"
    parts: dict[str, list[Part]]  # by "train" and "test"; only one of them where they are still to be divided
    how: str  # train and test were told apart
    mappings: list[Path] = field(default_factory=list)  # files that name EMNIST's labels
    others: list[str] = field(default_factory=list)  # sets that were not taken
    unlabelled: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was done to the images
    counts: dict[str, int] = field(default_factory=dict)  # images of what was read
    names: tuple[str, ...] = TEN
    _read: dict[str, Digits] = field(default_factory=dict)

    @property
    def form(self) -> str:
        return ", ".join(dict.fromkeys(part.form for parts in self.parts.values() for part in parts))

    @property
    def divided(self) -> bool:
        """Whether there is only one split, of which a sixth is held out to test on."""
        return len(self.parts) == 1 and "train" in self.parts

    def read(self, split: str) -> Digits:
        """The digits of "train" or "test"."""
        if split not in self._read:
            if split not in self.parts and not self.divided:
                alone = [part for part in self.unlabelled if part.kind != "test"]
                if alone:
                    alone[0].read()  # what is wrong with it, if anything is
                    raise UserError(f"{alone[0].where} has no labels of as many images beside it: add them")
                raise UserError(f"{self.root} holds images to {self.how} only: add those to train on")
            self._load(split)
        digits = self._read.pop(split)  # who asks keeps it
        self.counts[split], self.names = len(digits.labels), digits.names
        return digits

    def whole(self) -> Digits:
        """All images where there is only one split."""
        digits = self._upright(joined([part.read() for part in next(iter(self.parts.values()))]))
        self.counts, self.names = {"test": len(digits.labels)}, digits.names
        return digits

    def told(self) -> str:
        """What was recognised, in a line."""
        parts = [part for parts in self.parts.values() for part in parts]
        counts = {split: sum(part.count or 0 for part in self.parts.get(split, ())) for split in ("train", "test")}
        counts |= self.counts
        images = " and ".join(f"{count:,} to {split} on" for split, count in counts.items() if count)
        sizes = {"×".join(map(str, part.size)) if part.size else "several sizes" for part in parts}
        size = sizes.pop() if len(sizes) == 1 else "several sizes"
        size += "" if size == "28×28" else " made 28×28"
        names = ", ".join(self.names)
        classes = f"{len(self.names)} classes" + (f" ({names})" if self.names != TEN and len(names) <= 200 else "")
        told = f"Digits of {self.root}: {self.form}, {images}, {size}, {classes}; {self.how}"
        if self.others:
            shown = ", ".join(self.others[:6]) + (f" and {len(self.others) - 6} more" if len(self.others) > 6 else "")
            told += f"; {self.name} is taken, there are also {shown}: --data.subset takes another"
        bare = [part.where.name for part in self.unlabelled]
        unused = [f"{', '.join(bare[:3])} {'has' if len(bare) == 1 else 'have'} no labels"] if bare else []
        return "; ".join([told, *unused, *self.notes])

    def _load(self, split: str) -> None:
        if self.divided:
            self._read |= divided(self.whole())
            self.counts = {split: len(digits.images) for split, digits in self._read.items()}
            return
        # each is read for the others' names, but where they are the ten digits anyway
        wanted = [split] if self._are_digits_in_idx() else list(self.parts)
        found = {one: self._upright(joined([part.read() for part in self.parts[one]])) for one in wanted}
        names = _all_names([digits.names for digits in found.values()])
        self._read |= {one: named(digits, names) for one, digits in found.items()}

    def _are_digits_in_idx(self) -> bool:
        return self.form == "IDX" and not re.search("emnist|letters|class|merge|balanced", self.name)

    def _upright(self, digits: Digits) -> Digits:
        """EMNIST's digits with their names and upright, anybody else's as they are; white on black."""
        if digits.labels is None:
            return digits
        part = next(iter(self.parts.values()))[0]
        where = f"{self.root.name}/{self.name} {part.form}"
        kind = emnist.set_of(where, digits)
        by_name = "emnist" in where.lower()
        if kind:
            renamed = emnist.renamed(digits, emnist.names_of(kind, self.mappings))
            if by_name or max(emnist.likeness(renamed)[:2]) > 0.15:
                digits = renamed
        if (kind or digits.names == TEN) and emnist.lies_mirrored(digits, by_name):
            digits = emnist.turned(digits)
            self._note("turned upright, as EMNIST's files lie mirrored")
        if is_dark_on_light(digits.images):
            digits = Digits(255 - digits.images, digits.labels, digits.names)
            self._note("inverted, as they are dark on light")
        return digits

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


# ---------------------------------------------------------------------- which parts are to train and to test on


def _parts(root: Path, files: list[Path], label: str = "auto", keep: bool = True) -> list[Part]:
    """What every reader recognises; pictures are so many that only the reader of pictures looks at them."""
    pictures, files = folders.pictures_among(files)
    found = idx.recognise(root, files)  # it says what is wrong with a pipe or a device under a known name
    files = [file for file in files if file.is_file()]  # a pipe would be waited for
    found += arrays.recognise(root, files) + tables.recognise(root, files, label)
    return found + parquet.recognise(root, files, label) + folders.recognise(root, pictures + files, keep)


def find(root: Path, subset: str | None = None, label: str = "auto", keep: bool = True) -> Found | None:
    """What lies under a root, in any form; None where nothing is recognised.

    `subset`: which of several sets; `label`: which column of a table; `keep`: whether pictures are kept once decoded.
    """
    files = files_under(root)
    parts = _parts(root, files, label, keep)
    labelled = [part for part in parts if part.labelled]
    if not labelled and root.is_file() and parts:  # labels in another file beside it
        return _beside(root)
    if not labelled:
        return None
    sets: dict[str, list[Part]] = {}
    for part in labelled:
        sets.setdefault(set_name(part, root), []).append(part)
    sets = paired_sets(sets)
    name = chosen_set(sets, subset, root)
    mappings = [path for path in files if path.name.lower().endswith("mapping.txt")]
    split, how = split_of(sets[name])
    unlabelled = [part for part in parts if not part.labelled]
    return Found(root, name, split, how, mappings, [other for other in sets if other != name], unlabelled)


def read(root: Path, split: str) -> Digits:
    """The digits of "train" or "test" that lie under a root."""
    found = find(root)
    if not found:
        raise UserError(saw(root))
    return found.read(split)


def _beside(file: Path) -> Found | None:
    """The set that a file of images belongs to, with its labels in the same folder."""
    files = [path for path in files_under(file.parent) if path.parent == file.parent]
    parts = [part for part in _parts(file.parent, files) if part.labelled]
    mine = next((part for part in parts if file in (part.where, *part.where.parents)), None)
    if mine is None:
        return None
    return find(file.parent, set_name(mine, file.parent))


def saw(root: Path) -> str:
    """What lies under a root that holds nothing to learn from, and what is taken, for an error."""
    files = files_under(root)
    unlabelled = [part for part in _parts(root, files) if not part.labelled]
    if unlabelled:
        unlabelled[0].read()  # what is wrong with it, if anything is
        return f"{unlabelled[0].where} ({unlabelled[0].form}) holds images without labels: {LABELS}"
    if pickled := next((path for path in files if re.search(r"\.(pkl|pickle|pck)\b", path.name.lower())), None):
        return f"{pickled} is pickled, which could run code and is not read: save the arrays with numpy.savez"
    if not root.exists():
        return f"there is no {root}: give the folder or the file of the digits with --data.root"
    names = [str(path.relative_to(root)) if path != root else path.name for path in files]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8:,} more files" if len(names) > 8 else "")
    return f"{root} holds {shown or 'nothing'}, in which no digits are recognised: taken are {TAKES}"


# ---------------------------------------------------------------------- from parts to digits


def joined(several: list[Digits]) -> Digits:
    """The digits of all, with the classes of all."""
    if len(several) == 1:
        return several[0]
    names = _all_names([digits.names for digits in several])
    several = [named(digits, names) for digits in several]
    images, labels = (torch.cat([digits[at] for digits in several]) for at in (0, 1))  # type: ignore[misc]
    return Digits(images, labels, names)


def _all_names(several: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The classes of all, numbers in the order of numbers."""
    every = list(dict.fromkeys(name for names in several for name in names))
    if len(every) == len(several[0]):
        return several[0]
    if all(re.fullmatch(r"-?\d+", name) for name in every):
        return tuple(sorted(every, key=int))
    return tuple(sorted(every))


def named(digits: Digits, names: tuple[str, ...]) -> Digits:
    """The same digits with other classes beside theirs, or in another order."""
    if digits.names == names or digits.labels is None:
        return digits
    if len(names) > 256:
        raise UserError(f"there are {len(names)} classes in all files together: there can be 256")
    place = {name: at for at, name in enumerate(names)}
    table = torch.tensor([place.get(name, 0) for name in digits.names], dtype=torch.uint8)
    return Digits(digits.images, table[digits.labels.long()], names)


def only(digits: Digits, wanted: list[str]) -> Digits:
    """The images of some classes, by their names; these are then all classes."""
    if missing := [name for name in wanted if name not in digits.names]:
        raise BadSetting(f"--data.classes: there is no class {missing[0]!r}; there are {', '.join(digits.names[:70])}")
    kept = [at for at, name in enumerate(digits.names) if name in wanted]
    if len(kept) < 2:
        raise BadSetting("--data.classes: a network tells at least two classes apart")
    which = torch.isin(digits.labels, torch.tensor(kept, dtype=torch.uint8))
    found = Digits(digits.images[which], digits.labels[which], digits.names)
    return named(found, tuple(digits.names[at] for at in kept))


def divided(digits: Digits) -> dict[str, Digits]:
    """A sixth of the images to test on, chosen by a fixed seed, and the rest, each in their order."""
    count = len(digits.images)
    if count < 2:
        raise UserError("there is one image only: it takes at least two to train and to test on")
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))[: max(1, count // 6)]
    held_out = torch.zeros(count, dtype=torch.bool).index_fill_(0, chosen, True)
    return {
        split: Digits(digits.images[which], digits.labels[which], digits.names)
        for split, which in (("train", ~held_out), ("test", held_out))
    }


def is_dark_on_light(images: torch.Tensor) -> bool:
    """Whether nine of ten images (of a sample) have a light frame, darker inside: ink on paper."""
    some = images[sample(len(images))].float()
    frame = torch.cat([some[:, 0], some[:, -1], some[:, :, 0], some[:, :, -1]], dim=1).median(1).values
    light = (frame >= 192) & (some.mean((1, 2)) < frame)
    return bool(light.double().mean() >= 0.9)
