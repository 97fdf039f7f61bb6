"""What holds for whole families of schemes, on arrays that hypothesis finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qlab
from qlab.tensor.packing import unpack
from qlab.tensor.qtensor import QTensor, scale_values

NAMED = [name for name in qlab.SCHEMES if qlab.SCHEMES[name].layout is None]
MORE = [
    "int8-b32/f16", "int4-b32/bf16", "int4-b32-asym", "uint4-b32-min", "uint4-b32-min/f16", "int8-channel-asym",
    "int4-b32-signed", "int4-b32-pow2/e8m0", "int8-b32-mse", "int8-channel-p99", "nf4-b32", "e4m3-b32-mx_up/e8m0",
    "fp4-b32-mx_nearest_even/e8m0", "fp4-b32-mx_ceil/e8m0", "e4m3-channel", "int4-b4x8", "int3-flat7", "kmeans3-b16",
]  # fmt: skip
ALIKE = [f"{sign}int{bits}" for sign in ("", "u") for bits in (6, 7, 9, 10, 11, 12, 13, 14, 15)]  # a few widths will do
SCHEMES = [name for name in NAMED if name not in ALIKE] + MORE

# Quantizing what was dequantized gives the same payload and scales. Not so: schemes with a zero and nvfp4 (a rounded scale
# moves the range by an ulp), means, searches and fitted codebooks (another tensor, another mean), dq (another offset),
# fp4_bnb (small positive values have a zero of their own, code 8), mxint8 (-2 doubles the scale), mx_ceil, mx_up and fp4-pow2
# (what is rounded down to a power of two halves it), iq4_nl (its largest value is not the absmax).
IDEMPOTENT = [
    *(f"int{bits}" for bits in range(2, 17)), "int8_channel", "int4_b32", "int8-b32/f16", "int4-b32/bf16", "int4-b4x8",
    "int4-b32-signed", "int4-b32-pow2", "nf4", "nf4-b32", "af4", "fp8_e4m3_tensor", "e4m3-channel", "log4", "binary",
    "mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp4", "fp4-b32-mx_nearest_even/e8m0",
]  # fmt: skip
ONE_SIDED = ("nf4", "nf4-b32", "af4", "binary", "int4-b32-signed")
SYMMETRIC = [*(name for name in IDEMPOTENT if name not in (*ALIKE, *ONE_SIDED)), "nvfp4", "ternary"]

ORDINARY = st.floats(-(2.0**15), 2.0**15, width=32).filter(lambda v: v == 0 or abs(v) > 2.0**-20)
SHAPES = hnp.array_shapes(min_dims=2, max_dims=3, max_side=40)


@st.composite
def arrays(draw, shape=SHAPES):
    """Normal rows of different sizes, with a few numbers of hypothesis' own choice scattered among them."""
    x = random_array(draw(shape), draw(st.integers(0, 10**6)))
    chosen = draw(st.lists(ORDINARY, max_size=8))
    places = np.random.default_rng(x.size).integers(0, x.size, len(chosen))
    x.reshape(-1)[places] = chosen
    return x


def random_array(shape, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * np.exp(rng.standard_normal((*shape[:-1], 1)))
    return np.where(np.abs(x) > 2.0**-20, x, 0).astype(np.float32)


def blocks_of(x, size=32):
    """Whole blocks along the last axis, as rows."""
    return x[..., : x.shape[-1] // size * size].reshape(-1, size)


# --- values ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scheme", IDEMPOTENT)
@settings(max_examples=12, deadline=None)
@given(x=arrays())
def test_idempotent(scheme, x):
    once = qlab.quantize(x, scheme)
    again = qlab.quantize(once.dequantize(), scheme)
    assert np.array_equal(again.payload, once.payload)
    assert np.array_equal(scale_values(again.scale), scale_values(once.scale))


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=8, deadline=None)
@given(x=arrays(st.tuples(st.integers(1, 20), st.integers(1, 70))))
def test_fake_quantize_is_quantize_and_back(scheme, x):
    qt = qlab.quantize(x, scheme)
    assert np.array_equal(qt.dequantize(), qlab.fake_quantize(x, scheme))
    assert qt.shape == qt.codes().shape == x.shape
    assert np.isfinite(qt.dequantize()).all()
    assert sum(qt.ledger().values()) == 8 * qt.nbytes


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s != "nf4_dq" and "kmeans" not in s])
@settings(max_examples=8, deadline=None)
@given(x=arrays(st.tuples(st.integers(1, 6), st.just(64))))
def test_monotonic_within_a_block(scheme, x):
    """Where two elements share a scale, the larger one does not get the smaller value.

    Not so after double quantization: the scale of a small block may come back as zero, or below it.
    """
    values = qlab.fake_quantize(x, scheme)
    size = 4 if "b4x8" in scheme else 7 if "flat7" in scheme else 16
    cut = x.shape[1] // size * size
    if "flat7" in scheme:
        x, values, cut = x.reshape(1, -1), values.reshape(1, -1), x.size // 7 * 7
    if "b4x8" in scheme:
        size, cut = 8, 64
    for a, b in zip(blocks_of(x[:, :cut], size), blocks_of(values[:, :cut], size), strict=True):
        assert (np.diff(b[np.argsort(a, kind="stable")]) >= 0).all()


@pytest.mark.parametrize("scheme", SYMMETRIC)
@settings(max_examples=8, deadline=None)
@given(x=arrays())
def test_sign_symmetry(scheme, x):
    if scheme.endswith("/f16"):  # subnormal scales are so coarse that -128 is reached, which has no counterpart
        x = np.where(np.abs(x) < 2.0**-6, 0, x)
    assert np.array_equal(qlab.fake_quantize(-x, scheme), -qlab.fake_quantize(x, scheme))


@pytest.mark.parametrize("scheme", ["int4_b32", "int4-b32-asym", "uint4-b32-min/f16", "mxfp4", "nf4-b32", "int4-b32-mse"])
@settings(max_examples=8, deadline=None)
@given(x=arrays(st.tuples(st.integers(1, 12), st.just(32))), seed=st.integers(0, 99))
def test_permuted_blocks_have_permuted_codes(scheme, x, seed):
    order = np.random.default_rng(seed).permutation(len(x))
    one, other = qlab.quantize(x, scheme), qlab.quantize(x[order], scheme)
    assert np.array_equal(one.codes()[order], other.codes())
    assert np.array_equal(one.scale[order], other.scale)
    if one.zero is not None:
        assert np.array_equal(one.zero[order], other.zero)


@pytest.mark.parametrize(
    "scheme", ["int2", "int4_b32", "int8", "int16", "uint8", "int4-b32-asym", "uint4-b32-min", "int8-axis1-min"]
)
@settings(max_examples=12, deadline=None)
@given(x=arrays())
def test_error_is_at_most_half_a_step(scheme, x):
    qt = qlab.quantize(x, scheme)
    step = np.repeat(qt.scale, 32, axis=-1)[..., : x.shape[-1]] if "b32" in scheme else qt.scale
    if "axis1" in scheme:
        step = step.reshape(-1, *[1] * (x.ndim - 2))
    error = np.abs(qt.dequantize().astype(np.float64) - x)
    rounding = np.abs(x).max() * 2.0**-22  # of the values themselves
    clipped = 1 if qt.scheme.zero == "integer" else 0.5  # a rounded zero point may cost half a step more
    assert (error <= step * (clipped + 1e-2 * (qt.scheme.bits == 16) + 1e-5) + rounding).all()


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s not in ("nf4_dq",) and "kmeans" not in s and "mse" not in s])
@settings(max_examples=6, deadline=None)
@given(x=arrays(st.tuples(st.integers(1, 4), st.integers(1, 70))), power=st.integers(-12, 12))
def test_scaling_by_a_power_of_two_scales_the_values(scheme, x, power):
    """Away from the ends of the formats that scales are stored in."""
    x = np.where(np.abs(x) < 2.0**-6, 0, np.clip(x, -64, 64)).astype(np.float32)
    if "f16" in scheme:
        power = abs(power) // 3
        x = np.where(np.abs(x) < 1, 0, x)
    factor = np.float32(2.0**power)
    assert np.array_equal(qlab.fake_quantize(x * factor, scheme), qlab.fake_quantize(x, scheme) * factor)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_bytes_decode(scheme):
    """A payload of random bytes gives numbers, except where a code of the format is none."""
    rng = np.random.default_rng(0)
    qt = qlab.quantize(random_array((6, 64), 0), scheme)
    payload = rng.integers(0, 256, qt.payload.shape, dtype=np.uint8)
    table = np.zeros(2**qt.scheme.bits)  # codes beyond the table are its zeros
    known = qt.scheme.format.values()
    table[: len(known)] = known
    values = replace(qt, payload=payload).dequantize()
    codes = unpack(payload, 6 * 64, qt.scheme.bits, order=qt.scheme.order).reshape(6, 64)
    if len(known) == 2**qt.scheme.bits:
        assert np.array_equal(np.isfinite(values), np.isfinite(table[codes]))
        if "e4m3" not in scheme and "e5m2" not in scheme:
            assert np.isfinite(values).all()


# --- what comes in ---------------------------------------------------------------------------------------------------
LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "a view with strides": lambda x: np.repeat(np.repeat(x, 2, axis=-1), 3, axis=0)[::3, ..., ::2],
    "reversed": lambda x: np.ascontiguousarray(x[::-1, ..., ::-1])[::-1, ..., ::-1],
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "big endian": lambda x: x.astype(">f4"),
    "a list": lambda x: x.astype(np.float64).tolist(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_layout_in_memory_does_not_matter(scheme, layout):
    x = random_array((5, 3, 37), 1)
    made = LAYOUTS[layout](x)
    if layout == "a list":
        x = x.astype(np.float64)
    else:
        made.flags.writeable = False
        before = made.copy()
    one, other = qlab.quantize(x, scheme), qlab.quantize(made, scheme)
    assert np.array_equal(one.payload, other.payload)
    assert np.array_equal(scale_values(one.scale), scale_values(other.scale))
    assert np.array_equal(qlab.fake_quantize(made, scheme), one.dequantize())
    out = np.empty(x.shape, x.dtype, order="F")
    assert one.dequantize(out=out) is out
    assert np.array_equal(out, one.dequantize())
    assert np.array_equal(qlab.fake_quantize(x, scheme, out=out), out)
    if layout != "a list":
        assert np.array_equal(before, made)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "int32", "int64", "uint64", "float16", "float64"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_dtype_is_quantized_as_its_own_float(scheme, kind):
    x = (random_array((4, 50), 2) * 20).astype(kind) if kind != "uint64" else np.arange(200, dtype=kind).reshape(4, 50)
    before = x.copy()
    wide = np.float64 if kind in ("int32", "int64", "uint64", "float64") else np.float32
    qt, expected = qlab.quantize(x, scheme), qlab.quantize(x.astype(wide), scheme)
    assert np.array_equal(qt.payload, expected.payload)
    assert np.array_equal(scale_values(qt.scale), scale_values(expected.scale))
    result = np.float16 if kind == "float16" else wide
    assert qt.dequantize().dtype == qlab.fake_quantize(x, scheme).dtype == result
    assert np.array_equal(qt.dequantize(), expected.dequantize().astype(result))
    assert np.array_equal(qlab.fake_quantize(x, scheme), qt.dequantize())
    assert np.array_equal(x, before)


def test_zero_dimensions_and_single_elements():
    for scheme in ("int8", "nf4", "nf4_dq", "uint8", "int3-flat7", "log4", "binary", "fp8_e4m3_tensor"):
        qt = qlab.quantize(np.float32(-3), scheme)
        assert qt.shape == ()
        assert np.isclose(qt.dequantize(), -3, rtol=1e-6)
        assert qlab.fake_quantize(np.float32(-3), scheme) == qt.dequantize()
    for scheme in ("int8-channel", "int4_b32", "mxfp4", "int4-b4x8"):
        with pytest.raises(ValueError, match=r"dimension|shape"):
            qlab.quantize(np.float32(3), scheme)


THREADED = ["int8", "int8-channel", "int4-axis1-asym", "nf4", "nf4_dq", "mxfp4", "nvfp4", "int3", "binary"]


@pytest.mark.parametrize("scheme", THREADED)
def test_threads_do_not_change_a_bit(scheme):
    x = random_array((700, 1031), 3)
    found = []
    for threads in (1, 2):
        qlab.set_num_threads(threads)
        try:
            qt = qlab.quantize(x, scheme)
            found.append((qt.payload, scale_values(qt.scale), qt.dequantize(), qlab.fake_quantize(x, scheme)))
        finally:
            qlab.set_num_threads(None)
    for one, other in zip(*found, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("scheme", ["int8", "uint8", "int8-min", "int4-channel-signed", "uint4-channel-asym", "binary"])
def test_blocks_longer_than_a_piece(scheme):
    """Their scale is found in a first round, part by part; here by a formula, from the whole."""
    x = np.random.default_rng(4).standard_normal((2, 2**18 + 999)).astype(np.float32)
    x[1] += 3
    qt, wide = qlab.quantize(x, scheme), "channel" in scheme
    rows = x if wide else x.reshape(1, -1)
    low, high = rows.min(axis=1), rows.max(axis=1)
    if scheme == "binary":
        scale = np.abs(rows).mean(axis=1, dtype=np.float64).astype(np.float32)
        values = np.where(rows > 0, scale[:, None], -scale[:, None])
    elif scheme == "int8":
        scale = np.maximum(high, -low) / np.float32(127)
        values = np.rint(rows / scale[:, None]) * scale[:, None]
    elif "signed" in scheme:
        scale = np.where(high >= -low, high, low) / np.float32(-8)
        values = np.clip(np.rint(rows / scale[:, None]), -8, 7) * scale[:, None]
    elif "min" in scheme:
        scale = (high - low) / np.float32(255)
        values = np.clip(np.rint((rows - low[:, None]) / scale[:, None]), 0, 255) * scale[:, None] + low[:, None]
        assert qt.zero == low
    else:
        top = np.float32(2**qt.scheme.bits - 1)
        scale = (np.maximum(high, 0) - np.minimum(low, 0)) / top
        shift = np.rint(-np.minimum(low, 0) / scale)
        assert np.array_equal(np.atleast_1d(qt.zero), shift)
        values = (np.clip(np.rint(rows / scale[:, None]) + shift[:, None], 0, top) - shift[:, None]) * scale[:, None]
    assert np.array_equal(np.atleast_1d(qt.scale), scale)
    assert np.array_equal(qt.dequantize().reshape(values.shape), values)
    assert np.array_equal(qlab.fake_quantize(x, scheme), qt.dequantize())


def test_nested_scales_are_a_qtensor():
    qt = qlab.quantize(random_array((8, 64), 0), "nvfp4")
    assert isinstance(qt.scale, QTensor)
    assert qt.scale.shape == (8, 4)
