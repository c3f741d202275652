"""To validate and to test by QuickEvaluation is to do so by Lightning's loop: results, calls, rows, counters."""

import gc
import itertools
import pickle
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from both_loops import CLASSES, POINTS, WARNED, Endless, Net, differences, loader, net, noted
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, callbacks
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import TensorDataset

from mnist_lightning.training.evaluation_loop import QuickEvaluation
from mnist_lightning.training.trainer import quick

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, of few workers and much else


def points(count: int = 68, **options: Any) -> Any:
    return loader(TensorDataset(POINTS[:count], CLASSES[:count]), shuffle=False, **options)


def evaluated(
    quickly: bool,
    folder: Path,
    module: type[Net],
    loaders: Callable[[], Any],
    made: Callable[[], list[Any]],
    settings: dict[str, Any],
) -> Any:
    """What a training, a validation and a test leave."""
    folder.mkdir()
    torch.manual_seed(3)
    net, data, calls = module(), loaders(), made()
    trainer = Trainer(
        accelerator="cpu", default_root_dir=folder, callbacks=calls,
        **{"logger": CSVLogger(folder, name="", version="0"), "max_epochs": 2, "log_every_n_steps": 2,
           "num_sanity_val_steps": 1, "enable_model_summary": False, "enable_progress_bar": False,
           "enable_checkpointing": False} | settings,
    )  # fmt: skip
    if quickly:
        quick(trainer)
    for cache in WARNED:
        cache.clear()
    own = isinstance(data, LightningDataModule)
    stages = {
        "fit": lambda: trainer.fit(net, **({"datamodule": data} if own else {"train_dataloaders": loader(),
                                                                            "val_dataloaders": data})),
        "validate": lambda: trainer.validate(net, data, verbose=False),
        "test": lambda: trainer.test(net, data, verbose=False),
    }  # fmt: skip
    left: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for stage, run in stages.items():
            try:
                left[stage] = run()
            except (Exception, SystemExit) as error:
                left[stage] = f"{type(error).__name__}: {error}"
            done = not isinstance(left[stage], str)
            named = {name: getattr(trainer, f"{name}_metrics") for name in ("callback", "logged", "progress_bar")}
            loops = (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop)
            left[f"after {stage}"] = (
                named if done else {}, [loop.state_dict() for loop in loops], net._current_fx_name if done else None,
                "log" in vars(net), torch.get_rng_state().sum(),
            )  # fmt: skip
    if quickly:
        assert all(isinstance(loop, QuickEvaluation) for loop in loops)
    left["warnings"] = sorted({f"{warning.category.__name__}: {warning.message}" for warning in caught})
    left["files"] = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return noted(left | {"notes": net.notes}, folder)


def by_both(
    folder: Path,
    module: type[Net],
    loaders: Callable[[], Any] = points,
    made: Callable[[], list[Any]] = list,
    **settings: Any,
) -> Any:
    theirs, ours = (
        evaluated(quickly, folder / name, module, loaders, made, settings)
        for quickly, name in ((False, "lightning"), (True, "quick"))
    )
    found = "\n".join(itertools.islice(differences(theirs, ours), 10))
    assert not found, found
    return ours


def evaluates(step: Callable[..., Any], **methods: Any) -> type[Net]:
    return net(validation_step=step, test_step=step, **methods)


def loss_only(self: Net, batch: Any, batch_idx: int) -> Any:
    loss = self.loss(batch)
    self.log("val_loss", loss)
    return loss


# ---------------------------------------------------------------------- what is logged


def logs(log: Callable[[Net, Any, Any, int], Any]) -> type[Net]:
    def step(self: Net, batch: Any, batch_idx: int) -> None:
        loss = self.loss(batch)
        log(self, loss, batch, batch_idx)
        self.log("val_loss", loss, batch_size=len(batch[1]))

    return evaluates(step)


def of_metric(self: Net, loss: Any, batch: Any, index: int) -> None:
    self.accuracy(self(batch[0]), batch[1])
    self.log("acc", self.accuracy, on_step=index < 0, on_epoch=True)
    self.mean.update(loss)
    self.log("mean", self.mean, on_step=True, on_epoch=True)


def of_all_kinds(self: Net, loss: Any, batch: Any, index: int) -> None:
    self.log("step", loss, on_step=True, on_epoch=False)
    self.log("both", loss, on_step=True, on_epoch=True, prog_bar=True)
    self.log("unlogged", loss, logger=False, prog_bar=True)
    for reduce in ("sum", "max", "min"):
        self.log(reduce, loss, reduce_fx=reduce)
    self.log("int", index)
    self.log("float", 0.5 * index)
    self.log("long", torch.tensor(index))
    self.log("double", loss.double())
    self.log("of shape [1]", loss.reshape(1))
    self.log("rank zero", loss, rank_zero_only=True)
    self.log("synchronised", loss, sync_dist=True)


LOGS: dict[str, Callable[[Net, Any, Any, int], Any]] = {
    "metric": of_metric,
    "all kinds": of_all_kinds,
    "log_dict": lambda self, loss, batch, index: self.log_dict({"a": loss, "b": loss * 2}),
    "collection": lambda self, loss, batch, index: self.log_dict(self.scores(self(batch[0]), batch[1])),
    "later": lambda self, loss, batch, index: index > 1 and self.log("late", loss),
    "not always": lambda self, loss, batch, index: index != 2 and self.log("seldom", loss),
    "twice": lambda self, loss, batch, index: [self.log("twice", loss), self.log("twice", loss + 1)],
    "another way": lambda self, loss, batch, index: self.log("a", loss, on_epoch=True, on_step=index > 1),
    "changed afterwards": lambda self, loss, batch, index: [self.log("a", loss, on_step=True), loss.add_(1)],
    "two values": lambda self, loss, batch, index: self.log("a", torch.stack([loss, loss])),
    "two values later": lambda self, loss, batch, index: self.log("a", loss.repeat(1 + (index == 2))),
    "a dict": lambda self, loss, batch, index: self.log("a", {"b": loss}),
    "a word": lambda self, loss, batch, index: self.log("a", "b"),
    "not a number": lambda self, loss, batch, index: self.log("a", loss / 0 * 0),
    "sizes": lambda self, loss, batch, index: self.log("a", loss, batch_size=index),
    "an index in its name": lambda self, loss, batch, index: self.log("a/dataloader_idx_0", loss),
    "a size by its place": lambda self, loss, batch, index: self.log(
        "a", loss, False, None, None, None, "mean", False, False, None, True, 7
    ),
    "unseen": lambda self, loss, batch, index: self.notes.append(dict(self.trainer.callback_metrics)),
}


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_logging(log: Callable[..., Any], tmp_path: Path):
    by_both(tmp_path, logs(log))


def test_a_log_of_ones_own(tmp_path: Path):
    def log(self: Net, name: str, value: Any, **how: Any) -> None:
        self.notes.append((name, value))
        LightningModule.log(self, name, value, **how)

    assert by_both(tmp_path, evaluates(loss_only, log=log))["notes"]


def test_a_log_that_is_put_in_its_place(tmp_path: Path):
    class Told(Net):
        def __init__(self) -> None:
            super().__init__()
            self.log = lambda name, value, **how: self.notes.append((name, value))  # type: ignore[method-assign]

    found = by_both(tmp_path, net(Told, validation_step=loss_only, test_step=loss_only))
    assert (
        len(found["notes"]) == 1 + 2 * 7 + 2 * 7 + 7 + 7
    )  # sanity check, 2 epochs of training and of validation, the rest


# ---------------------------------------------------------------------- what is stepped through


def without_index(self: Net, batch: Any) -> None:
    self.log("val_loss", self.loss(batch))


def of_several(self: Net, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
    self.notes.append((batch_idx, dataloader_idx))
    self.log("val_loss", self.loss(batch), on_step=True, on_epoch=True)
    self.log(f"own_{dataloader_idx}", self.loss(batch), add_dataloader_idx=False)


def of_several_mixed(self: Net, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
    self.log("mixed", self.loss(batch), add_dataloader_idx=False)


def of_names_alike(self: Net, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
    self.log("v", self.loss(batch))
    self.log("v.1", torch.tensor(100.0 + batch_idx))


def of_iterator(self: Net, dataloader_iter: Any) -> None:
    batch, _, _ = next(dataloader_iter)
    self.log("val_loss", self.loss(batch), batch_size=len(batch[1]))


def fails(self: Net, batch: Any, batch_idx: int) -> None:
    if batch_idx == 3:
        raise ValueError("four is too many")
    self.log("val_loss", self.loss(batch))


def says_nothing(self: Net, batch: Any, batch_idx: int) -> None:
    self.notes.append(batch_idx)


def of_parts(self: Net, batch: Any, batch_idx: int) -> None:
    parts = [part for part in (batch.values() if isinstance(batch, dict) else batch) if part is not None]
    self.log("val_loss", self.loss(parts[0]), batch_size=10)


class Doubled(LightningDataModule):
    def train_dataloader(self) -> Any:
        return loader()

    def val_dataloader(self) -> Any:
        return points(batch_size=20)

    test_dataloader = val_dataloader

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] * 2, batch[1]


def two() -> list[Any]:
    return [points(), points(40, batch_size=7)]


STEPS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "one": (loss_only, points),
    "without an index": (without_index, points),
    "two loaders": (of_several, two),
    "two loaders, one name": (of_several_mixed, two),
    "two loaders, names alike": (of_names_alike, two),
    "two loaders, no index": (loss_only, two),
    "three loaders": (of_several, lambda: [points(batch_size=30), points(40), points(20)]),
    "an iterator": (of_iterator, points),
    "fails": (fails, points),
    "says nothing": (says_nothing, points),
    "empty": (loss_only, lambda: points(0)),
    "without a length": (loss_only, lambda: loader(Endless(), shuffle=False)),
    "a list": (loss_only, lambda: [points()]),
    "a data module": (loss_only, Doubled),
    "combined": (of_parts, lambda: CombinedLoader({"a": points(), "b": points(40)}, "max_size")),
    "combined, sequential": (of_several, lambda: CombinedLoader([points(), points(40)], "sequential")),
}


@pytest.mark.parametrize("limit", [1.0, 2], ids=["all", "limited"])
@pytest.mark.parametrize(("step", "loaders"), STEPS.values(), ids=STEPS)
def test_steps(step: Any, loaders: Callable[[], Any], limit: float, tmp_path: Path):
    by_both(tmp_path, evaluates(step), loaders, limit_val_batches=limit, limit_test_batches=limit)


@pytest.mark.parametrize(
    "settings",
    [{"precision": "bf16-mixed"}, {"precision": "bf16-true"}, {"precision": "64-true"}, {"inference_mode": False},
     {"fast_dev_run": 2}, {"num_sanity_val_steps": 0}, {"log_every_n_steps": 0}, {"logger": False}],
    ids=str,
)  # fmt: skip
def test_settings(settings: dict[str, Any], tmp_path: Path):
    by_both(tmp_path, logs(of_metric), **settings)


# ---------------------------------------------------------------------- who listens

HOOKS = [f"on_{stage}_batch_{place}" for stage in ("validation", "test") for place in ("start", "end")]


def notes_of(hook: str, module: Any, args: tuple[Any, ...]) -> None:
    plain = [arg for arg in args if isinstance(arg, int)]
    sums = [arg[0].sum() if isinstance(arg, list | tuple) else arg for arg in args if not isinstance(arg, int)]
    progress = module.trainer._active_loop.batch_progress.state_dict()
    module.notes.append((hook, plain, sums, module._current_fx_name, progress))
    module.log(f"of {hook}", float(plain[0]), on_step=True, on_epoch=True)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("loaders", [points, two], ids=["one", "two"])
def test_a_hook_of_a_callback(hook: str, loaders: Callable[[], Any], tmp_path: Path):
    hears = {hook: lambda trainer, module, *args: notes_of(hook, module, args)}
    step = loss_only if loaders is points else of_several
    found = by_both(tmp_path, evaluates(step), loaders, lambda: [callbacks.LambdaCallback(**hears)])
    assert any(note[0] == hook for note in found["notes"] if isinstance(note[0], str))


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_of_the_module(hook: str, tmp_path: Path):
    found = by_both(tmp_path, evaluates(loss_only, **{hook: lambda self, *args: notes_of(hook, self, args)}))
    assert found["notes"]


def test_a_batch_on_its_way(tmp_path: Path):
    moved = {"on_before_batch_transfer": lambda self, batch, dataloader_idx: (batch[0] * 3, batch[1])}
    by_both(tmp_path, evaluates(loss_only, **moved))


def test_a_callback_that_joins(tmp_path: Path):
    def join(trainer: Trainer, module: Any, *args: Any) -> None:
        if args[-1] == 2:
            trainer.callbacks.append(
                callbacks.LambdaCallback(on_test_batch_start=lambda *args: module.notes.append(args[-1]))
            )

    found = by_both(tmp_path, evaluates(loss_only), made=lambda: [callbacks.LambdaCallback(on_test_batch_end=join)])
    assert found["notes"] == [3, 4, 5, 6]


def test_a_step_that_is_replaced(tmp_path: Path):
    def replace(trainer: Trainer, module: Any, *args: Any) -> None:
        module.test_step = lambda batch, batch_idx: module.log("val_loss", float(batch_idx))

    by_both(tmp_path, evaluates(loss_only), made=lambda: [callbacks.LambdaCallback(on_test_batch_start=replace)])


def test_a_callback_that_takes_anothers_place(tmp_path: Path):
    first: list[Any] = []

    def noting(word: str, **more: Any) -> callbacks.Callback:
        return callbacks.LambdaCallback(on_test_batch_start=lambda *args: args[1].notes.append(word), **more)

    def replace(trainer: Trainer, module: Any, *args: Any) -> None:
        if args[-1] == 2:
            trainer.callbacks[:] = [noting("second") if call is first[-1] else call for call in trainer.callbacks]

    def made() -> list[Any]:
        first.append(noting("first", on_test_batch_end=replace))
        return [first[-1]]

    assert by_both(tmp_path, evaluates(loss_only), made=made)["notes"] == ["first"] * 3 + ["second"] * 4


def test_a_hook_that_is_none(tmp_path: Path):
    def made() -> list[Any]:
        silent: Any = callbacks.Callback()
        silent.on_validation_batch_start = silent.on_test_batch_end = silent.on_train_batch_end = None
        return [silent]

    by_both(tmp_path, evaluates(loss_only), made=made)


def plain_trainer(folder: Path) -> Trainer:
    silent: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return quick(
        Trainer(
            accelerator="cpu", max_epochs=-1, max_steps=7, enable_checkpointing=False, default_root_dir=folder, **silent
        )
    )


def test_the_next_model_frees_the_one_before(tmp_path: Path):
    trainer = plain_trainer(tmp_path)

    def run() -> Any:
        model = evaluates(loss_only)()
        trainer.validate(model, points(), verbose=False)
        trainer.fit_loop.epoch_loop.max_steps = trainer.global_step + 7
        trainer.fit(model, loader(), points())
        trainer.test(model, points(), verbose=False)
        return weakref.ref(model)

    first = run()
    assert run()() is not None
    gc.collect()
    assert first() is None


def test_a_trainer_can_be_pickled_after_its_fit(tmp_path: Path):
    trainer = plain_trainer(tmp_path)
    trainer.fit(Net(), loader(), points())
    assert pickle.loads(pickle.dumps(trainer)).global_step == 7


def test_sigterm_in_the_middle(tmp_path: Path):
    def stop(trainer: Trainer, module: Any, *args: Any) -> None:
        trainer._signal_connector.received_sigterm = True
        module.notes.append(args[-1])

    found = by_both(
        tmp_path, evaluates(loss_only), made=lambda: [callbacks.LambdaCallback(on_validation_batch_end=stop)]
    )
    assert found["notes"][0] == 0
    assert "SIGTERM" in str(found["fit"])
