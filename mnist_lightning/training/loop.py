"""QuickLoop: Lightning's own loop over the batches of an epoch, at the price of a bare loop.

It does what Lightning's loop does, in its order, for any LightningModule and any loader, but calls only hooks that
somebody overrides, and collects what was logged only when somebody looks. Which way is taken is decided at the start
of each epoch: whatever is not fully known here goes to Lightning's own code. Lightning's private names are in this
file only; `training.trainer.quick` puts it in place for the versions that the tests know.
"""

import signal
from collections import OrderedDict
from inspect import isfunction, unwrap
from typing import Any

import numpy
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loops import _FitLoop
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult, _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from mnist_lightning.data.loader import derived_seed, seed_generators
from mnist_lightning.training.loop_state import restore_sums

GLOBAL_HOOKS = (_global_optimizer_pre_hooks, _global_optimizer_post_hooks)
INSIDE = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")
AROUND = ("on_train_batch_start", "on_train_batch_end")
OWN_WAYS = ("optimizer_step", "backward", "optimizer_zero_grad", "configure_gradient_clipping")
TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
# As they are before anybody replaces them: a test may patch the class itself.
ORIGINALS = {base: {hook: getattr(base, hook, None) for hook in (*INSIDE, *AROUND, *OWN_WAYS, *TRANSFER, "log")}
             for base in (Callback, LightningModule, LightningDataModule)}  # fmt: skip


def overrides(thing: Any, hook: str, base: type) -> bool:
    return hook in vars(thing) or getattr(type(thing), hook, None) is not ORIGINALS[base][hook]


def put_in_place(trainer: Trainer) -> None:
    """Makes the Trainer's loops quick. They keep what the Trainer has already told them, so only their class changes."""
    trainer.fit_loop.__class__ = QuickFit
    trainer.fit_loop.epoch_loop.__class__ = QuickLoop
    trainer.fit_loop.epoch_loop.automatic_optimization.__class__ = QuickOptimization


def _lightning_handles_sigterm() -> bool:
    """Then ranks tell each other of it at each batch."""
    return type(signal.getsignal(signal.SIGTERM)).__module__.startswith("lightning")


class QuickFit(_FitLoop):
    """Lightning's loop over epochs; tells callbacks when everything of an epoch is done, its rows written too."""

    def on_advance_end(self) -> None:
        super().on_advance_end()
        self.epoch_loop.tell("between_epochs")


class QuickOptimization(_AutomaticOptimization):
    """Lightning's closures; a rank's loss counts as much as its share of the images."""

    def _training_step(self, kwargs: OrderedDict) -> ClosureResult:
        loop: Any = self.trainer.fit_loop.epoch_loop
        result = super()._training_step(kwargs)
        if loop.weight != 1 and result.closure_loss is not None:
            result.closure_loss = weighted(result.closure_loss, loop.weight)
            result.loss = result.closure_loss.detach() if loop.weight == 0 else result.loss
        return result


def weighted(loss: Tensor, weight: float) -> Tensor:
    """The loss of a rank with so many times its even share; a mean over no image is not a number and counts nothing."""
    return (loss if weight else torch.nan_to_num(loss)) * weight


class QuickLog:
    """`self.log` inside training_step: Lightning's own for a name's first value in an epoch, then only its arithmetic.

    On a CPU the values of a mean wait in a list, and are added up, in Lightning's order, when somebody looks.
    """

    def __init__(self, trainer: Trainer, module: Any, results: Any) -> None:
        self.module, self.results, self.connector = module, results, trainer._logger_connector
        self.has_logger = trainer.logger is not None
        # name -> what it adds to, the arguments that it was logged with, values that wait, and of how many images
        self.known: dict[str, tuple[Any, Any, Any, list[Tensor], list[int]]] = {}

    def __call__(self, name: str, value: Any, *args: Any, batch_size: int | None = None, **kwargs: Any) -> None:
        known = self.known.get(name)
        if known is None or args != known[1] or kwargs != known[2] or not self._takes(known[0], value):
            self.flush()
            LightningModule.log(self.module, name, value, *args, batch_size=batch_size, **kwargs)
            return self._learn(name, args, kwargs)
        item, _, _, values, sizes = known
        if item.is_tensor:
            value, meta = value.detach(), item.meta
            value = value.squeeze() if value.ndim else value
            if meta.on_step:
                item._forward_cache = value.clone()
            if not meta.on_epoch:
                item.value = item._forward_cache
            elif meta.is_mean_reduction:
                values.append(value.clone())  # the module may go on to change it
                sizes.append(self._size() if batch_size is None else batch_size)
                if len(values) >= 256 or value.device.type != "cpu":
                    self.flush()
            else:
                item.value = item.value + value if meta.is_sum_reduction else meta.reduce_fx(item.value, value)
        else:
            item._forward_cache = value._forward_cache
        item._computed, item.has_reset = None, False
        item._update_count += 1
        self.connector._current_fx = "training_step"

    def flush(self) -> None:
        for item, _, _, values, sizes in self.known.values():
            if len(values) > 1 and values[0].dtype == item.value.dtype:
                products = torch.stack([item.value, *(v * n for v, n in zip(values, sizes, strict=True))]).numpy()
                item.value = torch.from_numpy(numpy.add.accumulate(products)[-1:])[0]  # one after the other
                item.cumulated_batch_size = item.cumulated_batch_size + sum(sizes)
            else:
                for value, size in zip(values, sizes, strict=True):
                    item.value = item.value + value * size
                    item.cumulated_batch_size = item.cumulated_batch_size + size
            values.clear()
            sizes.clear()

    def _takes(self, item: Any, value: Any) -> bool:
        """Whether this value only has to be added: not the first of an epoch, of the same kind and place."""
        if self.connector._first_loop_iter is not False:
            return False
        if not item.is_tensor:
            return value is item.value
        return (
            type(value) is Tensor
            and value.dtype in (torch.float32, torch.float64)
            and value.device == item.value.device
            and value.numel() == 1
        )

    def _learn(self, name: str, args: Any, kwargs: Any) -> None:
        item = self.results.get(f"training_step.{name}")
        warns = not self.has_logger and (args[1:2] or kwargs.get("logger"))
        if item is not None and not (item.meta.enable_graph or (item.meta.sync.should and item.meta.on_step) or warns):
            self.known[name] = (item, args, kwargs, [], [])

    def _size(self) -> int:
        results = self.results
        if results.batch_size is None:
            batch = results.batch
            plain = type(batch) in (list, tuple) and all(type(part) is Tensor and part.ndim for part in batch)
            sizes = {len(part) for part in batch} if plain else set()
            results.batch_size = sizes.pop() if len(sizes) == 1 else extract_batch_size(batch)
        return results.batch_size


class QuickLoop(_TrainingEpochLoop):
    seed: int | None = None  # if given, what is random in a batch is a function of it, the batches done, and the rank
    weight = 1.0  # of this rank's loss in the mean over ranks
    exactly_resumed = False
    _quick = False  # whether this epoch's batches are taken here
    _validates: bool | None = None
    _uncollected = False
    _quick_log: QuickLog | None = None
    resumed_sums: dict[str, Any] | None = None  # of the epoch that a checkpoint was taken in

    # ------------------------------------------------------------------ the epoch

    def run(self, data_fetcher: Any) -> None:
        try:
            super().run(data_fetcher)
        finally:
            self._collect()
            self._validates = None

    def on_run_start(self, data_fetcher: Any) -> None:
        position = self.batch_progress.current.ready
        if self.seed is not None and not self._is_addressed(data_fetcher):
            self._seed("epoch", self.trainer.current_epoch)
            if self.trainer.current_epoch == 0 or self.trainer.fit_loop.is_resuming or self.restarting:
                iter(data_fetcher)  # in a later epoch Lightning does, below
            for batch in range(position):  # an order that is drawn, not computed: pass over what has been
                self._seed("steps", self.total_batch_idx + 1 - position + batch)
                next(data_fetcher)
            super().on_run_start(data_fetcher)
            if position:
                data_fetcher.fetched = position
        else:
            super().on_run_start(data_fetcher)
        if self.exactly_resumed:  # nothing of what Lightning mends after a restart is to be mended
            self.exactly_resumed = False
            self.trainer.fit_loop._restarting = self._restarting = False
        if self.resumed_sums is not None:
            restore_sums(self, self.resumed_sums)
            self.resumed_sums = None
        self._plan(data_fetcher)

    def _is_addressed(self, fetcher: Any) -> bool:
        """Whether the loaders know their position themselves."""
        return all(hasattr(loader, "load_state_dict") for loader in fetcher.combined_loader.flattened)

    def _seed(self, purpose: str, index: int) -> None:
        assert self.seed is not None
        trainer = self.trainer
        seed_generators(trainer.strategy.root_device, derived_seed(self.seed, purpose, trainer.global_rank) + index)

    def _plan(self, fetcher: Any) -> None:
        """Decides what of this epoch is done here, and who hears of it."""
        trainer = self.trainer
        module: Any = trainer.lightning_module
        self._callbacks = list(trainer.callbacks)
        loaders = fetcher.combined_loader.flattened
        self._loader = loaders[0] if len(loaders) == 1 and hasattr(loaders[0], "weight") else None
        self._stream = None if self.seed is None else derived_seed(self.seed, "steps", trainer.global_rank)
        self._device = trainer.strategy.root_device
        self._quick = (
            type(fetcher) is _PrefetchDataFetcher
            and type(trainer.profiler) is PassThroughProfiler
            and type(trainer.strategy) in (SingleDeviceStrategy, DDPStrategy)
            and type(self.automatic_optimization) is QuickOptimization
            and module.automatic_optimization
            and len(trainer.optimizers) == 1
            and (trainer.world_size == 1 or not _lightning_handles_sigterm())
        )
        self._validates = super()._should_check_val_epoch()
        if not self._quick:
            return
        self._moves = any(
            overrides(module, hook, LightningModule)
            or (trainer.datamodule is not None and overrides(trainer.datamodule, hook, LightningDataModule))
            for hook in TRANSFER
        ) or getattr(self._loader, "device", None) != self._device  # fmt: skip
        self._starts, self._ends = (
            [getattr(c, hook) for c in trainer.callbacks if overrides(c, hook, Callback)] for hook in AROUND
        )
        self._module_starts, self._module_ends = (
            getattr(module, hook) if overrides(module, hook, LightningModule) else None for hook in AROUND
        )
        self._takes_index = len(self._build_kwargs(OrderedDict(), None, 0)) == 2
        optimizer = trainer.optimizers[0]
        self._bare = (
            trainer.accumulate_grad_batches == 1
            and not self.automatic_optimization._skip_backward
            and not any(overrides(c, hook, Callback) for c in trainer.callbacks for hook in INSIDE)
            and not any(overrides(module, hook, LightningModule) for hook in (*INSIDE, *OWN_WAYS))
            and type(optimizer).__module__.startswith("torch.optim.")
            and isfunction(type(optimizer).step)
            and type(optimizer).zero_grad is torch.optim.Optimizer.zero_grad
            and not isinstance(optimizer, torch.optim.LBFGS)
            and getattr(trainer.strategy, "_model_averager", None) is None
            and (
                type(trainer.precision_plugin) is Precision
                or (type(trainer.precision_plugin) is MixedPrecision and trainer.precision_plugin.scaler is None)
            )
        )
        hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks, *GLOBAL_HOOKS)
        plain = self._bare and not any(hooks) and "step" not in vars(optimizer) and not optimizer.defaults.get("differentiable")
        self._raw_step = unwrap(type(optimizer).step) if plain else None
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._quick_log = QuickLog(trainer, module, self._results) if not overrides(module, "log", LightningModule) else None

    def _should_check_val_epoch(self) -> bool:
        if self._validates is None:
            return super()._should_check_val_epoch()
        return self._validates  # Lightning looks through the module's methods at each batch

    # ------------------------------------------------------------------ a batch

    def advance(self, data_fetcher: Any) -> None:
        if self.seed is not None:  # before the batch is fetched: to fetch it may be random too
            seed_generators(self._device, self._stream + self.total_batch_idx + 1)
        if self._loader is not None and self.trainer.world_size > 1:
            self.weight = self._loader.weight(self.batch_idx + 1)
        if len(self.trainer.callbacks) != len(self._callbacks):
            self._plan(data_fetcher)
        if not self._quick or self.restarting:
            return super().advance(data_fetcher)
        trainer, progress, results = self.trainer, self.batch_progress, self._results
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
            if self._module_starts is not None:
                response = self._module_starts(batch, index)
            if response == -1:
                progress.increment_by(0, is_last_batch=True)
            else:
                progress.increment_started()
                if self._bare:
                    names["_current_fx_name"] = "training_step"
                    output = self._step(batch, index)
                else:
                    names["_current_fx_name"] = outer
                    kwargs = self._build_kwargs(OrderedDict(), batch, index)
                    output = self.automatic_optimization.run(trainer.optimizers[0], index, kwargs)
        progress.increment_processed()
        if trainer.lr_scheduler_configs:
            names["_current_fx_name"] = outer
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
            if self._num_ready_batches_reached():
                self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        if response == -1:
            names["_current_fx_name"] = outer
            raise StopIteration
        names["_current_fx_name"] = "on_train_batch_end"
        for end in self._ends:
            end(trainer, module, output, batch, index)
        if self._module_ends is not None:
            self._module_ends(output, batch, index)
        names["_current_fx_name"] = outer
        self._uncollected = bool(results)
        progress.increment_completed()
        every = trainer.log_every_n_steps
        if self._uncollected and (
            (every and (self._batches_that_stepped + 1) % every == 0) or trainer.should_stop or trainer.fast_dev_run
        ):
            self._collect()
            connector.update_train_step_metrics()
        results.batch = results.batch_size = None

    def _step(self, batch: Any, index: int) -> dict[str, Any]:
        """One step of one optimizer that nobody listens to."""
        trainer = self.trainer
        module: Any = trainer.lightning_module
        counts = self.automatic_optimization.optim_progress.optimizer
        optimizer, plugin, log = trainer.optimizers[0], trainer.precision_plugin, self._quick_log
        counts.step.increment_ready()
        if log is not None:
            vars(module)["log"] = log
        try:
            args = (batch, index) if self._takes_index else (batch,)
            if type(plugin) is MixedPrecision:
                with plugin.autocast_context_manager():
                    out = self._training_step(*args)
            else:
                out = self._training_step(*args)
        finally:
            vars(module).pop("log", None) if log is not None else None
        loss = out if type(out) is Tensor else self._loss_of(out)
        if self.weight != 1 and loss is not None:
            loss = weighted(loss, self.weight)
        counts.zero_grad.increment_ready()
        counts.zero_grad.increment_started()
        for parameter in self._parameters:  # optimizer.zero_grad() takes ten times as long
            parameter.grad = None
        counts.zero_grad.increment_completed()
        if loss is not None:
            loss.backward()
        if trainer.gradient_clip_val:
            module.configure_gradient_clipping(
                optimizer,
                gradient_clip_val=trainer.gradient_clip_val,
                gradient_clip_algorithm=trainer.gradient_clip_algorithm,
            )
        self._optimizer_step(optimizer)
        counts.step.increment_completed()
        if loss is None:
            return {}
        shown = out if type(out) is Tensor and self.weight else loss
        return {"loss": shown.detach()} if type(out) is Tensor else {**out, "loss": loss.detach()}

    def _optimizer_step(self, optimizer: Any) -> None:
        """`optimizer.step()`, without the 40 us that torch takes to look for hooks and profilers, where there are none."""
        if self._raw_step is None or torch.autograd._profiler_enabled():
            optimizer.step()
        else:
            with torch.no_grad():
                self._raw_step(optimizer)

    def _training_step(self, *args: Any) -> Any:
        strategy = self.trainer.strategy
        module: Any = self.trainer.lightning_module
        if strategy.model is module:
            return module.training_step(*args)
        return strategy._forward_redirection(strategy.model, module, "training_step", *args)

    def _loss_of(self, out: Any) -> Tensor | None:
        """The loss in what a training_step returns that is no plain tensor; None skips the step, in Lightning's words."""
        loss = ClosureResult.from_training_step_output(out).closure_loss
        if loss is None:
            if self.trainer.world_size > 1:
                raise RuntimeError("Skipping the `training_step` by returning None in distributed training is not supported.")
            Closure.warning_cache.warn("`training_step` returned `None`. If this was on purpose, ignore this warning...")
        return loss

    def on_advance_end(self, data_fetcher: Any) -> None:
        trainer = self.trainer
        if not self._quick or trainer.received_sigterm or trainer.should_stop or self._should_check_val_fx(data_fetcher):
            self._collect()
            super().on_advance_end(data_fetcher)
        else:
            if trainer.lr_scheduler_configs:
                self.update_lr_schedulers("step", update_plateau_schedulers=True)
            if not self._should_accumulate():
                self._batches_that_stepped += 1
        self.tell("between_batches")

    def tell(self, hook: str) -> None:
        """Calls our callbacks at a moment that Lightning has no hook for: when all others have done their part."""
        for callback in self.trainer.callbacks:
            if hasattr(callback, hook):
                getattr(callback, hook)(self.trainer)

    def _collect(self) -> None:
        """What Lightning does after each batch: shows callbacks, bars and loggers what was logged."""
        connector = self.trainer._logger_connector
        if self._quick_log is not None:
            self._quick_log.flush()
        if self._uncollected and self.trainer.training and connector._first_loop_iter is not None:
            metrics = connector.metrics
            connector._progress_bar_metrics.update(metrics["pbar"])
            connector._callback_metrics.update(metrics["callback"])
            connector._logged_metrics.update(metrics["log"])
        self._uncollected = False

    def _on_before_fetch(self) -> None:
        self.trainer.profiler.start("[_TrainingEpochLoop].train_dataloader_next")

    def _on_after_fetch(self) -> None:
        self.trainer.profiler.stop("[_TrainingEpochLoop].train_dataloader_next")
