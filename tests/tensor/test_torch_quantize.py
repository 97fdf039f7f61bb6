"""Integer schemes against torch: quantize_per_tensor, quantize_per_channel and the fake quantizers.

torch rounds ``x * (1 / scale)`` and qlab ``x / scale``: the codes are equal, save where product and quotient round to
different integers, which are then one apart. Where the scale is a power of two, the reciprocal is exact and so are all codes.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import qlab

torch = pytest.importorskip("torch")

KINDS = {"int8": (torch.qint8, -128, 127), "uint8": (torch.quint8, 0, 255)}


def cases(seed, rows=40, columns=50):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, columns)) * np.exp(rng.standard_normal((rows, 1))) + rng.standard_normal((rows, 1))
    return x.astype(np.float32)


def codes_of(qt):
    return qt.codes().astype(np.int64) if qt.scheme.format.min == 0 else qt.codes().view(np.int8).astype(np.int64)


def zeros_of(qt):
    return np.zeros(qt.scale.shape, np.int64) if qt.zero is None else qt.zero.astype(np.int64)


def compare(x, qt, theirs, values=None):
    """Codes equal, or one apart where multiplying by the reciprocal rounds to another integer than dividing."""
    scale, zero, ours = qt.scale, zeros_of(qt), codes_of(qt)
    if scale.ndim:
        scale, zero = scale[:, None], zero[:, None]
    different = ours != theirs
    assert np.abs(ours - theirs).max(initial=0) <= 1
    lowest, highest = int(qt.scheme.format.min), int(qt.scheme.format.max)
    product = np.clip(np.rint(x * (np.float32(1) / scale)) + zero, lowest, highest)
    assert np.array_equal(theirs, product)
    assert np.array_equal(different, product != ours)
    if values is not None:
        assert np.allclose(values, (theirs - zero) * scale.astype(np.float64), rtol=3e-7, atol=1e-30)
        assert np.array_equal(qt.dequantize()[~different], values[~different])
    return different.sum()


@pytest.mark.parametrize("scheme, kind", [("int8", "int8"), ("uint8-asym", "uint8"), ("int8-asym", "int8")])
def test_per_tensor(scheme, kind):
    for seed in range(10):
        x = cases(seed)
        qt = qlab.quantize(x, scheme)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = torch.quantize_per_tensor(torch.from_numpy(x), float(qt.scale), int(zeros_of(qt)), KINDS[kind][0])
        compare(x, qt, theirs.int_repr().numpy().astype(np.int64), theirs.dequantize().numpy())


@pytest.mark.parametrize(
    "scheme, kind", [("int8-channel", "int8"), ("uint8-channel-asym", "uint8"), ("int8-channel-asym", "int8")]
)
def test_per_channel(scheme, kind):
    for seed in range(10):
        x = cases(seed)
        qt = qlab.quantize(x, scheme)
        scale, zero = torch.from_numpy(qt.scale.copy()), torch.from_numpy(zeros_of(qt))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = torch.quantize_per_channel(torch.from_numpy(x), scale, zero, 0, KINDS[kind][0])
        compare(x, qt, theirs.int_repr().numpy().astype(np.int64), theirs.dequantize().numpy())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero", ["", "-asym"])
def test_fake_quantize_per_channel(bits, zero):
    for seed in range(5):
        x = cases(seed)
        qt = qlab.quantize(x, f"int{bits}-channel{zero}")
        ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        scale, zero_point = torch.from_numpy(qt.scale.copy()), torch.from_numpy(zeros_of(qt).astype(np.int32))
        theirs = torch.fake_quantize_per_channel_affine(torch.from_numpy(x), scale, zero_point, 0, *ends).numpy()
        ours = qlab.fake_quantize(x, qt.scheme)
        assert np.array_equal(ours, qt.dequantize())
        off = ours != theirs
        column = np.broadcast_to(qt.scale[:, None], x.shape)
        product = np.rint(x * (1 / column)) != np.rint(x / column)
        assert (off <= product).all()
        assert (np.abs(ours - theirs) <= column * 1.0001).all()


def test_where_the_reciprocal_matters():
    """A tie of the quotient that the product misses: 0.5 steps of many scales."""
    scales = np.random.default_rng(0).uniform(1, 2, 2000).astype(np.float32)
    steps = np.float32(np.arange(-126.5, 127))
    split = 0
    for scale in scales[:40]:
        x = np.append(steps * scale, scale * np.float32(127))
        qt = qlab.quantize(x, "int8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = torch.quantize_per_tensor(torch.from_numpy(x), float(qt.scale), 0, torch.qint8)
        split += compare(x, qt, theirs.int_repr().numpy().astype(np.int64))
    assert split > 0


@pytest.mark.parametrize("power", [-20, -3, 0, 5])
def test_powers_of_two_are_equal_everywhere(power):
    x = np.ldexp(np.float32(np.arange(-127, 127.25, 0.25)), power)
    qt = qlab.quantize(x, "int8")
    assert qt.scale == 2.0**power
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.quantize_per_tensor(torch.from_numpy(x), float(qt.scale), 0, torch.qint8)
    assert compare(x, qt, theirs.int_repr().numpy().astype(np.int64), theirs.dequantize().numpy()) == 0
