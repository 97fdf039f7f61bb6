"""AdaRound: only up or down, less error than nearest, and close to the best choice where that can be tried out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from a_layer import layer, output_error

from qlab.model.methods import adaround, rtn
from qlab.model.methods.grid import Grid
from qlab.model.record import inputs_of


@pytest.mark.parametrize("scheme", ["int4-channel", "int3-channel", "uint3-b32-asym", "uint4-b64-min", "nf4", "fp4-b32"])
def test_less_error_than_rounding_to_nearest(scheme):
    weight, x, inputs = layer()
    before = weight.clone()
    plain, found = rtn.quantize_weight(weight, None, scheme), adaround.quantize_weight(weight, inputs, scheme, steps=100)
    assert output_error(found, weight, x) < 0.6 * output_error(plain, weight, x)
    assert np.array_equal(found.scale, plain.scale)
    assert found.ledger() == plain.ledger()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("scheme", ["int4-channel", "uint3-b32-asym", "uint4-b64-min", "nf4"])
def test_each_weight_goes_up_or_down(scheme):
    weight, _, inputs = layer(16)
    grid = Grid(weight.numpy(), scheme)
    around = grid.neighbours(weight.numpy(), grid.scale, grid.zero)
    low, high = (grid.values(codes, grid.scale, grid.zero) for codes in around)
    inside = (low <= weight.numpy()) & (weight.numpy() <= high)
    assert inside.mean() > 0.95  # but for what is clipped, since zero points are rounded
    found = adaround.quantize_weight(weight, inputs, scheme, steps=20).dequantize()
    assert (np.isclose(found, low, atol=1e-6) | np.isclose(found, high, atol=1e-6)).all()


def test_near_the_best_of_all_choices():
    torch.manual_seed(0)
    ratios, plain = [], []
    for _ in range(8):
        weight, x = torch.randn(1, 10), torch.randn(40, 5) @ torch.randn(5, 10) + 0.3 * torch.randn(40, 10)
        grid = Grid(weight.numpy(), "int3-channel")
        low, high = (grid.values(codes, grid.scale, None)[0] for codes in grid.neighbours(weight.numpy(), grid.scale, None))
        ups = np.array(list(itertools.product([False, True], repeat=10)))
        errors = (((np.where(ups, high, low) - weight.numpy()) @ x.numpy().T) ** 2).mean(1)
        found = output_error(adaround.quantize_weight(weight, inputs_of(x), "int3-channel"), weight, x)
        assert found >= errors.min() * 0.999
        ratios.append(found / errors.min())
        plain.append(output_error(rtn.quantize_weight(weight, None, "int3-channel"), weight, x) / errors.min())
    assert np.median(ratios) < 0.4 * np.median(plain)


@pytest.mark.parametrize("scheme", ["int4-channel", "int3-channel"])
def test_learning_alone_gains_and_its_second_term_makes_choices_hard(scheme, monkeypatch):
    monkeypatch.setattr(adaround, "_settled", lambda up, *_: up)  # without the flips at the end
    weight, x, inputs = layer()
    plain = output_error(rtn.quantize_weight(weight, None, scheme), weight, x)
    error = {s: output_error(adaround.quantize_weight(weight, inputs, scheme, strength=s), weight, x) for s in (0.1, 1e-6)}
    assert error[0.1] < 0.87 * plain
    assert error[0.1] < 0.97 * error[1e-6]  # where choices that stayed soft are cut


def test_deterministic_and_without_global_randomness():
    weight, _, inputs = layer(16)
    state = torch.get_rng_state()
    found = [adaround.quantize_weight(weight, inputs, "int4-channel", steps=30).payload for _ in range(2)]
    assert np.array_equal(*found)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_output_loses():
    weight, x, inputs = layer(rows=400)
    error = lambda qt: ((x @ (torch.from_numpy(qt.dequantize()) - weight).T) ** 2).mean(0)  # noqa: E731
    found = adaround.quantize_weight(weight, inputs, "int2-channel-mse", steps=1)
    assert (error(found) <= error(rtn.quantize_weight(weight, None, "int2-channel-mse")) * 1.0001).all()


@pytest.mark.parametrize("option", [{"steps": 0}, {"learning_rate": 0}, {"strength": -1.0}])
def test_refusals(option):
    weight, _, inputs = layer(4)
    with pytest.raises(ValueError, match=next(iter(option))):
        adaround.quantize_weight(weight, inputs, "int4", **option)
    with pytest.raises(ValueError, match="AdaRound needs"):
        adaround.quantize_weight(weight, None, "int4")
