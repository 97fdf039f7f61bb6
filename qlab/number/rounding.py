"""The law of rounding: from the bits of a float to the code of a format, by integer arithmetic alone.

A float is ``significand * 2**(exponent - mantissa_bits)``, both integers. To write it with fewer bits, shift the
significand to the right; what falls out, the *remainder*, decides whether to add one. Subnormals shift further. A carry
out of the fraction runs into the exponent field, which is just what it should do. Every other way of rounding in this
package is a faster spelling of `round_magnitudes` and is tested against it.
"""

from __future__ import annotations

import numpy as np

from qlab._pieces import Array, Scratch
from qlab.number.bits import Layout
from qlab.number.formats import FloatFormat

__all__ = ["ROUNDINGS", "noise_rounds_up", "round_magnitudes", "round_up"]

ROUNDINGS = ("nearest_even", "nearest_away", "toward_zero", "up", "down", "to_odd", "stochastic")

_GUARD = 2  # zero bits put below the significand, so that every shift is at least 2


def round_magnitudes(
    bits: Array,
    layout: Layout,
    fmt: FloatFormat,
    rounding: str,
    scratch: Scratch,
    noise: Array | None = None,
) -> Array:
    """Round the magnitudes of finite floats to codes of `fmt`, as if its exponent had no upper end.

    Parameters
    ----------
    bits : int32 or int64 array of shape (n,)
        Bits of the floats; not changed. NaN and infinities give codes without meaning.
    layout : Layout
        Where exponent and fraction lie in `bits`.
    fmt : FloatFormat
        Target, of no more mantissa bits than the layout.
    rounding : str
        One of `ROUNDINGS`.
    noise : unsigned integer array of shape (n,)
        For ``stochastic``: uniform over its dtype, N bits. It rounds up if the first N bits of the remainder, as a
        fraction of a step, and the noise add up to one or more.

    Returns
    -------
    codes : array like `bits`, in scratch memory
        Magnitudes (no sign bit); above ``fmt.max_code`` where the value overflows.
    """
    n, one = bits.size, layout.int_type(1)
    mantissa, drop = layout.mantissa_bits, layout.mantissa_bits - fmt.mantissa_bits
    lowest = fmt.emin + layout.bias  # exponent field of the format's lowest binade, in the layout

    # exponent field, significand with its leading one (subnormals of the layout have none, and exponent field 1)
    field = np.bitwise_and(bits, layout.magnitude_mask, out=scratch("field", layout.int_type, n))
    np.right_shift(field, mantissa, out=field)
    significand = np.bitwise_and(bits, (1 << mantissa) - 1, out=scratch("significand", layout.int_type, n))
    leading = np.minimum(field, one, out=scratch("shift", layout.int_type, n))
    np.left_shift(leading, mantissa, out=leading)
    np.bitwise_or(significand, leading, out=significand)
    np.left_shift(significand, _GUARD, out=significand)
    np.maximum(field, one, out=field)

    # how many bits fall out: more and more below the lowest binade, until nothing but a remainder is left
    shift = np.subtract(lowest, field, out=leading)
    np.maximum(shift, 0, out=shift)
    np.add(shift, drop + _GUARD, out=shift)
    whole_shift = shift.astype(np.int64) if rounding == "stochastic" else shift
    np.minimum(shift, mantissa + _GUARD + 2, out=shift)
    codes = np.right_shift(significand, shift, out=scratch("codes", layout.int_type, n))
    step = np.left_shift(one, shift, out=scratch("step", layout.int_type, n))
    below_step = np.subtract(step, one, out=scratch("spare", layout.int_type, n))
    remainder = np.bitwise_and(significand, below_step, out=significand)

    # the exponent, counted from the lowest binade, stands above the fraction; the leading one of the significand adds 1
    np.subtract(field, lowest, out=field)
    np.maximum(field, 0, out=field)
    np.left_shift(field, fmt.mantissa_bits, out=field)
    np.add(codes, field, out=codes)
    if not fmt.subnormals:
        np.subtract(codes, 1 << fmt.mantissa_bits, out=codes)

    up = round_up(codes, remainder, step, whole_shift, bits, rounding, scratch, noise)
    np.add(codes, up, out=codes)
    if not fmt.subnormals:
        _below_the_lowest_binade(codes, bits, layout, fmt, rounding, noise)
    return codes


def round_up(
    codes: Array,
    remainder: Array,
    step: Array,
    shift: Array,
    bits: Array,
    rounding: str,
    scratch: Scratch,
    noise: Array | None,
) -> Array:
    """Whether to add one to each code, given the remainder in units in which a step is `step` (a power of two).

    `shift` is the exponent of the step, as it would be were remainders not cut; the sign is that of `bits`. Remainders
    and steps serve as scratch memory.
    """
    if rounding == "toward_zero":
        return np.zeros((), bool)
    if rounding in ("nearest_even", "nearest_away"):
        np.left_shift(remainder, 1, out=remainder)
        if rounding == "nearest_even":  # half a step is a tie: up only from an odd code, for which `step` is lowered by 1
            odd = np.bitwise_and(codes, 1, out=scratch("spare", codes.dtype, codes.size))
            np.subtract(step, odd, out=step)
            return np.greater(remainder, step, out=scratch("up", bool, codes.size))
        return np.greater_equal(remainder, step, out=scratch("up", bool, codes.size))
    if rounding == "stochastic":
        assert noise is not None
        return _noise_rounds_up(remainder, shift, noise)
    inexact = np.not_equal(remainder, 0, out=scratch("up", bool, codes.size))
    if rounding == "to_odd":
        return np.asarray(np.logical_and(inexact, np.bitwise_and(codes, 1) == 0, out=inexact))
    negative = np.less(bits, 0, out=scratch("negative", bool, codes.size))
    and_or = np.greater if rounding == "up" else np.logical_and  # inexact and not negative, inexact and negative
    return np.asarray(and_or(inexact, negative, out=inexact))


def _noise_rounds_up(remainder: Array, shift: Array, noise: Array) -> Array:
    """floor(remainder / 2**shift * 2**N) + noise >= 2**N, N the width of `noise`, in 64-bit unsigned integers."""
    width = noise.dtype.itemsize * 8
    wide, by = remainder.astype(np.uint64), shift - width
    left = np.left_shift(wide, np.maximum(-by, 0).astype(np.uint64))
    top = np.right_shift(left, np.clip(by, 0, 63).astype(np.uint64))  # below 2**N
    return np.asarray(top + noise.astype(np.uint64) >= np.uint64(1 << width))


def _below_the_lowest_binade(
    codes: Array, bits: Array, layout: Layout, fmt: FloatFormat, rounding: str, noise: Array | None
) -> None:
    """Without subnormals, only zero lies below the smallest value, or nothing at all: correct the codes there."""
    magnitude = np.abs(bits.view(layout.float_type)).astype(np.float64)
    smallest = fmt.smallest_subnormal
    if not fmt.has_zero:
        codes[magnitude <= smallest] = 0
        return
    low = magnitude < smallest
    fraction, negative = magnitude[low] / smallest, bits[low] < 0
    if rounding == "stochastic":
        assert noise is not None
        up = noise_rounds_up(fraction, noise[low])
    elif rounding == "nearest_even":
        up = fraction > 0.5
    elif rounding == "nearest_away":
        up = fraction >= 0.5
    else:
        up = magnitude[low] > 0  # of the tiniest, the fraction is zero
        if rounding in ("up", "down"):
            up &= negative == (rounding == "down")
        elif rounding == "toward_zero":
            up[:] = False
    codes[low] = up


def noise_rounds_up(fraction: Array, noise: Array) -> Array:
    """Whether the first N bits of `fraction` (in [0, 1)) and `noise` (N random bits) add up to one or more."""
    scale = 2.0 ** (noise.dtype.itemsize * 8)
    return np.asarray(np.floor(fraction.astype(np.float64) * scale) + noise.astype(np.float64) >= scale)
