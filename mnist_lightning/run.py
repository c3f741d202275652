"""Run: a folder of checkpoints/, how it is made, named, found, held and compared."""

import inspect
import json
import os
import re
import shlex
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Self

from mnist_lightning import files
from mnist_lightning.errors import UserError
from mnist_lightning.files import locked, write_whole
from mnist_lightning.processes import is_first_process, job_of, restarted_by

LOCK = ".lock"
MEMBER = re.compile(r"(seed|fold)-(\d+)")  # what `fit --seeds` and `--folds` call the runs inside a run
TRAINED = re.compile(r"^# last trained (\S+)$", re.MULTILINE)  # a line of config.yaml, which travels with the run


class Run:
    """The folder of one training: its settings, checkpoints, table and result. It can be copied, moved and continued.

    Which checkpoint is the last, which run the newest, is read from the files, not from their times.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.name = self.folder.name
        self.config = self.folder / "config.yaml"
        self.last = self.folder / "last.ckpt"
        self.previous = self.folder / "previous.ckpt"  # what last.ckpt was before
        self.best = self.folder / "best.ckpt"
        self.table = self.folder / "metrics.csv"
        self.result = self.folder / "test.json"
        self._job = self.folder / ".job"  # what was asked for
        self._held: int | None = None  # an open descriptor

    def __str__(self) -> str:
        return str(self.folder)

    def words(self, which: str) -> str:
        """What the command line calls one of its checkpoints, wherever it lies and whichever run is the newest."""
        root = self.folder.parent
        where = "" if root == Path("checkpoints") else f" --trainer.default_root_dir {shlex.quote(str(root))}"
        return f"--run {shlex.quote(self.name)}{where} --ckpt_path {which}"

    # ------------------------------------------------------------------ made and found

    @classmethod
    def new(cls, root: Path, base: str, exact: bool = False) -> Self:
        """Makes the folder of a new run and holds it: `base`, else `base-2`, …; with `exact`, `base` or an error."""
        try:
            root.mkdir(parents=True, exist_ok=True)
            for number in count(1):
                run = cls(root / (base if number == 1 else f"{base}-{number}"))
                with suppress(FileExistsError):
                    run.folder.mkdir()
                    run.hold()
                    return run
                if exact:
                    break
            run.hold()  # another process may be making it
            there = {file.name for file in run.folder.iterdir()} - {LOCK, f".{run.config.name}.tmp"}  # half written
        except OSError as error:
            raise UserError(
                f"no run folder can be made in {root}: {error.strerror}; see --trainer.default_root_dir"
            ) from error
        taken = any(name.endswith(".ckpt") or MEMBER.fullmatch(name) for name in there)
        if taken or (there and run.config.name not in there):
            run.release()
            raise UserError(
                f"the run {run} is there already: continue it with {run.words('last')}, or choose another --run"
            )
        return run  # it was killed before its first checkpoint

    def is_there(self) -> bool:
        """Whether it has settings or a checkpoint: of a copied run either may be missing."""
        return any(file.exists() for file in (self.config, self.last, self.previous, self.best))

    def members(self) -> list[Self]:
        """The runs inside it, where it is one of several networks; by their numbers."""
        found = [(match, folder) for folder in self.folder.glob("*-*/") if (match := MEMBER.fullmatch(folder.name))]
        runs = [type(self)(folder) for match, folder in sorted(found, key=lambda one: int(one[0][2]))]
        return [run for run in runs if run.is_there()] if self.config.exists() else []

    @classmethod
    def all(cls, root: Path) -> list[Self]:
        """The runs in `root`, by their names."""
        return [run for folder in sorted(root.glob("*/")) if (run := cls(folder)).is_there()]

    @classmethod
    def named(cls, root: Path, name: str) -> Self:
        """The run called `name`."""
        run = cls(root / name)
        if not run.is_there():
            there = ", ".join(other.name for other in cls.all(root))
            raise UserError(f"there is no run {name!r} in {root}; there are: {there or 'none'}")
        return run

    @classmethod
    def newest(cls, root: Path, base: str | None = None) -> Self:
        """The run that was trained last, of those called `base`, `base-2`, … if a base is given."""
        runs = cls.all(root)
        if base is not None:
            runs = [run for run in runs if re.fullmatch(re.escape(base) + r"(-\d+)?", run.name)]
        if not runs:
            of = f" of {base}" if base else ""
            raise UserError(f"there is no run{of} in {root}: start one with fit, or name one with --run or --ckpt_path")
        return max(runs, key=cls._trained_at)

    @classmethod
    def cut_off(cls, root: Path, words: Any) -> Self | None:
        """The run that this very job was training before it was started again; None if this is its first start."""
        by, job = restarted_by(), job_of(words)
        if by is None:
            return None
        runs = [cls(file.parent) for file in root.glob("*/.job")]
        runs = [run for run in runs if by == "slurm" or not run.result.exists()]
        own = [run for run in runs if all(run._read_job().get(key) == job[key] for key in ("words", by))]
        return max(own, key=cls._trained_at, default=None)

    def note_job(self, words: Any) -> None:
        """Notes which job began it; `words`: what that was asked, as JSON has it."""
        if not self._read_job():
            write_whole(json.dumps(job_of(words)) + "\n", self._job)

    def write_settings(self, text: str) -> None:
        """Writes config.yaml, with the time as when it was last trained: files' own times are lost when it travels."""
        write_whole(f"{text}# last trained {datetime.now(UTC).isoformat()}\n", self.config)

    def _read_job(self) -> dict[str, Any]:
        try:
            job = json.loads(self._job.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # an older run, or one that somebody has edited
        return job if isinstance(job, dict) else {}

    def _trained_at(self) -> float:
        with suppress(OSError, ValueError):
            if noted := TRAINED.search(self.config.read_text(encoding="utf-8")):
                return datetime.fromisoformat(noted[1]).timestamp()
        files = (self.config, self.last, self.previous, self.best, self.folder)  # an older run, or half of one
        return next(file.stat().st_mtime for file in files if file.exists())

    # ------------------------------------------------------------------ held

    def hold(self, patience: float = 3.0) -> None:
        """Makes this the one process that writes to the run; the system lets go of it when the process ends, however.

        Waits so many seconds for another one: it may have been told to stop, and still be writing.
        """
        deadline = time.monotonic() + patience
        with suppress(OSError):  # a folder that cannot be written to, a file system without locks
            self._held = os.open(self._lock, os.O_RDONLY if self._lock == self.folder else os.O_RDWR | os.O_CREAT)
            while not locked(self._held):
                if time.monotonic() > deadline:
                    self.release()
                    raise UserError(f"{self} is being trained by another process: wait, or choose another --run")
                time.sleep(0.1)

    @property
    def _lock(self) -> Path:
        """What is locked: the folder; on Windows, where folders cannot be opened, a file in it."""
        return self.folder if files.fcntl else self.folder / LOCK

    def release(self) -> None:
        """Lets others write to the run."""
        if self._held is not None:
            os.close(self._held)
            self._held = None
            if self._lock != self.folder:
                with suppress(OSError):  # others have it open
                    self._lock.unlink(missing_ok=True)

    # ------------------------------------------------------------------ its checkpoints

    def checkpoint(self, which: str) -> Path:
        """The file that `best` or `last` means; says which damaged ones were passed over.

        `last` is the good one that is furthest on, by what is in the files: a copy's times say nothing.
        """
        if members := self.members():
            raise UserError(
                f"{self} holds {len(members)} networks: name one, as with --run {shlex.quote(members[0].name)} "
                f"--trainer.default_root_dir {shlex.quote(str(self))}"
            )
        if which == "best":
            if not self.best.exists():
                raise UserError(
                    f"{self} has no best.ckpt: none is chosen before the first validation, or without validation "
                    f"images before the end; use {self.words('last')}"
                )
            return self.best
        from mnist_lightning.training.checkpoints import STATE, read_checkpoint  # with them comes torch

        good: dict[Path, tuple[int, ...]] = {}
        passed = []
        for file in (self.last, self.previous, self.best):
            if not file.exists() or any(file.samefile(other) for other in good):
                continue
            try:
                state = read_checkpoint(file)[STATE]
                good[file] = state["epoch"], state["batch"], state["step"]
            except UserError as error:
                passed.append(str(error).split("; ")[0])
        if not good:
            why = "; ".join(passed) or "no checkpoint has been written yet"
            raise UserError(f"{self} has no checkpoint to load ({why}): start a new run without --ckpt_path")
        file = max(good, key=lambda file: good[file])  # of equals the first
        if passed and is_first_process():
            for line in [*passed, f"continuing with {file}, the good one that is furthest on"]:
                print(f"mnist_lightning: {line}", file=sys.stderr)
        return file


def run_and_file(root: Path, run_name: str | None, base: str | None, ckpt_path: Any) -> tuple[Run | None, Path]:
    """The run to write to (None: a new one) and the checkpoint that `--ckpt_path` means; None: the best, if any."""
    if ckpt_path in (None, "last", "best"):
        run = Run.named(root, run_name) if run_name else Run.newest(root, base)
        return run, run.checkpoint(ckpt_path or ("best" if run.best.exists() else "last"))
    file = Path(str(ckpt_path))
    run = Run(root / run_name) if run_name else Run(file.parent)
    there = run.is_there() and run.folder.resolve().parent == root.resolve()
    return (run if there else None), file


def base_name(config: str | None, model: str | None) -> str | None:
    """The run name that a request asks for: the recipe's name, else the model's."""
    if config:
        path = Path(config)
        # a run's own config.yaml asks for another such run
        return re.sub(r"-\d+$", "", path.resolve().parent.name) if path.stem == "config" else path.stem
    return model.rpartition(".")[2].lower() if model else None


def differences(
    checkpoint: dict[str, Any], model: Any, data: Any, trainer: Any, freeze: list[str] | None = None
) -> list[str]:
    """What a resumed training would do otherwise than the one that wrote the checkpoint, in the words of the flags.

    Not compared is what changes no result: root, source and files of the data, of which the images are compared.
    """
    from lightning.pytorch.callbacks import GradientAccumulationScheduler

    from mnist_lightning.training.checkpoints import STATE, plain

    state = checkpoint[STATE]
    old_model = checkpoint.get("hyper_parameters", {})
    old_data = checkpoint.get("datamodule_hyper_parameters", {})
    same_ranks = state["world_size"] == trainer.world_size
    names = ["normalize", "seed", "train_size", "val_size", "folds", "fold", "classes", "subset"]
    names += ["batch_size"] * same_ranks
    # a setting that the checkpoint's version did not have was as it is by default
    old_model, old_data = _defaults_of(type(model)) | old_model, _defaults_of(type(data)) | old_data
    compared = [(f"model.{name}", old_model.get(name), new) for name, new in sorted(model.hparams.items())]
    compared += [(f"data.{name}", old_data.get(name), data.hparams.get(name)) for name in [*names, "balance"]]
    compared += [("trainer.precision", state["precision"], str(trainer.precision))]
    compared += [("freeze", state.get("freeze") or [], freeze or [])]
    if not any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
        compared += [("trainer.accumulate_grad_batches", state["accumulate"], trainer.accumulate_grad_batches)]
    found = [f"--{flag} was {old}, is {new}" for flag, old, new in compared if _lists(plain(old)) != _lists(plain(new))]
    size, old_size = data.hparams.get("batch_size", 0) * trainer.world_size, state["global_batch_size"]
    if not same_ranks and size and old_size and size != old_size:
        found.append(
            f"{state['world_size']} processes had {old_size} images in a step together, {trainer.world_size} now have "
            f"{size}: mend it with --data.batch_size"
        )
    return found


def _defaults_of(kind: type) -> dict[str, Any]:
    """What a class's settings are by default, those that its bases take among them."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__[:-1]):
        own = inspect.signature(vars(base)["__init__"]).parameters if "__init__" in vars(base) else {}
        found |= {name: one.default for name, one in own.items() if one.default is not one.empty}
    return found


def _lists(value: Any) -> Any:
    """YAML has no tuples."""
    return list(map(_lists, value)) if isinstance(value, list | tuple) else value
