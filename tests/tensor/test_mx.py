"""Microscaling formats: OCP MX 1.0 and NVFP4, against exact fractions and the casts of ml_dtypes.

The shared exponent of a block is found here by comparing fractions with powers of two; elements are ``x / 2**e``, cast by
ml_dtypes after clamping to the format's range. What other libraries get wrong is tested at the end.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import qlab

ml_dtypes = pytest.importorskip("ml_dtypes")

# name of the scheme: the element's type in ml_dtypes, its largest value, its fraction bits
FLOATS = {
    "mxfp8_e4m3": ("float8_e4m3fn", 448, 3),
    "mxfp8_e5m2": ("float8_e5m2", 57344, 2),
    "mxfp6_e3m2": ("float6_e3m2fn", 28, 2),
    "mxfp6_e2m3": ("float6_e2m3fn", Fraction(15, 2), 3),
    "mxfp4": ("float4_e2m1fn", 6, 1),
}
ELEMENTS = {**FLOATS, "mxint8": ("int8 / 64", Fraction(127, 64), 6)}
NOTATION = {
    "mxfp8_e4m3": "e4m3", "mxfp8_e5m2": "e5m2", "mxfp6_e3m2": "e3m2", "mxfp6_e2m3": "e2m3", "mxfp4": "fp4", "mxint8": "mxint8",
}  # fmt: skip
ROUNDINGS = ("floor", "ceil", "nearest_even", "up")
LARGEST = float(np.finfo(np.float32).max)


def floor_log2(x):
    """The exponent of the largest power of two that is not above a positive fraction."""
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if Fraction(2) ** e <= x else e - 1


def shared_exponent(absmax, largest, fraction_bits, rounding="floor"):
    absmax, largest = Fraction(float(absmax)), Fraction(largest)
    own = floor_log2(largest)
    if rounding == "floor":  # OCP: the largest power of two up to absmax, over that of the format
        e = floor_log2(absmax) - own
    elif rounding == "ceil":  # the smallest power of two from absmax on
        e = -floor_log2(1 / absmax) - own
    elif rounding == "nearest_even":  # that of absmax, rounded to the format's fraction bits
        quantum = Fraction(2) ** (floor_log2(absmax) - fraction_bits)
        e = floor_log2(round(absmax / quantum) * quantum) - own  # Python's round: ties to even
    else:  # the smallest that clips nothing
        e = -floor_log2(largest / absmax)
    return min(max(e, -127), 127)


def elements(scaled, name):
    """The nearest elements to float64 numbers that hold float32 numbers times a power of two."""
    kind, largest, _ = ELEMENTS[name]
    if name == "mxint8":
        return np.clip(np.rint(scaled * 64), -128, 127) / 64
    clamped = np.clip(scaled, -float(largest), float(largest)).astype(np.float32)
    assert np.array_equal(clamped, np.clip(scaled, -float(largest), float(largest)))  # ml_dtypes rounds once
    return clamped.astype(getattr(ml_dtypes, kind)).astype(np.float64)


def check(blocks, name, rounding="floor"):
    """Blocks: float32 of shape (n, 32)."""
    _, largest, fraction_bits = ELEMENTS[name]
    suffix = "mx" if rounding == "floor" else f"mx_{rounding}"
    qt = qlab.quantize(blocks, f"{NOTATION[name]}-b32-{suffix}/e8m0")
    absmax = np.abs(blocks).max(axis=1)
    exponents = np.array([-127 if a == 0 else shared_exponent(a, largest, fraction_bits, rounding) for a in absmax])
    assert np.array_equal(qt.scale, np.ldexp(np.float32(1), exponents)[:, None])
    with np.errstate(under="ignore"):
        expected = elements(np.ldexp(blocks.astype(np.float64), -exponents[:, None]), name)
        values = np.clip(np.ldexp(expected, exponents[:, None]), -LARGEST, LARGEST).astype(np.float32)
    assert np.array_equal(qt.scheme.format.values()[qt.codes()], expected)
    assert np.array_equal(qt.dequantize(), values)
    assert np.array_equal(qlab.fake_quantize(blocks, qt.scheme), values)
    return qt


def random_blocks(seed, n=200):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 32)) * np.exp2(rng.integers(-40, 40, (n, 1)))
    return np.ldexp(np.rint(np.ldexp(x / np.abs(x).max(axis=1, keepdims=True), 16)), rng.integers(-40, 40, (n, 1)) - 16).astype(
        np.float32
    )  # 17 bits each, so that x / 2**e is a float32 for every format


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", ELEMENTS)
def test_random_blocks(name, rounding):
    for seed in range(3):
        check(random_blocks(seed), name, rounding)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", ELEMENTS)
def test_absmax_around_every_power_of_two(name, rounding):
    """2**k, one ulp below and above, for every k: a logarithm in float32 takes 2**k - ulp for 2**k."""
    powers = np.ldexp(np.float32(1), np.arange(-126, 128))
    near = np.concatenate([powers, np.nextafter(powers, np.float32(0)), np.nextafter(powers, np.float32(np.inf)), [LARGEST]])
    blocks = np.zeros((len(near), 32), np.float32)
    blocks[:, 5], blocks[:, 6] = near, -near / 2
    check(blocks, name, rounding)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", ELEMENTS)
def test_absmax_around_every_boundary_of_the_exponent(name, rounding):
    _, largest, fraction_bits = ELEMENTS[name]
    turns = [float(largest), float(largest) / 2, 2 - 2.0 ** -(fraction_bits + 1), 1.5, 1.75]
    near = np.float32(np.multiply.outer(np.exp2(np.arange(-9.0, 9)), turns)).reshape(-1)
    near = np.concatenate([near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))])
    blocks = np.zeros((len(near), 32), np.float32)
    blocks[:, 0] = near
    check(blocks, name, rounding)


@pytest.mark.parametrize("name", ELEMENTS)
def test_the_ends_of_e8m0(name):
    """Below, scales stop at 2**-127, which is also that of a block of zeros; subnormal blocks keep what is left."""
    smallest = np.array([0, 2.0**-149, 2.0**-140, 2.0**-128, 2.0**-127, 2.0**-126, 2.0**-120, LARGEST, 2.0**127])
    blocks = np.zeros((len(smallest), 32), np.float32)
    blocks[:, 0], blocks[:, 1] = smallest, -smallest / 2
    qt = check(blocks, name)
    assert qt.scale[0] == 2.0**-127
    assert not qt.dequantize()[0].any()


def test_float64_beyond_e8m0():
    assert qlab.quantize(np.full(32, 1e-300), "mxfp4").scale == 2.0**-127
    with pytest.raises(ValueError, match=r"does not fit float8_e8m0fnu, whose largest value is 1\.70141e\+38"):
        qlab.quantize(np.full(32, 1e300), "mxfp4")


def test_mxint8_uses_its_whole_range():
    x = np.zeros((1, 32), np.float32)
    x[0, :4] = 127 / 64, -127 / 64, 1, -1.999
    assert qlab.quantize(x, "mxint8").codes()[0, :4].tolist() == [127, 256 - 127, 64, 128]
    assert qlab.fake_quantize(x, "mxint8")[0, 0] == 127 / 64


# --- NVFP4 -----------------------------------------------------------------------------------------------------------
def nvfp4_formula(x, kind):
    """Scales and elements by the formula in a float type: e4m3 block scales over a per-tensor scale."""
    rows = x.reshape(-1, 16).astype(kind)
    wanted = np.abs(rows).max(axis=1) / kind(6)
    whole = wanted.max() / kind(448)
    stored = np.minimum(wanted / whole, kind(448)).astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(kind)
    scale = stored * whole
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(scale[:, None] == 0, kind(0), rows / scale[:, None])
    scaled = np.clip(scaled, -6, 6)
    return scale, scaled, scaled.astype(np.float32).astype(ml_dtypes.float4_e2m1fn).astype(kind)


@pytest.mark.parametrize("seed", range(4))
def test_nvfp4(seed):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((64, 64)) * np.exp(rng.standard_normal((64, 1)))).astype(np.float32)
    qt = qlab.quantize(x, "nvfp4")
    ours = qt.scheme.format.values()[qt.codes()].reshape(-1, 16)
    scale, _, exact = nvfp4_formula(x, np.float32)  # in float32, each operation rounded once: the same bits
    assert np.array_equal(qt.scale.dequantize().reshape(-1), scale)
    assert np.array_equal(ours, exact)
    assert np.array_equal(qt.dequantize().reshape(-1, 16), ours.astype(np.float32) * scale[:, None])
    assert np.array_equal(qlab.fake_quantize(x, "nvfp4"), qt.dequantize())

    scale, scaled, wide = nvfp4_formula(x, np.float64)  # in float64 the same, up to the rounding of what is divided
    assert np.allclose(qt.scale.dequantize().reshape(-1), scale, rtol=3e-7)
    halves = np.abs(scaled)[..., None] - np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5])
    tie = np.abs(halves).min(axis=-1) < 1e-5
    assert (tie | (ours == wide)).all()
    assert qt.nbytes == x.size // 2 + x.size // 16 + 4


def test_nvfp4_block_that_is_lost_beside_a_huge_one():
    """A block scale below half of e4m3's smallest becomes 0, and all of its elements."""
    x = np.concatenate([np.full(16, 1e6), np.full(16, -1), np.zeros(16)]).astype(np.float32)
    qt = qlab.quantize(x, "nvfp4")
    assert qt.scale.dequantize()[1:].tolist() == [0, 0]
    assert not (qt.codes()[16:] & 7).any()
    assert not qt.dequantize()[16:].any()


# --- what other libraries get wrong ----------------------------------------------------------------------------------
def one_block(*values):
    x = np.zeros((1, 32), np.float32)
    x[0, : len(values)] = values
    return x


def test_just_below_a_tie_goes_down():
    """microxcaling: floor(|x| + 0.5) makes 0.5 of 0.24999999."""
    x = one_block(4, 0.24999999, -0.24999999, 0.25, 0.75, 0.74999994)
    assert qlab.fake_quantize(x, "mxfp4")[0, :6].tolist() == [4, 0, 0, 0, 1, 0.5]


def test_just_below_a_power_of_two_saturates():
    """microxcaling: 7.9999995 becomes 4. The scale of OCP's rule is 1, and the largest element is 6."""
    x = one_block(7.9999995)
    assert qlab.quantize(x, "mxfp4").scale.item() == 1
    assert qlab.fake_quantize(x, "mxfp4")[0, 0] == 6
    assert qlab.fake_quantize(x, "fp4-b32-mx_up/e8m0")[0, 0] == 8


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", ELEMENTS)
def test_near_the_largest_float32(name, rounding):
    """microxcaling gives NaN. What rounds to 2**128, which float32 does not hold, is its largest number."""
    suffix = "mx" if rounding == "floor" else f"mx_{rounding}"
    values = qlab.fake_quantize(one_block(LARGEST, -LARGEST, 1), f"{NOTATION[name]}-b32-{suffix}/e8m0")
    assert np.isfinite(values).all()
    assert values[0, 0] > LARGEST / 2
    assert values[0, 1] < -LARGEST / 2


def test_one_bit_integers_are_refused():
    """torchao's int1 gives zeros."""
    with pytest.raises(ValueError, match="use 'binary'"):
        qlab.quantize(np.ones(4), "int1")
    assert qlab.fake_quantize(np.float32([1, -1]), "binary").tolist() == [1, -1]


def test_mxint8_reaches_both_ends():
    """brevitas saturates at half of the range."""
    ends = qlab.fake_quantize(one_block(1.984375, -1.984375), "mxint8")
    assert ends[0, :2].tolist() == [1.984375, -1.984375]
