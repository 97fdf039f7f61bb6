"""Arithmetic in integers, posits, takums and tables, against fractions, or, where takums multiply, against logarithms.

`Rational` rounds fractions among the values of a format; of posits and takums the values and the boundaries between
them come from the standards, as oracles.py writes them down, not from qlab.
"""

from __future__ import annotations

import bisect
import itertools
import math
import operator
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from oracles import TAPERED_VALUE, same, takum_logarithm

import qlab
from qlab import arithmetic
from qlab.number.logarithmic import is_takum
from qlab.number.rounding import ROUNDINGS
from qlab.number.tapered import takum

DETERMINISTIC = [r for r in ROUNDINGS if r != "stochastic"]
OPERATIONS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv}


class Rational:
    """Rounding among ascending numbers with codes; boundaries[i] lies between numbers[i] and numbers[i + 1]."""

    def __init__(self, numbers, codes, boundaries):
        self.numbers, self.codes, self.boundaries = numbers, codes, boundaries

    def place(self, x, rounding="nearest_even") -> int:
        numbers = self.numbers
        if not numbers[0] < x < numbers[-1]:
            return 0 if x <= numbers[0] else len(numbers) - 1
        high = bisect.bisect_left(numbers, x)
        low = high - 1
        if numbers[high] == x:
            return high
        between = self.boundaries[low]
        even = low if self.codes[low] % 2 == 0 else high
        up = {
            "nearest_even": x > between or (x == between and even == high),
            "nearest_away": x > between or (x == between and numbers[high] > 0),
            "toward_zero": x < 0, "up": True, "down": False, "to_odd": even == low,
        }[rounding]  # fmt: skip
        return high if up else low


@cache
def rational(name: str) -> Rational:
    fmt = qlab.get_format(name)
    if name[:5] not in TAPERED_VALUE:
        values = [Fraction(v) for v in fmt.values().tolist()]
        codes = sorted(range(len(values)), key=values.__getitem__)
        numbers = [values[c] for c in codes]
        return Rational(numbers, codes, [(a + b) / 2 for a, b in itertools.pairwise(numbers)])
    value, bits = TAPERED_VALUE[name[:5]], fmt.bits
    positive = range(1, 1 << (bits - 1))
    numbers = [value(c, bits) for c in positive]
    between = [value(2 * c + 1, bits + 1) for c in positive[:-1]]
    codes = [(1 << bits) - c for c in positive[::-1]] + [0, *positive]
    return Rational([-v for v in numbers[::-1]] + [0, *numbers], codes, [-b for b in between[::-1]] + [0, 0, *between])


def float_of(name: str, x, rounding="nearest_even") -> float:
    return float(rational(name).numbers[rational(name).place(x, rounding)])


def fractions(x) -> list[Fraction]:
    return [Fraction(v) for v in np.ravel(x).tolist()]


def compare(result, expected, operands):
    wrong = ~same(result, expected)
    assert not wrong.any(), ([x[wrong][:5] for x in operands], result[wrong][:5], np.asarray(expected)[wrong][:5])


def finite_values(name: str) -> np.ndarray:
    values = qlab.get_format(name).values()
    return values[np.isfinite(values)]


# --- all pairs -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["posit8", "int8", "uint8", "nf4", "int3", "uint2"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_all_pairs(name, operation):
    values = finite_values(name)
    x, y = (v.ravel() for v in np.meshgrid(values, values))
    if operation == "div":
        x, y = x[y != 0], y[y != 0]
    exact = list(map(OPERATIONS[operation], fractions(x), fractions(y)))
    for rounding in DETERMINISTIC:
        some = slice(0 if rounding == "nearest_even" else DETERMINISTIC.index(rounding), None,
                     1 if rounding == "nearest_even" or len(values) < 100 else 7)  # fmt: skip
        rounded = {v: float_of(name, v, rounding) for v in set(exact[some])}
        expected = np.array([rounded[v] for v in exact[some]])
        for overflow in ("ieee", "saturate"):
            result = getattr(arithmetic, operation)(x[some], y[some], name, rounding=rounding, overflow=overflow)
            compare(result, expected, (x[some], y[some]))


@pytest.mark.parametrize("name", ["posit16", "int16", "uint16"])
@pytest.mark.parametrize("operation", [*OPERATIONS, "fma"])
def test_pairs_of_16_bits(name, operation):
    """At random, near one another and far; and sums next to boundaries, which the smallest values decide."""
    values, rng = finite_values(name), np.random.default_rng(0)
    x, y, z = rng.choice(values, (3, 5000))
    near = rng.integers(0, len(values) - 40, 2000)
    ordered = np.sort(values)
    x[:2000], y[:2000] = ordered[near], ordered[near + rng.integers(0, 40, 2000)]
    z[:1000] = -np.asarray(qlab.cast(x[:1000] * y[:1000], name))  # what is left is the rounding error of the product
    z[1000:2000] = values[values != 0][np.abs(values[values != 0]).argmin()]
    z = np.asarray(qlab.cast(z, name))  # unsigned ones have no negatives
    if operation == "div":
        y[y == 0] = 1
    operands = (x, y, z) if operation == "fma" else (x, y)
    do = (lambda a, b, c: a * b + c) if operation == "fma" else OPERATIONS[operation]
    exact = list(map(do, *map(fractions, operands)))
    for rounding in DETERMINISTIC:
        expected = np.array([float_of(name, v, rounding) for v in exact])
        compare(getattr(arithmetic, operation)(*operands, name, rounding=rounding), expected, operands)


def test_what_only_rounding_to_odd_tells():
    """The middle of two posits, and the smallest one, which float64 has no room for beside it."""
    tiny = 2.0**-56
    x, y = 1 + 2.0**-11, 1 + 2.0**-1
    middle = 1.5 + 1.5 * 2.0**-11  # x * y: between 1.5 + 2**-11 (odd) and 1.5 + 2**-10
    assert x * y == middle
    assert x * y + tiny == middle
    assert arithmetic.fma(x, y, tiny, "posit16") == 1.5 + 2.0**-10
    assert arithmetic.fma(x, y, 0, "posit16") == 1.5 + 2.0**-10
    assert arithmetic.fma(x, y, -tiny, "posit16") == 1.5 + 2.0**-11
    assert arithmetic.add(1, tiny, "posit16", rounding="up") == 1 + 2.0**-11
    assert arithmetic.sub(1, tiny, "posit16", rounding="down") == 1 - 2.0**-12


@pytest.mark.parametrize("name", ["posit8", "int8", "uint8", "nf4"])
def test_fma_of_bytes(name):
    values, rng = finite_values(name), np.random.default_rng(1)
    x, y, z = rng.choice(values, (3, 6000))
    exact = [a * b + c for a, b, c in zip(*map(fractions, (x, y, z)), strict=True)]
    for rounding in DETERMINISTIC:
        expected = np.array([float_of(name, v, rounding) for v in exact])
        compare(arithmetic.fma(x, y, z, name, rounding=rounding), expected, (x, y, z))


# --- square roots ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["posit8", "posit16", "int8", "uint8", "nf4"])
@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_sqrt_of_every_value(name, rounding):
    """The root is at the place of the number among the squares."""
    table = rational(name)
    first = next(i for i, v in enumerate(table.numbers) if v >= 0)
    squares = Rational([v * v for v in table.numbers[first:]], table.codes[first:],
                       [b * b for b in table.boundaries[first:]])  # fmt: skip
    x = np.array(sorted(v for v in finite_values(name) if v >= 0))
    expected = np.array([float(table.numbers[first + squares.place(v, rounding)]) for v in fractions(x)])
    compare(arithmetic.sqrt(x, name, rounding=rounding), expected, (x,))


# --- takums ----------------------------------------------------------------------------------------------------------
@cache
def logarithms(name: str) -> Rational:
    """The positive takums by their logarithms, and the boundaries between them."""
    bits = int(name[5:])
    codes = range(1, 1 << (bits - 1))
    between = [takum_logarithm(2 * c + 1, bits + 1) for c in codes[:-1]]
    return Rational([takum_logarithm(c, bits) for c in codes], codes, between)


@cache
def takum_of(name: str, sign: int, logarithm: Fraction, rounding: str) -> float:
    """The float64 of the takum that sign * sqrt(e)**logarithm is rounded to; ties by the magnitude, which is symmetric."""
    mirrored = {"up": "down", "down": "up"}.get(rounding, rounding) if sign < 0 else rounding
    table = logarithms(name)
    # below the smallest or above the largest number: that one, or zero where rounding goes there
    if logarithm < table.numbers[0] and (mirrored in ("toward_zero", "down")):
        return 0.0
    directed = {"toward_zero": "down"}.get(mirrored, mirrored)
    if directed == "nearest_away":  # away from zero, not from sqrt(e)**0
        above = min(bisect.bisect_left(table.numbers, logarithm), len(table.numbers) - 1)
        tie = above > 0 and table.boundaries[above - 1] == logarithm
        place = above if tie else table.place(logarithm)
    else:
        place = table.place(logarithm, directed)
    return sign * float(TAPERED_VALUE["takum"](table.codes[place], int(name[5:])))


def signs_and_logarithms(name: str, values: np.ndarray):
    fmt = qlab.get_format(name)
    codes = np.asarray(qlab.encode(np.abs(values), fmt)).tolist()
    return np.sign(values).astype(int).tolist(), [takum_logarithm(c, fmt.bits) if c else None for c in codes]


@pytest.mark.parametrize("name", ["takum8", "takum16"])
@pytest.mark.parametrize("operation", ["mul", "div"])
def test_products_of_takums(name, operation):
    """All pairs of takum8, some of takum16: logarithms are added, and ties are ties."""
    values = finite_values(name)
    if name == "takum8":
        x, y = (v.ravel() for v in np.meshgrid(values, values[values != 0]))
    else:
        x, y = np.random.default_rng(0).choice(values[values != 0], (2, 5000))
    (s, a), (t, b) = signs_and_logarithms(name, x), signs_and_logarithms(name, y)
    parts = list(zip(s, a, t, b, strict=True))
    for rounding in DETERMINISTIC:
        every = slice(DETERMINISTIC.index(rounding), None, 1 if rounding == "nearest_even" else 3)
        expected = np.array([
            takum_of(name, s * t, a + b if operation == "mul" else a - b, rounding) if s else 0.0
            for s, a, t, b in parts[every]
        ])  # fmt: skip
        compare(getattr(arithmetic, operation)(x[every], y[every], name, rounding=rounding), expected, (x[every], y[every]))
    if name == "takum8" and operation == "mul":
        boundaries = set(logarithms(name).boundaries)
        ties = np.mean([s != 0 and a + b in boundaries for s, a, t, b in parts])
        assert 0.12 < ties < 0.15  # as the docstring of qlab.number.logarithmic says


@pytest.mark.parametrize("name", ["takum8", "takum16"])
@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_roots_of_takums(name, rounding):
    values = finite_values(name)
    x = values[values > 0][:: 1 if name == "takum8" else 5]
    expected = np.array([takum_of(name, 1, a / 2, rounding) for a in signs_and_logarithms(name, x)[1]])
    compare(arithmetic.sqrt(x, name, rounding=rounding), expected, (x,))


def test_the_root_of_the_readme():
    """Takums.jl, by the author of takums: the square root of Takum8(4.0), a tie, prints as 2.117."""
    assert float(arithmetic.sqrt(4.0, "takum8").round(3)) == 2.117


@pytest.mark.parametrize("name", ["takum8", "takum12"])
@pytest.mark.parametrize("operation", ["add", "sub"])
def test_sums_of_takums(name, operation):
    """To 70 digits: all pairs of takum8, so that none comes too near a boundary; some of takum12."""
    bits = int(name[5:])
    fmt = takum(bits)
    codes = np.array([c for c in range(1 << bits) if c != 1 << (bits - 1)])
    if bits == 8:
        i, j = (v.ravel() for v in np.meshgrid(codes, codes))
    else:
        i, j = np.random.default_rng(0).choice(codes, (2, 4000))
        j[:2000] = i[:2000] ^ np.random.default_rng(1).integers(0, 32, 2000)
        j[j == 1 << (bits - 1)] = 0
    number = {c: TAPERED_VALUE["takum"](c, bits) for c in codes.tolist()}
    exact = [OPERATIONS[operation](number[a], number[b]) for a, b in zip(i.tolist(), j.tolist(), strict=True)]
    table = takum_rational(bits)
    x, y = fmt.values()[i], fmt.values()[j]
    for rounding in DETERMINISTIC:
        every = slice(DETERMINISTIC.index(rounding), None, 1 if rounding == "nearest_even" else 9)
        expected = np.array([float(table.numbers[table.place(v, rounding)]) for v in exact[every]])
        compare(getattr(arithmetic, operation)(x[every], y[every], fmt, rounding=rounding), expected, (x[every], y[every]))


@cache
def takum_rational(bits: int) -> Rational:
    value, positive = TAPERED_VALUE["takum"], range(1, 1 << (bits - 1))
    numbers, between = [value(c, bits) for c in positive], [value(2 * c + 1, bits + 1) for c in positive[:-1]]
    codes = [(1 << bits) - c for c in positive[::-1]] + [0, *positive]
    return Rational([-v for v in numbers[::-1]] + [0, *numbers], codes, [-b for b in between[::-1]] + [0, 0, *between])


def test_fma_of_takums():
    """Products cancel exactly where they are takums; with z = 0 they are rounded as products; else all is 70 digits."""
    values, rng = finite_values("takum8"), np.random.default_rng(2)
    x, y, z = rng.choice(values, (3, 6000))
    z[:2000] = -arithmetic.mul(x[:2000], y[:2000], "takum8")
    z[2000:2500] = 0
    (s, a), (t, b), (u, c) = (signs_and_logarithms("takum8", v) for v in (x, y, z))
    def power(logarithm: Fraction) -> Fraction:
        with localcontext() as context:
            context.prec = 70
            return Fraction((Decimal(logarithm.numerator) / Decimal(2 * logarithm.denominator)).exp())

    expected, table, cancelled = [], takum_rational(8), 0
    for i in range(x.size):
        if s[i] * t[i] == 0 or u[i] == 0:
            both = takum_of("takum8", s[i] * t[i], a[i] + b[i], "nearest_even") if s[i] * t[i] else z[i]
            expected.append(float(both) + 0.0)
            continue
        if s[i] * t[i] == -u[i] and a[i] + b[i] == c[i]:
            cancelled += 1
            expected.append(0.0)
            continue
        total = s[i] * t[i] * power(a[i] + b[i]) + u[i] * power(c[i])
        expected.append(float(table.numbers[table.place(total)]))
    assert cancelled > 100
    compare(arithmetic.fma(x, y, z, "takum8"), np.array(expected), (x, y, z))


def test_which_format_is_a_takum():
    fmt = takum(8)
    assert is_takum(fmt)
    assert is_takum(qlab.TableFormat("takum8", fmt.table, boundaries=fmt.boundaries))
    assert not is_takum(qlab.TableFormat("takum2", [0.0, 1.0, 2.0]))
    assert not is_takum(qlab.TableFormat("takum8", np.arange(256)))
    assert not is_takum(qlab.get_format("posit8"))


# --- along an axis ---------------------------------------------------------------------------------------------------
def slow_dot(name, x, y, order, fma, rounding):
    """Fraction by fraction; x, y are floats of the format, y None for a sum."""
    def do(value):
        return Fraction(float_of(name, value, rounding))

    total = lost = Fraction(0)
    for i in range(len(x)):
        product = Fraction(x[i]) * (1 if y is None else Fraction(y[i]))
        term = product if fma or y is None else do(product)
        if order == "sequential":
            total = do(total + term)
            continue
        corrected = do(term - lost)
        new = do(total + corrected)
        lost = do(do(new - total) - corrected)
        total = new
    return float(total)


@pytest.mark.parametrize("name", ["posit8", "posit16", "int8", "uint8", "int16", "nf4"])
@pytest.mark.parametrize("order", ["sequential", "kahan"])
@pytest.mark.parametrize("fma", [False, True])
def test_sums_and_dots(name, order, fma):
    rng = np.random.default_rng(3)
    scale = 3 if name != "nf4" else 0.4
    x, y = (np.asarray(qlab.cast(rng.normal(0, scale, (25, 4)), name)) for _ in range(2))
    for rounding in ("nearest_even", DETERMINISTIC[1 + rng.integers(5)]):
        option = {"order": order, "rounding": rounding, "axis": 0}
        expected = [slow_dot(name, a, b, order, fma, rounding) for a, b in zip(x.T, y.T, strict=True)]
        assert same(arithmetic.dot(x, y, name, fma=fma, **option), expected).all()
        expected = [slow_dot(name, a, None, order, False, rounding) for a in x.T]
        assert same(arithmetic.sum(x, name, **option), expected).all()


@pytest.mark.parametrize("name", ["posit16", "takum8", "takum16", "int8"])
def test_dots_are_made_of_operations(name):
    """And so are blocks and trees; matrices are dots."""
    rng = np.random.default_rng(4)
    x, y = (np.asarray(qlab.cast(rng.normal(0, 2, (5, 11)), name)) for _ in range(2))
    add, terms = (lambda a, b: arithmetic.add(a, b, name)), arithmetic.mul(x, y, name).T  # (11, 5)
    total = np.zeros(5)
    for term in terms:
        total = add(total, term)
    assert same(arithmetic.dot(x, y, name), total).all()
    blocks = [add(add(add(0, terms[i]), terms[i + 1]), terms[i + 2]) for i in (0, 3, 6)] + [add(add(0, terms[9]), terms[10])]
    total = np.zeros(5)
    for block in blocks:
        total = add(total, block)
    assert same(arithmetic.dot(x, y, name, order="blocked(3)"), total).all()

    def tree(part):
        return part[0] if len(part) == 1 else add(tree(part[: len(part) // 2]), tree(part[len(part) // 2 :]))

    assert same(arithmetic.dot(x, y, name, order="pairwise"), tree(list(terms))).all()
    product = arithmetic.matmul(x, y.T, name)
    assert same(product, [[arithmetic.dot(a, b, name) for b in y] for a in x]).all()


def test_other_accumulators():
    rng = np.random.default_rng(5)
    x, y = rng.integers(-128, 128, (2, 4, 3000))
    # int8 with an int32 accumulator: exact
    exact = (x.astype(np.int64) * y).sum(axis=1)
    result = arithmetic.dot(x, y, "int16", accumulator="int32")
    assert np.array_equal(result, np.clip(exact, -32768, 32767))
    assert np.array_equal(arithmetic.dot(x[:, :9], y[:, :9], "int24", accumulator="int32"), (x * y)[:, :9].sum(axis=1))
    # and it stops at its ends
    assert arithmetic.sum(np.full(300, 2.0**22), "int24", accumulator="int32") == 2**23 - 1
    big = arithmetic.dot(np.full(6, 2.0**15), np.full(6, 2.0**15), "int24", accumulator="int32", product="float64")
    assert big == 2**23 - 1
    # posits in floats: the machine's own sums
    a, b = (np.asarray(qlab.cast(rng.normal(0, 1, (4, 200)), "posit16"), np.float32) for _ in range(2))
    total = np.zeros(4, np.float32)
    for u, v in zip(a.T, b.T, strict=True):
        total += u * v
    assert np.array_equal(arithmetic.dot(a, b, "posit16", accumulator="float32"), qlab.cast(total, "posit16"))
    double = np.zeros(4)
    for u, v in zip(a.T, b.T, strict=True):
        double += u.astype(np.float64) * v
    assert np.array_equal(arithmetic.dot(a, b, "posit16", accumulator="float64"), qlab.cast(double, "posit16"))
    # bytes in a wider posit
    a, b = (np.asarray(qlab.cast(rng.normal(0, 1, 60), "posit8")) for _ in range(2))
    total = Fraction(0)
    for u, v in zip(fractions(a), fractions(b), strict=True):
        total = Fraction(float_of("posit16", total + u * v))
    result = arithmetic.dot(a, b, "posit8", accumulator="posit16", fma=True)
    assert result == float_of("posit8", total)


def test_stochastic():
    noise = np.arange(256, dtype=np.uint8)
    for name, operands, fraction in (
        ("int8", (5, 4), Fraction(1, 4)), ("posit8", (1.125, 3), Fraction(0)), ("int8", (-5, 4), Fraction(1, 4)),
        ("posit8", (1, 3), (Fraction(1, 3) - Fraction(5, 16)) * 32),
    ):  # fmt: skip
        result = arithmetic.div(*(np.full(256, v) for v in operands), name, rounding="stochastic", noise=noise)
        assert (result != result[0]).sum() == math.floor(fraction * 256), name
    ones = arithmetic.sum(np.ones((3000, 200)), "posit8", axis=0, rounding="stochastic", rng=0)
    assert 2500 < ones.mean() < 3500
    assert arithmetic.sum(np.ones(3000), "posit8") < 100


# --- what is no number -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["posit8", "posit16", "takum8", "takum16"])
def test_not_a_real(name):
    fmt = qlab.get_format(name)
    for result in (
        arithmetic.div([1, -1, 0], 0, name), arithmetic.sqrt([-1.0, fmt.min], name), arithmetic.add([np.nan, np.inf], 1, name),
        arithmetic.mul([np.nan, np.inf], 0, name), arithmetic.fma(1, 1, [np.nan], name), arithmetic.sum([[1, np.nan, 1]], name),
        arithmetic.dot([[1.0, np.nan]], [1, 0], name), arithmetic.sub(np.inf, [np.inf], name),
    ):  # fmt: skip
        assert np.isnan(result).all()
    ends = np.array([fmt.max, -fmt.max])
    assert np.array_equal(arithmetic.add(ends, ends, name), ends)  # finite results never become NaR
    assert np.array_equal(arithmetic.mul(ends, fmt.max, name), ends)
    assert np.array_equal(arithmetic.div(ends, fmt.smallest_normal, name), ends)
    least = fmt.smallest_normal
    assert np.array_equal(arithmetic.mul([least, -least], least, name), [least, -least])  # nor zero
    assert np.array_equal(arithmetic.div([1, -1], 0, name, overflow="saturate"), ends)


def test_integers_and_tables_saturate():
    assert arithmetic.div([1, -1, 5], [0, 0, 2], "int8").tolist() == [127, -128, 2]
    assert arithmetic.div(1, 0, "uint8") == 255
    assert arithmetic.sub(3, 5, "uint8") == 0
    assert arithmetic.mul([-128, 100], [-1, 100], "int8").tolist() == [127, 127]
    assert arithmetic.div(1, 0, "nf4") == 1
    assert not np.signbit(arithmetic.mul([-1, 0], [0, -1], "int8")).any()
    assert not np.signbit(arithmetic.sub([0], [0], "int8", rounding="down")).any()
    assert arithmetic.add(np.int8([100]), np.int8([100]), "int8").dtype == np.float32
    table = qlab.TableFormat("powers", [0, 1, 2, 4, 8])
    assert arithmetic.mul([2, 4], 3, table).tolist() == [4, 8]  # 3 is a tie, and becomes 2, whose code is even
    assert arithmetic.sub(1, [1, 8], table).tolist() == [0, 0]


@pytest.mark.parametrize("call, message", [
    (lambda: arithmetic.div(0, 0, "int8"), r"div: 1 result is NaN .*int8 has none"),
    (lambda: arithmetic.add([np.nan], 0, "int8"), r"add: x holds 1 NaN .*int8 has none"),
    (lambda: arithmetic.sqrt([-1, 1], "nf4"), r"sqrt: 1 result is NaN .*\(0,\).*nf4 has none"),
    (lambda: arithmetic.add(1, 2, "int32"), "int32 has 31 significant bits.*up to 24"),
    (lambda: arithmetic.add(1, 2, qlab.TableFormat("pi", [0, math.pi])), "pi has 50 significant bits.*tables of such"),
    (lambda: arithmetic.add(1, 2, qlab.TableFormat("far", [0, 1, 2.0**-60])), "far has boundaries.*nearer"),
    (lambda: arithmetic.add(1, 2, qlab.TableFormat("third", [0, 1], boundaries=[1 / 3])), "third has bound"),
    (lambda: arithmetic.add(1, 2, qlab.TableFormat("huge", [0, 2.0**400])), r"huge has 1 .*2\*\*400"),
    (lambda: arithmetic.dot([1], [2], "takum8", fma=True), "dot: takums are irrational"),
    (lambda: arithmetic.dot([1], [2], "takum8", accumulator="float32"), "dot: takums are irrational"),
    (lambda: arithmetic.sum([1], "float16", accumulator="takum16"), "sum: takums are irrational"),
    (lambda: arithmetic.sum([1], qlab.TableFormat("pair", [1, 2])), "pair has no zero to start a sum from"),
])  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()


def test_torch():
    torch = pytest.importorskip("torch")
    x = torch.tensor([1.0, 3.0], dtype=torch.bfloat16)
    result = arithmetic.div(x, 3, "posit8")
    assert isinstance(result, torch.Tensor)
    assert result.tolist() == [0.34375, 1.0]
    assert arithmetic.add(torch.tensor([100], dtype=torch.int8), 100, "int8").tolist() == [127.0]
