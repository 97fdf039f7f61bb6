"""From codes, as numbers, to values: times the scale, and saturating where that is more than a float holds.

Near the end of a float's range a rounded scale times the largest code can be just beyond it, though the input was not. Exact:
two operations, each rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qlab._pieces import Array
from qlab.number.formats import Format
from qlab.tensor.scheme import Scheme

__all__ = ["from_minimum", "largest_of", "to_values"]


def largest_of(dtype: np.dtype[Any]) -> float:
    """Return the largest number of a float; what is not NumPy's own is bfloat16."""
    return float(np.finfo(dtype).max) if dtype.kind == "f" else float.fromhex("0x1.fep127")


def _reach(scheme: Scheme, fmt: Format) -> float:
    """The largest magnitude that is multiplied by a scale."""
    return max(-fmt.min, fmt.max) if scheme.zero is None else fmt.max - fmt.min


def _halves(scale: Array, scheme: Scheme, fmt: Format, limit: float) -> Array | None:
    """For each block 1/2 where its values could be too large, else 1; None where none is: shape (k, 1)."""
    bound = limit / 4 / _reach(scheme, fmt)
    magnitudes = np.abs(scale)
    if magnitudes.max() < bound:
        return None
    half: Array = np.where(magnitudes < bound, scale.dtype.type(1), scale.dtype.type(0.5))[:, None]
    return half


def from_minimum(rows: Array, scale: Array, minimum: Array, scheme: Scheme, fmt: Format, out: Array) -> tuple[Array, Array]:
    """Return ``rows - minimum`` and the scale; both halved where the difference could be too large."""
    half = _halves(scale, scheme, fmt, largest_of(rows.dtype))
    if half is None:
        return np.subtract(rows, minimum[:, None], out=out), scale
    return np.subtract(rows * half, minimum[:, None] * half, out=out), scale * half[:, 0]


def to_values(steps: Array, scale: Array, minimum: Array | None, scheme: Scheme, fmt: Format, limit: float, out: Array) -> None:
    """Write ``steps * scale`` (``+ minimum``), of magnitude `limit` at most.

    Parameters
    ----------
    steps : array of shape (k, block)
        Codes as numbers, less the zero point if there is one.
    scale, minimum : array of shape (k,)
    limit : float
        The largest number of the float that the values go to.
    out : array of the shape and dtype of steps
        May be `steps` itself.
    """
    half = _halves(scale, scheme, fmt, limit)
    np.multiply(steps, scale[:, None] if half is None else scale[:, None] * half, out=out)
    if minimum is not None:
        np.add(out, minimum[:, None] if half is None else minimum[:, None] * half, out=out)
    if half is not None:
        np.clip(out, -limit * half, limit * half, out=out)
        np.divide(out, half, out=out)
