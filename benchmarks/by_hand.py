"""A recipe's training written by hand for a GPU: an eager loop, and steps that are captured once and replayed.

No metrics, no logging, no checkpoints. Network, images (as normalised floats) and order are on the device, a batch is
cut by index, and nothing waits for the device inside an epoch. On a CPU, which has no graphs, what would be captured
is called again.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from steps import Recipe
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from mnist_lightning.models.layers import Network


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class ByHand:
    """A recipe's network, images and labels on a device; what its loops share."""

    net: nn.Sequential

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(0)
        self.recipe, self.device, self.size = recipe, device, recipe.batch_size
        self.count = len(recipe.labels)
        self.images, self.labels = recipe.floats(recipe.images).to(device), recipe.labels.to(device)
        self.steps = -(-self.count // self.size)
        self.autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        if recipe.precision == "bf16-mixed":
            self.autocast = lambda: torch.autocast(device.type, torch.bfloat16)

    def one_cycle(self, optimizer: torch.optim.Optimizer) -> OneCycleLR | None:
        """The recipe's schedule, if it has one."""
        args = self.recipe.model_args
        if args.get("scheduler") is None:
            return None
        if args["scheduler"] != "OneCycleLR":
            raise ValueError(f"{self.recipe.name}: {args['scheduler']} is not written by hand here")
        steps = self.recipe.max_epochs * self.steps
        return OneCycleLR(optimizer, **{"max_lr": args["lr"], "total_steps": steps} | args.get("scheduler_args", {}))

    def passes(self, count: int) -> None:
        """So many epochs."""
        raise NotImplementedError

    def seconds(self, passes: int) -> float:
        """Of an epoch, the mean of so many."""
        self.net.train()
        wait(self.device)
        start = time.perf_counter()
        self.passes(passes)
        wait(self.device)
        return (time.perf_counter() - start) / passes

    def accuracy(self) -> float:
        """On the first training images: whether the loop learns at all."""
        with torch.no_grad():
            read = self.net.eval()(self.images[:10_000]).argmax(1)
        return (read == self.labels[:10_000]).float().mean().item()


class Bare(ByHand):
    """The loop that everybody writes, torch's optimizer as it is by default."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        self.net = recipe.network().to(device)
        self.optimizer = recipe.optimizer(self.net.parameters())
        self.scheduler = self.one_cycle(self.optimizer)

    def passes(self, count: int, most: int | None = None) -> None:
        scheduler = self.scheduler
        for _ in range(count):
            order = torch.randperm(self.count, device=self.device)
            for batch in order.split(self.size)[:most]:
                self.optimizer.zero_grad()
                with self.autocast():
                    loss = self.recipe.loss(self.net(self.images[batch]), self.labels[batch])
                loss.backward()
                self.optimizer.step()
                if scheduler and scheduler.last_epoch < scheduler.total_steps - 1:  # further it does not go
                    scheduler.step()


class Graph(ByHand):
    """Whole steps, `at_once` of them, in one graph; the steps that are left over, and the last batch, in their own."""

    def __init__(
        self, recipe: Recipe, device: torch.device, at_once: int = 16, layout: torch.memory_format | None = None
    ) -> None:
        super().__init__(recipe, device)
        layers = Network(*recipe.network()).in_training()  # a ReLU after the pooling has a quarter to do
        self.net = nn.Sequential(*layers).to(device).to(memory_format=layout or torch.contiguous_format).train()
        self.parameters = list(self.net.parameters())
        self.optimizer = self._optimizer()
        self.rows, self.targets = self.images.flatten(1), self.labels
        if recipe.model_args.get("loss") == "mse":
            self.targets = F.one_hot(self.labels, 10).float()
        self.settings = self._settings()
        self.now = None if self.settings is None else self.settings[:at_once].clone()  # of the steps of a replay
        at_once = max(1, min(at_once, self.count // self.size))
        whole, rest = divmod(self.count, self.size)
        plan = [(at_once, self.size)] * (whole // at_once) + [(1, self.size)] * (whole % at_once) + [(1, rest)]
        self.plan = [(number, size) for number, size in plan if size]
        self.order = torch.randperm(self.count, device=device)[: at_once * self.size].clone()
        before = [parameter.detach().clone() for parameter in self.parameters]
        self.replays = {kind: captured(partial(self._steps, *kind), device) for kind in {*self.plan}}
        with torch.no_grad():  # what was done to warm up is undone
            for parameter, value in zip(self.parameters, before, strict=True):
                parameter.copy_(value)
            for state in self.optimizer.state.values():
                for value in state.values():
                    if isinstance(value, Tensor):
                        value.zero_()
        self.done = 0

    def _optimizer(self) -> torch.optim.Optimizer:
        """The recipe's, fused: one kernel for all parameters."""
        args = self.recipe.model_args
        kind = getattr(torch.optim, args.get("optimizer", "Adam"))
        more = {"fused": True} | args.get("optimizer_args", {})
        if kind is torch.optim.Adam and self.device.type == "cuda":
            more["capturable"] = True
        return kind(self.parameters, lr=args.get("lr", 1e-3), **more)

    def _settings(self) -> Tensor | None:
        """What each step takes where OneCycleLR changes learning rate and beta1 at each; float32 [steps, 3].

        A graph freezes beta1, which is a number to the fused kernel: it gets the highest, B. The first moment m is
        moved before, so that B makes of it what beta1 would: m <- m * beta1 / B + gradient * (B - beta1) / B. The
        learning rate takes over the difference between the corrections of bias.
        """
        trial = self.recipe.optimizer([nn.Parameter(torch.zeros(1))])
        scheduler = self.one_cycle(trial)
        if scheduler is None:
            return None
        pairs = []
        for step in range(scheduler.total_steps):
            pairs.append((trial.param_groups[0]["lr"], trial.param_groups[0]["betas"][0]))
            trial.step()
            if step < scheduler.total_steps - 1:
                scheduler.step()
        highest = max(beta for _, beta in pairs)
        self.optimizer.param_groups[0]["betas"] = (highest, trial.param_groups[0]["betas"][1])
        rows = [
            (lr * (1 - highest**step) / (1 - beta**step), beta / highest, (highest - beta) / highest)
            for step, (lr, beta) in enumerate(pairs, 1)
        ]
        return torch.tensor(rows, device=self.device)

    def _steps(self, number: int, size: int) -> None:
        """So many whole steps of the batches that stand in `order`."""
        for at, batch in enumerate(self.order[: number * size].split(size)):
            for parameter in self.parameters:
                parameter.grad = None
            with self.autocast():
                images = self.rows.index_select(0, batch).view(-1, 1, 28, 28)
                loss = self.recipe.loss(self.net(images), self.targets.index_select(0, batch))
            loss.backward()
            if self.now is not None:
                self._set(self.now[at])
            self.optimizer.step()

    def _set(self, now: Tensor) -> None:
        self.optimizer.param_groups[0]["lr"] = now[0]
        moments = [state["exp_avg"] for state in self.optimizer.state.values()]
        if moments:  # else this is the first step of all
            torch._foreach_mul_(moments, now[1])
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            torch._foreach_add_(moments, list(torch._foreach_mul(gradients, now[2])))

    def passes(self, count: int) -> None:
        sizes = [number * size for number, size in self.plan]
        work = [(number, self.order[: number * size], self.replays[number, size]) for number, size in self.plan]
        for _ in range(count):
            drawn = torch.randperm(self.count, device=self.device)
            for part, (number, place, replay) in zip(drawn.split(sizes), work, strict=True):
                place.copy_(part)
                if self.now is not None and self.settings is not None:
                    first = min(self.done, len(self.settings) - number)
                    self.now[:number].copy_(self.settings[first : first + number])
                replay()
                self.done += number


def captured(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What does `work` again: the replay of a graph; on a CPU `work` itself. Does it a few times to warm up."""
    if device.type != "cuda":
        work()
        return work
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
