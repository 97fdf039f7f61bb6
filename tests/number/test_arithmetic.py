"""Arithmetic against rational arithmetic: integers and Fractions say what the exact result is, an oracle rounds it.

An exact result that is no float64 is first rounded to odd, with integers; all that a format of 25 bits or fewer
decides on, values and midpoints, has fewer bits than the float64, so that the oracle decides as on the exact result.
"""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction
from functools import cache

import ml_dtypes
import numpy as np
import pytest
from oracles import Oracle, float16_inputs, same

import qlab
from qlab import arithmetic
from qlab._pieces import Scratch
from qlab.number.error_free import plain_sum_will_do
from qlab.number.formats import FORMATS, FloatFormat, get_format
from qlab.number.noise import philox
from qlab.number.reductions import Plan, _Noise
from qlab.number.rounding import ROUNDINGS

BYTES = [fmt for fmt in FORMATS.values() if isinstance(fmt, FloatFormat) and fmt.bits <= 8]
ODD_ONES = [
    FloatFormat("e4m3_no_subnormals", 4, 3, subnormals=False),
    FloatFormat("e3m0", 3, 0, infinities=False, nans="none"),
    FloatFormat("e5m1_unsigned", 5, 1, signed=False),
    FloatFormat("e4m3_inf_no_nan", 4, 3, infinities=True, nans="none"),
    FloatFormat("e7m0", 7, 0, nans="all_ones"),
]
DETERMINISTIC = [r for r in ROUNDINGS if r != "stochastic"]
OPERATIONS = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


def odd_float(p: int, q: int = 1, exponent: int = 0) -> float:
    """p / q * 2**exponent as a float64, rounded to odd, by integers."""
    if p < 0:
        return -odd_float(-p, q, exponent)
    shift = p.bit_length() - q.bit_length() - 54  # 54 or 55 bits of quotient
    whole, rest = divmod(p << max(-shift, 0), q << max(shift, 0))
    cut = whole.bit_length() - 53
    sticky = rest or whole & ((1 << cut) - 1)
    return math.ldexp((whole >> cut) | bool(sticky), shift + cut + exponent)


def test_odd_float():
    assert odd_float(3, 4) == 0.75
    assert odd_float(-1, 3) == -float.fromhex("0x1.5555555555555p-2")
    assert odd_float(1, 5) == float.fromhex("0x1.9999999999999p-3")  # nearest would be ...a
    assert odd_float(2**60 + 1) == 2.0**60 + 2**8
    assert odd_float(2**60) == 2.0**60


@cache
def oracle_of(fmt: FloatFormat) -> Oracle:
    return Oracle(fmt.values(), signed_zero=fmt.has_negative_zero)


def rounded(fmt: FloatFormat, value: float, rounding: str, overflow: str) -> float:
    """The oracle's answer; for formats of more than 16 bits, that of the definition."""
    if value == 0 or math.isnan(value):  # -0.0 and 0.0 are equal: not for a cache
        return oracle_of(fmt).cast(value, rounding, overflow) if fmt.bits <= 16 else value
    return rounded_number(fmt, value, rounding, overflow)


@cache
def rounded_number(fmt: FloatFormat, value: float, rounding: str, overflow: str) -> float:
    if fmt.bits <= 16:
        return oracle_of(fmt).cast(value, rounding, overflow)
    return by_definition(fmt, value, rounding, overflow)


def by_definition(fmt: FloatFormat, value: float, rounding: str, overflow: str) -> float:
    """Rounding to an IEEE format of any width: cut to a multiple of the step at that value."""
    if math.isinf(value):
        return math.copysign(fmt.max if overflow == "saturate" else math.inf, value)
    step = Fraction(2) ** (max(math.frexp(value)[1] - 1, fmt.emin) - fmt.mantissa_bits)
    whole, rest = divmod(abs(Fraction(value)) / step, 1)
    up = {
        "nearest_even": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1),
        "nearest_away": rest >= Fraction(1, 2), "toward_zero": False, "to_odd": rest > 0 and whole % 2 == 0,
        "up": rest > 0 and value > 0, "down": rest > 0 and value < 0,
    }[rounding]  # fmt: skip
    result = (whole + up) * step
    if result > Fraction(fmt.max):
        finite = overflow == "saturate" or rounding in ("toward_zero", "to_odd")
        finite |= (rounding, value > 0) in (("up", False), ("down", True))
        return math.copysign(fmt.max if finite else math.inf, value)
    return math.copysign(float(result), value)


def exact(operation: str, rounding: str, *operands: float) -> float:
    """The result of an operation on floats, rounded to odd; specials and zeros by the rules of IEEE 754."""
    if not all(map(math.isfinite, operands)) or (operation == "div" and operands[1] == 0):
        with np.errstate(all="ignore"):
            x = np.array(operands)
            return float(x[0] * x[1] + x[2] if operation == "fma" else OPERATIONS[operation](*x))
    values = [Fraction(v) for v in operands]
    negative = [math.copysign(1, v) < 0 for v in operands]
    if operation in ("mul", "div"):
        result = values[0] * values[1] if operation == "mul" else values[0] / values[1]
        zero = -0.0 if negative[0] != negative[1] else 0.0
    else:
        if operation == "fma":
            values, negative = [values[0] * values[1], values[2]], [negative[0] != negative[1], negative[2]]
        elif operation == "sub":
            values[1], negative[1] = -values[1], not negative[1]
        result = values[0] + values[1]
        mixed = -0.0 if rounding == "down" else 0.0  # two zeros of one sign keep it; all else that adds up to zero
        zero = (-0.0 if negative[0] else 0.0) if values[0] == 0 and negative[0] == negative[1] else mixed
    return odd_float(result.numerator, result.denominator) if result else zero


def reference(operation: str, fmt: FloatFormat, *operands, rounding="nearest_even", overflow="ieee") -> np.ndarray:
    """Element by element; operands are float64 arrays of values of the format."""
    results = (exact(operation, rounding, *values) for values in zip(*(x.tolist() for x in operands), strict=True))
    return np.array([rounded(fmt, value, rounding, overflow) for value in results])


def check(operation: str, fmt: FloatFormat, *operands, rounding="nearest_even", overflow="ieee"):
    expected = reference(operation, fmt, *operands, rounding=rounding, overflow=overflow)
    result = getattr(arithmetic, operation)(*operands, fmt, rounding=rounding, overflow=overflow)
    compare(result, expected, operands)


def compare(result, expected, operands):
    wrong = ~same(result, expected)
    assert not wrong.any(), ([x[wrong][:5] for x in operands], result[wrong][:5], np.asarray(expected)[wrong][:5])


# --- formats of a byte: all pairs ------------------------------------------------------------------------------------
def exact_pairs(fmt, operation, rounding):
    """The exact results of all pairs of finite values, as floats rounded to odd, and these pairs."""
    values = fmt.values()
    values = values[np.isfinite(values) & (values != 0)]
    low = fmt.emin - fmt.mantissa_bits
    units = np.array([int(Fraction(v) / Fraction(2) ** low) for v in values.tolist()], dtype=object)
    x, y = (v.ravel() for v in np.meshgrid(values, values))
    a, b = (v.ravel() for v in np.meshgrid(units, units))
    zero = -0.0 if rounding == "down" else 0.0
    if operation == "div":
        common = np.gcd(a, b)
        keys = list(zip(a // common, b // common, strict=True))
        floats = {key: math.copysign(odd_float(abs(key[0]), abs(key[1])), key[0] * key[1]) for key in set(keys)}
    else:
        keys = OPERATIONS[operation](a, b).tolist()
        exponent = 2 * low if operation == "mul" else low
        floats = {key: odd_float(key, 1, exponent) if key else zero for key in set(keys)}
    return x, y, [floats[key] for key in keys]


@pytest.mark.parametrize("fmt", BYTES + ODD_ONES, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_all_pairs(fmt, operation):
    x, y, results = exact_pairs(fmt, operation, "nearest_even")
    for overflow in ("ieee", "saturate"):
        expected = np.array([rounded(fmt, value, "nearest_even", overflow) for value in results])
        compare(getattr(arithmetic, operation)(x, y, fmt, overflow=overflow), expected, (x, y))
    some = slice(5, None, 11)
    for rounding in DETERMINISTIC[1:]:
        values = [(-0.0 if rounding == "down" and value == 0 else value) for value in results[some]]
        expected = np.array([rounded(fmt, value, rounding, "ieee") for value in values])
        compare(getattr(arithmetic, operation)(x[some], y[some], fmt, rounding=rounding), expected, (x[some], y[some]))


@pytest.mark.parametrize("fmt", BYTES + ODD_ONES, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_all_pairs_with_zeros_infinities_and_nan(fmt, operation):
    values = fmt.values()
    values = values if fmt.nan_code is None else np.append(values[~np.isnan(values)], np.nan)
    special = values[~np.isfinite(values) | (values == 0)]
    for rounding in DETERMINISTIC:
        x, y = (v.ravel() for v in np.meshgrid(values if rounding == "nearest_even" else values[::17], special))
        x, y = np.concatenate([x, y, special]), np.concatenate([y, x, special[::-1]])
        if fmt.nan_code is None:
            with np.errstate(all="ignore"):
                number = ~np.isnan(OPERATIONS[operation](x, y))
            x, y = x[number], y[number]
        check(operation, fmt, x, y, rounding=rounding)


# --- formats of two bytes and more: hard cases -----------------------------------------------------------------------
def hard_values(fmt: FloatFormat, exponents=None) -> np.ndarray:
    """Special significands at special exponents, as Berkeley TestFloat has them."""
    eps, top = fmt.epsilon, math.frexp(fmt.max)[1] - 1
    significands = [1, 1 + eps, 1 + 3 * eps, 1.5 - eps, 1.5, 1.5 + eps, 2 - 2 * eps, 2 - eps]
    p = fmt.mantissa_bits + 1
    exponents = exponents or [fmt.emin, fmt.emin + 1, fmt.emin + p, -p - 1, -p, -1, 0, 1, p, top // 2, top - 1, top]
    values = np.ldexp.outer(np.array(significands), np.array(exponents)).ravel()
    subnormal = fmt.smallest_subnormal * np.array([1, 2, 3, 2**fmt.mantissa_bits - 1, 2 ** (fmt.mantissa_bits - 1) + 1])
    return np.unique(np.concatenate([values[values <= fmt.max], subnormal]))


@pytest.mark.parametrize("name", ["float16", "bfloat16", "tfloat32", "float32"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_hard_pairs(name, operation):
    fmt, values = get_format(name), hard_values(get_format(name))
    values = np.concatenate([values, -values[::3], [0.0, -0.0, np.inf, -np.inf, np.nan]])
    x, y = (v.ravel() for v in np.meshgrid(values, values))
    some = slice(0, None, 3 if fmt.bits <= 16 else 7)
    check(operation, fmt, x[some], y[some])
    for rounding in DETERMINISTIC[1:]:
        other = slice(DETERMINISTIC.index(rounding), None, 23)
        check(operation, fmt, x[other], y[other], rounding=rounding)
        check(operation, fmt, x[other], y[other], rounding=rounding)
    finite = np.isfinite(x) & np.isfinite(y)  # operands saturate too
    check(operation, fmt, x[finite][::29], y[finite][::29], overflow="saturate")


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "tfloat32", "float32"])
def test_fma(name):
    fmt, rng = get_format(name), np.random.default_rng(0)
    p, tiny = fmt.mantissa_bits + 1, fmt.smallest_subnormal
    values = hard_values(fmt)
    x, y, z = rng.choice(np.concatenate([values, -values, [0.0, -0.0]]), (3, 4000))
    # cancellation: what is left is the rounding error of the product
    a, b = rng.choice(hard_values(fmt, [-2, -1, 0, 1, 2]), (2, 1000))
    c = -qlab.cast(a * b, fmt)
    # ties and double rounding: a product of p + 1 bits is a midpoint, and the smallest number decides
    odd = rng.integers(1, 2 ** ((p + 1) // 2 + 1), (2, 40_000)) | 1
    middle = odd[:, (odd[0] * odd[1] >= 2**p) & (odd[0] * odd[1] < 2 ** (p + 1)) & (odd < 2**p).all(axis=0)]
    j, k = middle[:, :900].astype(float) * np.array([[1.0], [2.0**-p]])
    m = rng.choice([tiny, -tiny, 0.0, 1.0, 2.0**-p, -(2.0 ** -(p - 1))], k.size)
    # thresholds of overflow and underflow
    s = np.full(9, 2.0 ** (math.frexp(fmt.max)[1] - 1))
    u = fmt.max - s * 2 * np.array([1.0]) + s  # the rest to the largest value
    t = np.array([tiny, -tiny, s[0] * fmt.epsilon / 2, -s[0] * fmt.epsilon / 2, s[0] * fmt.epsilon, 1, -1, 0, s[0]])
    t = qlab.cast(t, fmt)
    operands = [np.concatenate(v) for v in ((x, a, j, s / 2, s * 0 + tiny), (y, b, k, s * 0 + 4, s * 0 + 0.5),
                                            (z, c, m, t, qlab.cast(u, fmt)))]  # fmt: skip
    assert k.size > 100
    check("fma", fmt, *operands)
    for rounding in DETERMINISTIC[1:]:
        check("fma", fmt, *(v[DETERMINISTIC.index(rounding) :: 4] for v in operands), rounding=rounding)
    check("fma", fmt, *(np.array(v) for v in ([0, np.inf, 1], [np.inf, 1, 1], [1, -np.inf, np.nan])))


def test_fma_is_not_two_roundings():
    """Nor is it float64's own x * y + z, though its product is exact: there the tie hides the z."""
    x, y, tiny = 3.0, 87 / 256, 2.0**-120  # 261 / 256 is the midpoint of two bfloat16, the lower of which is even
    assert x * y + tiny == x * y
    assert qlab.cast(x * y, "bfloat16") == 260 / 256
    assert arithmetic.fma(x, y, tiny, "bfloat16") == 262 / 256
    assert arithmetic.fma(x, y, -tiny, "bfloat16") == 260 / 256


# --- square roots ----------------------------------------------------------------------------------------------------
def exact_root(value: float) -> float:
    """The root of a positive float, rounded to odd, by the integer square root."""
    p, q = value.as_integer_ratio()
    half = (q.bit_length() - 1 + 1) // 2
    shift = 2 * (120 + half)
    square = (p << shift) // q  # exact: q is a power of two
    root = math.isqrt(square)
    return odd_float(2 * root + (root * root != square), 1, -shift // 2 - 1)


@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_sqrt_of_every_float16(rounding):
    fmt, x = get_format("float16"), float16_inputs().astype(np.float64)
    with np.errstate(invalid="ignore"):
        roots = [exact_root(v) if 0 < v < math.inf else float(np.sqrt(v)) for v in x.tolist()]
    expected = np.array([rounded(fmt, root, rounding, "ieee") for root in roots])
    compare(arithmetic.sqrt(x, fmt, rounding=rounding), expected, (x,))


@pytest.mark.parametrize("fmt", [get_format(n) for n in ("bfloat16", "tfloat32", "float32")] + BYTES + ODD_ONES,
                         ids=lambda fmt: fmt.name)  # fmt: skip
def test_sqrt(fmt):
    x = hard_values(fmt) if fmt.bits > 8 else fmt.values()
    if fmt.bits > 8:
        squares = qlab.cast(x[(x < 2.0**60) & (x > 2.0**-60)] ** 2, fmt)
        x = np.concatenate([x, squares, [0.0, -0.0, np.inf, np.nan, -1.0]])
    elif fmt.nan_code is None:
        x = x[x >= 0]
    with np.errstate(invalid="ignore"):
        roots = [exact_root(v) if 0 < v < math.inf else float(np.sqrt(v)) for v in x.tolist()]
    for rounding in DETERMINISTIC:
        expected = np.array([rounded(fmt, root, rounding, "ieee") for root in roots])
        compare(arithmetic.sqrt(x, fmt, rounding=rounding), expected, (x,))


# --- against the machine ---------------------------------------------------------------------------------------------
def test_float32_is_the_machine():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, (2, 200_000), dtype=np.uint32)
    close = rng.integers(0, 2**24, (2, 100_000), dtype=np.uint32) + np.uint32(0x3F000000)
    hard = hard_values(get_format("float32")).astype(np.float32)
    pairs = np.stack([v.ravel() for v in np.meshgrid(hard, np.concatenate([hard, -hard]))])
    x, y = np.concatenate([bits.view(np.float32), close.view(np.float32), pairs], axis=1)
    with np.errstate(all="ignore"):
        for operation, ufunc in OPERATIONS.items():
            result = getattr(arithmetic, operation)(x, y, "float32")
            assert result.dtype == np.float32
            compare(result, ufunc(x, y), (x, y))
        compare(arithmetic.sqrt(x, "float32"), np.sqrt(x), (x,))


def test_float16_and_bfloat16_are_the_libraries():
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**16, (2, 300_000), dtype=np.uint16)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        x, y = bits.view(dtype)
        with np.errstate(all="ignore"):
            for operation, ufunc in OPERATIONS.items():
                result = getattr(arithmetic, operation)(x, y, np.dtype(dtype).name)
                assert result.dtype == dtype
                compare(result.astype(np.float64), ufunc(x, y).astype(np.float64), (x, y))


# --- stochastic rounding ---------------------------------------------------------------------------------------------
def test_stochastic_operations_take_their_share():
    """With every uint8 as noise, the upper neighbour comes up as often as the exact result, cut to 8 bits, calls for."""
    noise = np.arange(256, dtype=np.uint8)
    for operation, operands, below, fraction in (
        ("add", (1.0, 5 / 512), 1.0, Fraction(5, 64)), ("sub", (1.125, 5 / 512), 1.0, Fraction(59, 64)),
        ("mul", (1.125, 1.125), 1.25, Fraction(1, 8)), ("div", (1.0, 1.5), 0.625, Fraction(2, 3)),
        ("sqrt", (2.0,), 1.375, Fraction(math.sqrt(2) - 1.375) * 8),
        ("fma", (1.125, 1.125, -0.25), 1.0, Fraction(1, 8)),
    ):  # fmt: skip
        arrays = [np.full(256, v) for v in operands]
        result = getattr(arithmetic, operation)(*arrays, "float8_e4m3fn", rounding="stochastic", noise=noise)
        assert set(result.tolist()) <= {below, below + 0.125 * (0.5 if below < 1 else 1)}
        assert (result > below).sum() == math.floor(fraction * 256), operation
    x = np.full(70_000, 256.0)
    by_seed = [arithmetic.add(x, 1.0, "bfloat16", rounding="stochastic", rng=seed) for seed in (1, 1, 2)]
    assert np.array_equal(by_seed[0], by_seed[1])
    assert not np.array_equal(by_seed[0], by_seed[2])
    assert abs(by_seed[0].mean() - 257) < 0.02


@pytest.mark.parametrize("operation", ["add", "div", "sqrt", "fma"])
def test_stochastic_rounds_what_is_odd(operation):
    """float32 with the finest noise sees the last bit of the float64: that of the result rounded to odd, not to nearest."""
    rng = np.random.default_rng(0)
    x, y, z = (rng.uniform(1, 2, (3, 3000)) * 2.0 ** rng.integers(-9, 9, (3, 3000))).astype(np.float32).astype(np.float64)
    y *= 1 if operation == "sqrt" else rng.choice([-1, 1], y.size)
    operands = {"fma": (x, y, z), "sqrt": (x,)}.get(operation, (x, y * 2.0**-9 if operation == "add" else y))
    if operation == "sqrt":
        true = np.array([exact_root(v) for v in x.tolist()])
    else:
        true = np.array([exact(operation, "stochastic", *values) for values in zip(*operands, strict=True)])
    below = qlab.cast(true, "float32", rounding="toward_zero")
    step = np.ldexp(1.0, np.frexp(below)[1] - 24)
    bits = (np.abs(true - below) / step * 2.0**32).astype(np.uint64)
    inexact = bits > 0
    just = (2**32 - bits[inexact]).astype(np.uint32)
    operands, below = [v[inexact] for v in operands], below[inexact]
    for noise, up in ((just, True), (just - np.uint32(1), False)):
        result = getattr(arithmetic, operation)(*operands, "float32", rounding="stochastic", noise=noise)
        assert ((result != below) == up).all()
    assert inexact.sum() > 1000


def test_stochastic_sees_bits_that_float64_drops():
    """To odd, a tiny addend is never lost: down from 1 it is the lower neighbour that may come up."""
    x, tiny = np.ones(4), np.full(4, -(2.0**-120))
    noise = np.array([0, 1, 2**16 - 1, 2**15], np.uint16)
    result = arithmetic.add(x, tiny, "bfloat16", rounding="stochastic", noise=noise)
    assert result.tolist() == [1 - 2.0**-8, 1.0, 1.0, 1.0]
    assert arithmetic.add(x, tiny, "bfloat16", rounding="toward_zero").tolist() == [1 - 2.0**-8] * 4


# --- the proofs ------------------------------------------------------------------------------------------------------
def to_width(value: Fraction, width: int) -> Fraction:
    """Round to nearest even, to so many bits, with exponents without end."""
    if value < 0:
        return -to_width(-value, width)
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    exponent -= value < Fraction(2) ** exponent
    step = Fraction(2) ** (exponent - width + 1)
    return round(value / step) * step  # Python's round is to even


@pytest.mark.parametrize("fmt", [FloatFormat("e3m1", 3, 1), FloatFormat("e2m2", 2, 2), FloatFormat("e4m1", 4, 1),
                                 FloatFormat("e3m1_normal", 3, 1, subnormals=False)],
                         ids=lambda fmt: fmt.name)  # fmt: skip
def test_when_a_plain_sum_will_do(fmt):
    """Exhaustively for small formats and small 'float64's: where it is claimed to be innocuous, it is."""
    p, low = fmt.mantissa_bits + 1, fmt.emin - fmt.mantissa_bits
    values = [Fraction(v) for v in fmt.values().tolist() if math.isfinite(v) and v > 0]
    claims = 0
    for bits in range(1, 2 * p + 1):
        for lowest in (low, low - 2, 2 * low):
            top = math.frexp(fmt.max)[1] + 2
            terms = {Fraction(n) * Fraction(2) ** e for n in range(1, 2**bits) for e in range(lowest, top)}
            for width in range(3, 16):
                if not plain_sum_will_do(fmt, bits, lowest, "nearest_even", width):
                    continue
                claims += 1
                for x in values[:: 1 + len(values) // 12]:
                    for y in sorted(terms)[:: 1 + len(terms) // 60]:
                        for total in (x + y, x - y):
                            if total:
                                twice = to_width(total, width)
                                for how in ("nearest_even", "nearest_away"):
                                    once = rounded(fmt, odd_float(total.numerator, total.denominator), how, "ieee")
                                    assert rounded(fmt, float(twice), how, "ieee") == once, (bits, lowest, width, x, y)
    assert claims > 10


def test_it_is_not_claimed_for_products_of_bfloat16():
    bf16, fp16 = get_format("bfloat16"), get_format("float16")
    assert plain_sum_will_do(bf16, 8, -133, "nearest_even")
    assert not plain_sum_will_do(bf16, 8, -133, "down")
    assert not plain_sum_will_do(bf16, 16, -266, "nearest_even")  # see test_fma_is_not_two_roundings
    assert plain_sum_will_do(fp16, 22, -48, "nearest_even")
    assert plain_sum_will_do(fp16, 11, -24, "down")  # exact
    assert not plain_sum_will_do(get_format("float32"), 48, -298, "nearest_even")


def plan_of(fmt: FloatFormat) -> Plan:
    return Plan(
        "sum", fmt, fmt, None, factors=1, order=("sequential", 0), rounding="nearest_even", overflow="ieee", seed=None
    )


@pytest.mark.parametrize("p", range(2, 26))
def test_splitting_is_rounding(p):
    """Veltkamp's high part, for every float32 of a binade and p of up to 11; for float64, ties and their neighbours."""
    fmt = FloatFormat(f"e6m{p - 1}", 6, p - 1)
    plan = plan_of(fmt)
    assert plan.splits
    assert plan.term_type == (np.float32 if p <= 11 else np.float64)
    if p <= 11:
        every = slice(None, None, 1 if p == 11 else 37)
        x = np.arange(0x3F800000, 0x40000000, dtype=np.int32)[every].view(np.float32)
    else:
        ties = 1 + (np.random.default_rng(p).integers(0, 2 ** (p - 1), 20_000) + 0.5) * 2.0 ** (1 - p)
        x = np.concatenate([ties, np.nextafter(ties, 0), np.nextafter(ties, 2), np.nextafter([2.0, 1.0], [0.0, 2.0])])
    out = np.empty_like(x)
    plan.fast_step(x.size)(np.add, x, (np.zeros_like(x),), out)
    assert np.array_equal(out, qlab.cast(x, fmt))


# --- sums ------------------------------------------------------------------------------------------------------------
def slow_sum(terms, to, order, rounding="nearest_even", overflow="ieee", factors=None):
    """The definition, one number after the other. `terms` are floats, or (with `factors`) pairs, then it is all fma."""

    def do(operation, *operands):
        return rounded(to, exact(operation, rounding, *operands), rounding, overflow)

    if order == "pairwise":
        def tree(part):
            if len(part) == 1:
                return part[0]
            middle = len(part) // 2
            return do("add", tree(part[:middle]), tree(part[middle:]))

        return do("add", tree(terms), 0.0) if terms else 0.0
    if order.startswith("blocked"):
        k = int(order[8:-1])
        blocks = (terms[i : i + k] for i in range(0, len(terms), k))
        sums = [slow_sum(block, to, "sequential", rounding, overflow, factors) for block in blocks]
        return slow_sum(sums, to, "sequential", rounding, overflow)
    total = lost = 0.0
    for term in terms:
        if order == "sequential":
            total = do("fma", *term, total) if factors else do("add", term, total)
            continue
        y = do("fma", *term, -lost) if factors else do("sub", term, lost)
        new = do("add", total, y)
        lost = do("sub", do("sub", new, total), y)
        total = new
    return total


ORDERS = ("sequential", "pairwise", "blocked(7)", "kahan")
DATA = {
    "plain": lambda rng, fmt, shape: rng.standard_normal(shape),
    "wide": lambda rng, fmt, shape: rng.standard_normal(shape) * 2.0 ** rng.integers(-12, 12, shape),
    "subnormal": lambda rng, fmt, shape: rng.standard_normal(shape) * fmt.smallest_normal,
    "overflowing": lambda rng, fmt, shape: rng.standard_normal(shape) * fmt.max / 3,
    "growing": lambda rng, fmt, shape: rng.random(shape) * 2.0 ** (np.arange(shape[0])[:, None] // 3),
}
ACCUMULATORS = [
    ("float16", "float16"), ("bfloat16", "bfloat16"), ("float8_e4m3fn", "float8_e4m3fn"), ("float8_e5m2", "float16"),
    ("float8_e4m3fnuz", "bfloat16"), ("bfloat16", "float16"), ("float16", "bfloat16"), ("float16", "float32"),
    ("float8_e3m4", "float8_e5m2"), ("float4_e2m1fn", "float6_e3m2fn"), ("bfloat16", "tfloat32"), ("float32", "float16"),
    ("float32", "float32"), ("float16", ODD_ONES[0]), (ODD_ONES[0], ODD_ONES[0]),
    ("float16", ODD_ONES[1]), ("float8_e4m3", FORMATS["float8_e4m3"]),
]  # fmt: skip
by_accumulator = pytest.mark.parametrize("fmt, to", ACCUMULATORS, ids=lambda f: getattr(f, "name", f))


def finite_for(fmt, x):
    """Values of the format; without overflow to infinity, so that formats without NaN have none."""
    return np.asarray(qlab.cast(np.clip(x, fmt.min, fmt.max), fmt), np.float64)


@by_accumulator
@pytest.mark.parametrize("order", ORDERS)
def test_sums(fmt, to, order):
    fmt, to, rng = get_format(fmt), get_format(to), np.random.default_rng(0)
    for data in DATA.values():
        x = finite_for(fmt, data(rng, fmt, (37, 3)))
        for rounding in ("nearest_even", DETERMINISTIC[1 + rng.integers(5)]):
            for overflow in ("ieee", "saturate"):
                sums = [slow_sum(column.tolist(), to, order, rounding, overflow) for column in x.T]
                expected = np.array([rounded(fmt, s, rounding, overflow) for s in sums])
                result = arithmetic.sum(
                    x, fmt, accumulator=to, axis=0, order=order, rounding=rounding, overflow=overflow
                )
                compare(result, expected, (x[0],))


@by_accumulator
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("product", ["rounded", "float32", "exact", "fma"])
def test_dots(fmt, to, order, product):
    if product == "fma" and order == "pairwise":
        return
    fmt, to, rng = get_format(fmt), get_format(to), np.random.default_rng(1)
    p_fmt = {"rounded": to, "float32": get_format("float32")}.get(product)
    option = {"rounded": {}, "float32": {"product": "float32"}, "exact": {"product": "float64"}, "fma": {"fma": True}}
    for data in list(DATA.values())[: 4 if fmt.bits < 32 else 2]:
        x, y = (finite_for(fmt, data(rng, fmt, (23, 2))) for _ in range(2))
        x[::5] *= -1 if fmt.signed else 1
        rounding = DETERMINISTIC[rng.integers(6)] if rng.random() < 0.5 else "nearest_even"
        sums = []
        for a, b in zip(x.T.tolist(), y.T.tolist(), strict=True):
            terms = list(zip(a, b, strict=True))
            if product != "fma":
                exact_ones = [exact("mul", rounding, *pair) for pair in terms]  # 48 bits: exact in float64
                terms = [v if p_fmt is None else rounded(p_fmt, v, rounding, "saturate") for v in exact_ones]
            sums.append(slow_sum(terms, to, order, rounding, "saturate", product == "fma"))
        expected = np.array([rounded(fmt, s, rounding, "saturate") for s in sums])
        result = arithmetic.dot(
            x, y, fmt, accumulator=to, order=order, axis=0, rounding=rounding, overflow="saturate", **option[product]
        )
        compare(result, expected, (x[0], y[0]))


def test_sums_that_plain_addition_rounds_twice():
    """The tiny first term decides a tie that the second one makes; float32, or float64, would drop it on the way."""
    tiny, x, y = 2.0**-12, 3.0, 87 / 256  # 3 * 87 / 256 is the midpoint of two bfloat16, the lower of which is even
    for order in ("sequential", "blocked(2)"):
        for sign in (1, -1):
            result = arithmetic.dot([tiny, x], [sign * tiny, y], "float16", accumulator="bfloat16", fma=True, order=order)
            assert result == (262 if sign == 1 else 260) / 256
    exact_products = {"accumulator": "bfloat16", "product": "float64"}
    for order in ("sequential", "pairwise"):
        assert arithmetic.dot([2.0**-60, x], [2.0**-60, y], "bfloat16", order=order, **exact_products) == 262 / 256
    # a tie between 0 and the lowest float16, made by terms of another grid
    assert arithmetic.sum([2.0**-25, 2.0**-130], "bfloat16", accumulator="float16", order="pairwise") == 2.0**-24
    assert arithmetic.sum([2.0**-130, 2.0**-25], "bfloat16", accumulator="float16") == 0  # the first is lost at once
    # a product below all float32 is not zero
    tiny = FloatFormat("e4m3_tiny", 4, 3, bias=90)
    least = tiny.smallest_subnormal
    assert arithmetic.dot([least], [least], tiny, accumulator="bfloat16", rounding="up") == least
    # what is rounded to zero keeps its sign, if the format has one for zero
    for name, zero in (("float8_e4m3fnuz", 0.0), ("float8_e4m3fn", -0.0)):
        least = get_format(name).smallest_subnormal
        assert same(arithmetic.dot([-least], [least], name, fma=True), zero)


@pytest.mark.parametrize("order", ORDERS)
def test_float64_accumulator(order):
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 50, 6)).astype(np.float32)
    products = (x.astype(np.float64) * y).T.tolist()

    def total(terms):
        if order == "pairwise":
            return total(terms[: len(terms) // 2]) + total(terms[len(terms) // 2 :]) if len(terms) > 1 else terms[0]
        s = c = 0.0
        if order == "kahan":
            for term in terms:
                corrected = term - c
                new = s + corrected
                s, c = new, (new - s) - corrected
            return s
        k = 7 if order == "blocked(7)" else len(terms)
        for i in range(0, len(terms), k):
            block = 0.0
            for term in terms[i : i + k]:
                block += term
            s += block
        return s

    result = arithmetic.dot(x, y, "float32", accumulator="float64", order=order, axis=0)
    assert np.array_equal(result, np.float32([total(terms) for terms in products]))


def test_numpy_float16_loop():
    rng = np.random.default_rng(3)
    for scale in (1.0, 1e-4, 40.0):  # the last one overflows in some rows
        x, y = (rng.standard_normal((2, 30, 500)) * scale).astype(np.float16)
        with np.errstate(over="ignore", invalid="ignore"):
            sums, dots = [], []
            for a, b in zip(x, y, strict=True):
                s = d = np.float16(0)
                for u, v in zip(a, b, strict=True):
                    s, d = s + u, d + u * v
                sums.append(s)
                dots.append(d)
        result = arithmetic.sum(x, "float16")
        assert result.dtype == np.float16
        assert same(result, sums).all()
        assert same(arithmetic.dot(x, y, "float16"), dots).all()
    assert not np.isfinite(dots).all()
    assert np.isfinite(dots).any()


def test_float32_accumulator_is_the_machine():
    x, y = np.random.default_rng(4).standard_normal((2, 9, 400)).astype(np.float16)
    total = np.zeros(9, np.float32)
    for u, v in zip(x.T.astype(np.float32), y.T.astype(np.float32), strict=True):
        total += u * v
    result = arithmetic.dot(x, y, "float16", accumulator="float32")
    assert np.array_equal(result, total.astype(np.float16))
    assert np.array_equal(arithmetic.dot(x.astype(np.float32), y, "float16", accumulator="float32", fma=True), result)


def test_a_sum_of_ones_stops():
    ones = np.ones(4096)
    assert arithmetic.sum(ones, "bfloat16") == 256
    assert arithmetic.sum(ones, "float16") == 2048
    assert arithmetic.sum(ones, "float8_e4m3fn") == 16
    assert arithmetic.sum(ones, "bfloat16", accumulator="float32") == 4096
    for order in ("pairwise", "blocked(64)", ("blocked", 128), "kahan"):
        assert arithmetic.sum(ones, "bfloat16", order=order) == 4096
    assert abs(arithmetic.sum(np.ones((300, 4096)), "bfloat16", rounding="stochastic", rng=0).mean() - 4096) < 60


def test_kahan_is_better():
    x = np.random.default_rng(5).random((20, 2000)).astype(np.float16)
    true = x.astype(np.float64).sum(axis=1)
    error = {order: np.abs(arithmetic.sum(x, "float16", order=order) - true).max() for order in ORDERS}
    assert error["kahan"] <= 0.5
    assert error["kahan"] < error["pairwise"] < error["sequential"]


# --- shapes, tiles, noise --------------------------------------------------------------------------------------------
def test_matmul_is_dot_for_every_shape():
    rng = np.random.default_rng(6)
    for left, right in (((3, 5), (5, 4)), ((5,), (5, 4)), ((3, 5), (5,)), ((5,), (5,)), ((2, 1, 3, 5), (7, 5, 4)),
                        ((0, 5), (5, 4)), ((3, 5), (5, 0)), ((3, 0), (0, 4)), ((2, 3, 5), (5,))):  # fmt: skip
        a, b = rng.standard_normal(left).astype(np.float32), rng.standard_normal(right).astype(np.float32)
        for option in ({}, {"order": "pairwise"}, {"fma": True}, {"accumulator": "float32", "order": "kahan"}):
            result = arithmetic.matmul(a, b, "float8_e5m2", **option)
            assert np.shape(result) == np.shape(np.matmul(a, b))
            rows = a[..., None, :] if a.ndim > 1 or b.ndim == 1 else a
            columns = np.swapaxes(b, -1, -2) if b.ndim > 1 else b
            rows = a[..., :, None, :] if a.ndim > 1 and b.ndim > 1 else a
            columns = columns[..., None, :, :] if a.ndim > 1 and b.ndim > 1 else columns
            assert same(result, arithmetic.dot(rows, columns, "float8_e5m2", **option)).all()


def test_axes_and_shapes():
    x = np.random.default_rng(7).standard_normal((4, 5, 6)).astype(np.float32)
    y = np.random.default_rng(8).standard_normal((5, 6)).astype(np.float32)
    for axis in (0, 1, 2, -1, -3):
        result = arithmetic.sum(x, "bfloat16", axis=axis)
        one_by_one = np.apply_along_axis(lambda v: arithmetic.sum(v, "bfloat16"), axis, x)
        assert same(result, one_by_one).all()
    assert arithmetic.dot(x, y, "float16").shape == (4, 5)
    assert arithmetic.dot(x, y, "float16", axis=-2).shape == (4, 6)
    assert same(arithmetic.dot(x, y, "float16", axis=1), arithmetic.dot(x, y[None], "float16", axis=-2)).all()
    assert same(arithmetic.sum(x[:, ::-2].T, "float16"), arithmetic.sum(x[:, ::-2].T.copy(), "float16")).all()
    for order in ORDERS:
        assert same(arithmetic.sum(np.zeros((3, 0)), "float16", order=order), [0.0] * 3).all()
        assert arithmetic.sum(np.zeros((0, 3)), "float16", order=order).shape == (0,)
        for rounding in ("nearest_even", "nearest_away", "toward_zero", "up", "to_odd"):
            assert same(arithmetic.sum([-0.0, -0.0], "float16", order=order, rounding=rounding), 0.0).all()
        assert arithmetic.sum([257.0], "float16", accumulator="bfloat16", order=order) == 256
        assert same(arithmetic.sum([-0.0, -0.0], "float16", order=order, rounding="down"), -0.0)
        assert arithmetic.sum([3.0], "float16", order=order) == 3.0
    assert isinstance(arithmetic.sum([1.0, 2.0], "float16"), np.float64)
    assert isinstance(arithmetic.add(1.0, 2.0, "float16"), np.float64)
    assert arithmetic.add(np.zeros((0, 3)), np.zeros(3), "float16").shape == (0, 3)
    assert arithmetic.mul(np.ones((2, 1)), np.ones(3), "float16").shape == (2, 3)
    before = x.copy()
    arithmetic.add(x, x, "float8_e4m3fn")
    assert np.array_equal(x, before)


@pytest.mark.parametrize("option", [{}, {"order": "kahan"}, {"order": "pairwise"}, {"order": "blocked(4)"}, {"fma": True},
                                    {"accumulator": "float32"}, {"rounding": "up"}])  # fmt: skip
def test_many_columns_and_threads(option):
    x, y = np.random.default_rng(9).standard_normal((2, 11, 40_000)).astype(np.float32) * 30
    some = slice(8000, 8400)
    results = []
    for threads in (1, 2):
        qlab.set_num_threads(threads)
        results.append(arithmetic.dot(x, y, "float16", axis=0, **option))
    qlab.set_num_threads(None)
    assert np.array_equal(results[0], results[1])
    assert same(results[0][some], arithmetic.dot(x[:, some], y[:, some], "float16", axis=0, **option)).all()
    a, b = x[:, :300].T.copy(), y[:, :257].copy()
    result = arithmetic.matmul(a, b, "float16", **option)
    assert same(result[137], arithmetic.dot(a[137], b.T, "float16", **option)).all()
    assert same(result[:, 200], arithmetic.dot(a, b[:, 200], "float16", **option)).all()


def test_large_arrays_in_threads():
    """So many elements that pieces are long ones, in threads (which once waited for one another for ever)."""
    code = (
        "import numpy as np, qlab; from qlab._pieces import PIECE; qlab.set_num_threads(2);"
        "x = np.resize(np.linspace(-9, 9, 999).astype(np.float16), 32 * PIECE + 7);"
        "print(np.array_equal(qlab.arithmetic.add(x, x, 'bfloat16')[-999:], qlab.arithmetic.add(*2 * [x[-999:]], 'bfloat16')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.strip() == "True"


def test_noise_of_a_tile_is_its_part_of_one_stream():
    """Operation i of column j gets word i * total + j of the counter-based stream, in whatever portions it is taken."""
    stream = philox(7, 0, 200 * 10).reshape(200, 10)
    for first, columns in ((0, 10), (4, 5), (9, 1)):
        noise = _Noise(7, first, columns, 10, Scratch())
        taken = np.concatenate([noise.take(portion).reshape(-1, columns) for portion in (1, 2, 60, 3, 100, 30)])
        assert np.array_equal(taken, stream[:196, first : first + columns])


def test_stochastic_accumulators():
    x = np.full((100, 20_001), 1 / 3, np.float32)
    sums = []
    for threads in (1, 2, 2):
        qlab.set_num_threads(threads)
        sums.append(arithmetic.sum(x, "bfloat16", axis=0, rounding="stochastic", rng=np.random.default_rng(3)))
    qlab.set_num_threads(None)
    assert np.array_equal(sums[0], sums[1])
    assert np.array_equal(sums[1], sums[2])
    third = float(qlab.cast(1 / 3, "bfloat16"))
    assert abs(sums[0].mean() / (100 * third) - 1) < 6e-4
    assert len(np.unique(sums[0])) > 5
    assert not np.array_equal(sums[0][:8192], sums[0][8192:16384])  # tiles have noise of their own
    assert not np.array_equal(sums[0], arithmetic.sum(x, "bfloat16", axis=0, rounding="stochastic", rng=4))
    # every sum is one of its neighbours: two terms, all of whose roundings are known
    two = arithmetic.sum(np.array([[256.0] * 999, [1.0] * 999]), "bfloat16", axis=0, rounding="stochastic", rng=0)
    assert set(two.tolist()) == {256.0, 258.0}
    dots = arithmetic.dot(x, x, "bfloat16", axis=0, rounding="stochastic", rng=0, accumulator="float32")
    assert abs(dots.mean() / (100 * third**2) - 1) < 6e-4
    assert len(set(dots.tolist())) > 1  # the cast of the result is stochastic too
    for order in ("pairwise", "kahan", "blocked(8)"):
        mean = arithmetic.sum(x, "bfloat16", axis=0, rounding="stochastic", rng=1, order=order).mean()
        assert abs(mean / (100 * third) - 1) < 6e-4, order


def test_operands_are_rounded_first():
    assert arithmetic.add(257.0, 0.0, "bfloat16") == 256
    assert arithmetic.mul(1.06, 100.0, "float8_e4m3fn", rounding="up") == 1.0 * 96.0
    assert arithmetic.add(1e6, -1e6, "float16", overflow="saturate") == 0
    assert math.isnan(arithmetic.add(1e6, -1e6, "float16"))
    infinity = np.array([np.inf, -np.inf], np.float16)
    assert arithmetic.add(infinity, np.float16(0), "float16", overflow="saturate").tolist() == [65504, -65504]
    assert arithmetic.add(infinity, infinity[::-1], "float16", overflow="saturate").tolist() == [0, 0]
    assert same(arithmetic.sum([257.0, 257.0], "bfloat16"), 512.0)


def test_dtypes():
    half, single, double = (np.ones(2, t) for t in (np.float16, np.float32, np.float64))
    brain = np.ones(2, ml_dtypes.bfloat16)
    for x, y, fmt, dtype in (
        (half, half, "float16", np.float16), (half, single, "float16", np.float32),
        (half, half, "bfloat16", np.float32), (half, 2.0, "float8_e4m3fn", np.float16),
        (single, 2, "float16", np.float32), (single, double, "float16", np.float64),
        (brain, brain, "bfloat16", ml_dtypes.bfloat16), (brain, half, "float8_e5m2", np.float32),
        ([1, 2], 3, "float16", np.float64), (np.arange(2, dtype=np.int8), 1, "float16", np.float32),
    ):  # fmt: skip
        assert arithmetic.add(x, y, fmt).dtype == dtype
        assert arithmetic.dot(x, x, fmt).dtype == arithmetic.mul(x, x, fmt).dtype


# --- torch -----------------------------------------------------------------------------------------------------------
def test_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(10)
    x, y = rng.standard_normal((2, 6, 50)).astype(np.float32)
    tx, ty = torch.from_numpy(x), torch.from_numpy(y)
    for name in ("add", "sub", "mul", "div", "dot"):
        verb = getattr(arithmetic, name)
        result = verb(tx, ty, "float16")
        assert isinstance(result, torch.Tensor)
        assert result.dtype == torch.float32
        assert same(result.numpy(), verb(x, y, "float16")).all()
    assert same(arithmetic.matmul(tx, ty.T, "bfloat16").numpy(), arithmetic.matmul(x, y.T, "bfloat16")).all()
    assert same(arithmetic.fma(tx, 2.0, ty, "bfloat16").numpy(), arithmetic.fma(x, 2.0, y, "bfloat16")).all()
    for dtype, fmt in ((torch.bfloat16, "bfloat16"), (torch.float16, "float16"), (torch.float32, "float32")):
        a, b = tx.to(dtype), ty.to(dtype)
        for result, theirs in ((arithmetic.add(a, b, fmt), a + b), (arithmetic.mul(a, b, fmt), a * b)):
            assert result.dtype == dtype
            assert same(result.double().numpy(), theirs.double().numpy()).all()
    assert arithmetic.sum(tx[0], "float16").shape == ()
    gradient = torch.ones(3, requires_grad=True)
    assert arithmetic.sum(gradient, "float16") == 3
    assert not arithmetic.sum(gradient, "float16").requires_grad
    fp8 = tx.to(torch.float8_e4m3fn)
    assert same(arithmetic.add(fp8, fp8, "float8_e4m3fn").numpy(), arithmetic.add(x, x, "float8_e4m3fn")).all()


def test_torch_is_not_imported():
    code = "import qlab, sys; qlab.arithmetic.dot([1.0], [2.0], 'fp16'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- refusals --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("call, error, message", [
    (lambda: arithmetic.add(1, 2, 8), TypeError, "a format is a name"),
    (lambda: arithmetic.add(1, 2, "float64"), ValueError, "float64 has 53 significant bits.*up to 24"),
    (lambda: arithmetic.mul(1, 2, FloatFormat("wide", 10, 3)), ValueError, r"wide has 4 .*2\*\*400"),
    (lambda: arithmetic.add(1, 2, "float17"), ValueError, "unknown format"),
    (lambda: arithmetic.add([1, np.nan], 2, "float4_e2m1fn"), ValueError, r"add: x holds 1 NaN .*\(1,\).*has none"),
    (lambda: arithmetic.div([1, 0, 0], 0, "float4_e2m1fn"), ValueError, r"div: 2 results are NaN .*\(1,\)"),
    (lambda: arithmetic.sqrt(-1, "float6_e3m2fn"), ValueError, r"sqrt: 1 result is NaN .*\(\)"),
    (lambda: arithmetic.sum([np.inf, -np.inf], ODD_ONES[3]), ValueError, "sum: inf - inf is NaN, and e4m3_inf_no_nan"),
    (lambda: arithmetic.dot([np.inf], [0.0], ODD_ONES[3]), ValueError, r"dot: 0 \* inf is NaN"),
    (lambda: arithmetic.sum([np.inf, -np.inf], ODD_ONES[3], accumulator="float16"), ValueError, "sum: 1 result is NaN"),
    (lambda: arithmetic.add(1, 2, "float16", rounding="nearest"), ValueError, "rounding='nearest' is not known"),
    (lambda: arithmetic.sum([1], "float16", overflow="wrap"), ValueError, "overflow='wrap' is not known"),
    (lambda: arithmetic.sum([1], "float16", order="tree"), ValueError, "order='tree' is not known.*pairwise"),
    (lambda: arithmetic.sum([1], "float16", order="blocked(0)"), ValueError, "of 1 or more"),
    (lambda: arithmetic.sum([1], "float16", order=("blocked", 2.5)), ValueError, "of 1 or more"),
    (lambda: arithmetic.sum([1], "float16", axis=1), ValueError, "axis 1 is out of bounds"),
    (lambda: arithmetic.sum(1.0, "float16"), ValueError, "out of bounds"),
    (lambda: arithmetic.sum([1], "float8_e8m0fnu"), ValueError, "no zero to start a sum from"),
    (lambda: arithmetic.sum([1], "float16", rounding="stochastic"), ValueError, "needs rng"),
    (lambda: arithmetic.sum([1], "float16", rng=3), ValueError, "rng is for rounding='stochastic'"),
    (lambda: arithmetic.sum([1], "float16", rounding="stochastic", rng="x"), TypeError, "rng is str"),
    (lambda: arithmetic.add(1, 2, "float16", rounding="stochastic"), ValueError, "needs"),
    (lambda: arithmetic.add([1, 1], 2, "float16", rounding="stochastic", noise=np.zeros(3, np.uint8)), ValueError, "noise"),
    (lambda: arithmetic.dot([1], [2], "float16", fma=True, product="float32"), ValueError, "leave one of them out"),
    (lambda: arithmetic.dot([1], [2], "float16", fma=True, order="pairwise"), ValueError, "product='float64'"),
    (lambda: arithmetic.dot([1], [2], "float16", accumulator="float64", rounding="up"), ValueError, "float64 accumulator"),
    (lambda: arithmetic.dot([1, 2], [3], "float16"), ValueError, "differ in length along axis -1"),
    (lambda: arithmetic.dot([[1, 2]], [3, 4], "float16", axis=0), ValueError, "both need that axis"),
    (lambda: arithmetic.dot([[1, 2]], [[3, 4, 5]], "float16"), ValueError, "shape"),
    (lambda: arithmetic.matmul(np.ones((2, 3)), np.ones((2, 3)), "float16"), ValueError, "do not match"),
    (lambda: arithmetic.matmul(1.0, [1.0], "float16"), ValueError, "do not match"),
    (lambda: arithmetic.add(np.ones(2), np.ones(3), "float16"), ValueError, "broadcast"),
    (lambda: arithmetic.add(1j, 1, "float16"), TypeError, "complex128"),
    (lambda: arithmetic.add("1", 1, "float16"), TypeError, "convert it first"),
])  # fmt: skip
def test_refusals(call, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        call()
