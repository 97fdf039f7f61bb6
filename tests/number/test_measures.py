"""ulp, ulp_distance, reports and rankings: against NumPy's own floats, brute force over all values, and properties."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qlab
from qlab.number.formats import FORMATS, FloatFormat, IntFormat, TableFormat
from qlab.number.measures import FormatReports
from qlab.show.language import LANGUAGES

NATIVE = {"float16": np.float16, "float32": np.float32, "float64": np.float64}
LISTED = [fmt for fmt in FORMATS.values() if fmt.bits <= 8] + [
    FloatFormat("dlfloat8", 4, 3, subnormals=False), FloatFormat("no_sign", 4, 3, signed=False),
    TableFormat("t", [0, -1, 2, 0.25, math.nan]), TableFormat("gap", [-1, 1]),
]  # fmt: skip


def numbers(fmt):
    return np.unique(fmt.values()[np.isfinite(fmt.values())])


def around(values):
    points = np.concatenate([values, (values[1:] + values[:-1]) / 2])
    return np.concatenate([points, np.nextafter(points, np.inf), np.nextafter(points, -np.inf)])


def step_by_hand(x, values):
    """Distance of the neighbours around a number, away from zero if it is one of them; at the ends, the last one."""
    if x >= 0:
        low = max((i for i, v in enumerate(values) if v <= x), default=0)
    else:
        low = max((i for i, v in enumerate(values) if v < x), default=0)
    low = min(low, len(values) - 2)
    return values[low + 1] - values[low]


@pytest.mark.parametrize("fmt", LISTED, ids=lambda fmt: fmt.name)
def test_ulp_by_brute_force(fmt):
    values = numbers(fmt)
    x = around(values[(values > -1e300)])
    x = x[(x >= fmt.min) & (x < fmt.max)]  # at the largest value: see test_ulp_at_the_ends
    steps = qlab.ulp(x, fmt)
    for number, step in zip(x.tolist(), steps.tolist(), strict=True):
        if number == fmt.min and isinstance(fmt, FloatFormat):
            continue
        assert step == step_by_hand(number, values), number


@settings(max_examples=200, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(NATIVE)))
def test_ulp_is_numpy_spacing(data, name):
    dtype = NATIVE[name]
    x = data.draw(hnp.arrays(dtype, 8, elements=hnp.from_dtype(np.dtype(dtype), allow_nan=True)))
    x = np.where(np.abs(x) == np.finfo(dtype).max, dtype(1), x)  # NumPy has infinity there
    with np.errstate(invalid="ignore"):
        expected = np.spacing(np.abs(x)).astype(np.float64)  # (of -1, float16 goes towards zero, float32 away from it)
    assert np.array_equal(qlab.ulp(x, name), expected, equal_nan=True)
    assert np.array_equal(qlab.ulp(x.astype(np.float64), name), expected, equal_nan=True)


def test_ulp_at_the_ends():
    assert qlab.ulp([65504, 1e9, -1e9], "float16").tolist() == [32, 32, 32]
    assert qlab.ulp([448, -448, 1e9], "float8_e4m3fn").tolist() == [32, 32, 32]
    assert qlab.ulp([127, -128, 1000], "int8").tolist() == [1, 1, 1]
    assert qlab.ulp([-5.0, 0.0], "float8_e8m0fnu").tolist() == [2.0**-127] * 2
    assert qlab.ulp([2.0, -1.0, 9.0], LISTED[-2]).tolist() == [1.75, 1, 1.75]
    assert np.isnan(qlab.ulp([np.nan, np.inf, -np.inf], "int8")).all()
    assert isinstance(qlab.ulp(1, "float16"), float)
    assert qlab.ulp(2**63 - 1, "float32") == 2.0**39  # not of the binade that float64 would round it to


@pytest.mark.parametrize("fmt", LISTED, ids=lambda fmt: fmt.name)
def test_ulp_distance_by_brute_force(fmt):
    values = numbers(fmt)
    if isinstance(fmt, FloatFormat) and fmt.infinities:
        values = np.concatenate([[-np.inf] * fmt.signed, values, [np.inf]])
    places = np.arange(len(values))
    assert np.array_equal(qlab.ulp_distance(values[:, None], values, fmt), np.abs(places[:, None] - places))
    if getattr(fmt, "has_negative_zero", False):
        assert qlab.ulp_distance([0.0, -0.0], [-0.0, 0.0], fmt).tolist() == [0, 0]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(NATIVE)), steps=st.integers(0, 20))
def test_ulp_distance_counts_nextafter(data, name, steps):
    dtype = NATIVE[name]
    x = data.draw(hnp.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False))
    y = x
    for _ in range(steps):
        y = np.nextafter(y, np.finfo(dtype).max)
    if y < np.finfo(dtype).max:
        assert qlab.ulp_distance(x, y, name) == qlab.ulp_distance(y, x, name) == steps


@settings(max_examples=100, deadline=None)
@given(x=hnp.arrays(np.float64, 3, elements=st.floats(-1e5, 1e5)), name=st.sampled_from(["float16", "posit16"]))
def test_ulp_distance_is_a_distance(x, name):
    a, b, c = qlab.cast(x, name)
    ab, bc, ac = (int(qlab.ulp_distance(p, q, name)) for p, q in ((a, b), (b, c), (a, c)))
    assert ac <= ab + bc
    assert (ab == 0) == (a == b)


def test_ulp_distance_of_the_whole_range():
    top = np.finfo(np.float64).max
    assert int(qlab.ulp_distance(-top, top, "float64")) == 2 * 0x7FEFFFFFFFFFFFFF
    assert int(qlab.ulp_distance([-np.inf], [np.inf], "float32")[0]) == 2 * 0x7F800000
    assert qlab.ulp_distance(1, 3, "int4") == 2
    assert qlab.ulp_distance(-8, 7, "int4") == 15


def test_report_of_cases_worked_by_hand():
    x = np.array([1.0, 1.0625, 70000.0, 65504.0, 1e-9, 2.0**-24, 0.0, -0.0, np.nan, np.inf])
    report = qlab.format_report(x, "float16")
    assert (report.overflow, report.underflow, report.subnormal) == (0.1, 0.1, 0.1)
    assert (report.exact, report.zeros, report.nans) == (0.7, 0.2, 0.1)
    assert (report.max_relative_error, report.sqnr) == (1.0, -math.inf)
    assert report.mean_relative_error == 1 / 5
    kept = qlab.format_report(x[:2], "float16")
    assert (kept.sqnr, kept.exact) == (math.inf, 1.0)
    saturated = qlab.format_report([448.0, 500.0], "fp8_e4m3", overflow="saturate")
    assert saturated.overflow == 0.5
    assert saturated.sqnr == 10 * math.log10((448**2 + 500**2) / 52**2)


@pytest.mark.parametrize(
    "fmt, inside, outside",
    [
        ("float8_e4m3fn", [448, 464, -464], [464.001, 480]), ("float4_e2m1fn", [6, 6.9, 7], [7.01, -8]),
        ("int8", [127.4, -128.5], [127.6, -129]), ("uint8", [0, 255], [-0.4, -3, 256]), ("float16", [65519.9], [65520]),
        ("float8_e8m0fnu", [1, 3], [-1]), ("posit8", [2.0**24, 2.0**24], [2.0**25]),
    ],
)  # fmt: skip
def test_what_overflow_is(fmt, inside, outside):
    assert qlab.format_report(inside, fmt).overflow == 0
    assert qlab.format_report(outside, fmt).overflow == 1


@settings(max_examples=80, deadline=None)
@given(
    x=hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32)),
    name=st.sampled_from(["float16", "float8_e4m3fn", "float4_e2m1fn", "int8", "nf4", "posit8", "float8_e8m0fnu"]),
    rounding=st.sampled_from(["nearest_even", "toward_zero", "up"]),
)
def test_report_against_fractions(x, name, rounding):
    fmt = qlab.get_format(name)
    report = qlab.format_report(x, fmt, rounding=rounding)
    result = np.asarray(qlab.cast(x, fmt, rounding=rounding, nan="zero"), np.float64)
    number = np.isfinite(x)
    assert report.nans == np.isnan(x).mean()
    assert report.zeros == (x == 0).mean()
    assert report.underflow == (number & (x != 0) & (result == 0)).mean()
    assert report.exact == (result == x).mean()
    pairs = [(Fraction(a), Fraction(b)) for a, b in zip(x.tolist(), result.tolist(), strict=True)
             if math.isfinite(a) and math.isfinite(b)]  # fmt: skip
    relative = [abs(b - a) / abs(a) for a, b in pairs if a]
    assert report.max_relative_error == pytest.approx(float(max(relative, default=0)), rel=1e-12)
    assert report.mean_relative_error == pytest.approx(float(sum(relative) / max(len(relative), 1)), rel=1e-12)
    noise = sum((b - a) ** 2 for a, b in pairs)
    signal = sum(a**2 for a, b in pairs)
    if len(pairs) < number.sum():
        assert report.sqnr == -math.inf
    elif noise == 0 or signal == 0:
        assert report.sqnr == (math.inf if noise == 0 else -math.inf)
    else:
        exact = 10 * (math.log10(signal.numerator) - math.log10(signal.denominator)
                      - math.log10(noise.numerator) + math.log10(noise.denominator))  # fmt: skip
        assert report.sqnr == pytest.approx(exact, abs=1e-8) or noise * 10**30 < signal


def test_report_does_not_overflow_or_depend_on_pieces():
    x = np.random.default_rng(0).standard_normal(200_001)
    plain = qlab.format_report(x, "bfloat16")
    large = qlab.format_report(np.ldexp(x, 900), FloatFormat("far", 7, 7, 63 - 900))
    assert large.sqnr == pytest.approx(plain.sqnr, abs=1e-9)
    assert qlab.format_report(x.reshape(3, -1).T, "bfloat16").sqnr == pytest.approx(plain.sqnr, abs=1e-9)
    assert plain.subnormal == 0


def test_sqnr_grows_six_decibels_a_bit():
    x = np.random.default_rng(0).standard_normal(50_000)
    sqnr = [qlab.format_report(x, FloatFormat("f", 8, bits)).sqnr for bits in range(3, 12)]
    assert np.allclose(np.diff(sqnr), 6.02, atol=0.1)


def test_ranking():
    x = np.random.default_rng(0).standard_normal(5000)
    everything = qlab.rank_formats(x, bits=8)
    assert {report.format for report in everything} == {fmt for fmt in FORMATS.values() if fmt.bits <= 8}
    sqnr = [report.sqnr for report in everything]
    assert sqnr == sorted(sqnr, reverse=True)
    assert everything[0].format.name == "float8_e3m4"
    names = [report.format.name for report in qlab.rank_formats(x * 100, ["fp8_e5m2", "fp8_e3m4", IntFormat(8), "fp4"])]
    assert names == ["float8_e5m2", "int8", "float4_e2m1fn", "float8_e3m4"]  # it has infinities, and ranks last
    saturated = qlab.rank_formats(x * 100, ["fp8_e3m4", "fp4"], overflow="saturate")
    assert all(math.isfinite(report.sqnr) for report in saturated)
    narrow_first = qlab.rank_formats([1.0, 2.0], ["int8", "int4", "float16"])
    assert [report.format.bits for report in narrow_first] == [4, 8, 16]
    assert isinstance(everything, FormatReports)


@pytest.mark.parametrize("language", LANGUAGES)
def test_shown_as_a_table_in_every_language(language):
    report = qlab.format_report([1.0, 0.1, 70000], "float16")
    qlab.set_language(language)
    try:
        html = report._repr_html_()
    finally:
        qlab.set_language(None)
    assert html.count("<th ") == 11
    assert "<bdi>float16</bdi>" in html
    lines = repr(report).splitlines()
    assert lines[0].split()[:4] == ["format", "bits", "overflow", "underflow"]
    assert lines[1].split()[:3] == ["float16", "16", "33.33"]
    assert len(repr(qlab.rank_formats([1.0], ["fp4", "int4"])).splitlines()) == 3


def test_tensors_lend_their_memory():
    torch = pytest.importorskip("torch")
    values = np.float32([1, 1.5, -3, 1000])
    tensor = torch.tensor(values, requires_grad=True)
    assert np.array_equal(qlab.ulp(tensor, "float16"), qlab.ulp(values, "float16"))
    assert np.array_equal(qlab.ulp(tensor.to(torch.bfloat16), "float16"), qlab.ulp(values, "float16"))
    assert qlab.ulp_distance(tensor, tensor.detach() * 2, "bfloat16").tolist() == [128] * 4
    assert qlab.format_report(tensor, "fp8_e4m3") == qlab.format_report(values, "fp8_e4m3")
    assert qlab.rank_formats(tensor.to(torch.float16), ["fp4"])[0].overflow == 0.25


def test_other_inputs():
    assert qlab.ulp(np.array([1, 300]).astype(ml_dtypes.bfloat16), "bfloat16").tolist() == [2.0**-7, 2]
    assert qlab.ulp_distance(np.array([1, 2]).astype(ml_dtypes.bfloat16), [1.0, 1.0], "bfloat16").tolist() == [0, 128]
    assert qlab.ulp(np.zeros((0, 2)), "float16").shape == (0, 2)
    assert qlab.ulp(np.float16(1), "float64") == 2.0**-52


@pytest.mark.parametrize(
    "act, error, message",
    [
        (lambda: qlab.ulp("one", "float16"), TypeError, "<U3"),
        (lambda: qlab.ulp(1.0, "flaot16"), ValueError, "did you mean"),
        (
            lambda: qlab.ulp_distance([1.0, 0.1], 1.0, "float16"),
            ValueError,
            "x holds 1 elements that are no values of float16",
        ),
        (lambda: qlab.ulp_distance(1.0, [[1, 500]], "fp8_e4m3"), ValueError, "y holds 1 elements"),
        (lambda: qlab.ulp_distance(1.0, [[1, 500]], "fp8_e4m3"), ValueError, "the first, 500, at index (0, 1)"),
        (lambda: qlab.ulp_distance(math.nan, 1.0, "float16"), ValueError, "leave NaN out"),
        (lambda: qlab.ulp_distance(math.inf, 1.0, "fp4"), ValueError, "x holds 1"),
        (lambda: qlab.ulp_distance(7, 1.0, "fp4"), ValueError, "x holds 1"),
        (lambda: qlab.ulp_distance(-1, 1.0, "uint4"), ValueError, "x holds 1"),
        (lambda: qlab.format_report([], "float16"), ValueError, "x is empty"),
        (lambda: qlab.format_report([True], "float16"), TypeError, "bool"),
        (lambda: qlab.format_report([1.0], "float16", rounding="nearest"), ValueError, "allowed are 'nearest_even'"),
        (lambda: qlab.format_report([1.0], "float16", overflow="wrap"), ValueError, "allowed are 'ieee'"),
        (lambda: qlab.rank_formats([1.0], bits=1), ValueError, "the narrowest given has 2 bits"),
        (lambda: qlab.rank_formats([1.0], []), ValueError, "no format is left"),
        (lambda: qlab.rank_formats([1.0], ["fp99"]), ValueError, "unknown format"),
    ],
)
def test_refusals(act, error, message):
    with pytest.raises(error) as caught:
        act()
    assert message in str(caught.value)


@pytest.mark.parametrize("tiny", [5e-324, 2.0**-1060])
def test_report_on_the_smallest_numbers(tiny):
    report = qlab.format_report(np.array([tiny, -tiny]), "float16")
    assert report.underflow == 1
    assert qlab.format_report(np.array([tiny]), "float64").exact == 1
