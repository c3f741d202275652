"""Eager steps that nobody looks between: the same bits, counters and rows as Lightning's loop leaves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from both_loops import CLASSES, POINTS, Case, Net, by_both, logs, net, raises_at, scheduled, steps
from lightning.pytorch import Callback
from torch import Tensor, nn

from mnist_lightning.data.loader import TensorLoader
from mnist_lightning.errors import UserError
from mnist_lightning.processes import Signals
from mnist_lightning.run import Run
from mnist_lightning.training import several
from mnist_lightning.training.keeper import RunKeeper
from mnist_lightning.training.several import UnseenSteps
from mnist_lightning.training.trainer import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore")


def batches() -> TensorLoader:
    """17 of four images."""
    return TensorLoader(POINTS, CLASSES, batch_size=4, shuffle=True, seed=7)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps were taken together, each time."""
    counts: list[int] = []
    advance = UnseenSteps.advance

    def spied(self: UnseenSteps, fetcher: Any, count: int) -> None:
        counts.append(count)
        advance(self, fetcher, count)

    monkeypatch.setattr(UnseenSteps, "advance", spied)
    return counts


def sees(self: Net, loss: Tensor, batch: Any, index: int) -> None:
    """What a module may look at in its step."""
    trainer = self.trainer
    self.notes.append([index, trainer.global_step, trainer.is_last_batch, trainer.fit_loop.total_batch_idx])
    self.log("images", float(len(batch[1])), reduce_fx="sum")
    self.log("mean", loss * 2, on_epoch=True, on_step=False)
    self.accuracy(self(batch[0]), batch[1])
    self.log("acc", self.accuracy, on_epoch=True, on_step=True)


def widths(self: Net, loss: Tensor, batch: Any, index: int) -> None:
    self.log("mean", loss.double() if index == 6 else loss, on_epoch=True, on_step=False)
    self.log("number", loss if index % 5 else 1e5 / 3, on_epoch=True, on_step=False)
    self.log("infinite", loss / (index != 6), on_epoch=True, on_step=False, batch_size=index)


def changes(self: Net, loss: Tensor, batch: Any, index: int) -> None:
    self.log("mean", loss, on_epoch=True, on_step=False, prog_bar=index == 8)


def stops(self: Net, batch: Any, batch_idx: int) -> Tensor:
    self.trainer.should_stop = self.trainer.global_step == 7
    return Net.training_step(self, batch, batch_idx)


def skips(self: Net, batch: Any, batch_idx: int) -> Any:
    return Net.training_step(self, batch, batch_idx) if batch_idx % 3 else None


def of_one(self: Net, batch: Any, batch_idx: int) -> Tensor:
    return Net.training_step(self, batch, batch_idx).reshape(1)


def halves(self: Net, batch: Any, batch_idx: int) -> Tensor:
    loss = Net.training_step(self, batch, batch_idx)
    loss.register_hook(lambda gradient: gradient.mul_(0.5))  # in its place
    return loss


def unfreezes(self: Net, batch: Any, batch_idx: int) -> Tensor:
    optimizer: Any = self.optimizers()
    if batch_idx == 3 and len(optimizer.param_groups) == 1:
        optimizer.add_param_group({"params": [self.extra], "lr": 0.1})
    return Net.training_step(self, batch, batch_idx) + self.extra.square().sum() * batch[0].mean()


class Unfreezes(Net):
    training_step = unfreezes

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Parameter(torch.ones(3))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([parameter for parameter in self.parameters() if parameter is not self.extra])


def another_optimizer(self: Net, batch: Any, batch_idx: int) -> Tensor:
    if batch_idx == 3:
        self.trainer.optimizers = [torch.optim.SGD(self.parameters(), 0.1)]
    return Net.training_step(self, batch, batch_idx)


def nearer_end(self: Net, batch: Any, batch_idx: int) -> Tensor:
    if batch_idx == 3:
        self.trainer.fit_loop.epoch_loop.max_steps = 6
    return Net.training_step(self, batch, batch_idx)


def more_rows(self: Net, batch: Any, batch_idx: int) -> Tensor:
    self.trainer.log_every_n_steps = 2 if batch_idx > 3 else 50  # type: ignore[attr-defined]
    return Net.training_step(self, batch, batch_idx)


def of_either_shape(self: Net, batch: Any, batch_idx: int) -> Tensor:
    loss = Net.training_step(self, batch, batch_idx)
    return loss.reshape(1) if batch_idx % 2 else loss


def sized(self: Net, loss: Tensor, batch: Any, index: int) -> None:
    self.log("by tensors", loss, on_epoch=True, on_step=False, batch_size=batch[0].abs().sum().int())
    for more in range(5):
        size: Any = 0.1 * 3 ** ((index + more) % 5)
        self.log(f"by parts {more}", loss, on_epoch=True, on_step=False, batch_size=size)


MODULES = {
    "as a user writes it": Net,
    "that logs and looks": logs(sees),
    "that logs now so, now so": logs(widths),
    "that logs in two ways": logs(changes),
    "that stops": steps(stops),
    "that fails": steps(raises_at(7, ValueError("so"))),
    "that skips": steps(skips),
    "with a loss [1]": steps(of_one),
    "with a loss [] or [1]": steps(of_either_shape),
    "with a hook that changes its gradient": steps(halves),
    "that unfreezes": Unfreezes,
    "with another optimizer": steps(another_optimizer),
    "that is to end sooner": steps(nearer_end),
    "with more rows": steps(more_rows),
    "that ends the epoch": steps(raises_at(7, StopIteration())),
    "with sizes of its own": logs(sized),
    "with steps as dicts": steps(lambda self, batch, index: {"loss": self.loss(batch), "more": index}),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "rows every 5": {"log_every_n_steps": 5},
    "rows every 7": {"log_every_n_steps": 7},
    "no rows": {"log_every_n_steps": 0},
    "max_steps": {"max_steps": 24},
    "limit": {"limit_train_batches": 12},
    "validation every 5": {"val_check_interval": 5},
    "validation across epochs": {"val_check_interval": 6, "check_val_every_n_epoch": None},
    "clip": {"gradient_clip_val": 0.1},
    "bf16": {"precision": "bf16-mixed"},
    "two epochs' end": {"max_epochs": 2, "min_steps": 40},
}


@pytest.mark.parametrize("seconds", [0, 0.003])
def test_they_follow_each_other_for_a_while(seconds: float, tmp_path: Path, taken: list[int], monkeypatch: Any):
    monkeypatch.setattr(several, "PATIENCE", seconds)
    by_both(Case(logs(sees), batches, settings={"log_every_n_steps": 50}, watched=False), tmp_path)
    assert taken[:17] == [*range(17, 1, -1), 17] or seconds


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_modules(module: Any, tmp_path: Path, taken: list[int]):
    by_both(Case(module, batches, settings={"log_every_n_steps": 50}, watched=False), tmp_path)
    assert taken[0] == 17


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings(settings: dict[str, Any], tmp_path: Path, taken: list[int]):
    by_both(Case(logs(sees), batches, settings={"log_every_n_steps": 50} | settings, watched=False), tmp_path)
    assert max(taken) >= 5


class Looks(Callback):
    def on_train_batch_start(self, *args: Any) -> None:
        pass


def ends(self: Net, outputs: Any, batch: Any, batch_idx: int) -> None:
    self.notes.append(batch_idx)


LOOKED_AT: dict[str, Case] = {
    "by a callback": Case(Net, batches, lambda folder: [Looks()]),
    "by the module": Case(net(on_train_batch_end=ends), batches),
    "by rows": Case(Net, batches, settings={"log_every_n_steps": 1}),
    "by a schedule": Case(scheduled(lambda made: torch.optim.lr_scheduler.StepLR(made, 1)), batches),
    "by accumulation": Case(Net, batches, settings={"accumulate_grad_batches": 2}),
    "by the clock": Case(Net, batches, settings={"val_check_interval": {"seconds": 3600}}),
}


@pytest.mark.parametrize("case", LOOKED_AT.values(), ids=LOOKED_AT)
def test_steps_that_somebody_looks_at_are_taken_one_by_one(case: Case, tmp_path: Path, taken: list[int]):
    case.watched, case.settings = False, {"log_every_n_steps": 50} | case.settings
    by_both(case, tmp_path)
    assert taken == []


def test_a_checkpoint_every_so_many_steps_is_taken_there(tmp_path: Path, taken: list[int]):
    keep(tmp_path, Net, every_n_steps=3)
    assert taken == []


def test_the_step_whose_loss_is_not_finite_is_told(tmp_path: Path, taken: list[int]):
    seen: list[int] = []

    def breaks(self: Net, batch: Any, batch_idx: int) -> Tensor:
        seen.append(batch_idx)
        return Net.training_step(self, batch, batch_idx) * (float("nan") if len(seen) == 7 else 1)

    with pytest.raises(UserError, match="not finite in epoch 1 at step 7:"):
        keep(tmp_path, steps(breaks))
    assert taken[0] == 17


def test_what_is_random_in_a_step_is_the_same_alone(tmp_path: Path, taken: list[int], monkeypatch: pytest.MonkeyPatch):
    weights = []
    for seconds in (several.PATIENCE, 0):
        monkeypatch.setattr(several, "PATIENCE", seconds)
        (tmp_path / str(seconds)).mkdir()
        module = keep(tmp_path / str(seconds), Net)  # with dropout
        weights.append(torch.cat([weight.flatten() for weight in module.state_dict().values()]))
    assert torch.equal(*weights)
    assert taken[:2] == [17, 17]


def test_losses_of_either_shape_are_looked_at(tmp_path: Path, taken: list[int]):
    keep(tmp_path, steps(of_either_shape))
    assert taken[0] == 17


def keep(folder: Path, module: Any, every_n_steps: int | None = None) -> Net:
    torch.manual_seed(3)
    model = module()
    run, signals = Run(folder / "run"), Signals()
    run.folder.mkdir()
    settings = {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": folder, "log_every_n_steps": 50}
    try:
        make_trainer(settings, [RunKeeper(run, signals, None, every_n_steps)], fit=True).fit(model, batches())
    finally:
        signals.restore()
    return model  # type: ignore[no-any-return]
