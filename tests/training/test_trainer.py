"""make_trainer: what it sets up in the process, for speed."""

import os
import resource
import sys

import pytest
import torch

from mnist_lightning.training.trainer import make_trainer


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the switch costs nothing")
def test_optimizers_do_not_look_for_a_gpu_at_each_step(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as Lightning's import leaves it
    make_trainer({"accelerator": "cpu"}, [])
    assert "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_kept():
    make_trainer({"accelerator": "cpu"}, [])

    def faults(megabytes: int) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(megabytes << 18)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert sum([faults(20) for _ in range(10)][5:]) < 1000  # of 4 kB each: 5,000 the first time
