"""Run folders: `checkpoints/<run>/` and how one is named, found and described."""

import os
import re
from pathlib import Path
from typing import Any

from mnist_lightning.errors import UserError


def is_first_process() -> bool:
    """Whether this is the one process that makes folders, before Lightning can tell (torchrun, Slurm, Lightning)."""
    ranks = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return all(os.environ.get(rank, "0") == "0" for rank in ranks)


def restarted() -> bool:
    """Whether torchrun or Slurm started this job again after it was cut off."""
    return any(os.environ.get(count, "0") != "0" for count in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


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
                if exact:
                    raise UserError(
                        f"the run {folder} is there already: continue it with --ckpt_path last, or choose another --run"
                    ) from None
    except OSError as error:
        raise UserError(f"no run folder can be made in {root}: {error.strerror}; see --trainer.default_root_dir") from error
    raise UserError(f"there are too many runs called {base} in {root}")


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
    if (old_size := state["global_batch_size"]) != (size := data.hparams["batch_size"] * ranks):
        found.append(
            f"{state['world_size']} processes had {old_size} images in a step together, {ranks} now have {size}: "
            "mend it with --data.batch_size"
        )
    if state["precision"] != precision:
        found.append(f"--trainer.precision was {state['precision']}, is {precision}")
    return found


def _plain(value: Any) -> Any:
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value
