"""From codes, as numbers, to values: times the scale, and saturating where that is more than a float holds.

Near the end of a float's range a rounded scale times the largest code can be just beyond it, though the input was not. Exact:
two or three operations, each rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qlab._pieces import Array
from qlab.number.formats import Format
from qlab.tensor.scheme import Scheme

__all__ = ["LEAST", "from_minimum", "largest_of", "safe_scale", "to_values"]

LEAST = {"float32": 1e-38, "float64": 1e-307}
"""The least scale that a reciprocal is taken of, bitsandbytes' own: reciprocals stay finite."""


def largest_of(dtype: np.dtype[Any]) -> float:
    """Return the largest number of a float; what is not NumPy's own is bfloat16."""
    return float(np.finfo(dtype).max) if dtype.kind == "f" else float.fromhex("0x1.fep127")


def safe_scale(scheme: Scheme, fmt: Format, limit: float) -> float:
    """Return the scale from which on a value could be too large; minima and offsets could from a quarter of the limit on."""
    reach = max(-fmt.min, fmt.max) if scheme.zero is None else fmt.max - fmt.min
    return limit / 4 / reach


def _halves(scale: Array, minimum: Array | None, offset: float, safe: float, limit: float) -> Array | None:
    """For each block 1/2 where its values could be too large, else 1; None where none is: shape (k, 1)."""
    large = np.abs(scale) >= safe
    if minimum is not None:
        large |= np.abs(minimum) >= limit / 4
    if abs(offset) >= limit / 4:
        large[...] = True
    if not large.any():
        return None
    half: Array = np.where(large, scale.dtype.type(0.5), scale.dtype.type(1))[:, None]
    return half


def from_minimum(rows: Array, scale: Array, minimum: Array, scheme: Scheme, fmt: Format, out: Array) -> tuple[Array, Array]:
    """Return ``rows - minimum`` and the scale; both halved where the difference could be too large."""
    limit = largest_of(rows.dtype)
    half = _halves(scale, None, 0.0, safe_scale(scheme, fmt, limit), limit)
    if half is None:
        return np.subtract(rows, minimum[:, None], out=out), scale
    return np.subtract(rows * half, minimum[:, None] * half, out=out), scale * half[:, 0]


def to_values(
    steps: Array, scale: Array, minimum: Array | None, scheme: Scheme, fmt: Format, limit: float, out: Array,
    *, offset: float | None = None,
) -> None:
    """Write ``steps * scale`` (``+ minimum``) (``+ offset``), of magnitude `limit` at most.

    Parameters
    ----------
    steps : array of shape (k, block)
        Codes as numbers, less the zero point if there is one.
    scale, minimum : array of shape (k,)
    limit : float
        The largest number of the float that the values go to.
    out : array of the shape and dtype of steps
        May be `steps` itself.
    offset : float, optional
        The mean that was taken off.
    """
    half = _halves(scale, minimum, offset or 0.0, safe_scale(scheme, fmt, limit), limit)
    np.multiply(steps, scale[:, None] if half is None else scale[:, None] * half, out=out)
    if minimum is not None:
        np.add(out, minimum[:, None] if half is None else minimum[:, None] * half, out=out)
    if offset is not None:
        np.add(out, out.dtype.type(offset) if half is None else out.dtype.type(offset) * half, out=out)
    if half is not None:
        ends = np.where(half < 1, limit * half, half.dtype.type(np.inf))  # an infinite code is left as it is elsewhere
        np.clip(out, -ends, ends, out=out)
        np.divide(out, half, out=out)
