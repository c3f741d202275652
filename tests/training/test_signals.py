"""SIGTERM, Ctrl-C and Slurm's SIGUSR1, at any moment, to one process and to one, some or all of several."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import LAST, NET, children, ended, same_run, state, wait_until

from mnist_lightning.training.checkpoints import read_checkpoint

STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.mark.parametrize("signum", STATUS)
@pytest.mark.parametrize(("moment", "number"), [("step", 36), ("validation", 1), ("sync", 7), ("epoch end", 3)])
def test_what_is_being_done_is_finished_and_written(start, undisturbed, tmp_path, moment, number, signum):
    process = start("fit", *NET, "--run", "a", moment=moment, number=number, signals=(signum,))
    ended(process, status=STATUS[signum])
    last = process.text().splitlines()[-1]
    assert last.startswith("mnist_lightning: stopped; ")
    assert f"{tmp_path / 'runs' / 'a' / 'last.ckpt'} has everything" in last
    ended(start("fit", "--run", "a", *LAST))
    same_run(tmp_path / "runs" / "a", undisturbed(start, *NET))


RARE = ("--checkpoint.every_n_steps", "null", "--checkpoint.every_n_seconds", "null")


def test_a_signal_loses_no_step(start, tmp_path):
    """Without checkpoints by time or steps, it is the signal that writes one."""
    process = start("fit", *NET, *RARE, "--run", "a", moment="step", number=36, signals=(signal.SIGTERM,))
    ended(process, status=143)
    assert read_checkpoint(tmp_path / "runs" / "a" / "last.ckpt")["global_step"] == 36


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(start, undisturbed, tmp_path):
    twice = (signal.SIGINT, signal.SIGINT)
    ended(start("fit", *NET, *RARE, "--run", "a", moment="step", number=36, signals=twice), status=130)
    assert read_checkpoint(tmp_path / "runs" / "a" / "last.ckpt")["global_step"] == 24
    ended(start("fit", "--run", "a", *LAST))
    same_run(tmp_path / "runs" / "a", undisturbed(start, *NET))


def test_a_second_sigterm_waits_like_the_first(start):
    process = start("fit", *NET, "--run", "a", moment="step", signals=(signal.SIGTERM, signal.SIGTERM))
    ended(process, status=143)
    assert "has everything" in process.text()


@pytest.mark.parametrize("signum", STATUS)
@pytest.mark.parametrize("after", [0.0, 0.5])  # seconds; the imports take some
def test_while_torch_is_imported_it_ends_at_once(tmp_path, signum, after):
    """An exception there can reach C++ code that aborts. A new process, for the others have imported everything."""
    words = [sys.executable, "-m", "mnist_lightning", "fit"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    status = Path(f"/proc/{process.pid}/status")
    while not int(status.read_text().split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1:
        time.sleep(0.01)  # until it has taken the signals
    time.sleep(after)
    process.send_signal(signum)
    assert process.communicate() == ("mnist_lightning: stopped\n", None)
    assert process.returncode == STATUS[signum]
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("signum", STATUS)
def test_before_training_there_is_nothing_to_keep(start, tmp_path, signum):
    process = start("fit", *NET, "--run", "a", moment="set-up", signals=(signum,))
    assert process.wait() == STATUS[signum], process.text()
    assert process.text() == "mnist_lightning: stopped\n"
    assert not (tmp_path / "runs" / "a").exists()


@pytest.mark.parametrize("signum", STATUS)
def test_while_the_test_images_are_evaluated(start, undisturbed, tmp_path, signum):
    ended(start("fit", *NET, "--run", "a", moment="test", signals=(signum,)), status=STATUS[signum])
    ended(start("fit", "--run", "a", *LAST))
    same_run(tmp_path / "runs" / "a", undisturbed(start, *NET))


# ---------------------------------------------------------------------- Slurm


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The variables of a job of one process, and a `scontrol` that writes down what it is asked."""
    script = tmp_path / "bin" / "scontrol"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    script.chmod(0o755)
    return {
        "PATH": f"{script.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "SLURM_NTASKS": "1",
        "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
        "SLURM_JOB_NODELIST": "localhost",
    }  # fmt: skip


@pytest.mark.parametrize("damaged", [False, True])
def test_sigusr1_requeues_and_the_job_goes_on_by_itself(start, undisturbed, slurm, tmp_path, damaged):
    words, run = ("fit", *NET), tmp_path / "runs" / "cnn"
    process = start(*words, moment="step", number=36, signals=(signal.SIGUSR1,), **slurm)
    ended(process, status=128 + signal.SIGUSR1)
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert "Slurm job 77 requeued" in process.text()
    if damaged:
        (run / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes()[:-100])
    again = start(*words, **slurm, SLURM_RESTART_COUNT="1")
    ended(again)
    assert f"continues from {run / ('previous.ckpt' if damaged else 'last.ckpt')}" in again.text()
    assert (f"{run / 'last.ckpt'} is damaged" in again.text()) == damaged
    same_run(run, undisturbed(start, *NET))


@pytest.mark.slow
def test_a_restarted_job_leaves_the_runs_of_others_alone(start, slurm, tmp_path):
    """Job 78 was cut off before it had made a folder: its restart begins; it does not go on with job 77's run."""
    words = ("fit", *NET, "--trainer.max_epochs", "1")
    ended(start(*words, **slurm))
    before = (tmp_path / "runs" / "cnn" / "last.ckpt").stat().st_mtime_ns
    process = start(*words, **{**slurm, "SLURM_JOB_ID": "78", "SLURM_RESTART_COUNT": "1"})
    ended(process)
    assert f"Run {tmp_path / 'runs' / 'cnn-2'} starts" in process.text()
    assert (tmp_path / "runs" / "cnn" / "last.ckpt").stat().st_mtime_ns == before


# ---------------------------------------------------------------------- two processes


@pytest.mark.parametrize(
    ("moment", "number"),
    [("step", 18), pytest.param("validation", 1, marks=pytest.mark.slow), ("epoch end", 2)],
)
@pytest.mark.parametrize("hit", [(0,), (1,), (0, 1)])
def test_a_signal_to_any_rank_stops_all_at_the_same_step(ranks, tmp_path, moment, number, hit):
    settings = {}
    for rank in hit:
        settings |= {f"moment_{rank}": moment, f"number_{rank}": number, f"signals_{rank}": (signal.SIGTERM,)}
    processes = ranks(2, "fit", *NET, "--data.batch_size", 5, "--run", "a", **settings)
    ended(*processes, status=143)
    assert "has everything" in processes[0].text()
    ended(*ranks(2, "fit", "--run", "a", *LAST))


@pytest.mark.slow
@pytest.mark.parametrize("hit", [0, 1])
@pytest.mark.parametrize("moment", ["set-up", "test", "fit end"])
def test_where_ranks_cannot_wait_for_each_other_nobody_hangs(ranks, moment, hit):
    """At start-up and while testing the one that got the signal ends at once, and the other says so."""
    settings = {f"moment_{hit}": moment, f"number_{hit}": 1, f"signals_{hit}": (signal.SIGTERM,)}
    processes = ranks(2, "fit", *NET, "--data.batch_size", 5, "--run", "a", **settings)
    assert processes[hit].wait() == 143
    if moment != "set-up":  # there the other waits for it to come, as it would not under torchrun
        assert processes[1 - hit].wait() in (0, 1)
        assert "Traceback" not in processes[0].text() + processes[1].text()


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_is_gone_ends_the_others_with_one_line(ranks, killed):
    settings = {f"moment_{killed}": "step", f"number_{killed}": 18, f"signals_{killed}": (signal.SIGKILL,)}
    processes = ranks(2, "fit", *NET, "--data.batch_size", 5, "--run", "a", **settings)
    statuses = [1, 1]
    statuses[killed] = -signal.SIGKILL
    ended(*processes, status=statuses)
    if killed == 1:
        assert processes[0].text().splitlines()[-1].startswith("mnist_lightning: another process of this run has ended")


# ---------------------------------------------------------------------- two processes, the second started by Lightning


@pytest.fixture
def pair(tiny_mnist: Path, tmp_path: Path):
    """A training of two processes in a session of their own, and its log."""
    words = [*NET, "--data.root", tiny_mnist, "--trainer.default_root_dir", tmp_path, "--trainer.max_epochs", "1000"]
    words += ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "mnist_lightning", "fit", *map(str, words)],
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    yield process, log
    process.kill()
    process.wait()


def second(process: subprocess.Popen, log: Path, text: str) -> int:
    """The other process, once there is one and the first has said this."""
    wait_until(lambda: (text in log.read_text() and children(process.pid)) or process.poll() is not None)
    assert process.poll() is None, log.read_text()
    return children(process.pid)[0]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["Run ", "epoch 1/"])
def test_what_lightning_started_ends_with_the_process_that_started_it(pair, moment):
    """Killed while the other one still starts up, too, when it would wait for half an hour."""
    other = second(*pair, moment)
    pair[0].kill()
    pair[0].wait()
    wait_until(lambda: state(other) in ("", "Z"), patience=20)


@pytest.mark.slow
def test_what_was_started_a_moment_before_ends_too(pair):
    """Stopped before it can ask to be told of the first process's end; that ends meanwhile."""
    other = second(*pair, "Run ")
    os.kill(other, signal.SIGSTOP)
    pair[0].kill()
    pair[0].wait()
    os.kill(other, signal.SIGCONT)
    wait_until(lambda: state(other) in ("", "Z"), patience=20)


@pytest.mark.slow
def test_a_rank_with_another_process_between_is_not_taken_for_an_orphan(tmp_path):
    """As where Lightning starts a script that forks once more before it comes to `main`."""
    (tmp_path / "checkpoints" / "a").mkdir(parents=True)
    (tmp_path / "checkpoints" / "a" / "config.yaml").touch()
    script = "import os, subprocess, sys; os.environ['MNIST_LIGHTNING_FIRST_PROCESS'] = str(os.getpid()); "
    script += "sys.exit(subprocess.run(['sh', '-c', sys.argv[1] + ' -m mnist_lightning report; exit $?']).returncode)"
    done = subprocess.run(
        [sys.executable, "-c", script, sys.executable], cwd=tmp_path, env=os.environ | {"LOCAL_RANK": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "│ a " in done.stdout
