"""QuickLoop: Lightning's own loop over the batches of an epoch, at the price of a bare loop.

It does what Lightning's loop does, in its order, for any LightningModule and any loader, but calls only hooks that
somebody overrides, and collects what was logged only when somebody looks. Which way is taken is decided at the start
of each epoch: whatever is not fully known goes to Lightning's own code. Lightning's private names are in this file
and those that belong to it: optimization.py, several.py, evaluation_loop.py, heard.py and loop_state.py;
`training.trainer.quick` puts it in place for those versions of Lightning that the tests know.
"""

import random
import signal
from typing import Any

import numpy
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch import Generator, is_anomaly_enabled

from mnist_lightning.data.loader import derived_seed, seed_generators
from mnist_lightning.training.evaluation_loop import QuickEvaluation
from mnist_lightning.training.heard import AROUND, INSIDE, OWN_WAYS, heard, is_known, moves, overrides
from mnist_lightning.training.loop_state import restore_sums
from mnist_lightning.training.optimization import QuickLog, QuickOptimization
from mnist_lightning.training.rows import Rows
from mnist_lightning.training.several import SeveralSteps, UnseenSteps, plan_steps


def put_in_place(trainer: Trainer, step: str = "eager") -> None:
    """Makes the Trainer's loops quick. Only their class changes, so they keep what the Trainer has told them."""
    trainer.fit_loop.__class__ = QuickFit
    trainer.fit_loop.epoch_loop.__class__ = QuickLoop
    trainer.fit_loop.epoch_loop.automatic_optimization.__class__ = QuickOptimization
    for evaluation in (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop):
        evaluation.__class__ = QuickEvaluation
    trainer.fit_loop.epoch_loop.step, trainer.fit_loop.epoch_loop.rows = step, Rows(trainer)


class QuickFit(_FitLoop):
    """Lightning's loop over epochs; tells callbacks when everything of an epoch is done, its rows written too."""

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(state_dict)
        if self._combined_loader_states_to_load:
            self._combined_loader = None  # a schedule may have asked for its length before its place was known

    def on_advance_end(self) -> None:
        super().on_advance_end()
        self.epoch_loop.tell("between_epochs")


class QuickLoop(_TrainingEpochLoop):
    seed: int | None = None  # if given, what is random in a batch is a function of it, the batches done, and the rank
    exactly_resumed = False  # from a place between two batches
    resumed_sums: dict[str, Any] | None = None  # of the epoch that the place is in
    step = "eager"  # how steps are to be taken; or compiled, graph, or auto
    told_of_steps = ""
    several: SeveralSteps | None = None
    unseen: UnseenSteps | None = None
    rows: Rows  # for the loggers
    log_at_end: QuickLog | None = None  # `self.log` of callbacks, after a batch
    _validates: bool | None = None
    _uncollected = False
    _drawn = False  # whether the order of the batches comes from random generators

    # ------------------------------------------------------------------ the epoch

    def run(self, data_fetcher: Any) -> None:
        try:
            super().run(data_fetcher)
        finally:
            self._collect()
            self.rows.write()
            self._validates = None

    def on_run_start(self, data_fetcher: Any) -> None:
        done = self.batch_progress.current.ready
        loaders = data_fetcher.combined_loader.flattened
        self._drawn = self.seed is not None and not all(hasattr(loader, "load_state_dict") for loader in loaders)
        if self._drawn:  # an order that is drawn, not computed: draw it again, and pass over what has been
            self._seed("epoch", self.trainer.current_epoch)
            for loader in loaders:
                if getattr(loader, "persistent_workers", False):
                    loader._iterator = None  # workers keep their generators: new ones, with new seeds
            for holder in [thing for loader in loaders for thing in (loader, getattr(loader, "sampler", None))]:
                if isinstance(getattr(holder, "generator", None), Generator):  # the user's own
                    holder.generator.manual_seed(derived_seed(self.seed, "epoch", self.trainer.current_epoch))
            if self.trainer.current_epoch == 0 or self.trainer.fit_loop.is_resuming or self.restarting:
                iter(data_fetcher)  # in a later epoch Lightning does, below
            for batch in range(self.total_batch_idx + 1 - done, self.total_batch_idx + 1):
                self._seed("steps", batch)
                next(data_fetcher)
        super().on_run_start(data_fetcher)
        if self._drawn and done:
            data_fetcher.fetched = done
        if self.exactly_resumed:  # nothing of what Lightning mends after a restart is to be mended
            self.exactly_resumed = self.trainer.fit_loop._restarting = self._restarting = False
        if self.resumed_sums is not None:
            restore_sums(self, self.resumed_sums)
            self.resumed_sums = None
        self._plan(data_fetcher)

    def _seed(self, purpose: str, index: int) -> None:
        stream = derived_seed(self.seed or 0, purpose, self.trainer.global_rank)
        seed_generators(self.trainer.strategy.root_device, stream + index)
        if self._drawn:  # a data set of the user's may draw from others than torch's
            random.seed(stream + index)
            numpy.random.seed((stream + index) % 2**32)

    def _plan(self, fetcher: Any) -> None:
        """Decides what of this epoch is done here, and who hears of it."""
        trainer = self.trainer
        module = trainer.lightning_module
        loaders = fetcher.combined_loader.flattened
        self._loader = loaders[0] if len(loaders) == 1 and hasattr(loaders[0], "weight") else None
        self._planned_on = self._facts()
        self._validates = super()._should_check_val_epoch()
        callbacks: list[Any] = trainer.callbacks
        self._between = [callback.between_batches for callback in callbacks if hasattr(callback, "between_batches")]
        # With Lightning's own handler of SIGTERM ranks tell each other of it at each batch.
        lightnings_signals = type(signal.getsignal(signal.SIGTERM)).__module__.startswith("lightning")
        self._quick = (
            is_known(trainer, fetcher)
            and type(self.automatic_optimization) is QuickOptimization
            and module.automatic_optimization
            and len(trainer.optimizers) == 1
            and (trainer.world_size == 1 or not lightnings_signals)
        )
        if not self._quick:
            plan_steps(self, None, [], "Lightning's own code takes them here")
            return
        self._moves = moves(trainer, self._loader)
        of_callbacks = {hook: heard(trainer, hook) for hook in (*AROUND, *INSIDE)}
        own = {hook for hook in (*AROUND, *INSIDE, *OWN_WAYS, "log") if overrides(module, hook, LightningModule)}
        self._starts, self._ends = (of_callbacks[hook] for hook in AROUND)
        self._module_start, self._module_end = (getattr(module, hook) if hook in own else None for hook in AROUND)
        inside = any(of_callbacks[hook] or hook in own for hook in INSIDE)
        self.log_at_end = QuickLog(trainer, module, self._results, "on_train_batch_end")
        self.automatic_optimization.plan(inside, own)
        listeners = [getattr(hook, "__self__", hook) for hook in (*self._starts, *self._ends)]
        listeners += [module] * bool(own & set(AROUND))
        looked_at = inside or not self.automatic_optimization.bare or is_anomaly_enabled() or "log" in own
        reason = "somebody looks into each step" if looked_at else None
        if trainer.accumulate_grad_batches != 1:
            reason = f"--trainer.accumulate_grad_batches {trainer.accumulate_grad_batches} goes step by step"
        plan_steps(self, None if self._moves else self._loader, listeners, reason)

    def _facts(self) -> tuple[Any, ...]:
        """What a callback may change in the middle of an epoch."""
        trainer = self.trainer
        groups = [(id(optimizer), len(optimizer.param_groups)) for optimizer in trainer.optimizers]
        limits = self.max_steps, trainer.accumulate_grad_batches, trainer.log_every_n_steps
        return [*map(id, trainer.callbacks)], groups, limits

    def _should_check_val_epoch(self) -> bool:
        # Lightning looks through the module's methods at each batch
        return super()._should_check_val_epoch() if self._validates is None else self._validates

    # ------------------------------------------------------------------ a batch

    def advance(self, data_fetcher: Any) -> None:
        trainer, progress, results = self.trainer, self.batch_progress, self._results
        if self.seed is not None:  # before the batch is fetched: to fetch it may be random too
            self._seed("steps", self.total_batch_idx + 1)
        if self._loader is not None and trainer.world_size > 1:
            self.automatic_optimization.weight = self._loader.weight(self.batch_idx + 1)
        if self._facts() != self._planned_on:
            self._plan(data_fetcher)
        if not self._quick or self.restarting:
            return super().advance(data_fetcher)
        if self.val_loop.restarting:
            self.val_loop.restarting = False
        if self.several is not None and (count := self.several.count_here()):
            return self.several.advance(data_fetcher, count)
        if self.unseen is not None and (count := self.unseen.count_here()) > 1:
            return self.unseen.advance(data_fetcher, count)
        module: Any = trainer.lightning_module
        connector, names = trainer._logger_connector, vars(module)
        batch, _, _ = next(data_fetcher)
        progress.is_last_batch = data_fetcher.done
        if self._moves:
            batch = trainer.precision_plugin.convert_input(batch)
            batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        index = progress.current.ready
        progress.increment_ready()
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None
        outer, output, response = names["_current_fx_name"], None, None
        if batch is None:
            self._warning_cache.warn("train_dataloader yielded None. If this was on purpose, ignore this warning...")
        else:
            names["_current_fx_name"] = "on_train_batch_start"
            for start in self._starts:
                start(trainer, module, batch, index)
            if self._module_start is not None:
                response = self._module_start(batch, index)
            names["_current_fx_name"] = outer
            if response == -1:
                progress.increment_by(0, is_last_batch=True)
            else:
                progress.increment_started()
                output = self.automatic_optimization.step(batch, index)
        progress.increment_processed()
        if trainer.lr_scheduler_configs:
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
            if self._num_ready_batches_reached():
                self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        if response == -1:
            raise StopIteration
        names["_current_fx_name"] = "on_train_batch_end"
        for end in self._ends:
            end(trainer, module, output, batch, index)
        if self._module_end is not None:
            self._module_end(output, batch, index)
        names["_current_fx_name"] = outer
        self._uncollected = bool(results)
        progress.increment_completed()
        self.give_row()

    def give_row(self) -> None:
        """Shows what was logged until now, and gives it to loggers, where that is due."""
        trainer, results = self.trainer, self._results
        every = trainer.log_every_n_steps
        due = every and (self._batches_that_stepped + 1) % every == 0
        if self._uncollected and (due or trainer.should_stop or trainer.fast_dev_run):
            self._collect()
            self.rows.add()
        results.batch = results.batch_size = None

    def on_advance_end(self, data_fetcher: Any) -> None:
        trainer = self.trainer
        stops = trainer.received_sigterm or trainer.should_stop
        if not self._quick or stops or self._should_check_val_fx(data_fetcher):
            self._collect()
            self.rows.write()
            super().on_advance_end(data_fetcher)
            if self.automatic_optimization.graphs is not None:  # a callback may have changed something
                self.automatic_optimization.graphs.look()
        else:
            if trainer.lr_scheduler_configs:
                self.update_lr_schedulers("step", update_plateau_schedulers=True)
            if not self._should_accumulate():
                self._batches_that_stepped += 1
        for hear in self._between:
            hear(trainer)

    def tell(self, hook: str) -> None:
        """Calls our callbacks at a moment that Lightning has no hook for: when all others have done their part."""
        for callback in self.trainer.callbacks:
            if hasattr(callback, hook):
                getattr(callback, hook)(self.trainer)

    def teardown(self) -> None:
        super().teardown()
        if self.automatic_optimization.graphs is not None:
            self.automatic_optimization.graphs.end()
        self.automatic_optimization.graphs = self.several = self.unseen = None
        self._starts = self._ends = self._between = []  # what follows holds the module, or cannot be pickled
        self._module_start = self._module_end = self.log_at_end = None
        self.automatic_optimization._log = self.automatic_optimization._raw_step = None

    def _collect(self, now: bool = False) -> None:
        """What Lightning does after each batch: shows callbacks and bars what was logged."""
        connector = self.trainer._logger_connector
        if (self._uncollected or now) and self.trainer.training and connector._first_loop_iter is not None:
            metrics = connector.metrics
            connector._progress_bar_metrics.update(metrics["pbar"])
            connector._callback_metrics.update(metrics["callback"])
            connector._logged_metrics.update(metrics["log"])
        self._uncollected = False


# By these Lightning's messages and profilers call a loop.
QuickFit.__name__, QuickLoop.__name__ = _FitLoop.__name__, _TrainingEpochLoop.__name__
