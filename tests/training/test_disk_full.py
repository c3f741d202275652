"""A full disk, a read-only folder, a missing permission: one line, status 1, and the last good checkpoint loads."""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import LAST, NET, ended, same_run, state, told, wait_until

from mnist_lightning.run import Run
from mnist_lightning.training.checkpoints import read_checkpoint

BIG = ["--model", "MLP", "--model.hidden=[200]", *NET[NET.index("--model.lr=0.01") :]]  # a checkpoint of 1.9 MB


STOPPED = {"moment": "step", "number": 12, "signals": (signal.SIGTERM,)}


def failed_with_one_line(process, named: str) -> None:
    ended(process, status=1)
    assert f"{named} cannot be written" in told(process)


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of so many kB where the runs will lie."""
    mounted = []

    def mount(kilobytes: int) -> Path:
        folder = tmp_path / "runs"
        folder.mkdir(exist_ok=True)
        words = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """A file that leaves only so many bytes of the file system."""
    filler = folder / "filler"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    with filler.open("wb") as file:
        file.write(bytes(max(0, free - leave)))
    return filler


@pytest.mark.parametrize("every", ["5", "null"])  # steps: in the middle of an epoch; at its end, with best.ckpt
def test_a_disk_that_fills_up_keeps_the_last_good_checkpoint(start, small_disk, undisturbed, tmp_path, every):
    words = [*BIG, "--checkpoint.every_n_steps", every]
    whole = undisturbed(start, *words)
    runs = small_disk(14_000)
    ended(start("fit", *words, "--run", "a", **STOPPED), status=143)
    filler = fill(runs, leave=300_000)
    failed_with_one_line(start("fit", "--run", "a", *LAST), f"{runs}/a/last.ckpt")
    assert read_checkpoint(runs / "a" / "last.ckpt")["global_step"] == 12
    assert not list((runs / "a").glob(".*.tmp"))
    filler.unlink()
    ended(start("fit", "--run", "a", *LAST))
    same_run(runs / "a", whole)


def test_a_disk_that_is_too_small_from_the_start(start, small_disk):
    runs = small_disk(500)  # the first checkpoint, without the optimizer's averages, takes 640 kB
    process = start("fit", *BIG, "--run", "a", moment="step")  # a first step would be its end
    failed_with_one_line(process, f"{runs}/a/last.ckpt")
    assert not (runs / "a").exists()  # nothing had begun


ENDS = [*BIG, "--checkpoint.every_n_steps", "null", "--trainer.max_epochs", "1"]  # saves at the start and at the end


def test_no_room_for_the_last_of_all_checkpoints(start, small_disk):
    runs = small_disk(2_000)
    failed_with_one_line(start("fit", *ENDS, "--run", "a"), f"{runs}/a/last.ckpt")
    assert read_checkpoint(runs / "a" / "last.ckpt")["global_step"] == 0
    assert not (runs / "a" / "test.json").exists()


def test_no_room_when_a_signal_asks_for_a_checkpoint(start, small_disk):
    runs = small_disk(2_000)
    process = start("fit", *ENDS, "--run", "a", **STOPPED)
    failed_with_one_line(process, f"{runs}/a/last.ckpt")
    assert "has everything" not in process.text()


def test_best_ckpt_is_only_another_name_and_needs_no_room(start, small_disk):
    """Room for the three files that there are at most: last, the one before, and the best; a fourth is never needed."""
    small_disk(4 * 1900 + 300)
    ended(start("fit", *BIG, "--run", "a"))


@pytest.mark.slow
def test_no_room_for_best_ckpt_where_files_have_one_name_only(start, small_disk, undisturbed, tmp_path):
    """On a file system without hard links best.ckpt is a copy."""
    words = [*BIG, "--checkpoint.every_n_steps", "null"]
    whole = undisturbed(start, *words)
    runs = small_disk(14_000)
    ended(start("fit", *words, "--run", "a", **STOPPED), status=143)
    filler = fill(runs, leave=3_000_000)  # for last.ckpt of 1.9 MB, not for best.ckpt
    process = start("fit", "--run", "a", *LAST, NO_LINKS="1")
    failed_with_one_line(process, f"{runs}/a/best.ckpt")
    assert read_checkpoint(runs / "a" / "last.ckpt")["global_step"] == 12
    filler.unlink()
    ended(start("fit", "--run", "a", *LAST, NO_LINKS="1"))
    same_run(runs / "a", whole)


@pytest.mark.slow
def test_no_room_for_a_row_of_metrics_csv(start, small_disk, undisturbed, tmp_path):
    words = [*BIG, "--checkpoint.every_n_steps", "null", "--trainer.log_every_n_steps", "1"]
    whole = undisturbed(start, *words)
    runs = small_disk(14_000)
    ended(start("fit", *words, "--run", "a", **STOPPED), status=143)
    process = start("fit", "--run", "a", *LAST, moment="step", signals=(signal.SIGSTOP,))
    wait_until(lambda: state(process.pid) == "T")
    table = runs / "a" / "metrics.csv"
    table.write_bytes(table.read_bytes() + b"\n" * (4096 - table.stat().st_size % 4096))  # the next row needs a page
    filler = fill(runs, leave=0)
    os.kill(process.pid, signal.SIGCONT)
    failed_with_one_line(process, f"{runs}/a/last.ckpt")  # not for the row, which waits
    assert f"{runs}/a/metrics.csv cannot be written (No space left on device): the training goes on" in process.text()
    assert read_checkpoint(Run(runs / "a").checkpoint("last"))["global_step"] == 12
    filler.unlink()
    ended(start("fit", "--run", "a", *LAST))
    same_run(runs / "a", whole)


@pytest.mark.slow
def test_without_room_for_the_table_and_tensorboard_it_trains_to_the_end(start, small_disk, tmp_path):
    """Room that only checkpoints find, which replace older ones."""
    runs = small_disk(14_000)
    ended(start("fit", *NET, "--run", "a", **STOPPED), status=143)
    for name in ("metrics.csv", "test.json"):
        (runs / "a" / name).unlink(missing_ok=True)
        (runs / "a" / name).mkdir()
        (runs / "a" / name / "in the way").touch()
    for file in (runs / "a" / "tensorboard").iterdir():
        file.unlink()
    (runs / "a" / "tensorboard").rmdir()
    (runs / "a" / "tensorboard").touch()
    process = start("fit", "--run", "a", *LAST)
    ended(process)
    text = process.text()
    assert f"{runs}/a/metrics.csv cannot be written" in text
    assert f"TensorBoard cannot write to {runs}/a/tensorboard" in text
    assert f"{runs}/a/test.json cannot be written" in text
    assert "accuracy" in text


def test_a_limit_on_file_sizes_is_a_full_disk_without_mounting(start, tmp_path):
    process = start("fit", *BIG, "--run", "a", FILE_LIMIT="1000000")
    failed_with_one_line(process, "last.ckpt")


@pytest.mark.slow
def test_both_processes_stop_when_the_disk_of_the_first_is_full(ranks, small_disk):
    runs = small_disk(14_000)
    words = [*BIG, "--data.batch_size", "5", "--run", "a"]
    first = ranks(2, "fit", *words, moment_0="step", number_0=12, signals_0=(signal.SIGTERM,))
    ended(*first, status=143)
    fill(runs, leave=300_000)
    both = ranks(2, "fit", *words, *LAST)
    failed_with_one_line(both[0], f"{runs}/a/last.ckpt")
    ended(both[1], status=1)


def test_both_processes_stop_when_there_is_no_room_for_the_last_of_all_checkpoints(ranks, small_disk):
    runs = small_disk(2_000)
    both = ranks(2, "fit", *ENDS, "--data.batch_size", "5", "--run", "a")
    failed_with_one_line(both[0], f"{runs}/a/last.ckpt")
    ended(both[1], status=1)


def _without_root() -> None:
    """Gives up root's right to write everywhere (CAP_DAC_OVERRIDE), as a process of its own."""
    PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # noqa: N806
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("obstacle", ["permission", "read-only"])
def test_a_folder_that_may_not_be_written_to(start, small_disk, tiny_mnist, tmp_path, obstacle):
    """As a person without root's rights: a new process, because a capability is only lost by exec."""
    runs = small_disk(14_000) if obstacle == "read-only" else tmp_path / "runs"
    ended(start("fit", *NET, "--run", "a", **STOPPED), status=143)
    before = (runs / "a" / "last.ckpt").read_bytes()
    if obstacle == "read-only":
        done = subprocess.run(["mount", "-o", "remount,ro", str(runs)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"remounting is not permitted here: {done.stderr}")
    else:
        (runs / "a").chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-m", "mnist_lightning", "fit", "--run", "a", *LAST,
         "--trainer.default_root_dir", runs],
        capture_output=True, text=True, check=False, preexec_fn=_without_root, cwd=tmp_path,
        env={**os.environ, "MNIST_ROOT": str(tiny_mnist)},
    )  # fmt: skip
    if obstacle == "permission":
        (runs / "a").chmod(0o755)
    assert done.returncode == 1, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("mnist_lightning:")]
    assert len(said) == 1, done.stderr
    assert str(runs / "a") in said[0]
    assert "Traceback" not in done.stderr
    assert (runs / "a" / "last.ckpt").read_bytes() == before
