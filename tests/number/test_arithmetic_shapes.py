"""Arithmetic on arrays of any shape, stride and dtype is arithmetic on their numbers, one by one (Hypothesis)."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import same

from qlab import arithmetic, cast, get_format
from qlab.number.operands import has_nan

FORMATS = ["float16", "bfloat16", "float8_e4m3fn", "float4_e2m1fn", "int8", "uint4", "posit8", "takum8", "nf4"]
DTYPES = [np.float16, np.float32, np.float64, np.int8, np.int32, np.uint8, ml_dtypes.bfloat16]
VERBS = {"add": 2, "sub": 2, "mul": 2, "div": 2, "sqrt": 1, "fma": 3}


@st.composite
def arrays(draw, shape):
    """Numbers of some dtype, in memory that runs forwards, backwards, transposed, or with gaps."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    numbers = np.array(draw(st.lists(st.integers(1, 24), min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))))
    array = (numbers / 8 if dtype.kind not in "iu" else numbers).reshape(shape).astype(dtype)
    if not array.ndim:
        return array
    layout = draw(st.sampled_from(["C", "F", "backwards", "gaps"]))
    if layout == "backwards":
        return array[::-1].copy()[::-1]
    if layout == "gaps":
        return np.repeat(array, 2, axis=-1)[..., ::2]
    return np.array(array, order=layout)


@st.composite
def operands(draw, count):
    shapes = draw(hnp.mutually_broadcastable_shapes(num_shapes=count, min_side=0, max_side=4, max_dims=3))
    return [draw(arrays(shape)) for shape in shapes.input_shapes], shapes.result_shape


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(list(VERBS)), st.sampled_from(FORMATS), st.sampled_from(["nearest_even", "up", "to_odd"]))
def test_elementwise(data, name, fmt, rounding):
    verb = getattr(arithmetic, name)
    given_ones, shape = data.draw(operands(VERBS[name]))
    before = [array.copy() for array in given_ones]
    spread = np.broadcast_arrays(*given_ones)
    if not has_nan(get_format(fmt)) and name == "div":  # what is rounded to 0 / 0 is refused, among others as alone
        zeros = np.logical_and(*(cast(array.astype(float), fmt) == 0 for array in spread))
        if zeros.any():
            with pytest.raises(ValueError, match=f"{zeros.sum()} results? (is|are) NaN"):
                verb(*given_ones, fmt, rounding=rounding)
            return
    result = verb(*given_ones, fmt, rounding=rounding)
    assert np.shape(result) == shape
    assert isinstance(result, np.ndarray) == bool(shape)  # without axes: a scalar
    assert result.dtype == verb(*(np.ones(1, array.dtype) for array in given_ones), fmt, rounding=rounding).dtype
    for index in np.ndindex(shape):
        assert same(np.asarray(result)[index], verb(*(array[index] for array in spread), fmt, rounding=rounding))
    assert all(np.array_equal(a, b) for a, b in zip(given_ones, before, strict=True))


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(FORMATS), st.sampled_from(["sum", "dot"]))
def test_reductions(data, fmt, name):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    count = 1 if name == "sum" else 2
    given_ones = [data.draw(arrays(shape)) for _ in range(count)]
    result = getattr(arithmetic, name)(*given_ones, fmt, axis=axis)
    lead = np.moveaxis(np.empty(shape), axis, 0).shape[1:]
    assert np.shape(result) == lead
    assert result.dtype == arithmetic.add(*(given_ones * 2)[:2], fmt).dtype
    total = np.zeros(lead)
    moved = [np.moveaxis(array, axis, 0) for array in given_ones]
    for i in range(shape[axis]):
        term = moved[0][i] if count == 1 else arithmetic.mul(moved[0][i], moved[1][i], fmt)
        total = arithmetic.add(total, term, fmt)
    assert same(result, total).all()


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(FORMATS))
def test_matmul(data, fmt):
    m, k, n = (data.draw(st.integers(0, 4)) for _ in range(3))
    lead = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_side=3, max_dims=2))
    left, right = (data.draw(arrays((*one, *last))) for one, last in zip(lead.input_shapes, ((m, k), (k, n)), strict=True))
    result = arithmetic.matmul(left, right, fmt)
    assert result.shape == (*lead.result_shape, m, n)
    left, right = (np.broadcast_to(one, (*lead.result_shape, *one.shape[-2:])) for one in (left, right))
    for index in np.ndindex(result.shape):
        *batch, row, column = index
        one = arithmetic.dot(left[(*batch, row)], right[(*batch, slice(None), column)], fmt)
        assert same(result[index], one)
