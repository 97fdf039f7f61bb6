"""HQQ against a plain port of its authors' optimizer (mobiusml/hqq, hqq/core/optimize.py and quantize.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import qlab
from qlab.model.methods import hqq, rtn


def reference(weight, bits, group, *, iters=20, lp_norm=0.7, beta=1e1, kappa=1.01):
    """Quantizer.quantize and optimize_weights_proximal_legacy; returns the values."""
    w_f = weight.reshape(-1, group).float()
    low, high = w_f.min(1, keepdim=True)[0], w_f.max(1, keepdim=True)[0]
    max_v = 2**bits - 1
    scale = (max_v / (high - low)).clamp(max=2e4)
    zero = -low * scale
    if bits == 4:
        zero = torch.round(zero)
    best_error = 1e4
    for _ in range(iters):
        w_q = torch.round(w_f * scale + zero).clamp(0, max_v)
        w_r = (w_q - zero) / scale
        error = w_f - w_r
        shrunk = torch.sign(error) * torch.relu(error.abs() - (1.0 / beta) * error.abs().pow(lp_norm - 1))
        zero = torch.mean(w_q - (w_f - shrunk) * scale, dim=1, keepdim=True)
        beta *= kappa
        current = float(error.abs().mean())
        if current >= best_error:
            break
        best_error = current
    w_q = torch.round(w_f * scale + zero).clamp(0, max_v)
    return ((w_q - zero) / scale).reshape(weight.shape)


def heavy_tailed(out=128, channels=512, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy((rng.standard_t(5, (out, channels)) * 0.02).astype(np.float32))


def errors(values, weight):
    """The p-norm, mean magnitude and mean square of the error."""
    values = values if isinstance(values, torch.Tensor) else torch.from_numpy(values.dequantize())
    magnitudes = (values - weight).abs().double()
    return [float(magnitudes.pow(p).mean()) for p in (0.7, 1, 2)]


@pytest.mark.parametrize("scale", [1, 50])  # the original's beta means weights of some size
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_less_error_than_the_original(bits, group, scale):
    weight = heavy_tailed() * scale
    before = weight.clone()
    mine = errors(hqq.quantize_weight(weight, None, f"uint{bits}-b{group}-min"), weight)
    theirs = errors(reference(weight, bits, group), weight)
    assert all(one < 0.99 * two for one, two in zip(mine, theirs, strict=True)), (mine, theirs)
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    "scheme",
    ["uint4-b64-min/f16", "uint4-b64-asym", "uint3-b64-asym/f16", "int4-b64", "int3-b50/f16", "int2-b32-signed", "int4-channel",
     "int4", "int4-b16x32", "int4-axis1", "nf4", "nf4_dq", "nf4-b64-center", "nvfp4", "fp4-b32"],
)  # fmt: skip
def test_every_kind_of_scheme_gains(scheme):
    weight = heavy_tailed()
    plain, found = rtn.quantize_weight(weight, None, scheme), hqq.quantize_weight(weight, None, scheme)
    assert errors(found, weight)[0] < 0.99 * errors(plain, weight)[0]


def test_a_codebook_that_is_fitted_already_is_not_made_worse():
    weight = heavy_tailed()
    plain, found = rtn.quantize_weight(weight, None, "kmeans4"), hqq.quantize_weight(weight, None, "kmeans4")
    assert errors(found, weight)[0] <= errors(plain, weight)[0]
    assert found.ledger() == plain.ledger()


@pytest.mark.parametrize("scheme", ["uint4-b64-min/f16", "uint2-b64-asym", "int3-b64", "mxfp4"])
def test_no_block_loses(scheme):
    weight = heavy_tailed()
    norm = lambda qt: (qt.dequantize() - weight.numpy()).reshape(-1, qt.scheme.blocks.size)  # noqa: E731
    mine = (np.abs(norm(hqq.quantize_weight(weight, None, scheme))) ** 0.7).sum(1)
    plain = (np.abs(norm(rtn.quantize_weight(weight, None, scheme))) ** 0.7).sum(1)
    assert (mine <= plain * 1.0001).all()


def test_blocks_of_one_value_and_of_zeros():
    weight = torch.zeros(3, 64)
    weight[1] = 0.3
    weight[2, 5] = -1e-30
    for scheme in ("uint4-b64-min", "uint4-b64-asym", "int4-b64"):
        values = hqq.quantize_weight(weight, None, scheme).dequantize()
        assert np.isfinite(values).all()
        assert np.abs(values - weight.numpy()).max() < 1e-6


def test_threads_change_nothing():
    weight = heavy_tailed(1024, 512)
    found = []
    for threads in (1, 3):
        qlab.set_num_threads(threads)
        found.append(hqq.quantize_weight(weight, None, "uint4-b64-min"))
    qlab.set_num_threads(None)
    assert np.array_equal(found[0].payload, found[1].payload)
    assert np.array_equal(found[0].scale, found[1].scale)


@pytest.mark.parametrize("option", [{"p": 0}, {"p": 2}, {"beta": 0}, {"kappa": 0.5}, {"iterations": -1}, {"iterations": 1.5}])
def test_refusals(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        hqq.quantize_weight(torch.ones(2, 64), None, "uint4-b64-min", **option)
    with pytest.raises(ValueError, match="rtn"):
        hqq.quantize_weight(torch.ones(2, 64), None, "q4_0")
