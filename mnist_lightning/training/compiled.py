"""Several optimizer steps as one compiled call, where an eager step waits for Python.

torch.compile makes C++ of AT_ONCE whole steps: forward, backward and update. What such a call can take is told by
`why_not`; all else goes step by step, eager. Which batches are taken together follows from their place in the training,
so that a resumed one takes the same ones together. (Only the last few before `max_steps` are taken one by one.)
"""

import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FunctionType
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from mnist_lightning.console import say
from mnist_lightning.errors import UserError, first_line
from mnist_lightning.models.classifier import DigitClassifier
from mnist_lightning.models.layers import Linear, Network
from mnist_lightning.models.metrics import Accuracy
from mnist_lightning.training.trainer import SMALL_STEP

AT_ONCE = 5  # steps of a call: more compile longer
SIZES = (50, 10, 5)  # steps taken together, by several calls: the most between two rows of metrics.csv
COMPILING = 30.0  # seconds, where nothing is in torch's cache
SAVED = 0.2e-3  # seconds a step, of a small network
# Besides activations that draw nothing; and what holds the metrics
LAYERS = {nn.Sequential, Network, nn.Flatten, nn.Linear, Linear, nn.ModuleDict, Accuracy}
OTHERS = (nn.RReLU, nn.MultiheadAttention)  # among torch's activations
CONSTANTS = {"momentum", "dampening", "nesterov", "weight_decay", "betas", "eps", "decoupled_weight_decay"}
STATE = {SGD: ("momentum_buffer",), Adam: ("step", "exp_avg", "exp_avg_sq"), AdamW: ("step", "exp_avg", "exp_avg_sq")}


def why_not(trainer: Trainer, loader: Any) -> str | None:
    """What keeps the steps of a training from being compiled, in a few words; None: nothing."""
    module, optimizer = trainer.lightning_module, trainer.optimizers[0]
    strange = {type(layer).__name__ for layer in module.modules() if layer is not module and not _is_known(layer)}
    device, whole = trainer.strategy.root_device.type, loader.size // loader.global_batch_size if loader else 0
    reasons = {
        "they are compiled for one process on a CPU": trainer.world_size > 1 or device != "cpu",
        "they are compiled for MLP, and what is made of it without steps of its own": not is_ours(module),
        f"{', '.join(sorted(strange))} is not compiled": bool(strange),
        "they are compiled for the batches of MNISTDataModule": loader is None,
        f"an epoch has fewer than {AT_ONCE} whole batches": whole < AT_ONCE,
        "a hook looks into each step": is_hooked(module),
        "a schedule that goes by steps is not compiled": "step" in [c.interval for c in trainer.lr_scheduler_configs],
        f"{type(optimizer).__name__} as it is set is not compiled": type(optimizer) not in STATE or _is_odd(optimizer),
        f"precision {trainer.precision} is not compiled": str(trainer.precision) != "32-true",
        "clipping is not compiled": bool(trainer.gradient_clip_val),
        "StochasticWeightAveraging takes a step with the last gradients": any(
            isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks
        ),
    }
    found = next((reason for reason, holds in reasons.items() if holds), None)
    return found or (None if has_compiler() else "there is no C++ compiler (install g++)")


def is_ours(module: Any) -> bool:
    own = ("training_step", "_step", "_tell", "_outputs", "log")
    return isinstance(module, DigitClassifier) and all(
        getattr(type(module), name) is getattr(DigitClassifier, name) and name not in vars(module) for name in own
    )


def _is_known(layer: nn.Module) -> bool:
    activation = type(layer).__module__ == nn.modules.activation.__name__ and not isinstance(layer, OTHERS)
    return activation or type(layer) in LAYERS


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody is called in the middle of a step."""
    of_layers = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    of_parameters = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return any(getattr(layer, name) for layer in module.modules() for name in of_layers) or any(
        getattr(parameter, name) for parameter in module.parameters() for name in of_parameters
    )


def _is_odd(optimizer: Optimizer) -> bool:
    group = optimizer.param_groups[0]
    return (
        len(optimizer.param_groups) > 1
        or any(group.get(name) for name in ("amsgrad", "differentiable", "maximize"))
        or isinstance(group["lr"], Tensor)
        or not all(parameter.requires_grad for parameter in group["params"])
        or is_changed(optimizer)
    )


def is_changed(optimizer: Optimizer) -> bool:
    """Whether somebody, such as a schedule, has changed more than the learning rate: that alone is no constant."""
    group = optimizer.param_groups[0]
    return any(group[name] != optimizer.defaults[name] for name in CONSTANTS if name in group)


def is_worth_it(trainer: Trainer, loader: Any) -> bool:
    """Whether compiling takes less time than it saves in a whole training; the same on each machine."""
    epochs = float("inf") if trainer.max_epochs in (None, -1) else trainer.max_epochs
    limits = [epochs * trainer.num_training_batches] + [trainer.max_steps] * (trainer.max_steps >= 0)
    size = sum(parameter.numel() for parameter in trainer.lightning_module.parameters()) * loader.global_batch_size
    return size < SMALL_STEP and min(limits) * SAVED > COMPILING


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which torch.compile calls."""
    from torch._inductor import config

    known = config.cpp.cxx if isinstance(config.cpp.cxx, list | tuple) else [config.cpp.cxx]
    return any(shutil.which(name) for name in [*known, "g++", "clang++"] if name)


class NotCompiledError(UserError):
    """The compiler failed."""


class CompiledSteps:
    """AT_ONCE steps of a module and its optimizer: images [AT_ONCE * n, 1, 28, 28] and labels in, losses out.

    Parameters and the optimizer's state are changed in their place, as an eager step does.
    """

    def __init__(self, module: DigitClassifier, optimizer: Optimizer) -> None:
        self.optimizer, self.kind = optimizer, type(optimizer)
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        options: dict[str, Any] = {"cpp_wrapper": True, "compile_threads": 1}
        if keep := getattr(torch.compiler, "keep_tensor_guards_unsafe", None):  # what else changes is looked at here
            options["guard_filter_fn"] = keep
        self._run = torch.compile(_steps(module, optimizer), fullgraph=True, dynamic=False, options=options)
        self.compiled = False

    @property
    def ready(self) -> bool:
        """Whether the optimizer has the state that its first step makes, and is set as it was."""
        plain = self.kind is SGD and not self.optimizer.param_groups[0]["momentum"]
        has_state = plain or all(self.optimizer.state.get(parameter) for parameter in self.parameters)
        return has_state and not is_changed(self.optimizer)

    def sizes_at(self, done: int) -> tuple[int, ...]:
        """How many steps can be taken together, the most first."""
        return () if done % AT_ONCE else SIZES

    def rates(self, ahead: int = 0) -> None:
        """Schedules change nothing between the steps of a call."""

    def __call__(self, batches: list[Any], rates: list[Any], first: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All images and labels, losses [steps] and logits of all images, after the steps."""
        states = [
            [self.optimizer.state[p][name] for p in self.parameters if name in self.optimizer.state.get(p, ())]
            for name in STATE[self.kind]
        ]
        lr = torch.tensor(self.optimizer.param_groups[0]["lr"])
        if not self.compiled:
            say("The steps are being compiled, which takes half a minute where it was never done")
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        calls = [parts.split(len(labels) // len(batches) * AT_ONCE) for parts in (images, labels)]
        try:
            with torch.no_grad(), nullcontext() if self.compiled else _quietly():
                found = [self._run(self.parameters, states, lr, *call) for call in zip(*calls, strict=True)]
        except Exception as error:  # whatever a compiler comes to
            raise NotCompiledError(
                f"--loop.step compiled: the steps cannot be compiled ({first_line(error)}): give --loop.step eager"
            ) from error
        self.compiled = self.optimizer._opt_called = True  # the latter is what schedulers ask
        for parameter in self.parameters:
            parameter.grad = None  # an eager step's
        losses, logits = (torch.cat(parts) for parts in zip(*found, strict=True))
        return images, labels, losses, logits


def _steps(module: DigitClassifier, optimizer: Optimizer) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function that is compiled."""
    group = optimizer.param_groups[0] | {name: optimizer.defaults[name] for name in CONSTANTS & set(optimizer.defaults)}
    at = {id(parameter): name for name, parameter in module.named_parameters()}
    names = [at[id(parameter)] for parameter in group["params"]]
    outputs = _Outputs(module)

    def loss_of(parameters: tuple[Tensor, ...], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        known = {f"module.{name}": parameter for name, parameter in zip(names, parameters, strict=True)}
        return torch.func.functional_call(outputs, known, (images, labels))  # type: ignore[no-any-return]

    gradients = torch.func.grad_and_value(loss_of, has_aux=True)

    def run(parameters: list[Tensor], states: list[list[Tensor]], lr: Tensor, images: Tensor, labels: Tensor) -> Any:
        size = len(labels) // AT_ONCE
        losses, logits = [], []
        for step in range(AT_ONCE):
            part = slice(step * size, (step + 1) * size)
            grads, (loss, outputs) = gradients(tuple(parameters), images[part], labels[part])
            _update(group, type(optimizer), parameters, list(grads), states, lr)
            losses.append(loss)
            logits.append(outputs)
        return torch.stack(losses), torch.cat(logits)

    # torch compiles the same code eight times at most: each training has its own
    return FunctionType(run.__code__.replace(), run.__globals__, run.__name__, None, run.__closure__)


class _Outputs(nn.Module):
    def __init__(self, module: DigitClassifier) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self.module._outputs((images, labels))


def _update(
    group: dict[str, Any],
    kind: type,
    parameters: list[Tensor],
    grads: list[Tensor],
    states: list[list[Tensor]],
    lr: Any,
) -> None:
    """The optimizer's step, by torch's own functions."""
    given = {"weight_decay": group["weight_decay"], "maximize": False, "foreach": False}
    if kind is SGD:
        buffers: Any = states[0] or [None] * len(parameters)
        momentum = {name: group[name] for name in ("momentum", "dampening", "nesterov")}
        sgd(parameters, grads, buffers, has_sparse_grad=False, lr=lr, **momentum, **given)
        return
    steps, averages, squares = states
    beta1, beta2 = group["betas"]
    decoupled = kind is AdamW or bool(group.get("decoupled_weight_decay"))
    adam(
        parameters, grads, averages, squares, [], steps, capturable=True, amsgrad=False, beta1=beta1, beta2=beta2,
        lr=lr, eps=group["eps"], decoupled_weight_decay=decoupled, **given,
    )  # fmt: skip


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the compiler's parts say of themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.utils.cpp_extension", "torch._inductor", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages that they import, as errors where the user wants that
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
