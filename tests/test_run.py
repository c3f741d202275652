"""A run is a folder: how it is made, named and found, who may write to it, which of its checkpoints is meant."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from samples import content, content_of_3207afc, trained

from mnist_lightning.errors import UserError
from mnist_lightning.models import MLP
from mnist_lightning.run import Run, base_name, differences, run_and_file
from mnist_lightning.training.checkpoints import STATE, write_checkpoint


@pytest.fixture
def made(tmp_path: Path):
    """`made("a", time=2)` makes a run that was trained at that time."""

    def make(name: str, time: int = 1) -> Run:
        run = Run.new(tmp_path, name, exact=True)
        run.release()
        run.config.write_text(f"# last trained 2026-01-01T00:00:0{time}+00:00\nseed: 0\n")
        return run

    return make


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name.endswith("RANK"):
            monkeypatch.delenv(name)


def damage(file: Path) -> None:
    """One bit of a weight, which torch itself would load without a word; in a file of its own."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink()
    file.write_bytes(data)


# ---------------------------------------------------------------------- made, named and found


def test_a_second_run_gets_a_number(tmp_path):
    runs = [Run.new(tmp_path / "runs", "cnn") for _ in range(3)]
    names = [run.name for run in runs]
    [run.release() for run in runs]
    assert names == ["cnn", "cnn-2", "cnn-3"]


def test_a_run_by_name_is_made_once(tmp_path):
    def made_again() -> Path:
        run = Run.new(tmp_path, "a", exact=True)
        run.release()
        return run.folder

    folder = made_again()
    assert made_again() == folder  # it never began
    (folder / ".config.yaml.tmp").touch()  # nor when it was killed in the middle of writing its settings
    assert made_again() == folder
    (folder / "config.yaml").touch()
    assert made_again() == folder
    (folder / "last.ckpt").touch()
    words = f"--run a --trainer.default_root_dir {tmp_path} --ckpt_path last"
    with pytest.raises(UserError, match=f"a is there already: continue it with {words}, or choose another --run"):
        Run.new(tmp_path, "a", exact=True)
    Run(folder).hold(patience=0)  # nobody holds it now


def test_of_two_that_start_at_once_under_one_name_the_second_waits_and_leaves_the_first_alone(tmp_path):
    """Whatever is in the folder when the first lets go of it counts."""
    first = Run.new(tmp_path, "a", exact=True)

    def train() -> None:
        first.last.touch()
        first.release()

    threading.Timer(0.3, train).start()
    with pytest.raises(UserError, match="is there already"):
        Run.new(tmp_path, "a", exact=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").touch()
    with pytest.raises(UserError, match="is there already"):
        Run.new(tmp_path, "b", exact=True)


def test_where_no_folder_can_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"no run folder can be made in .*file: .*; see --trainer.default_root_dir"):
        Run.new(tmp_path / "file", "a")


def test_a_run_is_named(made, tmp_path):
    made("b"), made("a")
    (tmp_path / "pretrained").mkdir()  # no run
    assert [run.name for run in Run.all(tmp_path)] == ["a", "b"]
    assert Run.named(tmp_path, "a").folder == tmp_path / "a"
    with pytest.raises(UserError, match=r"there is no run 'c' in .*; there are: a, b"):
        Run.named(tmp_path, "c")
    with pytest.raises(UserError, match="there are: none"):
        Run.named(tmp_path / "none", "c")


def test_the_newest_run_is_the_one_that_was_trained_last(made, tmp_path):
    made("fidle_cnn", 1), made("fidle_cnn-2", 4), made("fidle_cnn2", 2), made("fidle_cnn2-2", 3)
    assert Run.newest(tmp_path).name == "fidle_cnn-2"
    assert Run.newest(tmp_path, "fidle_cnn2").name == "fidle_cnn2-2"  # no longer name is meant
    with pytest.raises(UserError, match=r"there is no run of mlp in .*: start one with fit"):
        Run.newest(tmp_path, "mlp")


def test_copied_in_any_order_the_newest_run_is_the_same(made, tmp_path):
    """As `cp runs/a/* copies/a`, which leaves hidden files and times behind."""
    made("a", 3), made("b", 2)
    for name in ("a", "b"):
        (tmp_path / "copies" / name).mkdir(parents=True)
        shutil.copyfile(tmp_path / name / "config.yaml", tmp_path / "copies" / name / "config.yaml")
    os.utime(tmp_path / "copies" / "a" / "config.yaml", (1, 1))
    assert Run.newest(tmp_path / "copies").name == "a"


def test_when_a_run_was_trained_is_noted_where_its_settings_are(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        Run(tmp_path / name).write_settings("# mnist digits\nseed: 0\n")
        os.utime(tmp_path / name / "config.yaml", (1, 1))
    assert Run.newest(tmp_path).name == "a"
    assert (tmp_path / "a" / "config.yaml").read_text().startswith("# mnist digits\nseed: 0\n# last trained ")


def test_half_of_a_copied_run_is_a_run(tmp_path):
    """Without settings, as a broken copy leaves it, its checkpoints are there."""
    (tmp_path / "a").mkdir()
    write_checkpoint(content(), tmp_path / "a" / "best.ckpt")
    assert Run.named(tmp_path, "a").checkpoint("last") == tmp_path / "a" / "best.ckpt"
    assert Run.newest(tmp_path).name == "a"
    assert [run.name for run in Run.all(tmp_path)] == ["a"]


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("checkpoints/a", "--run a --ckpt_path last"),
        ("my runs/a b", "--run 'a b' --trainer.default_root_dir 'my runs' --ckpt_path last"),
    ],
)
def test_a_run_in_the_words_of_the_command_line(folder, words):
    assert Run(Path(folder)).words("last") == words


def test_the_newest_run_of_earlier_versions_goes_by_its_settings_file(tmp_path):
    for name, at in (("a", 2), ("b", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
        os.utime(tmp_path / name / "config.yaml", (at, at))
    (tmp_path / "b" / ".job").write_text("[]")  # somebody's
    assert Run.newest(tmp_path).name == "a"


@pytest.mark.parametrize(
    ("config", "model", "name"),
    [
        ("simple_mlp", None, "simple_mlp"),
        ("configs/simple_mlp.yaml", "CNN", "simple_mlp"),
        ("checkpoints/cnn-3/config.yaml", None, "cnn"),
        (None, "MLP", "mlp"),
        (None, "mine.Net", "net"),
        (None, None, None),
    ],
)
def test_a_request_names_its_run(config, model, name):
    assert base_name(config, model) == name


def test_which_run_and_file_are_meant(made, tmp_path):
    a, b = made("a", 1), made("b", 2)
    for run in (a, b):
        write_checkpoint(content(), run.last, also=run.best)

    def meant(*words: str | None) -> tuple[str | None, Path]:
        run, file = run_and_file(tmp_path, *words)
        return run and run.name, file

    assert meant(None, None, "last") == ("b", b.last)
    assert meant(None, "a", "best") == ("a", a.best)
    assert meant("a", None, "last") == ("a", a.last)
    assert meant(None, None, None) == ("b", b.best)
    assert meant(None, None, str(a.best)) == ("a", a.best)
    assert meant("b", None, str(a.best)) == ("b", a.best)
    assert meant("c", None, str(a.best)) == (None, a.best)
    (tmp_path / "elsewhere").mkdir()
    assert run_and_file(tmp_path / "elsewhere", None, None, str(a.best)) == (None, a.best)


# ---------------------------------------------------------------------- a job that is started again


def test_a_restarted_job_finds_its_own_run(tmp_path, monkeypatch):
    words = [["config", "cnn"], ["data.root", str(tmp_path)]]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    run = Run.new(tmp_path, "cnn")
    run.release()
    run.note_job(words)
    assert Run.cut_off(tmp_path, words) is None  # its first start
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run.note_job(["--ckpt_path", "last"])  # trained again: it keeps to the job that began it
    assert Run.cut_off(tmp_path, words).name == "cnn"
    assert Run.cut_off(tmp_path, {"config": ["mlp"]}) is None
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert Run.cut_off(tmp_path, words) is None


def test_a_job_of_torchrun_that_is_finished_begins_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    run = Run.new(tmp_path, "cnn")
    run.release()
    run.note_job([])
    assert Run.cut_off(tmp_path, []).name == "cnn"
    run.result.touch()
    assert Run.cut_off(tmp_path, []) is None


# ---------------------------------------------------------------------- held


def test_one_at_a_time(tmp_path):
    run, other = Run(tmp_path), Run(tmp_path)
    run.hold()
    with pytest.raises(UserError, match="is being trained by another process: wait, or choose another --run"):
        other.hold(patience=0)
    run.release()
    run.release()
    other.hold(patience=0)
    other.release()


def test_one_at_a_time_on_windows(tmp_path, monkeypatch):
    """Where no folder can be opened, a byte of a file is locked, as msvcrt does it."""
    fcntl = pytest.importorskip("fcntl")

    def locking(descriptor: int, mode: int, count: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(13, "Permission denied") from None

    monkeypatch.setattr("mnist_lightning.files.fcntl", None)
    monkeypatch.setattr("mnist_lightning.files.msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    test_one_at_a_time(tmp_path)
    assert list(tmp_path.iterdir()) == []
    Run.new(tmp_path, "a").release()
    assert Run.new(tmp_path, "a", exact=True).folder == tmp_path / "a"  # nobody got as far as its settings
    monkeypatch.setattr("mnist_lightning.files.msvcrt", None)
    Run(tmp_path).hold()


def test_one_that_is_about_to_end_is_waited_for(tmp_path):
    run, other = Run(tmp_path), Run(tmp_path)
    run.hold()
    threading.Timer(0.3, run.release).start()
    other.hold(patience=10)
    other.release()


def test_the_system_lets_go_of_what_a_killed_process_held(tmp_path):
    script = "import sys, time; from mnist_lightning.run import Run; from pathlib import Path; "
    script += "run = Run(Path(sys.argv[1])); run.hold(); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(UserError, match="another process"):
        Run(tmp_path).hold(patience=0)
    process.kill()
    process.wait()
    process.stdout.close()
    run = Run(tmp_path)
    run.hold(patience=0)
    run.release()


# ---------------------------------------------------------------------- its checkpoints


def test_last_is_the_one_that_is_furthest_on_whatever_its_time(tmp_path):
    """`cp -r` gives new times in any order, and makes three files of hard links."""
    run = Run(tmp_path)
    for name, epoch, batch, at in (("previous", 1, 20, 3), ("last", 2, 3, 1), ("best", 1, 0, 2)):
        write_checkpoint(content(batch, epoch=epoch), tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (at, at))
    assert run.checkpoint("last") == run.last
    assert run.checkpoint("best") == run.best
    write_checkpoint(content(0, epoch=3), run.best)  # killed when only best.ckpt was the new one
    assert run.checkpoint("last") == run.best


def test_of_names_for_one_state_it_is_last(tmp_path, capsys):
    run = Run(tmp_path)
    write_checkpoint(content(), run.last, also=run.best)
    assert run.checkpoint("last") == run.last
    shutil.copyfile(run.best, run.previous)
    assert run.checkpoint("last") == run.last
    assert capsys.readouterr() == ("", "")


def test_what_is_damaged_is_passed_over_and_said(tmp_path, capsys):
    run = Run(tmp_path)
    for step in (1, 2):
        write_checkpoint(content(step), run.last, previous=run.previous)
    damage(run.last)
    assert run.checkpoint("last") == run.previous
    assert capsys.readouterr().err.splitlines() == [
        f"mnist_lightning: {run.last} is damaged: its checksum does not match",
        f"mnist_lightning: continuing with {run.previous}, the good one that is furthest on",
    ]


def test_best_is_taken_when_nothing_else_is_good(tmp_path, capsys):
    run = Run(tmp_path)
    for step in (1, 2, 3):
        write_checkpoint(content(step), run.last, also=run.best if step == 1 else None, previous=run.previous)
    run.last.write_bytes(b"")
    damage(run.previous)
    assert run.checkpoint("last") == run.best
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_only_the_first_process_says_what_was_passed_over(tmp_path, capsys, monkeypatch):
    run = Run(tmp_path)
    write_checkpoint(content(), run.best)
    run.last.touch()
    monkeypatch.setenv("RANK", "1")
    assert run.checkpoint("last") == run.best
    assert capsys.readouterr().err == ""


def test_none_to_be_found_is_an_error(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(UserError, match="no checkpoint has been written yet"):
        run.checkpoint("last")
    run.last.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"has no checkpoint to load \(.*last.ckpt is damaged"):
        run.checkpoint("last")
    with pytest.raises(UserError, match="has no best"):
        run.checkpoint("best")


def test_a_file_that_is_half_written_is_never_taken_for_one(tmp_path):
    run = Run(tmp_path)
    write_checkpoint(content(), run.last)
    (tmp_path / ".last.ckpt.tmp").write_bytes(run.last.read_bytes()[:1000])
    assert run.checkpoint("last") == run.last


def test_a_run_of_an_earlier_version_has_its_checkpoints(tmp_path):
    run = Run(tmp_path)
    write_checkpoint(content_of_3207afc(1), run.best)
    write_checkpoint(content_of_3207afc(2), run.last)
    assert run.checkpoint("last") == run.last


# ---------------------------------------------------------------------- compared


def trainer(**changes) -> SimpleNamespace:
    usual = {"world_size": 1, "precision": "32-true", "accumulate_grad_batches": 1, "callbacks": []}
    return SimpleNamespace(**usual | changes)


def resumed(checkpoint: dict, model: dict = {}, data: dict = {}, **changes) -> list[str]:  # noqa: B006
    model = SimpleNamespace(hparams=checkpoint["hyper_parameters"] | model)
    data = SimpleNamespace(hparams=checkpoint["datamodule_hyper_parameters"] | data)
    return differences(checkpoint, model, data, trainer(**changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, []),
        ({"data": {"normalize": (0.1, 0.3), "root": "elsewhere"}}, []),  # as YAML reads it; of no effect
        ({"data": {"batch_size": 5}, "world_size": 2}, []),
        ({"accumulate_grad_batches": 2, "callbacks": [GradientAccumulationScheduler({3: 2})]}, []),  # it changes that
        ({"model": {"lr": 0.5}}, ["--model.lr was 0.001, is 0.5"]),
        ({"data": {"val_size": 61, "batch_size": 20}}, [
            "--data.val_size was 60, is 61", "--data.batch_size was 10, is 20"
        ]),
        ({"world_size": 3}, [
            "1 processes had 10 images in a step together, 3 now have 30: mend it with --data.batch_size"
        ]),
        ({"precision": "bf16-mixed", "accumulate_grad_batches": 2}, [
            "--trainer.precision was 32-true, is bf16-mixed", "--trainer.accumulate_grad_batches was 1, is 2"
        ]),
    ],
)  # fmt: skip
def test_what_would_go_otherwise_is_told_in_flags(changes, told):
    assert resumed(trained(), **changes) == told


@pytest.mark.parametrize(("norm", "told"), [(False, []), (True, ["--model.norm was False, is True"])])
def test_a_setting_that_an_earlier_version_did_not_have_was_as_by_default(norm, told):
    model = MLP(hidden=[4], norm=norm)
    checkpoint = trained()
    checkpoint["hyper_parameters"] = {name: value for name, value in model.hparams.items() if name != "norm"}
    data = SimpleNamespace(hparams=checkpoint["datamodule_hyper_parameters"])
    assert differences(checkpoint, model, data, trainer()) == told


def test_of_own_classes_is_compared_what_can_be():
    """Neither settings of the data that only they know, nor where in memory an object lay."""
    checkpoint = content(global_batch_size=None)
    checkpoint["hyper_parameters"] = {"head": "<object object>"}
    del checkpoint["datamodule_hyper_parameters"]
    model, data = SimpleNamespace(hparams={"head": object()}), SimpleNamespace(hparams={"folder": "b"})
    assert checkpoint[STATE]["precision"] == "32-true"
    assert differences(checkpoint, model, data, trainer()) == []
