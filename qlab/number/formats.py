"""Number formats as data: which values a code can stand for.

A `FloatFormat` is a handful of parameters from which everything else follows; an `IntFormat` is a width and a sign; a
`TableFormat` is a list of values. All are frozen and hashable. `FORMATS` holds the named ones under the names of
ml_dtypes; to add one, add a line to the list at the end of this file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from qlab._check import one_of, unknown_name
from qlab._pieces import Array

__all__ = ["ALIASES", "FORMATS", "FloatFormat", "Format", "FormatTable", "IntFormat", "TableFormat", "get_format"]

NANS = ("ieee", "all_ones", "negative_zero", "none")


@dataclass(frozen=True)
class FloatFormat:
    r"""A binary floating-point format of 2 to 32 bits (and float64): sign, exponent, fraction.

    A code with exponent field :math:`e` and fraction field :math:`f` of M bits stands for
    :math:`(-1)^s\,2^{e-\mathrm{bias}}\,(1+f/2^M)`, and with :math:`e=0` for the subnormal
    :math:`(-1)^s\,2^{1-\mathrm{bias}}\,f/2^M`.

    Parameters
    ----------
    name : str
        What it is called in messages and tables.
    exponent_bits, mantissa_bits : int
        Widths of the exponent field (at least 1) and of the fraction field (at least 0), in bits.
    bias : int, optional
        What the exponent field is ahead of the exponent; ``2**(exponent_bits - 1) - 1`` unless given.
    infinities : bool
        Whether the format has infinities: the codes just below the NaNs.
    nans : {"ieee", "all_ones", "negative_zero", "none"}
        Which codes are NaN: those of the highest exponent field with a fraction that is not zero; the one whose
        exponent and fraction are all ones; the one of minus zero, which the format then lacks; no code.
    subnormals : bool
        If False, exponent field 0 is a binade like any other, in which only the code 0 stands for zero (as in
        DLFloat16). Without fraction bits (float8_e8m0fnu) there is then no zero at all.
    signed : bool
        Whether there is a sign bit.

    Raises
    ------
    ValueError
        If the parameters contradict one another, or the values do not all fit into float64.

    References
    ----------
    IEEE 754-2019, section 3; OCP 8-bit Floating Point Specification 1.0, table 1. Book: chapters 02 and 03.

    Examples
    --------
    >>> import qlab
    >>> e4m3 = qlab.FloatFormat("my_e4m3", 4, 3, infinities=False, nans="all_ones")
    >>> e4m3.max, e4m3.smallest_normal, e4m3.smallest_subnormal
    (448.0, 0.015625, 0.001953125)
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int = None  # type: ignore[assignment]  # filled in below
    infinities: bool = True
    nans: str = "ieee"
    subnormals: bool = True
    signed: bool = True

    def __init__(
        self,
        name: str,
        exponent_bits: int,
        mantissa_bits: int,
        bias: int | None = None,
        *,
        infinities: bool = True,
        nans: str = "ieee",
        subnormals: bool = True,
        signed: bool = True,
    ) -> None:
        for argument, value, lowest in (("exponent_bits", exponent_bits, 1), ("mantissa_bits", mantissa_bits, 0)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < lowest:
                raise ValueError(f"{argument}={value!r} is not allowed; give an integer of {lowest} or more")
        if bias is not None and (isinstance(bias, bool) or not isinstance(bias, (int, np.integer))):
            raise ValueError(f"bias={bias!r} is not allowed; give an integer, or None for 2**(exponent_bits - 1) - 1")
        values: dict[str, object] = {
            "name": str(name),
            "exponent_bits": int(exponent_bits),
            "mantissa_bits": int(mantissa_bits),
            "bias": 2 ** (int(exponent_bits) - 1) - 1 if bias is None else int(bias),
            "infinities": bool(infinities),
            "nans": one_of("nans", nans, NANS),
            "subnormals": bool(subnormals),
            "signed": bool(signed),
        }
        for key, parameter in values.items():
            object.__setattr__(self, key, parameter)
        self._check()

    def _check(self) -> None:
        if self.bits > 32 and (self.exponent_bits, self.mantissa_bits) != (11, 52):
            raise ValueError(f"{self.name}: {self.bits} bits is too wide; formats have at most 32 bits (or are float64)")
        if self.nans == "negative_zero" and not self.signed:
            raise ValueError(f"{self.name}: nans='negative_zero' needs a sign bit; use nans='all_ones'")
        if self.nans == "ieee" and self.mantissa_bits == 0:
            raise ValueError(f"{self.name}: nans='ieee' needs a fraction bit; use nans='all_ones' or 'none'")
        if self.max_code < self.has_zero:
            raise ValueError(f"{self.name}: no code is left for a finite value other than zero")
        lowest, highest = self.emin - self.mantissa_bits, self._exponent(self.max_code)
        if self.emin < -1022 or lowest < -1074 or highest > 1023:
            raise ValueError(
                f"{self.name}: values from 2**{lowest} to 2**{highest} do not fit into float64, whose normal numbers "
                "reach from 2**-1022 to 2**1023; choose another bias or fewer exponent bits"
            )

    # --- layout of the codes -------------------------------------------------------------------------------------
    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.signed + self.exponent_bits + self.mantissa_bits

    @property
    def magnitude_mask(self) -> int:
        """Mask of exponent and fraction field: all of a code but its sign."""
        return (1 << (self.exponent_bits + self.mantissa_bits)) - 1

    @property
    def sign_mask(self) -> int:
        """Mask of the sign bit; 0 where there is none."""
        return self.magnitude_mask + 1 if self.signed else 0

    @property
    def emin(self) -> int:
        """Exponent of the lowest binade of normal numbers."""
        return 1 - self.bias if self.subnormals else -self.bias

    @property
    def has_zero(self) -> bool:
        """Whether a code stands for zero (float8_e8m0fnu has none)."""
        return self.subnormals or self.mantissa_bits > 0

    @property
    def has_negative_zero(self) -> bool:
        """Whether minus zero is told from zero."""
        return self.signed and self.has_zero and self.nans != "negative_zero"

    @property
    def max_code(self) -> int:
        """Code of the largest finite value."""
        top = self.magnitude_mask
        if self.nans == "ieee":
            top -= (1 << self.mantissa_bits) - 1
        elif self.nans == "all_ones":
            top -= 1
        return top - self.infinities

    @property
    def infinity_code(self) -> int | None:
        """Code of plus infinity, or None."""
        return self.max_code + 1 if self.infinities else None

    @property
    def nan_code(self) -> int | None:
        """The code that a NaN is encoded to (the quiet one with the sign bit clear), or None."""
        if self.nans == "ieee":
            return self.magnitude_mask ^ ((1 << (self.mantissa_bits - 1)) - 1)
        return {"all_ones": self.magnitude_mask, "negative_zero": self.sign_mask, "none": None}[self.nans]

    # --- what the codes stand for --------------------------------------------------------------------------------
    def _exponent(self, code: int) -> int:
        return max((code >> self.mantissa_bits) - self.bias, self.emin)

    def magnitudes(self, codes: Array) -> Array:
        """Return the values (float64) of codes without sign bit: an int64 array of any shape."""
        field, fraction = codes >> self.mantissa_bits, codes & ((1 << self.mantissa_bits) - 1)
        normal = field > 0 if self.subnormals else (codes > 0) | (not self.has_zero)
        significand = (fraction + (normal.astype(np.int64) << self.mantissa_bits)).astype(np.float64)
        exponent = np.maximum(field - self.bias, self.emin) - self.mantissa_bits
        values = np.ldexp(significand, np.minimum(exponent, 1023).astype(np.int32))
        values = np.where(codes > self.max_code, np.nan, values)
        return np.where(codes == self.infinity_code, np.inf, values) if self.infinities else values

    def magnitude(self, code: int) -> float:
        """Return the value of a code without sign bit."""
        return float(self.magnitudes(np.asarray(code, np.int64)))

    @property
    def max(self) -> float:
        """Largest finite value."""
        return self.magnitude(self.max_code)

    @property
    def min(self) -> float:
        """Lowest finite value: -max, or the smallest one where there is no sign."""
        return -self.max if self.signed else self.magnitude(0)

    @property
    def smallest_normal(self) -> float:
        """Smallest positive value with the full precision."""
        return self.magnitude(1 << self.mantissa_bits if self.subnormals else int(self.has_zero))

    @property
    def smallest_subnormal(self) -> float:
        """Smallest positive value (the smallest normal one where there are no subnormals)."""
        return self.magnitude(int(self.has_zero))

    @property
    def epsilon(self) -> float:
        """Distance from 1 to the next larger value, 2**-mantissa_bits."""
        return math.ldexp(1.0, -self.mantissa_bits)

    def values(self) -> Array:
        """Return the value of each code, in the order of the codes: float64 of shape (2**bits,).

        Raises
        ------
        ValueError
            If the format has more than 16 bits.
        """
        return _values(self)


@dataclass(frozen=True)
class IntFormat:
    """Two's-complement or unsigned integers of 1 to 32 bits, as a number format.

    Parameters
    ----------
    bits : int
        Width, 1 to 32 (a signed one has at least 2).
    signed : bool
        Whether codes are two's complement.

    Examples
    --------
    >>> import qlab
    >>> qlab.IntFormat(4).min, qlab.IntFormat(4).max, qlab.IntFormat(4, signed=False).max
    (-8.0, 7.0, 15.0)
    """

    bits: int
    signed: bool = True

    def __post_init__(self) -> None:
        lowest = 2 if self.signed else 1
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not lowest <= self.bits <= 32:
            raise ValueError(f"bits={self.bits!r} is not allowed; an integer format has {lowest} to 32 bits")

    @property
    def name(self) -> str:
        """``int4``, ``uint8`` and so on."""
        return f"{'' if self.signed else 'u'}int{self.bits}"

    @property
    def exponent_bits(self) -> int:
        """None of the bits: an integer is a float whose exponent is fixed."""
        return 0

    @property
    def mantissa_bits(self) -> int:
        """Bits of the magnitude."""
        return self.bits - self.signed

    @property
    def bias(self) -> int:
        """Always 0."""
        return 0

    @property
    def max(self) -> float:
        """Largest value."""
        return float(2**self.mantissa_bits - 1)

    @property
    def min(self) -> float:
        """Lowest value."""
        return -float(2**self.mantissa_bits) if self.signed else 0.0

    @property
    def smallest_normal(self) -> float:
        """Smallest positive value, 1."""
        return 1.0

    @property
    def smallest_subnormal(self) -> float:
        """Smallest positive value, 1."""
        return 1.0

    @property
    def epsilon(self) -> float:
        """Distance from 1 to the next larger value, 1."""
        return 1.0

    def values(self) -> Array:
        """Return the value of each code, in the order of the codes: float64 of shape (2**bits,)."""
        return _values(self)


@dataclass(frozen=True)
class TableFormat:
    """A format that is a list of values: code i stands for ``values[i]``.

    Parameters
    ----------
    name : str
        What it is called in messages and tables.
    table : sequence of float
        2 to 65536 values, finite or NaN, at least two of them distinct numbers; in any order.

    Examples
    --------
    >>> import qlab
    >>> qlab.cast([0.2, -3.0], qlab.TableFormat("ternary", [-1, 0, 1]))
    array([ 0., -1.])
    """

    name: str
    table: tuple[float, ...]

    def __init__(self, name: str, values: object) -> None:
        table = tuple(float(v) for v in values)  # type: ignore[attr-defined]
        finite = {v for v in table if math.isfinite(v)}
        if len(finite) < 2 or len(table) > 65536 or any(map(math.isinf, table)):
            raise ValueError(f"{name}: a table needs 2 to 65536 finite values (or NaN), at least two of them distinct")
        object.__setattr__(self, "name", str(name))
        object.__setattr__(self, "table", table)

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return max(1, (len(self.table) - 1).bit_length())

    @property
    def nan_code(self) -> int | None:
        """The first code that stands for NaN, or None."""
        return next((code for code, value in enumerate(self.table) if math.isnan(value)), None)

    @property
    def exponent_bits(self) -> None:
        """A table has no fields."""
        return None

    mantissa_bits = bias = exponent_bits

    @property
    def max(self) -> float:
        """Largest value."""
        return max(v for v in self.table if not math.isnan(v))

    @property
    def min(self) -> float:
        """Lowest value."""
        return min(v for v in self.table if not math.isnan(v))

    @property
    def smallest_normal(self) -> float:
        """Smallest positive value."""
        return min((v for v in self.table if v > 0), default=math.nan)

    smallest_subnormal = smallest_normal

    @property
    def epsilon(self) -> float:
        """Distance from 1 to the next larger value; NaN where 1 is not in the table or is its largest value."""
        above = [v for v in self.table if v > 1]
        return min(above) - 1 if 1 in self.table and above else math.nan

    def values(self) -> Array:
        """Return the value of each code, in the order of the codes: float64 of shape (len(table),)."""
        return np.array(self.table)


Format = FloatFormat | IntFormat | TableFormat


@lru_cache(maxsize=64)
def _values_once(fmt: FloatFormat | IntFormat) -> Array:
    codes = np.arange(1 << fmt.bits, dtype=np.int64)
    if isinstance(fmt, IntFormat):
        values = np.where(codes > fmt.max, codes - (1 << fmt.bits), codes).astype(np.float64)
    else:
        values = np.copysign(fmt.magnitudes(codes & fmt.magnitude_mask), np.where(codes & fmt.sign_mask, -1.0, 1.0))
        if fmt.nans == "negative_zero":
            values[fmt.sign_mask] = np.nan
    values.flags.writeable = False
    return values


def _values(fmt: FloatFormat | IntFormat) -> Array:
    if fmt.bits > 16:
        raise ValueError(f"{fmt.name} has 2**{fmt.bits} codes, too many to list; values() is for formats of up to 16 bits")
    return _values_once(fmt).copy()


class FormatTable(Mapping[str, Format]):
    """The named formats, in the order of the book's table; a mapping that a notebook shows as that table."""

    def __init__(self, formats: list[Format]) -> None:
        self._formats = {fmt.name: fmt for fmt in formats}

    def __getitem__(self, name: str) -> Format:
        return self._formats[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._formats)

    def __len__(self) -> int:
        return len(self._formats)

    def __repr__(self) -> str:
        from qlab.show.table import format_table

        return repr(format_table(list(self.values())))

    def _repr_html_(self) -> str:
        from qlab.show.table import format_table

        return format_table(list(self.values()))._repr_html_()


def get_format(fmt: str | Format) -> Format:
    """Return the format of that name; a format is returned as it is.

    Parameters
    ----------
    fmt : str or Format
        A name of `FORMATS`, an everyday alias (``fp16``, ``bf16``, ``tf32``, ``fp8_e4m3``, ``fp4``), or an object.

    Raises
    ------
    ValueError
        If no format has that name; the message offers the nearest ones.

    Examples
    --------
    >>> import qlab
    >>> qlab.get_format("bf16").name
    'bfloat16'
    >>> qlab.get_format("float17")
    Traceback (most recent call last):
    ValueError: unknown format 'float17': did you mean 'float16' or 'float' or 'bfloat16'? qlab.FORMATS lists all names
    """
    if isinstance(fmt, (FloatFormat, IntFormat, TableFormat)):
        return fmt
    if not isinstance(fmt, str):
        raise TypeError(f"a format is a name or a FloatFormat, IntFormat or TableFormat, not {type(fmt).__name__}")
    name = ALIASES.get(fmt.lower(), fmt.lower())
    if name in FORMATS:
        return FORMATS[name]
    if match := re.fullmatch(r"(u?)int(\d+)", name):
        bits, signed = int(match[2]), not match[1]
        if 1 + signed <= bits <= 32:
            return IntFormat(bits, signed)
    unknown_name("format", fmt, [*FORMATS, *ALIASES], "qlab.FORMATS lists all names")


# QLoRA, appendix E; the float32 values that bitsandbytes stores.
_NF4 = (
    "-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334 "
    "-0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224 "
    "0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0"
)

_FN = {"infinities": False, "nans": "all_ones"}
_FNUZ = {"infinities": False, "nans": "negative_zero"}
_FINITE = {"infinities": False, "nans": "none"}

FORMATS = FormatTable(
    [
        FloatFormat("float64", 11, 52),
        FloatFormat("float32", 8, 23),
        FloatFormat("tfloat32", 8, 10),
        FloatFormat("bfloat16", 8, 7),
        FloatFormat("float16", 5, 10),
        FloatFormat("float8_e5m2", 5, 2),
        FloatFormat("float8_e5m2fnuz", 5, 2, 16, **_FNUZ),  # type: ignore[arg-type]
        FloatFormat("float8_e4m3", 4, 3),
        FloatFormat("float8_e4m3fn", 4, 3, **_FN),  # type: ignore[arg-type]
        FloatFormat("float8_e4m3fnuz", 4, 3, 8, **_FNUZ),  # type: ignore[arg-type]
        FloatFormat("float8_e4m3b11fnuz", 4, 3, 11, **_FNUZ),  # type: ignore[arg-type]
        FloatFormat("float8_e3m4", 3, 4),
        FloatFormat("float8_e8m0fnu", 8, 0, **_FN, subnormals=False, signed=False),  # type: ignore[arg-type]
        FloatFormat("float6_e3m2fn", 3, 2, **_FINITE),  # type: ignore[arg-type]
        FloatFormat("float6_e2m3fn", 2, 3, **_FINITE),  # type: ignore[arg-type]
        FloatFormat("float4_e2m1fn", 2, 1, **_FINITE),  # type: ignore[arg-type]
        TableFormat("nf4", _NF4.split()),
        *(IntFormat(bits) for bits in range(2, 17)),
        *(IntFormat(bits, signed=False) for bits in range(2, 17)),
    ]
)
"""The named formats. A new one is one line above (and a line in CHANGELOG.md)."""

ALIASES = {
    "fp64": "float64", "double": "float64", "e11m52": "float64",
    "fp32": "float32", "float": "float32", "single": "float32", "e8m23": "float32",
    "tf32": "tfloat32", "e8m10": "tfloat32",
    "bf16": "bfloat16", "e8m7": "bfloat16",
    "fp16": "float16", "half": "float16", "e5m10": "float16",
    "fp8_e5m2": "float8_e5m2", "e5m2": "float8_e5m2",
    "fp8_e4m3": "float8_e4m3fn", "e4m3": "float8_e4m3fn", "fp8_e4m3fn": "float8_e4m3fn", "e4m3fn": "float8_e4m3fn",
    "fp8_e3m4": "float8_e3m4", "e3m4": "float8_e3m4",
    "e8m0": "float8_e8m0fnu", "ue8m0": "float8_e8m0fnu",
    "fp6_e3m2": "float6_e3m2fn", "e3m2": "float6_e3m2fn",
    "fp6_e2m3": "float6_e2m3fn", "e2m3": "float6_e2m3fn",
    "fp4": "float4_e2m1fn", "fp4_e2m1": "float4_e2m1fn", "e2m1": "float4_e2m1fn",
}  # fmt: skip
"""Everyday names, lower case, and the format each means."""
