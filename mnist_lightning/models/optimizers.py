"""Optimizers and schedulers of torch, by name, and one line for settings that they do not take."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from mnist_lightning.errors import BadSetting
from mnist_lightning.models.layers import named


def optimizer_of(parameters: Iterable[nn.Parameter], settings: Mapping[str, Any], fused: bool) -> Optimizer:
    """The optimizer that DigitClassifier's settings name, `fused` if it can be; raises BadSetting."""
    args = dict(settings["optimizer_args"] or {})
    kind = named(torch.optim, settings["optimizer"], Optimizer, "--model.optimizer")
    if fused and "fused" in inspect.signature(kind).parameters and not {"foreach", "differentiable"} & set(args):
        try:  # one kernel for all parameters; a loop over them in Python otherwise
            return kind(parameters := list(parameters), lr=settings["lr"], fused=True, **args)
        except (TypeError, ValueError, RuntimeError):  # some have none for a GPU
            pass
    try:
        return kind(parameters, lr=settings["lr"], **args)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadSetting(f"--model.optimizer {kind.__name__} does not take {args}: {error}") from error


def scheduler_of(optimizer: Optimizer, settings: Mapping[str, Any], steps: int | None) -> lr_scheduler.LRScheduler:
    """The scheduler that DigitClassifier's settings name, OneCycleLR for so many steps; raises BadSetting."""
    args = dict(settings["scheduler_args"] or {})
    kind = named(lr_scheduler, settings["scheduler"], lr_scheduler.LRScheduler, "--model.scheduler")
    if kind is lr_scheduler.OneCycleLR:
        args = {"max_lr": settings["lr"], "total_steps": steps} | args
    try:
        trial = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings["lr"], momentum=0.9)
        tried = kind(trial, **args)
        trial.step()  # some mistakes show only when it steps
        tried.step(*[1.0] * issubclass(kind, lr_scheduler.ReduceLROnPlateau))
        scheduler = kind(optimizer, **args)
        if isinstance(scheduler, lr_scheduler.OneCycleLR) and scheduler.total_steps < (steps or 0):
            raise ValueError(f"the training has {steps} steps")
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise BadSetting(f"--model.scheduler {kind.__name__} does not take {args}: {error}") from error
    return scheduler
