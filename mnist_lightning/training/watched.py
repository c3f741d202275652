"""What a step of a module depends on and does besides computing: looked at before it is recorded, and undone."""

import random
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torchmetrics import Metric

METHODS = ("update", "forward", "compute")  # of metrics
CONTAINERS = (list, dict, set, deque)
PLAIN = (int, float, str, bytes, type(None))


def looks_of(module: nn.Module, device: torch.device) -> list[Any]:
    """What Python knows of a module on a device and of its layers, but for metrics, and where their tensors lie."""
    return [
        (path, name, _look(value, device))
        for path, layer in module.named_modules()
        if not isinstance(layer, Metric)
        for name, value in vars(layer).items()
        if name != "_current_fx_name" and not (isinstance(value, dict) and not value)
    ]


def _look(value: Any, device: torch.device) -> Any:
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor):  # what lies elsewhere is a number in the recording
        return value.data_ptr(), value.requires_grad, None if value.device == device else value._version
    if isinstance(value, dict):
        return [(name, _look(part, device)) for name, part in value.items()]
    if isinstance(value, (*CONTAINERS, tuple)):
        return [_look(part, device) for part in value]
    return id(value)


class Watched:
    """What a step tells `self.log` and metrics, to be repeated after each replay; or why it cannot be recorded."""

    def __init__(self, optimization: Any, module: Any, index: int = 0) -> None:
        self.optimization, self.module = optimization, module
        self.reason: str | None = None
        self.index = _Index(index, self)
        self.trainer: Any = vars(module)["_trainer"]
        self._told: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notes in the place of doing: what is logged and counted."""
        module, optimization, self._told = self.module, self.optimization, []
        names, log = vars(module), optimization._log
        metrics = [layer for layer in module.modules() if isinstance(layer, Metric)]
        kept = [{name: vars(metric)[name] for name in METHODS if name in vars(metric)} for metric in metrics]
        names["_trainer"], optimization._log = _Seen(self.trainer, self), self._note_log
        names["log_dict"] = self._note_logs
        for metric in metrics:
            for method in METHODS:
                vars(metric)[method] = self._noting(metric, method)
        try:
            yield
        finally:
            names["_trainer"], optimization._log = self.trainer, log
            del names["log_dict"]
            for metric, own in zip(metrics, kept, strict=True):
                for method in METHODS:
                    vars(metric).pop(method)
                vars(metric).update(own)

    @contextmanager
    def with_trainer(self) -> Iterator[None]:
        """For our own part of a step, which may look at it."""
        names = vars(self.module)
        seen, names["_trainer"] = names["_trainer"], self.trainer
        try:
            yield
        finally:
            names["_trainer"] = seen

    @contextmanager
    def undone(self, tensors: list[Tensor]) -> Iterator[None]:
        """Takes back what is done to the module and to these tensors; notes what a replay would not do again."""
        device = self.trainer.strategy.root_device
        before, numbers = looks_of(self.module, device), _random_numbers(device)
        kept = _Kept(self.module, tensors)
        try:
            yield
        finally:
            if looks_of(self.module, device) != before:
                self.note("it changes what the module knows")
            kept.put_back()
            if _random_numbers(device) != numbers:
                self.note("it draws random numbers that are not the device's")
                random.setstate(numbers[0])
                numpy.random.set_state(numbers[1])
                if numbers[2]:
                    torch.set_rng_state(torch.tensor(numbers[2], dtype=torch.uint8))

    def note(self, reason: str) -> None:
        self.reason = self.reason or reason

    def _note_log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if value is None:
            self.note("it logs what a metric returned: log the metric")
        self._tell(None, (name, value, *args), kwargs)

    def _note_logs(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:
        for name, value in dictionary.items():
            self._note_log(name, value, *args, **kwargs)

    def _noting(self, metric: Any, method: str) -> Any:
        def noted(*args: Any, **kwargs: Any) -> None:
            self._tell((metric, method), args, kwargs)
            if method == "compute":
                self.note("it computes a metric")

        return noted

    def _tell(self, what: Any, args: Any, kwargs: Any) -> None:
        self._told.append((what, *tree_map_only(Tensor, Tensor.detach, (args, kwargs))))  # else its graph stays

    def repeat(self) -> None:
        """Tells `self.log` and metrics what the last replay came to."""
        names, log = vars(self.module), self.optimization._log
        outer, names["_current_fx_name"] = names["_current_fx_name"], "training_step"
        try:
            for told, args, kwargs in self._told:
                args, kwargs = tree_map_only(Tensor, Tensor.clone, (args, kwargs))
                log(*args, **kwargs) if told is None else getattr(*told)(*args, **kwargs)
        finally:
            names["_current_fx_name"] = outer


class _Kept:
    """A module's attributes, what lists and the like in them hold, and the numbers of tensors, as they are now."""

    def __init__(self, module: nn.Module, tensors: list[Tensor]) -> None:
        layers = [vars(layer) for layer in module.modules() if not isinstance(layer, Metric)]
        self._layers = [(attributes, dict(attributes)) for attributes in layers]
        self._containers: dict[int, tuple[Any, Any]] = {}
        self._tensors = {id(tensor): (tensor, tensor.detach().clone()) for tensor in tensors}
        for attributes in layers:
            for value in attributes.values():
                self._walk(value)

    def _walk(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._tensors.setdefault(id(value), (value, value.detach().clone()))
        elif isinstance(value, CONTAINERS) and id(value) not in self._containers:
            self._containers[id(value)] = value, copy(value)
            for part in list(value.values()) if isinstance(value, dict) else list(value):
                self._walk(part)

    def put_back(self) -> None:
        for attributes, kept in self._layers:
            for name in attributes.keys() - kept.keys():
                del attributes[name]
            attributes.update(kept)
        for container, held in self._containers.values():
            container.clear()
            container.extend(held) if isinstance(container, list | deque) else container.update(held)
        with torch.no_grad():
            for tensor, numbers in self._tensors.values():
                tensor.copy_(numbers)


class NumbersFromProcessor(TorchDispatchMode):
    """Notes that a device computes with a tensor that lies with the processor: a recording keeps its number."""

    def __init__(self, watched: Watched) -> None:
        super().__init__()
        self.watched = watched

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = tree_flatten((args, kwargs))[0], tree_flatten(out)[0]
        from_here = any(isinstance(tensor, Tensor) and tensor.device.type == "cpu" for tensor in given)
        if from_here and any(isinstance(tensor, Tensor) and tensor.device.type != "cpu" for tensor in made):
            self.watched.note("it takes numbers from the processor")
        return out


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """What would wait for the device, to look at a number, fails."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls it a prototype
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class _Seen:
    """A Trainer that somebody looks at."""

    def __init__(self, trainer: Any, watched: Watched) -> None:
        vars(self).update(_trainer=trainer, _watched=watched)

    def __getattr__(self, name: str) -> Any:
        self._watched.note(f"it looks at trainer.{name}")
        return getattr(self._trainer, name)


class _Index:
    """A batch's number that notes that somebody looks at it."""

    __class__ = property(lambda self: int)  # type: ignore[assignment]  # none itself: torch would read it unseen

    def __init__(self, value: int, watched: Watched) -> None:
        vars(self).update(_value=value, _watched=watched)

    def __getattr__(self, name: str) -> Any:
        self._watched.note("it looks at batch_idx")
        return getattr(self._value, name)


def _looked_at(method: str) -> Any:
    def look(self: Any, *args: Any) -> Any:
        self._watched.note("it looks at batch_idx")
        return getattr(self._value, method)(*args)

    return look


_OPERATORS = {name for name in dir(int) if name.startswith("__") and callable(getattr(int, name))} - set(dir(object))
for _method in _OPERATORS | {"__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__str__",
                             "__repr__", "__format__"}:  # fmt: skip
    setattr(_Index, _method, _looked_at(_method))


def _random_numbers(device: torch.device) -> Any:
    """Where the generators stand that are not the device's: Python's, NumPy's and torch's."""
    kind, keys, *rest = numpy.random.get_state()
    torchs = [] if device.type == "cpu" else torch.get_rng_state().tolist()
    return random.getstate(), (kind, list(keys), *rest), torchs
