"""`search`: flags and errors; a small study from its beginning to its end, interrupted, joined and reported."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from outcome import one_line, outcome

from mnist_lightning.run import Run

PROJECT = Path(__file__).parents[2]
RUNS = Path("checkpoints")
SMALL = [
    "--model",
    "MLP",
    "--model.hidden",
    "[8]",
    "--data.source",
    "mnist",
    "--data.val_size",
    "60",
    "--data.batch_size",
    "32",
]
SHORT = ["--data.batch_size", "32", "--trainer.max_epochs", "3", "--jobs", "2"]


def test_help(cli):
    result = cli("search", "--help")
    assert (result.status, result.err) == (0, "")
    assert "usage: python -m mnist_lightning search" in result.out
    for flag in ("--trials", "--minutes", "--space", "--study", "--objective", "--pruner", "--jobs", "--best",
                 "--seeds", "--storage"):  # fmt: skip
        assert f"  {flag} " in result.out


WORDS = [
    ("--trials 0", 2, "--trials is 0; it must be at least 1"),
    ("--trials many", 2, "--trials: 'many' is no number"),
    ("--minutes 0", 2, "--minutes is 0; it must be above 0"),
    ("--objective test", 2, "--objective: 'test' is not one of accuracy, loss"),
    ("--trails 3", 2, "there is no flag --trails; did you mean --trials?"),
    ("--pruner shears", 2, "--pruner: 'shears' is not one of hyperband, median, none"),
    ("--study a/b", 2, "--study 'a/b' is no folder's name"),
    ("--storage sqlite:///x", 2, "--storage sqlite:///x: it takes postgresql://"),
    ("--run a", 2, "--run: a study has a run for each trial: name the study with --study"),
    ("--ckpt_path last", 2, "--ckpt_path: a study goes on by the same command"),
    ("--folds 5", 2, "--folds: trials are compared on the same validation images"),
    ("--trails 5", 2, "there is no flag --trails"),
    ("--config nope", 2, "--config: there is no file 'nope'"),
    ("--model.lrr 1", 2, "there is no flag --model.lrr; did you mean --model.lr?"),
    ("--model.dropout 2", 2, "--model CNN: dropout probability has to be between 0 and 1"),
    ("--space nope.yaml", 2, "--space nope.yaml cannot be read: No such file or directory"),
    ("--trainer.devices 2", 2, "--trainer.devices: a trial is one process"),
    ("--trainer.fast_dev_run true", 2, "--trainer.fast_dev_run leaves nothing to compare"),
]


@pytest.mark.parametrize(("words", "status", "told"), WORDS, ids=[words for words, _, _ in WORDS])
def test_what_is_wrong_is_said_in_a_line(cli, words: str, status: int, told: str):
    result = cli("search", *words.split())
    assert result.status == status
    assert one_line(result).startswith(told)
    assert not RUNS.exists()


def test_the_extra_is_named_where_it_is_missing(cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert one_line(cli("search")) == "search needs optuna: pip install 'mnist-lightning[search]' brings it"


# ---------------------------------------------------------------------- small studies


def search(cli, tiny_mnist: Path, *words: object):
    return cli("search", *SMALL, *SHORT, "--data.root", tiny_mnist, *words)


def process(tiny_mnist: Path, *words: object) -> subprocess.Popen:
    words = (*SMALL, *SHORT, "--data.root", tiny_mnist, *words)
    return subprocess.Popen(
        [sys.executable, "-c", "import signal, runpy; signal.signal(2, signal.default_int_handler); "
         "runpy.run_module('mnist_lightning', run_name='__main__', alter_sys=True)", "search", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT), "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def report(cli, *words: str) -> dict:
    result = cli("report", *words, "--json")
    assert result.status == 0
    return json.loads(result.out)


@pytest.mark.slow
def test_a_study_from_its_beginning_to_its_end(cli, tiny_mnist: Path):
    """Then the same command has nothing to do, with more trials it goes on, and fit takes what it found."""
    result = search(cli, tiny_mnist, "--trials", 5, "--best", 1, "--seeds", 2)
    assert (result.status, result.err) == (0, "")
    assert "60 training images of mnist are held out to compare trials on, 240 are trained on" in result.out
    assert re.search(r"Test accuracy of (start|trial \d): [\d.]+% ± [\d.]+ \(n 2\), on mnist", result.out)
    folder = RUNS / "mlp-search"
    assert not Run(folder).is_there()  # no command takes it for a run
    assert Run.all(RUNS) == []
    assert list((folder / "trials").glob("*/*.ckpt")) == []
    assert len(list((folder / "final").glob("*/best.ckpt"))) == 2
    assert list((folder / "trials").glob("*/test.json")) == []
    found = report(cli, "mlp-search")
    assert sum(found["counts"].values()) == 5
    assert {len(one["values"]) for one in found["final"]} == {2}
    assert "start" in {one["settings"] for one in found["final"]}
    assert found["test"]["n"] == 2
    for picture in ("history", "parallel", "slices", "epochs"):
        assert (folder / "report" / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64," in (folder / "report" / "index.html").read_text()
    assert yaml.safe_load((folder / "best.yaml").read_text())["model"]["class_path"] == "MLP"

    again = search(cli, tiny_mnist, "--trials", 5, "--best", 1, "--seeds", 2)
    assert (again.status, "trial0: done" in again.out) == (0, False)
    assert "5 of them are there" in again.out
    assert report(cli, "mlp-search")["trials"] == found["trials"]

    more = search(cli, tiny_mnist, "--trials", 7, "--best", 0)
    assert more.status == 0
    found_more = report(cli, "mlp-search")["trials"]
    assert (len(found_more), found_more[:5]) == (7, found["trials"])

    other = search(cli, tiny_mnist, "--trials", 5, "--pruner", "none")
    assert one_line(other).startswith("the study mlp-search was begun with --pruner hyperband, now it is none")

    fit = cli("fit", "--config", folder / "best.yaml", "--data.root", tiny_mnist)
    assert (fit.status, outcome("best")["images"]) == (0, 100)


@pytest.mark.slow
def test_one_worker_repeats_a_study(cli, tiny_mnist: Path):
    """Also one that was interrupted: its trials go on from their checkpoints to the same values."""
    studies = []
    for root in ("once", "again"):
        where = ["--trainer.default_root_dir", root]
        words = [*where, "--trials", 6, "--best", 0, "--jobs", 1]
        if root == "again":
            with process(tiny_mnist, *words) as cut:
                for line in cut.stdout:
                    if line.startswith("trial1"):
                        cut.send_signal(signal.SIGINT)
            assert cut.returncode == 130
        assert search(cli, tiny_mnist, *words).status == 0
        studies.append(report(cli, "mlp-search", *where)["trials"])
        for trial in studies[-1]:
            del trial["seconds"]
    assert studies[0] == studies[1]


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_search_that_is_ended_goes_on(cli, tiny_mnist: Path, signum: signal.Signals):
    words = ["--trials", 4, "--best", 0, "--trainer.max_epochs", 40, "--pruner", "none", "--study", "s"]
    with process(tiny_mnist, *words) as cut:
        while not list((RUNS / "s" / "trials").glob("*/best.ckpt")) and cut.poll() is None:
            time.sleep(0.1)
        cut.send_signal(signum)
        out = cut.communicate(timeout=60)[0]
    assert cut.returncode == (-9 if signum == signal.SIGKILL else 128 + signum)
    if signum != signal.SIGKILL:
        last = out.strip().splitlines()[-1]
        assert last.startswith("mnist_lightning: stopped; the study checkpoints/s is intact: go on with python -m")
    result = search(cli, tiny_mnist, *words)
    assert (result.status, result.err) == (0, "")
    found = report(cli, "s")["trials"]
    assert [(trial["trial"], trial["state"]) for trial in found] == [(number, "complete") for number in range(4)]
    assert all(len(trial["epochs"]) == 40 for trial in found)


@pytest.mark.slow
def test_three_terminals_share_a_study(cli, tiny_mnist: Path):
    words = ["--trials", 9, "--best", 1, "--seeds", 1, "--study", "s", "--jobs", 1]
    terminals = [process(tiny_mnist, *words) for _ in range(3)]
    outs = [terminal.communicate(timeout=300)[0] for terminal in terminals]
    assert [terminal.returncode for terminal in terminals] == [0, 0, 0], outs
    ended = [re.findall(r"^trial(\d): ", out, re.M) for out in outs]
    assert sorted(number for numbers in ended for number in numbers) == [str(number) for number in range(9)]
    assert all("Test accuracy of" in out for out in outs)
    assert sum(report(cli, "s")["counts"].values()) == 9


@pytest.mark.slow
def test_a_space_of_ones_own(cli, tiny_mnist: Path, tmp_path: Path):
    """Lists are settings, a value that the model refuses fails its trial, and the loss can count."""
    (tmp_path / "space.yaml").write_text(
        "model: {hidden: [[4], [8, 4]], activation: [ReLU, GLU]}\nmodel.lr: {log: [1e-4, 1e-2]}\n"
    )
    result = search(cli, tiny_mnist, "--space", "space.yaml", "--trials", 8, "--objective", "loss", "--best", 0)
    assert (result.status, result.err) == (0, "")
    trials = report(cli, "mlp-search")["trials"]
    failed = [trial for trial in trials if trial["state"] == "fail"]
    assert {trial["params"]["model.activation"] for trial in failed} == {"GLU"}
    assert all("GLU does not map" in trial["failed"] for trial in failed)
    assert all(trial["params"]["model.activation"] == "ReLU" for trial in trials if trial not in failed)
    done = [trial["value"] for trial in trials if trial["state"] == "complete"]
    assert report(cli, "mlp-search")["best"]["value"] == min(done)


@pytest.mark.slow
def test_time_that_is_up(cli, tiny_mnist: Path):
    words = ["--trials", 500, "--best", 0, "--minutes", "0.4", "--study", "s"]
    result = search(cli, tiny_mnist, *words)
    assert (result.status, result.err) == (0, "")
    assert "The time is up after" in result.out or "No trial has come to its end" in result.out


def test_a_damaged_study_is_told_in_a_line(cli, tmp_path: Path):
    folder = tmp_path / "checkpoints" / "s"
    folder.mkdir(parents=True)
    (folder / "journal.log").write_text('{"op_code":0,"worker_id":"x","study_name":"s","directions":[2]}\n\0\0\n[]\n')
    result = cli("report", "s")
    assert result.status == 1
    assert one_line(result).startswith("checkpoints/s/journal.log is damaged in line 2")


def test_a_study_in_a_database_is_asked_for(cli, tmp_path: Path):
    (tmp_path / "checkpoints" / "s" / "trials").mkdir(parents=True)
    result = cli("report", "s")
    assert one_line(result).startswith("the study checkpoints/s is not kept in its folder: give --storage")
