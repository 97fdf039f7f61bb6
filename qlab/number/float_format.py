"""FloatFormat: a handful of parameters from which a floating-point format follows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from qlab._check import one_of
from qlab._pieces import Array

__all__ = ["FloatFormat"]

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
        if self.nans == "negative_zero" and not self.has_zero:
            raise ValueError(f"{self.name}: nans='negative_zero' needs a zero; use nans='all_ones', or subnormals=True")
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
        if self.bits > 16:
            raise ValueError(f"{self.name} has 2**{self.bits} codes, too many to list; values() is for formats of up to 16 bits")
        return _values(self).copy()


@lru_cache(maxsize=64)
def _values(fmt: FloatFormat) -> Array:
    codes = np.arange(1 << fmt.bits, dtype=np.int64)
    values = np.copysign(fmt.magnitudes(codes & fmt.magnitude_mask), np.where(codes & fmt.sign_mask, -1.0, 1.0))
    if fmt.nans == "negative_zero":
        values[fmt.sign_mask] = np.nan
    values.flags.writeable = False
    return values
