"""The first brick of the algebra: fake_quantize by a scheme, and the integer product."""

from __future__ import annotations

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
    step = np.abs(x).max() / (2 ** (bits - 1) - 1)
    error = np.abs(qlab.fake_quantize(x, f"int{bits}").astype(np.float64) - x)
    assert (error <= step * (0.5 + 1e-5) + 1e-30).all()
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
    assert all(row[1] >= 0 and row[3] > 0 for row in table.rows)


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
