"""Posits and takums: formats whose precision tapers off, many fraction bits near 1 and few far from it.

Their codes are integers in two's complement in the order of their values, zero is 0, and one code, NaR ("not a real"),
stands for all that is no number. Both become tables: every code's value is written down once, by the definition.

Rounding follows the standards: a number is written as an endless bit string of the format, which is then cut, ties to
even. So the boundary between two neighbours is the value whose code has one more bit and lies between theirs, not the
midpoint. No number rounds to zero or to NaR; infinities become NaR.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np

from qlab._pieces import Array
from qlab.number.formats import TableFormat

__all__ = ["posit", "takum"]

_UNIT_BITS = 320
_UNIT = 1 << _UNIT_BITS  # exponentials are integers in this unit: at least 136 bits of even the smallest, e**-127.5


def posit(bits: int) -> TableFormat:
    r"""Return the posit format of a width, with two exponent bits as the standard has it.

    After the sign comes the *regime*, a run of equal bits ended by the other one: k ones stand for :math:`r = k-1`, k
    zeros for :math:`r = -k`. Then come two bits of exponent :math:`e` and the fraction :math:`f` (bits that found no
    room are 0). The value is :math:`2^{4r+e}(1+f)`; codes with the sign bit are the negatives, in two's complement.

    Parameters
    ----------
    bits : int
        3 to 16.

    Raises
    ------
    ValueError
        If `bits` is another number.

    Notes
    -----
    Exact: the values of up to 16 bits are float64.

    References
    ----------
    Standard for Posit Arithmetic (2022), sections 3 and 4. Book: chapter 03.

    Examples
    --------
    >>> import qlab
    >>> fmt = qlab.get_format("posit8")
    >>> fmt.max == 2.0**24, fmt.smallest_normal == 2.0**-24
    (True, True)
    >>> qlab.cast([3.14159, 1e-30, 1e30, float("inf")], fmt).tolist()
    [3.25, 5.960464477539063e-08, 16777216.0, nan]
    """
    return _tapered("posit", bits, _positive_posits)


@lru_cache
def takum(bits: int) -> TableFormat:
    r"""Return the logarithmic takum format of a width.

    After the sign bit S come the direction D and three bits R, which say how many bits r the characteristic c has: for
    :math:`D=1`, :math:`r=R` and :math:`c=2^r-1+C`; for :math:`D=0`, :math:`r=7-R` and :math:`c=-2^{r+1}+1+C`, where C
    are the next r bits. What is left is the mantissa :math:`m` in [0, 1). The value is :math:`(-1)^S\sqrt{e}^{\,\ell}`,
    :math:`\ell=(-1)^S(c+m)`. Bits for which a short takum has no room are 0.

    Parameters
    ----------
    bits : int
        3 to 16.

    Raises
    ------
    ValueError
        If `bits` is another number.

    Notes
    -----
    Exact: the values are irrational but for 0, 1 and -1; the table has the float64 nearest to each, and rounding
    compares with the true boundaries.

    References
    ----------
    L. Hunhold, "Beating Posits at Their Own Game: Takum Arithmetic", 2024 (arXiv 2404.18603); its reference
    implementation libtakum now calls this format takum_log8 or takum_log16. Book: chapter 03.

    Examples
    --------
    >>> import qlab
    >>> qlab.cast([4.0, 1.0, 1e-300], "takum8").round(3)
    array([3.955, 1.   , 0.   ])
    >>> qlab.get_format("takum16").max
    2.2854658698270414e+55
    """
    return _tapered("takum", bits, _positive_takums)


def _tapered(name: str, bits: int, positive: Callable[[Array, int], tuple[Array, Array]]) -> TableFormat:
    """Make the table of all codes from `positive`: the values of positive codes, and what float64 leaves over."""
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or not 3 <= bits <= 16:
        raise ValueError(f"bits={bits!r} is not allowed; a {name} table has 3 to 16 bits")
    codes = np.arange(1, 1 << (bits - 1))
    values, _ = positive(codes, bits)
    between = np.stack(positive(2 * codes[:-1] + 1, bits + 1), axis=1)  # one bit more: (n - 1, 2)
    nothing = np.zeros((1, 2))  # next to zero all numbers go away from it
    return TableFormat(
        f"{name}{bits}",
        np.concatenate([[0.0], values, [np.nan], -values[::-1]]),
        boundaries=np.concatenate([-between[::-1], nothing, nothing, between]),
    )


def _positive_posits(codes: Array, bits: int) -> tuple[Array, Array]:
    """Return the values of positive codes, float64 of their shape; nothing is left over."""
    width = bits - 1  # without the sign
    ones = codes >> (width - 1) == 1
    rest = np.where(ones, ~codes & ((1 << width) - 1), codes)  # begins with zeros where the regime is
    run = width - np.frexp(rest)[1]
    regime = np.where(ones, run - 1, -run)
    room = np.maximum(width - run - 1, 0)  # bits of exponent and fraction
    exponent_and_fraction = 4 * (codes & ((1 << room) - 1)) / (1 << room)
    exponent = np.floor(exponent_and_fraction)
    significand = 1 + exponent_and_fraction - exponent
    return np.ldexp(significand, 4 * regime + exponent.astype(np.int64)), np.zeros(codes.shape)


def _positive_takums(codes: Array, bits: int) -> tuple[Array, Array]:
    """Return the values of positive codes, each as the nearest float64 and the rest, float64 of their shape."""
    width = max(bits, 12)  # sign, direction, three bits, up to seven of the characteristic
    string = codes << (width - bits)
    direction = (string >> (width - 2)) & 1
    field = (string >> (width - 5)) & 7
    count = np.where(direction == 1, field, 7 - field)  # r, the bits of the characteristic
    room = width - 5 - count  # bits of the mantissa
    characteristic = (string >> room) & ((1 << count) - 1)
    characteristic += np.where(direction == 1, (1 << count) - 1, 1 - (2 << count))
    finest = 12  # bits of the longest mantissa, that of 17 bits
    mantissa = (string & ((1 << room) - 1)) << (finest - room)

    with localcontext() as context:
        context.prec = 60
        whole = {c: int((Decimal(c) / 2).exp() * _UNIT) for c in set(characteristic.tolist())}
        part = {m: int((Decimal(m) / (2 << finest)).exp() * _UNIT) for m in set(mantissa.tolist())}
    exact = [whole[c] * part[m] for c, m in zip(characteristic.tolist(), mantissa.tolist(), strict=True)]
    nearest = [float(value) for value in exact]  # Python rounds an integer to the nearest float64, once
    rest = [float(value - int(near)) for value, near in zip(exact, nearest, strict=True)]
    return np.ldexp(nearest, -2 * _UNIT_BITS), np.ldexp(rest, -2 * _UNIT_BITS)
