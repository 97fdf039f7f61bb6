"""Faster spellings of the law of rounding, for pieces of an array that are ordinary. Each agrees with it to the last bit.

* `AddLane`: adding ``1.5 * 2**k`` to a float pushes the bits that must go out of its lower end, where the processor
  itself rounds them, ties to even; subtracting it again leaves the rounded value. What the other roundings do
  differently follows from the difference to the exact value, which is itself exact.
* `CarryLane`, for a format with the exponent field of the float it comes from (bfloat16 from float32): the kept bits are
  the upper ones, and rounding is an addition whose carry runs into them.
* `ExponentLane`, for float8_e8m0fnu: the same, for positive numbers of which only the exponent is kept.

A lane's `cast` writes rounded values and returns True, or returns False for a piece it is not made for.
"""

from __future__ import annotations

import math

import numpy as np

from qlab._pieces import Array, Scratch
from qlab.number.bits import FLOAT32, Layout
from qlab.number.formats import FloatFormat

__all__ = ["AddLane", "CarryLane", "ExponentLane", "fast_lane"]


def fast_lane(fmt: FloatFormat, layout: Layout, rounding: str, saturate: bool) -> AddLane | CarryLane | ExponentLane | None:
    """Return the fast lane that is made for a format, if there is one."""
    top = math.frexp(fmt.max)[1] - 1
    drop = layout.mantissa_bits - fmt.mantissa_bits
    if fmt == FloatFormat(fmt.name, 8, 0, 127, infinities=False, nans="all_ones", subnormals=False, signed=False):
        return ExponentLane(fmt, rounding, saturate) if layout is FLOAT32 else None
    if not (fmt.signed and fmt.subnormals and fmt.mantissa_bits >= 1 and drop >= 2) or top < fmt.emin:
        return None
    room = 33 if rounding == "stochastic" else 0  # for 2**32 steps
    if top + 1 + drop <= layout.bias and fmt.emin + layout.bias > fmt.mantissa_bits + room:
        return AddLane(fmt, layout, rounding, saturate)
    if (fmt.bias, top) == (layout.bias, layout.bias) and fmt.infinities and fmt.nans == "ieee":
        return CarryLane(fmt, layout, rounding, saturate)
    return None


class AddLane:
    """Add and subtract."""

    def __init__(self, fmt: FloatFormat, layout: Layout, rounding: str, saturate: bool) -> None:
        self.fmt, self.layout, self.rounding = fmt, layout, rounding
        self.clamps = saturate or (fmt.infinity_code is None and fmt.nan_code is None)
        self.drop = layout.mantissa_bits - fmt.mantissa_bits
        top = math.frexp(fmt.max)[1] - 1  # exponent of the highest binade
        self.low_field = (fmt.emin + layout.bias) << layout.mantissa_bits
        self.top_field = (top + layout.bias) << layout.mantissa_bits
        self.beyond_field = self.top_field + (1 << layout.mantissa_bits)
        self.push = (self.drop << layout.mantissa_bits) | (1 << (layout.mantissa_bits - 1))
        self.limit = layout.float_type(fmt.max)
        self.beyond = layout.float_type(math.ldexp(1.0, top + 1))  # overflows; what is below it is left alone
        self.to_step = self.push + (fmt.mantissa_bits << layout.mantissa_bits)

    def cast(self, x: Array, out: Array, scratch: Scratch, noise: Array | None = None) -> bool:
        """Write the rounded values of a piece."""
        layout, fmt, n, source = self.layout, self.fmt, x.size, x
        in_place = out.ctypes.data == x.ctypes.data
        sign = self._sign(x, scratch("sign", layout.int_type, n)) if in_place else None
        field = scratch("field", layout.int_type, n)
        if self.clamps:
            x = np.clip(x, -self.limit, self.limit, out=out)
        np.bitwise_and(x.view(layout.int_type), layout.exponent_mask, out=field)
        large = not self.clamps and field.max() >= self.top_field
        if large:
            if self.rounding != "nearest_even":
                return False
            x = np.clip(x, -self.beyond, self.beyond, out=out)
        if self.rounding in ("toward_zero", "nearest_away", "to_odd", "stochastic"):  # symmetric: round the magnitude
            x = np.abs(x, out=scratch("magnitude", layout.float_type, n))
        np.clip(field, self.low_field, self.beyond_field if large else self.top_field, out=field)
        np.add(field, self.push, out=field)
        pushed = field.view(layout.float_type)
        if self.rounding == "nearest_even":
            np.add(x, pushed, out=out)
            np.subtract(out, pushed, out=out)
        else:
            self._correct(x, field, pushed, out, scratch, noise)
        if large:
            over = np.greater(np.abs(out, out=pushed), self.limit, out=scratch("over", bool, n))
            np.copyto(out, np.inf if fmt.infinities else np.nan, where=over)
        if sign is None:
            sign = self._sign(source, field)
        np.bitwise_or(out.view(layout.int_type), sign, out=out.view(layout.int_type))
        if not fmt.has_negative_zero:
            np.add(out, 0, out=out)
        return True

    def _sign(self, x: Array, out: Array) -> Array:
        return np.bitwise_and(x.view(self.layout.int_type), ~self.layout.magnitude_mask, out=out)

    def _correct(self, x: Array, field: Array, pushed: Array, out: Array, scratch: Scratch, noise: Array | None) -> None:
        """Round to nearest, and go one step back or on where the rounding wants the other neighbour."""
        layout, n, rounding = self.layout, x.size, self.rounding
        up = np.add(x, pushed, out=scratch("rounded", layout.float_type, n))
        even = None
        if rounding == "to_odd":  # the last bit of the sum is that of the code
            even = np.bitwise_and(up.view(layout.int_type), 1, out=scratch("even", layout.int_type, n))
            np.subtract(even, 1, out=even)  # all ones where even, else zero
        nearest = np.subtract(up, pushed, out=up)
        step = np.subtract(field, self.to_step, out=field)  # bits of the step
        rest = np.subtract(x, nearest, out=scratch("rest", layout.float_type, n))  # exact
        rest_bits = rest.view(layout.int_type)
        if rounding in ("toward_zero", "down", "stochastic"):  # a step back where the nearest lies above
            np.add(rest, 0, out=rest)  # minus zero is not below
            self._where_negative(rest_bits, step)
            np.subtract(nearest, rest, out=out)
            if rounding == "stochastic":
                assert noise is not None
                self._throw(x, out, step, scratch, noise)
        elif rounding == "up":  # a step on where it lies below
            np.subtract(nearest, x, out=rest)
            self._where_negative(rest_bits, step)
            np.add(nearest, rest, out=out)
        elif rounding == "nearest_away":  # a step on where it lies below by half a step
            np.add(rest, rest, out=rest)
            np.subtract(rest, step.view(layout.float_type), out=rest)
            np.right_shift(rest_bits, layout.width - 1, out=rest_bits)
            np.invert(rest_bits, out=rest_bits)
            np.bitwise_and(rest_bits, step, out=rest_bits)
            np.add(nearest, rest, out=out)
        else:  # to odd: from an even neighbour on or back to the other one, unless exact
            assert even is not None
            inexact = np.not_equal(rest, 0, out=scratch("over", bool, n))
            np.bitwise_and(rest_bits, ~layout.magnitude_mask, out=rest_bits)
            np.bitwise_and(step, even, out=step)
            np.bitwise_or(rest_bits, step, out=rest_bits)
            np.multiply(rest, inexact.view(np.int8), out=rest)
            np.add(nearest, rest, out=out)

    def _where_negative(self, rest_bits: Array, step: Array) -> None:
        """Replace negative rests by a step, others by zero."""
        np.right_shift(rest_bits, self.layout.width - 1, out=rest_bits)
        np.bitwise_and(rest_bits, step, out=rest_bits)

    def _throw(self, x: Array, out: Array, step: Array, scratch: Scratch, noise: Array) -> None:
        """Go a step on where the first N bits of the rest, as a share of the step, and the noise reach one."""
        layout, n, width = self.layout, x.size, noise.dtype.itemsize * 8
        share = np.subtract(x, out, out=scratch("rest", layout.float_type, n))
        scale = scratch("even", layout.int_type, n)  # 2**width / step: exponents subtract
        exponent = (2 * layout.bias + width) << layout.mantissa_bits  # the difference fits again
        np.subtract(exponent - (1 << layout.width), step, out=scale)
        np.multiply(share, scale.view(layout.float_type), out=share)
        thrown = scratch("thrown", np.int64 if width == 32 else np.int32, n)
        np.copyto(thrown, share, casting="unsafe")  # cuts: the first N bits
        np.add(thrown, noise, out=thrown, casting="unsafe")
        on = np.greater_equal(thrown, 1 << width, out=scratch("over", bool, n))
        np.multiply(step.view(layout.float_type), on.view(np.int8), out=share)
        np.add(out, share, out=out)

    def encode(self, x: Array, scratch: Scratch, noise: Array | None = None) -> Array | None:
        """Return the magnitudes' codes of a piece, above ``max_code`` where they overflow; None if not made for it."""
        layout = self.layout
        if self.rounding != "nearest_even":
            rounded = scratch("cast", layout.float_type, x.size)
            if not self.cast(x, rounded, scratch, noise):
                return None
            x = rounded  # whose nearest code is its own
        field = np.bitwise_and(x.view(layout.int_type), layout.exponent_mask, out=scratch("field", layout.int_type, x.size))
        magnitude = np.abs(x, out=scratch("magnitude", layout.float_type, x.size))
        if field.max() >= self.top_field:
            np.fmin(magnitude, self.beyond, out=magnitude)
        np.clip(field, self.low_field, self.beyond_field, out=field)
        pushed = np.add(field, self.push, out=field)
        np.add(magnitude, pushed.view(layout.float_type), out=magnitude)
        codes = magnitude.view(layout.int_type)
        np.subtract(codes, pushed, out=codes)  # the rounded significand, an integer
        np.right_shift(pushed, self.drop, out=pushed)  # the exponent, where a code has it
        np.add(codes, pushed, out=codes)
        return np.subtract(codes, (self.low_field + self.push) >> self.drop, out=codes)


class CarryLane:
    """Same exponent: an integer addition whose carry runs into the bits that are kept."""

    def __init__(self, fmt: FloatFormat, layout: Layout, rounding: str, saturate: bool) -> None:
        self.fmt, self.layout, self.rounding = fmt, layout, rounding
        self.drop = layout.mantissa_bits - fmt.mantissa_bits
        self.below = (1 << self.drop) - 1  # mask of the bits that go
        top_field = (2 * layout.bias) << layout.mantissa_bits
        self.limit = top_field if saturate else layout.exponent_mask

    def cast(self, x: Array, out: Array, scratch: Scratch, noise: Array | None = None) -> bool:
        """Write the rounded values of a piece; not for pieces with infinities, NaN, or what may saturate."""
        if not self._add(x, out.view(self.layout.int_type), scratch, noise):
            return False
        result = out.view(self.layout.int_type)
        np.bitwise_and(result, ~self.below, out=result)
        return True

    def _add(self, x: Array, result: Array, scratch: Scratch, noise: Array | None) -> bool:
        bits = x.view(self.layout.int_type)
        field = np.bitwise_and(bits, self.layout.exponent_mask, out=scratch("field", self.layout.int_type, x.size))
        if field.max() >= self.limit:
            return False
        np.add(bits, self.addend(bits, field, scratch, noise), out=result)
        return True

    def addend(self, bits: Array, spare: Array, scratch: Scratch, noise: Array | None) -> Array | int:
        """What to add before cutting."""
        rounding, drop, half = self.rounding, self.drop, 1 << (self.drop - 1)
        if rounding == "toward_zero":
            return 0
        if rounding == "nearest_away":
            return half
        if rounding == "nearest_even":  # just under half a step, or half a step where the kept part is odd
            np.right_shift(bits, drop, out=spare)
            np.bitwise_and(spare, 1, out=spare)
            return np.add(spare, half - 1, out=spare)
        if rounding in ("up", "down"):  # just under a step, for one of the signs
            np.right_shift(bits, self.layout.width - 1, out=spare)
            if rounding == "up":
                np.invert(spare, out=spare)
            return np.bitwise_and(spare, self.below, out=spare)
        if rounding == "to_odd":  # just under a step, unless the kept part is odd already
            np.right_shift(bits, drop, out=spare)
            np.bitwise_and(spare, 1, out=spare)
            np.subtract(spare, 1, out=spare)
            return np.bitwise_and(spare, self.below, out=spare)
        assert noise is not None
        by = noise.dtype.itemsize * 8 - drop
        np.copyto(spare, np.right_shift(noise, by) if by > 0 else noise, casting="unsafe")
        if by >= 0:
            return spare
        np.left_shift(spare, -by, out=spare)  # fewer noise bits: the rest is cut to as many, see `_cut`
        low = np.bitwise_and(bits, (1 << -by) - 1, out=scratch("even", self.layout.int_type, bits.size))
        return np.subtract(spare, low, out=spare)

    def encode(self, x: Array, scratch: Scratch, noise: Array | None = None) -> Array | None:
        """Return the codes of a piece; None if not made for it."""
        codes = scratch("cast", self.layout.int_type, x.size)
        if not self._add(x, codes, scratch, noise):
            return None
        np.right_shift(codes, self.drop, out=codes)
        return np.bitwise_and(codes, (1 << self.fmt.bits) - 1, out=codes)


class ExponentLane:
    """float8_e8m0fnu from float32."""

    def __init__(self, fmt: FloatFormat, rounding: str, saturate: bool) -> None:
        self.fmt, self.rounding, self.saturate = fmt, rounding, saturate
        self.carry = CarryLane(fmt, FLOAT32, rounding, saturate)
        self.zero, self.nan = np.uint32(0), np.uint32(0x7FC00000)

    def cast(self, x: Array, out: Array, scratch: Scratch, noise: Array | None = None) -> bool:
        """Write the rounded values of a piece that is ordinary: no tiny numbers, no minus zero, nothing that overflows."""
        bits = x.view(np.uint32)
        rounded = scratch("rounded", np.uint32, x.size)
        if self.rounding == "nearest_even":
            self._to_nearest_even(bits, rounded, scratch)
        else:
            spare = scratch("field", np.int32, x.size)
            addend = self.carry.addend(x.view(np.int32), spare, scratch, noise)
            np.add(x.view(np.int32), addend, out=rounded.view(np.int32))
        np.bitwise_and(rounded, 0xFF800000, out=rounded)
        signed = rounded.view(np.int32)
        lowest, highest = np.minimum.reduce(signed), np.maximum.reduce(signed)
        tiny = lowest == -(1 << 31) or np.minimum.reduce(rounded) <= 0x800000
        if tiny or highest >= 0x7F800000 or (lowest < 0 and self.saturate):
            return False  # 2**-126 and below, where floats are subnormal; minus zero; what overflows
        np.clip(rounded, self.zero, self.nan, out=out.view(np.uint32))  # what has a sign becomes NaN
        return True

    def _to_nearest_even(self, bits: Array, rounded: Array, scratch: Scratch) -> None:
        np.add(bits, 0x3FFFFF, out=rounded)  # just under half a step
        rest = np.bitwise_or(rounded, 0xFF800000, out=scratch("rest bits", np.uint32, bits.size))
        if np.maximum.reduce(rest) == 0xFFFFFFFF:  # half a step exactly: half a step more where the exponent is odd
            np.right_shift(bits, 23, out=rest)
            np.bitwise_and(rest, 1, out=rest)
            np.add(rounded, rest, out=rounded)

    def encode(self, x: Array, scratch: Scratch, noise: Array | None = None) -> Array | None:
        """Return the codes of a piece for which `cast` is made, else None."""
        values = scratch("cast", np.float32, x.size)
        if not self.cast(x, values, scratch, noise):
            return None
        codes = values.view(np.int32)
        return np.right_shift(codes, 23, out=codes)
