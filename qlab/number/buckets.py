"""Rounding to a table by looking up: the first bits of a float name a bucket, and a bucket knows where it is cut.

The floats that share their upper 16 bits (sign, exponent, first fraction bits) lie side by side: a bucket. If a table's values
are not too dense, at most one boundary falls into a bucket, so that all its floats up to some bit pattern, the cut, go to one
value, and those beyond it to the next. Then rounding is two looks into tables and one comparison of integers, 2 ns an
element where searching costs 50. Signed zeros, infinities and NaN are bit patterns like any others. Where values lie denser
(posits and takums of 16 bits near one), a bucket is split by the next bits, as many as it takes: two more looks.

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
_MOST = 1 << 20  # buckets, with those that are split
_BEYOND = np.s_[:, 2 if np.little_endian else -3]  # of the bytes of an index: the one that is worth 2**16


class Buckets:
    """Where each bucket of a float is cut, and the ranks of the values on either side.

    Parameters
    ----------
    rank : function
        The law: takes floats of shape (n,), ordinary or not, and returns the ranks that they go to, from 0.
    layout : Layout
        The float.

    Attributes
    ----------
    ranks : array of int32, shape (2 n,)
        For n buckets: of what lies up to the cut of each, then of what lies beyond.
    fit : bool
        Whether buckets with one boundary at most could be made.

    Notes
    -----
    Exact, given that `rank` never falls, or never rises, along the bit patterns of a bucket.
    """

    def __init__(self, rank: Callable[[Array], Array], layout: Layout) -> None:
        self.unsigned = np.dtype(f"u{layout.width // 8}")
        self.step = layout.width // 16
        self.high = self.step - 1 if np.little_endian else 0  # where a float's upper 16 bits lie among its parts
        self.low_bits = layout.width - 16

        def rank_of(bits: Array) -> Array:
            return rank(bits.view(layout.float_type))

        with np.errstate(invalid="ignore"):  # buckets of signalling NaN
            splits = self._splits(rank_of, layout.exponent_mask)
            self.fit = int((1 << splits).sum()) <= _MOST
            self._cut(rank_of, splits if self.fit else np.zeros_like(splits))
        self.split = bool(splits.any())

    def _splits(self, rank_of: Callable[[Array], Array], exponent_mask: int) -> Array:
        """Return by how many bits each bucket is split so that no part holds more than one boundary, shape (2**16,)."""
        splits, wrong = np.zeros(_COUNT, np.int64), np.arange(_COUNT)
        while wrong.size and int((1 << splits).sum()) <= _MOST:
            first, last = self._ends(wrong, splits[wrong])
            boundaries = np.abs(rank_of(last) - rank_of(first))
            dense = (boundaries > 1) & ((first & exponent_mask) != exponent_mask)
            wrong = np.unique(np.repeat(wrong, 1 << splits[wrong])[dense])
            splits[wrong] += 1
        return splits

    def _ends(self, buckets: Array, splits: Array) -> tuple[Array, Array]:
        """The first and the last bit pattern of each part of buckets, in ascending order."""
        parts = 1 << splits
        before = np.cumsum(parts) - parts
        number = np.arange(int(parts.sum())) - np.repeat(before, parts)  # of a part within its bucket
        width = np.repeat(self.low_bits - splits, parts).astype(self.unsigned)
        first = np.repeat(buckets, parts).astype(self.unsigned) << self.unsigned.type(self.low_bits)
        first |= number.astype(self.unsigned) << width
        return first, first | ((self.unsigned.type(1) << width) - self.unsigned.type(1))

    def _cut(self, rank_of: Callable[[Array], Array], splits: Array) -> None:
        """Fill the tables."""
        parts = 1 << splits
        self.start = np.cumsum(parts) - parts  # (2**16,)
        self.shift = (self.low_bits - splits).astype(self.unsigned)
        first, last = self._ends(np.arange(_COUNT), splits)
        up_to, beyond = rank_of(first), rank_of(last)
        self.ranks, self.cut = np.concatenate([up_to, beyond]).astype(np.int32), last
        cut = np.flatnonzero(beyond != up_to) if self.fit else np.empty(0, np.intp)
        width = np.repeat(self.shift, parts)[cut]
        for bit in range(self.low_bits)[::-1]:  # the cut is the last bit pattern of its bucket that goes where the first goes
            back = last[cut] - (width > bit).astype(self.unsigned) * self.unsigned.type(1 << bit)
            last[cut] = np.where(rank_of(back) == beyond[cut], back, last[cut])
        last[cut] -= self.unsigned.type(1)

    def index(self, x: Array, scratch: Scratch) -> Array:
        """Return where to look in `ranks`, or in a table in that order, for each float of a piece: intp, shape (n,)."""
        index, bits = scratch("index", np.intp, x.size), x.view(self.unsigned)
        np.copyto(index, x.view(np.uint16)[self.high :: self.step])
        if self.split:
            return self._index_of_parts(index, bits, scratch)
        cut = np.take(self.cut, index, out=scratch("cut", self.unsigned, x.size), mode="clip")
        side = index.view(np.uint8).reshape(x.size, -1)[_BEYOND].view(bool)
        np.greater(bits, cut, out=side)
        return index

    def _index_of_parts(self, index: Array, bits: Array, scratch: Scratch) -> Array:
        shift = np.take(self.shift, index, out=scratch("cut", self.unsigned, bits.size), mode="clip")
        part = np.bitwise_and(bits, (1 << self.low_bits) - 1, out=scratch("part", self.unsigned, bits.size))
        np.right_shift(part, shift, out=part)
        index = np.take(self.start, index, out=scratch("start", np.intp, bits.size), mode="clip")
        np.add(index, part, out=index, casting="unsafe")
        cut = np.take(self.cut, index, out=shift, mode="clip")
        beyond = np.greater(bits, cut, out=scratch("over", bool, bits.size))
        np.add(index, np.multiply(beyond, len(self.cut), out=scratch("index", np.intp, bits.size)), out=index)
        return index
