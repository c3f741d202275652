"""One batch's step in QuickLoop: what Lightning's automatic optimization does, without what nobody asked for."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import isfunction, unwrap
from typing import Any

import numpy
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult, _AutomaticOptimization
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from mnist_lightning.training.graphs import GraphSteps
from mnist_lightning.training.heard import OWN_WAYS

BACKWARD = Tensor.backward  # as it is before anybody replaces it
ENGINE: Any = getattr(torch.autograd.graph, "_engine_run_backward", None)
BEFORE_SIZE = 9  # arguments of `log` between its value and batch_size


class QuickOptimization(_AutomaticOptimization):
    """Takes the steps that nobody listens to itself; a rank's loss counts as much as its share of the images."""

    weight = 1.0  # of this rank's loss in the mean over ranks
    graphs: GraphSteps | None = None  # steps that are recorded on a GPU

    def plan(self, heard: bool, own: set[str]) -> None:
        """Decides how this epoch's steps are taken: `heard` inside by somebody, some hooks the module's `own`."""
        trainer = self.trainer
        optimizer, precision = trainer.optimizers[0], trainer.precision_plugin
        self._bare = (
            not heard
            and not own & set(OWN_WAYS)
            and trainer.accumulate_grad_batches == 1
            and not self._skip_backward
            and type(optimizer).__module__.startswith("torch.optim.")
            and isfunction(type(optimizer).step)
            and type(optimizer).zero_grad is Optimizer.zero_grad
            and not isinstance(optimizer, LBFGS)
            and getattr(trainer.strategy, "_model_averager", None) is None
            and (type(precision) is Precision or (type(precision) is MixedPrecision and precision.scaler is None))
        )
        loop: Any = trainer.fit_loop.epoch_loop
        self._log = None if "log" in own else QuickLog(trainer, trainer.lightning_module, loop._results)
        self._takes_index = len(loop._build_kwargs(OrderedDict(), None, 0)) == 2
        self._before = (optimizer._optimizer_step_pre_hooks, _global_optimizer_pre_hooks)
        self._after = (optimizer._optimizer_step_post_hooks, _global_optimizer_post_hooks)
        plain = self._bare and not optimizer.defaults.get("differentiable")
        self._raw_step: Any = unwrap(type(optimizer).step) if plain else None

    @property
    def bare(self) -> bool:
        """Whether a step is nothing but forward, backward and update."""
        patched = vars(self.trainer.optimizers[0]).get("step")
        return self._bare and not _is_own(patched) and not any(self._before) and not any(self._after)

    def log_several(self, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Logs as training_step does what several steps came to."""
        module: Any = self.trainer.lightning_module
        names = vars(module)
        outer, names["_current_fx_name"], names["log"] = names["_current_fx_name"], "training_step", self._log
        try:
            module.tell_several(losses, logits, labels)
        finally:
            names["_current_fx_name"] = outer
            del names["log"]

    def step(self, batch: Any, index: int) -> dict[str, Any]:
        """What training_step returned, its loss detached."""
        trainer, optimizer = self.trainer, self.trainer.optimizers[0]
        module: Any = trainer.lightning_module
        if self.graphs is not None:
            output = self.graphs.step(batch, index)
            if output is not None:
                return output
        patched = vars(optimizer).get("step")  # by a scheduler, which only counts, or by somebody else
        if not self._bare or _is_own(patched) or any(self._before):
            return self.run(optimizer, index, trainer.fit_loop.epoch_loop._build_kwargs(OrderedDict(), batch, index))
        counts = self.optim_progress.optimizer
        counts.step.increment_ready()
        out = self._output(module, (batch, index) if self._takes_index else (batch,))
        loss = out if type(out) is Tensor else self._loss_of(out)
        if self.weight != 1 and loss is not None:
            loss = weighted(loss, self.weight)
        counts.zero_grad.increment_ready()
        counts.zero_grad.increment_started()
        for group in optimizer.param_groups:  # optimizer.zero_grad() takes ten times as long
            for parameter in group["params"]:
                parameter.grad = None
        counts.zero_grad.increment_completed()
        if loss is not None:
            self._backward(loss)
        if clip := trainer.gradient_clip_val:
            algorithm = trainer.gradient_clip_algorithm
            module.configure_gradient_clipping(optimizer, gradient_clip_val=clip, gradient_clip_algorithm=algorithm)
        if self._raw_step is None or patched or any(self._after) or torch.autograd._profiler_enabled():
            optimizer.step()
        else:
            with torch.no_grad():  # without the 40 us that torch takes to look for hooks and profilers
                self._raw_step(optimizer)
        counts.step.increment_completed()
        if type(out) is Tensor:
            return {"loss": (out if self.weight else loss).detach()}
        return {} if loss is None else {**out, "loss": loss.detach()}

    def _backward(self, loss: Tensor) -> None:
        """`loss.backward()`; of a plain loss [] without its checks, which are a tenth of a small network's."""
        plain = type(loss) is Tensor and not loss.ndim and loss.is_floating_point() and Tensor.backward is BACKWARD
        if plain and ENGINE is not None and not torch._C._are_functorch_transforms_active():
            ENGINE((loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True)
        else:
            loss.backward()

    def _output(self, module: Any, args: tuple[Any, ...]) -> Any:
        strategy, names = self.trainer.strategy, vars(module)
        outer, names["_current_fx_name"] = names["_current_fx_name"], "training_step"
        if self._log is not None:
            names["log"] = self._log
        try:
            direct = type(self.trainer.precision_plugin) is Precision and strategy.model is module
            return module.training_step(*args) if direct else strategy.training_step(*args)
        finally:
            names["_current_fx_name"] = outer
            if self._log is not None:
                names.pop("log", None)

    def _loss_of(self, out: Any) -> Tensor | None:
        """The loss in what is no plain tensor, in Lightning's words if there is none; None skips the step."""
        loss = ClosureResult.from_training_step_output(out).closure_loss
        if loss is None and self.trainer.world_size > 1:
            raise RuntimeError(
                "Skipping the `training_step` by returning None in distributed training is not supported."
            )
        if loss is None:
            Closure.warning_cache.warn(
                "`training_step` returned `None`. If this was on purpose, ignore this warning..."
            )
        return loss

    def _training_step(self, kwargs: OrderedDict) -> ClosureResult:
        result = super()._training_step(kwargs)  # in Lightning's own steps
        if self.weight != 1 and result.closure_loss is not None:
            result.closure_loss = weighted(result.closure_loss, self.weight)
            result.loss = result.loss if self.weight else result.closure_loss.detach()
        return result


def _is_own(patched: Any) -> bool:
    """Whether an optimizer's patched step does more than a scheduler's, which only counts."""
    return patched is not None and not getattr(patched, "_wrapped_by_lr_sched", False)


def weighted(loss: Tensor, weight: float) -> Tensor:
    """The loss of a rank with so many times its even share; a mean over no image is not a number and counts nothing."""
    return (loss if weight else torch.nan_to_num(loss)) * weight


class QuickLog:
    """`self.log` in a hook: Lightning's for a name's first value in an epoch, then only its arithmetic."""

    def __init__(self, trainer: Trainer, module: Any, results: Any, hook: str = "training_step") -> None:
        self.module, self.results, self.connector, self.hook = module, results, trainer._logger_connector, hook
        self.has_logger = trainer.logger is not None
        self.known: dict[str, tuple[Any, Any, Any]] = {}  # name -> what it adds to, and how it was logged
        self._waiting: list[tuple[Any, float, float]] | None = None  # items, values, images

    def __call__(self, name: str, value: Any, *args: Any, batch_size: int | None = None, **kwargs: Any) -> None:
        item, old_args, old_kwargs = self.known.get(name, (None, None, None))
        if item is None or args != old_args or kwargs != old_kwargs or not self._only_adds(item, value):
            if self._waiting:
                self._add_up()
            log: Any = LightningModule.log
            if batch_size is not None:
                kwargs["batch_size"] = batch_size
            log(self.module, name, value, *args, **kwargs)
            item = None if len(args) > BEFORE_SIZE else self._item(name)
            kwargs.pop("batch_size", None)
            warns = not self.has_logger and (args[1:2] or kwargs.get("logger"))
            if item is not None and not (
                warns or item.meta.enable_graph or (item.meta.sync.should and item.meta.on_step)
            ):
                self.known[name] = (item, args, kwargs)
            return
        state = vars(item)  # to set an attribute of a metric takes ten times as long
        if item.is_tensor:
            meta = item.meta
            if self._waiting is not None and meta.on_epoch and not meta.on_step and meta.is_mean_reduction:
                size = self._size() if batch_size is None else batch_size
                whole = type(size) in (int, float) and size % 1 == 0
                if whole and value.dtype == item.value.dtype and value.device.type == "cpu":
                    self._waiting.append((item, value.item(), size))
                    self.connector._current_fx = self.hook
                    return
                self._add_up()
            value = value.detach()
            value = value.squeeze() if value.ndim else value
            if meta.on_step:
                state["_forward_cache"] = value.clone()  # the module may go on to change it
            if not meta.on_epoch:
                state["value"] = state["_forward_cache"]
            elif meta.is_mean_reduction:
                size = self._size() if batch_size is None else batch_size
                state["value"] = item.value + value * size
                state["cumulated_batch_size"] = item.cumulated_batch_size + size
            else:
                state["value"] = item.value + value if meta.is_sum_reduction else meta.reduce_fx(item.value, value)
        else:
            state["_forward_cache"] = value._forward_cache
        state["_computed"], state["has_reset"] = None, False
        state["_update_count"] += 1
        self.connector._current_fx = self.hook

    @contextmanager
    def together(self) -> Iterator[None]:
        """In it what only goes into means over the epoch, on a CPU, is kept as numbers, and added up at its end."""
        self._waiting = []
        try:
            yield
        finally:
            self._add_up()
            self._waiting = None

    def _add_up(self) -> None:
        """Adds what waits, in the order and the precision of tensors, at a tenth of their price."""
        sums: dict[int, Any] = {}
        with numpy.errstate(all="ignore"):  # a value may be infinite
            for item, value, size in self._waiting or ():
                kind = item.value.numpy().dtype.type
                _, total, images, count = sums.get(id(item), (item, kind(item.value), 0, 0))
                sums[id(item)] = item, total + kind(value) * kind(size), images + size, count + 1
        for item, total, images, count in sums.values():
            item.value, item.cumulated_batch_size = torch.tensor(total), item.cumulated_batch_size + images
            item._computed, item.has_reset, item._update_count = None, False, item._update_count + count
        self._waiting = []

    def _item(self, name: str) -> Any:
        """What Lightning has just logged under a name; None if that cannot be told."""
        index = self.results.dataloader_idx
        for key in (f"{self.hook}.{name}", f"{self.hook}.{name}.{index}"):
            item = self.results.get(key)
            if item is not None and (item.meta.name, item.meta.dataloader_idx) == (name, index):
                return item
        return None

    def _only_adds(self, item: Any, value: Any) -> bool:
        """Whether this is not the first of an epoch, and of the same kind and place."""
        if self.connector._first_loop_iter is not False or not item.is_tensor:
            return self.connector._first_loop_iter is False and value is item.value
        floats = type(value) is Tensor and value.dtype in (torch.float32, torch.float64)
        return floats and value.device == item.value.device and value.numel() == 1

    def _size(self) -> int:
        """Images of the batch, as Lightning finds them."""
        results = self.results
        if results.batch_size is None:
            batch = results.batch
            plain = type(batch) in (list, tuple) and all(type(part) is Tensor and part.ndim for part in batch)
            sizes = {len(part) for part in batch} if plain else set()
            results.batch_size = sizes.pop() if len(sizes) == 1 else extract_batch_size(batch)
        return results.batch_size
