"""Exact results rounded to odd in float64, from which one more rounding gives what rounding once would have given.

The sum, quotient or root of two short floats rarely fits into float64; but what float64 loses can be computed in
float64 too, without error (Dekker 1971; Knuth). Rounding *to odd* uses it: where the exact result lies between two
floats, take the one whose last bit is 1. That bit then says "and something more", as the sticky bit of a processor
does, and a second rounding, whichever, to a format that is at least two bits shorter, decides as it would have on the
exact result (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to
odd", 2008).

Operands here have at most 24 significant bits and lie within ``2**-REACH`` and ``2**REACH``. So a product is exact in
float64, nothing over- or underflows on the way, and the lemmas of the papers hold without their exceptions.

Nor need the format be a float. An inexact result that is rounded to odd lies on the same side of every float64 whose
last bit is 0 as the exact result does; so any format will do whose values, and the boundaries between them, are such
float64: integers, posits, tables of float32 near one another.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from qlab._pieces import Array
from qlab.number.formats import FloatFormat, Format, IntFormat

__all__ = ["PRECISION", "REACH", "exact_quotient", "exact_root", "exact_sum", "extent", "lowest_bit", "plain_sum_will_do"]

PRECISION = 24
"""Significant bits of an operand, at most: two such make a product of 48, which float64 holds."""

REACH = 400
"""Binary exponents of the operands' bits, at most in magnitude."""

_SPLITTER = float(2**27 + 1)  # cuts 53 bits into 26 and 26 (and a sign)


def exact_sum(x: Array, y: Array, rounding: str, *, plain: bool = False) -> Array:
    """Return x + y, rounded to odd (or as float64 rounds if `plain`), with the sign of zero that `rounding` calls for.

    Parameters
    ----------
    x, y : float64 arrays of shape (n,)
        `x` or `y` may be a product: 48 significant bits are fine.
    rounding : str
        The rounding to come. Opposite numbers add up to -0 under ``down``, else to +0 (IEEE 754-2019, section 6.3).
    plain : bool
        Whether `plain_sum_will_do`.
    """
    total = x + y
    if rounding == "down":
        total[(total == 0) & (np.signbit(x) | np.signbit(y))] = -0.0
    if plain:
        return total
    back = total - x
    return _to_odd(total, (x - (total - back)) + (y - back))  # what was lost, exactly: Knuth's TwoSum


def exact_quotient(x: Array, y: Array) -> Array:
    """Return x / y rounded to odd: float64 arrays of shape (n,)."""
    quotient = x / y
    high, low = _two_product(quotient, y)
    remainder = (x - high) - low  # the first is exact (Sterbenz), so that the sign is right
    return _to_odd(quotient, np.where(np.signbit(y), -remainder, remainder))


def exact_root(x: Array) -> Array:
    """Return the square root of x rounded to odd: float64 array of shape (n,)."""
    root = np.sqrt(x)
    high, low = _two_product(root, root)
    return _to_odd(root, (x - high) - low)


def _two_product(x: Array, y: Array) -> tuple[Array, Array]:
    """Return the rounded product and what was lost of it, exactly (Dekker 1971)."""
    product = x * y
    (a, b), (c, d) = _split(x), _split(y)
    return product, (((a * c - product) + a * d) + b * c) + b * d


def _split(x: Array) -> tuple[Array, Array]:
    scaled = _SPLITTER * x
    high = scaled - (scaled - x)
    return high, x - high


def _to_odd(nearest: Array, lost: Array) -> Array:
    """Return `nearest`, or its neighbour towards the exact result, `nearest + lost`, where it is even and inexact.

    Infinities and NaN are left alone: there `lost` is NaN.
    """
    bits = nearest.view(np.int64)
    move = (np.abs(lost) > 0) & ((bits & 1) == 0)
    towards = np.where(np.signbit(nearest) == np.signbit(lost), 1, -1)
    return np.asarray(bits + move * towards).view(np.float64)


def lowest_bit(fmt: FloatFormat) -> int:
    """Return the exponent of the power of two of which every value of the format is a multiple."""
    return fmt.emin - fmt.mantissa_bits


@lru_cache(maxsize=512)
def extent(fmt: Format) -> tuple[int, int, float]:
    """Return the significant bits of a format's values, at most; their `lowest_bit`; and the largest magnitude."""
    if isinstance(fmt, FloatFormat):
        return fmt.mantissa_bits + 1, lowest_bit(fmt), fmt.max
    largest = max(-fmt.min, fmt.max)
    if isinstance(fmt, IntFormat):
        return fmt.mantissa_bits, 0, largest
    values = fmt.ordered[0]
    fractions, exponents = np.frexp(values[values != 0])
    significands = np.ldexp(np.abs(fractions), 53).astype(np.int64)
    zeros = np.frexp((significands & -significands).astype(np.float64))[1] - 1  # at the end of each
    return int(53 - zeros.min()), int((exponents - 53 + zeros).min()), largest


def plain_sum_will_do(fmt: FloatFormat, bits: int, lowest: int, rounding: str, width: int = 53) -> bool:
    """Whether x + y in a float of `width` bits, rounded to nearest there, may be rounded to `fmt` as if it were exact.

    Parameters
    ----------
    fmt : FloatFormat
        The format of `x` and of the result, of p significant bits.
    bits, lowest : int
        `y` has that many significant bits and is a multiple of ``2**lowest``.
    rounding : str
        The rounding to `fmt`.

    Notes
    -----
    It will do if the sum is exact: from ``2**lowest`` up to four times the largest value (above which the sum overflows
    whatever its last bits) there are no more than `width` bits.

    It will do for nearest, too, if the sum is inexact only where one operand is so small that it cannot move the sum
    across a midpoint. Let t be the sum, of exponent e. If a bit of `y` falls out, ``|y| < 2**(e - width + bits)``; for
    ``p + bits < width`` that is at most a quarter of a step of `fmt` at `x`, so t and its rounded value both round to
    x. If a bit of `x` falls out, the same holds with the roles exchanged, provided `y` is itself a value of the
    precision of `fmt` (``bits <= p``); a longer one, a product say, may be a midpoint, and then the tiny `x` decides.
    That `x` is never so tiny if `fmt` is narrow, that is, has no more than `width` bits between its lowest bit and its
    overflow. Below the lowest binade, where steps of `fmt` no longer shrink, bits fall out for the first reason alone.
    (For bits = p this is Figueroa, "When is double rounding innocuous?", 1995.)
    """
    top = math.frexp(fmt.max)[1] + 2
    if top - min(lowest_bit(fmt), lowest) <= width:
        return True
    p = fmt.mantissa_bits + 1
    innocuous = p + bits < width and (2 * p < width if bits <= p else top - lowest_bit(fmt) <= width)
    return rounding.startswith("nearest") and innocuous
