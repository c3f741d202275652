"""Where a study is kept: journals that are cut off, damaged or locked; a PostgreSQL."""

from pathlib import Path

import pytest
from optuna.trial import TrialState
from sharing import SPACE, Process

from mnist_lightning.errors import UserError
from mnist_lightning.searching import storage as storage_module
from mnist_lightning.searching import study as study_module
from mnist_lightning.searching.locks import Locks
from mnist_lightning.searching.storage import JOURNAL, load, open_database, open_journal, quiet
from mnist_lightning.searching.study import Study


@pytest.fixture(autouse=True)
def _quiet():
    with quiet():
        yield


def journal(folder: Path) -> Path:
    process = Process(folder)
    process.study.finish(process.study.next(1), TrialState.COMPLETE, 0.5)
    process.dies()
    return folder / JOURNAL


def test_a_line_that_was_cut_off_is_taken_away(tmp_path: Path):
    file = journal(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"op_code":4,"study')
    process = Process(tmp_path)
    assert process.study.next(2).number == 1
    assert file.read_bytes().startswith(whole)
    assert b'"study{' not in file.read_bytes()


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"[]\n", b'{"op_code":99}\n', b'{"op_code":4}\n'])
def test_a_damaged_journal_is_told_in_a_line(tmp_path: Path, damage: bytes):
    file = journal(tmp_path)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], damage, *lines[2:]]))
    for open_ in (lambda: Process(tmp_path), lambda: load(tmp_path, None, "s")):
        with pytest.raises(UserError) as error:
            open_()
        assert str(error.value).startswith(f"{file} is damaged")
        assert "\n" not in str(error.value)


def test_a_locked_journal_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    journal(tmp_path)
    monkeypatch.setattr(study_module, "PATIENCE", 0.1)
    monkeypatch.setattr(storage_module, "PATIENCE", 0.1)
    _, locks = open_journal(tmp_path)
    assert locks.hold("journal")
    with pytest.raises(UserError, match=r"journal\.log has been locked by another process for 0 seconds"):
        Process(tmp_path)
    locks.release("journal")
    assert locks.hold("s study")
    with pytest.raises(UserError, match="the study s has been locked by another process"):
        Process(tmp_path)


def test_looking_changes_nothing(tmp_path: Path):
    file = journal(tmp_path)
    before = file.read_bytes()
    assert load(tmp_path, None, "s").trials[0].value == 0.5
    assert load(tmp_path, None, "another") is None
    assert file.read_bytes() == before
    with pytest.raises(UserError, match="is not kept in its folder: give --storage"):
        load(tmp_path / "locks", None, "s")


# ---------------------------------------------------------------------- a database


def test_no_database():
    with pytest.raises(UserError) as error:
        open_database("postgresql://me:secret@127.0.0.1:1/digits", "s")
    assert str(error.value).startswith("--storage postgresql://me:…@127.0.0.1:1/digits: no database: ")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_same_in_postgresql(postgres: str, tmp_path: Path):
    """Taken back when the connection of a process is gone; names and locks of studies are their own."""

    def process() -> tuple[Study, Locks]:
        storage, locks = open_database(postgres, "s")
        return Study("s", storage, locks, maximize=True, space=SPACE), locks

    (first, its), (second, others) = process(), process()
    lost = first.next(2)
    assert second.next(2).number == 1
    assert (second.next(2), second.of_others()) == (None, 1)
    its.close()
    back = second.next(2)
    assert (back.number, back.params) == (lost.number, lost.params)
    second.finish(back, TrialState.COMPLETE, 0.5)
    first._own.clear()  # it was only thought to be gone
    first.finish(lost, TrialState.COMPLETE, 0.1)
    its.close()
    others.close()
    assert load(tmp_path / "s", postgres, "s").trials[0].value == 0.5
    assert load(tmp_path / "s", postgres, "another") is None
