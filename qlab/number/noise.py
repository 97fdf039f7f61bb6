"""Random bits for stochastic rounding: a counter-based generator, the same in NumPy, torch and Triton.

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a 64-bit key and a 128-bit
counter into four words of 32 bits. Element i of an array gets word ``i % 4`` of counter ``i // 4``: its noise depends on
the seed and on its place alone, not on the size of pieces, on threads, or on the device.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qlab._pieces import Array, Scratch

__all__ = ["philox", "seed_of"]

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)


def seed_of(rng: Any) -> int:
    """Return a 64-bit seed: an integer itself, or the next one of a NumPy generator.

    Raises
    ------
    TypeError, ValueError
        If `rng` is neither, or a negative or too large integer.
    """
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(0, 1 << 64, dtype=np.uint64))
    if isinstance(rng, (bool, np.bool_)) or not isinstance(rng, (int, np.integer)):
        raise TypeError(f"rng is {type(rng).__name__}; it must be an int (the seed) or a numpy.random.Generator")
    if not 0 <= rng < 1 << 64:
        raise ValueError(f"rng={rng} is not allowed; a seed is an integer from 0 to 2**64 - 1")
    return int(rng)


def philox(seed: int, start: int, stop: int, scratch: Scratch | None = None) -> Array:
    """Return the noise of the elements `start` to `stop`.

    Parameters
    ----------
    seed : int
        Key, 64 bits.
    start, stop : int
        Places in the flattened array; `start` is a multiple of 4.

    Returns
    -------
    noise : uint32 array of shape (stop - start,)

    Examples
    --------
    >>> from qlab.number.noise import philox
    >>> [hex(word) for word in philox(0, 0, 4)]  # known answer of the authors' test vectors
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    assert start % 4 == 0
    scratch = scratch or Scratch()
    count = (stop - start + 3) // 4
    words = [scratch(f"philox{i}", np.uint64, count) for i in range(4)]
    counters = np.arange(start // 4, start // 4 + count, dtype=np.uint64)
    np.bitwise_and(counters, _LOW, out=words[0])
    np.right_shift(counters, 32, out=words[1])
    words[2][:] = 0
    words[3][:] = 0
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(ROUNDS):
        c0, c1, c2, c3 = words
        np.multiply(c0, MULTIPLIERS[0], out=c0)
        np.multiply(c2, MULTIPLIERS[1], out=c2)
        np.bitwise_xor(c1, key[0], out=c1)
        np.bitwise_xor(c3, key[1], out=c3)
        _high_into(c2, c1, scratch)  # c1 ^= high(c2); c2 becomes its low word
        _high_into(c0, c3, scratch)
        words = [c1, c2, c3, c0]
        key = [(key[0] + WEYL[0]) & 0xFFFFFFFF, (key[1] + WEYL[1]) & 0xFFFFFFFF]
    noise = scratch("philox", np.uint32, 4 * count)
    for i, word in enumerate(words):
        np.copyto(noise[i::4], word, casting="unsafe")
    return noise[: stop - start]


def _high_into(product: Array, target: Array, scratch: Scratch) -> None:
    high = np.right_shift(product, 32, out=scratch("philox_high", np.uint64, product.size))
    np.bitwise_xor(target, high, out=target)
    np.bitwise_and(product, _LOW, out=product)
