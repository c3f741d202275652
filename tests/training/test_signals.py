"""SIGTERM, Ctrl-C and Slurm's SIGUSR1, at any moment, to one process and to one, some or all of several."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import kill
import pytest
from processes import NET, no_traceback, same_run

from mnist_lightning.cli import main

STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.mark.parametrize("signum", STATUS)
@pytest.mark.parametrize(("moment", "number"), [("block", 12), ("validation", 1), ("sync", 3), ("epoch end", 3)])
def test_the_block_is_finished_and_written(start, undisturbed, tmp_path, moment, number, signum):
    process = start("fit", *NET, "--run", "a", moment=moment, number=number, signals=(signum,))
    assert process.wait() == STATUS[signum], process.text()
    last = process.text().splitlines()[-1]
    assert last.startswith("mnist_lightning: stopped; ")
    assert f"{tmp_path / 'runs' / 'a' / 'last.ckpt'} has everything" in last
    no_traceback(process)
    again = start("fit", "--run", "a", "--ckpt_path", "last")
    assert again.wait() == 0, again.text()
    same_run(tmp_path / "runs" / "a", undisturbed(start, *NET))


def test_a_signal_loses_nothing_of_the_block(start, tmp_path):
    """Without checkpoints by time or steps, it is the signal that writes one: 12 blocks of 3 steps were done."""
    rare = ("--checkpoint.every_n_steps", "null", "--checkpoint.every_n_seconds", "null")
    process = start("fit", *NET, *rare, "--run", "a", moment="block", number=12, signals=(signal.SIGTERM,))
    assert process.wait() == 143
    from mnist_lightning.training.checkpoints import read_checkpoint

    assert read_checkpoint(tmp_path / "runs" / "a" / "last.ckpt")["global_step"] == 36


def test_a_second_ctrl_c_stops_at_once(start, undisturbed, tmp_path):
    twice = (signal.SIGINT, signal.SIGINT)
    process = start("fit", *NET, "--run", "a", moment="block", number=12, signals=twice)
    assert process.wait() == 130, process.text()
    no_traceback(process)
    again = start("fit", "--run", "a", "--ckpt_path", "last")
    assert again.wait() == 0, again.text()
    same_run(tmp_path / "runs" / "a", undisturbed(start, *NET))


def test_a_second_sigterm_waits_like_the_first(start, tmp_path):
    process = start("fit", *NET, "--run", "a", moment="block", signals=(signal.SIGTERM, signal.SIGTERM))
    assert process.wait() == 143
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


IMPORTING = """
import os
from mnist_lightning.training.signals import Signals

Signals().install()
try:
    os.kill(os.getpid(), {signum:d})
except BaseException as error:  # what C++ code in the middle of an import cannot do
    print(repr(error))
"""


@pytest.mark.parametrize("signum", STATUS)
def test_a_signal_during_the_imports_raises_nothing(signum):
    words = [sys.executable, "-c", IMPORTING.format(signum=signum)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (STATUS[signum], "", "mnist_lightning: stopped\n")


@pytest.mark.parametrize("signum", STATUS)
def test_before_training_there_is_nothing_to_keep(start, tmp_path, signum):
    process = start("fit", *NET, "--run", "a", moment="set-up", signals=(signum,))
    assert process.wait() == STATUS[signum], process.text()
    assert process.text() == "mnist_lightning: stopped\n"
    assert not (tmp_path / "runs" / "a").exists()


@pytest.mark.parametrize("signum", STATUS)
def test_while_the_test_images_are_evaluated(start, undisturbed, tmp_path, signum):
    process = start("fit", *NET, "--run", "a", moment="test", signals=(signum,))
    assert process.wait() == STATUS[signum], process.text()
    no_traceback(process)
    again = start("fit", "--run", "a", "--ckpt_path", "last")
    assert again.wait() == 0, again.text()
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


def test_sigusr1_requeues_and_the_job_goes_on_by_itself(start, undisturbed, slurm, tmp_path):
    words = ("fit", *NET)
    process = start(*words, moment="block", number=12, signals=(signal.SIGUSR1,), **slurm)
    assert process.wait() == 128 + signal.SIGUSR1, process.text()
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert "Slurm job 77 requeued" in process.text()
    again = start(*words, **slurm, SLURM_RESTART_COUNT="1")
    assert again.wait() == 0, again.text()
    assert "continues from" in again.text()
    same_run(tmp_path / "runs" / "cnn", undisturbed(start, *NET))


def test_a_requeued_job_says_which_damaged_checkpoint_it_passes_over(start, undisturbed, slurm, tmp_path):
    words = ("fit", *NET)
    process = start(*words, moment="block", number=12, signals=(signal.SIGUSR1,), **slurm)
    assert process.wait() == 128 + signal.SIGUSR1, process.text()
    last = tmp_path / "runs" / "cnn" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    again = start(*words, **slurm, SLURM_RESTART_COUNT="1")
    assert again.wait() == 0, again.text()
    said = " ".join(again.text().split())
    assert f"{last} is damaged" in said
    assert f"continues from {last.with_name('previous.ckpt')}" in said
    same_run(tmp_path / "runs" / "cnn", undisturbed(start, *NET))


def test_an_array_job_is_requeued_by_its_own_name(start, slurm, tmp_path):
    array = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}
    process = start("fit", *NET, moment="block", signals=(signal.SIGUSR1,), **slurm, **array)
    assert process.wait() == 128 + signal.SIGUSR1
    assert (tmp_path / "asked").read_text() == "requeue 70_3\n"


def test_a_restarted_job_leaves_the_runs_of_others_alone(start, slurm, tmp_path):
    """Job 78 was cut off before it had made a folder: its restart begins; it does not go on with job 77's run."""
    words = ("fit", *NET, "--trainer.max_epochs", "1")
    assert start(*words, **slurm).wait() == 0
    before = (tmp_path / "runs" / "cnn" / "last.ckpt").stat().st_mtime_ns
    process = start(*words, **{**slurm, "SLURM_JOB_ID": "78", "SLURM_RESTART_COUNT": "1"})
    assert process.wait() == 0
    assert f"Run {tmp_path / 'runs' / 'cnn-2'} starts" in " ".join(process.text().split())
    assert (tmp_path / "runs" / "cnn" / "last.ckpt").stat().st_mtime_ns == before


# ---------------------------------------------------------------------- two processes


def statuses(processes):
    return [process.wait() for process in processes]


@pytest.mark.parametrize(
    ("moment", "number"),
    [("block", 6), pytest.param("validation", 1, marks=pytest.mark.slow), ("epoch end", 2)],
)
@pytest.mark.parametrize("hit", [(0,), (1,), (0, 1)])
def test_a_signal_to_any_rank_stops_all_at_the_same_block(ranks, tmp_path, moment, number, hit):
    settings = {}
    for rank in hit:
        settings |= {f"moment_{rank}": moment, f"number_{rank}": number, f"signals_{rank}": (signal.SIGTERM,)}
    processes = ranks(2, "fit", *NET, "--data.batch_size", 5, "--run", "a", **settings)
    assert statuses(processes) == [143, 143], [process.text() for process in processes]
    assert "has everything" in processes[0].text()
    no_traceback(*processes)
    again = ranks(2, "fit", "--run", "a", "--ckpt_path", "last")
    assert statuses(again) == [0, 0], again[0].text()


@pytest.mark.slow
@pytest.mark.parametrize("hit", [0, 1])
@pytest.mark.parametrize("moment", ["set-up", "test", "fit end"])
def test_where_ranks_cannot_wait_for_each_other_nobody_hangs(ranks, tmp_path, moment, hit):
    """At start-up and while testing the one that got the signal ends at once, and the other says so."""
    settings = {f"moment_{hit}": moment, f"number_{hit}": 1, f"signals_{hit}": (signal.SIGTERM,)}
    processes = ranks(2, "fit", *NET, "--data.batch_size", 5, "--run", "a", **settings)
    if moment == "set-up":  # the other waits for it to come, as torchrun would not
        assert processes[hit].wait() == 143
        return
    found = statuses(processes)
    assert found[hit] == 143
    assert found[1 - hit] in (0, 1)
    no_traceback(*processes)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_is_gone_ends_the_others_with_one_line(ranks, tmp_path, killed):
    settings = {f"moment_{killed}": "block", f"number_{killed}": 6, f"signals_{killed}": (signal.SIGKILL,)}
    processes = ranks(2, "fit", *NET, "--data.batch_size", 5, "--run", "a", **settings)
    found = statuses(processes)
    assert found[killed] == -signal.SIGKILL
    assert found[1 - killed] == 1
    no_traceback(*processes)
    if killed == 1:
        assert processes[0].text().splitlines()[-1].startswith("mnist_lightning: another process of this run has ended")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["Run ", "epoch 1/"])
def test_what_lightning_started_ends_with_the_process_that_started_it(tiny_mnist, tmp_path, moment):
    """Killed while the other one still starts up, too, when it would wait for half an hour."""
    training = two_ranks(tiny_mnist, tmp_path)
    while moment not in training.log.read_text() or len(training.members()) < 2:
        assert training.process.poll() is None, training.log.read_text()
        time.sleep(0.05)
    assert training.kill(signal.SIGKILL, "main")
    assert training.end(patience=10) == (-signal.SIGKILL, False)


@pytest.mark.slow
def test_what_was_started_a_moment_before_ends_too(tiny_mnist, tmp_path):
    """Stopped before it can ask to be told of the first process's end; that ends meanwhile."""
    training = two_ranks(tiny_mnist, tmp_path)
    while "Run " not in training.log.read_text() or len(training.members()) < 2:
        assert training.process.poll() is None, training.log.read_text()
        time.sleep(0.001)
    other = training.members()[1]
    os.kill(other, signal.SIGSTOP)
    training.process.kill()
    training.process.wait()
    os.kill(other, signal.SIGCONT)
    assert training.end(patience=10) == (-signal.SIGKILL, False)


def two_ranks(mnist: Path, folder: Path) -> kill.Training:
    words = [*NET, "--data.root", mnist, "--trainer.default_root_dir", folder, "--trainer.max_epochs", "1000"]
    words += ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    return kill.Training(list(map(str, words)), folder / "log")


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


def test_what_comes_after_a_command_is_no_child_of_it():
    main(["report"])
    assert "MNIST_LIGHTNING_FIRST_PROCESS" not in os.environ
