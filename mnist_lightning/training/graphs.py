"""Optimizer steps as CUDA graphs, where a GPU would wait for Python: recorded once, then replayed.

Forward, backward, clipping and update are recorded as they run; learning rates, which change, lie on the device. What
else a step depends on is looked at before each replay, and recorded anew if it has changed. What a graph cannot hold
(`why_not`, and what the first try shows) goes step by step, eager, and is said.
"""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from mnist_lightning.console import say
from mnist_lightning.errors import first_line
from mnist_lightning.training.compiled import NotCompiledError, is_ours
from mnist_lightning.training.updates import RecordedUpdate
from mnist_lightning.training.watched import Watched, looks_of

SIZES = (
    50,
    10,
    5,
    2,
)  # steps of a graph: as many as there are between two rows of metrics.csv, and what makes up the rest
MANY = 500  # optimizer steps after which the largest size is worth its recording
SHAPES = 16  # graphs that are kept at once
DEVICE = "cuda"
# How torch, and a step of the user's, fail where they would have to wait for the device
REFUSED = (RuntimeError, TypeError, ValueError, AttributeError, ArithmeticError, LookupError)


def tell_of_steps(loop: Any, told: str) -> None:
    """Says how a loop's steps are taken, where that was not known."""
    if told != loop.told_of_steps and loop.trainer.is_global_zero:
        say(told)
        loop.told_of_steps = told


class GraphSteps:
    """The steps of a training as graphs: batches in, the step's outputs out.

    Of modules with DigitClassifier's own step several are one graph; of others one, with what `self.log` and metrics
    are told repeated after it.
    """

    def __init__(self, optimization: Any, trainer: Trainer) -> None:
        self.optimization, self.trainer = optimization, trainer
        self.module: Any = trainer.lightning_module
        self.own = is_ours(self.module)
        self.batch_size = 0  # of the loader whose batches are taken together
        self.refused: str | None = None  # what the first try showed
        self.update = RecordedUpdate(trainer, optimization._raw_step)
        self.optimizer, self._parameters = self.update.optimizer, self.update.parameters
        self._graphs: dict[Any, tuple[list[Tensor], Tensor, Callable[[], None], Any, list[Any]]] = {}
        self._look: Any = None
        self._warm: set[Any] = set()  # forms of batches that a step has been tried on
        self._draws = False  # random numbers on the device
        self._recorded = self._replayed = 0
        self._pool: Any = None
        self._stream: Any = torch.cuda.Stream(trainer.strategy.root_device) if DEVICE == "cuda" else None

    @property
    def ready(self) -> bool:
        """Whether the optimizer has the state that its first step makes, and nothing speaks against graphs."""
        return not self.refused and self.update.ready

    def rates(self) -> list[list[float]]:
        """What schedules change, as it is now."""
        return self.update.rates()

    # ------------------------------------------------------------------ what a step depends on

    def look(self) -> None:
        """Throws the graphs away if the module or the optimizer is not as it was when they were recorded."""
        look = [looks_of(self.module), [*self.update.constants(), self.trainer.gradient_clip_val]]
        if look != self._look:
            self._look = look
            self._graphs.clear()
            self._pool = torch.cuda.graph_pool_handle() if self._stream else None  # the old one goes with its graphs
            if self._recorded > SHAPES and self._replayed < 10 * self._recorded:
                self._refuse("what it depends on changes too often")

    def _refuse(self, reason: str) -> None:
        self.update.switch_back()
        self.refused = f"a step cannot be recorded: {reason}"
        tell_of_steps(self.trainer.fit_loop.epoch_loop, f"Steps are eager: {self.refused}")

    # ------------------------------------------------------------------ steps

    def sizes_at(self, done: int) -> tuple[int, ...]:
        """How many steps can be one graph after so many, the most first; none of steps that cannot be recorded."""
        if self.ready and not self._warm:
            device = self.trainer.strategy.root_device
            images = torch.zeros(self.batch_size, 1, 28, 28, device=device)
            self._try([images, images[:, 0, 0, 0].long()], None, self._lying([self.rates()]), None)
        return () if self.refused else SIZES[done < MANY :]

    def __call__(self, batches: list[Any], rates: list[Any], first: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All images and labels, losses [steps] and logits of all images, after the steps; the first's number."""
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        if [*self.update.constants(), self.trainer.gradient_clip_val] != self._look[1]:
            self.look()
        if not self._draws:
            losses, logits = self._took([images, labels], rates)
            return images, labels, losses, logits
        loop, found = self.trainer.fit_loop.epoch_loop, []
        for at, (batch, rate) in enumerate(zip(batches, rates, strict=True)):
            if at and loop.seed is not None:  # so that no step's random numbers depend on which are taken together
                loop._seed("steps", first + at)
            found.append(self._took(list(batch), [rate]))
        losses, logits = (torch.cat(parts) for parts in zip(*found, strict=True))
        return images, labels, losses, logits

    def _took(self, tensors: list[Tensor], rates: list[Any]) -> tuple[Tensor, Tensor]:
        found = self._take(tensors, None, rates)
        if found is None:
            raise NotCompiledError(f"--loop.step graph: {self.refused}: give --loop.step eager")
        return found[0].clone(), found[1].clone()

    def step(self, batch: Any, index: int) -> dict[str, Any] | None:
        """What `QuickOptimization.step` returns; None: this step is to be taken eager."""
        if self.refused or not self.ready:
            return None
        tensors, form = tree_flatten(batch)
        device = self.trainer.strategy.root_device
        if not all(type(leaf) is Tensor and leaf.device == device and not leaf.requires_grad for leaf in tensors):
            self._refuse("its batch is more than tensors")
            return None
        self.look()
        if self.own and len(tensors) != 2:
            return None
        found = self._take(tensors, form, [self.rates()], index)
        if found is None:
            return None
        counts = self.optimization.optim_progress.optimizer
        for counted in (counts.step, counts.zero_grad):
            for tracker in (counted.total, counted.current):
                for name, count in vars(tracker).items():
                    setattr(tracker, name, count + 1)
        if self.own:
            self.optimization.log_several(found[0].clone(), found[1].clone(), tensors[1])
            return {"loss": found[0][0].clone()}
        outputs, watched = found
        watched.repeat()
        return _copied(outputs if isinstance(outputs, dict) else {"loss": outputs})

    def _take(self, tensors: list[Tensor], form: Any, rates: list[Any], index: int = 0) -> Any:
        """What the steps came to; None: they are to be taken eager."""
        key = (len(rates), str(form), *_forms(tensors))
        if key not in self._graphs:
            known = None if len(self._graphs) == SHAPES else self._record(tensors, form, rates, index)
            if known is None:
                return None
            self._graphs[key] = known
        places, lies, replay, found, last = self._graphs[key]
        torch._foreach_copy_(places, tensors)
        if rates != last:
            last[:] = rates
            host = torch.tensor(rates)
            lies.copy_(host.pin_memory() if lies.is_cuda else host, non_blocking=True)
        replay()
        self._replayed += len(rates)
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # what schedulers ask
        return found

    # ------------------------------------------------------------------ recording

    def _record(self, tensors: list[Tensor], form: Any, rates: list[Any], index: int) -> Any:
        """The graph of so many steps; None, and `refused` says why, where the step cannot be recorded."""
        places, lies = [tensor.clone() for tensor in tensors], self._lying(rates)
        watched = None if self.own else Watched(self.optimization, self.module, index)
        if not self._try(places, form, lies, watched):
            return None
        self._recorded += 1
        with self._aside():
            try:
                with watched.watching() if watched else nullcontext(), self.update.capturable():
                    replay, found = self.record(lambda: self._run(places, form, lies, watched))
            except REFUSED as error:
                self._refuse(first_line(error))
                return None
        self._look = [looks_of(self.module), [*self.update.constants(), self.trainer.gradient_clip_val]]
        return places, lies, replay, found, list(rates)

    def record(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """The replay of what `run` does on the device, and what it returned, which each replay writes anew."""
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            found = run()
        except BaseException:
            with suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()
        return graph.replay, found

    def _try(self, places: list[Tensor], form: Any, lies: Tensor, watched: Watched | None) -> bool:
        """Whether a step can be recorded; it is taken, once for each form of batch, and undone."""
        if watched is None and _forms(places, lies.shape[0]) in self._warm:
            return True
        self.update.switch()
        with self._aside(), self._undone():
            try:
                with watched.watching() if watched else nullcontext(), _no_waiting():
                    self._run([place[: len(place) // lies.shape[0]] for place in places], form, lies[:1], watched)
                if watched and watched.reason:
                    self._refuse(watched.reason)
            except REFUSED as error:
                self._refuse(first_line(error))
        self._warm.add(_forms(places, lies.shape[0]))
        return self.refused is None

    @contextmanager
    def _aside(self) -> Any:
        """On a stream of its own, after which no gradients are left."""
        current = torch.cuda.current_stream() if self._stream else None
        if self._stream:
            self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream) if self._stream else nullcontext():
                yield
        finally:
            if self._stream:
                current.wait_stream(self._stream)
            for parameter in self._parameters:
                parameter.grad = None

    def _lying(self, rates: list[Any]) -> Tensor:
        """Rates of steps and groups on the device, float32 [steps, groups, 2]."""
        return torch.tensor(rates, device=self.trainer.strategy.root_device)

    def _run(self, places: list[Tensor], form: Any, lies: Tensor, watched: Watched | None) -> Any:
        if watched is None:
            return self._own_steps(places[0], places[1], lies)
        return self._users_step(tree_unflatten(places, form), lies[0], watched), watched

    def _own_steps(self, images: Tensor, labels: Tensor, lies: Tensor) -> tuple[Tensor, Tensor]:
        losses, logits, size = [], [], len(labels) // len(lies)
        for batch, rates in zip(zip(images.split(size), labels.split(size), strict=True), lies, strict=True):
            with self.trainer.precision_plugin.train_step_context():
                loss, outputs = self.module._outputs(batch)
            self._backward_and_update(loss, rates)
            losses.append(loss.detach())
            logits.append(outputs.detach())
        return torch.stack(losses), torch.cat(logits)

    def _users_step(self, batch: Any, rates: Tensor, watched: Watched) -> Any:
        out = self.optimization._output(self.module, (batch, watched.index)[: 1 + self.optimization._takes_index])
        loss = out if type(out) is Tensor else self.optimization._loss_of(out)
        if loss is None:
            raise ValueError("a step without a loss")
        self._backward_and_update(loss, rates)
        return torch.utils._pytree.tree_map_only(Tensor, Tensor.detach, out)

    def _backward_and_update(self, loss: Tensor, rates: Tensor) -> None:
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        if clip := self.trainer.gradient_clip_val:
            algorithm = self.trainer.gradient_clip_algorithm
            limits = {"gradient_clip_val": clip, "gradient_clip_algorithm": algorithm}
            self.module.configure_gradient_clipping(self.optimizer, **limits)
        self.update(rates)

    @contextmanager
    def _undone(self) -> Any:
        """Puts weights, buffers, the optimizer's state and random numbers back as they were."""
        tensors = [*self.update.tensors(), *self.module.buffers()]
        kept = [tensor.detach().clone() for tensor in tensors]
        random = self._random_numbers()
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, kept, strict=True):
                    tensor.copy_(value)
            self._draws = self._draws or not torch.equal(random, self._random_numbers())
            torch.cuda.set_rng_state(random) if self._stream else torch.set_rng_state(random)

    def _random_numbers(self) -> Tensor:
        """Where the device's generator stands."""
        return torch.cuda.get_rng_state() if self._stream else torch.get_rng_state()


def _forms(tensors: list[Tensor], parts: int = 1) -> Any:
    """Shapes and types of a batch, where several lie in `tensors`."""
    return tuple((len(t) // parts, t.shape[1:], t.stride(), t.dtype) for t in tensors)


@contextmanager
def _no_waiting() -> Any:
    """What would wait for the device, to look at a number, fails."""
    if DEVICE != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _copied(outputs: dict[str, Any]) -> dict[str, Any]:
    """Without what the next replay writes to."""
    return torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, outputs)  # type: ignore[no-any-return]
