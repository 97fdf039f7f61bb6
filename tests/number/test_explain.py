"""explain: the same codes as encode, by rational arithmetic; what it says in words; how it shows itself."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.number.formats import FORMATS, FloatFormat, TableFormat
from qlab.number.rounding import ROUNDINGS
from qlab.show.language import LANGUAGES

ROUNDINGS = [r for r in ROUNDINGS if r != "stochastic"]
FORMATS_TRIED = [*FORMATS.values(), FloatFormat("dlfloat16", 6, 9, subnormals=False),
                 FloatFormat("unsigned", 4, 3, signed=False), TableFormat("t", [0, -1, 2, 0.25, math.nan])]  # fmt: skip


def neighbourhood(fmt):
    rng = np.random.default_rng(0)
    values = np.array([fmt.smallest_subnormal, fmt.smallest_normal, min(fmt.max, 1e308), fmt.max / 3, 1.0, 0.1])
    x = np.concatenate([values, values * 1.5, values * 0.5, values * (1 + 2.0**-40), rng.normal(0, 3, 20), [0.0]])
    return np.concatenate([x, -x])


@pytest.mark.parametrize("fmt", FORMATS_TRIED, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_same_code_as_encode(fmt, rounding):
    for x in neighbourhood(fmt):
        told = qlab.explain(x, fmt, rounding=rounding)
        code = int(qlab.encode(x, fmt, rounding=rounding)) & ((1 << fmt.bits) - 1)
        assert told.code == code, (x, told)
        assert np.array_equal(told.value, float(qlab.decode(code, fmt)), equal_nan=True)


@pytest.mark.parametrize("fmt", FORMATS_TRIED, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("x", [math.inf, -math.inf, math.nan])
def test_not_finite(fmt, x):
    if math.isnan(x) and getattr(fmt, "nan_code", None) is None:
        with pytest.raises(ValueError, match="NaN"):
            qlab.explain(x, fmt)
        return
    told = qlab.explain(x, fmt)
    assert told.code == int(qlab.encode(x, fmt)) & ((1 << fmt.bits) - 1)
    assert told.steps


@settings(max_examples=200, deadline=None)
@given(x=st.floats(-7e4, 7e4), name=st.sampled_from(["float16", "bfloat16", "float8_e5m2", "float4_e2m1fn"]))
def test_neighbours_midpoint_and_ulp(x, name):
    fmt = qlab.get_format(name)
    values = np.unique(fmt.values()[~np.isnan(fmt.values())])
    told = qlab.explain(x, fmt)
    below, above = values[values < x], values[values > x]
    assert told.below == (below.max() if below.size else None)
    assert told.above == (above.min() if above.size else None)
    if told.midpoint is not None and abs(x) < fmt.max:
        assert told.midpoint == (Fraction(told.below) + Fraction(told.above)) / 2
        assert Fraction(told.ulp) == Fraction(told.above) - Fraction(told.below)
        half = abs(Fraction(x) - Fraction(math.copysign(min(abs(told.below), abs(told.above)), x))) / Fraction(told.ulp)
        assert told.guard == (half >= Fraction(1, 2))
        assert told.sticky == (half not in (0, Fraction(1, 2)))


def test_the_two_by_hand():
    told = qlab.explain(6.75, "float32")
    assert told.bits == "0 10000001 10110000000000000000000"
    assert (told.sign, told.exponent, told.fraction) == (0, 129, 0b1011 << 19)
    assert told.why == "exact"
    assert qlab.explain(0.15625, "float32").bits == "0 01111100 01000000000000000000000"
    assert f"{qlab.explain(0.15625, 'float16').code:016b}" == "0011000100000000"
    assert qlab.explain(math.pi, "float16").value == qlab.explain(math.pi, "bfloat16").value == 3.140625


def test_decimals_and_fractions_are_taken_exactly():
    tie = Fraction(1) + Fraction(1, 2048)  # half-way between 1 and its neighbour in float16
    assert qlab.explain(tie, "float16").why == "tie_even"
    assert qlab.explain(tie + Fraction(1, 10**30), "float16").why == "nearer_above"
    assert qlab.explain(str(Decimal(1) + Decimal(1) / 2048), "float16").why == "tie_even"
    assert qlab.explain("1.000488281249999999999999999999", "float16").why == "nearer_below"
    assert qlab.explain("1/3", "float16").x == Fraction(1, 3)
    assert qlab.explain("0.1", "float64").error == Fraction(0.1) - Fraction(1, 10)
    assert qlab.explain("0.29201377183198", "nf4").why == "nearer_below"


def test_numbers_beyond_float64():
    for x, value in (("1e400", math.inf), ("-1e4999", -math.inf), ("1e-400", 0.0), (10**400, math.inf)):
        told = qlab.explain(x, "float64")
        assert told.value == value
        assert told.text()
        assert told._repr_html_()
    assert qlab.explain("1e400", "float64", rounding="toward_zero").value == qlab.get_format("float64").max
    for x in ("1e999999999", "1e-999999999", 10**6000):
        with pytest.raises(ValueError, match="out of reach"):
            qlab.explain(x, "float16")


def test_minus_zero():
    told = qlab.explain(-0.0, "float16")
    assert told.code == 0x8000
    assert "-0" in told.steps[0]
    assert qlab.explain("-0", "float16").code == 0x8000
    assert qlab.explain(-0.0, "float8_e4m3fnuz").code == 0


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_tells_every_case(language):
    cases = [(6.75, "float32"), (0.1, "float16"), (70000, "float16"), (3e-8, "float16"), (-1, "float8_e8m0fnu"),
             (2047.5, "float16"), (2.5, "int4"), (99, "int4"), (3, "int4"), (math.nan, "float16"), (0, "float16"),
             (math.inf, "int4"), (math.inf, "float8_e4m3fn"), (1e-3, FloatFormat("dl", 4, 3, subnormals=False))]  # fmt: skip
    for x, fmt in cases:
        for rounding in ROUNDINGS:
            told = qlab.explain(x, fmt, rounding=rounding, language=language)
            assert told.steps
            assert all("{" not in step and step.count("`") % 2 == 0 for step in told.steps)
            html = told._repr_html_()
            assert html.count("<li>") == len(told.steps)
            assert "`" not in html
    assert repr(qlab.explain(0.1, "fp16", language=language)) == repr(qlab.explain(0.1, "fp16"))


def test_language_is_that_of_the_reader():
    english = qlab.explain(0.1, "fp16").steps
    assert qlab.explain(0.1, "fp16", language="fa").steps != english
    qlab.set_language("vi")
    try:
        assert qlab.explain(0.1, "fp16").steps == qlab.explain(0.1, "fp16", language="vi").steps != english
    finally:
        qlab.set_language(None)


@pytest.mark.parametrize(
    "act, error, message",
    [
        (lambda: qlab.explain([1, 2], "fp16"), TypeError, "takes one number"),
        (lambda: qlab.explain("one", "fp16"), ValueError, "'one' is not a number"),
        (lambda: qlab.explain(True, "fp16"), TypeError, "takes one number"),
        (lambda: qlab.explain(None, "fp16"), TypeError, "takes one number"),
        (lambda: qlab.explain(1, "fp16", rounding="stochastic"), ValueError, "rounding='stochastic'"),
        (lambda: qlab.explain(1, "fp16", language="de"), ValueError, "allowed are 'en'"),
        (lambda: qlab.explain(math.nan, "int8"), ValueError, "NaN"),
    ],
)
def test_refusals(act, error, message):
    with pytest.raises(error) as caught:
        act()
    assert message in str(caught.value)
