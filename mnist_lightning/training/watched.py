"""Watched: a step of anybody's module, seen while it is recorded: what it logs, counts, changes and looks at."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torchmetrics import Metric

METHODS = ("update", "forward")  # of metrics


def looks_of(module: nn.Module) -> dict[Any, Any]:
    """What Python knows of a module and its layers, but for metrics: plain values, and where tensors lie."""
    found: dict[Any, Any] = {}
    for path, layer in module.named_modules():
        if isinstance(layer, Metric):
            continue
        for name, value in vars(layer).items():
            if isinstance(value, int | float | str):
                found[path, name] = value
            elif isinstance(value, Tensor):
                found[path, name] = value.data_ptr()
            elif isinstance(value, list | tuple | set):
                found[path, name] = len(value)
            elif name in ("_parameters", "_buffers"):
                found[path, name] = [(v.data_ptr(), v.requires_grad) for v in value.values() if v is not None]
    found.pop(("", "_current_fx_name"), None)
    return found


class Watched:
    """What a step tells `self.log` and metrics, to be repeated after each replay; or why it cannot be recorded."""

    def __init__(self, optimization: Any, module: Any, index: int) -> None:
        self.optimization, self.module = optimization, module
        self.reason: str | None = None
        self.index = _Index(index)
        self.index.watched = self
        self._told: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Records in the place of doing: what is logged and counted; notes what a replay would not do again."""
        module, optimization, self._told = self.module, self.optimization, []
        names, log = vars(module), optimization._log
        metrics = [layer for layer in module.modules() if isinstance(layer, Metric)]
        kept = [{name: vars(metric)[name] for name in METHODS if name in vars(metric)} for metric in metrics]
        trainer, before, drawn = names["_trainer"], looks_of(module), _random_numbers()
        known = [(vars(layer), _plain(vars(layer))) for layer in module.modules() if not isinstance(layer, Metric)]
        names["_trainer"], optimization._log = _Seen(trainer, self), self._note_log
        names["log_dict"] = self._note_logs
        for metric in metrics:
            for method in METHODS:
                vars(metric)[method] = self._noting(metric, method)
        try:
            yield
        finally:
            names["_trainer"], optimization._log = trainer, log
            del names["log_dict"]
            for metric, own in zip(metrics, kept, strict=True):
                for method in METHODS:
                    vars(metric).pop(method)
                vars(metric).update(own)
            if looks_of(module) != before:
                self._note("it changes what the module knows")
                for attributes, plain in known:
                    _put_back(attributes, plain)
            if _random_numbers() != drawn:
                self._note("it draws random numbers that are not the device's")
                random.setstate(drawn[0])
                numpy.random.set_state(drawn[1])
                torch.set_rng_state(torch.tensor(drawn[2], dtype=torch.uint8))

    def _note_log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if value is None:
            self._note("it logs what a metric returned: log the metric")
        self._told.append((None, (name, value, *args), kwargs))

    def _note_logs(self, values: Any, *args: Any, **kwargs: Any) -> None:
        for name, value in values.items():
            self._note_log(name, value, *args, **kwargs)

    def _noting(self, metric: Any, method: str) -> Any:
        def note(*args: Any, **kwargs: Any) -> None:
            self._told.append(((metric, method), args, kwargs))

        return note

    def _note(self, reason: str) -> None:
        self.reason = self.reason or reason

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


class _Seen:
    """A Trainer that somebody looks at."""

    def __init__(self, trainer: Any, watched: Watched) -> None:
        vars(self).update(_trainer=trainer, _watched=watched)

    def __getattr__(self, name: str) -> Any:
        self._watched._note(f"it looks at trainer.{name}")
        return getattr(self._trainer, name)


class _Index(int):
    """A batch's number that notes that somebody looks at it."""

    watched: Watched | None = None


def _looked_at(method: str) -> Any:
    def look(self: _Index, *args: Any) -> Any:
        if self.watched is not None:
            self.watched._note("it looks at batch_idx")
        return getattr(int, method)(self, *args)

    return look


for _method in (
    "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__mod__", "__floordiv__", "__truediv__",
    "__divmod__", "__pow__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__bool__", "__index__",
    "__int__", "__float__", "__hash__", "__str__", "__repr__", "__format__", "__and__", "__or__",
):  # fmt: skip
    setattr(_Index, _method, _looked_at(_method))


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    kinds = int | float | str | list | set
    return {
        name: copy(v) for name, v in attributes.items() if isinstance(v, kinds) or (type(v) is dict and name[0] != "_")
    }


def _put_back(attributes: dict[str, Any], kept: dict[str, Any]) -> None:
    for name in _plain(attributes).keys() - kept.keys():
        del attributes[name]
    for name, value in kept.items():
        known = attributes[name]
        if isinstance(known, list):
            known[:] = value
        elif isinstance(known, set | dict):
            known.clear()
            known.update(value)
        else:
            attributes[name] = value


def _random_numbers() -> Any:
    """Where Python's, NumPy's and torch's generators on the CPU stand."""
    kind, keys, *rest = numpy.random.get_state()
    return random.getstate(), (kind, list(keys), *rest), torch.get_rng_state().tolist()
