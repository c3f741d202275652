"""Several real processes (gloo) train, evaluate and predict as one does, and survive what torchrun is for."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from processes import LAST, NET, PLAIN, children, ended, same_run, told, wait_until

from mnist_lightning.data.digits import Digits
from mnist_lightning.data.synthetic import synthetic_digits
from mnist_lightning.data.tables import write_text
from mnist_lightning.training.checkpoints import read_checkpoint

MANY = [2, *(pytest.param(world, marks=pytest.mark.slow) for world in (3, 4))]
SGD = [*PLAIN, "--model.optimizer", "SGD"]


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def same_training(one: Path, many: Path) -> None:
    """Only the order of summation differs: 1e-5 after 63 steps."""
    weights = [read_checkpoint(run / "last.ckpt")["state_dict"] for run in (one, many)]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)
    assert len(rows(one)) == len(rows(many))
    for a, b in zip(rows(one), rows(many), strict=True):
        for key in ("epoch", "step", "images", "lr", "train_acc", "val_acc"):
            assert a[key] == b[key]
        for key in ("train_loss", "val_loss"):
            assert float(a[key] or 0) == pytest.approx(float(b[key] or 0), rel=1e-4)


@pytest.mark.parametrize("world", MANY)
@pytest.mark.parametrize(
    "words",
    [
        "--data.val_size 55",  # an epoch's last step has 5 images
        "--data.val_size 59",  # it has one, and every other rank none
        "--data.val_size 59 --trainer.accumulate_grad_batches 2 --trainer.gradient_clip_val 0.3",
    ],
)
@pytest.mark.slow
def test_ranks_with_the_same_global_batch_are_one_process_within_tolerance(start, ranks, tmp_path, words, world):
    command = ("fit", *SGD, *words.split(), "--data.batch_size")
    ended(start(*command, 12, "--run", "one"))
    ended(*ranks(world, *command, 12 // world, "--run", "many"))
    same_training(tmp_path / "runs" / "one", tmp_path / "runs" / "many")


@pytest.mark.slow
def test_a_batch_that_is_larger_than_the_data(start, ranks, tmp_path):
    ended(start("fit", *SGD, "--data.batch_size", 400, "--run", "one"))
    ended(*ranks(2, "fit", *SGD, "--data.batch_size", 200, "--run", "many"))
    same_training(tmp_path / "runs" / "one", tmp_path / "runs" / "many")


@pytest.mark.slow
def test_a_last_batch_that_is_cut_alone(ranks, real_mnist):
    words = "--model MLP --data.val_size 999 --data.batch_size 3500 --trainer.max_epochs 1"
    ended(*ranks(2, "fit", *words.split(), "--data.root", real_mnist))


@pytest.fixture
def odd_digits(tmp_path: Path) -> list[str]:
    """301 digits to train on and 103 to test on: neither divides by 2, 3 or 4."""
    words = ["--data.source", "text"]
    for split, count in (("train", 301), ("test", 103)):
        write_text(Digits(*synthetic_digits(count, seed=count)), tmp_path / f"{split}.txt")
        words += [f"--data.{split}_file", f"{tmp_path}/{split}.txt"]
    return words


@pytest.mark.parametrize("world", MANY)
def test_every_image_is_counted_once_and_predicted_in_order(start, ranks, odd_digits, tmp_path, world):
    one_epoch = ("--data.val_size", 61, "--trainer.max_epochs", 1)
    ended(start("fit", *NET, *odd_digits, *one_epoch, "--run", "a"))
    folder, found = tmp_path / "runs" / "a", []
    for many in (1, world):
        for command in ("test", "validate", "predict"):
            words = (command, "--run", "a", "--ckpt_path", "last")
            ended(*([start(*words)] if many == 1 else ranks(many, *words)))
        results = [json.loads((folder / f"{name}.json").read_text()) for name in ("test", "val")]
        assert [result["images"] for result in results] == [103, 61]
        with (folder / "predictions.csv").open() as file:
            table = list(csv.DictReader(file))
        assert [int(row["image"]) for row in table] == list(range(103))
        # a probability may differ in its last decimal, as batches are cut otherwise
        found.append([[result["correct"] for result in results], [(row["label"], row["prediction"]) for row in table]])
    assert found[0] == found[1]


@pytest.mark.parametrize("val_size", [60, 59])  # without and with a last step of one image, and none on the second rank
def test_all_ranks_validate_the_running_statistics_of_the_checkpoint(start, ranks, tmp_path, val_size):
    """Each rank's batch normalisation sees images of its own."""
    words = ("--model.order=[conv,norm,activation,pool,dropout]", "--data.val_size", val_size, "--data.batch_size", 6)
    ended(*ranks(2, "fit", *NET, *words, "--trainer.max_epochs", 1, "--run", "a"))
    (row,) = (row for row in rows(tmp_path / "runs" / "a") if row["val_acc"])
    ended(start("validate", "--run", "a", *LAST))
    found = json.loads((tmp_path / "runs" / "a" / "val.json").read_text())
    assert found["loss"] == pytest.approx(float(row["val_loss"]), rel=1e-5)
    assert found["accuracy"] == pytest.approx(float(row["val_acc"]))


@pytest.mark.parametrize("before", [1, 2])  # processes
def test_another_number_of_processes_goes_on_if_the_global_batch_is_the_same(start, ranks, tmp_path, before):
    ended(start("fit", *SGD, "--data.batch_size", 12, "--run", "one"))

    def some(world: int, *words: object, **cut) -> list:
        words = ("fit", *SGD, "--data.batch_size", 12 // world, "--run", "a", *words)
        alone = ("--trainer.devices", 1, "--trainer.strategy", "auto")  # config.yaml may have those of two
        return [start(*words, *alone, **cut)] if world == 1 else ranks(world, *words, **cut)

    stop = {"moment": "step", "number": 30, "signals": (signal.SIGTERM,)}
    ended(*some(before, **stop), status=143)
    refused = some(3 - before, *LAST, "--data.batch_size", 11)
    ended(*refused, status=1)
    assert f"{before} processes had 12 images in a step together, {3 - before} now have" in told(refused[0])
    after = some(3 - before, *LAST)
    ended(*after)
    assert f"The checkpoint is of {before} processes, this is {3 - before} with as many images" in after[0].text()
    # also the accuracy of the epoch that some processes began and others ended
    same_training(tmp_path / "runs" / "one", tmp_path / "runs" / "a")


@pytest.mark.slow
def test_a_killed_run_of_two_processes_ends_with_the_same_bytes(ranks, tmp_path):
    words = ("fit", *NET, "--data.batch_size", 5, "--data.val_size", 59)  # an epoch's last step has one image
    ended(*ranks(2, *words, "--run", "whole"))
    first = ranks(2, *words, "--run", "a", moment_1="step", number_1=36)
    ended(*first, status=[1, -signal.SIGKILL])
    ended(*ranks(2, *words, "--run", "a", *LAST))
    same_run(tmp_path / "runs" / "a", tmp_path / "runs" / "whole")


@pytest.mark.parametrize("by", ["Slurm", "variables"])
def test_what_another_launcher_starts_is_one_training(start, free_port, tmp_path, by):
    """As `srun -n 2` does, and torch's own examples; the Trainer was told nothing."""
    started = []
    for rank in ("0", "1"):
        slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": rank, "SLURM_JOB_NAME": "train"}
        variables = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank}
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port, **(slurm if by == "Slurm" else variables)}
        words = (*SGD, "--data.batch_size", 6, "--trainer.max_epochs", 1, "--trainer.accelerator", "cpu", "--run", "a")
        started.append(start("fit", *words, **env))
    ended(*started)
    state = read_checkpoint(tmp_path / "runs" / "a" / "last.ckpt")["mnist_lightning"]
    assert (state["world_size"], state["step"]) == (2, 20)
    assert not started[1].text().strip()
    assert [run.name for run in (tmp_path / "runs").iterdir()] == ["a"]


# ---------------------------------------------------------------------- torchrun


def torchrun(settings: list, words: list, env: dict, log: Path, prefix: tuple = ()) -> subprocess.Popen:
    with log.open("w") as file:
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", "torch.distributed.run", *map(str, settings),
             "-m", "--", "mnist_lightning", *map(str, words)],  # -- because --run is short for a flag of torchrun
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **FRESH_STORE, **env},
        )  # fmt: skip


def end(agent: subprocess.Popen) -> None:
    """Kills an agent and its workers, which are in sessions of their own."""
    for pid in [*children(agent.pid), agent.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    agent.wait()


def steps_of(run: Path) -> int:
    """The last step in the table."""
    file = run / "metrics.csv"
    lines = file.read_text().splitlines() if file.exists() else []
    return int(lines[-1].split(",")[1]) if len(lines) > 1 else 0


# Without it torchrun's workers may find the addresses of those before them, and fail to connect (PyTorch issue 135712).
FRESH_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
LONG = [*NET, "--trainer.max_epochs", "80", "--trainer.accelerator", "cpu"]


@pytest.mark.slow
@pytest.mark.parametrize("told_by", ["torchrun", "--trainer.devices"])  # how many processes there are
def test_a_rank_killed_under_torchrun_comes_back_and_the_end_is_the_same(tiny_mnist, tmp_path, told_by):
    words = ["fit", *LONG, "--data.root", tiny_mnist, "--trainer.default_root_dir", tmp_path]
    words += [] if told_by == "torchrun" else ["--trainer.devices", 2, "--trainer.strategy", "ddp"]
    settings = ["--standalone", "--nproc-per-node", 2, "--max-restarts", 2]
    whole = torchrun(settings, [*words, "--run", "whole"], {}, tmp_path / "whole.log")
    assert whole.wait(120) == 0, (tmp_path / "whole.log").read_text()
    log = tmp_path / "log"
    agent = torchrun(settings, [*words, "--run", "a"], {}, log)
    try:
        wait_until(lambda: steps_of(tmp_path / "a") > 100 or agent.poll() is not None)
        os.kill(children(agent.pid)[-1], signal.SIGKILL)
        assert agent.wait(180) == 0, log.read_text()
    finally:
        end(agent)
    assert "continues from" in " ".join(log.read_text().split())
    same_run(tmp_path / "a", tmp_path / "whole")


@pytest.fixture
def two_nodes(tmp_path):
    """Two network namespaces joined by a cable (veth): the commands' prefixes, and a switch for the cable."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names = [f"mnist{os.getpid()}{end}" for end in "ab"]
    cables = [f"v{os.getpid()}{end}" for end in "ab"]

    def ip(*words: str, check: bool = True) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        if check and done.returncode:
            pytest.skip(f"network namespaces are not permitted here: {done.stderr.strip()}")

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for number, (name, cable) in enumerate(zip(names, cables, strict=True), 1):
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")

        def cable(state: str) -> None:
            ip("-n", names[1], "link", "set", cables[1], state)

        yield [("ip", "netns", "exec", name) for name in names], cables, cable
    finally:
        for name in names:
            ip("netns", "del", name, check=False)


@pytest.mark.slow
def test_two_nodes_one_cut_off_and_restored(two_nodes, tiny_mnist, tmp_path):
    """The second node loses its network and its processes; started again, the two go on and end with the same bytes."""
    prefixes, cables, cable = two_nodes
    words = ["fit", *LONG, "--data.root", tiny_mnist]
    words += ["--trainer.default_root_dir", tmp_path]

    def node(number: int, run: str) -> subprocess.Popen:
        settings = ["--nnodes", 2, "--nproc-per-node", 1, "--max-restarts", 3, "--rdzv-backend", "c10d"]
        settings += ["--rdzv-endpoint", "10.77.0.1:29400", "--rdzv-id", run, "--local-addr", f"10.77.0.{number + 1}"]
        settings += ["--rdzv-conf", f"is_host={1 - number},keep_alive_interval=1,keep_alive_max_attempt=3"]
        env = {"GLOO_SOCKET_IFNAME": cables[number], "TP_SOCKET_IFNAME": cables[number]}
        return torchrun(settings, [*words, "--run", run], env, tmp_path / f"{run}-node{number}.log", prefixes[number])

    def logs(run: str) -> str:
        return "\n".join((tmp_path / f"{run}-node{number}.log").read_text()[-3000:] for number in (0, 1))

    started = [node(0, "whole"), node(1, "whole")]
    try:
        for agent in started:
            assert agent.wait(150) == 0, logs("whole")
        started += [node(0, "a"), node(1, "a")]
        wait_until(lambda: steps_of(tmp_path / "a") > 100 or started[2].poll() is not None)
        cable("down")
        end(started[3])
        time.sleep(1)
        cable("up")
        started.append(node(1, "a"))
        assert started[2].wait(240) == 0, logs("a")
        assert started[4].wait(30) == 0, logs("a")
    finally:
        for agent in started:
            end(agent)
    same_run(tmp_path / "a", tmp_path / "whole")
