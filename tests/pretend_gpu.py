"""A pytest plugin (`-p pretend_gpu`): Lightning finds a GPU in the machine that nobody asks it to use."""

from collections.abc import Iterator
from unittest import mock

import pytest
from lightning.pytorch.accelerators import CUDAAccelerator


class Found(CUDAAccelerator):
    """Only where Lightning tells what it has found: where it chooses, `auto` would take what is not there."""

    @staticmethod
    def is_available() -> bool:
        return True


@pytest.fixture(scope="session", autouse=True)
def pretend_gpu() -> Iterator[None]:
    with mock.patch("lightning.pytorch.trainer.setup.CUDAAccelerator", Found):
        yield
