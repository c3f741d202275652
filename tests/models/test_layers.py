"""Layers: dropout draws what torch's draws, but for the random numbers; linear layers compute what torch's do."""

import pytest
import torch
from torch import Tensor, nn

from mnist_lightning.models.layers import Dropout, Linear


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


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


# sizes: divided among threads; too few rows; too few weights; not to be divided by two
@pytest.mark.parametrize(("rows", "width", "size"), [(64, 784, 256), (10, 784, 256), (64, 50, 20), (40, 2000, 101)])
@pytest.mark.parametrize("for_input", [False, True])
def test_linear_and_its_gradients_are_those_of_torch(two_threads, rows: int, width: int, size: int, for_input: bool):
    layer = Linear(width, size)
    plain = nn.Linear(width, size)
    plain.load_state_dict(layer.state_dict())
    images = torch.rand(rows, width)
    found = []
    for each in (layer, plain):
        input = images.clone().requires_grad_(for_input)
        output = each(input)
        output.square().mean().backward()
        gradient = input.grad if for_input else torch.zeros(1)
        found.append((output.detach(), each.weight.grad, each.bias.grad, gradient))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert found[0][1].is_contiguous()  # else each step would copy it


def test_linear_divides_what_is_large(two_threads, monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(torch, "baddbmm", lambda *args, whole=torch.baddbmm: calls.append(1) or whole(*args))
    layer, images = Linear(784, 256), torch.rand(64, 784)
    layer(images)
    assert len(calls) == 1
    layer.eval()(images)
    Linear(784, 100)(images)
    with torch.autocast("cpu", torch.bfloat16):
        layer.train()(images)
    assert len(calls) == 1
