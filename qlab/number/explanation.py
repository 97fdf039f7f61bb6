"""What `explain` returns, how it shows itself in a notebook, and how exact numbers are written out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from html import escape
from typing import Any

from qlab.number.bits import bit_string
from qlab.number.formats import FloatFormat, Format

__all__ = ["Explanation", "binary", "decimal", "field_values", "reason", "to_float"]

_SHOWN = 40  # binary digits written out before an ellipsis


@dataclass(frozen=True)
class Explanation:
    """What a format makes of a value. Shows itself in a notebook; prints the same in every language.

    Attributes
    ----------
    x : Fraction or float
        The value asked for, exactly (a float if it is not finite).
    format : Format
        The format.
    rounding : str
        How it was rounded.
    code : int
        Its bit pattern, not negative (`encode` returns 32-bit patterns as int32).
    value : float
        What the code stands for.
    sign, exponent, fraction : int or None
        The fields of the code, for a `FloatFormat`.
    below, above : float or None
        Neighbours of `x` in the format: the values on either side of it, or of the value it is exactly.
    midpoint : Fraction or None
        Half-way between the two values around `x`; None if `x` is exact.
    ulp : float or None
        Distance between neighbours where `x` lies.
    guard, sticky : int or None
        The first bit that is cut off, and whether any bit after it is not zero.
    why : str
        The reason for the rounding in one word: ``exact``, ``nearer_below``, ``nearer_above``, ``tie_even``, ...
    language : str or None
        Language of `steps`, None for the current one.
    """

    x: Fraction | float
    format: Format
    rounding: str
    code: int
    value: float
    below: float | None
    above: float | None
    midpoint: Fraction | None
    ulp: float | None
    guard: int | None
    sticky: int | None
    why: str
    sign: int | None = None
    exponent: int | None = None
    fraction: int | None = None
    language: str | None = None
    _messages: tuple[tuple[str, dict[str, Any]], ...] = field(default=(), repr=False)

    @property
    def bits(self) -> str:
        """The code in zeros and ones, fields apart."""
        return bit_string(self.code, self.format)

    @property
    def error(self) -> Fraction | None:
        """`value` less `x`, exactly; None unless both are finite."""
        if not isinstance(self.x, Fraction) or not math.isfinite(self.value):
            return None
        return Fraction(self.value) - self.x

    @property
    def steps(self) -> tuple[str, ...]:
        """The way from decimal to bits, a sentence a step, in the chosen language."""
        from qlab.show.language import label

        return tuple(label(f"explain.{key}", self.language, **values) for key, values in self._messages)

    def text(self) -> str:
        """Return the explanation for a terminal, with the steps in the chosen language."""
        return "\n".join([repr(self), *(f"{i}. {step}" for i, step in enumerate(self.steps, 1))]).replace("`", "")

    def __repr__(self) -> str:
        rows = [("bits", self.bits)]
        if isinstance(self.format, FloatFormat) and self.exponent is not None and self.fraction is not None:
            rows.append(("sign", str(self.sign)))
            rows.append(("exponent", f"{self.exponent}{self._exponent_note()}"))
            rows.append(("fraction", f"{self.fraction}/{2**self.format.mantissa_bits}"))
        rows.append(("value", decimal(self.value)))
        if self.error:
            rows.append(("error", f"{to_float(self.error):.6g}"))
        for name in ("below", "above", "ulp"):
            value = getattr(self, name)
            if value is not None:
                rows.append((name, decimal(value)))
        if self.why != "exact":
            rows.append(("rounding", f"{self.rounding}: {self.why}"))
        head = f"{decimal(self.x)} in {self.format.name}"
        return "\n".join([head, *(f"  {name:<9} {value}" for name, value in rows)])

    def _exponent_note(self) -> str:
        assert isinstance(self.format, FloatFormat)
        assert self.exponent is not None
        if not math.isfinite(self.value):
            return ""
        if self.exponent == 0 and self.format.subnormals:
            return f" -> 2^{self.format.emin} (0.fraction)"
        return f" - {self.format.bias} = {self.exponent - self.format.bias}"

    def _repr_html_(self) -> str:
        from qlab.show.language import get_language

        language = self.language or get_language()
        direction = "rtl" if language == "fa" else "ltr"
        steps = "".join(f"<li>{_isolate(step)}</li>" for step in self.steps)
        return (
            f'<div class="qlab-explain" dir="{direction}">'
            f'<p class="qlab-explain-head">{_isolate(self._heading(language))}</p>{self._boxes(language)}'
            f"<ol>{steps}</ol></div>"
        )

    def _heading(self, language: str) -> str:
        from qlab.show.language import label

        return label("explain.heading", language, x=decimal(self.x), format=self.format.name)

    def _boxes(self, language: str) -> str:
        from qlab.show.language import label

        groups = self.bits.split(" ")
        names = ["sign", "exponent", "fraction"] if isinstance(self.format, FloatFormat) else ["fraction"]
        if len(groups) < len(names):  # no sign, or no fraction
            signed, has_fraction = bool(getattr(self.format, "signed", True)), bool(self.format.mantissa_bits)
            names = [n for n, there in zip(names, (signed, True, has_fraction), strict=True) if there]
        values = {"sign": self.sign, "exponent": self.exponent, "fraction": self.fraction}
        html = ""
        for name, bits in zip(names, groups, strict=True):
            boxes = "".join(f'<span class="qlab-bit">{bit}</span>' for bit in bits)
            title = label(f"explain.field_{name}" if len(names) > 1 else "explain.field_code", language)
            number = values[name] if values[name] is not None else self.code
            html += (
                f'<span class="qlab-field qlab-{name}" style="{_box_style(name)}"><span class="qlab-bits">{boxes}</span>'
                f'<small dir="auto">{escape(title)} = {number}</small></span>'
            )
        return f'<div class="qlab-boxes" dir="ltr" role="img" aria-label="{self.bits}">{html}</div>'


def _box_style(name: str) -> str:
    """Colours that also hold where there is no style sheet, as in JupyterLab."""
    from qlab.show.figure import COLORS

    return f"background:var(--qlab-{name}, {COLORS[name]});"


def _isolate(text: str) -> str:
    """Escape a sentence and set what stands between backticks as code, apart from the direction of the text around it."""
    parts = escape(text).split("`")
    return "".join(f'<code dir="ltr">{part}</code>' if i % 2 else part for i, part in enumerate(parts))


def decimal(x: Any) -> str:
    """Write a number so that nothing is lost: floats shortest, fractions exactly where that is short."""
    if not isinstance(x, Fraction):
        return repr(float(x)).removesuffix(".0") if math.isfinite(x) and abs(x) < 1e16 else repr(float(x))
    if x.denominator == 1 and abs(x) < 10**16:
        return str(x.numerator)
    with localcontext(Context(prec=17, Emax=10**6, Emin=-(10**6))):
        rounded = (Decimal(x.numerator) / Decimal(x.denominator)).normalize()
    if abs(rounded.adjusted()) > 300:
        return f"{rounded:e}"
    return repr(float(x)) if Fraction(repr(float(x))) == x or Fraction(float(x)) == x else f"{float(x)!r}..."


def to_float(x: Fraction) -> float:
    """Return the nearest float64; infinity beyond its range."""
    try:
        return float(x)
    except OverflowError:
        return math.inf if x > 0 else -math.inf


def binary(x: Fraction, digits: int = _SHOWN) -> str:
    """Write a fraction that is not negative in binary, cut after `digits` digits from the first 1 on."""
    whole, part = divmod(x.numerator, x.denominator)
    text = f"{whole:b}"
    if whole and len(text) > digits:
        return text[:digits] + "…"
    left = digits - (len(text) if whole else 0)
    if not part:
        return text
    text += "."
    while part and left > 0:
        bit, part = divmod(part * 2, x.denominator)
        text += str(bit)
        left -= bool(bit) or "1" in text  # leading zeros are written out (up to a limit) but not counted
        if len(text) > 4 * digits:
            break
    return text + ("…" if part else "")


def field_values(code: int, fmt: Format) -> tuple[int | None, int | None, int | None]:
    """Return sign, exponent and fraction field of a code; None three times for a format without fields."""
    if not isinstance(fmt, FloatFormat):
        return None, None, None
    magnitude = code & fmt.magnitude_mask
    return int(code & fmt.sign_mask > 0), magnitude >> fmt.mantissa_bits, magnitude & ((1 << fmt.mantissa_bits) - 1)


def reason(x: Fraction, middle: Fraction | None, value: Fraction, rounding: str) -> str:
    """Return the reason for a rounding in one word."""
    up = value > x
    if not rounding.startswith("nearest"):
        return rounding
    if x == middle:
        return "tie_even" if rounding == "nearest_even" else "tie_away"
    return "nearer_above" if up else "nearer_below"
