"""What each command does; and how all of them leave the process that calls them as it was."""

import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from mnist_lightning.console import any_character, say
from mnist_lightning.processes import Interrupted, Signals, end_with_the_first, give_memory_back

Undo = Callable[[], None]
_imported_in = os.getpid()
_one_at_a_time = threading.RLock()  # a command inside another, as in a search, is in its thread


@contextmanager
def guest(program: bool = False) -> Iterator[Signals]:
    """Takes what a command needs of the process, and gives it back however the command ends.

    `program`: the process is ours alone, as `python -m mnist_lightning` is. One command at a time: a second thread
    waits, as random generators, environment and warnings are the whole process's.
    """
    with ExitStack() as stack:
        stack.enter_context(_alone())
        stack.enter_context(warnings.catch_warnings())
        for note in (_environment, _imports, _logs, _random_numbers, _torch):
            stack.callback(note())
        stack.callback(give_memory_back)
        stack.enter_context(any_character())
        signals = Signals(program)
        stack.callback(signals.restore)
        signals.install()
        if os.getpid() != _imported_in and "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)  # forked: OpenMP would wait for threads that only the parent has
        stack.callback(end_with_the_first())
        yield signals


@contextmanager
def session() -> Iterator[Signals]:
    """`guest` for what is called in Python, where Ctrl-C is a KeyboardInterrupt and SIGTERM the session's own."""
    try:
        with guest() as signals:
            yield signals
    except Interrupted as interrupted:
        raise interrupted.for_session() from None


@contextmanager
def _alone() -> Iterator[None]:
    if not _one_at_a_time.acquire(blocking=False):
        say("Waits for what another thread of this process is doing")
        _one_at_a_time.acquire()
    try:
        yield
    finally:
        _one_at_a_time.release()


def _environment() -> Undo:
    before = dict(os.environ)

    def undo() -> None:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)

    return undo


def _imports() -> Undo:
    path, hook = sys.path[:], sys.excepthook

    def undo() -> None:
        sys.path[:], sys.excepthook = path, hook

    return undo


def _logs() -> Undo:
    """Levels and handlers; those of Lightning that it has after its import, if that is still to come."""
    lightnings = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    known = list(logging.root.manager.loggerDict.values())
    loggers = [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate, logger.disabled) for logger in loggers]
    new = [] if "lightning.pytorch" in sys.modules else lightnings

    def undo() -> None:
        for logger, level, handlers, propagate, disabled in before:
            level = logging.INFO if logger in new else level
            if logger.level != level:  # to set it empties the caches of all loggers
                logger.setLevel(level)
            logger.disabled = disabled
            if logger not in new:
                logger.handlers[:], logger.propagate = handlers, propagate

    return undo


def _random_numbers() -> Undo:
    """Python's and NumPy's; where NumPy comes later, it is left as it would then be: at random."""
    before = random.getstate()
    arrays: Any = sys.modules.get("numpy")
    numbers = arrays and arrays.random.get_state()

    def undo() -> None:
        random.setstate(before)
        if arrays:
            arrays.random.set_state(numbers)
        elif "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()

    return undo


def _torch() -> Undo:
    """Threads, random generators and switches; where torch comes later, they are left as its import leaves them."""
    torch: Any = sys.modules.get("torch")
    before = _torch_state(torch) if torch else None

    def undo() -> None:
        torch: Any = sys.modules.get("torch")
        if not hasattr(torch, "default_generator"):  # not imported, or not to its end
            return
        state = before or _fresh_torch_state(torch)
        if state["threads"]:
            torch.set_num_threads(state["threads"])
        torch.use_deterministic_algorithms(state["deterministic"], warn_only=state["warn_only"])
        torch.utils.deterministic.fill_uninitialized_memory = state["filled"]
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = state["cudnn"]
        torch.set_default_dtype(state["dtype"])
        if torch.get_float32_matmul_precision() != state["matmul"]:
            torch.set_float32_matmul_precision(state["matmul"])
        torch.set_grad_enabled(state["grad"])
        torch.default_generator.set_state(state["generator"])
        if state["cuda"] is None:  # only noted down, where CUDA has not been used even now
            torch.cuda.manual_seed_all(torch.initial_seed())
        else:
            torch.cuda.set_rng_state_all(state["cuda"])
        if torch.backends.mps.is_available():
            torch.mps.set_rng_state(state["mps"])

    return undo


def _torch_state(torch: Any) -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "filled": torch.utils.deterministic.fill_uninitialized_memory,
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "dtype": torch.get_default_dtype(),
        "matmul": torch.get_float32_matmul_precision(),
        "grad": torch.is_grad_enabled(),
        "generator": torch.default_generator.get_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None,
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def _fresh_torch_state(torch: Any) -> dict[str, Any]:
    return _torch_state(torch) | {
        "threads": None, "deterministic": False, "warn_only": False, "filled": True, "cudnn": (False, False),
        "dtype": torch.float32, "matmul": "highest", "grad": True,
        "generator": torch.Generator().get_state(), "cuda": None,
    }  # fmt: skip
