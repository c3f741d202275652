"""RecordedUpdate: an optimizer's step as a graph can hold it, with what schedules change on the device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

FUSED = (SGD, Adam, AdamW)
KEPT = ("lr", "betas", "weight_decay")  # of a group, which a step sets otherwise for a moment
BETA = 0.9
IN_A_CALL = 36  # tensors that a fused kernel of torch takes at once


def cycles(trainer: Trainer) -> bool:
    """Whether a schedule changes the momentum, too."""
    return any(getattr(config.scheduler, "cycle_momentum", False) for config in trainer.lr_scheduler_configs)


def why_not(trainer: Trainer) -> str | None:
    """What keeps the optimizer's step from being recorded, in a few words; None: nothing."""
    optimizer = trainer.optimizers[0]
    groups, kind = optimizer.param_groups, type(optimizer)
    recordable = kind in FUSED or all("capturable" in group for group in groups)
    if not recordable or any(isinstance(group["lr"], Tensor) or group.get("differentiable") for group in groups):
        return f"{kind.__name__} as it is set cannot be recorded"
    odd = any(group.get("amsgrad") or group.get("maximize") for group in groups)
    if cycles(trainer) and (kind not in FUSED or odd):
        return f"{kind.__name__} cannot be recorded with a momentum that changes"
    return None


class RecordedUpdate:
    """The step of a Trainer's optimizer, by rates [groups, 4] that lie on the device.

    torch's fused kernels give a tensor of up to 65,536 numbers one block of threads, which leaves a GPU idle: large
    ones are handed over in parts. A momentum that changes is no number that these kernels take from the device. So
    SGD's is written out; Adam's kernel keeps to one, BETA: its average of gradients is scaled before and after, the
    learning rate makes up for the rest.

    step: torch's own function, without what it looks for around it.
    """

    def __init__(self, trainer: Trainer, step: Any) -> None:
        self.optimizer, self._trainer, self._step = trainer.optimizers[0], trainer, step
        self._ahead: int | None = None
        self._missing: set[int] = set()
        self._missing_at = -1
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self._cycles = cycles(trainer)
        groups = self.optimizer.param_groups
        self._divides = type(self.optimizer) in FUSED and not any(group.get("amsgrad") for group in groups)
        self._kept = [{k: v for k, v in g.items() if k in ("fused", "foreach")} for g in self.optimizer.param_groups]

    @property
    def ready(self) -> bool:
        """Whether there is the state that a first step makes, of each parameter that has a gradient."""
        if type(self.optimizer) is SGD and not any(group["momentum"] for group in self.optimizer.param_groups):
            return True
        state = self.optimizer.state
        missing = {id(one) for one in self.parameters if one.requires_grad and not state.get(one)}
        if missing != self._missing:  # after one more step, eager, these have no gradient
            self._missing, self._missing_at = missing, self._trainer.global_step
        return not missing or self._trainer.global_step > self._missing_at

    def rates(self, ahead: int = 0) -> list[list[float]]:
        """What schedules change, of each group, as it is now, for a step so many after the next."""
        if not self._cycles:
            return [[group["lr"], 0, 0, 0] for group in self.optimizer.param_groups]
        if type(self.optimizer) is SGD:
            return [[group["lr"], group["momentum"], 0, 0] for group in self.optimizer.param_groups]
        if self._ahead is None:  # steps that the optimizer has taken and the Trainer has not counted
            states = [state for parameter in self.parameters if (state := self.optimizer.state.get(parameter))]
            self._ahead = int(states[0]["step"]) - self._trainer.global_step
        rates, step = [], self._trainer.global_step + 1 + self._ahead + ahead
        for group in self.optimizer.param_groups:
            lr, beta = group["lr"], group["betas"][0]
            scale = (1 - beta) / (1 - BETA)
            corrected = lr * scale * (1 - BETA**step) / (1 - beta**step)
            rates.append([corrected, beta / BETA / scale, scale, 1 - lr * group["weight_decay"]])
        return rates

    def is_of(self, optimizer: Optimizer) -> bool:
        """Whether that is the optimizer, with the parameters that it had."""
        now = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        return optimizer is self.optimizer and list(map(id, now)) == list(map(id, self.parameters))

    def changed(self) -> None:
        """Forgets what it knew of the optimizer's state."""
        self._ahead = None

    def constants(self) -> list[Any]:
        """What is recorded with a step: where its tensors lie, and the numbers that no schedule changes."""
        changing = {"params", "lr", *(("betas", "momentum") if self._cycles else ())}
        groups = self.optimizer.param_groups
        places = [parameter.data_ptr() for parameter in self.parameters]
        for state in self.optimizer.state.values():
            places += [value.data_ptr() for value in state.values() if isinstance(value, Tensor)]
        betas = [group["betas"][1] for group in groups if "betas" in group]
        return [places, betas, *([v for k, v in group.items() if k not in changing] for group in groups)]

    def tensors(self) -> list[Tensor]:
        """What a step changes."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*self.parameters, *(value for value in states if isinstance(value, Tensor))]

    def switch(self) -> None:
        """One kernel for all parameters, and no number that lies with Python."""
        for group in self.optimizer.param_groups:
            if type(self.optimizer) in FUSED:
                group["fused"], group["foreach"] = True, None
        self._move_numbers(lambda parameter: parameter.device)
        self.optimizer._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]  # it is tried first

    def switch_back(self) -> None:
        for group, kept in zip(self.optimizer.param_groups, self._kept, strict=False):  # there may be new ones
            group.update(kept)
            if not group.get("fused") and not group.get("capturable"):  # torch would wait for each
                self._move_numbers(lambda parameter: torch.device("cpu"))

    def _move_numbers(self, where: Callable[[Tensor], torch.device]) -> None:
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.ndim == 0:
                    state[name] = value.to(where(parameter))

    @contextmanager
    def capturable(self) -> Iterator[None]:
        """As torch wants its optimizers while they are recorded."""
        groups = [group for group in self.optimizer.param_groups if "capturable" in group]
        kept = [group["capturable"] for group in groups]
        for group in groups:
            group["capturable"] = True
        try:
            yield
        finally:
            for group, value in zip(groups, kept, strict=True):
                group["capturable"] = value

    def __call__(self, rates: Tensor) -> None:
        groups = self.optimizer.param_groups
        kept = [{name: group[name] for name in KEPT if name in group} for group in groups]
        try:
            with torch.no_grad():
                self._take(groups, rates)
        finally:
            for group, known in zip(groups, kept, strict=True):
                group.update(known)

    def _take(self, groups: list[dict[str, Any]], rates: Tensor) -> None:
        if self._cycles and type(self.optimizer) is SGD:
            for group, rate in zip(groups, rates, strict=True):
                _sgd(group, self.optimizer.state, *rate[:2])
            return
        averages = []
        for group, (lr, before, after, keep) in zip(groups, rates, strict=True):
            group["lr"] = lr
            if self._cycles:
                parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
                if not parameters:
                    continue
                averages.append(([self.optimizer.state[parameter]["exp_avg"] for parameter in parameters], after))
                torch._foreach_mul_(averages[-1][0], before)
                group["betas"] = (BETA, group["betas"][1])
                if group["weight_decay"] and (type(self.optimizer) is AdamW or group.get("decoupled_weight_decay")):
                    torch._foreach_mul_(parameters, keep)
                    group["weight_decay"] = 0
        if self._divides:
            try:
                for group in groups:
                    _divided(type(self.optimizer), group, self.optimizer.state)
            except (RuntimeError, TypeError):  # another torch: shown by the first try, which is undone
                self._divides = False
        if not self._divides:
            self._step(self.optimizer)
        for tensors, after in averages:
            torch._foreach_mul_(tensors, after)


def _sgd(group: dict[str, Any], states: Any, lr: Tensor, momentum: Tensor) -> None:
    """SGD's step, as torch takes it."""
    parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
    if not parameters:
        return
    steps = [parameter.grad for parameter in parameters]
    if group["weight_decay"]:
        steps = list(torch._foreach_add(steps, parameters, alpha=group["weight_decay"]))
    buffers = [states[parameter]["momentum_buffer"] for parameter in parameters]
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, steps, alpha=1 - group["dampening"])
    steps = list(torch._foreach_add(torch._foreach_mul(buffers, momentum), steps)) if group["nesterov"] else buffers
    torch._foreach_sub_(parameters, torch._foreach_mul(steps, lr))


def _divided(kind: type, group: dict[str, Any], states: Any) -> None:
    """torch's fused step with tensors in parts, as many as one call of the kernel takes."""
    parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
    if not parameters:
        return
    known = [states.get(parameter, {}) for parameter in parameters]
    names = ("exp_avg", "exp_avg_sq") if kind is not SGD else ("momentum_buffer",) if group["momentum"] else ()
    rows = [(p, p.grad, *(state[name] for name in names)) for p, state in zip(parameters, known, strict=True)]
    total, left = sum(parameter.numel() for parameter in parameters), max(IN_A_CALL - len(parameters), IN_A_CALL // 2)
    size = max(1024, -(-total // left // 4) * 4)  # of a part: a multiple of what a thread loads at once
    divided = [_parts(row, size) for row in rows]
    columns = [[part for parts in column for part in parts] for column in zip(*divided, strict=True)]
    how: Any = {name: group[name] for name in ("lr", "weight_decay", "maximize")}
    if kind is SGD:
        how |= {name: group[name] for name in ("momentum", "dampening", "nesterov")}
        take: Any = torch._fused_sgd_
        take(*columns[:2], columns[2] if names else [], is_first_step=False, **how)
        return
    torch._foreach_add_([state["step"] for state in known], 1)
    steps = [state["step"] for state, parts in zip(known, divided, strict=True) for _ in parts[0]]
    decoupled = kind is AdamW or group.get("decoupled_weight_decay")
    take = torch._fused_adamw_ if decoupled else torch._fused_adam_
    beta1, beta2 = group["betas"]
    take(*columns, [], steps, beta1=beta1, beta2=beta2, eps=group["eps"], amsgrad=False, **how)


def _parts(tensors: tuple[Tensor, ...], size: int) -> list[list[Tensor]]:
    """The parts of each tensor, in the order of memory, if all lie there alike; else they stay whole."""
    alike = len({(tensor.stride(), tensor.shape) for tensor in tensors}) == 1
    first = tensors[0]
    dense = first.is_contiguous() or (first.ndim == 4 and first.is_contiguous(memory_format=torch.channels_last))
    if not alike or not dense:
        return [[tensor] for tensor in tensors]
    return [list(tensor.as_strided((tensor.numel(),), (1,)).split(size)) for tensor in tensors]
