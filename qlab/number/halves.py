"""The floats of 16 bits, float16 and bfloat16, on their way in and out; both are worked on as float32.

NumPy converts float16 one element at a time, and bfloat16 it does not know. Here both are widened and narrowed a piece at
a time, exactly: float16 by a table on the way in and by its bits on the way out, bfloat16 as the upper half of a float32.

And there are no more than 65536 of either. In a longer array what becomes of each of them is computed once, by the lane
that is made for it, and looked up (`Lookup`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from qlab._pieces import Array, Scratch

__all__ = ["BFLOAT16", "PATTERNS", "Lookup", "is_bfloat16", "is_half", "narrow", "widen"]

BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
"""Stands for bfloat16 where ml_dtypes, which brings NumPy one, may be missing: a record of nothing but the pattern."""

PATTERNS = 1 << 16
"""How many values of 16 bits there are."""


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether it is the bfloat16 of ml_dtypes, which NumPy itself does not know, or what stands for it here."""
    return dtype.itemsize == 2 and (dtype.name == "bfloat16" or dtype == BFLOAT16)


def is_half(dtype: np.dtype[Any]) -> bool:
    """Whether it is float16 or bfloat16."""
    return dtype == np.float16 or is_bfloat16(dtype)


def widen(piece: Array, float_type: type[np.floating[Any]], scratch: Scratch) -> Array:
    """Return a piece of float16 or bfloat16 in float32 or float64, in scratch memory; a NaN keeps its payload.

    Examples
    --------
    >>> import numpy as np
    >>> from qlab._pieces import Scratch
    >>> from qlab.number.halves import widen
    >>> widen(np.float16([1.5, -0.0, np.inf]), np.float32, Scratch())
    array([ 1.5, -0. ,  inf], dtype=float32)
    """
    values = scratch("loaded", float_type, piece.size)
    if piece.dtype == np.float16:
        return _take(_float16_as(np.dtype(float_type)), piece, values, scratch)
    bits = scratch("upper half", np.uint32, piece.size) if float_type is np.float64 else values.view(np.uint32)
    np.copyto(bits, piece.view(np.uint16))
    np.left_shift(bits, 16, out=bits)
    if float_type is np.float64:
        np.copyto(values, bits.view(np.float32))
    return values


@lru_cache(maxsize=2)
def _float16_as(float_type: np.dtype[Any]) -> Array:
    return np.arange(PATTERNS, dtype=np.uint16).view(np.float16).astype(float_type)


def _take(table: Array, piece: Array, into: Array, scratch: Scratch) -> Array:
    """Look the patterns of a piece up in a table of all of them."""
    index = scratch("index", np.intp, piece.size)
    np.copyto(index, piece.view(np.uint16))
    return np.take(table, index, out=into, mode="clip")


def narrow(values: Array, into: Array, scratch: Scratch) -> None:
    """Write a piece of values to an array whose dtype holds each of them; any NaN is a quiet one.

    Examples
    --------
    >>> import numpy as np
    >>> from qlab._pieces import Scratch
    >>> from qlab.number.halves import narrow
    >>> half = np.empty(3, np.float16)
    >>> narrow(np.float32([1.5, -0.0, 2**-24]), half, Scratch())
    >>> half.view(np.uint16)
    array([15872, 32768,     1], dtype=uint16)
    """
    if is_bfloat16(into.dtype):
        np.right_shift(values.view(np.uint32), 16, out=into.view(np.uint16), casting="unsafe")
    elif into.dtype != np.float16 or values.dtype != np.float32 or not _narrow_to_float16(values, into, scratch):
        np.copyto(into, values, casting="unsafe")


def _narrow_to_float16(values: Array, into: Array, scratch: Scratch) -> bool:
    """Do so by the bits, unless there are infinities or NaN.

    The exponents of float16 begin at 2**-14, and steps of 2**-24 go down from there to zero. Below 2**-14 a float32 has
    no such steps, but ``(x + 2**-14) / 2``, a number of the binade from 2**-15, has them in the same place of its bits.
    """
    bits = values.view(np.int32)
    magnitude = np.abs(values, out=scratch("magnitude", np.float32, values.size))
    pattern = magnitude.view(np.int32)
    if pattern.max(initial=0) >= 0x7F800000:
        return False
    lifted = np.add(magnitude, np.float32(2.0**-14), out=scratch("rest", np.float32, values.size))
    np.multiply(lifted, np.float32(0.5), out=lifted)
    np.maximum(magnitude, lifted, out=magnitude)  # from 2**-14 on the number itself
    np.subtract(pattern, (127 - 15) << 23, out=pattern)
    np.right_shift(pattern, 23 - 10, out=pattern)
    sign = np.right_shift(bits, 16, out=lifted.view(np.int32))
    np.bitwise_and(sign, 0x8000, out=sign)
    np.bitwise_or(pattern, sign, out=pattern)
    np.copyto(into.view(np.uint16), pattern, casting="unsafe")
    return True


class Lookup:
    """What becomes of each float16 or bfloat16.

    Parameters
    ----------
    results : array of shape (65536,)
        What becomes of the value of each pattern; only carried, in any dtype.
    """

    def __init__(self, results: Array) -> None:
        self.kind = f"u{results.dtype.itemsize}"
        self.results = results.view(self.kind)

    def __call__(self, piece: Array, into: Array, scratch: Scratch) -> None:
        """Write what becomes of a piece."""
        _take(self.results, piece, into.view(self.kind), scratch)
