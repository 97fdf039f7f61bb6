"""Codes of 1 to 16 bits packed into bytes and back, in the two orders that are in use.

``low_first``: the first code lies in the lowest bits of the first byte (GGUF, PyTorch, most files). ``high_first``: in the
highest (bitsandbytes). A code may run over the end of a byte into the next one. Exact.
"""

from __future__ import annotations

import numpy as np

from qlab._check import one_of
from qlab._pieces import Array

__all__ = ["ORDERS", "pack", "packed_size", "unpack"]

ORDERS = ("low_first", "high_first")


def packed_size(count: int, bits: int) -> int:
    """Return how many bytes `count` codes take.

    Examples
    --------
    >>> from qlab.tensor.packing import packed_size
    >>> packed_size(3, 5)
    2
    """
    return -(-count * bits // 8)


def pack(codes: Array, bits: int, *, order: str = "low_first") -> Array:
    """Pack codes into bytes.

    Parameters
    ----------
    codes : integer array of any shape
        Bit patterns; of each the lower `bits` are taken.
    bits : int
        1 to 16.
    order : {"low_first", "high_first"}
        Where in a byte the first code lies.

    Returns
    -------
    packed : uint8 array of shape (ceil(codes.size * bits / 8),)
        Bits that are left over in the last byte are 0.

    Examples
    --------
    >>> import numpy as np
    >>> from qlab.tensor.packing import pack
    >>> pack(np.array([1, 2, 3]), 4).tolist(), pack(np.array([1, 2, 3]), 4, order="high_first").tolist()
    ([33, 3], [18, 48])
    """
    _check(bits, order)
    flat = np.ascontiguousarray(codes).reshape(-1)
    if flat.dtype.kind not in "iu":
        raise TypeError(f"codes are integers (bit patterns), not {flat.dtype}; encode values first")
    if bits == 8:
        return flat.astype(np.uint8, copy=False)
    if bits == 16:
        return flat.astype("<u2" if order == "low_first" else ">u2").view(np.uint8)
    if bits in (1, 2, 4):
        return _pack_within_bytes(flat.astype(np.uint8), bits, order)
    wide = flat.astype("<u2").view(np.uint8).reshape(-1, 2)
    if order == "low_first":
        each = np.unpackbits(wide, axis=1, bitorder="little")[:, :bits]
        return np.packbits(each, bitorder="little")
    return np.packbits(np.unpackbits(wide[:, ::-1], axis=1)[:, -bits:])


def unpack(packed: Array, count: int, bits: int, *, order: str = "low_first") -> Array:
    """Return the codes that bytes hold: the inverse of `pack`.

    Parameters
    ----------
    packed : uint8 array of at least ``packed_size(count, bits)`` bytes
    count : int
        How many codes.
    bits, order
        As in `pack`.

    Returns
    -------
    codes : array of shape (count,)
        uint8 for up to 8 bits, else int32.

    Raises
    ------
    ValueError
        If there are too few bytes.

    Examples
    --------
    >>> import numpy as np
    >>> from qlab.tensor.packing import unpack
    >>> unpack(np.uint8([33, 3]), 3, 4).tolist()
    [1, 2, 3]
    """
    _check(bits, order)
    size = packed_size(count, bits)
    if packed.dtype != np.uint8 or packed.ndim != 1 or packed.size < size:
        raise ValueError(
            f"got {packed.dtype} of shape {packed.shape}; {count} codes of {bits} bits need a flat uint8 array of {size} bytes"
        )
    packed = np.ascontiguousarray(packed[:size])
    if bits == 8:
        return packed.copy()
    if bits == 16:
        return packed.view("<u2" if order == "low_first" else ">u2").astype(np.int32)
    if bits in (1, 2, 4):
        return _unpack_within_bytes(packed, bits, order)[:count]
    whole = 1 << np.arange(bits, dtype=np.int32)
    if order == "low_first":
        each = np.unpackbits(packed, bitorder="little", count=count * bits)
    else:
        each, whole = np.unpackbits(packed, count=count * bits), whole[::-1]
    codes = each.reshape(count, bits) @ whole
    return codes.astype(np.uint8 if bits <= 8 else np.int32)


def _check(bits: int, order: str) -> None:
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or not 1 <= bits <= 16:
        raise ValueError(f"bits={bits!r} is not allowed; codes of 1 to 16 bits can be packed")
    one_of("order", order, ORDERS)


def _shifts(bits: int, order: str) -> range:
    """By how much each code of a byte is shifted, the first one first."""
    return range(0, 8, bits) if order == "low_first" else range(8 - bits, -1, -bits)


def _pack_within_bytes(codes: Array, bits: int, order: str) -> Array:
    """Join neighbours, two bytes of `bits` bits to one of twice as many, until a byte is full."""
    rest = -codes.size % (8 // bits)
    if rest:
        codes = np.concatenate([codes, np.zeros(rest, np.uint8)])
    codes = np.bitwise_and(codes, (1 << bits) - 1)
    while bits < 8:
        pairs = codes.view("<u2")  # the first in the lower byte
        if order == "low_first":
            joined = np.right_shift(pairs, 8 - bits)
            np.bitwise_or(joined, pairs, out=joined)
        else:
            joined = np.right_shift(pairs, 8)
            np.bitwise_or(joined, np.left_shift(pairs, bits), out=joined)
        codes, bits = joined.astype(np.uint8), 2 * bits
    return codes


def _unpack_within_bytes(packed: Array, bits: int, order: str) -> Array:
    codes = np.empty((packed.size, 8 // bits), np.uint8)
    for column, shift in enumerate(_shifts(bits, order)):
        part = np.right_shift(packed, shift)
        np.bitwise_and(part, (1 << bits) - 1, out=codes[:, column])
    return codes.reshape(-1)
