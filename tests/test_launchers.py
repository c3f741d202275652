"""What a launcher has started is one training; what was told otherwise is refused in one line."""

import os

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning.errors import BadSetting
from mnist_lightning.launchers import Launched, as_launched, launched
from mnist_lightning.training.trainer import make_trainer

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1", "SLURM_JOB_NAME": "train"}
BY_HAND = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}
PODS = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "first", "MASTER_PORT": "29400"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_", "OMPI_", "PMI_", "MASTER_")) or name.endswith(("RANK", "_SIZE")):
            monkeypatch.delenv(name)
    for name in ("SLURM_NTASKS_PER_NODE", "SLURM_NODEID", "SLURM_LOCALID"):
        monkeypatch.setenv(name, "0")  # so that it is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # a Trainer sets it for the whole process


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch):
    return lambda variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        (TORCHRUN, Launched("torchrun", 2, 2)),
        (SLURM, Launched("Slurm", 2, 1)),
        (SLURM | {"SLURM_NNODES": "2"}, Launched("Slurm", 1, 2)),
        (SLURM | {"SLURM_JOB_NUM_NODES": "2"}, Launched("Slurm", 1, 2)),
        (SLURM | TORCHRUN, Launched("torchrun", 2, 2)),  # inside a Slurm job
        (SLURM | {"SLURM_JOB_NAME": "bash"}, None),  # a shell on a node
        (BY_HAND, Launched("the launcher that set RANK and WORLD_SIZE", 2, 1)),
        (PODS, Launched("the launcher that set RANK and WORLD_SIZE", 1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"}, None),  # Lightning's own
    ],
)
def test_who_started_how_many(env, variables, found):
    env(variables)
    assert launched() == found


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun has started 2 processes, each of which would be a training of its own"),
        (SLURM | {"SLURM_NTASKS": "3", "SLURM_NNODES": "2"}, "Slurm has started 3 processes on 2 nodes"),
        (SLURM | {"SLURM_NTASKS": "many"}, "the environment variable SLURM_NTASKS is 'many', no number"),
    ],
)
def test_what_cannot_be_one_training(env, variables, told):
    env(variables)
    with pytest.raises(BadSetting, match=told):
        launched()


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, (2, 2)), ({"devices": "auto", "num_nodes": 1}, (2, 2)), ({"devices": -1}, (2, 2)),
        ({"devices": 2, "num_nodes": 2}, (2, 2)), ({"devices": "0,1"}, ("0,1", 2)), ({"devices": [0, 1]}, ([0, 1], 2)),
    ],
)  # fmt: skip
def test_devices_and_nodes_come_from_the_environment(env, settings, found):
    env(TORCHRUN)
    settings = as_launched(settings)
    assert (settings["devices"], settings["num_nodes"]) == found


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"devices": 4}, "--trainer.devices is 4, but torchrun has started 2 processes on this machine: leave it out"),
        ({"devices": "1"}, "--trainer.devices is 1, but"),
        ({"devices": [0]}, "--trainer.devices is 1, but"),
        ({"num_nodes": 3}, "--trainer.num_nodes is 3, but torchrun has started processes on 2 machines: leave it out"),
    ],
)
def test_a_contradiction_is_said(env, settings, told):
    env(TORCHRUN)
    with pytest.raises(BadSetting, match=told):
        as_launched(settings)


def test_a_contradiction_ends_with_status_2_and_no_run(cli, env, tmp_path):
    env(TORCHRUN)
    result = cli("fit", "--data.source", "synthetic", "--trainer.devices", 4)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert not list((tmp_path / "checkpoints").glob("*"))


@pytest.mark.parametrize("variables", [SLURM, BY_HAND, PODS, SLURM | {"SLURM_NTASKS_PER_NODE": "2"}])
def test_the_trainer_is_one_of_two(env, variables):
    """As `srun -n 2` and torch's own examples start it."""
    env(variables)
    trainer: Trainer = make_trainer({"accelerator": "cpu", "devices": "auto"}, [])
    assert (trainer.world_size, trainer.global_rank) == (2, 1)
