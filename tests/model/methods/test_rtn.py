"""Round to nearest is qlab.quantize; and what all methods refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from a_layer import layer

import qlab
from qlab.model.methods import gptq, rtn
from qlab.model.methods.grid import Grid


@pytest.mark.parametrize("scheme", ["int4-b32", "nf4", "q4_k", "uint3-channel-asym"])
def test_it_is_quantize(scheme):
    weight = torch.randn(8, 256)
    expected, found = qlab.quantize(weight.numpy(), scheme), rtn.quantize_weight(weight, None, scheme)
    assert np.array_equal(found.payload, expected.payload)
    assert np.array_equal(found.dequantize(), expected.dequantize())


def test_other_floats_and_gradients():
    weight = torch.nn.Parameter(torch.randn(4, 32, dtype=torch.bfloat16))
    found = rtn.quantize_weight(weight, None, "int8-channel")
    assert np.array_equal(found.dequantize(), qlab.fake_quantize(weight.detach().float().numpy(), "int8-channel"))


@pytest.mark.parametrize(
    "scheme",
    ["int4", "int4-channel", "int4-b32", "int3-b50-asym/f16", "uint2-b16-min", "nf4", "nf4_dq", "nf4-b64-center", "mxfp4",
     "nvfp4", "kmeans4", "binary", "ternary", "int4-b16x32", "int4-axis1", "e4m3-row", "int8-channel-mse"],
)  # fmt: skip
def test_the_grid_rounds_as_quantize_does(scheme):
    weight, _, _ = layer()
    grid = Grid(weight.numpy(), scheme)
    shifted = weight.numpy() - grid.offset
    codes = grid.codes(shifted, grid.scale, grid.zero)
    expected = grid.nearest
    ties_and_late = 2e-3 if scheme != "nf4_dq" else 0.02  # 1/scale is not rounded here; nf4_dq rounds by the scale before
    assert (codes != expected.codes()).mean() <= ties_and_late
    values = grid.values(expected.codes(), grid.scale, grid.zero) + grid.offset
    assert np.allclose(values, expected.dequantize(), rtol=1e-5, atol=1e-6)
    assert np.array_equal(grid.store(expected.codes()).dequantize(), expected.dequantize())
    assert grid.store(expected.codes()).ledger() == expected.ledger()


@pytest.mark.parametrize(
    "weight, error, message",
    [
        (np.ones((2, 2)), TypeError, "tensor of floats"),
        (torch.ones(2, 2, dtype=torch.int8), TypeError, "int8"),
        (torch.ones(2, 2, 3, 3), ValueError, r"flatten\(1\)"),
        (torch.tensor([[1, torch.nan]]), ValueError, "1 infinities or NaN"),
    ],
)
def test_refusals(weight, error, message):
    with pytest.raises(error, match=message):
        rtn.quantize_weight(weight, None, "int8")


def test_refusals_of_methods_that_need_inputs():
    weight, _, inputs = layer()
    with pytest.raises(ValueError, match="calibration"):
        gptq.quantize_weight(weight, None, "int4")
    with pytest.raises(ValueError, match="128"):
        gptq.quantize_weight(weight[:, :64], inputs, "int4")
    with pytest.raises(ValueError, match="rtn"):
        gptq.quantize_weight(weight, inputs, "q4_0")
