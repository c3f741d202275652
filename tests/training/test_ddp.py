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
from processes import NET, no_traceback, same_run

from mnist_lightning.data.sources import Digits, write_text
from mnist_lightning.data.synthetic import synthetic_digits
from mnist_lightning.training.checkpoints import read_checkpoint

MANY = [2, *(pytest.param(world, marks=pytest.mark.slow) for world in (3, 4))]
# No dropout: its random numbers are drawn for the images of a rank.
PLAIN = [word for word in NET if "dropout" not in word]


def finish(processes) -> None:
    statuses = [process.wait() for process in processes]
    assert statuses == [0] * len(processes), "\n".join(process.text() for process in processes)
    no_traceback(*processes)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("world", MANY)
def test_ranks_with_the_same_global_batch_are_one_process_within_tolerance(start, ranks, tmp_path, world):
    """The same images in each step, 5 in an epoch's last; only the order of summation differs: 1e-5 after 63 steps."""
    words = [*PLAIN, "--data.val_size", 55, "--model.optimizer", "SGD", "--data.batch_size"]
    assert start("fit", *words, 12, "--run", "one").wait() == 0
    finish(ranks(world, "fit", *words, 12 // world, "--run", "many"))
    one, many = (tmp_path / "runs" / run for run in ("one", "many"))
    weights = [read_checkpoint(run / "last.ckpt")["state_dict"] for run in (one, many)]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)
    assert len(rows(one)) == len(rows(many)) == 12 + 3  # every 5 of 63 steps, and 3 epochs
    for a, b in zip(rows(one), rows(many), strict=True):
        assert [a[k] for k in ("epoch", "step", "images", "lr")] == [b[k] for k in ("epoch", "step", "images", "lr")]
        for key in ("train_loss", "val_loss"):
            assert float(a[key] or 0) == pytest.approx(float(b[key] or 0), rel=1e-4)


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
    finish([start("fit", *NET, *odd_digits, *one_epoch, "--run", "a")])
    folder, found = tmp_path / "runs" / "a", []
    for many in (1, world):
        for command in ("test", "validate", "predict"):
            words = (command, "--run", "a", "--ckpt_path", "last")
            finish([start(*words)] if many == 1 else ranks(many, *words))
        results = [json.loads((folder / f"{name}.json").read_text()) for name in ("test", "val")]
        assert [result["images"] for result in results] == [103, 61]
        with (folder / "predictions.csv").open() as file:
            table = list(csv.DictReader(file))
        assert [int(row["image"]) for row in table] == list(range(103))
        # a probability may differ in its last decimal, as batches are cut otherwise
        found.append([[result["correct"] for result in results], [(row["label"], row["prediction"]) for row in table]])
    assert found[0] == found[1]


def test_all_ranks_validate_the_running_statistics_of_the_checkpoint(start, ranks, tmp_path):
    """Each rank's batch normalisation sees images of its own."""
    order = "--model.order=[conv,norm,activation,pool,dropout]"
    finish(ranks(2, "fit", *NET, order, "--data.batch_size", 5, "--trainer.max_epochs", 1, "--run", "a"))
    (row,) = (row for row in rows(tmp_path / "runs" / "a") if row["val_acc"])
    finish([start("validate", "--run", "a", "--ckpt_path", "last")])
    found = json.loads((tmp_path / "runs" / "a" / "val.json").read_text())
    assert found["loss"] == pytest.approx(float(row["val_loss"]), rel=1e-5)
    assert found["accuracy"] == pytest.approx(float(row["val_acc"]))


def test_another_number_of_processes_goes_on_if_the_global_batch_is_the_same(start, ranks, tmp_path):
    words = [*PLAIN, "--model.optimizer", "SGD", "--data.batch_size"]
    assert start("fit", *words, 12, "--run", "one").wait() == 0
    first = ranks(2, "fit", *words, 6, "--run", "a", moment_0="block", number_0=10, signals_0=(signal.SIGTERM,))
    assert [process.wait() for process in first] == [143, 143]
    single = ("--trainer.devices", 1, "--trainer.strategy", "auto")  # config.yaml has those of two
    refused = start("fit", *words, 6, "--run", "a", "--ckpt_path", "last", *single)
    assert refused.wait() == 1, refused.text()
    assert "2 processes had 12 images in a step together, 1 now have 6" in refused.text()
    process = start("fit", *words, 12, "--run", "a", "--ckpt_path", "last", *single)
    assert process.wait() == 0, process.text()
    said = " ".join(process.text().split())
    assert "The checkpoint is of 2 processes, this is 1 with as many images in a step" in said
    one, both = (tmp_path / "runs" / run for run in ("one", "a"))
    weights = [read_checkpoint(run / "last.ckpt")["state_dict"] for run in (one, both)]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)
    accuracies = [[row["train_acc"] for row in rows(run) if row["train_acc"]] for run in (one, both)]
    assert accuracies[0] == accuracies[1]  # also of the epoch that two processes began and one ended


def test_a_killed_run_of_two_processes_ends_with_the_same_bytes(ranks, tmp_path):
    words = ("fit", *NET, "--data.batch_size", 5)
    finish(ranks(2, *words, "--run", "whole"))
    first = ranks(2, *words, "--run", "a", moment_1="block", number_1=12)
    assert [process.wait() for process in first] == [1, -signal.SIGKILL]
    finish(ranks(2, *words, "--run", "a", "--ckpt_path", "last"))
    same_run(tmp_path / "runs" / "a", tmp_path / "runs" / "whole")


# ---------------------------------------------------------------------- torchrun


def torchrun(settings: list, words: list, env: dict, log: Path, prefix: tuple = ()) -> subprocess.Popen:
    with log.open("w") as file:
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", "torch.distributed.run", *map(str, settings),
             "-m", "--", "mnist_lightning", *map(str, words)],  # -- because --run is short for a flag of torchrun
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **FRESH_STORE, **env},
        )  # fmt: skip


def workers(agent: int) -> list[int]:
    """Processes that an agent of torchrun has started."""
    children = Path(f"/proc/{agent}/task/{agent}/children")
    return list(map(int, children.read_text().split())) if children.exists() else []


def end(agent: subprocess.Popen) -> None:
    """Kills an agent and its workers, which are in sessions of their own."""
    for pid in [*workers(agent.pid), agent.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    agent.wait()


def wait_for(condition, patience: float = 120.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "that took too long"
        time.sleep(0.05)


def steps_of(run: Path) -> int:
    """The last step in the table."""
    file = run / "metrics.csv"
    lines = file.read_text().splitlines() if file.exists() else []
    return int(lines[-1].split(",")[1]) if len(lines) > 1 else 0


# Without it torchrun's workers may find the addresses of those before them, and fail to connect (PyTorch issue 135712).
FRESH_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
LONG = [*NET, "--trainer.max_epochs", "80", "--trainer.accelerator", "cpu", "--trainer.strategy", "ddp"]


@pytest.mark.slow
def test_a_rank_killed_under_torchrun_comes_back_and_the_end_is_the_same(tiny_mnist, tmp_path):
    words = [
        "fit",
        *LONG,
        "--trainer.devices",
        "2",
        "--data.root",
        tiny_mnist,
        "--trainer.default_root_dir",
        tmp_path,
    ]
    settings = ["--standalone", "--nproc-per-node", 2, "--max-restarts", 2]
    whole = torchrun(settings, [*words, "--run", "whole"], {}, tmp_path / "whole.log")
    assert whole.wait(120) == 0, (tmp_path / "whole.log").read_text()
    log = tmp_path / "log"
    agent = torchrun(settings, [*words, "--run", "a"], {}, log)
    try:
        wait_for(lambda: steps_of(tmp_path / "a") > 100 or agent.poll() is not None)
        os.kill(workers(agent.pid)[-1], signal.SIGKILL)
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
    words = ["fit", *LONG, "--trainer.devices", 1, "--trainer.num_nodes", 2, "--data.root", tiny_mnist]
    words += ["--trainer.default_root_dir", tmp_path]

    def node(number: int, run: str) -> subprocess.Popen:
        settings = ["--nnodes", 2, "--nproc-per-node", 1, "--max-restarts", 3, "--rdzv-backend", "c10d"]
        settings += [
            "--rdzv-endpoint",
            "10.77.0.1:29400",
            "--rdzv-id",
            run,
            "--local-addr",
            f"10.77.0.{number + 1}",
        ]
        settings += [
            "--rdzv-conf",
            f"is_host={1 - number},keep_alive_interval=1,keep_alive_max_attempt=3",
        ]
        env = {"GLOO_SOCKET_IFNAME": cables[number], "TP_SOCKET_IFNAME": cables[number]}
        return torchrun(settings, [*words, "--run", run], env, tmp_path / f"{run}-node{number}.log", prefixes[number])

    def logs(run: str) -> str:
        return "\n".join((tmp_path / f"{run}-node{number}.log").read_text()[-3000:] for number in (0, 1))

    started = [node(0, "whole"), node(1, "whole")]
    try:
        for agent in started:
            assert agent.wait(150) == 0, logs("whole")
        started += [node(0, "a"), node(1, "a")]
        wait_for(lambda: steps_of(tmp_path / "a") > 100 or started[2].poll() is not None)
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
