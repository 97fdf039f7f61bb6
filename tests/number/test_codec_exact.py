"""cast, encode and decode against exact rational arithmetic and against ml_dtypes, exhaustively where that is finite."""

from __future__ import annotations

import bisect
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from oracles import SCALE, Oracle, TableOracle, bfloat16_inputs, exact, float16_inputs, same

import qlab
from qlab.number.formats import FORMATS, FloatFormat, IntFormat, TableFormat
from qlab.number.rounding import ROUNDINGS

SMALL = [fmt for fmt in FORMATS.values() if isinstance(fmt, FloatFormat) and fmt.bits <= 16]
ODD_ONES = [
    FloatFormat("dlfloat16", 6, 9, subnormals=False),
    FloatFormat("e3m0", 3, 0, infinities=False, nans="none"),
    FloatFormat("e5m1_unsigned", 5, 1, signed=False),
    FloatFormat("e4m3_inf_all_ones", 4, 3, infinities=True, nans="all_ones"),
    FloatFormat("e4m3_inf_negative_zero", 4, 3, 8, infinities=True, nans="negative_zero"),
    FloatFormat("e2m3_top", 2, 3, infinities=False, nans="ieee"),
    FloatFormat("e4m2_high", 4, 2, bias=-40, infinities=False, nans="none"),
    FloatFormat("e8m3", 8, 3, bias=120),
    FloatFormat("e1m3", 1, 3, bias=1, infinities=False, nans="none"),
    FloatFormat("e1m4_all_subnormal", 1, 4),
    FloatFormat("e4m0_no_zero", 4, 0, infinities=False, nans="none", subnormals=False),
    FloatFormat("e3m4_large_no_subnormals", 3, 4, bias=-16, subnormals=False),
]
by_name = pytest.mark.parametrize("fmt", SMALL + ODD_ONES, ids=lambda fmt: fmt.name)
DETERMINISTIC = [r for r in ROUNDINGS if r != "stochastic"]


def oracle_of(fmt) -> Oracle:
    return Oracle(fmt.values(), signed_zero=fmt.has_negative_zero)


def without_nan(x, fmt):
    return x if fmt.nan_code is not None else x[~np.isnan(x)]


@by_name
def test_every_float16_and_bfloat16_in_every_way(fmt):
    """All 2 * 65536 inputs, six roundings, two overflow rules: values and codes."""
    fast = TableOracle(fmt.values(), signed_zero=fmt.has_negative_zero)
    for inputs in (float16_inputs(), bfloat16_inputs()):
        check_by(fast, without_nan(inputs, fmt), fmt)


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS.values() if isinstance(fmt, IntFormat)], ids=lambda fmt: fmt.name)
def test_every_float16_and_bfloat16_to_integers(fmt):
    for x in (float16_inputs(), bfloat16_inputs()):
        x = x[~np.isnan(x)]
        inside = np.clip(x.astype(np.float64), fmt.min, fmt.max)
        below = np.floor(inside)
        rounded = {
            "nearest_even": np.rint(inside), "nearest_away": np.copysign(np.floor(np.abs(inside) + 0.5), inside),
            "toward_zero": np.trunc(inside), "up": np.ceil(inside), "down": below,
            "to_odd": np.where(below == inside, below, below + (below % 2 == 0)),
        }  # fmt: skip
        for rounding, expected in rounded.items():
            for overflow in ("ieee", "saturate"):
                options = {"rounding": rounding, "overflow": overflow}
                assert same(qlab.cast(x, fmt, **options), expected + 0.0).all(), options
                assert same(qlab.decode(qlab.encode(x, fmt, **options), fmt), expected + 0.0).all(), options


@pytest.mark.parametrize("name", ["tfloat32", "float32", "float64"])
@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_every_float16_and_bfloat16_is_a_value_of_wider_formats(name, rounding):
    for x in (float16_inputs(), bfloat16_inputs()):
        for overflow in ("ieee", "saturate"):
            finite = x[~np.isinf(x) | (overflow == "ieee")]
            options = {"rounding": rounding, "overflow": overflow}
            assert same(qlab.cast(finite, name, **options), finite).all()
            assert same(qlab.decode(qlab.encode(finite, name, **options), name), finite).all()


@by_name
def test_the_fast_oracle_is_the_slow_one(fmt):
    slow, fast = oracle_of(fmt), TableOracle(fmt.values(), signed_zero=fmt.has_negative_zero)
    for inputs in (float16_inputs()[3::149], bfloat16_inputs()[3::149]):
        x = without_nan(inputs, fmt).astype(np.float64)
        for rounding in DETERMINISTIC:
            for overflow in ("ieee", "saturate"):
                expected = [slow.cast(v, rounding, overflow) for v in x.tolist()]
                assert same(fast.cast(x, rounding, overflow), expected).all(), (rounding, overflow)


@by_name
@pytest.mark.parametrize("noise_type", [np.uint8, np.uint16, np.uint32])
def test_stochastic_by_rational_arithmetic(fmt, noise_type):
    """Up exactly if the first N bits of the fraction and the noise carry, for every size of value."""
    rng, width = np.random.default_rng(0), np.dtype(noise_type).itemsize * 8
    slow = oracle_of(fmt)
    low, high = np.log2(fmt.smallest_subnormal) - 3, np.log2(fmt.max)
    for dtype in (np.float32, np.float64):
        top = min(high, 127.9) if dtype is np.float32 else high
        x = np.exp2(rng.uniform(max(low, -148), top, 400)).astype(dtype) * (rng.choice([-1, 1], 400) if fmt.signed else 1)
        noise = rng.integers(0, 1 << width, x.size, dtype=noise_type)
        noise[::3] = noise_type((1 << width) - 1)
        result = np.asarray(qlab.cast(x, fmt, rounding="stochastic", noise=noise, overflow="saturate"), np.float64)
        for value, bits, got in zip(x.tolist(), noise.tolist(), result.tolist(), strict=True):
            magnitude = exact(abs(value))
            i = max(bisect.bisect_right(slow.magnitudes, magnitude) - 1, 0)
            below, above = slow.magnitudes[i], [*slow.magnitudes, slow.next_above][i + 1]
            share = max(Fraction(magnitude - below, above - below), Fraction(0))
            up = int(share * (1 << width)) + bits >= 1 << width
            expected = min(float(Fraction(above if up else below, 1 << SCALE)), fmt.max)
            assert abs(got) == expected, (value, bits, got, expected)


@by_name
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_midpoints_and_their_neighbours(fmt, dtype):
    """Every value and midpoint and their neighbours up to 2 ulp away, thresholds of overflow, and the ends of the dtype."""
    fast = TableOracle(fmt.values(), signed_zero=fmt.has_negative_zero)
    values = np.unique(fmt.values()[np.isfinite(fmt.values())])
    edges = [2 * fmt.max, -2 * fmt.max, 1e30, -1e30, np.finfo(dtype).tiny, np.finfo(dtype).max]
    with np.errstate(over="ignore"):
        points = np.concatenate([values, (values[1:] + values[:-1]) / 2, edges]).astype(dtype)
    near = [points]
    for direction in (np.inf, -np.inf):
        once = np.nextafter(points, dtype(direction))
        near += [once, np.nextafter(once, dtype(direction))]
    check_by(fast, np.concatenate(near), fmt)


@by_name
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_exponent_with_edge_fractions(fmt, dtype):
    """All exponent fields of the input dtype with the fractions where things happen, subnormals and infinity among them."""
    fast = TableOracle(fmt.values(), signed_zero=fmt.has_negative_zero)
    int_type, mantissa, fields = (np.uint32, 23, 256) if dtype is np.float32 else (np.uint64, 52, 2048)
    cut = max(mantissa - fmt.mantissa_bits, 1)
    halves = [0, 1, 2, 3, (1 << cut) // 2, 1 << cut, (1 << cut) + (1 << cut) // 2, 1 << (mantissa - 1), (1 << mantissa) - 1]
    fractions = sorted({(f + d) % (1 << mantissa) for f in halves for d in (-1, 0, 1)})
    bits = np.add.outer(np.arange(fields, dtype=int_type) << int_type(mantissa), np.array(fractions, int_type)).ravel()
    x = np.concatenate([bits.view(dtype), -bits.view(dtype)])
    check_by(fast, without_nan(x, fmt), fmt)


def check_by(fast, x, fmt):
    for rounding in DETERMINISTIC:
        for overflow in ("ieee", "saturate"):
            expected = fast.cast(x, rounding, overflow)
            result = qlab.cast(x, fmt, rounding=rounding, overflow=overflow)
            wrong = ~same(result, expected)
            assert not wrong.any(), (rounding, overflow, x[wrong][:9], result[wrong][:9], expected[wrong][:9])
            codes = qlab.encode(x, fmt, rounding=rounding, overflow=overflow)
            assert same(qlab.decode(codes, fmt), expected).all(), (rounding, overflow)


@pytest.mark.parametrize("fmt", [*FORMATS.values(), *ODD_ONES], ids=lambda fmt: fmt.name)
def test_every_code_survives(fmt):
    if fmt.bits > 16:
        codes = np.random.default_rng(0).integers(0, 2 ** min(fmt.bits, 62), 100_000)
        codes = codes[np.isfinite(qlab.decode(codes, fmt))].astype(qlab.encode(0, fmt).dtype)
    else:
        values = fmt.values()
        codes = np.flatnonzero(~np.isnan(values)).astype(np.uint8 if fmt.bits <= 8 else np.int32)
    back = qlab.encode(qlab.decode(codes, fmt), fmt)
    assert back.dtype == codes.dtype
    assert np.array_equal(back, codes)


@by_name
def test_decode_is_the_table(fmt):
    codes = np.arange(1 << fmt.bits)
    for dtype in (np.int64, np.int32, *([np.uint8] if fmt.bits <= 8 else [])):
        assert same(qlab.decode(codes.astype(dtype), fmt), fmt.values()).all()
    assert same(qlab.decode(codes + (5 << fmt.bits), fmt), fmt.values()).all()  # higher bits are ignored


ML_DTYPES = [n for n in FORMATS if hasattr(ml_dtypes, n)] + ["float16"]


@pytest.mark.parametrize("name", ML_DTYPES)
def test_ml_dtypes_decodes_the_same(name):
    fmt = qlab.get_format(name)
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    if isinstance(fmt, IntFormat):
        codes = np.arange(1 << fmt.bits)
        low = np.where(codes > fmt.max, codes - (1 << fmt.bits), codes)
        assert np.array_equal(low.astype(dtype).astype(np.int32), fmt.values().astype(np.int32))
        return
    codes = np.arange(1 << fmt.bits, dtype=np.uint8 if fmt.bits <= 8 else np.uint16)
    assert same(codes.view(dtype).astype(np.float64), fmt.values()).all()
    info = ml_dtypes.finfo(dtype)
    assert (fmt.max, fmt.smallest_normal, fmt.smallest_subnormal) == (
        float(info.max), float(info.smallest_normal), float(info.smallest_subnormal)
    )  # fmt: skip
    assert fmt.bits == info.bits
    if name != "float8_e8m0fnu":
        assert (fmt.epsilon, fmt.min) == (float(info.eps), float(info.min))


@pytest.mark.parametrize("name", [n for n in ML_DTYPES if n.startswith(("float", "bfloat")) and n != "float8_e8m0fnu"])
def test_ml_dtypes_encodes_the_same(name):
    """Random float32 bits. (float8_e8m0fnu differs on purpose: see test_e8m0.)"""
    fmt, dtype = qlab.get_format(name), np.dtype(getattr(ml_dtypes, name, None) or name)
    bits = np.random.default_rng(1).integers(0, 2**32, 300_000, dtype=np.uint32)
    x = np.concatenate([bits.view(np.float32), np.random.default_rng(2).standard_normal(300_000).astype(np.float32)])
    x = x[~np.isnan(x)]
    with np.errstate(over="ignore"):
        theirs = x.astype(dtype)
    assert same(qlab.cast(x, fmt), theirs.astype(np.float64)).all()
    codes = theirs.view(np.uint8 if fmt.bits <= 8 else np.uint16)
    ours = qlab.encode(x, fmt)
    number = ~np.isnan(theirs.astype(np.float32))
    assert np.array_equal(ours[number], codes[number])


def test_e8m0():
    """Ties to the even code; zero and all below 2**-127 give 2**-127; negatives NaN, or 2**-127 when saturating."""
    x = np.array([0.0, -0.0, 1e-45, 2.0**-127, 1.016 * 2.0**-127, 3.0, 6.0, 2.0**127 * 1.5, -1.0, np.inf, np.nan])
    up = 2.0**127
    for dtype in (np.float32, np.float64):
        y = x.astype(dtype)
        expected = [2.0**-127] * 5 + [2.0, 8.0, up, np.nan, np.nan, np.nan]
        assert same(qlab.cast(y, "float8_e8m0fnu"), expected).all()
        expected = [2.0**-127] * 5 + [2.0, 8.0, up, 2.0**-127, up, np.nan]
        assert same(qlab.cast(y, "float8_e8m0fnu", overflow="saturate"), expected).all()


@pytest.mark.parametrize("name", ["tfloat32", "float32"])
def test_nineteen_and_thirty_two_bits(name):
    """From float64, against the definition in integers: round to M + 1 significant bits."""
    fmt, rng = qlab.get_format(name), np.random.default_rng(3)
    x = np.ldexp(rng.uniform(1, 2, 20_000), rng.integers(-160, 129, 20_000)) * rng.choice([-1, 1], 20_000)
    step = np.ldexp(1.0, np.maximum(np.frexp(x)[1] - 1, fmt.emin) - fmt.mantissa_bits)
    expected = np.rint(x / step) * step  # exact: a power of two
    expected = np.where(np.abs(expected) > fmt.max, np.copysign(np.inf, x), expected)
    assert same(qlab.cast(x, fmt), expected).all()
    assert same(qlab.decode(qlab.encode(x, fmt), fmt), expected).all()


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float8_e4m3fn"])
def test_float64_is_rounded_once(name):
    """Just above a midpoint of the format, where float32 sees the midpoint itself: going there first rounds twice."""
    fmt = qlab.get_format(name)
    one_and_half_step = 1 + fmt.epsilon * 0.5
    x = np.array([np.nextafter(one_and_half_step, 2), np.nextafter(one_and_half_step, 0), one_and_half_step])
    assert qlab.cast(x, fmt).tolist() == [1 + fmt.epsilon, 1.0, 1.0]


def test_wide_integers_are_rounded_once():
    step = 2 ** (63 - 11)  # of float16-like significands at 2**62
    fmt = FloatFormat("e8m10", 8, 10)
    x = np.array([2**62 + step // 2, 2**62 + step // 2 + 1, 2**62 + step // 2 - 1, -(2**62) - step // 2 - 1])
    assert qlab.cast(x, fmt).tolist() == [2.0**62, 2.0**62 + step, 2.0**62, -(2.0**62) - step]
    assert qlab.cast(np.array([2**64 - 1], np.uint64), "float32").tolist() == [2.0**64]


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_wide_integers_to_float64(dtype):
    """Of 54 to 64 bits, by Python's integers: values, ties and their neighbours."""
    rng, info = np.random.default_rng(0), np.iinfo(dtype)
    x = [int(v) >> int(s) for v, s in zip(rng.integers(1 << 62, 1 << 63, 900), rng.integers(0, 12, 900), strict=True)]
    halves = [(2 * m + h) << s for s in range(10) for m in (2**52, 2**53 - 1, 2**52 + 5) for h in (0, 1)]
    x += [v + d for v in halves for d in (-1, 0, 1)]
    x += [0, 1, info.min, info.max, *([-v for v in x] if dtype is np.int64 else [2 * v for v in x[:900]])]
    noise = rng.integers(0, 1 << 32, len(x), dtype=np.uint32)
    for rounding in ROUNDINGS:
        expected = []
        for value, bits in zip(x, noise.tolist(), strict=True):
            drop = max(abs(value).bit_length() - 53, 0)
            kept, rest = divmod(abs(value), 1 << drop)
            up = {
                "nearest_even": 2 * rest + kept % 2 > 1 << drop, "nearest_away": rest > 0 and 2 * rest >= 1 << drop,
                "toward_zero": False, "up": rest > 0 and value > 0, "down": rest > 0 and value < 0,
                "to_odd": rest > 0 and kept % 2 == 0, "stochastic": (rest << 32 >> drop) + bits >= 1 << 32,
            }[rounding]  # fmt: skip
            expected.append(float((kept + up) << drop) * (1 if value >= 0 else -1))
        options = {"rounding": rounding, "noise": noise if rounding == "stochastic" else None}
        assert same(qlab.cast(np.array(x, dtype), "float64", **options), expected).all(), rounding
        assert same(qlab.decode(qlab.encode(np.array(x, dtype), "float64", **options), "float64"), expected).all(), rounding


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_e8m0_of_ordinary_float32(rounding):
    """No tiny numbers and none that overflow: the quick way, which says what the law says in float64."""
    rng, fmt = np.random.default_rng(0), qlab.get_format("float8_e8m0fnu")
    x = np.ldexp(rng.uniform(1, 2, 30_000), rng.integers(-124, 126, 30_000)).astype(np.float32)
    x[::3] = np.ldexp(rng.choice([1, 1.25, 1.5, 2 - 2.0**-23], 10_000), rng.integers(-124, 126, 10_000))
    for dtype in (np.uint8, np.uint16, np.uint32) if rounding == "stochastic" else (None,):
        noise = None if dtype is None else rng.integers(0, np.iinfo(dtype).max, x.size, dtype, endpoint=True)
        for overflow in ("ieee", "saturate"):
            for y in (x, np.where(np.arange(x.size) % 5 == 0, -x, x)):
                options = {"rounding": rounding, "overflow": overflow, "noise": noise}
                expected = qlab.cast(y.astype(np.float64), fmt, **options)
                assert same(qlab.cast(y, fmt, **options), expected).all()
                assert same(qlab.decode(qlab.encode(y, fmt, **options), fmt), expected).all()
        if noise is None:
            assert same(expected, TableOracle(fmt.values(), signed_zero=False).cast(y, rounding, "saturate")).all()


@pytest.mark.parametrize("fmt", [IntFormat(2), IntFormat(8), IntFormat(16), IntFormat(4, False), IntFormat(1, False)],
                         ids=lambda fmt: fmt.name)  # fmt: skip
@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_integers(fmt, rounding):
    halves = np.arange(2 * fmt.min - 3, 2 * fmt.max + 4) / 2
    x = np.concatenate([halves, np.nextafter(halves, np.inf), np.nextafter(halves, -np.inf), [np.inf, -np.inf, -1e300]])
    rule = {
        "nearest_even": np.rint, "up": np.ceil, "down": np.floor, "toward_zero": np.trunc,
        "nearest_away": lambda v: np.trunc(v) + np.sign(v) * (np.abs(v - np.trunc(v)) >= 0.5),
        "to_odd": lambda v: np.where(v == np.floor(v), v, np.floor(v) + (np.floor(v) % 2 == 0)),
    }[rounding]  # fmt: skip
    with np.errstate(invalid="ignore"):
        expected = rule(np.clip(x, fmt.min, fmt.max)) + 0.0
    assert same(qlab.cast(x, fmt, rounding=rounding), expected).all()
    assert same(qlab.decode(qlab.encode(x, fmt, rounding=rounding), fmt), expected).all()


@pytest.mark.parametrize("fmt", [qlab.get_format("nf4"), TableFormat("shuffled", [3, -1, 0.5, 0.25, np.nan, 7])],
                         ids=lambda fmt: fmt.name)  # fmt: skip
def test_tables(fmt):
    values = np.unique([v for v in fmt.table if v == v])
    middles = (values[1:] + values[:-1]) / 2
    near = np.concatenate([values, np.nextafter(middles, np.inf), np.nextafter(middles, -np.inf), [1e9, -1e9]])
    nearest = np.concatenate([values, values[1:], values[:-1], values[-1:], values[:1]])
    assert np.array_equal(qlab.cast(near, fmt), nearest)
    assert np.array_equal(qlab.decode(qlab.encode(near, fmt), fmt), nearest)
    tie = qlab.encode(middles, fmt)
    lower = np.array([fmt.table.index(v) for v in values[:-1]])
    upper = np.array([fmt.table.index(v) for v in values[1:]])
    expected = np.where((upper % 2 == 0) & (lower % 2 == 1), upper, lower)
    assert np.array_equal(tie, expected)


def test_stochastic_with_noise_as_argument():
    """Up exactly if fraction + noise/2**N reaches one, so that all N-bit noises together give the exact share."""
    fmt = qlab.get_format("float8_e4m3fn")
    noise = np.arange(256, dtype=np.uint8)
    for eighths in range(9):
        x = np.full(256, 1 + eighths / 64)  # the step at 1 is 1/8
        rounded = qlab.cast(x, fmt, rounding="stochastic", noise=noise)
        assert (rounded == 1.125).sum() == eighths * 32
        assert set(rounded.tolist()) <= {1.0, 1.125}
        assert np.array_equal(qlab.cast(-x, fmt, rounding="stochastic", noise=noise), -rounded)
    wide = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    mean = qlab.cast(np.full(wide.shape, 3.3, np.float32), fmt, rounding="stochastic", noise=wide).mean()
    assert abs(mean - 3.3) < 0.001
