"""Input that quantizers stumble over: what is refused and with which words, the ends of the floats, and peak memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import qlab

ALIKE = [f"{sign}int{bits}" for sign in ("", "u") for bits in (7, 9, 10, 11, 12, 13, 14, 15)]  # a few widths will do
SCHEMES = [name for name in qlab.SCHEMES if qlab.SCHEMES[name].layout is None and name not in ALIKE] + [
    "int4-b32-asym", "uint4-b32-min", "int8-min", "int4-b32-signed", "int8-pow2", "int8-mse", "int8-p99", "int8-entropy",
    "int8-channel-asym", "int4-b4x8", "e4m3-b32-mx_up/e8m0", "fp4-b32-mx_nearest_even/e8m0", "kmeans3-b16",
]  # fmt: skip
LARGEST = np.finfo(np.float32).max
TINY = np.finfo(np.float32).smallest_subnormal


@pytest.mark.parametrize("act", [qlab.quantize, qlab.fake_quantize])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_infinities_and_nan_are_counted_and_placed(scheme, bad, act):
    x = np.ones((4, 70), np.float32)
    x[2, 3] = x[3, 69] = bad
    with pytest.raises(ValueError, match=r"holds 2 infinities or NaN \(the first at index \(2, 3\)\).*nan_to_num"):
        act(x, scheme)


def test_nan_in_a_long_block_of_several_pieces():
    x = np.ones(2**18 + 9, np.float32)
    x[2**18 + 5] = np.nan
    with pytest.raises(ValueError, match=r"holds 1 infinities or NaN \(the first at index \(262149,\)\)"):
        qlab.quantize(x, "int8")


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 0, 2)])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_empty_arrays_are_refused(scheme, shape):
    with pytest.raises(ValueError, match=r"empty|dimensions"):
        qlab.quantize(np.empty(shape, np.float32), scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_zeros_stay_zeros(scheme):
    """A block of zeros, alone and beside others."""
    if scheme == "binary":
        pytest.skip("has no zero, but a scale of zero where all is zero")
    x = np.zeros((8, 64), np.float32)
    assert np.array_equal(qlab.quantize(x, scheme).dequantize(), x)
    x[4:] = np.random.default_rng(0).standard_normal((4, 64))
    values = qlab.quantize(x, scheme).dequantize()
    assert np.isfinite(values).all()
    if scheme not in ("nf4_dq", "kmeans4", "kmeans3-b16", "int8-min"):  # whose zero may lie beside 0
        assert np.array_equal(values[:4], x[:4])
    assert np.array_equal(qlab.fake_quantize(x, scheme), values)


def test_binary_zeros():
    assert not qlab.fake_quantize(np.zeros(5, np.float32), "binary").any()


@pytest.mark.parametrize("largest", [TINY, 7 * TINY, 1e-42, 1e-39, 3e-39, 1.1754942e-38, 1.2e-38])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_subnormal_blocks(scheme, largest):
    x = np.random.default_rng(1).standard_normal((8, 64))
    x = (x / np.abs(x).max() * largest).astype(np.float32)
    values = qlab.quantize(x, scheme).dequantize()
    assert np.isfinite(values).all()
    assert np.array_equal(values, qlab.fake_quantize(x, scheme))
    # as large as the values themselves, or as one step of what float32 can hold there for a scale
    steps = 128 if qlab.get_scheme(scheme).bits <= 8 else 2**16
    assert np.abs(values.astype(np.float64) - x).max() <= max(np.abs(x).max(), steps * TINY)


HUGE = {
    "both ends": [LARGEST, -LARGEST, 1, 0], "alike": [LARGEST] * 4, "negative": [-LARGEST] * 3 + [0],
    "one ulp below": [LARGEST, np.nextafter(LARGEST, np.float32(0)), -LARGEST / 3, LARGEST / 7],
}  # fmt: skip


@pytest.mark.parametrize("case", HUGE)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_near_the_largest_float(scheme, case):
    """max - min, scale * code and scale * code + minimum all may be beyond the largest float32."""
    x = np.tile(np.float32(HUGE[case]), (8, 16))
    values = qlab.quantize(x, scheme).dequantize()
    assert np.isfinite(values).all()
    assert np.array_equal(values, qlab.fake_quantize(x, scheme))
    if scheme not in ("int2", "uint2", "uint3", "binary", "ternary", "int8-pow2", "int3"):
        assert (np.abs(values.astype(np.float64) - x) <= float(LARGEST) / 2).all()


def test_minimum_and_span_beyond_the_largest_float():
    """The same codes as for numbers a thousand times smaller."""
    small = np.ldexp(np.float32([-0.9, 0.9, 0.3, -0.1]), 100)
    huge = np.ldexp(small, 28)
    for scheme in ("uint4-min", "uint8-min", "int8-asym", "uint4-b4-min", "int8"):
        one, other = qlab.quantize(small, scheme), qlab.quantize(huge, scheme)
        assert np.array_equal(one.codes(), other.codes())
        assert np.array_equal(np.ldexp(one.dequantize(), 28), other.dequantize())


def test_half_precision_saturates_too():
    x = np.float16([65504, -65504, 1, 0])
    values = qlab.quantize(x, "uint8").dequantize()
    assert values.dtype == np.float16
    assert np.isfinite(values).all()
    assert np.array_equal(values, qlab.fake_quantize(x, "uint8"))


@pytest.mark.parametrize("scheme", ["kmeans2", "kmeans4", "kmeans3-b16"])
def test_fitted_codebooks_of_one_sign(scheme):
    """The scale is the absmax whichever values the codebook has."""
    x = -np.abs(np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)) - 1
    negative, positive = qlab.fake_quantize(x, scheme), qlab.fake_quantize(-x, scheme)
    assert (negative < 0).all()
    assert np.allclose(negative, -positive, rtol=1e-5)
    assert np.abs(negative - x).max() < np.abs(x).max() / 4
    assert qlab.quantize(x, "kmeans4").scale == np.abs(x).max()
    assert np.allclose(qlab.fake_quantize(np.full(9, -3, np.float32), scheme if "b16" not in scheme else "kmeans3"), -3)


def test_scales_that_do_not_fit():
    with pytest.raises(ValueError, match=r"scale of 78740\.2 does not fit float16, whose largest value is 65504; scale x down"):
        qlab.quantize(np.full((1, 32), 1e7, np.float32), "int8-b32/f16")
    with pytest.raises(ValueError, match=r"minimum of 100000 does not fit float16, whose largest value is 65504"):
        qlab.quantize(np.linspace(-1e5, -9e4, 32, dtype=np.float32), "uint8-b32-min/f16")
    with pytest.raises(ValueError, match="does not fit float8_e4m3fn, whose largest value is 448"):
        qlab.quantize(np.full((1, 16), 1e5, np.float32), "fp4-b16/e4m3")
    tiny = qlab.quantize(np.full((1, 32), 1e-7, np.float32), "int8-b32/f16")
    assert tiny.scale == 2.0**-24  # not zero


REFUSALS = [
    (lambda x: qlab.quantize(x, "int8-axis2"), ValueError, "x has 2 dimensions; blocks along axis 2"),
    (lambda x: qlab.quantize(x, qlab.Scheme("int8", qlab.PerBlock(4, -3))), ValueError, "axis -3"),
    (lambda x: qlab.quantize(x[0], "int4-b4x8"), ValueError, "tiles of (4, 8) need at least two dimensions"),
    (lambda x: qlab.fake_quantize(x, "int8", out=np.empty((4, 4), np.float64)), ValueError, "must be a writable float32 array"),
    (lambda x: qlab.fake_quantize(x, "int8", out=np.empty((4, 5), np.float32)), ValueError, "of shape (4, 4)"),
    (lambda x: qlab.fake_quantize(x, "int8", out=[0.0]), ValueError, "out is list"),
    (lambda x: qlab.quantize(x, "int8").dequantize(out=np.empty(16, np.float32)), ValueError, "of shape (4, 4)"),
    (lambda x: qlab.quantize(x, "int8").dequantize(out=np.broadcast_to(np.float32(0), (4, 4))), ValueError, "writable"),
    (lambda x: qlab.quantize(x, "int8").dequantize(dtype=np.int8), ValueError, "float16, bfloat16, float32 or float64"),
    (lambda x: qlab.quantize(x, "int8").dequantize(dtype=complex), ValueError, "float16, bfloat16, float32 or float64"),
    (lambda x: qlab.quantize(x, "int4-b32-foo"), ValueError, "'foo' is none of its words; the notation is FORMAT[-BLOCKS]"),
    (lambda x: qlab.quantize(x, "wrong"), ValueError, "FORMAT[-BLOCKS][-OPTION...]"),
    (lambda x: qlab.quantize(x, "int4-b0"), ValueError, "positive integer"),
    (lambda x: qlab.quantize(x, "int4-b32/int8"), ValueError, "'int8-b8/f16'"),
    (lambda x: qlab.quantize(x, "int4-p40"), ValueError, "above 50"),
    (lambda x: qlab.quantize(x, "nf4-asym"), ValueError, "needs an integer format"),
    (lambda x: qlab.quantize(x, ""), ValueError, "unknown scheme ''"),
    (lambda x: qlab.quantize(x, "float32"), ValueError, "up to 16 bits"),
    (lambda x: qlab.quantize(x, None), TypeError, "not NoneType"),
    (lambda x: qlab.quantize("1/3", "int8"), TypeError, "real numbers|can be rounded"),
    (lambda x: qlab.quantize(["1/3", "2/3"], "int8"), TypeError, "can be rounded"),
    (lambda x: qlab.quantize(x + 1j, "int8"), TypeError, "complex"),
    (lambda x: qlab.quantize(x.astype(object), "int8"), TypeError, "object"),
    (lambda x: qlab.quantize(x > 0, "int8"), TypeError, "bool"),
    (lambda x: qlab.quantize(None, "int8"), TypeError, "object"),
    (lambda x: qlab.quantize(x, "int8", importance=np.ones(4)), ValueError, "importance is for GGUF's types"),
    (lambda x: qlab.Scheme("int8", blocks=32), TypeError, "PerBlock(size)"),
    (lambda x: qlab.PerBlock(True), ValueError, "size=True"),
    (lambda x: qlab.PerBlock((4, 8), 0), ValueError, "leave axis out"),
    (lambda x: qlab.PerAxis(1.5), ValueError, "axis=1.5"),
]


@pytest.mark.parametrize("act, error, message", REFUSALS)
def test_refusals(act, error, message):
    x = np.ones((4, 4), np.float32)
    with pytest.raises(error) as caught:
        act(x)
    assert any(part in str(caught.value) for part in message.split("|"))
    assert np.array_equal(x, np.ones((4, 4)))


@pytest.mark.parametrize("scheme", ["int8", "int8_channel", "nf4", "mxfp4", "int4-b32-asym"])
def test_peak_memory(scheme):
    """64 MiB of float32: less than 32 MiB beyond input and output, in each direction."""
    x = np.random.default_rng(0).standard_normal((4096, 4096), dtype=np.float32)
    out = np.empty_like(x)
    out[:] = 0
    limit = 32 * 2**20

    def peak(act):
        tracemalloc.start()
        try:
            result = act()
            return tracemalloc.get_traced_memory()[1], result
        finally:
            tracemalloc.stop()

    used, qt = peak(lambda: qlab.quantize(x, scheme))
    assert used - qt.nbytes < limit
    used, _ = peak(lambda: qt.dequantize(out=out))
    assert used < limit
    used, _ = peak(lambda: qlab.fake_quantize(x, scheme, out=out))
    assert used < limit
