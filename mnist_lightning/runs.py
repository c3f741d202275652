"""Run folders: `checkpoints/<run>/` and how one is named, found and described."""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from mnist_lightning.errors import UserError


def is_first_process() -> bool:
    """Whether this is the one process that makes folders, before Lightning can tell (torchrun, Slurm, Lightning)."""
    ranks = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return all(os.environ.get(rank, "0") == "0" for rank in ranks)


JOB = ".job"  # the file of a run folder that says which job of torchrun or Slurm made it
HELD: set[int] = set()  # inodes of the run folders that this process writes to


def job_of(words: list[str]) -> dict[str, Any]:
    """What tells a job that torchrun or Slurm starts again from every other."""
    job = [os.environ[name] for name in ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID") if name in os.environ]
    return {"words": words, "slurm": job or None, "torchrun": os.environ.get("TORCHELASTIC_RUN_ID")}


def cut_off_run(root: Path, words: list[str]) -> Path | None:
    """The run that this very job was training before it was started again; None if this is its first start."""
    job = job_of(words)
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        by = "slurm"
    elif os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" or job["torchrun"] not in (None, "none"):
        by = "torchrun"  # it replaces a lost node without counting that as a restart
    else:
        return None
    found = []
    for file in root.glob(f"*/{JOB}"):
        try:
            old = json.loads(file.read_text())
        except (OSError, ValueError):
            continue  # cut off while it was written: that run has not begun
        finished = (file.parent / "test.json").exists()
        if old.get("words") == words and old.get(by) == job[by] and (by == "slurm" or not finished):
            found.append(file)
    return max(found, key=lambda file: file.stat().st_mtime_ns).parent if found else None


def hold(folder: Path, patience: float = 3.0) -> None:
    """Makes this the one process that writes to a run; the system lets go of it when the process ends, however."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    descriptor = os.open(folder, os.O_RDONLY)  # open until the process ends
    if (inode := os.fstat(descriptor).st_ino) in HELD:
        return os.close(descriptor)
    deadline = time.monotonic() + patience  # one that has been told to stop may still be writing
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise UserError(
                    f"{folder} is being trained by another process: wait, or choose another --run"
                ) from None
            time.sleep(0.1)
        except OSError:  # a file system without locks
            break
    HELD.add(inode)


def base_name(config: str | None, model: str | None) -> str | None:
    """The run name that a request asks for: the recipe's name, else the model's."""
    if config:
        path = Path(config)
        # a run's own config.yaml asks for another such run
        return re.sub(r"-\d+$", "", path.resolve().parent.name) if path.stem == "config" else path.stem
    return model.rpartition(".")[2].lower() if model else None


def newest_run(root: Path, base: str | None) -> Path:
    """The newest run folder, of those called `base`, `base-2`, … if a base is given."""
    runs = [folder for folder in root.glob("*") if (folder / "config.yaml").exists()]
    if base is not None:
        runs = [folder for folder in runs if re.fullmatch(re.escape(base) + r"(-\d+)?", folder.name)]
    if not runs:
        of = f" of {base}" if base else ""
        raise UserError(f"there is no run{of} in {root}: start one with fit, or name one with --run or --ckpt_path")
    return max(runs, key=lambda folder: (folder / "config.yaml").stat().st_mtime_ns)


def named_run(root: Path, name: str) -> Path:
    """The run folder called `name`."""
    folder = root / name
    if not (folder / "config.yaml").exists():
        there = sorted(f.parent.name for f in root.glob("*/config.yaml"))
        raise UserError(f"there is no run {name!r} in {root}; there are: {', '.join(there) or 'none'}")
    return folder


def new_run(root: Path, base: str, exact: bool) -> Path:
    """Makes the folder of a new run: `base`, else `base-2`, `base-3`, …; with `exact`, `base` or an error."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        for number in range(1, 100_000):
            folder = root / (base if number == 1 else f"{base}-{number}")
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                if exact and _never_began(folder):
                    return folder
                if exact:
                    raise UserError(
                        f"the run {folder} is there already: continue it with --ckpt_path last, or choose another --run"
                    ) from None
    except OSError as error:
        raise UserError(
            f"no run folder can be made in {root}: {error.strerror}; see --trainer.default_root_dir"
        ) from error
    raise UserError(f"there are too many runs called {base} in {root}")


def _never_began(folder: Path) -> bool:
    """Whether this is a run that was killed before its first checkpoint."""
    return not any(folder.glob("*.ckpt")) and ((folder / "config.yaml").exists() or not any(folder.iterdir()))


def good_checkpoint(folder: Path, which: str) -> Path:
    """The checkpoint that `last` or `best` of a run means; says which damaged ones were passed over."""
    from mnist_lightning.training.checkpoints import find_checkpoint

    file, passed = find_checkpoint(folder, which)
    if is_first_process():
        for line in passed:
            print(f"mnist_lightning: {line}", file=sys.stderr)
    return file


def checkpoint_file(root: Path, run_name: str | None, base: str | None, ckpt_path: str) -> tuple[Path | None, Path]:
    """The run folder to write to (None: a new one) and the checkpoint file that `--ckpt_path` means."""
    if ckpt_path in ("last", "best"):
        folder = named_run(root, run_name) if run_name else newest_run(root, base)
        return folder, good_checkpoint(folder, ckpt_path)
    file = Path(ckpt_path)
    if run_name is not None:
        return (root / run_name if (root / run_name / "config.yaml").exists() else None), file
    in_run = file.resolve().parent.parent == root.resolve() and (file.parent / "config.yaml").exists()
    return (file.parent if in_run else None), file


def differences(checkpoint: dict[str, Any], model: Any, data: Any, ranks: int, precision: str) -> list[str]:
    """What a resumed training would do otherwise than the one that wrote the checkpoint, in the words of the flags.

    Not compared: what changes no result (root, source and files, of which the images are compared; block size).
    """
    from mnist_lightning.training.checkpoints import STATE

    state = checkpoint[STATE]
    found = []
    for group, old, new in (
        ("model", checkpoint["hyper_parameters"], dict(model.hparams)),
        ("data", checkpoint["datamodule_hyper_parameters"], dict(data.hparams)),
    ):
        for name in sorted(new):
            if group == "data" and name not in ("val_size", "train_size", "seed", "normalize"):
                continue
            if _plain(old.get(name)) != _plain(new[name]):
                found.append(f"--{group}.{name} was {old.get(name)}, is {new[name]}")
    old_size, size = state["global_batch_size"], data.hparams["batch_size"] * ranks
    if old_size != size and state["world_size"] == ranks:
        found.append(f"--data.batch_size was {old_size // ranks}, is {size // ranks}")
    elif old_size != size:
        found.append(
            f"{state['world_size']} processes had {old_size} images in a step together, {ranks} now have {size}: "
            "mend it with --data.batch_size"
        )
    if state["precision"] != precision:
        found.append(f"--trainer.precision was {state['precision']}, is {precision}")
    return found


def _plain(value: Any) -> Any:
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value


def is_device(path: Path) -> bool:
    """Whether this is a pipe, which would be waited for, or a device, which may have no end."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_whole(text: str, path: Path) -> None:
    """Writes the file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
