"""AWQ: a gain where inputs have large channels, and none is lost where they have not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from a_layer import layer, output_error

import qlab
from qlab.model.methods import awq, rtn
from qlab.model.record import inputs_of


def reference(weight, x, scheme):
    """mit-han-lab/llm-awq, auto_scale.py, _search_module_scale: the loss of each ratio, with our rounding."""
    x_max = x.abs().view(-1, x.shape[-1]).mean(0)
    losses, all_scales = [], []
    for ratio in range(20):
        scales = x_max.pow(ratio / 20).clamp(min=1e-4).view(-1)
        scales = scales / (scales.max() * scales.min()).sqrt()
        quantized = torch.from_numpy(rtn.quantize_weight(weight * scales, None, scheme).dequantize()) / scales
        losses.append(float((x @ (quantized - weight).T).pow(2).mean()))
        all_scales.append(scales)
    return all_scales[int(np.argmin(losses))], min(losses)


@pytest.mark.parametrize("scheme", ["int4-b32", "int4-channel", "uint3-b64-asym", "nf4", "q4_0"])
def test_less_error_than_rounding_to_nearest(scheme):
    weight, x, inputs = layer()
    before = weight.clone()
    plain = output_error(rtn.quantize_weight(weight, None, scheme), weight, x)
    scales = awq.search_scales(weight, inputs, scheme)
    found = awq.quantize_weight(weight, inputs, scheme)
    values = torch.from_numpy(found.dequantize())
    assert output_error(values / scales, weight, x) < 0.7 * plain
    torch.testing.assert_close((x / scales) @ values.T, x @ (values / scales).T, rtol=1e-4, atol=1e-4)  # how a layer uses it
    assert torch.equal(weight, before)


@pytest.mark.parametrize("scheme", ["int4-b32", "uint3-b64-asym"])
def test_it_finds_what_the_original_search_finds(scheme):
    weight, x, _ = layer(rows=512)
    scales, loss = reference(weight, x, scheme)
    found = awq.search_scales(weight, inputs_of(x), scheme)
    torch.testing.assert_close(found, scales, rtol=1e-4, atol=1e-5)
    quantized = torch.from_numpy(awq.quantize_weight(weight, inputs_of(x), scheme).dequantize()) / found
    assert output_error(quantized, weight, x) == pytest.approx(loss, rel=1e-3)


def test_never_worse_than_rounding_to_nearest_on_the_sample():
    generator = torch.Generator().manual_seed(0)
    for seed in range(5):
        weight, _, _ = layer(32, 64, seed=seed)
        x = torch.randn(300, 64, generator=generator)
        inputs = inputs_of(x)
        scales = awq.search_scales(weight, inputs, "int4-channel")
        quantized = torch.from_numpy(awq.quantize_weight(weight, inputs, "int4-channel").dequantize()) / scales
        assert output_error(quantized, weight, x) <= output_error(rtn.quantize_weight(weight, None, "int4-channel"), weight, x)


def test_silent_channels_do_no_harm():
    weight, x, _ = layer()
    x[:, 7] = 0
    scales = awq.search_scales(weight, inputs_of(x), "int4-b32")
    assert torch.isfinite(scales).all()
    assert (scales > 0).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "steps=0"),
        ({"scales": torch.zeros(128)}, "positive factors"),
        ({"scales": torch.ones(3)}, "128 positive"),
    ],
)
def test_refusals(options, message):
    weight, _, inputs = layer()
    with pytest.raises(ValueError, match=message):
        awq.quantize_weight(weight, inputs, "int4", **options)
    with pytest.raises(ValueError, match="AWQ needs"):
        awq.quantize_weight(weight, None, "int4")


@pytest.mark.parametrize("fake", [False, True])
def test_layers_multiply_their_inputs_by_the_scales(fake):
    weight, x, inputs = layer()
    model = torch.nn.Sequential(torch.nn.Linear(128, 96, bias=False)).eval().requires_grad_(False)
    model[0].weight.copy_(weight)
    recipe = qlab.Recipe("int4-b32", method="awq")
    found = qlab.quantize_model(model, recipe, [x], fake=fake, show=False)(x)
    scales = awq.search_scales(weight, inputs, "int4-b32")
    assert scales.max() > 1.5 * scales.min()
    expected = x @ (torch.from_numpy(awq.quantize_weight(weight, inputs, "int4-b32").dequantize()) / scales).T
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
