"""GPTQ against a plain port of its authors' loop (IST-DASLab/gptq, gptq.py and quant.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from a_layer import layer, output_error

from qlab.model.methods import gptq, rtn
from qlab.model.record import inputs_of


class Quantizer:
    """quant.py: per row, asymmetric."""

    def __init__(self, bits):
        self.maxq = 2**bits - 1

    def find_params(self, x):
        low, high = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
        empty = (low == 0) & (high == 0)
        low[empty], high[empty] = -1, 1
        self.scale = (high - low) / self.maxq
        self.zero = torch.round(-low / self.scale)
        return self

    def quantize(self, x):
        steps = torch.clamp(torch.round(x / self.scale) + self.zero, 0, self.maxq)
        return self.scale * (steps - self.zero)


def reference(weight, hessian, bits, groupsize=-1, *, act_order=False, percdamp=0.01, blocksize=128):
    """gptq.py, fasterquant, with static groups where columns are reordered; float32 as there."""
    W, H = weight.clone(), hessian.float().clone()
    columns = W.shape[1]
    quantizer = Quantizer(bits).find_params(W)
    static = range(0, columns, groupsize) if act_order and groupsize > 0 else ()
    groups = [Quantizer(bits).find_params(W[:, i : i + groupsize]) for i in static]
    if act_order:
        perm = torch.argsort(torch.diag(H), descending=True)
        W, H = W[:, perm], H[perm][:, perm]
    Q = torch.zeros_like(W)
    H[range(columns), range(columns)] += percdamp * torch.mean(torch.diag(H))
    Hinv = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    for i1 in range(0, columns, blocksize):
        i2 = min(i1 + blocksize, columns)
        W1, Q1, Err1, Hinv1 = W[:, i1:i2].clone(), Q[:, i1:i2], torch.zeros_like(W[:, i1:i2]), Hinv[i1:i2, i1:i2]
        for i in range(i2 - i1):
            w, d = W1[:, i], Hinv1[i, i]
            if groupsize > 0 and act_order:
                quantizer = groups[perm[i1 + i] // groupsize]
            elif groupsize > 0 and (i1 + i) % groupsize == 0:
                quantizer.find_params(W[:, (i1 + i) : (i1 + i + groupsize)])
            q = quantizer.quantize(w)
            Q1[:, i] = q
            err1 = (w - q) / d
            W1[:, i:] -= err1.unsqueeze(1) @ Hinv1[i, i:].unsqueeze(0)
            Err1[:, i] = err1
        W[:, i2:] -= Err1 @ Hinv[i1:i2, i2:]
    return Q[:, torch.argsort(perm)] if act_order else Q


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group", [-1, 32, 128])
@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("outliers", [0, 4])
def test_no_larger_error_than_the_reference(bits, group, act_order, outliers):
    """At its own options: it finds scales of groups on the way, unless columns are reordered."""
    mine, theirs = 0.0, 0.0
    options = {"act_order": act_order, "static_groups": act_order or group < 0}
    for seed in range(3):
        weight, x, inputs = layer(64, 320, seed=seed, outliers=outliers)
        scheme = f"uint{bits}-asym-{'channel' if group < 0 else f'b{group}'}"
        mine += output_error(gptq.quantize_weight(weight, inputs, scheme, **options), weight, x)
        theirs += output_error(reference(weight, inputs.hessian, bits, group, act_order=act_order), weight, x)
    assert mine <= theirs * 1.005  # a tie that falls the other way is noise


@pytest.mark.parametrize("scheme, group", [("uint4-channel-asym", -1), ("uint4-b64-asym", 64), ("uint3-b256-asym", 256)])
def test_it_is_the_reference(scheme, group):
    weight, _, inputs = layer(64, 400)
    options = {"static_groups": False} if group > 0 else {}
    found = gptq.quantize_weight(weight, inputs, scheme, act_order=False, **options).dequantize()
    expected = reference(weight, inputs.hessian, int(scheme[4]), group).numpy()
    assert (np.abs(found - expected) > 1e-5).mean() < 0.01


def test_groups_on_the_way_need_blocks_along_the_rows():
    weight, _, inputs = layer()
    for scheme, act_order in (("int4-b32", True), ("int4-channel", False), ("nvfp4", False), ("nf4", False)):
        with pytest.raises(ValueError, match="static_groups"):
            gptq.quantize_weight(weight, inputs, scheme, act_order=act_order, static_groups=False)


@pytest.mark.parametrize(
    "scheme",
    ["int4", "int4-channel", "int4-b32", "int3-b50-asym/f16", "uint2-b16-min", "nf4", "nf4_dq", "nf4-b64-center", "mxfp4",
     "nvfp4", "kmeans4", "binary", "int4-b16x32", "int4-axis1", "int8-channel-mse"],
)  # fmt: skip
def test_every_kind_of_scheme_gains(scheme):
    weight, x, inputs = layer()
    before = weight.clone()
    plain = output_error(rtn.quantize_weight(weight, None, scheme), weight, x)
    found = gptq.quantize_weight(weight, inputs, scheme)
    assert output_error(found, weight, x) < 0.7 * plain
    assert found.ledger() == rtn.quantize_weight(weight, None, scheme).ledger()  # not one bit more
    assert torch.equal(weight, before)


def test_spans_and_groups_fit_together():
    for n in (1, 31, 128, 129, 500):
        for group in (1, 3, 32, 100, 128, 129, 200, 500):
            spans = gptq._spans(n, group)
            assert [column for span in spans for column in range(*span)] == list(range(n))
            starts = {start for start, _ in spans}
            for first in range(0, n, group):
                inside = any(start <= first and min(first + group, n) <= stop for start, stop in spans)
                assert first in starts or inside


def test_the_width_of_spans_changes_nothing(monkeypatch):
    weight, x, inputs = layer()
    errors = []
    for span in (16, 128, 7):
        monkeypatch.setattr(gptq, "SPAN", span)
        found = gptq.quantize_weight(weight, inputs, "int4-b16", act_order=False)
        errors.append(output_error(found, weight, x))
    assert errors == pytest.approx([errors[0]] * 3, rel=0.01)


def test_silent_channels_are_rounded_to_nearest():
    weight, x, _ = layer()
    x[:, 5] = 0
    found = gptq.quantize_weight(weight, inputs_of(x), "int4-channel").dequantize()
    assert np.array_equal(found[:, 5], rtn.quantize_weight(weight, None, "int4-channel").dequantize()[:, 5])
    nothing = gptq.quantize_weight(weight, inputs_of(x * 0), "int4-channel").dequantize()
    assert np.array_equal(nothing, rtn.quantize_weight(weight, None, "int4-channel").dequantize())


def test_damping_draws_towards_rounding_to_nearest():
    """The Hessian becomes a multiple of the identity: no column can make up for another."""
    weight, _, inputs = layer()
    nearest = rtn.quantize_weight(weight, None, "int4-channel").codes()
    moved = [
        (gptq.quantize_weight(weight, inputs, "int4-channel", damping=damping).codes() != nearest).mean()
        for damping in (0.001, 0.01, 1, 9.9)
    ]
    assert sorted(moved, reverse=True) == moved
    assert moved[1] > 5 * moved[3]


def test_damping_is_checked_and_saves_a_singular_hessian():
    weight, x, _ = layer(rows=20)  # 128 channels
    found = gptq.quantize_weight(weight, inputs_of(x), "int4-channel")
    assert output_error(found, weight, x) < output_error(rtn.quantize_weight(weight, None, "int4-channel"), weight, x)
    for damping in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="damping"):
            gptq.quantize_weight(weight, inputs_of(x), "int4", damping=damping)
