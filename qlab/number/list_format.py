"""IntFormat and TableFormat: formats whose values are whole numbers, or a list of any numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from qlab._pieces import Array

__all__ = ["IntFormat", "TableFormat"]


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
        if self.bits > 16:
            raise ValueError(f"{self.name} has 2**{self.bits} codes, too many to list; values() is for formats of up to 16 bits")
        codes = np.arange(1 << self.bits)
        return np.where(codes > self.max, codes - (1 << self.bits), codes).astype(np.float64)


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
    _ends: tuple[float, float] = field(init=False)

    def __init__(self, name: str, values: object, *, boundaries: object = None) -> None:
        table = tuple(float(v) for v in values)  # type: ignore[attr-defined]
        finite = {v for v in table if math.isfinite(v)}
        if len(finite) < 2 or len(table) > 65536 or any(map(math.isinf, table)):
            raise ValueError(f"{name}: a table needs 2 to 65536 finite values (or NaN), at least two of them distinct")
        object.__setattr__(self, "name", str(name))
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "_ends", (min(finite), max(finite)))  # numbers: torch.compile does not follow arrays
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
        return self._ends[1]

    @property
    def min(self) -> float:
        """Lowest value."""
        return self._ends[0]

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
