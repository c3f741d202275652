"""SeveralSteps: what QuickLoop does over several batches at once, with compiled steps, and where it cannot."""

from typing import Any

from lightning.pytorch import Trainer
from torch import cat

from mnist_lightning.console import say
from mnist_lightning.training.compiled import AT_ONCE, CompiledSteps, is_changed, is_worth_it, why_not


def several_steps(loop: Any, loader: Any, listeners: list[Any], reason: str | None) -> "SeveralSteps | None":
    """The loop's compiled steps, or none; says which way is taken, where that was not known before.

    loader: the project's own, where it hands out batches as the network takes them. listeners: callbacks that are told
    of each batch. reason: why steps are not compiled, if that is known already.
    """
    trainer, asked = loop.trainer, loop.step
    curious = [type(one).__name__ for one in listeners if not getattr(one, "takes_several", False)]
    reason = reason or why_not(trainer, loader)
    if curious and reason is None:
        reason = f"{', '.join(curious)} looks at each step"
    if 0 < trainer.log_every_n_steps < AT_ONCE and reason is None:
        reason = f"--trainer.log_every_n_steps {trainer.log_every_n_steps} looks at them one by one"
    if asked == "auto" and reason is None and not is_worth_it(trainer, loader):
        reason = "compiling would take longer than it saves"
    told = f"Steps are eager: {reason}" if reason else f"Steps are compiled: {AT_ONCE} at once, in one call"
    if told != loop.told_of_steps and trainer.is_global_zero and (reason or asked == "auto" or loop.told_of_steps):
        say(told)
        loop.told_of_steps = told
    if reason:
        return None
    known: SeveralSteps | None = loop._several
    if known is None or known.steps.optimizer is not trainer.optimizers[0]:
        return SeveralSteps(loop, loader)
    known.loader = loader
    return known


def way_of_steps(trainer: Trainer) -> str:
    """What a checkpoint keeps: eager, compiled, or auto while that is not decided."""
    loop: Any = trainer.fit_loop.epoch_loop
    way: str = getattr(loop, "step", "eager")  # Lightning's own loop has none
    if way == "auto" and loop.told_of_steps:
        return "eager" if loop._several is None else "compiled"
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
    """AT_ONCE batches in the place of one, for those who are told of batches."""

    def __init__(self, loop: Any, loader: Any) -> None:
        self.loop, self.loader, self.trainer = loop, loader, loop.trainer
        self.steps = CompiledSteps(self.trainer.lightning_module, self.trainer.optimizers[0])

    def fit_here(self) -> bool:
        """Whether nothing is to happen between the next batches, which are all of one size."""
        loop, trainer, loader = self.loop, self.trainer, self.loader
        at, most, steps = loop.batch_progress.current.ready, trainer.num_training_batches, trainer.max_steps
        whole, done = loader.size // loader.global_batch_size, loop._batches_that_stepped
        seen = loop.total_batch_idx + 1 if trainer.check_val_every_n_epoch is None else at  # as Lightning counts
        return (
            done % AT_ONCE == 0
            and at + AT_ONCE <= min(most, whole)
            and (steps == -1 or trainer.global_step + AT_ONCE <= steps)
            and _passes_none(seen, trainer.val_check_batch)
            and _passes_none(done, trainer.log_every_n_steps)
            and self.steps.ready
            and not is_changed(self.steps.optimizer)
        )

    def advance(self, fetcher: Any) -> None:
        """`QuickLoop.advance`, with one call of what is told of batches: all losses, and the last batch."""
        loop, trainer, progress = self.loop, self.trainer, self.loop.batch_progress
        module, connector, results = trainer.lightning_module, trainer._logger_connector, loop._results
        batches = [next(fetcher)[0] for _ in range(AT_ONCE)]
        progress.is_last_batch = fetcher.done
        images, labels = (cat(parts) for parts in zip(*batches, strict=True))
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = (images, labels), None, None
        if not self.steps.compiled and trainer.is_global_zero:
            say("The steps are being compiled, which takes half a minute where it was never done")
        losses, logits = self.steps(images, labels)
        optimization = loop.automatic_optimization
        optimization.log_several(losses, logits, labels)
        counts = optimization.optim_progress.optimizer
        for counted in (counts.step, counts.zero_grad, progress):
            for tracker in (counted.total, counted.current):
                for name, count in vars(tracker).items():
                    setattr(tracker, name, count + AT_ONCE)
        if trainer.lr_scheduler_configs and loop._num_ready_batches_reached():
            loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        loop._batches_that_stepped += AT_ONCE - 1  # the loop counts one
        names = vars(module)
        outer, names["_current_fx_name"] = names["_current_fx_name"], "on_train_batch_end"
        for end in loop._ends:
            end(trainer, module, {"loss": losses}, batches[-1], progress.current.ready - 1)
        names["_current_fx_name"] = outer
        loop._uncollected = True
        every = trainer.log_every_n_steps
        if (every and (loop._batches_that_stepped + 1) % every == 0) or trainer.should_stop:
            loop._collect()
            connector.update_train_step_metrics()
        results.batch = results.batch_size = None


def _passes_none(at: int, every: float) -> bool:
    """Whether no multiple of `every` lies between `at` and `at + AT_ONCE`."""
    return not every or every == float("inf") or at // every == (at + AT_ONCE - 1) // every
