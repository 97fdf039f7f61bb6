"""GGUF's K-types: 256 values in groups of 16 or 32, whose scales are small integers times the scale of the block.

Q2_K, Q4_K and Q5_K store ``scale * scales[g] * code - minimum * minima[g]``; Q3_K and Q6_K ``scale * scales[g] * code``
with signed codes; Q8_K, which llama.cpp uses for activations, has a float32 scale and the sums of its codes.

Decoding is exact. Encoding is a search, see `super_blocks`.
"""

from __future__ import annotations

import numpy as np

from qlab._pieces import Array
from qlab.tensor.gguf.layouts import pack, read, reciprocal, unpack, write
from qlab.tensor.gguf.legacy import largest_with_sign
from qlab.tensor.gguf.search import unit_size
from qlab.tensor.gguf.super_blocks import search_symmetric, search_with_minimum, to_integers

__all__ = [
    "decode_q2_k", "decode_q3_k", "decode_q4_k", "decode_q5_k", "decode_q6_k", "decode_q8_k", "encode_q2_k", "encode_q3_k",
    "encode_q4_k", "encode_q5_k", "encode_q6_k", "encode_q8_k",
]  # fmt: skip


# --- 2, 4 and 5 bits, with minima ---------------------------------------------------------------------------------------
def _with_minimum(codes: Array, scales: Array, minima: Array, stored: Array) -> Array:
    """Return values, float32 (n, 256), from codes (n, 256) and scales and minima (n, groups)."""
    step = stored["scale"].astype(np.float32)[:, None] * scales.astype(np.float32)
    low = stored["minimum"].astype(np.float32)[:, None] * minima.astype(np.float32)
    values = codes.astype(np.float32).reshape(*scales.shape, -1)  # (n, groups, group)
    values *= step[:, :, None]
    values -= low[:, :, None]
    return values.reshape(codes.shape)


def encode_q2_k(blocks: Array, importance: Array | None = None) -> Array:
    """Codes 0 to 3 in groups of 16, scales and minima 0 to 15."""
    found = search_with_minimum(blocks, importance, group=16, top=3, end=15)
    scales = found.scales.astype(np.uint8) | found.minima.astype(np.uint8) << np.uint8(4)
    codes = pack(found.levels.astype(np.uint8), bits=2, run=32)
    return write(len(blocks), "q2_k", scales=scales, codes=codes, scale=found.scale, minimum=found.minimum)


def decode_q2_k(payload: Array) -> Array:
    """Four codes in a byte, a scale and a minimum in another."""
    stored = read(payload, "q2_k")
    codes, scales = unpack(stored["codes"], bits=2, run=32), stored["scales"]
    return _with_minimum(codes, scales & np.uint8(15), scales >> np.uint8(4), stored)


def _pack_scales(scales: Array, minima: Array) -> Array:
    """Eight scales and eight minima of 6 bits in 12 bytes: of the last four of each, the upper 2 bits lie with the first."""
    scales, minima = scales.astype(np.uint8), minima.astype(np.uint8)
    packed = [
        scales[:, :4] | scales[:, 4:] >> 4 << 6,
        minima[:, :4] | minima[:, 4:] >> 4 << 6,
        scales[:, 4:] & 15 | minima[:, 4:] << 4,
    ]
    return np.concatenate(packed, axis=1)


def _unpack_scales(packed: Array) -> tuple[Array, Array]:
    first, first_minima, low = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, low & 15 | first >> 6 << 4], axis=1)
    minima = np.concatenate([first_minima & 63, low >> 4 | first_minima >> 6 << 4], axis=1)
    return scales, minima


def encode_q4_k(blocks: Array, importance: Array | None = None) -> Array:
    """Codes 0 to 15 in groups of 32, scales and minima 0 to 63."""
    found = search_with_minimum(blocks, importance, group=32, top=15, end=63)
    scales, codes = _pack_scales(found.scales, found.minima), pack(found.levels.astype(np.uint8), bits=4, run=32)
    return write(len(blocks), "q4_k", scale=found.scale, minimum=found.minimum, scales=scales, codes=codes)


def decode_q4_k(payload: Array) -> Array:
    """Two codes in a byte."""
    stored = read(payload, "q4_k")
    return _with_minimum(unpack(stored["codes"], bits=4, run=32), *_unpack_scales(stored["scales"]), stored)


def encode_q5_k(blocks: Array, importance: Array | None = None) -> Array:
    """Codes 0 to 31 in groups of 32, scales and minima 0 to 63."""
    found = search_with_minimum(blocks, importance, group=32, top=31, end=63)
    codes = found.levels.astype(np.uint8)
    low, high = pack(codes & np.uint8(15), bits=4, run=32), pack(codes >> np.uint8(4), bits=1, run=32)
    scales = _pack_scales(found.scales, found.minima)
    return write(len(blocks), "q5_k", scale=found.scale, minimum=found.minimum, scales=scales, high=high, codes=low)


def decode_q5_k(payload: Array) -> Array:
    """Two codes in a byte, eight fifth bits in another."""
    stored = read(payload, "q5_k")
    codes = unpack(stored["codes"], bits=4, run=32)
    codes |= unpack(stored["high"], bits=1, run=32) << np.uint8(4)
    return _with_minimum(codes, *_unpack_scales(stored["scales"]), stored)


# --- 3 and 6 bits, symmetric ----------------------------------------------------------------------------------------------
def _symmetric(codes: Array, half: int, scales: Array, stored: Array) -> Array:
    """Return values, float32 (n, 256), from codes (n, 256) from 0 on and scales (n, 16)."""
    step = stored["scale"].astype(np.float32)[:, None] * scales.astype(np.float32)
    values = codes.astype(np.float32).reshape(-1, 16, 16)  # (n, groups, group)
    values -= np.float32(half)
    values *= step[:, :, None]
    return values.reshape(codes.shape)


def encode_q3_k(blocks: Array, importance: Array | None = None) -> Array:
    """Codes -4 to 3, scales -32 to 31."""
    found = search_symmetric(blocks, importance, group=16, lowest=-4, to_level=to_integers(4), end=32)
    codes, scales = (found.levels + np.float32(4)).astype(np.uint8), (found.scales + np.float32(32)).astype(np.uint8)
    low, high = pack(codes & np.uint8(3), bits=2, run=32), pack(codes >> np.uint8(2), bits=1, run=32)
    packed = np.concatenate([pack(scales & np.uint8(15), bits=4, run=8), pack(scales >> np.uint8(4), bits=2, run=4)], axis=1)
    return write(len(blocks), "q3_k", high=high, codes=low, scales=packed, scale=found.scale)


def decode_q3_k(payload: Array) -> Array:
    """Four codes' lower bits in a byte, eight third bits in another; scales of 4 + 2 bits, 32 too large."""
    stored = read(payload, "q3_k")
    codes = unpack(stored["codes"], bits=2, run=32)
    codes |= unpack(stored["high"], bits=1, run=32) << np.uint8(2)
    scales = unpack(stored["scales"][:, :8], bits=4, run=8)
    scales |= unpack(stored["scales"][:, 8:], bits=2, run=4) << np.uint8(4)
    return _symmetric(codes, 4, scales.astype(np.float32) - np.float32(32), stored)


def encode_q6_k(blocks: Array, importance: Array | None = None) -> Array:
    """Codes -32 to 31, scales -128 to 127."""
    found = search_symmetric(blocks, importance, group=16, lowest=-32, to_level=to_integers(32), end=128)
    codes = (found.levels + np.float32(32)).astype(np.uint8)
    low, high = pack(codes & np.uint8(15), bits=4, run=64), pack(codes >> np.uint8(4), bits=2, run=32)
    return write(len(blocks), "q6_k", codes=low, high=high, scales=found.scales, scale=found.scale)


def decode_q6_k(payload: Array) -> Array:
    """Two codes' lower bits in a byte, four codes' upper bits in another."""
    stored = read(payload, "q6_k")
    codes = unpack(stored["codes"], bits=4, run=64)
    codes |= unpack(stored["high"], bits=2, run=32) << np.uint8(4)
    return _symmetric(codes, 32, stored["scales"], stored)


# --- 8 bits ---------------------------------------------------------------------------------------------------------------
def encode_q8_k(blocks: Array, importance: Array | None = None) -> Array:
    """Codes -128 to 127, of which the largest magnitude, with its sign, becomes -127; sums of 16 codes each."""
    unit_blocks, exponent = unit_size(blocks)
    largest = largest_with_sign(unit_blocks)
    with np.errstate(divide="ignore"):
        inverse = np.where(largest == 0, np.float32(0), np.float32(-127) / largest)
    codes = np.minimum(np.rint(unit_blocks * inverse[:, None]), np.float32(127)).astype(np.int8)
    sums = codes.reshape(-1, 16, 16).sum(axis=2, dtype=np.int16)
    return write(len(blocks), "q8_k", scale=np.ldexp(reciprocal(inverse), exponent), codes=codes, sums=sums)


def decode_q8_k(payload: Array) -> Array:
    """Values are codes * scale."""
    stored = read(payload, "q8_k")
    values = stored["codes"].astype(np.float32)
    values *= stored["scale"][:, None]
    return values
