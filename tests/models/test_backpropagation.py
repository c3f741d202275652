"""The articles' check of back-propagation: two neurons in a row, by hand and by autograd."""

from math import exp

import pytest
import torch
import torch.nn.functional as F
from torch import nn

W1, B1, W2, B2 = 1.58, -0.14, 2.45, -0.11
INPUT, TARGET, RATE = 0.8, 1.0, 0.1


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def by_hand(w1: float, b1: float, w2: float, b2: float) -> tuple[float, list[float]]:
    """The output, and the derivatives of (output - TARGET)**2 by the chain rule."""
    hidden = sigmoid(w1 * INPUT + b1)
    output = sigmoid(w2 * hidden + b2)
    at_output = 2 * (output - TARGET) * output * (1 - output)
    at_hidden = at_output * w2 * hidden * (1 - hidden)
    return output, [at_hidden * INPUT, at_hidden, at_output * hidden, at_output]


@pytest.fixture
def network() -> nn.Sequential:
    network = nn.Sequential(nn.Linear(1, 1), nn.Sigmoid(), nn.Linear(1, 1), nn.Sigmoid()).double()
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), (W1, B1, W2, B2), strict=True):
            parameter.fill_(value)
    return network


def test_by_hand_is_autograd(network: nn.Sequential):
    output, derivatives = by_hand(W1, B1, W2, B2)
    found = network(torch.tensor([[INPUT]], dtype=torch.double))
    F.mse_loss(found, torch.tensor([[TARGET]], dtype=torch.double)).backward()
    assert found.item() == pytest.approx(output, abs=1e-12)
    gradients = [parameter.grad.item() for parameter in network.parameters() if parameter.grad is not None]
    assert gradients == pytest.approx(derivatives, abs=1e-12)


def test_the_articles_numbers(network: nn.Sequential):
    image, target = torch.tensor([[INPUT]], dtype=torch.double), torch.tensor([[TARGET]], dtype=torch.double)
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE)
    assert round(network(image).item(), 4) == 0.8506
    F.mse_loss(network(image), target).backward()
    optimizer.step()
    assert [round(p.item(), 4) for p in network.parameters()] == [1.5814, -0.1383, 2.4529, -0.1062]
    assert round(network(image).item(), 4) == 0.8515


def test_the_articles_numbers_by_hand():
    output, derivatives = by_hand(W1, B1, W2, B2)
    moved = [value - RATE * d for value, d in zip((W1, B1, W2, B2), derivatives, strict=True)]
    assert round(output, 4) == 0.8506
    assert [round(value, 4) for value in moved] == [1.5814, -0.1383, 2.4529, -0.1062]
    assert round(by_hand(*moved)[0], 4) == 0.8515
