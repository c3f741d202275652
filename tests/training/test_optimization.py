"""A step of QuickLoop is one of Lightning's, whatever the optimizer, the module's hooks, and what it logs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from both_loops import Case, Net, by_both, logs, net, raises_at, scheduled, steps
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, of few workers and much else


# ---------------------------------------------------------------------- optimizers and schedules


def two_optimizers(self: Net) -> Any:
    first, second = SGD(self.backbone.parameters(), lr=0.1), Adam(self.head.parameters())
    return [first, second], [StepLR(first, 5), StepLR(second, 5)]


def by_hand(self: Net, batch: Any, batch_idx: int) -> None:
    self.log("by hand", self.loss(batch).detach(), on_epoch=True)
    for optimizer, schedule in zip(self.optimizers(), self.lr_schedulers(), strict=True):  # type: ignore[call-overload]
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()
        schedule.step()
        self.untoggle_optimizer(optimizer)


class NoClosure(SGD):
    """Never calls the closure, as some optimizers of users' do."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()


class Twice(SGD):
    def step(self, closure: Any = None) -> Any:
        closure()
        return super().step(closure)


def hooked(self: Net) -> Any:
    optimizer = SGD(self.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: self.notes.append(("before", self.head.weight.grad)))
    optimizer.register_step_post_hook(lambda *_: self.notes.append(("after", self.head.weight.grad)))
    return optimizer


def patched(self: Net) -> Any:
    optimizer = SGD(self.parameters(), lr=0.1)
    original = optimizer.step
    optimizer.step = lambda closure=None: (self.notes.append(closure is None), original(closure))[1]  # type: ignore
    return optimizer


def some_without_gradients(self: Net) -> Any:
    for parameter in self.backbone.parameters():
        parameter.requires_grad = False
    return SGD(self.parameters(), lr=0.1, momentum=0.9)


OPTIMIZERS: dict[str, Callable[[], LightningModule]] = {
    "StepLR by step": scheduled(lambda o: StepLR(o, 4), interval="step"),
    "StepLR by 2 steps": scheduled(lambda o: StepLR(o, 2), interval="step", frequency=2),
    "StepLR by epoch": scheduled(lambda o: StepLR(o, 1)),
    "cosine": scheduled(lambda o: CosineAnnealingLR(o, 9), interval="step"),
    "plateau by epoch": scheduled(lambda o: ReduceLROnPlateau(o, patience=0, threshold=9), monitor="val_loss"),
    "plateau by step": scheduled(lambda o: ReduceLROnPlateau(o, patience=1), monitor="loss", interval="step"),
    "plateau on what is not there": scheduled(lambda o: ReduceLROnPlateau(o), monitor="nothing", interval="step"),
    "plateau not strict": scheduled(lambda o: ReduceLROnPlateau(o), monitor="x", interval="step", strict=False),
    "a scheduler's own step": net(
        configure_optimizers=lambda self: [[o := SGD(self.parameters(), 0.1)], [StepLR(o, 1)]],
        lr_scheduler_step=lambda self, scheduler, metric: self.notes.append(self.global_step),
    ),
    "none": net(configure_optimizers=lambda self: None),
    "by hand": net(configure_optimizers=two_optimizers, training_step=by_hand, automatic_optimization=False),
    "by hand, one": net(
        configure_optimizers=lambda self: [[o := SGD(self.parameters(), 0.1)], [StepLR(o, 5)]],
        training_step=lambda self, batch, batch_idx: by_hand_of_one(self, batch),
        automatic_optimization=False,
    ),
    "LBFGS": net(configure_optimizers=lambda self: torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)),
    "NoClosure": net(configure_optimizers=lambda self: NoClosure(self.parameters(), lr=0.1)),
    "Twice": net(configure_optimizers=lambda self: Twice(self.parameters(), lr=0.1)),
    "hooks of the optimizer": net(configure_optimizers=hooked),
    "patched step": net(configure_optimizers=patched),
    "some without gradients": net(configure_optimizers=some_without_gradients),
    "only the head": net(configure_optimizers=lambda self: Adam(self.head.parameters(), 0.05)),
    "groups": net(
        configure_optimizers=lambda self: Adam([
            {"params": self.backbone.parameters(), "lr": 0.01}, {"params": self.head.parameters()}
        ])
    ),
    "fused Adam": net(configure_optimizers=lambda self: Adam(self.parameters(), 0.05, fused=True)),
    "AdamW capturable": net(configure_optimizers=lambda self: torch.optim.AdamW(self.parameters(), 0.05, amsgrad=True)),
}  # fmt: skip


def by_hand_of_one(self: Net, batch: Any) -> Tensor:
    loss = self.loss(batch)
    self.log("loss", loss, prog_bar=True)
    self.optimizers().zero_grad()
    self.manual_backward(loss)
    self.optimizers().step()
    self.lr_schedulers().step()
    return loss


@pytest.mark.parametrize("accumulate", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("module", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers(module: type[Net], accumulate: int, tmp_path: Path):
    if accumulate > 1 and not module.automatic_optimization:
        accumulate = 1
    by_both(Case(module, settings={"accumulate_grad_batches": accumulate}), tmp_path)


# ---------------------------------------------------------------------- overridden hooks


def note(name: str, result: Any = None) -> Callable[..., Any]:
    """A hook that notes its plain arguments, and what it can see of the training."""

    def hook(self: Net, *args: Any, **kwargs: Any) -> Any:
        plain = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, int | float | str)]
        grad = self.head.weight.grad
        self.notes.append((name, plain, self.global_step, None if grad is None else grad.clone()))
        return result

    return hook


def optimizer_step(self: Net, epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * (self.global_step + 1)
    optimizer.step(closure=closure)


def backward(self: Net, loss: Tensor, *args: Any) -> None:
    (loss * 2).backward()


def clip(self: Net, optimizer: Any, gradient_clip_val: float, gradient_clip_algorithm: str) -> None:
    self.clip_gradients(optimizer, 0.05, "norm")


def many_losses(self: Net, batch: Any, batch_idx: int) -> dict[str, Any]:
    loss = self.loss(batch)
    return {"loss": loss, "points": batch[0].sum(), "index": batch_idx, "text": "x"}


def stop_in(self: Net, batch: Any, batch_idx: int) -> Tensor:
    self.trainer.should_stop |= self.global_step == 9
    return Net.training_step(self, batch, batch_idx)


def grows(self: Net) -> None:
    if self.current_epoch == 1:
        self.trainer.optimizers[0].add_param_group({"params": self.head.parameters()})


HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward", "on_after_backward",
         "on_before_optimizer_step", "on_train_epoch_start", "on_train_epoch_end", "on_validation_start",
         "on_validation_model_zero_grad", "on_validation_model_eval", "on_validation_model_train")  # fmt: skip
MODULES: dict[str, Callable[[], LightningModule]] = {
    **{name: net(**{name: note(name)}) for name in HOOKS},
    "all hooks": net(**{name: note(name) for name in HOOKS}),
    "optimizer_step": net(optimizer_step=optimizer_step),
    "backward": net(backward=backward),
    "configure_gradient_clipping": net(configure_gradient_clipping=clip),
    "optimizer_zero_grad": net(optimizer_zero_grad=lambda self, epoch, index, optimizer: optimizer.zero_grad(False)),
    "toggles": net(optimizer_zero_grad=note("zero")),  # gradients add up
    "step without an index": net(training_step=lambda self, batch: self.loss(batch)),
    "step with defaults": net(training_step=lambda self, batch, batch_idx=0, more=2: self.loss(batch) * batch_idx),
    "step with *args": net(training_step=lambda self, *args: self.loss(args[0]) * len(args)),
    "step with dataloader_iter": net(training_step=lambda self, dataloader_iter: self.loss(next(dataloader_iter)[0])),
    "a dict": steps(many_losses),
    "a dict without a loss": steps(lambda self, batch, index: {"a": self.loss(batch)}),
    "None": steps(lambda self, batch, index: None),
    "None at times": steps(lambda self, batch, index: self.loss(batch) if index % 3 else None),
    "a number": steps(lambda self, batch, index: 1.0),
    "a list": steps(lambda self, batch, index: [self.loss(batch)]),
    "a loss of shape [1]": steps(lambda self, batch, index: self.loss(batch).reshape(1)),
    "a loss of 64 bits": steps(lambda self, batch, index: self.loss(batch).double()),
    "a loss without a graph": steps(lambda self, batch, index: self.loss(batch).detach()),
    "a parameter": steps(lambda self, batch, index: self.head.bias.sum()),
    "not a number": steps(lambda self, batch, index: self.loss(batch) * float("nan")),
    "-1": net(on_train_batch_start=lambda self, batch, index: -1 if index == 4 else None),
    "-1 at once": net(on_train_batch_start=lambda self, batch, index: -1 if self.current_epoch == 1 else None),
    "an exception": net(training_step=raises_at(9, ValueError("x"))),
    "StopIteration": net(training_step=raises_at(9, StopIteration())),
    "KeyboardInterrupt": net(training_step=raises_at(9, KeyboardInterrupt())),
    "an exception at the end of a batch": net(on_train_batch_end=lambda self, out, batch, index: 1 // (index - 4)),
    "an exception before a batch": net(on_train_batch_start=lambda self, batch, index: 1 // (index - 4)),
    "should_stop": net(training_step=stop_in),
    "logs at the start": net(on_train_batch_start=lambda self, batch, index: self.log(
        "start", float(index), on_step=True, on_epoch=True, reduce_fx="sum")),
    "logs at the end": net(on_train_batch_end=lambda self, out, batch, index: self.log(
        "end", out["loss"], on_step=True, on_epoch=True)),
    "logs in a hook inside": net(on_after_backward=lambda self: self.log(
        "norm", self.head.weight.grad.norm(), on_step=True, on_epoch=True)),
    "logs at the epoch's end": net(on_train_epoch_end=lambda self: self.log("epochs", float(self.current_epoch))),
    "logs under one name in two hooks": net(
        on_train_batch_end=lambda self, out, batch, index: self.log("loss", out["loss"] * 2, on_step=True)),
    "moves batches": net(
        on_before_batch_transfer=lambda self, batch, index: (self.notes.append(1), [batch[0] * 2, batch[1]])[1]),
    "after moving": net(on_after_batch_transfer=lambda self, batch, index: [batch[0] + 1, batch[1]]),
    "in place of moving": net(transfer_batch_to_device=lambda self, batch, device, index: [batch[0] - 1, batch[1]]),
    "on_train_start replaces the optimizer": net(on_train_start=lambda self: setattr(
        self.trainer, "optimizers", [SGD(self.parameters(), lr=0.2)])),
    "groups that grow": net(
        configure_optimizers=lambda self: SGD(self.backbone.parameters(), lr=0.1), on_train_epoch_start=grows),
    "eval mode": net(on_train_start=lambda self: self.backbone.eval() and None),
    "no validation_step": net(validation_step=LightningModule.validation_step),
}  # fmt: skip


@pytest.mark.parametrize("accumulate", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_modules(module: type[Net], accumulate: int, tmp_path: Path):
    by_both(Case(module, settings={"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.5}), tmp_path)


# ---------------------------------------------------------------------- what changes in the middle of an epoch


def other_optimizer(trainer: Trainer, module: Any) -> None:
    trainer.optimizers = [Adam(module.parameters(), 0.1)]


def more_parameters(trainer: Trainer, module: Any) -> None:
    trainer.optimizers[0].add_param_group({"params": module.head.parameters(), "lr": 0.3})


def frozen(trainer: Trainer, module: Any) -> None:
    module.head.requires_grad_(False)


def accumulates(trainer: Trainer, module: Any) -> None:
    trainer.accumulate_grad_batches = 2


def clips(trainer: Trainer, module: Any) -> None:
    trainer.gradient_clip_val = 0.01


def hooks(trainer: Trainer, module: Any) -> None:
    trainer.optimizers[0].register_step_pre_hook(lambda *_: module.notes.append(module.head.weight.grad))
    trainer.optimizers[0].register_step_post_hook(lambda *_: module.notes.append(module.head.weight.grad))


def schedules(trainer: Trainer, module: Any) -> None:
    schedule = LRSchedulerConfig(StepLR(trainer.optimizers[0], 2), interval="step")
    trainer.strategy.lr_scheduler_configs.append(schedule)


def another_step(trainer: Trainer, module: Any) -> None:
    module.training_step = lambda batch, batch_idx: module.loss(batch) * 3


@pytest.mark.parametrize(
    "change",
    [other_optimizer, more_parameters, frozen, accumulates, clips, hooks, schedules, another_step],
    ids=lambda change: change.__name__,
)
def test_changed_in_the_middle_of_an_epoch(change: Callable[[Trainer, Any], None], tmp_path: Path):
    class Changes(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
            if trainer.fit_loop.total_batch_idx == 9:
                change(trainer, module)

    module = net(configure_optimizers=lambda self: SGD(self.backbone.parameters(), lr=0.1, momentum=0.9))
    assert by_both(Case(module, callbacks=lambda folder: [Changes()]), tmp_path)["error"] is None


# ---------------------------------------------------------------------- self.log


def in_place(self: Net, loss: Tensor, batch: Any, index: int) -> None:
    value = loss.detach().clone()
    for name, on in {"a": (True, False), "b": (False, True), "c": (True, True)}.items():
        self.log(name, value, on_step=on[0], on_epoch=on[1])
    for how in ("sum", "max", "min"):
        self.log(how, value, on_step=False, on_epoch=True, reduce_fx=how)
    value.mul_(100)


def metric(self: Net, loss: Tensor, batch: Any, index: int, **when: Any) -> None:
    self.accuracy(self(batch[0]).detach(), batch[1])
    self.mean(loss.detach())
    self.log("accuracy", self.accuracy, **when)
    self.log("mean", self.mean, **when)


def metric_updated_only(self: Net, loss: Tensor, batch: Any, index: int) -> None:
    self.accuracy.update(self(batch[0]).detach(), batch[1])
    self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)


def collection(self: Net, loss: Tensor, batch: Any, index: int, **when: Any) -> None:
    self.scores(self(batch[0]).detach(), batch[1])
    self.log_dict(self.scores, **when)


def both_widths(self: Net, loss: Tensor, batch: Any, index: int) -> None:
    self.log("width", loss.double() if index % 2 else loss, on_step=True, on_epoch=True)
    self.log("narrow", loss.bfloat16(), on_step=True, on_epoch=True)
    self.log("double", loss.double(), on_step=True, on_epoch=True, reduce_fx="max")


def two_sizes(self: Net, loss: Tensor, batch: Any, index: int) -> None:
    self.log("even", loss, on_epoch=True, batch_size=3 if index % 2 else 5)
    self.log("none", loss, on_epoch=True)


Log = Callable[[Net, Tensor, Any, int], Any]
LOGS: dict[str, Log] = {
    "nothing more": lambda self, loss, batch, i: None,
    "on_step": lambda self, loss, batch, i: self.log("a", loss, on_step=True, on_epoch=False),
    "on_epoch": lambda self, loss, batch, i: self.log("a", loss, on_step=False, on_epoch=True),
    "both": lambda self, loss, batch, i: self.log("a", loss, on_step=True, on_epoch=True),
    "neither": lambda self, loss, batch, i: self.log("a", loss, on_step=False, on_epoch=False),
    "defaults": lambda self, loss, batch, i: self.log("a", loss),
    "prog_bar": lambda self, loss, batch, i: self.log("a", loss, True, on_epoch=True),
    "prog_bar only": lambda self, loss, batch, i: self.log("a", loss, prog_bar=True, logger=False),
    "all by position": lambda self, loss, batch, i: self.log("a", loss, True, True, True, True, "max"),
    "sum": lambda self, loss, batch, i: self.log("a", loss, on_epoch=True, reduce_fx="sum"),
    "max": lambda self, loss, batch, i: self.log("a", loss, on_epoch=True, reduce_fx=torch.max),
    "min": lambda self, loss, batch, i: self.log("a", loss, on_epoch=True, reduce_fx="min"),
    "own reduction": lambda self, loss, batch, i: self.log("a", loss, on_epoch=True, reduce_fx=lambda x: x),
    "metrics on_step": partial(metric, on_step=True, on_epoch=False),
    "metrics on_epoch": partial(metric, on_step=False, on_epoch=True),
    "metrics on both": partial(metric, on_step=True, on_epoch=True, prog_bar=True),
    "a metric that is only updated": metric_updated_only,
    "a collection": partial(collection, on_step=False, on_epoch=True),
    "a collection on both": partial(collection, on_step=True, on_epoch=True),
    "a dict": lambda self, loss, batch, i: self.log_dict({"a": loss, "b": loss * 2}, on_epoch=True, prog_bar=True),
    "a dict of all kinds": lambda self, loss, batch, i: self.log_dict({"a": loss, "b": i, "c": i / 3}),
    "a float": lambda self, loss, batch, i: self.log("a", i / 7, on_epoch=True),
    "an int": lambda self, loss, batch, i: self.log("a", i, on_epoch=True, reduce_fx="max"),
    "an integer tensor": lambda self, loss, batch, i: self.log("a", batch[1].sum(), on_epoch=True),
    "a bool": lambda self, loss, batch, i: self.log("a", bool(i % 2), on_epoch=True),
    "float or tensor": lambda self, loss, batch, i: self.log("a", i / 7 if i % 2 else loss, on_epoch=True),
    "shape [1, 1]": lambda self, loss, batch, i: self.log("a", loss.reshape(1, 1), on_epoch=True),
    "several widths": both_widths,
    "not a number": lambda self, loss, batch, i: self.log("a", loss / (loss - loss if i == 2 else 1), on_epoch=True),
    "changed afterwards": in_place,
    "at some steps": lambda self, loss, batch, i: i % 3 or self.log("a", loss, on_epoch=True),
    "from the second step on": lambda self, loss, batch, i: i and self.log("a", loss, on_epoch=True),
    "from the second epoch on": lambda self, loss, batch, i: self.current_epoch and self.log("a", loss, on_epoch=True),
    "many names": lambda self, loss, batch, i: self.log(f"a{i % 4}", loss, on_epoch=True),
    "twice in a step": lambda self, loss, batch, i: [self.log("a", loss * k, on_epoch=True) for k in (1, 2)],
    "twice, another way": lambda self, loss, batch, i: self.log("loss", loss, on_epoch=False),
    "another way later": lambda self, loss, batch, i: self.log("a", loss, prog_bar=i > 2),
    "batch_size": lambda self, loss, batch, i: self.log("a", loss, on_epoch=True, batch_size=3),
    "changing batch_size": two_sizes,
    "batch_size as a tensor": lambda self, loss, batch, i: self.log(
        "a", loss, on_epoch=True, batch_size=torch.tensor(i + 1)),  # type: ignore[arg-type]
    "sync_dist": lambda self, loss, batch, i: self.log("a", loss, on_step=True, on_epoch=True, sync_dist=True),
    "rank_zero_only": lambda self, loss, batch, i: self.log("a", loss, on_epoch=True, rank_zero_only=True),
    "a graph": lambda self, loss, batch, i: self.log("a", loss, on_epoch=True, enable_graph=True),
    "two elements": lambda self, loss, batch, i: self.log("a", torch.stack([loss, loss])),
    "no number": lambda self, loss, batch, i: self.log("a", "text"),  # type: ignore[arg-type]
    "a logger's own": lambda self, loss, batch, i: self.logger.log_metrics({"own": i}, step=self.global_step),
    "a bad name": lambda self, loss, batch, i: self.log("a/dataloader_idx_0", loss),
    "later": lambda self, loss, batch, i: self.notes.append(self.trainer.callback_metrics),
}  # fmt: skip


@pytest.mark.parametrize("looks", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_log(log: Log, looks: bool, tmp_path: Path):
    by_both(Case(logs(log), looks=looks, bare=True), tmp_path)


@pytest.mark.parametrize("settings", [{"accumulate_grad_batches": 3}, {"val_check_interval": 3},
                                      {"precision": "bf16-mixed"}, {"precision": "64-true"}], ids=str)  # fmt: skip
@pytest.mark.parametrize("log", ["both", "metrics on both", "changed afterwards"])
def test_log_with_other_settings(log: str, settings: dict[str, Any], tmp_path: Path):
    by_both(Case(logs(LOGS[log]), settings=settings), tmp_path)
