"""SeveralSteps: what QuickLoop does over several batches at once, and which way its steps are taken."""

import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from mnist_lightning.console import say
from mnist_lightning.training import graphs, updates
from mnist_lightning.training.compiled import AT_ONCE, CompiledSteps, is_hooked, is_worth_it, why_not
from mnist_lightning.training.graphs import GraphSteps, count_steps, tell_of_steps

PATIENCE = 0.1  # seconds that signals, the clock and the bar may wait


def plan_steps(loop: Any, loader: Any, listeners: list[Any], looked_at: str | None) -> None:
    """Decides for an epoch how the loop's steps are taken; says it where that was not known before.

    loader: the project's own, where it hands out batches as the network takes them. listeners: callbacks that are told
    of each batch. looked_at: why each step is Lightning's or the user's to see, if that is known already.
    """
    curious = [type(one).__name__ for one in listeners if not getattr(one, "takes_several", False)]
    if loop.step == "graph" or (loop.step == "auto" and loop.trainer.strategy.root_device.type == graphs.DEVICE):
        _plan_graphs(loop, loader, curious, looked_at)
    elif loop.step != "eager":
        _plan_compiled(loop, loader, curious, looked_at)
    quick = loop.several is None and looked_at is None and _nobody_looks(loop, loader, listeners)
    loop.unseen = UnseenSteps(loop) if quick else None


def _plan_graphs(loop: Any, loader: Any, curious: list[str], looked_at: str | None) -> None:
    trainer, optimization = loop.trainer, loop.automatic_optimization
    known: GraphSteps | None = optimization.graphs
    if known is not None and not known.update.is_of(trainer.optimizers[0]):
        known.end()
        known = None
    reason = _why_no_graph(trainer) or looked_at or (known and known.refused)
    loop.several = None
    if reason:
        if known is not None:
            known.end()
        optimization.graphs = known if known and known.refused else None
        tell_of_steps(loop, f"Steps are eager: {reason}")
        return
    if known is None:
        known = optimization.graphs = GraphSteps(optimization, trainer)
    known.look()
    if loop.step == "auto":
        tell_of_steps(loop, "Steps are CUDA graphs: recorded once, then replayed")
    own_schedule = type(trainer.lightning_module).lr_scheduler_step is not LightningModule.lr_scheduler_step
    if known.own and loader is not None and not curious and not own_schedule:
        known.batch_size = loader.global_batch_size
        loop.several = SeveralSteps(loop, loader, known)


def _why_no_graph(trainer: Trainer) -> str | None:
    """What keeps the steps of a training from being recorded, in a few words; None: nothing that is known yet."""
    reasons = {
        "there is no GPU": trainer.strategy.root_device.type != graphs.DEVICE,
        "several processes share a step": trainer.world_size > 1,
        f"precision {trainer.precision} scales gradients": bool(getattr(trainer.precision_plugin, "scaler", None)),
        "a hook looks into each step": is_hooked(trainer.lightning_module),
    }
    return next((reason for reason, holds in reasons.items() if holds), None) or updates.why_not(trainer)


def _plan_compiled(loop: Any, loader: Any, curious: list[str], looked_at: str | None) -> None:
    trainer, asked = loop.trainer, loop.step
    reason = looked_at or why_not(trainer, loader)
    if curious and reason is None:
        reason = f"{', '.join(curious)} looks at each step"
    if 0 < trainer.log_every_n_steps < AT_ONCE and reason is None:
        reason = f"--trainer.log_every_n_steps {trainer.log_every_n_steps} looks at them one by one"
    if asked == "auto" and reason is None and not is_worth_it(trainer, loader):
        reason = "compiling would take longer than it saves"
    if reason or asked == "auto" or loop.told_of_steps:
        way = f"eager: {reason}" if reason else f"compiled: {AT_ONCE} at once, in one call"
        tell_of_steps(loop, f"Steps are {way}")
    if reason:
        loop.several = None
    elif loop.several is None or loop.several.steps.optimizer is not trainer.optimizers[0]:
        steps = CompiledSteps(trainer.lightning_module, trainer.optimizers[0])
        loop.several = SeveralSteps(loop, loader, steps)
    else:
        loop.several.loader = loader


def _nobody_looks(loop: Any, loader: Any, listeners: list[Any]) -> bool:
    """Whether eager steps may follow each other without a look at what comes between batches."""
    trainer = loop.trainer
    patient = all(getattr(one, "takes_several", False) and not getattr(one, "every_n_steps", None) for one in listeners)
    seldom = trainer._val_check_time_interval is None and not trainer.lr_scheduler_configs and not trainer.fast_dev_run
    on_cpu = trainer.strategy.root_device.type == "cpu" and trainer.world_size == 1 and loader is not None
    return patient and seldom and on_cpu


def way_of_steps(trainer: Trainer) -> str:
    """What a checkpoint keeps: eager, compiled, graph, or auto while that is not decided."""
    loop: Any = trainer.fit_loop.epoch_loop
    way: str = getattr(loop, "step", "eager")  # Lightning's own loop has none
    if way != "auto":
        return way
    steps = loop.automatic_optimization.graphs or loop.several
    if loop.told_of_steps or steps is not None:
        return "eager" if steps is None else "graph" if isinstance(steps, GraphSteps) else "compiled"
    return way


def go_on(trainer: Trainer, before: str) -> None:
    """Takes the steps as the checkpoint's were taken, if it is free to; else says so: the arithmetic is another."""
    loop: Any = trainer.fit_loop.epoch_loop
    way = getattr(loop, "step", "eager")
    if way == "auto":
        loop.step = before
    elif way != before != "auto" and trainer.is_global_zero:
        say(f"--loop.step was {before}, is {way}: the same training but for rounding")


class SeveralSteps:
    """Several batches in the place of one, for those who are told of batches."""

    def __init__(self, loop: Any, loader: Any, steps: CompiledSteps | GraphSteps) -> None:
        self.loop, self.loader, self.steps, self.trainer = loop, loader, steps, loop.trainer

    def count_here(self) -> int:
        """How many batches can be taken at once, since nothing is to happen between them; 0: none.

        It follows from the place in the training alone, so that a resumed one takes the same ones together.
        """
        loop, trainer, loader, steps = self.loop, self.trainer, self.loader, self.steps
        done = loop._batches_that_stepped
        sizes = steps.sizes_at(done) if steps.ready else ()
        at, most, last = loop.batch_progress.current.ready, trainer.num_training_batches, trainer.max_steps
        whole = loader.size // loader.global_batch_size
        seen = loop.total_batch_idx + 1 if trainer.check_val_every_n_epoch is None else at  # as Lightning counts
        for size in sizes:
            if (
                at + size <= min(most, whole)
                and (last == -1 or trainer.global_step + size <= last)
                and _passes_none(seen, size, trainer.val_check_batch)
                and _passes_none(done, size, trainer.log_every_n_steps)
            ):
                return size
        return 0

    def advance(self, fetcher: Any, count: int) -> None:
        """`QuickLoop.advance`, with one call of what is told of batches: all losses, and the last batch."""
        loop, trainer, progress = self.loop, self.trainer, self.loop.batch_progress
        module, connector, results = trainer.lightning_module, trainer._logger_connector, loop._results
        batches = [next(fetcher)[0] for _ in range(count)]
        progress.is_last_batch = fetcher.done
        connector._first_loop_iter = connector._first_loop_iter is None
        optimization = loop.automatic_optimization
        first = loop.total_batch_idx + 1
        by_steps = any(config.interval == "step" for config in trainer.lr_scheduler_configs)
        rates = self._schedule(count) if by_steps else [self.steps.rates(at) for at in range(count)]
        images, labels, losses, logits = self.steps(batches, rates, first)
        if not by_steps:
            self._count(count)
        results.batch, results.batch_size, results.dataloader_idx = (images, labels), None, None
        optimization.log_several(losses, logits, labels)
        if trainer.lr_scheduler_configs and loop._num_ready_batches_reached():
            loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        loop._batches_that_stepped += count - 1  # the loop counts one
        names = vars(module)
        outer, names["_current_fx_name"] = names["_current_fx_name"], "on_train_batch_end"
        for end in loop._ends:
            end(trainer, module, {"loss": losses}, batches[-1], progress.current.ready - 1)
        names["_current_fx_name"] = outer
        loop._uncollected = True
        loop.give_row()

    def _count(self, count: int) -> None:
        counts = self.loop.automatic_optimization.optim_progress.optimizer
        count_steps(count, counts.step, counts.zero_grad, self.loop.batch_progress)

    def _schedule(self, count: int) -> list[Any]:
        """Takes and counts the schedules' steps, which ask for nothing else; the rates of each."""
        self.trainer.optimizers[0]._opt_called = True  # what schedulers ask
        rates = []
        for _ in range(count):
            rates.append(self.steps.rates())
            self._count(1)
            self.loop.update_lr_schedulers("step", update_plateau_schedulers=False)
        return rates


class UnseenSteps:
    """Eager steps that follow each other for a tenth of a second, each to the bits that it has alone.

    Those who are told of batches are told of them together; nobody else would look between them.
    """

    def __init__(self, loop: Any) -> None:
        self.loop, self.trainer = loop, loop.trainer

    def count_here(self) -> int:
        """How many batches there are until something is to happen between two."""
        loop, trainer = self.loop, self.trainer
        at, done = loop.batch_progress.current.ready, loop._batches_that_stepped
        seen = loop.total_batch_idx + 1 if trainer.check_val_every_n_epoch is None else at  # as Lightning counts
        limits = [int(trainer.num_training_batches) - at]
        if loop.max_steps != -1:
            limits.append(loop.max_steps - trainer.global_step)
        for place, every in ((seen, trainer.val_check_batch), (done, trainer.log_every_n_steps)):
            if every and every != float("inf"):
                limits.append(int(every) - place % int(every))
        return min(limits)

    def advance(self, fetcher: Any, count: int) -> None:
        """`QuickLoop.advance` of so many batches, or fewer."""
        loop, trainer, progress = self.loop, self.trainer, self.loop.batch_progress
        losses, until = [], time.monotonic() + PATIENCE
        with loop.automatic_optimization._log.together():
            for left in reversed(range(count)):
                batch, index = next(fetcher)[0], progress.current.ready
                output = self._step(batch, index, fetcher.done)
                losses.append(output.get("loss"))
                loop._uncollected = bool(loop._results)
                stops = trainer.should_stop or trainer.received_sigterm or time.monotonic() > until
                if not left or stops or loop._facts() != loop._planned_on:
                    break
                progress.increment_completed()
                loop._batches_that_stepped += 1
                if loop.seed is not None:
                    loop._seed("steps", loop.total_batch_idx + 1)
        names = vars(trainer.lightning_module)
        outer, names["_current_fx_name"] = names["_current_fx_name"], "on_train_batch_end"
        found = [loss.reshape(-1) for loss in losses if loss is not None]
        for end in loop._ends:
            end(trainer, trainer.lightning_module, {"loss": torch.cat(found)} if found else {}, batch, index)
        names["_current_fx_name"] = outer
        progress.increment_completed()
        loop.give_row()

    def _step(self, batch: Any, index: int, last: bool) -> dict[str, Any]:
        loop, connector = self.loop, self.trainer._logger_connector
        progress, results = loop.batch_progress, loop._results
        progress.is_last_batch = last
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None
        progress.increment_ready()
        progress.increment_started()
        output: dict[str, Any] = loop.automatic_optimization.step(batch, index)
        progress.increment_processed()
        return output


def _passes_none(at: int, count: int, every: float) -> bool:
    """Whether no multiple of `every` lies between `at` and `at + count`."""
    return not every or every == float("inf") or at // every == (at + count - 1) // every
