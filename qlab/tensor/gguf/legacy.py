"""GGUF's types of one scale per block: each a few lines to encode and a few to decode, equal to gguf-py to the last bit.

In each pair, `encode_*` takes float32 (n, block) to uint8 (n, type_size), and `decode_*` goes back. A block's scale is
computed and applied in float32, as in llama.cpp, and stored as float16: codes are those of the scale before it was stored.

Where a block is so small that 1 / scale overflows (magnitudes below 1e-37; its stored scale is zero, and so are its
values), the bits of its codes are zero.
"""

from __future__ import annotations

import numpy as np

from qlab._pieces import Array
from qlab.tensor.extremes import row_extremes
from qlab.tensor.gguf.layouts import pack, read, reciprocal, stored_halves, unpack, write
from qlab.tensor.gguf.search import fit_scale, fit_scale_and_minimum, to_integers, unit_size

__all__ = [
    "decode_mxfp4", "decode_nvfp4", "decode_q4_0", "decode_q4_1", "decode_q5_0", "decode_q5_1", "decode_q8_0",
    "decode_tq1_0", "decode_tq2_0", "encode_mxfp4", "encode_nvfp4", "encode_q4_0", "encode_q4_1", "encode_q5_0",
    "encode_q5_1", "encode_q8_0", "encode_tq1_0", "encode_tq2_0",
]  # fmt: skip

E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""Twice the values of the sixteen float4_e2m1fn codes, integers all; the scale is halved instead. Minus zero is zero."""

_E2M1_MIDPOINTS = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], np.float32)


# --- what all share ------------------------------------------------------------------------------------------------
def largest_magnitude(blocks: Array) -> Array:
    """Return the largest magnitude of each block, (n,)."""
    lowest, highest = row_extremes(blocks)
    return np.abs(np.maximum(highest, -lowest))  # of zeros, plus zero


def largest_with_sign(blocks: Array) -> Array:
    """Return the value of the largest magnitude of each block, (n,); of two such, the first."""
    lowest, highest = row_extremes(blocks)
    largest = np.where(highest > -lowest, highest, lowest)
    tied = np.flatnonzero(highest == -lowest)
    if tied.size:
        first = np.abs(blocks[tied]).argmax(axis=1)
        largest[tied] = blocks[tied, first]
    return largest


def _multiples(values: Array, scale: Array) -> Array:
    """Return values / scale, (n, block), by way of the reciprocal; NaN where that overflows."""
    inverse = reciprocal(scale)
    inverse[np.isinf(inverse)] = np.nan
    return values * inverse[:, None]


def _cut(multiples: Array, shift: float, dtype: type[np.generic]) -> Array:
    """Return multiples + shift without their fractions, as small integers; 0 for NaN."""
    if shift:
        multiples += np.float32(shift)
    if np.isnan(multiples[:, 0]).any():
        multiples[np.isnan(multiples)] = 0
    return multiples.astype(dtype)


def _round_half_away(multiples: Array) -> Array:
    """Return the nearest integers, ties away from zero, as int8; 0 for NaN."""
    almost_half = np.bitwise_and(multiples.view(np.uint32), np.uint32(0x80000000))
    almost_half |= np.float32(0.49999997).view(np.uint32)  # the float below 1/2: the sum reaches the next integer from 1/2 on
    multiples += almost_half.view(np.float32)
    return _cut(multiples, 0, np.int8)


def _scaled(codes: Array, scale: Array, offset: int = 0) -> Array:
    """Return (codes - offset) * scale, float32 (n, block)."""
    values = codes.astype(np.float32)
    if offset:
        values -= np.float32(offset)
    values *= scale.astype(np.float32)[:, None]
    return values


# --- 8 bits --------------------------------------------------------------------------------------------------------
def encode_q8_0(blocks: Array, importance: Array | None = None) -> Array:
    """Codes -127 to 127; the scale is absmax / 127."""
    scale = largest_magnitude(blocks) / np.float32(127)
    (stored,) = stored_halves(blocks, scale)
    return write(len(blocks), "q8_0", scale=stored, codes=_round_half_away(_multiples(blocks, scale)))


def decode_q8_0(payload: Array) -> Array:
    """Values are codes * scale."""
    stored = read(payload, "q8_0")
    return _scaled(stored["codes"], stored["scale"])


# --- 4 and 5 bits, symmetric: the largest magnitude, with its sign, becomes the code for -8 or -16 --------------------
def _encode_symmetric(blocks: Array, importance: Array | None, half: int) -> tuple[Array, Array]:
    if importance is not None:
        unit_blocks, exponent = unit_size(blocks)
        scale = fit_scale(unit_blocks.T, importance.T, -half, to_integers(half))
        (stored,) = stored_halves(blocks, np.ldexp(scale, exponent))
        multiples = _multiples(blocks, stored.astype(np.float32))
        np.rint(multiples, out=multiples)
        np.clip(multiples, np.float32(-half), np.float32(half - 1), out=multiples)
        return stored, _cut(multiples, half, np.uint8)
    scale = largest_with_sign(blocks) / np.float32(-half)
    (stored,) = stored_halves(blocks, scale)
    codes = _cut(_multiples(blocks, scale), half + 0.5, np.uint8)
    return stored, np.minimum(codes, np.uint8(2 * half - 1), out=codes)


def encode_q4_0(blocks: Array, importance: Array | None = None) -> Array:
    """Codes 0 to 15 for -8 to 7."""
    scale, codes = _encode_symmetric(blocks, importance, 8)
    return write(len(blocks), "q4_0", scale=scale, codes=pack(codes, bits=4, run=16))


def decode_q4_0(payload: Array) -> Array:
    """Values are (codes - 8) * scale."""
    stored = read(payload, "q4_0")
    return _scaled(unpack(stored["codes"], bits=4, run=16), stored["scale"], offset=8)


def encode_q5_0(blocks: Array, importance: Array | None = None) -> Array:
    """Codes 0 to 31 for -16 to 15; the fifth bits lie together."""
    scale, codes = _encode_symmetric(blocks, importance, 16)
    low, high = _split_fifth_bit(codes)
    return write(len(blocks), "q5_0", scale=scale, high=high, codes=low)


def decode_q5_0(payload: Array) -> Array:
    """Values are (codes - 16) * scale."""
    stored = read(payload, "q5_0")
    return _scaled(_join_fifth_bit(stored), stored["scale"], offset=16)


def _split_fifth_bit(codes: Array) -> tuple[Array, Array]:
    low, high = codes & np.uint8(15), codes >> np.uint8(4)
    return pack(low, bits=4, run=16), np.packbits(high, axis=1, bitorder="little")


def _join_fifth_bit(stored: Array) -> Array:
    codes = unpack(stored["codes"], bits=4, run=16)
    codes |= np.unpackbits(np.ascontiguousarray(stored["high"]), axis=1, bitorder="little") << np.uint8(4)
    return codes


# --- 4 and 5 bits with a minimum: code 0 is the lowest value, the last code the highest -------------------------------
def _encode_with_minimum(blocks: Array, importance: Array | None, top: int) -> tuple[Array, Array, Array]:
    if importance is not None:
        unit_blocks, exponent = unit_size(blocks)
        scale, minimum = fit_scale_and_minimum(unit_blocks.T, importance.T, top)
        stored, stored_minimum = stored_halves(blocks, np.ldexp(scale, exponent), np.ldexp(minimum, exponent))
        multiples = _multiples(blocks - stored_minimum.astype(np.float32)[:, None], stored.astype(np.float32))
        np.rint(multiples, out=multiples)
        np.clip(multiples, np.float32(0), np.float32(top), out=multiples)
        return stored, stored_minimum, _cut(multiples, 0, np.uint8)
    lowest, highest = row_extremes(blocks)
    zero = np.flatnonzero(lowest == 0)
    lowest[zero] = blocks[zero].min(axis=1)  # of zeros of both signs the one that gguf-py takes
    with np.errstate(over="ignore"):
        span = highest - lowest
    scale = np.where(np.isinf(span), highest / np.float32(top) - lowest / np.float32(top), span / np.float32(top))
    stored, stored_minimum = stored_halves(blocks, scale, lowest)
    return stored, stored_minimum, _cut(_multiples(blocks - lowest[:, None], scale), 0.5, np.uint8)


def encode_q4_1(blocks: Array, importance: Array | None = None) -> Array:
    """Codes 0 to 15."""
    scale, minimum, codes = _encode_with_minimum(blocks, importance, 15)
    return write(len(blocks), "q4_1", scale=scale, minimum=minimum, codes=pack(codes, bits=4, run=16))


def decode_q4_1(payload: Array) -> Array:
    """Values are codes * scale + minimum."""
    stored = read(payload, "q4_1")
    values = _scaled(unpack(stored["codes"], bits=4, run=16), stored["scale"])
    values += stored["minimum"].astype(np.float32)[:, None]
    return values


def encode_q5_1(blocks: Array, importance: Array | None = None) -> Array:
    """Codes 0 to 31; the fifth bits lie together."""
    scale, minimum, codes = _encode_with_minimum(blocks, importance, 31)
    low, high = _split_fifth_bit(codes)
    return write(len(blocks), "q5_1", scale=scale, minimum=minimum, high=high, codes=low)


def decode_q5_1(payload: Array) -> Array:
    """Values are codes * scale + minimum."""
    stored = read(payload, "q5_1")
    values = _scaled(_join_fifth_bit(stored), stored["scale"])
    values += stored["minimum"].astype(np.float32)[:, None]
    return values


# --- three values: -1, 0, 1, times the largest magnitude of 256 --------------------------------------------------------
def _encode_ternary(blocks: Array) -> tuple[Array, Array]:
    scale = largest_magnitude(blocks)
    (stored,) = stored_halves(blocks, scale)
    digits = _round_half_away(_multiples(blocks, scale)) + np.int8(1)
    return stored, digits.view(np.uint8)  # 0, 1, 2


_RUNS = ((0, 32, 5), (160, 16, 5), (240, 4, 4))
"""TQ1_0: from which value on runs of how many bytes hold how many digits each."""


def encode_tq1_0(blocks: Array, importance: Array | None = None) -> Array:
    """Five digits of base 3 in a byte (four in the last ones), as the fraction byte / 256, rounded up."""
    scale, digits = _encode_ternary(blocks)
    packed = []
    for start, run, count in _RUNS:
        number = np.zeros((len(blocks), run), np.uint8)
        for k in range(5):
            number *= np.uint8(3)
            if k < count:
                number += digits[:, start + k * run : start + (k + 1) * run]
        packed.append(((number.astype(np.uint16) << 8) + np.uint16(242)) // np.uint16(243))
    return write(len(blocks), "tq1_0", scale=scale, codes=np.concatenate(packed, axis=1))


def decode_tq1_0(payload: Array) -> Array:
    """Multiplied by 3, the fraction's integer part is the next digit."""
    stored = read(payload, "tq1_0")
    digits, start = [], 0
    for _, run, count in _RUNS:
        fraction = np.ascontiguousarray(stored["codes"][:, start : start + run])
        for _ in range(count):
            digits.append((fraction.astype(np.uint16) * np.uint16(3) >> 8).astype(np.uint8))
            fraction = fraction * np.uint8(3)
        start += run
    return _scaled(np.concatenate(digits, axis=1), stored["scale"], offset=1)


def encode_tq2_0(blocks: Array, importance: Array | None = None) -> Array:
    """Four digits of two bits in a byte."""
    scale, digits = _encode_ternary(blocks)
    return write(len(blocks), "tq2_0", scale=scale, codes=pack(digits, bits=2, run=32))


def decode_tq2_0(payload: Array) -> Array:
    """Values are (codes - 1) * scale."""
    stored = read(payload, "tq2_0")
    return _scaled(unpack(stored["codes"], bits=2, run=32), stored["scale"], offset=1)


# --- e2m1 with a power of two (MXFP4) or an e4m3 number (NVFP4) as scale -----------------------------------------------
def _with_sign(codes: Array, values: Array) -> Array:
    """Add the sign bit to e2m1 codes where they are not zero."""
    negative = np.less(values, 0).view(np.uint8)
    negative &= np.not_equal(codes, 0).view(np.uint8)
    codes |= np.left_shift(negative, np.uint8(3), out=negative)
    return codes


def encode_mxfp4(blocks: Array, importance: Array | None = None) -> Array:
    """To the nearest e2m1 value, ties to the smaller one; the scale is 2**(floor(log2(absmax)) - 2).

    The exponent comes from the bits: just below a power of two, gguf-py's float32 log2 is one too high. Below 2**-125
    its exponent wraps around; here it stops at code 0.
    """
    exponent = (largest_magnitude(blocks).view(np.int32) >> 23) - 2  # biased; that of subnormals is 0
    np.maximum(exponent, 0, out=exponent)
    inverse = ((254 - exponent) << 23).view(np.float32)  # 2**(127 - exponent)
    magnitudes = np.abs(blocks)
    magnitudes *= inverse[:, None]  # exact, but for what is far below the first midpoint
    codes = np.greater(magnitudes, _E2M1_MIDPOINTS[0]).view(np.uint8)
    for midpoint in _E2M1_MIDPOINTS[1:]:
        codes += np.greater(magnitudes, midpoint).view(np.uint8)
    packed = pack(_with_sign(codes, blocks), bits=4, run=16)
    return write(len(blocks), "mxfp4", exponent=exponent, codes=packed)


def decode_mxfp4(payload: Array) -> Array:
    """Values are e2m1 * 2**(exponent - 127): twice the one, half the other."""
    stored = read(payload, "mxfp4")
    exponent = stored["exponent"].astype(np.uint32)
    subnormal = np.uint32(1 << 21) << np.minimum(exponent, 1)  # 2**-128, 2**-127
    half_scale = np.where(exponent < 2, subnormal, (exponent - np.uint32(1)) << 23).view(np.float32)
    with np.errstate(over="ignore"):  # exponent 255, which no encoder writes
        return _e2m1_doubled(stored["codes"], 16) * half_scale[:, None]


def _e2m1_doubled(packed: Array, run: int) -> Array:
    return np.take(E2M1_DOUBLED, unpack(packed, bits=4, run=run))


def encode_nvfp4(blocks: Array, importance: Array | None = None) -> Array:
    """Four groups of 16 to the nearest e2m1 value, ties to the smaller one; the scale is absmax / 6 as e4m3, ties up.

    ggml stores every scale that rounds to 256 or more as 448, and those just below 2**-6 one
    code lower; not so here.

    Raises
    ------
    ValueError
        If a scale is above 448: GGUF keeps the scale of a whole tensor apart.
    """
    groups = blocks.reshape(-1, 16)  # (4 n, 16)
    largest = largest_magnitude(groups)
    scale = largest / np.float32(6)
    if scale.size and not scale.max() < 464:  # 464 would round to 480
        raise ValueError(
            f"a group whose largest magnitude is {largest.max():.7g} needs a scale of {scale.max():.7g}, and e4m3 holds at "
            "most 448: the largest magnitude allowed is 2688; divide x by a constant and keep that as the tensor's scale"
        )
    bits = scale.view(np.int32)
    normal = ((bits + (1 << 19)) >> 20) - (120 << 3)  # rounded to 3 bits, halves up
    subnormal = (scale * np.float32(512) + np.float32(0.5)).astype(np.int32)
    scales = np.where(scale < 2**-6, subnormal, normal)
    half_scale = _e4m3_halved(scales)
    magnitudes = np.abs(groups)
    codes = np.zeros(groups.shape, np.uint8)
    for midpoint in _E2M1_MIDPOINTS:
        codes += np.greater(magnitudes, (half_scale * (2 * midpoint))[:, None]).view(np.uint8)  # exact products
    codes[half_scale == 0] = 0
    packed = pack(_with_sign(codes, groups), bits=4, run=8)
    return write(len(blocks), "nvfp4", scales=scales.reshape(-1, 4), codes=packed.reshape(-1, 32))


def _e4m3_halved(codes: Array) -> Array:
    """Half of the values of codes without sign, float32; 0 for the code of NaN."""
    magnitude = codes.astype(np.int32) & 127
    normal = ((magnitude + (119 << 3)) << 20).view(np.float32)
    halved = np.where(magnitude < 8, magnitude.astype(np.float32) * np.float32(2**-10), normal)
    return np.where(codes == 127, np.float32(0), halved)


def decode_nvfp4(payload: Array) -> Array:
    """Values are e2m1 * scale: twice the one, half the other."""
    stored = read(payload, "nvfp4")
    values = _e2m1_doubled(stored["codes"], 8).reshape(-1, 4, 16)
    values *= _e4m3_halved(stored["scales"])[:, :, None]
    return values.reshape(-1, 64)
