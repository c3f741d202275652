"""Tape: torch's operations, recorded and done again on the same tensors, as a CUDA graph does on a GPU."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, out in self.operations:
                given = {_lies(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
                for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, Tensor) and old is not new and _lies(old) not in given and old.numel():
                        old.detach().copy_(new.detach())


def _lies(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
