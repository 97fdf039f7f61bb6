"""The first brick of the algebra: fake_quantize by a scheme, and the integer product; late scales, names, saturation."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qlab
from qlab.tensor.product import integer_product, time_products

ORDINARY = st.floats(-1e6, 1e6, width=32).filter(lambda v: v == 0 or abs(v) > 1e-6)


@given(x=hnp.arrays(np.float32, hnp.array_shapes(max_dims=2), elements=ORDINARY), bits=st.integers(2, 16))
def test_error_is_at_most_half_a_step(x, bits):
    step, unit = np.abs(x).max() / (2 ** (bits - 1) - 1), np.abs(x).max() * 2.0**-23  # codes times scale is rounded too
    error = np.abs(qlab.fake_quantize(x, f"int{bits}").astype(np.float64) - x)
    assert (error <= step * (0.5 + 1e-5) + unit + 1e-30).all()
    assert len(np.unique(qlab.fake_quantize(x, f"int{bits}"))) <= 2**bits - 1


@given(x=hnp.arrays(np.float32, 17, elements=ORDINARY), k=st.integers(-20, 20))
def test_scaling_by_a_power_of_two_changes_nothing_else(x, k):
    factor = np.float32(2.0**k)
    assert np.array_equal(qlab.fake_quantize(x * factor, "int4"), qlab.fake_quantize(x, "int4") * factor)


@given(x=hnp.arrays(np.float32, 17, elements=ORDINARY))
def test_symmetric(x):
    assert np.array_equal(qlab.fake_quantize(-x, "int4"), -qlab.fake_quantize(x, "int4"))


def test_against_the_formula():
    x = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    scale = np.float32(np.abs(x).max() / 7)
    assert np.array_equal(qlab.fake_quantize(x, "int4"), np.rint(x / scale) * scale)
    expected = np.where(x <= 0, -1, 1) * np.float32(np.abs(x).mean(dtype=np.float64))
    assert np.array_equal(qlab.fake_quantize(x, "binary"), expected.astype(np.float32))


def test_zeros_stay_zeros():
    assert np.array_equal(qlab.fake_quantize(np.zeros(5, np.float32), "int8"), np.zeros(5))


def test_input_is_not_changed():
    x = np.random.default_rng(0).standard_normal(100)
    x.flags.writeable = False
    assert qlab.fake_quantize(x, "int8").dtype == np.float64


def test_integer_product_is_exact():
    rng = np.random.default_rng(0)
    a, b = rng.integers(-128, 128, (17, 300), dtype=np.int8), rng.integers(-128, 128, (300, 8), dtype=np.int8)
    assert np.array_equal(integer_product(a, b), a.astype(np.int64) @ b.astype(np.int64))


def test_time_products_measures():
    table = time_products([16, 32], batch=4)
    assert [row[0] for row in table.rows] == [16, 32]
    assert all(time > 0 for row in table.rows for time in row[1:])


@pytest.mark.parametrize(
    "act, error, message",
    [
        (lambda: qlab.get_scheme("int44"), ValueError, "'int4'"),
        (lambda: qlab.get_scheme("int1"), ValueError, "use 'binary'"),
        (lambda: qlab.get_scheme(4), TypeError, "not int"),
        (lambda: qlab.Scheme("int4", scale="max"), ValueError, "'absmax', 'minmax'"),
        (lambda: qlab.fake_quantize([], "int8"), ValueError, "empty"),
        (lambda: qlab.fake_quantize([1, np.inf], "int8"), ValueError, "infinities or NaN"),
        (lambda: qlab.fake_quantize([1, np.nan], "int8"), ValueError, "infinities or NaN"),
        (lambda: qlab.fake_quantize([1j], "int8"), TypeError, "complex"),
        (lambda: integer_product(np.ones((2, 2)), np.ones((2, 2))), ValueError, "int8 matrices"),
    ],
)
def test_refusals(act, error, message):
    with pytest.raises(error) as caught:
        act()
    assert message in str(caught.value)


def normals(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_late_scales_are_rounded_after_the_codes_are_found():
    x = normals(40, 64)
    blocks = x.reshape(40, 2, 32)
    scale = np.abs(blocks).max(axis=2) / np.float32(7)
    stored = scale.astype(np.float16).astype(np.float32)
    for name, by in (("int4-b32-late/f16", scale), ("int4-b32/f16", stored)):
        qt = qlab.quantize(x, name)
        codes = np.rint(blocks / by[..., None]).clip(-8, 7)
        assert np.array_equal(qt.codes().astype(np.int8), codes.reshape(40, 64).astype(np.int8) & 15)
        assert np.array_equal(qt.scale, stored)
        assert np.array_equal(qlab.fake_quantize(x, name), (codes * stored[..., None]).reshape(40, 64))
    assert (qlab.quantize(x, "int4-b32-late/f16").codes() != qlab.quantize(x, "int4-b32/f16").codes()).any()


def test_late_minima_too():
    x = normals(40, 64)
    blocks = x.reshape(40, 2, 32)
    low = blocks.min(axis=2)
    scale = (blocks.max(axis=2) - low) / np.float32(15)
    codes = np.rint((blocks - low[..., None]) / scale[..., None]).clip(0, 15).astype(np.uint8)
    qt = qlab.quantize(x, "uint4-b32-min-late/f16")
    assert np.array_equal(qt.codes(), codes.reshape(40, 64))
    assert np.array_equal(qt.zero, low.astype(np.float16).astype(np.float32))


def test_late_in_a_block_longer_than_a_piece():
    x = normals(3 << 17)
    scale = np.abs(x).max() / np.float32(32767)
    qt = qlab.quantize(x, "int16-late/bf16")
    assert np.array_equal(qt.codes().astype(np.int16), np.rint(x / scale).astype(np.int16))
    assert qt.scale == scale.astype(ml_dtypes.bfloat16)
    assert qt.scale != scale


def test_a_changed_scheme_loses_its_name():
    named = qlab.get_scheme("int8")
    changed = replace(named, blocks=qlab.PerAxis(1))
    assert (named.name, str(named), changed.name, str(changed)) == ("int8", "int8", "", "int8-axis1")
    assert repr(changed) == "get_scheme('int8-axis1')"
    assert str(replace(qlab.get_scheme("mxfp4"), layout=None)) == "fp4-b32-mx/e8m0"
    assert copy.deepcopy(named).name == pickle.loads(pickle.dumps(named)).name == "int8"
    assert (qlab.get_scheme("int8").name, qlab.SCHEMES["int8"].name) == ("int8", "int8")
    assert replace(named) == named
    with pytest.raises(TypeError):
        qlab.Scheme("int8", name="mine")


@pytest.mark.parametrize("order", ["", "-low_first"])
def test_an_odd_number_of_codes_with_reciprocals(order):
    x = normals(5)
    qt = qlab.quantize(x, f"nf4{order}")
    table = np.array(qt.scheme.format.table, np.float32)
    nearest = np.abs(x / np.abs(x).max() - table[:, None]).argmin(axis=0)
    assert np.array_equal(qt.codes(), nearest)
    last = int(qt.payload[-1])
    assert (last & 15 if order == "" else last >> 4) == 7  # the code of zero


def test_values_saturate_whatever_lies_beside_them():
    """Near float16's end what a block gives does not depend on the other blocks."""
    x = np.float32([[1e6, 1e6 + 1], [3e5, -3e5]])
    alone = qlab.quantize(x[:1], "uint8-row-min").dequantize(dtype=np.float16)
    together = qlab.quantize(x, "uint8-row-min").dequantize(dtype=np.float16)
    assert alone.tolist() == together[:1].tolist() == [[65504, 65504]]
    assert together[1].tolist() == [65504, -65504]


@pytest.mark.parametrize("name", ["q8_0", "q4_k", "q6_k", "mxfp4_gguf"])
@pytest.mark.parametrize("columns", [512, 300])
def test_gguf_values_are_written_to_out(name, columns):
    qt = qlab.quantize(normals(4, columns), name)
    values = qt.dequantize()
    for dtype in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16):
        for out in (np.empty((4, columns), dtype), np.empty((columns, 4), dtype).T):
            assert qt.dequantize(dtype=dtype, out=out) is out
            assert np.array_equal(out, values.astype(dtype))
    with pytest.raises(ValueError, match="out is"):
        qt.dequantize(out=np.empty(3, np.float32))


def test_gguf_values_need_no_second_copy():
    import tracemalloc

    qt = qlab.quantize(normals(64, 1 << 16), "q8_0")
    out = np.empty(qt.shape, np.float32)
    qt.dequantize(out=out)
    tracemalloc.start()
    qt.dequantize(out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < out.nbytes / 4


def test_gguf_values_saturate_and_bfloat16_comes_in():
    top = np.full((1, 32), 65504, np.float16)
    assert (qlab.fake_quantize(top, "q8_0") == 65504).all()
    x = normals(2, 256).astype(ml_dtypes.bfloat16)
    qt = qlab.quantize(x, "q4_k")
    assert np.array_equal(qt.payload, qlab.quantize(x.astype(np.float32), "q4_k").payload)
    assert qt.dequantize().dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("fmt", ["float16", "bfloat16", "e4m3", "e5m2", "int8"])
def test_a_unit_scale_is_a_plain_cast(fmt):
    x = np.concatenate([np.linspace(-300, 300, 4001), [1e6, -1e6, 1e-6, 0, 65504, 65536]]).astype(np.float32)
    stored = qlab.quantize(x, f"{fmt}-unit")
    assert np.array_equal(stored.dequantize(), qlab.cast(x, fmt, overflow="saturate"))
    assert stored.scale == 1
    assert str(stored.scheme) == f"{fmt}-unit"
    assert qlab.get_scheme(str(stored.scheme)) == stored.scheme
