"""GGUF's i-types: codes for values that are not evenly spaced, and codes for eight values at once.

IQ4_NL and IQ4_XS have sixteen uneven levels, dense near zero as weights are; they are encoded by the search of `search`. In
IQ1, IQ2 and IQ3 a code names a vector of eight or four magnitudes (see `grids`), with signs beside it. These are
decoded only: llama.cpp's encoders for them need the importance of the values and minutes of search.
"""

from __future__ import annotations

import numpy as np

from qlab._pieces import Array
from qlab.tensor.gguf.grids import grid
from qlab.tensor.gguf.layouts import pack, read, reciprocal, stored_halves, unpack, write
from qlab.tensor.gguf.search import fit_scale, unit_size
from qlab.tensor.gguf.super_blocks import search_symmetric

__all__ = [
    "decode_iq1_m", "decode_iq1_s", "decode_iq2_s", "decode_iq2_xs", "decode_iq2_xxs", "decode_iq3_s", "decode_iq3_xxs",
    "decode_iq4_nl", "decode_iq4_xs", "encode_iq4_nl", "encode_iq4_xs",
]  # fmt: skip

IQ4_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""What the sixteen codes stand for."""

_HALVES = np.arange(-256, 256) / 2  # all midpoints between levels are among these
_IQ4_CODES = np.searchsorted((IQ4_LEVELS[1:] + IQ4_LEVELS[:-1]) / 2, _HALVES, side="right").astype(np.uint8)
_IQ4_NEAREST = IQ4_LEVELS[_IQ4_CODES]
_STEPS = (*range(-7, 8), *range(-254, -232, 3))
"""The largest magnitude is tried as the lowest level, -127, and thereabouts, and with the other sign as the highest, 113."""


# --- sixteen uneven levels --------------------------------------------------------------------------------------------
def _half_index(numbers: Array) -> Array:
    """Return where in `_HALVES` the last entry not above each number is; the ends for what lies beyond them."""
    index = numbers * np.float32(2)
    index += np.float32(256)
    np.clip(index, np.float32(0), np.float32(511), out=index)
    return index.astype(np.intp)


def _to_level(numbers: Array) -> None:
    """Replace numbers by the nearest of the levels, in place."""
    np.take(_IQ4_NEAREST, _half_index(numbers), out=numbers, mode="clip")


def encode_iq4_nl(blocks: Array, importance: Array | None = None) -> Array:
    """32 values, one scale."""
    unit_blocks, exponent = unit_size(blocks)
    scale = fit_scale(unit_blocks.T, None if importance is None else importance.T, -127, _to_level, steps=_STEPS)
    (stored,) = stored_halves(blocks, np.ldexp(scale, exponent))
    unit = np.ldexp(stored.astype(np.float32), -exponent)
    codes = np.take(_IQ4_CODES, _half_index(unit_blocks * reciprocal(unit)[:, None]))
    return write(len(blocks), "iq4_nl", scale=stored, codes=pack(codes, bits=4, run=16))


def decode_iq4_nl(payload: Array) -> Array:
    """Values are levels * scale."""
    stored = read(payload, "iq4_nl")
    values = np.take(IQ4_LEVELS, unpack(stored["codes"], bits=4, run=16))
    values *= stored["scale"].astype(np.float32)[:, None]
    return values


def encode_iq4_xs(blocks: Array, importance: Array | None = None) -> Array:
    """256 values in groups of 32, scales -32 to 31."""
    found = search_symmetric(blocks, importance, group=32, lowest=-127, to_level=_to_level, end=32, steps=_STEPS)
    codes = np.take(_IQ4_CODES, _half_index(found.levels))
    scales = (found.scales + np.float32(32)).astype(np.uint8)
    low, high = pack(scales & np.uint8(15), bits=4, run=1), pack(scales >> np.uint8(4), bits=2, run=1)
    return write(
        len(blocks), "iq4_xs", scale=found.scale, scales_high=high.view("<u2")[:, 0], scales_low=low,
        codes=pack(codes, bits=4, run=16),
    )  # fmt: skip


def decode_iq4_xs(payload: Array) -> Array:
    """Scales of 4 + 2 bits, 32 too large."""
    stored = read(payload, "iq4_xs")
    scales = unpack(stored["scales_low"], bits=4, run=1)
    scales |= unpack(_bytes(stored["scales_high"]), bits=2, run=1) << np.uint8(4)
    step = stored["scale"].astype(np.float32)[:, None] * (scales.astype(np.float32) - np.float32(32))
    values = np.take(IQ4_LEVELS, unpack(stored["codes"], bits=4, run=16)).reshape(-1, 8, 32)
    values *= step[:, :, None]
    return values.reshape(-1, 256)


# --- vectors of a grid --------------------------------------------------------------------------------------------------
def _bytes(words: Array) -> Array:
    """(n, ...) of any integers to uint8 (n, bytes)."""
    return np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)


def _fields(words: Array, shifts: tuple[int, ...], bits: int) -> Array:
    """Take fields of some bits out of words: (n, count) to (n, count * len(shifts))."""
    parts: Array = words[:, :, None] >> np.array(shifts, words.dtype) & words.dtype.type((1 << bits) - 1)
    return parts.reshape(len(words), -1)


def _seven_signs(codes: Array) -> Array:
    """Return the signs that 7 bits stand for: the eighth makes the number of minus signs even. (n, count) to (n, 8 count)."""
    parity = codes ^ codes >> 4
    parity ^= parity >> 2
    parity ^= parity >> 1
    return _signs((codes | (parity & 1) << 7).astype(np.uint8))


def _signs(bits: Array) -> Array:
    """Return -1 for each bit that is set, 1 for others: uint8 (n, bytes) to float32 (n, 8 * bytes)."""
    minus = np.unpackbits(np.ascontiguousarray(bits), axis=1, bitorder="little")
    return np.float32(1) - np.float32(2) * minus.astype(np.float32)


def _from_grid(name: str, codes: Array, step: Array, signs: Array) -> Array:
    """Return step * vectors * signs: codes (n, count), step (n, groups), signs (n, 256)."""
    vectors = np.take(grid(name), codes, axis=0)  # (n, count, 8 or 4)
    values = step[:, :, None] * vectors.reshape(*step.shape, -1)
    return np.asarray(values.reshape(signs.shape) * signs)


def _half(scale: Array) -> Array:
    """Float16 (n,) to float32 (n, 1)."""
    return scale.astype(np.float32)[:, None]


def decode_iq2_xxs(payload: Array) -> Array:
    """Eight groups of 4 vectors: a word of four codes, a word of four times 7 signs and a scale of 4 bits."""
    stored = read(payload, "iq2_xxs")
    codes, rest = _bytes(stored["codes"][:, :, 0]), stored["codes"][:, :, 1]
    step = _half(stored["scale"]) * (np.float32(0.5) + (rest >> 28).astype(np.float32)) * np.float32(0.25)
    return _from_grid("iq2_xxs", codes, step, _seven_signs(_fields(rest, (0, 7, 14, 21), 7)))


def decode_iq2_xs(payload: Array) -> Array:
    """32 vectors: codes of 9 bits with 7 signs, scales of 4 bits."""
    stored = read(payload, "iq2_xs")
    scales, words = unpack(stored["scales"], bits=4, run=1), stored["codes"]
    step = _half(stored["scale"]) * (np.float32(0.5) + scales) * np.float32(0.25)
    return _from_grid("iq2_xs", words & np.uint16(511), step, _seven_signs(words >> 9))


def decode_iq2_s(payload: Array) -> Array:
    """32 vectors: codes of 8 + 2 bits, 8 signs, scales of 4 bits."""
    stored = read(payload, "iq2_s")
    scales, high = unpack(stored["scales"], bits=4, run=1), unpack(stored["high"], bits=2, run=1)
    step = _half(stored["scale"]) * (np.float32(0.5) + scales) * np.float32(0.25)
    codes = stored["codes"] | high.astype(np.uint16) << 8
    return _from_grid("iq2_s", codes, step, _signs(stored["signs"]))


def decode_iq3_xxs(payload: Array) -> Array:
    """64 vectors of four: codes of 8 bits, words of four times 7 signs and a scale of 4 bits."""
    stored = read(payload, "iq3_xxs")
    words = stored["signs"]
    step = _half(stored["scale"]) * (np.float32(0.5) + (words >> 28).astype(np.float32)) * np.float32(0.5)
    return _from_grid("iq3_xxs", stored["codes"], step, _seven_signs(_fields(words, (0, 7, 14, 21), 7)))


def decode_iq3_s(payload: Array) -> Array:
    """64 vectors of four: codes of 8 + 1 bits, 8 signs, odd scales of 4 bits."""
    stored = read(payload, "iq3_s")
    scales, high = unpack(stored["scales"], bits=4, run=1), unpack(stored["high"], bits=1, run=1)
    step = _half(stored["scale"]) * (1 + 2 * scales)
    codes = stored["codes"] | high.astype(np.uint16) << 8
    return _from_grid("iq3_s", codes, step, _signs(stored["signs"]))


_SHIFT = np.float32(0.125)  # what IQ1 adds to the entries -1, 0, 1 of a vector, or subtracts


def _from_shifted_grid(codes: Array, step: Array, minus: Array) -> Array:
    """Return step * (vectors + shift): codes (n, 32), step and minus (n, groups)."""
    vectors = np.take(grid("iq1_s"), codes, axis=0).reshape(*minus.shape, -1)
    vectors += np.where(minus, -_SHIFT, _SHIFT)[:, :, None]
    values = vectors.reshape(*step.shape, -1) * step[:, :, None]
    return values.reshape(-1, 256)


def decode_iq1_s(payload: Array) -> Array:
    """Eight groups of 4 vectors: codes of 8 + 3 bits, an odd scale of 3 bits and the shift's sign."""
    stored = read(payload, "iq1_s")
    words = stored["high"]
    step = _half(stored["scale"]) * (2 * (words >> 12 & 7) + 1)
    codes = stored["codes"] | _fields(words, (0, 3, 6, 9), 3) << 8
    return _from_shifted_grid(codes, step, words & 0x8000)


def decode_iq1_m(payload: Array) -> Array:
    """32 vectors: codes of 8 + 3 bits, each with a shift's sign; 16 odd scales of 3 bits, and a float16 cut in four."""
    stored = read(payload, "iq1_m")
    words, high = stored["scales"], unpack(stored["high"], bits=4, run=1)
    quarters = (words & np.uint16(0xF000)) >> np.array([12, 8, 4, 0], np.uint16)
    scale = np.bitwise_or.reduce(quarters, axis=1).view(np.float16)
    step = _half(scale) * (2 * _fields(words, (0, 3, 6, 9), 3) + 1)
    codes = stored["codes"] | (high & np.uint8(7)).astype(np.uint16) << 8
    return _from_shifted_grid(codes, step, high & 8)
