"""What happens to one piece of an array: a lane turns floats that lie in the cache into codes or rounded values.

Pieces are contiguous, of shape (n,) and dtype ``layout.float_type``, and free of NaN where the format has none.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from qlab._pieces import SHORT, Array, Scratch, parts_of
from qlab.number.bits import FLOAT32, FLOAT64, Layout
from qlab.number.buckets import Buckets
from qlab.number.fast import CarryLane, ExponentLane, fast_lane
from qlab.number.formats import FloatFormat, IntFormat, TableFormat
from qlab.number.rounding import noise_rounds_up, round_magnitudes

__all__ = ["FloatLane", "IntLane", "TableLane"]

LONG = 1 << 10
"""Elements in a piece from which on a table is rounded to by looking up: what is to be looked up is computed first, once."""


class FloatLane:
    """Conversion to a `FloatFormat`: a fast lane where one is made for the piece, else the law."""

    def __init__(self, fmt: FloatFormat, layout: Layout, rounding: str, overflow: str) -> None:
        self.fmt, self.layout, self.rounding = fmt, layout, rounding
        self.saturate = overflow == "saturate"
        self.clamps = self.saturate or (fmt.infinity_code is None and fmt.nan_code is None)
        self.fast = fast_lane(fmt, layout, rounding, self.saturate)
        self.sign = fmt.sign_mask - (1 << layout.width) * (fmt.bits == layout.width)  # as a signed integer
        narrow = layout is FLOAT32 and fmt.emin + layout.bias < 1  # the law needs float64 here
        self.wide = FloatLane(fmt, FLOAT64, rounding, overflow) if narrow else None

    def cast(self, x: Array, out: Array, scratch: Scratch, noise: Array | None = None) -> bool:
        """Write the rounded values of a piece to `out` if a fast lane can; say whether it could."""
        return self.fast is not None and self.fast.cast(x, out, scratch, noise)

    def encode(self, x: Array, scratch: Scratch, noise: Array | None = None) -> Array:
        """Return the codes of a piece: integers, in scratch memory."""
        codes = None if self.fast is None else self.fast.encode(x, scratch, noise)
        if codes is None and self.fast is not None and x.size > SHORT:
            codes = scratch("parts", np.int64, x.size)
            for part in parts_of(x.size):
                codes[part] = self.encode(x[part], scratch, None if noise is None else noise[part])
            return codes
        if codes is None and self.wide is not None:
            return self.wide.encode(x.astype(np.float64), scratch, noise)
        bits = x.view(self.layout.int_type)
        if codes is None:
            codes = round_magnitudes(bits, self.layout, self.fmt, self.rounding, scratch, noise)
        elif isinstance(self.fast, (CarryLane, ExponentLane)):
            return codes  # with their signs, and none overflows
        self._overflow(codes, bits)
        return self._with_sign(codes, bits, scratch)

    # --- what all lanes share --------------------------------------------------------------------------------------
    def _overflow(self, codes: Array, bits: Array) -> None:
        """Correct the codes (magnitudes) above the largest one: what overflows, infinities and NaN."""
        fmt, layout = self.fmt, self.layout
        highest = codes.max()
        if highest <= fmt.max_code:
            return
        if self.clamps and fmt.nan_code is None:
            np.clip(codes, 0, fmt.max_code, out=codes)
            return
        over = np.greater(codes, fmt.max_code)
        bits = bits[over]
        magnitude = bits & layout.magnitude_mask
        beyond = fmt.infinity_code if fmt.infinity_code is not None else fmt.nan_code
        if self.clamps or beyond is None:
            due = np.zeros(bits.shape, bool)  # whether infinity is due: IEEE 754-2019, section 7.4
        elif self.rounding in ("toward_zero", "to_odd"):
            due = magnitude == layout.exponent_mask  # infinity itself is exact
        elif self.rounding in ("up", "down"):
            due = ((bits < 0) == (self.rounding == "down")) | (magnitude == layout.exponent_mask)
        else:
            due = np.ones(bits.shape, bool)
        new = np.where(due, 0 if beyond is None else beyond, fmt.max_code)
        if fmt.nan_code is not None:
            new[magnitude > layout.exponent_mask] = fmt.nan_code
        codes[over] = new

    def _with_sign(self, codes: Array, bits: Array, scratch: Scratch) -> Array:
        fmt, layout = self.fmt, self.layout
        if not fmt.signed:
            return self._without_sign(codes, bits)
        sign = np.right_shift(bits, layout.width - fmt.bits, out=scratch("sign", layout.int_type, bits.size))
        np.bitwise_and(sign, self.sign, out=sign)
        if fmt.nans == "negative_zero":
            sign[codes == 0] = 0
        elif fmt.nan_code is not None and codes.max() > fmt.max_code + fmt.infinities:
            sign[codes > fmt.max_code + fmt.infinities] = 0  # a NaN is encoded without its sign
        return np.bitwise_or(codes, sign, out=codes)

    def _without_sign(self, codes: Array, bits: Array) -> Array:
        """There are no negative values: they become NaN, or the smallest value; minus zero is zero."""
        fmt, layout = self.fmt, self.layout
        magnitude = bits & layout.magnitude_mask
        negative = (bits < 0) & (magnitude <= layout.exponent_mask) & ((codes if fmt.has_zero else magnitude) != 0)
        if negative.any():
            codes[negative] = 0 if self.saturate or fmt.nan_code is None else fmt.nan_code
        return codes


class IntLane:
    """Conversion to an `IntFormat`: round to an integer, and stop at the ends of the range."""

    def __init__(self, fmt: IntFormat, layout: Layout, rounding: str, overflow: str) -> None:
        self.fmt, self.layout, self.rounding = fmt, layout, rounding
        self.lowest, self.highest = layout.float_type(fmt.min), layout.float_type(fmt.max)

    def cast(self, x: Array, out: Array, scratch: Scratch, noise: Array | None = None) -> bool:
        """Write the rounded values of a piece to `out`."""
        np.clip(x, self.lowest, self.highest, out=out)
        whole = {"nearest_even": np.rint, "toward_zero": np.trunc, "up": np.ceil, "down": np.floor}.get(self.rounding)
        if whole is not None:
            whole(out, out=out)
        elif self.rounding == "to_odd":
            self._to_odd(out, scratch)
        else:
            self._by_the_remainder(out, scratch, noise)
        np.add(out, 0, out=out)  # integers have one zero
        return True

    def _to_odd(self, out: Array, scratch: Scratch) -> None:
        """Replace what is no integer by the odd one of its neighbours, ``2 * floor(floor(x) / 2) + 1``."""
        below = np.floor(out, out=scratch("whole", self.layout.float_type, out.size))
        inexact = np.not_equal(below, out, out=scratch("over", bool, out.size))
        np.multiply(below, 0.5, out=below)
        np.floor(below, out=below)
        np.add(below, below, out=below)
        np.add(below, 1, out=below)
        np.copyto(out, below, where=inexact)

    def _by_the_remainder(self, out: Array, scratch: Scratch, noise: Array | None) -> None:
        whole = np.trunc(out, out=scratch("whole", self.layout.float_type, out.size))
        remainder = np.abs(out - whole)  # exact
        if self.rounding == "nearest_away":
            away = remainder >= 0.5
        else:
            assert noise is not None
            away = noise_rounds_up(remainder, noise)
        np.add(whole, np.copysign(away.astype(self.layout.float_type), out), out=out)

    def encode(self, x: Array, scratch: Scratch, noise: Array | None = None) -> Array:
        """Return the codes of a piece: int64, two's complement cut to the width."""
        rounded = scratch("rounded", self.layout.float_type, x.size)
        self.cast(x, rounded, scratch, noise)
        codes = scratch("codes", np.int64 if self.fmt.bits > 24 else np.int32, x.size)
        np.copyto(codes, rounded, casting="unsafe")
        return np.bitwise_and(codes, (1 << self.fmt.bits) - 1, out=codes)


class TableLane:
    """Conversion to a `TableFormat`: find the two neighbours in the table and choose. It stops at the table's ends.

    That is the law, `ranks`. Longer pieces look up what it would say, if the table is made for that (`Buckets`).
    """

    def __init__(self, fmt: TableFormat, layout: Layout, rounding: str, overflow: str) -> None:
        self.rounding, self.layout = rounding, layout
        self.values, self.codes = fmt.ordered
        self.middle, rest = fmt.thresholds.T.copy()
        self.middle[rest < 0] = np.nextafter(self.middle[rest < 0], -np.inf)  # the last float not above the true boundary
        even_above = (self.codes[1:] % 2 == 0) & (self.codes[:-1] % 2 == 1)
        tie = (rest == 0) & (self.middle > self.values[:-1])
        self.tie_up = tie & (even_above if rounding == "nearest_even" else self.values[1:] > 0)
        self.nan_code, self.saturate = fmt.nan_code, overflow == "saturate"
        nan_code = 0 if fmt.nan_code is None else fmt.nan_code  # a piece is free of NaN where the format has none
        self.values_by_rank = np.append(self.values, np.nan).astype(layout.float_type)
        self.codes_by_rank = np.append(self.codes, nan_code).astype(np.uint8 if fmt.bits <= 8 else np.int32)

    def cast(self, x: Array, out: Array, scratch: Scratch, noise: Array | None = None) -> bool:
        """Write the rounded values of a piece to `out`."""
        if self._looks_up(x):
            np.take(self._values_by_bucket, self._buckets.index(x, scratch), out=out, mode="clip")
        else:
            np.take(self.values_by_rank, self.ranks(x, noise), out=out, mode="clip")
        return True

    def encode(self, x: Array, scratch: Scratch, noise: Array | None = None) -> Array:
        """Return the codes of a piece, uint8 or int32; NaN gives the table's NaN."""
        codes = scratch("codes", self.codes_by_rank.dtype, x.size)
        if self._looks_up(x):
            return np.take(self._codes_by_bucket, self._buckets.index(x, scratch), out=codes, mode="clip")
        return np.take(self.codes_by_rank, self.ranks(x, noise), out=codes, mode="clip")

    # --- looking up ------------------------------------------------------------------------------------------------
    def _looks_up(self, x: Array) -> bool:
        return x.size >= LONG and self.rounding != "stochastic" and self._buckets.fit

    @cached_property
    def _buckets(self) -> Buckets:
        return Buckets(self.ranks, self.layout)

    @cached_property
    def _values_by_bucket(self) -> Array:
        return self.values_by_rank[self._buckets.ranks]

    @cached_property
    def _codes_by_bucket(self) -> Array:
        return self.codes_by_rank[self._buckets.ranks]

    # --- the law ---------------------------------------------------------------------------------------------------
    def ranks(self, x: Array, noise: Array | None = None) -> Array:
        """Return the place among the distinct values that each float of a piece goes to; NaN has the last one."""
        ranks = self._index(x, noise)
        if self.nan_code is not None:
            ranks[self._is_nan(x)] = len(self.values)
        return ranks

    def _is_nan(self, x: Array) -> Array:
        """What becomes NaN where the table has one: NaN, and infinities too unless they saturate."""
        return np.asarray(np.isnan(x) if self.saturate else ~np.isfinite(x))

    def _index(self, x: Array, noise: Array | None) -> Array:
        x = np.clip(x.astype(np.float64), self.values[0], self.values[-1])
        last = len(self.values) - 2
        low = np.clip(np.searchsorted(self.values, x, side="right") - 1, 0, last)
        below, above = self.values[low], self.values[low + 1]
        if self.rounding.startswith("nearest"):
            middle = self.middle[low]
            up = (x > middle) | ((x == middle) & self.tie_up[low])
        elif self.rounding == "toward_zero":
            up = (x < 0) & (x > below)
        elif self.rounding == "up":
            up = x > below
        elif self.rounding == "down":
            up = np.zeros(x.shape, bool)
        elif self.rounding == "to_odd":
            up = (x > below) & (self.codes[low] % 2 == 0)
        else:
            assert noise is not None
            up = noise_rounds_up((x - below) / (above - below), noise)
        return np.asarray(low + (up | (x == above)))
