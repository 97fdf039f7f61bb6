"""Independent answers: rounding by exact rational arithmetic over the list of a format's values.

Nothing here calls qlab's rounding. A format is described by its values alone (and their codes); a float is an exact
ratio of integers; neighbours are found by bisection, ties decided by comparing integers.
"""

from __future__ import annotations

import bisect
import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np

SCALE = 1200  # all float64 are integers in units of 2**-1200


def exact(x: float) -> int:
    """A finite float as an integer number of units of 2**-SCALE."""
    p, q = float(x).as_integer_ratio()
    return (p << SCALE) // q


class Oracle:
    """Rounding to the values that `decode_table` (value of each code, float64) lists, the slow and certain way."""

    def __init__(self, decode_table, *, signed_zero: bool):
        table = np.asarray(decode_table)
        finite = sorted({(exact(v), c) for c, v in enumerate(table.tolist()) if math.isfinite(v)})
        first: dict[int, int] = {}
        for value, code in finite:  # of the two zeros, the one with the smaller code
            first.setdefault(value, code)
        self.values, self.codes = list(first), list(first.values())
        self.table, self.signed_zero = table, signed_zero
        self.infinity = bool(np.isinf(table).any())
        self.nan = bool(np.isnan(table).any())
        step = self.values[-1] - self.values[-2]
        if self.values[-1] & (self.values[-1] - 1) == 0:  # a power of two: above it, steps are twice as long
            step *= 2
        self.next_above = self.values[-1] + step  # where the next value would be, were there one
        self.magnitudes = [v for v in self.values if v >= 0]

    def cast(self, x: float, rounding: str, overflow: str) -> float:
        if math.isnan(x):
            return math.nan
        negative = math.copysign(1.0, x) < 0
        has_negative = self.values[0] < 0
        if negative and not has_negative and x != 0:
            return self._negative_in_unsigned(x, rounding, overflow)
        if math.isinf(x):
            return self._overflowed(negative, overflow, due=True)
        value = exact(abs(x))
        sign = -1.0 if negative and has_negative else 1.0
        # by symmetry, round the magnitude; directed modes turn round with the sign
        mode = {"up": "down", "down": "up"}.get(rounding, rounding) if negative else rounding
        values = self.magnitudes
        i = bisect.bisect_right(values, value) - 1
        if i < 0:  # below the smallest value of a format without zero
            result = values[0]
        elif values[i] == value:
            result = value
        else:
            upper = values[i + 1] if i + 1 < len(values) else self.next_above
            up = self._goes_up(value - values[i], upper - value, self._odd(i), mode)
            if i + 1 == len(values):
                step_beyond = value >= upper
                to_nearest = mode.startswith("nearest")
                if to_nearest and not (up or step_beyond):
                    result = values[i]
                else:
                    due = to_nearest or mode == "up"
                    return self._overflowed(negative, overflow, due=due)
            else:
                result = upper if up else values[i]
        out = float(Fraction(result, 1 << SCALE)) * sign
        if out == 0:
            return -0.0 if negative and self.signed_zero else 0.0
        return out

    def _odd(self, i: int) -> bool:
        # codes of magnitudes count up from zero, so that the parity of the index is that of the code
        return i % 2 == 1

    @staticmethod
    def _goes_up(below: int, above: int, odd: bool, mode: str) -> bool:
        if mode == "nearest_even":
            return below > above or (below == above and odd)
        if mode == "nearest_away":
            return below >= above
        if mode == "to_odd":
            return not odd
        return mode == "up"

    def _negative_in_unsigned(self, x, rounding, overflow):
        mirrored = {"up": "down", "down": "up"}.get(rounding, rounding)
        if 0 in self.values and not math.isinf(x) and self.cast(-x, mirrored, overflow) == 0:
            return 0.0  # what rounds to minus zero is zero
        if overflow == "ieee" and self.nan:
            return math.nan
        return float(Fraction(self.values[0], 1 << SCALE))

    def _overflowed(self, negative: bool, overflow: str, *, due: bool) -> float:
        largest = float(Fraction(self.values[-1], 1 << SCALE))
        if overflow == "ieee" and due:
            if self.infinity:
                largest = math.inf
            elif self.nan:
                return math.nan
        return -largest if negative and self.values[0] < 0 else largest


def same(a, b) -> np.ndarray:
    """Equal as bits would be: the same number with the same sign of zero, or both NaN."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return ((a == b) & (np.signbit(a) == np.signbit(b))) | (np.isnan(a) & np.isnan(b))


def float16_inputs() -> np.ndarray:
    """All 65536 float16."""
    return np.arange(65536, dtype=np.uint16).view(np.float16)


def bfloat16_inputs() -> np.ndarray:
    """All 65536 bfloat16, as float32."""
    return (np.arange(65536, dtype=np.uint32) << 16).view(np.float32)


class TableOracle:
    """The same answers for whole arrays, by comparing float64: exact while the values of a format have few bits.

    Neighbours come from a binary search; the middle is compared as 2 x against the sum of the neighbours. Both are exact
    for formats of up to 16 bits and inputs of float16 and bfloat16. Tested against `Oracle`.
    """

    def __init__(self, decode_table, *, signed_zero: bool):
        table = np.asarray(decode_table, np.float64)
        slow = Oracle(table, signed_zero=signed_zero)
        self.magnitudes = np.array([float(Fraction(v, 1 << SCALE)) for v in slow.magnitudes])
        self.beyond = float(Fraction(slow.next_above, 1 << SCALE))
        self.negative, self.signed_zero = slow.values[0] < 0, signed_zero
        self.infinity, self.nan = slow.infinity, slow.nan

    def cast(self, x, rounding: str, overflow: str) -> np.ndarray:
        x = np.asarray(x, np.float64)
        values = np.append(self.magnitudes, self.beyond)
        magnitude, negative = np.abs(x), np.signbit(x)
        last = len(values) - 2
        low = np.clip(np.searchsorted(values, magnitude, side="right") - 1, 0, last)
        below, above = values[low], values[low + 1]
        odd = low % 2 == 1
        with np.errstate(invalid="ignore", over="ignore"):
            twice, total = 2 * magnitude, below + above
        toward_infinity = negative == (rounding == "down")
        up = {
            "nearest_even": (twice > total) | ((twice == total) & odd), "nearest_away": twice >= total,
            "toward_zero": np.zeros(x.shape, bool), "to_odd": ~odd, "up": toward_infinity, "down": toward_infinity,
        }[rounding]  # fmt: skip
        exact = magnitude <= below  # equal, or below the smallest value of a format without zero
        result = np.where(exact | ~up, below, above)
        over = (result > self.magnitudes[-1]) | (magnitude >= self.beyond)
        due = np.isinf(x) | (rounding.startswith("nearest") | (rounding in ("up", "down")) & toward_infinity)
        special = np.inf if self.infinity else np.nan if self.nan else self.magnitudes[-1]
        if overflow == "saturate":
            special = self.magnitudes[-1]
        result = np.where(over, np.where(due, special, self.magnitudes[-1]), result)
        if self.negative:
            result = np.where(negative & ((result != 0) | self.signed_zero), -result, result)
        else:
            refused = np.nan if overflow == "ieee" and self.nan else self.magnitudes[0]
            rounds_to_zero = (result == 0) if self.magnitudes[0] == 0 else (x == 0)
            result = np.where(negative & ~rounds_to_zero, refused, result)
        return np.where(np.isnan(x), np.nan, result)


# --- posits and takums, as their standards write them down ----------------------------------------------------------
def posit_value(code: int, bits: int) -> Fraction | None:
    """Posit Standard (2022), section 3.3, read from the left."""
    if code in (0, 1 << (bits - 1)):
        return None if code else Fraction(0)
    if code >> (bits - 1):
        return -posit_value((1 << bits) - code, bits)
    string = f"{code:0{bits}b}"[1:]
    run = len(string) - len(string.lstrip(string[0]))
    regime = run - 1 if string[0] == "1" else -run
    rest = string[run + 1 :]
    exponent, fraction = int((rest[:2] + "00")[:2], 2), rest[2:]
    significand = 1 + (Fraction(int(fraction, 2), 2 ** len(fraction)) if fraction else 0)
    return significand * Fraction(2) ** (4 * regime + exponent)


def takum_logarithm(code: int, bits: int) -> Fraction:
    """Takum paper, definition of the encoding: l of the value (-1)**S * sqrt(e)**l, from the string SDRRRC...M..."""
    string = f"{code:0{bits}b}".ljust(12, "0")
    negative, ahead, count = string[0] == "1", string[1] == "1", int(string[2:5], 2)
    length = count if ahead else 7 - count
    characteristic = int("0" + string[5 : 5 + length], 2)
    characteristic += 2**length - 1 if ahead else 1 - 2 ** (length + 1)
    mantissa = string[5 + length :]
    logarithm = characteristic + (Fraction(int(mantissa, 2), 2 ** len(mantissa)) if mantissa else 0)
    return -logarithm if negative else logarithm


def takum_value(code: int, bits: int) -> Fraction | None:
    """The value to 70 decimal digits, which is as good as exact here."""
    if code in (0, 1 << (bits - 1)):
        return None if code else Fraction(0)
    logarithm = takum_logarithm(code, bits)
    with localcontext() as context:
        context.prec = 70
        magnitude = (Decimal(logarithm.numerator) / Decimal(2 * logarithm.denominator)).exp()
    return -Fraction(magnitude) if code >> (bits - 1) else Fraction(magnitude)


TAPERED_VALUE = {"posit": posit_value, "takum": takum_value}
