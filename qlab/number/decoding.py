"""From codes to values, a piece at a time: by looking up, two at a time where a code is a byte; wide codes by their fields."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from qlab._pieces import Array, Scratch
from qlab.number.formats import FloatFormat, Format, IntFormat, get_format

__all__ = ["decoder_of"]


@lru_cache(maxsize=256)
def _lookup(fmt: Format, kind: str) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return fmt.values().astype(kind)


def decoder_of(fmt: Format, source: np.dtype[Any], kind: np.dtype[Any]) -> Callable[[Array, Array, Scratch], None]:
    """Return what turns a piece of codes into values: by looking up, two at a time where a code is a byte."""
    if _is_upper_part_of_float32(fmt) and source == np.int32 and kind == np.float32:
        return _decode_by_shifting(fmt)
    if fmt.bits > 16:
        return _decode_by_fields(fmt)
    table = _lookup(fmt, kind.str)
    mask = (1 << fmt.bits) - 1

    def look_up(codes: Array, out: Array, scratch: Scratch) -> None:
        index = scratch("index", np.intp, codes.size)
        np.copyto(index, codes, casting="unsafe")
        np.bitwise_and(index, mask, out=index)
        np.take(table, index, out=out, mode="clip")

    if source != np.uint8 or fmt.bits > 8 or kind != np.float32:
        return look_up
    pairs = _pair_lookup(fmt)

    def look_up_pairs(codes: Array, out: Array, scratch: Scratch) -> None:
        even = codes.size & ~1
        if even and codes.flags.c_contiguous:
            index = scratch("index", np.intp, even // 2)
            np.copyto(index, codes[:even].view(np.uint16))
            np.take(pairs, index, out=out[:even].view(np.float64), mode="clip")
            codes, out = codes[even:], out[even:]
        look_up(codes, out, scratch)

    return look_up_pairs


@lru_cache(maxsize=64)
def _pair_lookup(fmt: Format) -> Array:
    """Two float32 for each pair of codes, in one float64 that is only carried, never computed with."""
    values = _lookup(fmt, np.dtype(np.float32).str)
    codes = np.arange(256) & ((1 << fmt.bits) - 1)
    of_byte = values[np.minimum(codes, len(values) - 1)]
    pairs = np.empty((256, 256, 2), np.float32)
    pairs[..., 0], pairs[..., 1] = of_byte[None, :], of_byte[:, None]  # a little-endian machine's order
    if np.little_endian is False:  # pragma: no cover
        pairs = pairs[..., ::-1]
    return np.ascontiguousarray(pairs).view(np.float64).reshape(-1)


def _is_upper_part_of_float32(fmt: Format) -> bool:
    if not isinstance(fmt, FloatFormat) or not 1 <= fmt.mantissa_bits < 23:
        return False
    return fmt == FloatFormat(fmt.name, 8, fmt.mantissa_bits)


def _decode_by_shifting(fmt: Format) -> Callable[[Array, Array, Scratch], None]:
    by = 32 - fmt.bits

    def shift(codes: Array, out: Array, scratch: Scratch) -> None:
        np.left_shift(codes, by, out=out.view(np.int32))
        if out.size and np.isnan(out.max()):
            out[np.isnan(out)] = np.nan  # whatever its code: one NaN

    return shift


def _decode_by_fields(fmt: Format) -> Callable[[Array, Array, Scratch], None]:
    if fmt.bits > 32 or fmt == get_format("float32"):  # the machine's own floats

        def reinterpret(codes: Array, out: Array, scratch: Scratch) -> None:
            own = np.float64 if fmt.bits > 32 else np.float32
            np.copyto(out, codes.astype(np.int64 if fmt.bits > 32 else np.int32).view(own), casting="unsafe")

        return reinterpret

    def compute(codes: Array, out: Array, scratch: Scratch) -> None:
        code = codes.astype(np.int64) & ((1 << fmt.bits) - 1)
        if isinstance(fmt, IntFormat):
            np.copyto(out, np.where(code > int(fmt.max), code - (1 << fmt.bits), code), casting="unsafe")
            return
        assert isinstance(fmt, FloatFormat)
        magnitude = code & fmt.magnitude_mask
        out[:] = fmt.magnitudes(magnitude)
        np.negative(out, out=out, where=(code & fmt.sign_mask) != 0)
        if fmt.nans == "negative_zero":
            out[code == fmt.sign_mask] = math.nan

    return compute
