"""float16 and bfloat16 are widened, narrowed and looked up as NumPy and ml_dtypes say, for all 65536 of each."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from oracles import bfloat16_inputs, float16_inputs, same

import qlab
from qlab._pieces import PIECE, Scratch
from qlab.number.halves import BFLOAT16, PATTERNS, is_bfloat16, narrow, widen
from qlab.number.rounding import ROUNDINGS

BOTH = pytest.mark.parametrize("dtype", [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)], ids=str)
LAYOUTS = {
    "contiguous": lambda x: x, "strided": lambda x: np.repeat(x, 3)[::3], "backward": lambda x: x[::-1].copy()[::-1],
    "transposed": lambda x: x.reshape(256, -1).T.copy().T,
}  # fmt: skip


def all_of(dtype):
    return np.arange(PATTERNS, dtype=np.uint16).view(dtype)


@pytest.mark.parametrize("float_type", [np.float32, np.float64])
def test_every_pattern_is_widened(float_type):
    bits = f"u{np.dtype(float_type).itemsize}"
    dtypes = {np.float16: float16_inputs(), ml_dtypes.bfloat16: bfloat16_inputs(), BFLOAT16: bfloat16_inputs()}
    for dtype, expected in dtypes.items():
        with np.errstate(invalid="ignore"):  # signalling NaN
            values, expected = widen(all_of(dtype), float_type, Scratch()), expected.astype(float_type)
        assert np.array_equal(values.view(bits), expected.view(bits)), dtype  # payloads of NaN too


@BOTH
def test_to_formats_that_need_float64(dtype):
    x = all_of(dtype)
    with np.errstate(invalid="ignore"):
        expected = x.astype(np.float64)
    for name in ("float64", qlab.FloatFormat("wide", 11, 20)):
        assert same(qlab.cast(x[::7], name), expected[::7]).all()
        assert same(qlab.cast(x, name), expected).all()


def test_every_float16_is_narrowed():
    values = float16_inputs().astype(np.float32)
    for some in (values[np.isfinite(values)], values[~np.isnan(values)], values):  # by the bits; with infinities; with NaN
        half = np.empty(some.size, np.float16)
        narrow(some, half, Scratch())
        assert np.array_equal(half.view(np.uint16), some.astype(np.float16).view(np.uint16))


def test_every_bfloat16_is_narrowed():
    values = bfloat16_inputs()
    for dtype in (BFLOAT16, np.dtype(ml_dtypes.bfloat16)):
        half = np.empty(PATTERNS, dtype)
        narrow(values, half, Scratch())
        assert np.array_equal(half.view(np.uint16), np.arange(PATTERNS))


def test_subnormals_do_not_depend_on_the_processor_flushing_them():
    torch = pytest.importorskip("torch")
    values, half = float16_inputs()[:2048].astype(np.float32), np.empty(2048, np.float16)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormals")
    try:
        wide = widen(float16_inputs()[:2048], np.float32, Scratch())
        narrow(values, half, Scratch())
    finally:
        torch.set_flush_denormal(False)
    assert np.array_equal(wide, values)
    assert np.array_equal(half.view(np.uint16), np.arange(2048))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e8m0fnu"])
@pytest.mark.parametrize("layout", LAYOUTS)
@BOTH
def test_long_arrays_are_looked_up(name, layout, dtype):
    """Every value, several times, in more than one piece: the same as of float32, which the oracles judge elsewhere."""
    x = LAYOUTS[layout](np.tile(all_of(dtype), 5))
    wide = float16_inputs().astype(np.float32) if dtype == np.float16 else bfloat16_inputs()
    assert x.size > PIECE
    for rounding in (r for r in ROUNDINGS if r != "stochastic"):
        for overflow in ("ieee", "saturate"):
            options = {"rounding": rounding, "overflow": overflow}
            values, codes = qlab.cast(x, name, **options).reshape(5, -1), qlab.encode(x, name, **options).reshape(5, -1)
            assert values.dtype == (np.float32 if dtype == np.float16 and name == "float8_e8m0fnu" else dtype)
            assert same(values, qlab.cast(wide, name, **options)).all(), options
            assert (codes == qlab.encode(wide, name, **options)).all(), options


@BOTH
def test_stochastic_rounding_of_long_arrays(dtype):
    x = np.tile(all_of(dtype), 5)
    wide, noise = x.astype(np.float32), np.random.default_rng(0).integers(0, 1 << 16, x.size, np.uint16)
    finite = np.isfinite(wide)
    for kept in (slice(None), finite):
        options = {"rounding": "stochastic", "noise": noise[kept]}
        assert same(qlab.cast(x[kept], "float8_e5m2", **options), qlab.cast(wide[kept], "float8_e5m2", **options)).all()


def test_big_endian():
    x = np.tile(float16_inputs(), 2)
    assert same(qlab.cast(x.astype(">f2"), "float8_e4m3fn"), qlab.cast(x, "float8_e4m3fn")).all()


@BOTH
def test_nan_in_long_arrays(dtype):
    x = np.zeros(2 * PIECE, np.float32).astype(dtype)
    out = np.full(x.shape, 7.0).astype(dtype)
    x[-3:] = np.array([np.inf, -np.nan, 1.5]).astype(dtype)
    for options in ({}, {"out": out}):
        with pytest.raises(ValueError, match=rf"holds 1 NaN \(the first at index \({x.size - 2},\)"):
            qlab.cast(x, "float4_e2m1fn", **options)
    assert (out == 7.0).all()
    assert qlab.cast(x, "float4_e2m1fn", nan="zero")[-3:].tolist() == [6, 0, 1.5]
    x[-2] = ml_dtypes.finfo(dtype).min
    assert qlab.cast(x, "float4_e2m1fn")[-3:].tolist() == [6, -6, 1.5]  # neither an infinity nor what is large is one
    x[-2] = -np.nan
    peers = x.astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert same(qlab.cast(x, "float4_e2m1fn", policy="ml_dtypes"), peers).all()


@BOTH
def test_out_may_be_the_input_of_a_long_array(dtype):
    x = np.random.default_rng(0).standard_normal(2 * PIECE + 5).astype(dtype)
    expected = qlab.cast(x, "float8_e4m3fn")
    assert qlab.cast(x, "float8_e4m3fn", out=x) is x
    assert np.array_equal(x.view(np.uint16), expected.view(np.uint16))


def test_what_stands_for_bfloat16_is_not_for_users():
    assert is_bfloat16(BFLOAT16)
    with pytest.raises(TypeError, match="can be rounded"):
        qlab.quantize(np.zeros(32, BFLOAT16), "int8")
