"""Cross-layer equalization: the same function, equal ranges, less error by one scale for a weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qlab
from qlab.model.methods.equalize import channel_ranges, equalize

PAIRS = {
    "linear": (nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), (3, 6)),
    "conv": (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3, bias=False), (2, 3, 7, 7)),
    "depthwise": (nn.Conv2d(3, 8, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), (2, 3, 7, 7)),
    "groups": (nn.Conv1d(4, 12, 3, groups=2), nn.LeakyReLU(), nn.Conv1d(12, 9, 3, groups=3), (2, 4, 9)),
    "from depthwise": (nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 4, 1), (2, 6, 7, 7)),
    "flatten": (nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()), nn.Linear(36, 5), (2, 3, 8, 8)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_function_preserved_and_ranges_equal(name):
    first, between, second, shape = PAIRS[name]
    torch.manual_seed(0)
    with torch.no_grad():
        first.weight.mul_(torch.logspace(-1.5, 1.5, len(first.weight)).reshape(-1, *[1] * (first.weight.ndim - 1)))
    x = torch.randn(shape)
    expected = second(between(first(x))).detach()
    kept = [first.weight.clone(), second.weight.clone()]
    new_first, new_second = equalize(first, second)
    found = new_second(between(new_first(x))).detach()
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    before, after = channel_ranges(first, second), channel_ranges(new_first, new_second)
    torch.testing.assert_close(after[0], after[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(after[0], (before[0] * before[1]).sqrt(), rtol=1e-5, atol=0)
    assert torch.equal(first.weight, kept[0])
    assert torch.equal(second.weight, kept[1])


def test_less_error_with_one_scale_for_a_weight():
    torch.manual_seed(0)
    first, second, x = nn.Linear(32, 64), nn.Linear(64, 16), torch.randn(200, 32)
    with torch.no_grad():
        spread = torch.logspace(-1, 1, 64)[:, None]
        first.weight.mul_(spread)
        first.bias.mul_(spread[:, 0])
        second.weight.div_(spread.T)
    exact = second(first(x).relu()).detach()

    def error(one, two):
        rounded = [torch.from_numpy(qlab.fake_quantize(layer.weight.detach().numpy(), "int8")) for layer in (one, two)]
        hidden = (x @ rounded[0].T + one.bias).relu()
        return float((hidden @ rounded[1].T + two.bias - exact).detach().square().mean())

    assert error(*equalize(first, second)) < error(first, second) / 20


def test_channels_of_zeros_stay():
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    with torch.no_grad():
        first.weight[1] = 0
        second.weight[:, 2] = 0
    one, two = equalize(first, second)
    assert torch.equal(one.weight[2], first.weight[2])
    assert torch.equal(two.weight[:, 1], second.weight[:, 1])
    assert torch.equal(one.bias[1], first.bias[1])


def test_refusals():
    with pytest.raises(ValueError, match="4 channels and the second reads 5"):
        equalize(nn.Linear(3, 4), nn.Linear(5, 2))
    with pytest.raises(ValueError, match="8"):
        equalize(nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1))
    with pytest.raises(TypeError, match="ReLU"):
        equalize(nn.Linear(3, 4), nn.ReLU())
