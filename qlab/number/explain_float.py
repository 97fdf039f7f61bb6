"""The steps of `explain` for a floating-point format: scale, cut, decide, put the fields together."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from qlab.number.bits import bit_string
from qlab.number.explanation import Explanation, binary, decimal, field_values, reason, to_float
from qlab.number.formats import FloatFormat

__all__ = ["explain_float"]

Messages = list[tuple[str, dict[str, Any]]]


def explain_float(x: Fraction, negative: bool, fmt: FloatFormat, rounding: str, language: str | None) -> Explanation:
    """Round an exact fraction to `fmt` by hand, and say how."""
    magnitude = abs(x)
    messages: Messages = []

    def say(key: str, **values: Any) -> None:
        messages.append((key, values))


    if fmt.signed:
        shown = f"-{decimal(magnitude)}" if negative else decimal(x)  # minus zero too
        say("sign_negative" if negative else "sign_positive", x=shown, sign=int(negative))
    elif negative and (magnitude or fmt.has_zero):
        say("sign_none", format=fmt.name)

    floor_code, remainder, step, cut = _scale(magnitude, fmt, say)
    code, why = _decide(floor_code, remainder, step, negative, fmt, rounding, magnitude)
    middle = None
    if remainder:
        middle = fmt_magnitude(floor_code, fmt) + step / 2
        middle = -middle if negative else middle
    if cut is not None and why != "exact":
        values = {"guard": cut[0], "sticky": cut[1], "midpoint": decimal(middle) if middle is not None else ""}
        say(f"why_{why}", **values)
    if not fmt.signed and negative and (code if fmt.has_zero else magnitude):
        code, why = (fmt.nan_code if fmt.nan_code is not None else 0), "overflow"
        say("negative_in_unsigned", format=fmt.name)
    elif code > fmt.max_code:
        code, why = _overflow(code, fmt, negative, rounding), "overflow"
        say("overflow", max=decimal(fmt.max), value=decimal(fmt_value(code, fmt, negative)))
    elif code > floor_code and (code & ((1 << fmt.mantissa_bits) - 1)) == 0 and code >> fmt.mantissa_bits:
        say("carry", exponent=(code >> fmt.mantissa_bits) - fmt.bias)
    if code <= fmt.max_code and (code or not fmt.has_zero):
        field = code >> fmt.mantissa_bits
        if field or not fmt.subnormals:
            bits = f"{field:0{fmt.exponent_bits}b}"
            say("exponent_field", exponent=field - fmt.bias, bias=fmt.bias, field=field, bits=bits)
        else:
            say("exponent_field_zero", emin=fmt.emin, bits="0" * fmt.exponent_bits)
        if fmt.mantissa_bits:
            fraction = code & ((1 << fmt.mantissa_bits) - 1)
            hidden = "fraction_field" if field or not fmt.subnormals else "fraction_field_subnormal"
            say(hidden, bits=f"{fraction:0{fmt.mantissa_bits}b}", count=fmt.mantissa_bits)
    elif code == 0:
        say("zero")

    signed = negative and fmt.signed and (code != 0 or fmt.nans != "negative_zero") and not _is_nan(code, fmt)
    full = code | (fmt.sign_mask if signed else 0)
    value = fmt_value(code, fmt, signed)
    say("result", bits=bit_string(full, fmt), value=decimal(value))
    below, above = _neighbours(x, magnitude, floor_code, remainder, negative, fmt)
    guard, sticky = cut or (None, None)
    return Explanation(
        x, fmt, rounding, full, value, below, above, middle, to_float(step), guard, sticky, why,
        *field_values(full, fmt), language, tuple(messages),
    )  # fmt: skip


def _scale(magnitude: Fraction, fmt: FloatFormat, say: Any) -> tuple[int, Fraction, Fraction, tuple[int, int] | None]:
    """Cut a magnitude to the format's bits: code below it, what is left, the step, guard and sticky bit."""
    if magnitude == 0:
        return 0, Fraction(0), Fraction(2) ** (fmt.emin - fmt.mantissa_bits), None
    exponent = _floor_log2(magnitude)
    normal = max(exponent, fmt.emin)
    step = Fraction(2) ** (normal - fmt.mantissa_bits)
    say("binary", x=decimal(magnitude), binary=binary(magnitude))
    if exponent >= fmt.emin:
        say("normalize", significand=binary(magnitude / Fraction(2) ** exponent), exponent=exponent)
    elif fmt.subnormals:
        say("subnormal", exponent=exponent, emin=fmt.emin, significand=binary(magnitude / Fraction(2) ** fmt.emin))
    else:
        return _below_all(magnitude, fmt, say)
    kept, rest = divmod(magnitude, step)
    remainder = rest
    code = int(kept) + ((normal - fmt.emin) << fmt.mantissa_bits) - (0 if fmt.subnormals else 1 << fmt.mantissa_bits)
    if not fmt.subnormals and code == 0 and fmt.has_zero:
        return _below_all(magnitude, fmt, say)
    guard = int(rest * 2 >= step)
    sticky = int(rest * 2 - guard * step > 0)
    if remainder:
        width = fmt.mantissa_bits
        head = "1" if exponent >= fmt.emin else "0"
        fraction = f"{int(kept) & ((1 << width) - 1):0{width}b}" if width else ""
        say("cut", count=width, kept=f"{head}.{fraction}" if width else head, rest=binary(rest / step)[2:])
    return code, remainder, step, (guard, sticky)


def _below_all(magnitude: Fraction, fmt: FloatFormat, say: Any) -> tuple[int, Fraction, Fraction, tuple[int, int] | None]:
    """Without subnormals: only zero, or nothing, lies below the smallest value."""
    smallest = Fraction(fmt.smallest_subnormal)
    say("below_smallest", smallest=decimal(smallest))
    if not fmt.has_zero:
        return 0, Fraction(0), smallest, None
    rest = magnitude
    guard = int(rest * 2 >= smallest)
    return 0, rest, smallest, (guard, int(rest * 2 - guard * smallest > 0))


def _decide(
    code: int, remainder: Fraction, step: Fraction, negative: bool, fmt: FloatFormat, rounding: str, magnitude: Fraction
) -> tuple[int, str]:
    """Return the code after rounding, and why."""
    if not remainder:
        exact = fmt.has_zero or magnitude >= Fraction(fmt.smallest_subnormal)
        return code, "exact" if exact else "overflow"
    nearest = remainder * 2 > step or (remainder * 2 == step and (rounding == "nearest_away" or code % 2 == 1))
    up = {
        "nearest_even": nearest, "nearest_away": nearest, "toward_zero": False, "up": not negative, "down": negative,
        "to_odd": code % 2 == 0,
    }[rounding]  # fmt: skip
    middle = step / 2
    return code + up, reason(remainder, middle, remainder + 1 if up else remainder - 1, rounding)


def _overflow(code: int, fmt: FloatFormat, negative: bool, rounding: str) -> int:
    beyond = fmt.infinity_code if fmt.infinity_code is not None else fmt.nan_code
    due = rounding.startswith("nearest") or rounding == ("down" if negative else "up")
    return beyond if due and beyond is not None else fmt.max_code


def _neighbours(
    x: Fraction, magnitude: Fraction, code: int, remainder: Fraction, negative: bool, fmt: FloatFormat
) -> tuple[float | None, float | None]:
    """Return the values of the format next to `x` on either side."""
    top = min(code, fmt.max_code)
    outer = top + 1 if top == code else top
    if remainder or magnitude > Fraction(fmt.max):
        inner = top if magnitude > fmt_magnitude(top, fmt) else top - 1
    else:
        inner = top - 1
    far = fmt.magnitude(outer) if outer <= fmt.max_code else (math.inf if fmt.infinities else None)
    if inner >= 0:
        near: float | None = fmt.magnitude(inner)
    elif fmt.signed:
        near = -fmt.magnitude(1 if fmt.has_zero else 0)
    else:
        near = None
    if not fmt.has_zero and magnitude < Fraction(fmt.smallest_subnormal):
        return None, fmt.smallest_subnormal
    if magnitude > Fraction(fmt.max):
        near, far = fmt.max, math.inf if fmt.infinities else None
    if negative and fmt.signed:
        return (None if far is None else -far), (None if near is None else -near)
    return near, far


def fmt_magnitude(code: int, fmt: FloatFormat) -> Fraction:
    """Return the value of a finite magnitude code, exactly; beyond the largest, as if the exponents went on."""
    field, fraction = divmod(code, 1 << fmt.mantissa_bits)
    if (fmt.subnormals and field == 0) or (code == 0 and fmt.has_zero):
        return Fraction(fraction) * Fraction(2) ** (fmt.emin - fmt.mantissa_bits)
    return ((1 << fmt.mantissa_bits) + fraction) * Fraction(2) ** (field - fmt.bias - fmt.mantissa_bits)


def fmt_value(code: int, fmt: FloatFormat, negative: bool) -> float:
    """Return the value of a magnitude code with a sign."""
    if _is_nan(code, fmt):
        return math.nan
    value = math.inf if code == fmt.infinity_code else fmt.magnitude(code)
    return -value if negative and fmt.signed else value


def _is_nan(code: int, fmt: FloatFormat) -> bool:
    return fmt.nan_code is not None and code == fmt.nan_code


def _floor_log2(x: Fraction) -> int:
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= x else exponent - 1
