"""The table of GGUF's types, and the two verbs that walk an array through one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qlab._check import unknown_name
from qlab._pieces import Array, Scratch, walk
from qlab.tensor.affine import largest_of
from qlab.tensor.gguf import i_quants, k_quants, legacy
from qlab.tensor.gguf.layouts import LAYOUTS

__all__ = ["GGUF_TYPES", "GGUFType", "decode_blocks", "decode_gguf", "encode_gguf"]

PIECE = 1 << 17
"""Elements in a piece: an encoder holds a dozen arrays of that many."""


@dataclass(frozen=True)
class GGUFType:
    """A block format of GGUF: how many values make a block, how many bytes it takes, and the way there and back.

    Parameters
    ----------
    name : str
        The name in lower case.
    block : int
        Values in a block.
    type_size : int
        Bytes of a block.
    encode : function, optional
        ``encode(blocks, importance)``: float32 (n, block), and the same or None, to uint8 (n, type_size). None where
        qlab can only decode.
    decode : function
        ``decode(payload)``: uint8 (n, type_size) to float32 (n, block).

    Examples
    --------
    >>> from qlab.tensor.gguf import GGUF_TYPES
    >>> GGUF_TYPES["q4_k"].bits_per_value
    4.5
    """

    name: str
    block: int
    type_size: int
    encode: Callable[[Array, Array | None], Array] | None
    decode: Callable[[Array], Array]

    @property
    def bits_per_value(self) -> float:
        """Bits that a value takes, scales included."""
        return 8 * self.type_size / self.block


def _type(name: str, block: int, module: Any) -> GGUFType:
    encode, decode = getattr(module, f"encode_{name}", None), getattr(module, f"decode_{name}")
    return GGUFType(name, block, LAYOUTS[name].itemsize, encode, decode)


GGUF_TYPES: dict[str, GGUFType] = {
    **{name: _type(name, 32, legacy) for name in ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")},
    **{name: _type(name, 256, k_quants) for name in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_k")},
    **{name: _type(name, block, i_quants) for name, block in (("iq4_nl", 32), ("iq4_xs", 256))},
    **{name: _type(name, 256, legacy) for name in ("tq1_0", "tq2_0")},
    **{name: _type(name, block, legacy) for name, block in (("mxfp4", 32), ("nvfp4", 64))},
    **{
        name: _type(name, 256, i_quants)
        for name in ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s")
    },
}
"""The types by name."""


def encode_gguf(x: Any, name: str, *, importance: Any = None) -> Array:
    """Quantize values to the bytes of a GGUF block type.

    Parameters
    ----------
    x : array_like of real numbers, shape (*lead, n)
        Finite; n is a multiple of the type's block. Converted to float32 first.
    name : str
        A name of `GGUF_TYPES`: ``"q8_0"``, ``"q4_k"``, ...
    importance : array_like of the shape of x, or (n,), optional
        What the squared error of a value counts, as from the mean square of the activations it meets; zero or above.
        For types that search for a scale (all but q8_0, q8_k, tq1_0, tq2_0, mxfp4, nvfp4, which take no notice of it).

    Returns
    -------
    payload : uint8 array of shape (*lead, n // block * type_size)

    Raises
    ------
    ValueError
        If there is no such type, or qlab can only decode it; if n is no multiple of the block; if `x` holds NaN or
        infinities; if a scale is too large for the type's float16 (or e4m3); if `importance` does not fit `x`, is
        negative or not finite.
    TypeError
        If `x` or `importance` is not made of real numbers.

    Notes
    -----
    Exact, the bytes of gguf-py, without importance for q8_0, q4_0, q4_1, q5_0, q5_1, tq1_0, tq2_0, mxfp4 (but for
    gguf-py's exponent, which is one too high just below powers of two); the bytes of ggml for nvfp4 and q8_k. Tolerance
    for the others: the squared error is on average not above that of llama.cpp's search. Memory beside the result: some
    16 MiB a thread at most; an `x` that is not contiguous is copied.

    Source: ``ggml-quants.c`` of llama.cpp and ``quants.py`` of gguf-py.

    Examples
    --------
    >>> import numpy as np
    >>> from qlab.tensor.gguf import decode_gguf, encode_gguf
    >>> x = np.linspace(-1, 1, 32, dtype=np.float32)
    >>> payload = encode_gguf(x, "q8_0")
    >>> payload.shape
    (34,)
    >>> bool(abs(decode_gguf(payload, "q8_0") - x).max() < 1 / 250)
    True
    """
    kind = _get_type(name)
    if kind.encode is None:
        writable = ", ".join(repr(known.name) for known in GGUF_TYPES.values() if known.encode)
        raise ValueError(f"{name!r} can only be decoded: its encoder needs a search that qlab does not have; use {writable}")
    x = _real("x", x)
    blocks = _in_blocks("x", x, kind.block, f"{name} has blocks of {kind.block} values", "pad the last axis with zeros")
    weights = None if importance is None else _importance_blocks(importance, x.shape, kind.block)
    payload = np.empty((len(blocks), kind.type_size), np.uint8)
    encode = kind.encode

    def work(piece: slice, scratch: Scratch) -> None:
        values = _finite_float32(blocks, piece)
        here = None
        if weights is not None:
            here = _usable(weights[np.arange(piece.start, piece.stop) % len(weights)])
        try:
            payload[piece] = encode(values, here)
        except ValueError as error:
            raise ValueError(f"x cannot be stored as {name}: {error}") from None

    walk(len(blocks), work, piece=PIECE // kind.block)
    return payload.reshape(*x.shape[:-1], x.shape[-1] // kind.block * kind.type_size)


def decode_gguf(payload: Any, name: str) -> Array:
    """Return the values that the bytes of a GGUF block type stand for.

    Parameters
    ----------
    payload : uint8 array of shape (*lead, blocks * type_size)
        As a GGUF file holds it.
    name : str
        A name of `GGUF_TYPES`.

    Returns
    -------
    values : float32 array of shape (*lead, blocks * block)

    Raises
    ------
    ValueError
        If there is no such type, or the last axis is no multiple of its bytes per block.
    TypeError
        If `payload` is not made of uint8.

    Notes
    -----
    Exact: the values of gguf-py, bit for bit.

    Examples
    --------
    >>> import numpy as np
    >>> from qlab.tensor.gguf import decode_gguf
    >>> decode_gguf(np.uint8([0x00, 0x3C] + [7] * 32), "q8_0")[:3]  # 7 times the float16 0x3C00, which is 1
    array([7., 7., 7.], dtype=float32)
    """
    kind = _get_type(name)
    payload = np.asarray(payload)
    if payload.dtype != np.uint8:
        raise TypeError(f"payload is an array of {payload.dtype}; bytes are uint8, as numpy.frombuffer(..., numpy.uint8) gives")
    rows = _in_blocks(
        "payload", payload, kind.type_size, f"{name} has {kind.type_size} bytes a block", "check the name, and that no bytes miss"
    )
    values = np.empty((len(rows), kind.block), np.float32)
    decode_blocks(rows, kind, values)
    return values.reshape(*payload.shape[:-1], payload.shape[-1] // kind.type_size * kind.block)


def decode_blocks(rows: Array, kind: GGUFType, out: Array) -> None:
    """Write the values of blocks, uint8 (n, type_size), to floats of any width, (n, block); finite ones saturate."""
    limit = largest_of(out.dtype)

    def work(piece: slice, scratch: Scratch) -> None:
        values = kind.decode(rows[piece])
        if out.dtype.itemsize < 4:
            np.clip(values, -limit, limit, out=values, where=np.isfinite(values))
        out[piece] = values

    walk(len(rows), work, piece=PIECE // kind.block)


def _get_type(name: str) -> GGUFType:
    if not isinstance(name, str):
        raise TypeError(f"a GGUF type is given by its name, not by {type(name).__name__}")
    if name not in GGUF_TYPES:
        unknown_name("GGUF type", name, GGUF_TYPES, f"allowed are {', '.join(GGUF_TYPES)}")
    return GGUF_TYPES[name]


def _real(argument: str, x: Any) -> Array:
    values: Array = np.asarray(x)
    if values.dtype.kind not in "fiu":
        raise TypeError(f"{argument} is an array of {values.dtype}; real numbers can be quantized")
    return values


def _in_blocks(argument: str, x: Array, block: int, rule: str, remedy: str) -> Array:
    """(*lead, n) to (blocks, block)."""
    if x.ndim == 0 or x.shape[-1] % block:
        raise ValueError(f"{argument} has shape {x.shape}, and {rule}: the last axis must be a multiple of {block}; {remedy}")
    return np.ascontiguousarray(x).reshape(-1, block)


def _finite_float32(blocks: Array, piece: slice) -> Array:
    """Return a piece as float32; where that is not finite, say so of the whole array."""
    with np.errstate(over="ignore"):
        values = blocks[piece].astype(np.float32, copy=False)
    if np.isfinite(values).all():
        return values
    if np.isfinite(blocks[piece]).all():
        raise ValueError(f"x holds {np.abs(blocks[piece]).max()}, which float32 cannot hold; divide x by a constant")
    count, first = 0, -1
    for start in range(0, len(blocks), 1 << 11):
        wrong = np.flatnonzero(~np.isfinite(blocks[start : start + (1 << 11)]))
        count += wrong.size
        if first < 0 and wrong.size:
            first = start * blocks.shape[1] + int(wrong[0])
    raise ValueError(
        f"x holds {count} NaN or infinities, the first at flat index {first}; clean it first, as with numpy.nan_to_num"
    )


def _importance_blocks(importance: Any, shape: tuple[int, ...], block: int) -> Array:
    """Return importance as blocks, (all blocks or those of one row, block)."""
    importance = _real("importance", importance)
    if importance.shape not in (shape, shape[-1:]):
        raise ValueError(f"importance has shape {importance.shape}; allowed are that of x, {shape}, and {shape[-1:]}")
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        raise ValueError("importance holds negative values, infinities or NaN; give what an error counts, zero or above")
    return np.ascontiguousarray(importance).reshape(-1, block)


def _usable(weights: Array) -> Array:
    """Return weights at unit size, float32; what counts nothing counts almost nothing, so that it has a best code too."""
    with np.errstate(invalid="ignore"):
        weights = weights / weights.max(axis=1, keepdims=True)
    floored = np.fmax(weights, 1e-7)  # NaN, from a block of zeros, becomes equal weights
    return np.asarray(floored, np.float32)
