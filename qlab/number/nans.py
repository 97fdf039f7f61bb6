"""NaN on its way to a format that has none: it is found, refused with a word of how many and where, or becomes zero."""

from __future__ import annotations

import numpy as np

from qlab._pieces import Array, Scratch, walk
from qlab.number.arrays import flat
from qlab.number.formats import Format
from qlab.number.halves import is_half, widen

__all__ = ["NaNFound", "holds_nan", "nan_message", "refuse_nan", "zero_nan"]


class NaNFound(Exception):
    """A piece holds NaN, and the format has none."""


def holds_nan(piece: Array, scratch: Scratch) -> bool:
    """Whether there is a NaN in a piece of floats."""
    if not is_half(piece.dtype):
        return bool(np.isnan(piece.max()))  # a maximum is NaN if any value is
    infinity = 0x7C00 if piece.dtype == np.float16 else 0x7F80
    magnitude = np.bitwise_and(piece.view(np.uint16), 0x7FFF, out=scratch("pattern", np.uint16, piece.size))
    return bool(magnitude.max() > infinity)


def refuse_nan(array: Array, fmt: Format) -> None:
    """Look for NaN, before anything is written."""
    if array.dtype.kind in "iu":
        return
    source = flat(array)
    counts: list[tuple[int, int]] = []

    def work(piece: slice, scratch: Scratch) -> None:
        values = source[piece]
        if holds_nan(values, scratch):
            is_nan = np.isnan(widen(values, np.float32, scratch) if is_half(values.dtype) else values)
            counts.append((piece.start + int(is_nan.argmax()), int(is_nan.sum())))

    walk(array.size, work)
    if counts:
        index = tuple(int(i) for i in np.unravel_index(min(counts)[0], array.shape))
        raise ValueError(nan_message(sum(n for _, n in counts), index, fmt))


def nan_message(count: int, first: tuple[int, ...], fmt: Format) -> str:
    """Return what to say of NaN going to a format without."""
    return (
        f"x holds {count} NaN (the first at index {first}), and {fmt.name} has none; "
        "clean x, or pass nan='zero' to have them become zero"
    )


def zero_nan(values: Array, *, opposite: bool) -> Array:
    """Replace NaN by zero, or by a zero of the opposite sign."""
    zero = np.copysign(values.dtype.type(0), -values) if opposite else values.dtype.type(0)
    return np.where(np.isnan(values), zero, values)
