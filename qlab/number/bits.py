"""Floats seen as bits: the layouts of float32 and float64, the fields of a code, a code as a string of bits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from qlab._pieces import Array
from qlab.number.formats import FloatFormat, Format

__all__ = ["FLOAT32", "FLOAT64", "Layout", "bit_string", "fields"]


class Layout(NamedTuple):
    """How a float of the machine lies in an integer of the same width."""

    float_type: type[np.floating[Any]]
    int_type: type[np.signedinteger[Any]]
    width: int
    mantissa_bits: int
    bias: int

    @property
    def exponent_mask(self) -> int:
        """Mask of the exponent field, which is also the bits of infinity."""
        return (1 << (self.width - 1)) - (1 << self.mantissa_bits)

    @property
    def magnitude_mask(self) -> int:
        """Mask of all bits but the sign."""
        return (1 << (self.width - 1)) - 1

    def of(self, value: float) -> int:
        """Return the bits of `value`."""
        return int(np.asarray(value, self.float_type).view(self.int_type))


FLOAT32 = Layout(np.float32, np.int32, 32, 23, 127)
FLOAT64 = Layout(np.float64, np.int64, 64, 52, 1023)


def fields(codes: Any, fmt: Format) -> tuple[Array, Array, Array]:
    """Take codes apart into sign, exponent and fraction field.

    Parameters
    ----------
    codes : int or integer array of any shape
        Bit patterns; masked to the format's width.
    fmt : FloatFormat
        The format they belong to.

    Returns
    -------
    sign, exponent, fraction : int64 arrays of the shape of `codes`

    Examples
    --------
    >>> from qlab.number.bits import fields
    >>> from qlab import encode, get_format
    >>> [int(part) for part in fields(encode(6.75, "float32"), get_format("float32"))]
    [0, 129, 5767168]
    """
    if not isinstance(fmt, FloatFormat):
        raise TypeError(f"{fmt.name} has no exponent field; only a FloatFormat has")
    code = np.asarray(codes, dtype=np.int64)
    sign = (code >> (fmt.exponent_bits + fmt.mantissa_bits)) & 1 if fmt.signed else np.zeros_like(code)
    exponent = (code >> fmt.mantissa_bits) & ((1 << fmt.exponent_bits) - 1)
    return sign, exponent, code & ((1 << fmt.mantissa_bits) - 1)


def bit_string(code: int, fmt: Format, *, separator: str = " ") -> str:
    """Write a code as zeros and ones, its fields apart.

    Examples
    --------
    >>> from qlab.number.bits import bit_string
    >>> from qlab import get_format
    >>> bit_string(0x3100, get_format("float16"))
    '0 01100 0100000000'
    """
    digits = format(int(code) & ((1 << fmt.bits) - 1), f"0{fmt.bits}b")
    if not isinstance(fmt, FloatFormat):
        return digits
    cuts = [0, int(fmt.signed), int(fmt.signed) + fmt.exponent_bits, fmt.bits]
    return separator.join(digits[a:b] for a, b in pairwise(cuts) if b > a)
