"""Arrays on their way in and out: what may come in, as which float it is worked on, and where results go."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from qlab._pieces import Array, Scratch
from qlab.number.bits import Layout
from qlab.number.halves import is_half, widen
from qlab.number.rounding import round_up

__all__ = ["flat", "flat_output", "loader", "numbers", "output", "same_memory"]


def numbers(x: Any) -> Array:
    """Return `x` as an array of real numbers."""
    array: Array = np.asarray(x)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.size == 0 and array.dtype == np.float64 and not isinstance(x, np.ndarray):
        return array
    if array.dtype.kind in "iu" or array.dtype in (np.float16, np.float32, np.float64) or array.dtype.name == "bfloat16":
        return array
    raise TypeError(
        f"x is an array of {array.dtype}; float16, bfloat16, float32, float64 and integers can be rounded: "
        "convert it first, for instance with numpy.asarray(x, dtype=numpy.float64)"
    )


def output(out: Array | None, like: Array, dtype: np.dtype[Any]) -> Array:
    """Return `out` if it fits, or a new array of the shape of `like`."""
    if out is None:
        return np.empty(like.shape, dtype)
    if not isinstance(out, np.ndarray) or out.shape != like.shape or out.dtype != dtype or not out.flags.writeable:
        found = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out is {found}; it must be a writable {dtype} array of shape {like.shape}")
    return out


def same_memory(a: Array, b: Array) -> bool:
    """Whether two arrays are one, element for element."""
    return a.ctypes.data == b.ctypes.data and a.strides == b.strides and a.dtype == b.dtype


class _Strided:
    """A flat view of an array that is not contiguous: pieces are copied, in C order, one at a time."""

    def __init__(self, array: Array) -> None:
        self.flat, self.dtype = array.flat, array.dtype

    def __getitem__(self, piece: slice) -> Array:
        return np.asarray(self.flat[piece])


def flat(array: Array) -> Any:
    """Return what gives pieces of the flattened array by slices, without copying it whole."""
    return array.reshape(-1) if array.flags.c_contiguous else _Strided(array)


def flat_output(array: Array) -> Any:
    """Return a flat view to write to."""
    if array.flags.c_contiguous:
        return array.reshape(-1)
    raise ValueError("out must be C-contiguous; pass a contiguous array and copy from it")


def loader(
    dtype: np.dtype[Any], layout: Layout, *, last_rounding: str | None
) -> Callable[[Array, Scratch, Array | None], Array]:
    """Return what brings a piece of the input (and noise, if that is the rounding) into the float to work in.

    It rounds nothing but 64-bit integers that float64 does not hold: as `last_rounding` says if they go to float64, else
    (None) to odd, which the rounding to come forgives.
    """
    if dtype == layout.float_type:
        return lambda piece, scratch, noise: piece
    if is_half(dtype):
        return lambda piece, scratch, noise: widen(piece, layout.float_type, scratch)
    if dtype.kind in "iu" and dtype.itemsize == 8:
        return partial(_load_wide_integers, last_rounding or "to_odd")

    def load(piece: Array, scratch: Scratch, noise: Array | None) -> Array:
        values = scratch("loaded", layout.float_type, piece.size)
        np.copyto(values, piece, casting="same_kind")  # float64 to float32 where a policy rounds twice
        return values

    return load


def _load_wide_integers(rounding: str, piece: Array, scratch: Scratch, noise: Array | None) -> Array:
    """Integers of more than 53 bits do not fit into float64: cut them to 53, and round.

    (To odd, they may be rounded again: Boldo and Melquiond, "When double rounding is odd", 2004.)
    """
    negative = piece < 0
    magnitude = np.where(negative, -piece.astype(np.uint64), piece.astype(np.uint64))
    bits = np.frexp((magnitude >> np.uint64(11)).astype(np.float64))[1] + 11  # of what is above 2**52
    drop = np.maximum(bits - 53, 0).astype(np.int64)
    step = np.left_shift(1, drop)
    remainder = (magnitude & (step - 1).astype(np.uint64)).astype(np.int64)
    kept = (magnitude >> drop.astype(np.uint64)).astype(np.int64)
    up = round_up(kept, remainder, step, drop, np.where(negative, -1, 1), rounding, scratch, noise)
    values = np.ldexp((kept + up).astype(np.float64), drop.astype(np.int32))
    return np.asarray(np.where(negative, -values, values))
