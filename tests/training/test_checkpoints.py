"""Checkpoints are written whole or not at all, checked before use, and never run anything."""

import os
import threading
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateFinder
from samples import content, content_of_3207afc, trained
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mnist_lightning.errors import UserError
from mnist_lightning.models import CNN, MLP
from mnist_lightning.run import Run
from mnist_lightning.training import checkpoints
from mnist_lightning.training.checkpoints import (
    STATE,
    DurableCheckpointIO,
    load_fitting_weights,
    load_model,
    model_name,
    model_of,
    plain,
    read_checkpoint,
    read_weights,
    write_checkpoint,
)


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
    run = Run(tmp_path)
    for step in (1, 2, 3):
        write_checkpoint(content(step), run.last, also=run.best if step == 2 else None, previous=run.previous)
    steps = {file.stem: read_checkpoint(file)["global_step"] for file in (run.last, run.previous, run.best)}
    assert steps == {"last": 3, "previous": 2, "best": 2}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("failing", ["open", "write", "fsync", "replace"])
def test_a_failure_at_any_point_leaves_a_good_checkpoint(tmp_path, monkeypatch, failing, links):
    """Whatever call fails, at whatever time: an error of one line, `last` is one of the two, and nothing lies about."""
    run = Run(tmp_path)
    write_checkpoint(content(1), run.last)
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    for number in range(1, 20):
        with monkeypatch.context() as patch:
            calls = fail_at(patch, failing, number)
            try:
                write_checkpoint(content(2), run.last, also=run.best, previous=run.previous)
            except UserError as error:
                assert "No space left on device" in str(error)  # noqa: PT017
                assert "\n" not in str(error)  # noqa: PT017
        assert read_checkpoint(run.checkpoint("last"))["global_step"] in (1, 2)
        assert not list(tmp_path.glob(".*"))
        if calls[0] < number:
            break
        write_checkpoint(content(1), run.last)
    assert read_checkpoint(run.last)["global_step"] == 2
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


def test_the_table_is_synced_before_the_checkpoint_that_holds_its_length(tmp_path, monkeypatch):
    done, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: (done.append(Path(os.readlink(f"/proc/self/fd/{d}")).suffix), fsync(d)))
    table = tmp_path / "metrics.csv"
    write_checkpoint(content(), tmp_path / "last.ckpt", table=table)  # before its first row it is not there
    table.write_text("step\n1\n")
    write_checkpoint(content(), tmp_path / "last.ckpt", table=table)
    assert done == [".tmp", "", ".csv", ".tmp", ""]


@pytest.mark.parametrize("checkpoint", [content(), content_of_3207afc(), trained()])
def test_any_part_of_a_file_is_none(tmp_path, checkpoint):
    write_checkpoint(checkpoint, tmp_path / "last.ckpt")
    data = (tmp_path / "last.ckpt").read_bytes()
    for length in range(0, len(data), 397):
        (tmp_path / "last.ckpt").write_bytes(data[:length])
        for read in (read_checkpoint, read_weights):
            with pytest.raises(UserError, match="is damaged"):
                read(tmp_path / "last.ckpt")


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
    with pytest.raises(
        UserError, match=r"a model that is not of this project .*'os.system'; give its class .* with --model"
    ):
        load_model(tmp_path / "last.ckpt")


# ---------------------------------------------------------------------- in a thread, while the training goes on


def test_a_checkpoint_holds_the_weights_of_its_moment(tmp_path, monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr(checkpoints, "write_checkpoint", lambda *args: (go_on.wait(), write_checkpoint(*args)))
    io, checkpoint = DurableCheckpointIO(), content()
    io.save_checkpoint(checkpoint, tmp_path / "last.ckpt", {})
    assert not (tmp_path / "last.ckpt").exists()
    checkpoint["state_dict"]["net.weight"] += 1
    go_on.set()
    io.wait()
    written = read_checkpoint(tmp_path / "last.ckpt")["state_dict"]["net.weight"]
    assert torch.equal(written, content()["state_dict"]["net.weight"])


def test_a_failure_to_write_is_told_once_by_whoever_waits(tmp_path):
    io = DurableCheckpointIO()
    (tmp_path / "last.ckpt").mkdir()
    io.save_checkpoint(content(), tmp_path / "last.ckpt", {})
    with pytest.raises(UserError, match="cannot be written"):
        io.save_checkpoint(content(), tmp_path / "last.ckpt", {})
    io.teardown()


def test_who_does_not_know_of_the_thread_finds_the_file_there(tmp_path):
    """Lightning's callbacks look for it, and link to it, when the call returns."""
    DurableCheckpointIO().save_checkpoint(content(), tmp_path / "folder" / "a.ckpt")
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["a.ckpt"]
    with pytest.raises(UserError, match="cannot be written"):
        DurableCheckpointIO().save_checkpoint(content(), tmp_path / "folder")


def test_what_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("mnist_lightning.training.checkpoint_content.VALUES", 100)
    callbacks = {"Mine": {"seen": list(range(100))}}
    with pytest.raises(UserError, match="it has too many values; see the states of callbacks"):
        DurableCheckpointIO().save_checkpoint({**content(), "callbacks": callbacks}, tmp_path / "last.ckpt", {})
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- with Lightning's Trainer


def batches() -> DataLoader:
    return DataLoader(TensorDataset(torch.rand(30, 1, 28, 28), torch.arange(30) % 10), batch_size=10)


def trainer(folder: Path, *callbacks: Callback, epochs: int = 1, durable: bool = True) -> Trainer:
    return Trainer(
        accelerator="cpu", max_epochs=epochs, default_root_dir=folder, logger=False, enable_model_summary=False,
        enable_progress_bar=False, enable_checkpointing=False, callbacks=list(callbacks),
        plugins=[DurableCheckpointIO()] if durable else None,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("callback", [EMAWeightAveraging, lambda: LearningRateFinder(num_training_steps=4)])
def test_what_other_callbacks_keep_is_kept(tmp_path, callback):
    """Averaged weights lie at the top of a checkpoint; the finder of learning rates saves and loads in a row."""
    first, second = callback(), callback()
    one = trainer(tmp_path, first)
    one.fit(MLP(hidden=[8]), batches())
    one.save_checkpoint(tmp_path / "x.ckpt")
    two = trainer(tmp_path, second, epochs=2)
    two.fit(MLP(hidden=[8]), batches(), ckpt_path=tmp_path / "x.ckpt")
    assert two.global_step == 6
    assert isinstance(load_model(tmp_path / "x.ckpt"), MLP)


# ---------------------------------------------------------------------- models


@pytest.mark.parametrize("checkpoint", [trained(), content_of_3207afc()])
def test_a_model_comes_back_ready_to_use(tmp_path, checkpoint):
    write_checkpoint(checkpoint, tmp_path / "a.ckpt")
    model = load_model(str(tmp_path / "a.ckpt"))
    assert isinstance(model, CNN)
    assert not model.training
    assert all(torch.equal(tensor, checkpoint["state_dict"][name]) for name, tensor in model.state_dict().items())
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("kind", [MLP, CNN])
def test_what_any_trainer_wrote_is_loaded(tmp_path, kind, durable):
    model = kind(hidden=[8], classes=12)
    one = trainer(tmp_path, durable=durable)
    one.fit(model, batches())
    one.save_checkpoint(tmp_path / "a.ckpt")
    again = load_model(tmp_path / "a.ckpt")
    assert type(again) is kind
    assert again.hparams == model.hparams
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))


def test_damage_of_what_a_plain_trainer_wrote_is_found(tmp_path):
    torch.save(trained(), tmp_path / "a.ckpt")
    assert read_weights(tmp_path / "a.ckpt")[STATE]["model"] == "CNN"
    data = bytearray((tmp_path / "a.ckpt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.ckpt").write_bytes(data)
    with pytest.raises(UserError, match=r"was not loaded: .* is damaged"):
        load_model(tmp_path / "a.ckpt")


def test_without_a_name_it_must_fit_some_class(tmp_path):
    for checkpoint, reason in (
        ({"state_dict": {"a": torch.zeros(1)}}, "describes no MLP of its weights: .*; .*describes no CNN"),
        ({"state_dict": {}}, "describes no MLP of its weights"),
        ({"state_dict": [1]}, "its state_dict is missing or wrong"),
        ({"state_dict": {"a": 1}, "hyper_parameters": "x"}, "its hyper_parameters is missing or wrong"),
        ({"weights": {}}, "its state_dict is missing or wrong"),
        ([1, 2], "it holds a list"),
    ):
        torch.save(checkpoint, tmp_path / "a.ckpt")
        with pytest.raises(UserError, match=reason):
            load_model(tmp_path / "a.ckpt")
        with pytest.raises(UserError, match=r"is no checkpoint and was not loaded|is not of a run of mnist_lightning"):
            read_checkpoint(tmp_path / "a.ckpt")


class Own(CNN):
    """A user's."""


def test_a_checkpoint_calls_a_model_by_its_class():
    assert model_name(CNN()) == "CNN"
    assert model_name(Own()) == f"{__name__}.Own"
    assert model_name(nn.ReLU()) == "torch.nn.modules.activation.ReLU"
    with pytest.raises(UserError, match=r"'mine.Net'; give its class and settings with --model"):
        model_of(content(model="mine.Net"), Path("a.ckpt"))


def test_weights_that_fit_are_taken_and_the_others_named():
    model, other = CNN(channels=[4], hidden=[16]), CNN(channels=[4], hidden=[16], classes=3)
    left = load_fitting_weights(other, {"state_dict": model.state_dict()}, Path("a.ckpt"))
    last = len(other.state_dict()) - 2
    assert left == list(other.state_dict())[last:]
    old, new = list(model.state_dict().values()), list(other.state_dict().values())
    assert all(map(torch.equal, old[:last], new[:last]))
    with pytest.raises(UserError, match=r"a.ckpt has no weight that fits into this CNN"):
        load_fitting_weights(other, {"state_dict": {"a": torch.zeros(1)}}, Path("a.ckpt"))
