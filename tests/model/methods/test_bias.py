"""Bias correction: the mean of the outputs is what it was, and the error that is left is the variance."""

from __future__ import annotations

import pytest
import torch
from a_layer import layer

from qlab.model.methods import rtn
from qlab.model.methods.bias import correct_bias
from qlab.model.record import inputs_of


def test_means_are_kept_and_the_error_falls():
    weight, x, _ = layer()
    x, bias = x + torch.linspace(-1, 1, 128), torch.randn(96)
    before = bias.clone()
    quantized = rtn.quantize_weight(weight, None, "int3-channel")
    values = torch.from_numpy(quantized.dequantize())
    corrected = correct_bias(weight, quantized, inputs_of(x), bias)
    exact = x @ weight.T + bias
    error, plain = x @ values.T + corrected - exact, x @ values.T + bias - exact
    assert error.mean(0).abs().max() < 1e-5 < plain.mean(0).abs().max()
    torch.testing.assert_close(error.square().mean(0), plain.var(0, unbiased=False), rtol=1e-3, atol=1e-6)
    assert error.square().mean() < 0.95 * plain.square().mean()
    assert torch.equal(bias, before)
    torch.testing.assert_close(correct_bias(weight, values, inputs_of(x)), corrected - bias, rtol=1e-4, atol=1e-5)


def test_refusals():
    weight, _, inputs = layer()
    with pytest.raises(ValueError, match="calibration"):
        correct_bias(weight, weight, None)
    with pytest.raises(ValueError, match=r"\(5,\)"):
        correct_bias(weight, weight, inputs, torch.zeros(5))
    with pytest.raises(ValueError, match=r"\(96, 3\)"):
        correct_bias(weight, weight[:, :3], inputs)
