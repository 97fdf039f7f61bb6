"""Rounding to a table by looking up: the upper 16 bits of a float name a bucket, and a bucket knows where it is cut.

The floats that share their sign, exponent and first fraction bits lie side by side: a bucket. If a table's values are not
too dense, at most one boundary falls into a bucket, so that all its floats up to some bit pattern, the cut, go to one
value, and those beyond it to the next. Then rounding is two looks into tables and one comparison of integers, 2 ns an
element where searching costs 50. Signed zeros, infinities and NaN are bit patterns like any others.

The buckets are found by asking the law (`qlab.number.lanes.TableLane`) about their ends, and about their insides by
bisection: whatever the law does, the buckets do. Book: chapter 04.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qlab._pieces import Array, Scratch
from qlab.number.bits import Layout

__all__ = ["Buckets"]

_COUNT = 1 << 16
_BEYOND = np.s_[:, 2 if np.little_endian else -3]  # of the bytes of an index: the one that is worth 2**16


class Buckets:
    """Where each of the 2**16 buckets of a float is cut, and the ranks of the values on either side.

    Parameters
    ----------
    rank : function
        The law: takes floats of shape (n,), ordinary or not, and returns the ranks that they go to, from 0.
    layout : Layout
        The float.

    Attributes
    ----------
    ranks : array of int32, shape (2**17,)
        Of what lies up to the cut of each bucket, then of what lies beyond.
    fit : bool
        Whether no bucket holds more than one boundary.

    Notes
    -----
    Exact, given that `rank` never falls, or never rises, along the bit patterns of a bucket.
    """

    def __init__(self, rank: Callable[[Array], Array], layout: Layout) -> None:
        self.unsigned = np.dtype(f"u{layout.width // 8}")
        self.step = layout.width // 16
        self.high = self.step - 1 if np.little_endian else 0  # where a float's upper 16 bits lie among its parts
        low_bits = layout.width - 16
        first = np.arange(_COUNT, dtype=self.unsigned) << self.unsigned.type(low_bits)
        last = first | self.unsigned.type((1 << low_bits) - 1)
        with np.errstate(invalid="ignore"):  # buckets of signalling NaN
            ranks = np.concatenate([rank(first.view(layout.float_type)), rank(last.view(layout.float_type))])
            up_to, beyond = ranks[:_COUNT], ranks[_COUNT:]
            finite = (first & layout.exponent_mask) != layout.exponent_mask
            self.fit = bool((np.abs(beyond - up_to)[finite] <= 1).all())
            self.ranks, self.cut = ranks.astype(np.int32), last
            cut = np.flatnonzero(beyond != up_to) if self.fit else np.empty(0, np.intp)
            for bit in range(low_bits)[::-1]:  # the cut is the last bit pattern of its bucket that goes where the first one goes
                back = last[cut] - self.unsigned.type(1 << bit)
                last[cut] = np.where(rank(back.view(layout.float_type)) == beyond[cut], back, last[cut])
            last[cut] -= self.unsigned.type(1)

    def index(self, x: Array, scratch: Scratch) -> Array:
        """Return where to look in `ranks`, or in a table in that order, for each float of a piece: intp, shape (n,)."""
        index = scratch("index", np.intp, x.size)
        np.copyto(index, x.view(np.uint16)[self.high :: self.step])
        cut = np.take(self.cut, index, out=scratch("cut", self.unsigned, x.size), mode="clip")
        side = index.view(np.uint8).reshape(x.size, -1)[_BEYOND].view(bool)
        np.greater(x.view(self.unsigned), cut, out=side)
        return index
