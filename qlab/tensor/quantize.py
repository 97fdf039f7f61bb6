"""Quantize and back: what the values of a tensor become when they are stored by a scheme."""

from __future__ import annotations

from typing import Any

import numpy as np

from qlab._pieces import Array
from qlab.number.codec import cast
from qlab.tensor.scheme import Scheme, get_scheme

__all__ = ["fake_quantize", "find_scale"]


def find_scale(x: Array, scheme: Scheme) -> float:
    """Return the scale of a tensor, in the tensor's dtype; 0 for a tensor of zeros.

    Raises
    ------
    ValueError
        If `x` is empty or not finite.
    """
    if x.size == 0:
        raise ValueError("x is empty; a scale needs at least one value")
    highest, lowest = float(x.max()), float(x.min())
    largest = max(highest, -lowest)
    if not np.isfinite(largest) or lowest != lowest:
        raise ValueError("x holds infinities or NaN, which have no scale; clean it first, as with numpy.nan_to_num")
    scale = largest / scheme.format.max if scheme.scale == "absmax" else float(np.abs(x).mean(dtype=np.float64))
    return float(x.dtype.type(scale))


def fake_quantize(x: Any, scheme: str | Scheme) -> Array:
    """Quantize values and bring them back: each becomes the nearest multiple that the scheme can store.

    Parameters
    ----------
    x : array_like of floats, any shape
        Finite values.
    scheme : str or Scheme
        How to store them.

    Returns
    -------
    values : array of the shape of x
        float32, or float64 for float64 input.

    Raises
    ------
    ValueError
        If `x` is empty or holds infinities or NaN.
    TypeError
        If `x` is not made of real numbers.

    Notes
    -----
    Exact at the given scale: ``cast(x / scale) * scale``, each operation and the scale rounded once in the dtype of
    the result. A tensor of zeros stays zeros. Book: chapter 01.

    Examples
    --------
    >>> import numpy as np, qlab
    >>> qlab.fake_quantize(np.float32([-0.7, 0.22, 0.05]), "int4")
    array([-0.7,  0.2,  0. ], dtype=float32)
    """
    scheme, x = get_scheme(scheme), np.asarray(x)
    if x.dtype.kind not in "fiu":
        raise TypeError(f"x is an array of {x.dtype}; real numbers can be quantized")
    kind = np.float64 if x.dtype == np.float64 or (x.dtype.kind in "iu" and x.dtype.itemsize > 2) else np.float32
    values: Array = x.astype(kind)
    scale = kind(find_scale(values, scheme))
    if scale == 0:
        return values * 0
    np.divide(values, scale, out=values)
    np.copyto(values, cast(values, scheme.format, overflow="saturate"))
    values *= scale
    return values
