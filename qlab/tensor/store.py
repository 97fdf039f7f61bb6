"""A quantized tensor from codes and scales that someone else has found: what GPTQ, AdaRound and their like end with.

`quantize` chooses codes by rounding to nearest. A method that chooses them otherwise hands them over here, with the scales
that it used; they are checked, packed and stored just as `quantize` stores its own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qlab._pieces import Array
from qlab.number.formats import Format, IntFormat, TableFormat
from qlab.tensor.blocks import scale_shape
from qlab.tensor.packing import pack
from qlab.tensor.qtensor import QTensor
from qlab.tensor.scales import store_in
from qlab.tensor.scheme import Fitted, Scheme, get_scheme

__all__ = ["store_codes", "store_scales"]


def store_codes(codes: Any, scale: Any, zero: Any, scheme: str | Scheme, *, dtype: Any = np.float32) -> QTensor:
    """Pack given codes, with given scales, as a scheme stores them.

    Parameters
    ----------
    codes : integer array of any shape that the scheme's blocks fit
        Bit patterns of the scheme's format; negative integers stand for their two's complement.
    scale : array of the shape that the scheme's scales have, or QTensor
        Rounded to what the scheme stores scales in. A QTensor is kept as it is, for schemes that store scales by a scheme.
    zero : array of the shape of the scales, or None
        Integer zero points or float minima, as the scheme wants them.
    scheme : str or Scheme
        With a format that is known: a codebook that is fitted to data has no codes yet.
    dtype : dtype
        float32 or float64: of the values, the scales and the minima.

    Returns
    -------
    QTensor
        Of NumPy arrays.

    Raises
    ------
    ValueError
        If a shape, a code, a scale or a zero does not fit the scheme.
    TypeError
        If `codes` are not integers.

    Notes
    -----
    Exact: ``store_codes(qt.codes(), qt.scale, qt.zero, qt.scheme)`` holds what `qt` holds. Book: part IV.

    Examples
    --------
    >>> import numpy as np
    >>> from qlab.tensor.store import store_codes
    >>> qt = store_codes(np.array([[-7, 2, 0, 3]]), np.float32(0.1), None, "int4")
    >>> qt.dequantize()
    array([[-0.7,  0.2,  0. ,  0.3]], dtype=float32)
    """
    scheme, kind = get_scheme(scheme), np.dtype(dtype)
    if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"dtype={kind} is not allowed; scales are float32 or float64")
    if scheme.layout is not None or isinstance(scheme.format, Fitted):
        raise ValueError(
            f"{scheme} has no codes to give: its bytes hold codes and scales together, or its codebook is fitted to data; "
            "use quantize, or the scheme of a QTensor"
        )
    patterns = _checked_codes(np.asarray(codes), scheme.format)
    kept, offsets = store_scales(scale, zero, scheme, scale_shape(scheme.blocks, patterns.shape), dtype=kind)
    return QTensor(pack(patterns, scheme.bits, order=scheme.order), kept, scheme, patterns.shape, kind, offsets)


def store_scales(
    scale: Any, zero: Any, scheme: Scheme, shape: tuple[int, ...], *, dtype: Any = np.float32
) -> tuple[Any, Array | None]:
    """Return scales and zeros as a scheme stores them; see `store_codes`, which calls this."""
    return _stored_scale(scale, shape, scheme, np.dtype(dtype)), _stored_zero(zero, shape, scheme, np.dtype(dtype))


def _checked_codes(codes: Array, fmt: Format) -> Array:
    if codes.dtype.kind not in "iu":
        raise TypeError(f"codes are integers (bit patterns of {fmt.name}), not {codes.dtype}; encode values first")
    if codes.size == 0:
        raise ValueError("codes are empty; a scale needs at least one value")
    count = len(fmt.table) if isinstance(fmt, TableFormat) else 1 << fmt.bits
    lowest = -(1 << (fmt.bits - 1)) if isinstance(fmt, IntFormat) and fmt.min < 0 else 0
    if codes.min() < lowest or codes.max() >= count:
        wrong = codes.min() if codes.min() < lowest else codes.max()
        raise ValueError(f"a code of {wrong} is not of {fmt.name}, whose codes are {lowest} to {count - 1}; clip codes first")
    return codes


def _stored_scale(scale: Any, shape: tuple[int, ...], scheme: Scheme, kind: np.dtype[Any]) -> Any:
    from qlab.tensor.quantize import quantize  # which offers store_codes too

    stored = scheme.scale.stored
    if isinstance(scale, QTensor):
        if not isinstance(stored, Scheme) or scale.shape != shape:
            raise ValueError(f"{scheme} stores scales of shape {shape} as {stored}; got a QTensor {scale!r}")
        return scale
    values = _finite(scale, shape, "scale", kind)
    return quantize(values, stored) if isinstance(stored, Scheme) else store_in(values, stored)


def _stored_zero(zero: Any, shape: tuple[int, ...], scheme: Scheme, kind: np.dtype[Any]) -> Array | None:
    if (zero is None) != (scheme.zero is None):
        raise ValueError(f"{scheme} has zero={scheme.zero!r}, which does not go with zero={zero!r}; give both or neither")
    if zero is None:
        return None
    values = _finite(zero, shape, "zero", kind)
    if scheme.zero == "min":
        stored = scheme.scale.stored
        return values if isinstance(stored, Scheme) else store_in(values, stored, "minimum")
    fmt = scheme.format
    assert isinstance(fmt, IntFormat)
    if (values != np.rint(values)).any() or values.min() < fmt.min or values.max() > fmt.max:
        raise ValueError(
            f"zero points from {values.min():g} to {values.max():g} are not all codes of {fmt.name}; "
            f"give integers from {fmt.min:g} to {fmt.max:g}, or use a scheme with a float minimum"
        )
    return values.astype(np.int16 if fmt.bits <= 8 else np.int32)


def _finite(values: Any, shape: tuple[int, ...], what: str, kind: np.dtype[Any]) -> Array:
    array = np.array(values, kind)
    if array.shape != shape:
        raise ValueError(f"{what} has the shape {array.shape}; the scheme's blocks need {shape}, one for each block")
    if not np.isfinite(array).all():
        raise ValueError(f"{math.prod(shape) - int(np.isfinite(array).sum())} of the {what}s are infinite or NaN")
    return array
