"""Optimizer steps as CUDA graphs, where a GPU would wait for Python: recorded once, then replayed.

Forward, backward, clipping and update are recorded as they run; learning rates, which change, lie on the device. What
else a step depends on is looked at before each replay, and recorded anew if it has changed. What a graph cannot hold
(`why_not`, and what the first try shows) goes step by step, eager, and is said.
"""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from mnist_lightning.console import say
from mnist_lightning.errors import first_line
from mnist_lightning.training.capture import captured
from mnist_lightning.training.compiled import is_ours
from mnist_lightning.training.updates import RecordedUpdate
from mnist_lightning.training.watched import NumbersFromProcessor, Watched, looks_of, no_waiting

# Steps of a graph: as many as there are between two rows of metrics.csv, and what makes up the rest
SIZES = (50, 10, 5, 2)
MANY = 500  # optimizer steps after which the largest size is worth its recording
SHAPES = 16  # graphs that are kept at once
DEVICE = "cuda"
# How torch, and a step of the user's, fail where they would have to wait for the device
REFUSED = (RuntimeError, TypeError, ValueError, AttributeError, ArithmeticError, LookupError, AssertionError)


def tell_of_steps(loop: Any, told: str) -> None:
    """Says how a loop's steps are taken, where that was not known."""
    if told != loop.told_of_steps and loop.trainer.is_global_zero:
        say(told)
        loop.told_of_steps = told


def count_steps(steps: int, *counts: Any) -> None:
    """Adds so many to all that Lightning counts of a progress: ready, started, processed, completed."""
    for progress in counts:
        for tracker in (progress.total, progress.current):
            for name, known in vars(tracker).items():
                setattr(tracker, name, known + steps)


class GraphSteps:
    """The steps of a training as graphs: batches in, the step's outputs out.

    Of modules with DigitClassifier's own step several are one graph; of others one, with what `self.log` and metrics
    are told repeated after it.
    """

    def __init__(self, optimization: Any, trainer: Trainer) -> None:
        self.optimization, self.trainer = optimization, trainer
        self.module: Any = trainer.lightning_module
        self.device = trainer.strategy.root_device
        self.own = is_ours(self.module)
        self.batch_size = 0  # of the loader whose batches are taken together
        self.refused: str | None = None  # what the first try showed
        self.update = RecordedUpdate(trainer, optimization._raw_step)
        self.optimizer, self.rates = self.update.optimizer, self.update.rates
        self._graphs: dict[Any, tuple[list[Tensor], Tensor, Callable[[], None], Any, list[Any], list[Any]]] = {}
        self._look: Any = None
        self._warm: set[Any] = set()  # forms of batches that a step has been tried on
        self._draws = False  # random numbers on the device
        self._recorded = self._replayed = 0
        self._pool: Any = None
        self._stream: Any = torch.cuda.Stream(self.device) if DEVICE == "cuda" else None

    @property
    def ready(self) -> bool:
        """Whether the optimizer has the state that its first step makes, and nothing speaks against graphs."""
        return not self.refused and self.update.ready

    # ------------------------------------------------------------------ what a step depends on

    def look(self) -> None:
        """Throws the graphs away if the module or the optimizer is not as it was when they were recorded."""
        if (look := self._looks()) != self._look:
            self._look = look
            if self._graphs:
                self.end()
            self._warm.clear()
            self.update.changed()
            self._pool = torch.cuda.graph_pool_handle() if self._stream else None  # the old one goes with its graphs
            if self._recorded > SHAPES and self._replayed < 10 * self._recorded:
                self._refuse("what it depends on changes too often")

    def end(self) -> None:
        """Gives the graphs back, when all that was replayed is done."""
        if self._stream:
            torch.cuda.synchronize()
        self._graphs.clear()

    def _looks(self) -> tuple[Any, Any]:
        return looks_of(self.module, self.device), self._numbers()

    def _numbers(self) -> list[Any]:
        return [*self.update.constants(), self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm]

    def _refuse(self, reason: str) -> None:
        self.update.switch_back()
        self.refused = f"a step cannot be recorded: {reason}"
        tell_of_steps(self.trainer.fit_loop.epoch_loop, f"Steps are eager: {self.refused}")

    # ------------------------------------------------------------------ steps

    def sizes_at(self, done: int) -> tuple[int, ...]:
        """How many steps can be one graph after so many, the most first; none of steps that cannot be recorded."""
        if self.ready and not self._warm:
            images = torch.zeros(self.batch_size, 1, 28, 28, device=self.device)
            self._try([images, images[:, 0, 0, 0].long()], None, self._lying([self.rates()]), self._watched())
        return () if self.refused else SIZES[done < MANY :]

    def __call__(self, batches: list[Any], rates: list[Any], first: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All images and labels, losses [steps] and logits of all images, after the steps; the first's number."""
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        if self._numbers() != self._look[1]:
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
        if found is None:  # they have been counted: taken one after the other here
            self.update.switch()
            found = self._own_steps(tensors[0], tensors[1], self._lying(rates), self._watched())
            self.update.switch_back()
        return found[0].clone(), found[1].clone()

    def step(self, batch: Any, index: int) -> dict[str, Any] | None:
        """What `QuickOptimization.step` returns; None: this step is to be taken eager."""
        if self.refused or not self.ready:
            return None
        tensors, form = tree_flatten(batch)
        plain = all(type(leaf) is Tensor and leaf.device == self.device and not leaf.requires_grad for leaf in tensors)
        if not plain or (self.own and len(tensors) != 2):
            self._refuse("its batch is another than tensors" if not plain else "its batch is not images and labels")
            return None
        self.look()
        found = self._take(tensors, form, [self.rates()], index)
        if found is None:
            return None
        counts = self.optimization.optim_progress.optimizer
        count_steps(1, counts.step, counts.zero_grad)
        if self.own:
            self.optimization.log_several(found[0].clone(), found[1].clone(), tensors[1])
            return {"loss": found[0][0].clone()}
        outputs, watched = found
        watched.repeat()
        outputs = outputs if isinstance(outputs, dict) else {"loss": outputs}
        return tree_map_only(Tensor, Tensor.clone, outputs)  # type: ignore[no-any-return]  # a replay writes to them

    def _take(self, tensors: list[Tensor], form: Any, rates: list[Any], index: int = 0) -> Any:
        """What the steps came to; None: they are to be taken eager."""
        key = (str(form), *_forms(tensors, len(rates)))
        if key not in self._graphs:
            if len(self._graphs) == SHAPES:
                self._refuse("batches have too many shapes")
            known = None if self.refused else self._record(tensors, form, rates, index)
            if known is None:
                return None
            self._graphs[key] = known
        places, lies, replay, found, gradients, last = self._graphs[key]
        torch._foreach_copy_(places, tensors)
        if rates != last:
            last[:] = rates
            host = torch.tensor(rates, dtype=torch.float32)
            lies.copy_(host.pin_memory() if lies.is_cuda else host, non_blocking=True)
        replay()
        for parameter, gradient in zip(self.update.parameters, gradients, strict=True):
            parameter.grad = gradient  # of the last step, as an eager one leaves it
        self._replayed += len(rates)
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # what schedulers ask
        return found

    # ------------------------------------------------------------------ recording

    def _record(self, tensors: list[Tensor], form: Any, rates: list[Any], index: int) -> Any:
        """The graph of so many steps; None, and `refused` says why, where the step cannot be recorded."""
        places, lies, watched = [tensor.clone() for tensor in tensors], self._lying(rates), self._watched(index)
        if not self._try(places, form, lies, watched):
            return None
        self._recorded += 1
        with self._aside():
            try:
                with nullcontext() if self.own else watched.watching(), self.update.capturable():
                    replay, found = self.record(lambda: self._run(places, form, lies, watched))
                gradients = [parameter.grad for parameter in self.update.parameters]
            except REFUSED as error:
                self._refuse(first_line(error))
                return None
        self._look = self._looks()
        return places, lies, replay, found, gradients, list(rates)

    def record(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """The replay of what `run` does on the device, and what it returned, which each replay writes anew."""
        return captured(run, self._pool, self.device)

    def _try(self, places: list[Tensor], form: Any, lies: Tensor, watched: Watched) -> bool:
        """Whether a step can be recorded; it is taken, of our modules once for each form of batch, and undone."""
        forms = _forms(places, len(lies))
        if self.own and forms in self._warm:
            return True
        self.update.switch()
        random = self._random_numbers()
        try:
            with self._aside(), watched.undone(self.update.tensors()), watched.watching(), self.update.capturable():
                parts = [place[: len(place) // len(lies)] for place in places] if self.own else places
                with no_waiting(self.device), NumbersFromProcessor(watched):
                    self._run(parts, form, lies[:1], watched)
        except REFUSED as error:
            watched.note(first_line(error))
        self._draws = self._draws or not torch.equal(random, self._random_numbers())
        torch.cuda.set_rng_state(random) if self._stream else torch.set_rng_state(random)
        if watched.reason:
            self._refuse(watched.reason)
            return False
        self._warm.add(forms)
        return True

    def _random_numbers(self) -> Tensor:
        """Where the device's generator stands."""
        return torch.cuda.get_rng_state() if self._stream else torch.get_rng_state()

    def _watched(self, index: int = 0) -> Watched:
        return Watched(self.optimization, self.module, index)

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
            for parameter in self.update.parameters:
                parameter.grad = None

    def _lying(self, rates: list[Any]) -> Tensor:
        """Rates of steps and groups on the device, float32 [steps, groups, 4]."""
        return torch.tensor(rates, dtype=torch.float32, device=self.device)

    def _run(self, places: list[Tensor], form: Any, lies: Tensor, watched: Watched) -> Any:
        if self.own:
            return self._own_steps(places[0], places[1], lies, watched)
        return self._users_step(tree_unflatten(places, form), lies[0], watched), watched

    def _own_steps(self, images: Tensor, labels: Tensor, lies: Tensor, watched: Watched) -> tuple[Tensor, Tensor]:
        losses, logits, size = [], [], len(labels) // len(lies)
        for batch, rates in zip(zip(images.split(size), labels.split(size), strict=True), lies, strict=True):
            with self.trainer.precision_plugin.train_step_context():
                loss, outputs = self.module._outputs(batch)
            self._backward_and_update(loss, rates, watched)
            losses.append(loss.detach())
            logits.append(outputs.detach())
        return torch.stack(losses), torch.cat(logits)

    def _users_step(self, batch: Any, rates: Tensor, watched: Watched) -> Any:
        out = self.optimization._output(self.module, (batch, watched.index)[: 1 + self.optimization._takes_index])
        loss = out if type(out) is Tensor else self.optimization._loss_of(out)
        if loss is None:
            raise ValueError("a step without a loss")
        self._backward_and_update(loss, rates, watched)
        return tree_map_only(Tensor, Tensor.detach, out)

    def _backward_and_update(self, loss: Tensor, rates: Tensor, watched: Watched) -> None:
        for parameter in self.update.parameters:
            parameter.grad = None
        loss.backward()
        if clip := self.trainer.gradient_clip_val:
            limits = {"gradient_clip_val": clip, "gradient_clip_algorithm": self.trainer.gradient_clip_algorithm}
            with watched.with_trainer():
                self.module.configure_gradient_clipping(self.optimizer, **limits)
        self.update(rates)


def _forms(tensors: list[Tensor], parts: int = 1) -> Any:
    """Shapes, layouts and types of a batch, where several lie in `tensors`."""
    return (parts, *((tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors))
