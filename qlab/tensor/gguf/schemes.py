"""GGUF's types as schemes: `qlab.quantize(x, "q4_k")` gives a QTensor whose payload is what the file holds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qlab._pieces import Array
from qlab.number.arrays import numbers, output
from qlab.number.halves import is_bfloat16
from qlab.tensor.gguf.codec import GGUF_TYPES, GGUFType, decode_blocks, encode_gguf
from qlab.tensor.gguf.layouts import LAYOUTS
from qlab.tensor.qtensor import QTensor
from qlab.tensor.scheme import Scheme

__all__ = ["dequantize_gguf", "ledger_of", "quantize_gguf"]

_CODES = ("codes", "high", "signs")  # fields that together are the codes


def quantize_gguf(x: Any, scheme: Scheme, importance: Any = None) -> QTensor:
    """Quantize along the last axis; what a block does not divide is padded with zeros.

    Raises
    ------
    ValueError
        If `x` is empty or has no axis; else as `qlab.tensor.gguf.encode_gguf`.
    """
    array, kind = numbers(x), _type_of(scheme)
    if array.size == 0 or array.ndim == 0:
        raise ValueError(f"x has the shape {array.shape}; {scheme} needs at least one value along a last axis")
    weights = None if importance is None else np.broadcast_to(np.asarray(importance), array.shape)
    values = array.astype(np.float32) if is_bfloat16(array.dtype) else array
    payload = encode_gguf(_padded(values, kind.block), kind.name, importance=_padded(weights, kind.block))
    dtype = np.dtype(np.float32) if array.dtype.kind in "iu" else array.dtype
    return QTensor(payload.reshape(-1), None, scheme, array.shape, dtype)


def dequantize_gguf(qtensor: QTensor, dtype: Any, out: Array | None) -> Array:
    """Return the values, without what was padded."""
    kind, shape = _type_of(qtensor.scheme), qtensor.shape
    result = output(out, np.broadcast_to(np.empty((), dtype), shape), np.dtype(dtype))
    blocks = np.asarray(qtensor.payload).reshape(-1, kind.type_size)
    straight = result.flags.c_contiguous and shape[-1] % kind.block == 0
    values = result.reshape(-1, kind.block) if straight else np.empty((len(blocks), kind.block), dtype)
    decode_blocks(blocks, kind, values)
    if not straight:
        result[...] = values.reshape(math.prod(shape[:-1]), -1)[:, : shape[-1]].reshape(shape)
    return result


def ledger_of(qtensor: QTensor) -> dict[str, int]:
    """Return the bits of a block's fields, for all blocks; the codes of padded values apart."""
    kind = _type_of(qtensor.scheme)
    blocks = qtensor.payload.shape[0] // kind.type_size
    parts: dict[str, int] = {}
    fields: Any = LAYOUTS[kind.name].fields
    for name, (dtype, *_) in fields.items():
        part = "codes" if name in _CODES else name.partition("_")[0]
        parts[part] = parts.get(part, 0) + 8 * dtype.itemsize * blocks
    padded = blocks * kind.block - math.prod(qtensor.shape)
    if padded:
        parts["padding"] = parts["codes"] * padded // (blocks * kind.block)
        parts["codes"] -= parts["padding"]
    return parts


def _type_of(scheme: Scheme) -> GGUFType:
    return GGUF_TYPES[str(scheme.layout)]


def _padded(array: Any, block: int) -> Any:
    if array is None or array.shape[-1] % block == 0:
        return array
    after = -array.shape[-1] % block
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, after)])
