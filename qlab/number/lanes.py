"""What happens to one piece of an array: a lane turns floats that lie in the cache into codes or rounded values.

For floating-point formats there are three spellings of the same rounding, which agree to the last bit:

* the *law*, `rounding.round_magnitudes`: integers, for every format and rounding;
* *add and subtract*, for nearest-even: adding ``1.5 * 2**k`` pushes the bits that must go out of the float's lower end,
  where the processor itself rounds them, ties to even; subtracting it again leaves the rounded value;
* *same exponent*, for a format with the exponent field of the float it comes from (bfloat16 from float32): a carry.

Pieces are contiguous, of shape (n,) and dtype ``layout.float_type``, and free of NaN where the format has none.
"""

from __future__ import annotations

import math

import numpy as np

from qlab._pieces import Array, Scratch
from qlab.number.bits import Layout
from qlab.number.formats import FloatFormat, IntFormat, TableFormat
from qlab.number.rounding import noise_rounds_up, round_magnitudes

__all__ = ["FloatLane", "IntLane", "TableLane"]


class FloatLane:
    """The constants of a conversion to a `FloatFormat`, and the lanes that use them."""

    def __init__(self, fmt: FloatFormat, layout: Layout, rounding: str, overflow: str) -> None:
        self.fmt, self.layout, self.rounding = fmt, layout, rounding
        self.saturate = overflow == "saturate"
        self.clamps = self.saturate or (fmt.infinity_code is None and fmt.nan_code is None)
        self.drop = layout.mantissa_bits - fmt.mantissa_bits
        top = math.frexp(fmt.max)[1] - 1  # exponent of the highest binade
        self.low_field = (fmt.emin + layout.bias) << layout.mantissa_bits
        self.top_field = (top + layout.bias) << layout.mantissa_bits
        regular = rounding == "nearest_even" and fmt.subnormals and fmt.mantissa_bits >= 1 and fmt.signed
        self.adds = regular and self.drop >= 2 and top + 1 + self.drop <= layout.bias
        self.carries = (
            regular and self.drop >= 1 and fmt.bias == layout.bias and fmt.infinities and fmt.nans == "ieee"
        ) and top == layout.bias
        self.push = (self.drop << layout.mantissa_bits) | (1 << (layout.mantissa_bits - 1))
        self.beyond = math.ldexp(1.0, min(top + 1, layout.bias))  # overflows; what is below it is left alone
        self.beyond_field = self.top_field + (1 << layout.mantissa_bits)
        self.sign = fmt.sign_mask - (1 << layout.width) * (fmt.bits == layout.width)  # as a signed integer

    def encode(self, x: Array, scratch: Scratch, noise: Array | None = None) -> Array:
        """Return the codes of a piece: integers of the layout's width, in scratch memory."""
        bits = x.view(self.layout.int_type)
        if self.adds:
            codes = self._encode_by_adding(x, bits, scratch)
        elif self.carries and not self._has_large(bits, scratch):
            return self._carry(bits, scratch("codes", self.layout.int_type, x.size), scratch)
        else:
            codes = round_magnitudes(bits, self.layout, self.fmt, self.rounding, scratch, noise)
            self._overflow(codes, bits)
        return self._with_sign(codes, bits, scratch)

    def cast(self, x: Array, out: Array, scratch: Scratch, noise: Array | None = None) -> bool:
        """Write the rounded values of a piece to `out` if a fast lane can; say whether it could."""
        bits = x.view(self.layout.int_type)
        if self.adds:
            self._cast_by_adding(x, bits, out, scratch)
        elif self.carries and not self._has_large(bits, scratch):
            codes = self._carry(bits, out.view(self.layout.int_type), scratch)
            np.left_shift(codes, self.drop, out=codes)
        else:
            return False
        return True

    # --- add and subtract ------------------------------------------------------------------------------------------
    def _cast_by_adding(self, x: Array, bits: Array, out: Array, scratch: Scratch) -> None:
        layout, limit = self.layout, self.fmt.max if self.clamps else self.beyond
        field = np.bitwise_and(bits, layout.exponent_mask, out=scratch("field", layout.int_type, x.size))
        large = field.max() >= self.top_field
        sign = np.bitwise_and(bits, ~layout.magnitude_mask, out=scratch("sign", layout.int_type, x.size))
        if large:
            clipped = scratch("clipped", layout.float_type, x.size)
            x = np.clip(x, layout.float_type(-limit), layout.float_type(limit), out=clipped)
            np.minimum(field, self.top_field if self.clamps else self.beyond_field, out=field)
        np.maximum(field, self.low_field, out=field)
        pushed = np.add(field, self.push, out=field).view(layout.float_type)
        np.add(x, pushed, out=out)
        np.subtract(out, pushed, out=out)
        if large and not self.clamps:
            over = np.greater(np.abs(out, out=pushed), self.fmt.max, out=scratch("over", bool, x.size))
            np.copyto(out, np.inf if self.fmt.infinities else np.nan, where=over)
        np.bitwise_or(out.view(layout.int_type), sign, out=out.view(layout.int_type))
        if not self.fmt.has_negative_zero:
            np.add(out, 0, out=out)

    def _encode_by_adding(self, x: Array, bits: Array, scratch: Scratch) -> Array:
        layout = self.layout
        field = np.bitwise_and(bits, layout.exponent_mask, out=scratch("field", layout.int_type, x.size))
        highest = field.max()
        magnitude = np.abs(x, out=scratch("magnitude", layout.float_type, x.size))
        if highest >= self.top_field:
            np.fmin(magnitude, layout.float_type(self.beyond), out=magnitude)
            np.minimum(field, self.beyond_field, out=field)
        np.maximum(field, self.low_field, out=field)
        pushed = np.add(field, self.push, out=field)
        np.add(magnitude, pushed.view(layout.float_type), out=magnitude)
        codes = magnitude.view(layout.int_type)
        np.subtract(codes, pushed, out=codes)  # the rounded significand, an integer
        np.right_shift(pushed, self.drop, out=pushed)  # the exponent, where a code has it
        np.add(codes, pushed, out=codes)
        np.subtract(codes, (self.low_field + self.push) >> self.drop, out=codes)
        if highest >= self.top_field:
            if self.clamps and highest < layout.exponent_mask:
                np.minimum(codes, self.fmt.max_code, out=codes)
            else:
                self._overflow(codes, bits)
        return codes

    # --- same exponent ---------------------------------------------------------------------------------------------
    def _has_large(self, bits: Array, scratch: Scratch) -> bool:
        field = np.bitwise_and(bits, self.layout.exponent_mask, out=scratch("field", self.layout.int_type, bits.size))
        return bool(field.max() >= (self.top_field if self.saturate else self.layout.exponent_mask))

    def _carry(self, bits: Array, codes: Array, scratch: Scratch) -> Array:
        """Add just under half a step, or half a step where the kept part is odd, and cut."""
        odd = np.right_shift(bits, self.drop, out=scratch("spare", self.layout.int_type, bits.size))
        np.bitwise_and(odd, 1, out=odd)
        np.add(odd, (1 << (self.drop - 1)) - 1, out=odd)
        np.add(bits, odd, out=codes)
        np.right_shift(codes, self.drop, out=codes)
        return np.bitwise_and(codes, (1 << self.fmt.bits) - 1, out=codes)

    # --- what all lanes share --------------------------------------------------------------------------------------
    def _overflow(self, codes: Array, bits: Array) -> None:
        """Correct the codes (magnitudes) above the largest one: what overflows, infinities and NaN."""
        fmt, layout = self.fmt, self.layout
        over = np.greater(codes, fmt.max_code)
        if not over.any():
            return
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
        if not fmt.has_negative_zero:
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
        else:
            self._by_the_remainder(out, scratch, noise)
        np.add(out, 0, out=out)  # integers have one zero
        return True

    def _by_the_remainder(self, out: Array, scratch: Scratch, noise: Array | None) -> None:
        whole = np.trunc(out, out=scratch("whole", self.layout.float_type, out.size))
        remainder = np.abs(out - whole)  # exact
        if self.rounding == "nearest_away":
            away = remainder >= 0.5
        elif self.rounding == "to_odd":
            away = (remainder > 0) & (np.remainder(whole, 2) == 0)
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
    """Conversion to a `TableFormat`: find the two neighbours in the table and choose. It stops at the table's ends."""

    def __init__(self, fmt: TableFormat, layout: Layout, rounding: str, overflow: str) -> None:
        self.fmt, self.rounding = fmt, rounding
        table = fmt.values()
        self.values, codes = np.unique(table[~np.isnan(table)], return_index=True)  # ascending; first code of each value
        self.codes = np.flatnonzero(~np.isnan(table))[codes]
        below, above = self.values[:-1], self.values[1:]
        total = below + above
        lost = (below - (total - above)) + (above - (total - (total - above)))  # of the sum, exactly
        self.middle = total / 2
        self.middle[lost < 0] = np.nextafter(self.middle[lost < 0], -np.inf)  # the last float not above the true middle
        even_above = (self.codes[1:] % 2 == 0) & (self.codes[:-1] % 2 == 1)
        self.tie_up = (lost == 0) & (even_above if rounding == "nearest_even" else above > 0)

    def cast(self, x: Array, out: Array, scratch: Scratch, noise: Array | None = None) -> bool:
        """Write the rounded values of a piece to `out`."""
        np.copyto(out, self.values[self._index(x, noise)], casting="same_kind")
        return True

    def encode(self, x: Array, scratch: Scratch, noise: Array | None = None) -> Array:
        """Return the codes of a piece, int64; NaN gives the table's NaN."""
        codes = self.codes[self._index(x, noise)]
        if self.fmt.nan_code is not None:
            codes[np.isnan(x)] = self.fmt.nan_code
        return codes

    def _index(self, x: Array, noise: Array | None) -> Array:
        x = np.clip(x.astype(np.float64), self.values[0], self.values[-1])
        last = len(self.values) - 2
        low = np.clip(np.searchsorted(self.values, x, side="right") - 1, 0, last)
        below, above = self.values[low], self.values[low + 1]
        if self.rounding.startswith("nearest"):
            middle = self.middle[low]
            return np.asarray(low + ((x > middle) | ((x == middle) & self.tie_up[low])))
        if self.rounding == "toward_zero":
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
