"""explain: one value, one format, every step from decimal to bits.

The value is taken as an exact fraction, so that the explanation is also a second, slow and independent way of rounding;
a test holds that it gives the codes of `encode`.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

import numpy as np

from qlab._check import one_of
from qlab.number.bits import bit_string
from qlab.number.codec import decode, encode
from qlab.number.explain_float import explain_float
from qlab.number.explanation import Explanation, decimal, field_values, reason
from qlab.number.formats import FloatFormat, Format, IntFormat, TableFormat, get_format
from qlab.number.rounding import ROUNDINGS

__all__ = ["Explanation", "explain"]

_REACH = 5000  # decimal exponents beyond every format; exact fractions stay short


def explain(x: Any, fmt: str | Format, *, rounding: str = "nearest_even", language: str | None = None) -> Explanation:
    """Explain step by step what a format makes of a value.

    Parameters
    ----------
    x : number, Fraction, Decimal or str
        A text is taken exactly: ``"0.1"`` is one tenth, ``0.1`` is the float64 next to it.
    fmt : str or Format
        The format, or its name.
    rounding : str
        As in `encode`, but not ``stochastic``.
    language : {"en", "zh", "vi", "fa"}, optional
        Language of the steps; the current one unless given.

    Returns
    -------
    Explanation
        Fields, bits, neighbours, midpoint, reason and steps.

    Raises
    ------
    ValueError
        If `x` is a NaN and the format has none, or a name is unknown.
    TypeError
        If `x` is not one number.

    Notes
    -----
    Exact. Overflow follows the rule ``ieee`` of `encode`. Book: chapter 02.

    Examples
    --------
    >>> import qlab
    >>> qlab.explain(6.75, "float32")
    6.75 in float32
      bits      0 10000001 10110000000000000000000
      sign      0
      exponent  129 - 127 = 2
      fraction  5767168/8388608
      value     6.75
      below     6.749999523162842
      above     6.750000476837158
      ulp       4.76837158203125e-07
    """
    fmt = get_format(fmt)
    one_of("rounding", rounding, tuple(r for r in ROUNDINGS if r != "stochastic"))
    if language is not None:
        from qlab.show.language import LANGUAGES

        one_of("language", language, LANGUAGES)
    exact = _exact(x)
    if isinstance(exact, float) and math.isnan(exact) and getattr(fmt, "nan_code", None) is None:
        raise ValueError(f"{fmt.name} has no NaN to explain; formats with one are float16, float8_e4m3fn and others")
    if isinstance(exact, float):
        return _not_finite(exact, fmt, rounding, language)
    if isinstance(fmt, FloatFormat):
        return explain_float(exact, _is_negative(x, exact), fmt, rounding, language)
    return _in_a_list(exact, fmt, rounding, language)


def _exact(x: Any) -> Fraction | float:
    """Return a number, or a text like "0.1", as an exact fraction (or as a float if it is not finite)."""
    if isinstance(x, str):
        return _read(x.strip())
    if isinstance(x, (Fraction, Decimal)) and math.isfinite(x):
        return _in_reach(Fraction(x) if isinstance(x, Fraction) or abs(x.adjusted()) < _REACH else None, x)
    if isinstance(x, (bool, np.bool_)) or np.ndim(x) != 0:
        raise TypeError(f"explain takes one number, not {x!r}; for arrays use encode or cast")
    if isinstance(x, (int, np.integer)):
        return _in_reach(Fraction(int(x)), "x")
    try:
        value = float(x)
    except TypeError:
        raise TypeError(f"explain takes one number, not {type(x).__name__}") from None
    if not math.isfinite(value):
        return value
    return Fraction(*x.as_integer_ratio()) if isinstance(x, np.longdouble) else Fraction(value)


def _read(text: str) -> Fraction | float:
    """Return the number that a text stands for, exactly."""
    try:
        if "/" in text:
            return _in_reach(Fraction(text), text)
        number = Decimal(text)
    except (ValueError, ZeroDivisionError, InvalidOperation):
        raise ValueError(f"x={text!r} is not a number; write it like 6.75, '0.1', 1/3, inf or nan") from None
    if not number.is_finite():
        return float(number)
    return _in_reach(Fraction(number) if abs(number.adjusted()) < _REACH else None, text)


def _in_reach(value: Fraction | None, shown: object) -> Fraction:
    if value is None or (value and abs(value.numerator.bit_length() - value.denominator.bit_length()) > 3.33 * _REACH):
        raise ValueError(f"x={shown} is out of reach; explain takes numbers from 1e-{_REACH} to 1e{_REACH}, and zero")
    return value


def _is_negative(x: Any, exact: Fraction) -> bool:
    if exact != 0:
        return exact < 0
    if isinstance(x, str):
        return x.strip().startswith("-")
    return math.copysign(1.0, float(x)) < 0


def _not_finite(x: float, fmt: Format, rounding: str, language: str | None) -> Explanation:
    code = int(encode(x, fmt, rounding=rounding)) & ((1 << fmt.bits) - 1)
    value = float(decode(code, fmt))
    became = "" if math.isinf(value) else "_is_nan" if math.isnan(value) else "_is_max"
    key = "nan" if math.isnan(x) else f"infinity{became}"
    values = {"bits": bit_string(code, fmt), "value": decimal(value), "format": fmt.name}
    same = math.isnan(value) if math.isnan(x) else value == x
    why = "exact" if same else "overflow"
    return Explanation(
        x, fmt, rounding, code, value, None, None, None, None, None, None, why,
        *field_values(code, fmt), language, ((key, values),),
    )  # fmt: skip


def _in_a_list(x: Fraction, fmt: IntFormat | TableFormat, rounding: str, language: str | None) -> Explanation:
    """Integers and tables: the value is one of two neighbours in a list."""
    low, high, known = _list_neighbours(x, fmt)
    middle = None
    by_midpoint = getattr(fmt, "boundaries", None) is None
    if known:
        value, why = x, "exact"
    elif low is None or high is None:
        value, why = Fraction(fmt.min if low is None else fmt.max), "overflow"
    else:
        middle = (low + high) / 2 if by_midpoint else _boundary(low, fmt)
        up = _goes_up(x, low, middle, high, fmt, rounding)
        value = high if up else low
        why = reason(x, middle, value, rounding)
        if not by_midpoint:
            why = {"nearer_above": "above_boundary", "nearer_below": "below_boundary"}.get(why, why)
    code = int(encode(float(value), fmt))
    words = {"x": x, "value": value, "below": low, "above": high, "midpoint": middle}
    values = {key: "" if v is None else decimal(v) for key, v in words.items()}
    values |= {"bits": bit_string(code, fmt), "code": str(code), "format": fmt.name}
    between = "list_between" if by_midpoint else "list_boundary"
    keys = ["list_exact"] if known else ["list_end"] if middle is None else [between, f"list_{why}"]
    return Explanation(
        x, fmt, rounding, code, float(value), None if low is None else float(low), None if high is None else float(high),
        middle, None if low is None or high is None or known else float(high - low), None, None, why,
        language=language, _messages=tuple((key, values) for key in (*keys, "list_code")),
    )  # fmt: skip


def _list_neighbours(x: Fraction, fmt: IntFormat | TableFormat) -> tuple[Fraction | None, Fraction | None, bool]:
    """Return the values next to `x` on either side, and whether `x` is itself a value."""
    if isinstance(fmt, IntFormat):
        lowest, highest = Fraction(fmt.min), Fraction(fmt.max)
        low = None if x <= lowest else min(Fraction(math.ceil(x) - 1), highest)
        high = None if x >= highest else max(Fraction(math.floor(x) + 1), lowest)
        return low, high, x.denominator == 1 and lowest <= x <= highest
    values, _ = fmt.ordered
    first, after = bisect_left(values, x), bisect_right(values, x)  # Python compares floats and fractions exactly
    low = Fraction(float(values[first - 1])) if first > 0 else None
    high = Fraction(float(values[after])) if after < len(values) else None
    return low, high, after > first


def _boundary(low: Fraction, fmt: Format) -> Fraction:
    """Return where rounding to nearest changes from the value `low` of a table to the next one."""
    assert isinstance(fmt, TableFormat)
    near, rest = fmt.thresholds[bisect_left(fmt.ordered[0], low)].tolist()
    return Fraction(near) + Fraction(rest)


def _goes_up(x: Fraction, low: Fraction, middle: Fraction, high: Fraction, fmt: Format, rounding: str) -> bool:
    low_odd, high_odd = (int(encode(float(v), fmt)) % 2 == 1 for v in (low, high))
    if rounding.startswith("nearest"):
        tie_up = low_odd and not high_odd if rounding == "nearest_even" else high > 0
        return x > middle or (x == middle and tie_up)
    return {"up": True, "down": False, "toward_zero": x < 0, "to_odd": not low_odd}[rounding]
