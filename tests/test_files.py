"""Files are written whole or not at all, and are on the disk when the call returns."""

import os
from pathlib import Path

import pytest

from mnist_lightning.errors import UserError
from mnist_lightning.files import give_name, is_device, sync, whole_file, write_whole


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and named, in this order."""
    fsync, replace, seen = os.fsync, os.replace, []

    def kind(descriptor: int) -> str:
        return "folder" if os.path.isdir(os.readlink(f"/proc/self/fd/{descriptor}")) else "file"

    monkeypatch.setattr(os, "fsync", lambda d: (seen.append(f"sync {kind(d)}"), fsync(d)))
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(f"name {Path(b).name}"), replace(a, b)))
    return seen


@pytest.mark.parametrize("content", ["ä\n", "ä\n".encode(), memoryview("ä\n".encode())])
def test_what_is_written_is_there(tmp_path, content):
    write_whole(content, tmp_path / "a")
    assert (tmp_path / "a").read_text() == "ä\n"
    assert os.listdir(tmp_path) == ["a"]


def test_file_and_folder_are_synced_in_the_right_order(tmp_path, done):
    """The bytes reach the disk before the name does, and the name before the call returns."""
    names = {"also": tmp_path / "best", "previous": tmp_path / "before"}
    write_whole("1", tmp_path / "last", **names)
    assert done == ["sync file", "name best", "name last", "sync folder"]
    done.clear()
    write_whole("2", tmp_path / "last", **names)
    assert done == ["sync file", "name best", "name before", "name last", "sync folder"]
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"last": "2", "best": "2", "before": "1"}
    assert (tmp_path / "last").samefile(tmp_path / "best")


def test_without_hard_links_a_second_name_is_a_copy_on_the_disk(tmp_path, done, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    (tmp_path / "a").write_text("1")
    give_name(tmp_path / "a", tmp_path / "b")
    assert done == ["sync file", "name b"]
    assert (tmp_path / "b").read_text() == "1"
    assert not (tmp_path / "a").samefile(tmp_path / "b")


def test_what_a_killed_process_left_is_not_written_into(tmp_path):
    """It may be a second name of a file that is to stay as it is."""
    (tmp_path / "best").write_text("1")
    os.link(tmp_path / "best", tmp_path / ".last.tmp")
    write_whole("2", tmp_path / "last")
    assert (tmp_path / "best").read_text() == "1"
    assert sorted(os.listdir(tmp_path)) == ["best", "last"]


def test_what_fails_in_the_middle_leaves_what_was_there(tmp_path):
    write_whole("1", tmp_path / "a")

    def fail() -> None:
        with whole_file(tmp_path / "a") as file:
            file.write(b"2")
            raise KeyError("of who writes")

    with pytest.raises(KeyError, match="of who writes"):
        fail()
    assert (tmp_path / "a").read_text() == "1"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("failing", ["fsync", "replace", "open"])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, failing):
    write_whole("1", tmp_path / "a")
    monkeypatch.setattr(os, failing, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError) as told:
        write_whole("2", tmp_path / "a", also=tmp_path / "b")
    assert "cannot be written: No space left on device: make room or mend the folder" in str(told.value)
    assert "\n" not in str(told.value)
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_is_none_or_takes_nothing_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "a", tmp_path / "file" / "a", tmp_path / "folder"):
        with pytest.raises(UserError, match=f"{path} cannot be written: "):
            write_whole("1", path)
    with pytest.raises(UserError, match="none cannot be written: "):
        sync(tmp_path / "none")
    if os.getuid():  # whoever may do anything may write here too
        (tmp_path / "folder").chmod(0o500)
        with pytest.raises(UserError, match="a cannot be written: Permission denied"):
            write_whole("1", tmp_path / "folder" / "a")


def test_a_pipe_and_a_device_are_told_from_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert is_device(tmp_path / "pipe")
    assert is_device(Path("/dev/zero"))
    assert not is_device(tmp_path)
    assert not is_device(tmp_path / "none")
