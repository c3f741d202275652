"""Layers: dropout draws what torch's draws, but for the random numbers themselves."""

import pytest
import torch
from torch import Tensor, nn

from mnist_lightning.models.layers import Dropout


def dropped(p: float, images: Tensor, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return Dropout(p)(images)


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.999])
def test_dropout_drops_its_share_and_keeps_the_mean(p: float):
    count = 1_000_003  # not a multiple of four, the values that a random number is cut into
    output = dropped(p, torch.ones(count))
    kept = output[output != 0]
    error = 5 * (p * (1 - p) / count) ** 0.5  # five standard deviations
    assert len(kept) / count == pytest.approx(1 - p, abs=error)
    assert kept.unique().tolist() == pytest.approx([1 / (1 - p)], rel=0.01)
    assert output.mean().item() == pytest.approx(1, abs=error / (1 - p))
    neighbours = (output[:-1] != 0) & (output[1:] != 0)  # independent of each other
    assert neighbours.float().mean().item() == pytest.approx((1 - p) ** 2, abs=3 * error)


def test_dropout_is_a_function_of_the_random_state():
    images = torch.rand(50, 60)
    assert torch.equal(dropped(0.5, images), dropped(0.5, images))
    assert not torch.equal(dropped(0.5, images), dropped(0.5, images, seed=1))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dropout_in_any_layout_and_precision(layout: torch.memory_format):
    images = (torch.rand(5, 3, 7, 9) + 1).to(memory_format=layout).to(torch.bfloat16).requires_grad_()
    output = dropped(0.5, images)
    assert output.dtype == torch.bfloat16
    assert output.stride() == images.stride()
    assert set((output / images).unique().tolist()) == {0, 2}
    output.sum().backward()
    assert torch.equal(images.grad, output / images)  # type: ignore[arg-type]


def test_dropout_where_nothing_is_to_be_drawn():
    images = torch.rand(4, 5)
    assert torch.equal(Dropout(0.5).eval()(images), images)
    assert torch.equal(dropped(1.0, images), torch.zeros(4, 5))
    assert torch.equal(dropped(0.0, images), images)
    assert dropped(0.5, images[:0]).shape == (0, 5)  # a rank without images
    assert torch.equal(dropped(0.5, torch.ones(1).expand(8)) != 0, dropped(0.5, torch.ones(8)) != 0)
    assert isinstance(Dropout(0.5), nn.Dropout)
