"""What a process takes, it gives back; and what it is among others."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from mnist_lightning.processes import Interrupted, Signals, is_first_process, job_of, requeue_slurm_job, restarted_by

TAKEN = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch):
    """Those before, which a test that fails does not leave behind."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = {signum: signal.getsignal(signum) for signum in (*TAKEN, signal.SIGUSR1)}
    yield before
    for signum, handler in before.items():
        signal.signal(signum, handler)


def now() -> dict[int, object]:
    return {signum: signal.getsignal(signum) for signum in (*TAKEN, signal.SIGUSR1)}


def test_signals_are_lent(handlers):
    signals = Signals()
    signals.install()
    assert [now()[signum] for signum in TAKEN] == [signals._handle] * 2
    assert now()[signal.SIGUSR1] == handlers[signal.SIGUSR1]
    signals.restore()
    assert now() == handlers


def test_what_lightning_puts_in_between_is_taken_back_and_not_given_back(handlers, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    signals = Signals()
    signals.install()
    for signum in now():
        signal.signal(signum, lambda *_: pytest.fail("Lightning's"))
    signals.install()
    assert set(now().values()) == {signals._handle}
    signals.restore()
    assert now() == handlers
    signals.restore()
    assert now() == handlers


def test_one_may_be_lent_inside_the_other(handlers):
    outer, inner = Signals(), Signals()
    outer.install()
    inner.install()
    inner.restore()
    assert signal.getsignal(signal.SIGINT) == outer._handle
    outer.restore()
    assert now() == handlers


def test_a_thread_takes_no_signals(handlers):
    failures = []

    def work() -> None:
        try:
            signals = Signals()
            signals.install()
            failures.append(now() != handlers)
            signals.restore()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == [False]


@pytest.mark.parametrize("signum", TAKEN)
def test_a_signal_that_is_not_deferred_interrupts(handlers, signum):
    signals = Signals()
    signals.install()
    with pytest.raises(Interrupted, match="stopped") as told:
        os.kill(os.getpid(), signum)
    assert told.value.signum == signals.received == signum


def test_a_deferred_signal_is_noted_and_a_second_ctrl_c_interrupts(handlers):
    signals = Signals()
    signals.install()
    signals.deferred = True
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received == signal.SIGTERM
    with pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGINT)


IMPORTING = """
import os
from mnist_lightning.processes import Signals

signals = Signals(program={program})
signals.install()
try:
    os.kill(os.getpid(), {signum:d})
    print("imported")
    signals.imported()
except BaseException as error:  # what C++ code in the middle of an import cannot do
    print(repr(error))
"""


@pytest.mark.parametrize("signum", TAKEN)
def test_a_signal_during_the_imports_raises_nothing(signum):
    words = [sys.executable, "-c", IMPORTING.format(signum=signum, program=True)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signum, "", "mnist_lightning: stopped\n")


def test_in_a_session_it_waits_for_the_end_of_the_imports():
    """A notebook's kernel is not ours to end."""
    words = [sys.executable, "-c", IMPORTING.format(signum=signal.SIGINT, program=False)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "imported\nInterrupted(2)\n", "")


# ---------------------------------------------------------------------- ranks and jobs


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without the variables of torchrun and Slurm."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name.endswith("RANK"):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_the_first_process(alone, variable):
    assert is_first_process()
    alone.setenv(variable, "0")
    assert is_first_process()
    alone.setenv(variable, "1")
    assert not is_first_process()


@pytest.mark.parametrize(
    ("variables", "by"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, "slurm"),
        ({"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0"}, None),
        ({"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1"}, "torchrun"),
        ({"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "0"}, "torchrun"),
    ],
)
def test_who_started_this_job_again(alone, variables, by):
    for name, value in variables.items():
        alone.setenv(name, value)
    assert restarted_by() == by


def test_what_tells_a_job_from_others(alone):
    alone.setenv("SLURM_JOB_ID", "7")
    alone.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert job_of(["a"]) == {"words": ["a"], "slurm": ["7", "3"], "torchrun": None}


@pytest.mark.parametrize(
    ("script", "told"),
    [("exit 0", "Slurm job 70_3 requeued"), ("echo no >&2; exit 1", "Slurm did not requeue job 70_3: no")],
)
def test_requeue(alone, tmp_path, script, told):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n{script}\n')
    scontrol.chmod(0o755)
    for name, value in (("SLURM_JOB_ID", "77"), ("SLURM_ARRAY_JOB_ID", "70"), ("SLURM_ARRAY_TASK_ID", "3")):
        alone.setenv(name, value)
    alone.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert requeue_slurm_job() == told
    assert (tmp_path / "asked").read_text() == "requeue 70_3\n"


def test_requeue_where_there_is_no_slurm(alone, tmp_path):
    alone.setenv("SLURM_JOB_ID", "77")
    alone.setenv("PATH", str(tmp_path))
    assert requeue_slurm_job().startswith("Slurm job 77 could not be requeued: ")
