"""Checkpoints are written whole or not at all, checked before use, found again, and never run anything."""

import os
import threading
from pathlib import Path

import pytest
import torch
from processes import NET

from mnist_lightning.errors import UserError
from mnist_lightning.training import checkpoints
from mnist_lightning.training.checkpoints import (
    STATE,
    DurableCheckpointIO,
    find_checkpoint,
    load_model,
    plain,
    read_checkpoint,
    write_checkpoint,
)


def content(step: int = 1) -> dict:
    """The least that is a checkpoint."""
    state = {
        "epoch": 0, "batch": step, "step": step, "best": None, "model": "MLP", "precision": "32-true",
        "global_batch_size": 10, "world_size": 1, "batches": 24, "scheduled_steps": None, "train_metrics": {},
        "metrics_csv": None,
    }  # fmt: skip
    return {
        "state_dict": {"net.weight": torch.arange(1000.0) + step}, "hyper_parameters": {"lr": 0.1},
        "datamodule_hyper_parameters": {}, "optimizer_states": [], "lr_schedulers": [], "callbacks": {},
        "MNISTDataModule": {"source": "mnist", "mean": 0.1, "std": 0.3, "fingerprint": "0"},
        "epoch": 0, "global_step": step, STATE: state,
    }  # fmt: skip


def test_what_is_written_is_read(tmp_path):
    write_checkpoint(content(), tmp_path / "last.ckpt")
    found, wanted = read_checkpoint(tmp_path / "last.ckpt"), content()
    assert torch.equal(found["state_dict"].pop("net.weight"), wanted["state_dict"].pop("net.weight"))
    assert found == wanted


def test_equal_content_gives_equal_files(tmp_path):
    for name in ("a.ckpt", "b.ckpt"):
        write_checkpoint(content(), tmp_path / name)
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()


def test_a_view_is_written_without_the_tensor_behind_it(tmp_path):
    checkpoint = {**content(), "state_dict": {"net.weight": torch.zeros(1_000_000)[:10]}}
    write_checkpoint(plain(checkpoint), tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").stat().st_size < 10_000


def test_torch_reads_it_without_us(tmp_path):
    """The checksum is the comment of the zip archive; nobody is locked in."""
    write_checkpoint(content(), tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 1


def test_the_one_before_lives_on_and_best_is_a_second_name(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(content(step), tmp_path / "last.ckpt", also=tmp_path / "best.ckpt" if step == 2 else None)
    steps = {name: read_checkpoint(tmp_path / f"{name}.ckpt")["global_step"] for name in ("last", "previous", "best")}
    assert steps == {"last": 3, "previous": 2, "best": 2}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]


def test_what_a_killed_process_left_is_not_written_into(tmp_path):
    """Killed after best.ckpt had its name and before last.ckpt had: the temporary file is best.ckpt itself."""
    write_checkpoint(content(1), tmp_path / "best.ckpt")
    os.link(tmp_path / "best.ckpt", tmp_path / ".last.ckpt.tmp")
    write_checkpoint(content(2), tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "best.ckpt")["global_step"] == 1
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 2


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("failing", ["open", "write", "fsync", "replace"])
def test_a_failure_at_any_point_leaves_a_good_checkpoint(tmp_path, monkeypatch, failing, links):
    """Whatever call fails, at whatever time: an error of one line, `last` is one of the two, and nothing lies about."""
    write_checkpoint(content(1), tmp_path / "last.ckpt")
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    for number in range(1, 20):
        with monkeypatch.context() as patch:
            calls = fail_at(patch, failing, number)
            try:
                write_checkpoint(content(2), tmp_path / "last.ckpt", also=tmp_path / "best.ckpt")
            except UserError as error:
                assert "No space left on device" in str(error)  # noqa: PT017
                assert "\n" not in str(error)  # noqa: PT017
        assert read_checkpoint(find_checkpoint(tmp_path, "last")[0])["global_step"] in (1, 2)
        assert not list(tmp_path.glob(".*"))
        if calls[0] < number:
            break
        write_checkpoint(content(1), tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 2
    assert number > 1


def fail_at(patch: pytest.MonkeyPatch, failing: str, number: int) -> list[int]:
    """Makes the `number`-th call fail; counts the calls."""
    calls = [0]

    def failing_one(original):
        def wrapped(*args, **kwargs):
            calls[0] += 1
            if calls[0] == number:
                raise OSError(28, "No space left on device")
            return original(*args, **kwargs)

        return wrapped

    if failing == "open":
        patch.setattr(Path, "open", failing_one(Path.open))
    elif failing == "write":

        class File:
            def __init__(self, file):
                self.file, self.write = file, failing_one(file.write)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

            def __getattr__(self, name):
                return getattr(self.file, name)

        original = Path.open
        patch.setattr(Path, "open", lambda path, mode: File(original(path, mode)))
    else:
        patch.setattr(os, failing, failing_one(getattr(os, failing)))
    return calls


def test_file_and_folder_are_synced_in_the_right_order(tmp_path, monkeypatch):
    """The bytes reach the disk before the name does, and the name before the call returns."""
    done = []
    fsync, replace = os.fsync, os.replace

    def kind(descriptor: int) -> str:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        return "folder" if os.path.isdir(path) else "table" if path.endswith(".csv") else "file"

    monkeypatch.setattr(os, "fsync", lambda d: (done.append(f"sync {kind(d)}"), fsync(d)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(f"name {Path(b).name}"), replace(a, b)))
    write_checkpoint(content(1), tmp_path / "last.ckpt")
    assert done == ["sync file", "name last.ckpt", "sync folder"]
    done.clear()
    write_checkpoint(content(2), tmp_path / "last.ckpt", also=tmp_path / "best.ckpt")
    assert done == ["sync file", "name best.ckpt", "name previous.ckpt", "name last.ckpt", "sync folder"]
    done.clear()
    table = tmp_path / "metrics.csv"
    write_checkpoint(content(3), tmp_path / "last.ckpt", table=table)  # before its first row it is not there
    assert "sync table" not in done
    done.clear()
    table.write_text("step\n1\n")
    write_checkpoint(content(4), tmp_path / "last.ckpt", table=table)
    assert done == ["sync table", "sync file", "name previous.ckpt", "name last.ckpt", "sync folder"]


# ---------------------------------------------------------------------- finding the last good one


def damage(file: Path) -> None:
    """One bit of a weight, which torch itself would load without a word; in a file of its own."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink()
    file.write_bytes(data)


def test_last_skips_what_is_damaged_and_says_so(tmp_path):
    for step in (1, 2):
        write_checkpoint(content(step), tmp_path / "last.ckpt")
    damage(tmp_path / "last.ckpt")
    file, said = find_checkpoint(tmp_path, "last")
    assert file == tmp_path / "previous.ckpt"
    assert said == [
        f"{tmp_path}/last.ckpt is damaged: its checksum does not match",
        f"continuing with {tmp_path}/previous.ckpt, the newest that verifies",
    ]


def test_last_takes_best_when_nothing_else_is_good(tmp_path):
    write_checkpoint(content(1), tmp_path / "last.ckpt", also=tmp_path / "best.ckpt")
    write_checkpoint(content(2), tmp_path / "last.ckpt")
    write_checkpoint(content(3), tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt").write_bytes(b"")
    damage(tmp_path / "previous.ckpt")
    file, said = find_checkpoint(tmp_path, "last")
    assert file.name == "best.ckpt"
    assert len(said) == 3


def test_none_to_be_found_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no checkpoint has been written yet"):
        find_checkpoint(tmp_path, "last")
    (tmp_path / "last.ckpt").write_bytes(b"PK")
    with pytest.raises(UserError, match="is damaged"):
        find_checkpoint(tmp_path, "last")
    with pytest.raises(UserError, match="has no best"):
        find_checkpoint(tmp_path, "best")


def test_a_half_written_file_is_never_taken_for_one(tmp_path):
    write_checkpoint(content(1), tmp_path / "last.ckpt")
    data = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / ".last.ckpt.tmp").write_bytes(data[:1000])
    assert find_checkpoint(tmp_path, "last") == (tmp_path / "last.ckpt", [])
    for length in range(0, len(data), 97):
        (tmp_path / "last.ckpt").write_bytes(data[:length])
        with pytest.raises(UserError, match="is damaged"):
            read_checkpoint(tmp_path / "last.ckpt")


def test_the_command_says_which_was_passed_over(cli, tiny_mnist, tmp_path):
    words = (*NET, "--data.root", tiny_mnist, "--trainer.max_epochs")
    assert cli("fit", *words, 1, "--run", "a").status == 0
    damage(tmp_path / "checkpoints" / "a" / "last.ckpt")
    result = cli("fit", *words, 2, "--run", "a", "--ckpt_path", "last")
    assert result.status == 0, result.err
    assert "checkpoints/a/last.ckpt is damaged: its checksum does not match" in result.err
    assert "the newest that verifies" in result.err
    for file in (tmp_path / "checkpoints" / "a").glob("*.ckpt"):
        file.write_bytes(b"")
    result = cli("fit", *words, 3, "--run", "a", "--ckpt_path", "last")
    assert result.status == 1
    assert "has no checkpoint to load" in result.err


# ---------------------------------------------------------------------- from strangers


def test_the_environment_cannot_switch_the_check_off(tmp_path, monkeypatch):
    """TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD makes torch.load unpickle anything where nothing else is said."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    asked = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: (asked.append(k), load(*a, **k))[1])
    write_checkpoint(content(), tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 1
    assert asked[0]["weights_only"] is True


def test_a_larger_file_than_any_is_not_even_read(tmp_path, monkeypatch):
    file = tmp_path / "last.ckpt"
    with file.open("wb") as sparse:
        sparse.truncate(checkpoints.LARGEST + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("read"))
    with pytest.raises(UserError, match="larger than any"):
        read_checkpoint(file)


def test_a_model_by_another_name_is_not_imported(tmp_path):
    write_checkpoint({**content(), STATE: {**content()[STATE], "model": "os.system"}}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="a model that is not known here"):
        load_model(tmp_path / "last.ckpt")


# ---------------------------------------------------------------------- a loss that is not finite


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(cli, tiny_mnist, tmp_path):
    words = (*NET, "--data.root", tiny_mnist, "--model.optimizer", "SGD", "--model.lr", "1e30", "--run", "a")
    result = cli("fit", *words, "--trainer.log_every_n_steps", 1)
    assert result.status == 1
    (line,) = result.err.strip().splitlines()[-1:]
    folder = tmp_path / "checkpoints" / "a"
    rows = [row.split(",") for row in (folder / "metrics.csv").read_text().splitlines()[1:]]
    first = next(row for row in rows if row[4] in ("nan", "inf", "-inf"))
    assert f"the loss is not finite in epoch {first[0]} at step {first[1]}" in line
    assert "checkpoints/a/last.ckpt" in line
    # nothing after it looks as if all were well
    assert all(row[4] in ("nan", "inf", "-inf") for row in rows[rows.index(first) :])
    for file in folder.glob("*.ckpt"):
        weights = read_checkpoint(file)["state_dict"]
        assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_weights_that_become_infinite_at_an_epochs_end_are_not_saved(cli, tiny_mnist, tmp_path, monkeypatch):
    """The loss of a step is that of the weights before it: the last step of an epoch could hide what it did."""
    from mnist_lightning.models import DigitClassifier

    original = DigitClassifier.training_step

    def ruin(self, block, batch_idx):
        result = original(self, block, batch_idx)
        if self.trainer.global_step == 48:
            next(iter(self.parameters())).data.fill_(float("inf"))
        return result

    monkeypatch.setattr(DigitClassifier, "training_step", ruin)
    words = ("--data.val_size", 60, "--checkpoint.every_n_steps", "null")
    result = cli("fit", *NET, "--data.root", tiny_mnist, "--run", "a", *words)
    assert result.status == 1
    assert "epoch 2 at step 48" in result.err
    assert read_checkpoint(tmp_path / "checkpoints" / "a" / "last.ckpt")["global_step"] == 24


# ---------------------------------------------------------------------- in a thread, while the training goes on


def test_a_checkpoint_holds_the_weights_of_its_moment(tmp_path, monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr(checkpoints, "write_checkpoint", lambda *args: (go_on.wait(), write_checkpoint(*args)))
    io, checkpoint = DurableCheckpointIO(), content()
    io.save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    assert not (tmp_path / "last.ckpt").exists()
    checkpoint["state_dict"]["net.weight"] += 1
    go_on.set()
    io.wait()
    written = read_checkpoint(tmp_path / "last.ckpt")["state_dict"]["net.weight"]
    assert torch.equal(written, content()["state_dict"]["net.weight"])


def test_a_failure_to_write_is_told_once_by_whoever_waits(tmp_path):
    io = DurableCheckpointIO()
    (tmp_path / "last.ckpt").mkdir()
    io.save_checkpoint(content(), tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="cannot be written"):
        io.save_checkpoint(content(), tmp_path / "last.ckpt")
    io.teardown()
