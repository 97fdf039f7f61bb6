"""Shapes, strides, dtypes, threads, `out`, and refusals of encode, decode and cast."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import same

import qlab
from qlab._pieces import PIECE
from qlab.number.formats import FORMATS, FloatFormat, IntFormat, TableFormat

NAMES = sorted(FORMATS)
FLOATS = st.sampled_from([np.float16, np.float32, np.float64])


def one_by_one(x, name, **options):
    return [float(qlab.cast(v, name, **options)) for v in x.ravel().tolist()]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(NAMES), dtype=FLOATS)
def test_any_shape_and_stride_is_elementwise(data, name, dtype):
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
    x = data.draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(np.dtype(dtype), allow_nan=False)))
    index = tuple(data.draw(st.sampled_from([slice(None), slice(None, None, -1), slice(None, None, 2)])) for _ in shape)
    view = np.asarray(x[index].T)
    view.flags.writeable = False
    before = view.copy()
    with np.errstate(over="ignore"):
        result, codes = qlab.cast(view, name), qlab.encode(view, name)
    assert result.shape == codes.shape == view.shape
    assert same(result.ravel(), one_by_one(view.astype(np.float64), name)).all()
    assert same(qlab.decode(codes, name), result).all()
    assert np.array_equal(view, before)


@settings(max_examples=60, deadline=None)
@given(x=hnp.arrays(np.float32, 40, elements=st.floats(width=32, allow_nan=False)), name=st.sampled_from(NAMES))
def test_rounding_is_idempotent_and_monotonic(x, name):
    once = qlab.cast(x, name, overflow="saturate")
    again = qlab.cast(once, name, overflow="saturate")
    assert same(again, once).all()
    ordered = qlab.cast(np.sort(x), name, overflow="saturate")
    assert (np.diff(ordered[~np.isnan(ordered)]) >= 0).all()


@settings(max_examples=60, deadline=None)
@given(x=st.floats(-1e30, 1e30), name=st.sampled_from(["float16", "bfloat16", "float8_e4m3fn", "float4_e2m1fn"]))
def test_directed_roundings_enclose(x, name):
    down, up = (float(qlab.cast(x, name, rounding=r, overflow="saturate")) for r in ("down", "up"))
    inside = np.clip(x, -qlab.get_format(name).max, qlab.get_format(name).max)
    assert down <= inside <= up
    assert float(qlab.cast(x, name, overflow="saturate")) in (down, up)
    assert abs(float(qlab.cast(x, name, rounding="toward_zero"))) <= abs(x)


CODE_DTYPES = {"int4": np.uint8, "float8_e5m2": np.uint8, "uint9": np.int32, "float16": np.int32, "float32": np.int32,
               "tfloat32": np.int32, "float64": np.int64}  # fmt: skip


@pytest.mark.parametrize("name, dtype", CODE_DTYPES.items())
def test_code_dtypes(name, dtype):
    assert qlab.encode([1.0, -1.0][: 1 + (name[0] != "u")], name).dtype == dtype


def test_codes_are_bit_patterns():
    assert qlab.encode(-1.0, "int4") == 0b1111
    assert qlab.encode(-1.0, "float32").view(np.uint32) == 0xBF800000
    assert qlab.encode(-1.0, "int16") == 0xFFFF


CAST_DTYPES = [
    (np.float16, "float8_e4m3fn", np.float16), (np.float16, "bfloat16", np.float32), (np.float16, "float16", np.float16),
    (np.float32, "float16", np.float32), (np.float32, "float64", np.float64), (np.float64, "float16", np.float64),
    (np.int8, "float16", np.float32), (np.int32, "float16", np.float32), (np.int64, "float16", np.float64),
    (np.uint64, "int4", np.float64), (ml_dtypes.bfloat16, "float8_e5m2", ml_dtypes.bfloat16),
    (ml_dtypes.bfloat16, "float16", np.float32), (np.float16, "nf4", np.float32), (np.float32, "int16", np.float32),
    (np.float16, "int8", np.float16), (np.float16, "int16", np.float32),
]  # fmt: skip


@pytest.mark.parametrize("source, name, result", CAST_DTYPES)
def test_cast_dtypes(source, name, result):
    x = np.array([0, 1, 2]).astype(source)
    assert qlab.cast(x, name).dtype == result


def test_bfloat16_input():
    bits = np.arange(65536, dtype=np.uint16)
    x = bits.view(ml_dtypes.bfloat16)
    wide = (bits.astype(np.uint32) << 16).view(np.float32)
    for name in ("float16", "float8_e4m3fn", "bfloat16"):
        assert same(qlab.cast(x, name).astype(np.float64), qlab.cast(wide, name)).all()


def test_scalars_lists_and_zero_dimensions():
    assert isinstance(qlab.cast(0.1, "float16"), np.float64)
    assert qlab.cast([0.1, 0.2], "float16").shape == (2,)
    assert qlab.cast(np.float32(0.1), "float16").dtype == np.float32
    assert qlab.cast([], "float16").shape == (0,)
    assert qlab.encode(np.zeros((0, 3), np.float32), "int8").shape == (0, 3)
    assert qlab.decode(np.zeros((0, 3), np.uint8), "int8").shape == (0, 3)
    assert qlab.decode(3, "uint2") == 3.0
    assert qlab.cast(np.array([1.5], ">f4"), "float16").tolist() == [1.5]


def test_out_is_used_and_may_be_the_input():
    x = np.random.default_rng(0).standard_normal(3 * PIECE + 5).astype(np.float32)
    expected = qlab.cast(x, "bfloat16")
    out = np.empty_like(x)
    assert qlab.cast(x, "bfloat16", out=out) is out
    assert np.array_equal(out, expected)
    in_place = x.copy()
    qlab.cast(in_place, "bfloat16", out=in_place)
    assert np.array_equal(in_place, expected)
    shifted = np.concatenate([[np.float32(0)], x])
    qlab.cast(shifted[:-1], "bfloat16", out=shifted[1:])  # overlapping: as if the input had been copied first
    assert np.array_equal(shifted[2:], expected[:-1])
    codes = np.empty(x.shape, np.int32)
    assert qlab.encode(x, "bfloat16", out=codes) is codes
    assert np.array_equal(qlab.decode(codes, "bfloat16", out=out), expected)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float4_e2m1fn", "bfloat16", "int8", "nf4", "float8_e8m0fnu"])
def test_pieces_and_threads_change_nothing(name):
    x = np.random.default_rng(0).standard_normal(17 * PIECE + 17).astype(np.float32)
    x[[3, PIECE, 2 * PIECE + 1]] = [1e30, -1e30, 1e-42]
    small = np.concatenate([qlab.cast(x[i : i + 999], name) for i in range(0, x.size, 999)])
    try:
        for threads in (1, 2, 3):
            qlab.set_num_threads(threads)
            assert same(qlab.cast(x, name), small).all()
            assert same(qlab.decode(qlab.encode(x, name), name), small).all()
    finally:
        qlab.set_num_threads(None)


def test_a_walk_inside_of_a_piece_keeps_to_its_thread():
    """Two threads that each wait for a second one would wait for ever."""
    code = """
import time, qlab
from qlab._pieces import walk
seen = []
def inner(piece, scratch): seen.append(piece.start)
def outer(piece, scratch):
    time.sleep(0.05)
    walk(9, inner, piece=1)
qlab.set_num_threads(2)
walk(4, outer, piece=1)
walk(9, inner, piece=1)
print(len(seen))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "45"


def test_threads_follow_the_environment():
    code = "import qlab; print(qlab.get_num_threads())"
    run = subprocess.run([sys.executable, "-c", code], env={"OMP_NUM_THREADS": "3"}, capture_output=True, text=True)
    assert run.stdout.strip() == "3"
    for bad in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="num_threads"):
            qlab.set_num_threads(bad)


NAN = float("nan")
REFUSED = [
    (lambda: qlab.cast(1.0, "float16", rounding="nearest"), ValueError, "allowed are 'nearest_even'"),
    (lambda: qlab.cast(1.0, "float16", overflow="wrap"), ValueError, "allowed are 'ieee', 'saturate'"),
    (lambda: qlab.cast(1.0, "float16", nan="keep"), ValueError, "allowed are 'raise', 'zero'"),
    (lambda: qlab.cast(1.0, "float61"), ValueError, "float16"),
    (lambda: qlab.cast([[0, NAN], [NAN, 1]], "int8"), ValueError, "x holds 2 NaN (the first at index (0, 1)), and int8"),
    (lambda: qlab.encode(NAN, "float4_e2m1fn"), ValueError, "nan='zero'"),
    (lambda: qlab.cast(1j, "float16"), TypeError, "complex128"),
    (lambda: qlab.cast("one", "float16"), TypeError, "<U3"),
    (lambda: qlab.cast([True], "float16"), TypeError, "bool"),
    (lambda: qlab.cast([None], "float16"), TypeError, "object"),
    (lambda: qlab.cast(np.longdouble(1), "float16"), TypeError, "can be rounded"),
    (lambda: qlab.cast(1.0, "float16", rounding="stochastic"), ValueError, "needs either noise"),
    (lambda: qlab.cast([1.0], "float16", noise=np.uint8([1])), ValueError, "noise is for rounding='stochastic'"),
    (lambda: qlab.cast([1.0], "fp16", rounding="stochastic", noise=np.int8([1])), ValueError, "uint8, uint16 or uint32"),
    (lambda: qlab.cast([1.0], "fp16", rounding="stochastic", noise=np.uint8([1, 2])), ValueError, "shape of x, (1,)"),
    (lambda: qlab.cast(np.ones(3), "fp16", out=np.ones(3, np.float32)), ValueError, "float64 array of shape (3,)"),
    (lambda: qlab.cast(np.ones(3), "fp16", out=np.ones(4)), ValueError, "shape (3,)"),
    (lambda: qlab.cast(np.ones(3), "fp16", out=[0, 0, 0]), ValueError, "out is list"),
    (lambda: qlab.cast(np.ones(3), "fp16", out=np.ones(6)[::2]), ValueError, "C-contiguous"),
    (lambda: qlab.cast([1.0], "fp16", rng=1), ValueError, "rng is for rounding='stochastic'"),
    (lambda: qlab.cast([1.0], "fp16", rounding="stochastic", rng=-1), ValueError, "rng=-1"),
    (lambda: qlab.cast([1.0], "fp16", rounding="stochastic", rng="seed"), TypeError, "rng is str"),
    (lambda: qlab.cast([1.0], "fp16", policy="jax"), ValueError, "allowed are 'torch', 'ml_dtypes', 'ocp'"),
    (lambda: qlab.cast([1.0], "int8", policy="torch"), ValueError, "not int8"),
    (lambda: qlab.cast([1.0], "fp16", policy="torch", rounding="up"), ValueError, "rounding='up'"),
    (lambda: qlab.cast([1.0], "fp16", gradient="none"), ValueError, "allowed are 'pass', 'clipped'"),
    (lambda: qlab.decode(1.0, "fp16"), TypeError, "codes are integers"),
    (lambda: qlab.decode(1, "float64", dtype=np.float32), ValueError, "use float64"),
    (lambda: qlab.decode(1, "bfloat16", dtype=np.float16), ValueError, "use float32"),
    (lambda: qlab.decode(1, "int8", dtype=np.int8), ValueError, "cannot hold"),
    (lambda: qlab.decode(3, TableFormat("t", [0, 1, 2])), ValueError, "code 3 is beyond the table"),
]


@pytest.mark.parametrize("act, error, message", REFUSED)
def test_refusals_name_the_value_and_the_remedy(act, error, message):
    with pytest.raises(error) as caught:
        act()
    assert message in str(caught.value)


def test_refusal_leaves_out_untouched():
    x, out = np.zeros(3 * PIECE), np.full(3 * PIECE, 7.0)
    x[-1] = NAN
    with pytest.raises(ValueError, match=rf"index \({3 * PIECE - 1},\)"):
        qlab.cast(x, "int8", out=out)
    assert (out == 7.0).all()


def test_nan_becomes_zero_if_asked():
    x = np.array([NAN, -NAN, 1.0])
    for fmt in (IntFormat(4), "float4_e2m1fn", "nf4", FloatFormat("f", 3, 0, infinities=False, nans="none")):
        assert qlab.cast(x, fmt, nan="zero").tolist() == [0, 0, 1]
        assert np.isnan(x[0])


def test_nan_stays_nan_where_there_is_one():
    nans = np.array([0x7FC00000, 0xFFC00001, 0x7F800001], np.uint32).view(np.float32)
    for name in ("float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e8m0fnu", "float32", "float64"):
        assert np.isnan(qlab.cast(nans, name)).all()
        assert set(qlab.encode(nans, name).tolist()) == {qlab.get_format(name).nan_code}


def test_no_warning_is_given():
    with np.errstate(all="raise"):
        qlab.cast(np.array([1e300, -1e300, np.inf, NAN, 5e-324]), "float16")
        qlab.cast(np.float32([1e38, np.inf, NAN, 1e-45] * PIECE), "float8_e4m3fn")


def test_subnormals_do_not_depend_on_the_processor_flushing_them():
    """Loading some libraries switches subnormals off in a thread; codes of float32's own subnormals must not change."""
    x = np.uint32([1, 2, 3, 0x400000, 0x7FFFFF]).view(np.float32)
    assert qlab.encode(x, "float32").tolist() == [1, 2, 3, 0x400000, 0x7FFFFF]
    assert qlab.encode(x, "bfloat16").tolist() == [0, 0, 0, 64, 128]
