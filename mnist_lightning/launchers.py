"""What torchrun, Slurm or another launcher has started is one training, whatever the Trainer was told."""

import os
from typing import Any, NamedTuple

from mnist_lightning.errors import BadSetting


class Launched(NamedTuple):
    """How many processes were started, and by whom."""

    by: str
    devices: int  # processes on each machine
    nodes: int  # machines


def launched() -> Launched | None:
    """Who started this process as one of several; None: nobody, it is alone or starts the others itself."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        here = _number("LOCAL_WORLD_SIZE")
        return Launched("torchrun", here, _number("WORLD_SIZE") // here)
    if "SLURM_PROCID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        tasks, nodes = _number("SLURM_NTASKS"), _number("SLURM_NNODES", _number("SLURM_JOB_NUM_NODES"))
        if tasks % nodes:
            raise BadSetting(f"Slurm has started {tasks} processes on {nodes} nodes: give each node as many")
        return Launched("Slurm", tasks // nodes, nodes)
    if "RANK" in os.environ and _number("WORLD_SIZE") > 1:
        everywhere = _number("WORLD_SIZE")
        here = _number("LOCAL_WORLD_SIZE", everywhere if "LOCAL_RANK" in os.environ else 1)
        return Launched("the launcher that set RANK and WORLD_SIZE", here, everywhere // here)
    if (many := _number("OMPI_COMM_WORLD_SIZE", _number("PMI_SIZE"))) > 1:
        raise BadSetting(
            f"mpirun has started {many} processes, each of which would be a training of its own: start them with "
            f"torchrun --nproc-per-node {many}"
        )
    return None


def _number(variable: str, otherwise: int = 1, least: int = 1) -> int:
    try:
        return max(least, int(os.environ.get(variable, otherwise)))
    except ValueError as error:
        raise BadSetting(f"the environment variable {variable} is {os.environ[variable]!r}, no number") from error


def as_launched(settings: dict[str, Any]) -> dict[str, Any]:
    """The Trainer's settings, with devices, nodes and who connects them as they were started.

    Raises BadSetting where the settings say otherwise: what was started would be several trainings, or wait for ever.
    """
    started = launched()
    if started is None:
        return settings
    for name, told, here, where in (
        ("devices", _count(settings.get("devices", "auto")), started.devices, "on this machine"),
        ("num_nodes", settings.get("num_nodes", 1), started.nodes, "machines"),
    ):
        if told not in (None, here, *(() if name == "devices" else (1,))):  # 1 node is what is not told
            what = f"{here} process{'es' * (here > 1)} {where}" if name == "devices" else f"processes on {here} {where}"
            raise BadSetting(f"--trainer.{name} is {told}, but {started.by} has started {what}: leave it out")
    settings = {**settings, "num_nodes": started.nodes}
    if _count(settings.get("devices", "auto")) is None:
        settings["devices"] = started.devices
    if started.by == "Slurm":
        node, local = divmod(_number("SLURM_PROCID", 0, least=0), started.devices)
        for name, value in (("NTASKS_PER_NODE", started.devices), ("NODEID", node), ("LOCALID", local)):
            os.environ.setdefault(f"SLURM_{name}", str(value))  # Lightning insists on them; `srun -n 2` sets not all
    elif started.by != "torchrun":
        settings["plugins"] = [*settings.get("plugins", []), _environment()]
    return settings


def _environment() -> Any:
    """How processes find each other by the variables that torch's own examples use."""
    from lightning.fabric.plugins.environments import KubeflowEnvironment, TorchElasticEnvironment

    return TorchElasticEnvironment() if "LOCAL_RANK" in os.environ else KubeflowEnvironment()


def _count(devices: Any) -> int | None:
    """How many devices a setting names; None: as many as there are."""
    if isinstance(devices, list | tuple):
        return len(devices)
    parts = [part for part in str(devices).split(",") if part.strip()]
    if "," in str(devices):
        return len(parts)
    return int(parts[0]) if parts and parts[0].strip().isdigit() else None
