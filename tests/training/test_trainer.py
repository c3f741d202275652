"""make_trainer: what it sets up in the process, for speed."""

import os
import subprocess
import sys

import pytest
import torch

from mnist_lightning.training.trainer import make_trainer


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the switch costs nothing")
def test_optimizers_do_not_look_for_a_gpu_at_each_step(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as Lightning's import leaves it
    make_trainer({"accelerator": "cpu"}, [])
    assert "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ


FAULTS = """
import resource
import torch
from mnist_lightning.training.trainer import make_trainer

make_trainer({"accelerator": "cpu"}, [])
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(20 << 18) for _ in range(3)]  # of 20 MB
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_kept():
    """In a process of its own: what glibc does by itself depends on what was freed before."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert sum(map(int, done.stdout.split()[5:])) < 1000  # of 4 kB each: 15,000 the first time
