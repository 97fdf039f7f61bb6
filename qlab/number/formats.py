"""Number formats as data: which values a code can stand for.

A `FloatFormat` is a handful of parameters from which everything else follows; an `IntFormat` is a width and a sign; a
`TableFormat` is a list of values. All are frozen and hashable. `FORMATS` holds the named ones under the names of
ml_dtypes; to add one, add a line to the list at the end of this file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

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


@dataclass(frozen=True, eq=False, repr=False)
class TableFormat:
    """A format that is a list of values: code i stands for ``values[i]``.

    Parameters
    ----------
    name : str
        What it is called in messages and tables.
    values : sequence of float
        2 to 65536 values, finite or NaN, at least two of them distinct numbers; in any order. Kept as `table`.
    boundaries : sequence of float or of (float, float), optional
        Where rounding to nearest changes from each distinct value to the next, in ascending order: one fewer than there
        are distinct values, each between its two values (or one of them: all that lies between goes to the other). A
        pair is the sum of a float and a small rest, for a boundary that is no float64. The midpoints unless given;
        posits and takums round on their bit strings instead.

    Notes
    -----
    Finite values beyond the table become its ends, and so do infinities, unless the table has a NaN: then that.

    Raises
    ------
    ValueError
        If the values or the boundaries are none of these.

    Examples
    --------
    >>> import qlab
    >>> qlab.cast([0.2, -3.0], qlab.TableFormat("ternary", [-1, 0, 1]))
    array([ 0., -1.])
    >>> qlab.cast([0.2, 0.9], qlab.TableFormat("dead_zone", [-1, 0, 1], boundaries=[-0.75, 0.75]))
    array([0., 1.])
    """

    name: str
    table: tuple[float, ...]
    boundaries: Array | None = None

    def __init__(self, name: str, values: object, *, boundaries: object = None) -> None:
        table = tuple(float(v) for v in values)  # type: ignore[attr-defined]
        finite = {v for v in table if math.isfinite(v)}
        if len(finite) < 2 or len(table) > 65536 or any(map(math.isinf, table)):
            raise ValueError(f"{name}: a table needs 2 to 65536 finite values (or NaN), at least two of them distinct")
        object.__setattr__(self, "name", str(name))
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "boundaries", None if boundaries is None else self._pairs(boundaries))

    def _pairs(self, boundaries: object) -> Array:
        pairs: Array = np.array(boundaries, np.float64)
        given = pairs.shape
        if pairs.ndim == 1:
            pairs = np.stack([pairs, np.zeros_like(pairs)], axis=1)
        values, _ = self.ordered
        if pairs.shape != (len(values) - 1, 2):
            raise ValueError(
                f"{self.name}: boundaries of shape {given} do not fit; give one number (or one pair) "
                f"for each of the {len(values) - 1} gaps between the {len(values)} distinct values"
            )
        wrong = np.flatnonzero(~((pairs[:, 0] >= values[:-1]) & (pairs[:, 0] <= values[1:])))
        if wrong.size:
            i = wrong[0]
            raise ValueError(
                f"{self.name}: boundary {i} is {pairs[i, 0]}; it must lie between its values {values[i]}, {values[i + 1]}"
            )
        pairs.flags.writeable = False
        return pairs

    def __hash__(self) -> int:
        return hash((self.name, len(self.table)))  # equal formats have equal hashes; thousands of values are not walked

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, TableFormat):
            return NotImplemented
        mine, theirs = self.values(), other.values()
        same = np.array_equal(mine, theirs, equal_nan=True) and np.array_equal(np.signbit(mine), np.signbit(theirs))
        return self.name == other.name and same and np.array_equal(self.thresholds, other.thresholds)

    def __repr__(self) -> str:
        many = f"<{len(self.table)} values from {self.min} to {self.max}>"
        shown = repr(self.table) if len(self.table) <= 16 else many
        return f"TableFormat({self.name!r}, {shown}{'' if self.boundaries is None else ', boundaries=...'})"

    @cached_property
    def ordered(self) -> tuple[Array, Array]:
        """The distinct numbers of the table in ascending order, and the code (the first one) of each."""
        table = np.array(self.table)
        codes = np.flatnonzero(~np.isnan(table))
        values, first = np.unique(table[codes], return_index=True)
        codes = codes[first]
        values.flags.writeable = codes.flags.writeable = False
        return values, codes

    @cached_property
    def thresholds(self) -> Array:
        """Where rounding to nearest changes from each distinct value to the next: the `boundaries`, else the midpoints.

        float64 of shape (number of distinct values - 1, 2): each is the sum of a float and a small rest.
        """
        if self.boundaries is not None:
            return self.boundaries
        below, above = self.ordered[0][:-1], self.ordered[0][1:]
        total = below + above
        rest = (below - (total - above)) + (above - (total - (total - above)))  # of the sum, exactly
        return np.stack([total / 2, rest / 2], axis=1)

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return max(1, (len(self.table) - 1).bit_length())

    @cached_property
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
        return float(self.ordered[0][-1])

    @property
    def min(self) -> float:
        """Lowest value."""
        return float(self.ordered[0][0])

    @property
    def smallest_normal(self) -> float:
        """Smallest positive value; NaN where there is none."""
        return self._above(0)

    smallest_subnormal = smallest_normal

    @property
    def epsilon(self) -> float:
        """Distance from 1 to the next larger value; NaN where 1 is not in the table or is its largest value."""
        return self._above(1) - 1 if 1 in self.ordered[0] else math.nan

    def _above(self, limit: float) -> float:
        values = self.ordered[0]
        place = int(np.searchsorted(values, limit, side="right"))
        return float(values[place]) if place < len(values) else math.nan

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
    """The named formats, in the order of the book's table; a mapping that a notebook shows as that table.

    An entry is a format, or a name with a function that builds it, called once, when the format is first asked for.
    """

    def __init__(self, formats: Sequence[Format | tuple[str, Callable[[], Format]]]) -> None:
        self._formats: dict[str, Format | Callable[[], Format]] = dict(
            entry if isinstance(entry, tuple) else (entry.name, entry) for entry in formats
        )

    def __getitem__(self, name: str) -> Format:
        entry = self._formats[name]
        if callable(entry):
            entry = self._formats[name] = entry()
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._formats

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
        A name of `FORMATS`, an everyday alias (``fp16``, ``bf16``, ``tf32``, ``fp8_e4m3``, ``fp4``), an integer width
        (``int24``), a name of IEEE P3109 (``binary8p3se``, see `p3109`), or an object.

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
        raise TypeError(f"a format is a name like 'float16', or a FloatFormat, IntFormat or TableFormat, not {fmt!r}")
    name = ALIASES.get(fmt.lower(), fmt.lower())
    if name in FORMATS:
        return FORMATS[name]
    if match := re.fullmatch(r"(u?)int(\d+)", name):
        bits, signed = int(match[2]), not match[1]
        if 1 + signed <= bits <= 32:
            return IntFormat(bits, signed)
    if name.startswith("binary"):
        from qlab.number.p3109 import p3109_from_name

        if found := p3109_from_name(name):
            return found
    unknown_name("format", fmt, [*FORMATS, *ALIASES], "qlab.FORMATS lists all names")


def _posit(bits: int) -> Format:
    from qlab.number.tapered import posit

    return posit(bits)


def _takum(bits: int) -> Format:
    from qlab.number.tapered import takum

    return takum(bits)


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
        ("posit8", partial(_posit, 8)),
        ("posit16", partial(_posit, 16)),
        ("takum8", partial(_takum, 8)),
        ("takum16", partial(_takum, 16)),
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
