"""What runs on a GPU as a CUDA graph."""

import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch


def captured(run: Callable[[], Any], pool: Any, device: torch.device) -> tuple[Callable[[], None], Any]:
    """The replay of what `run` does on the current stream, and what it returned, which each replay writes anew."""
    graph = torch.cuda.CUDAGraph()
    collects = gc.isenabled()
    gc.disable()  # no graph of a training before this is to end in the midst of it
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        found = run()
    except BaseException:
        with suppress(RuntimeError):
            graph.capture_end()
        with suppress(RuntimeError, AttributeError):  # the generator may still take itself for recorded
            generator: Any = torch.cuda.default_generators[device.index or 0]
            generator.graphsafe_set_state(generator.clone_state())
        raise
    finally:
        if collects:
            gc.enable()
    graph.capture_end()
    return graph.replay, found
