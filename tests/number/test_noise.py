"""The counter-based generator, and stochastic rounding from a seed."""

from __future__ import annotations

import numpy as np
import pytest

import qlab
from qlab._pieces import PIECE
from qlab.number.noise import philox, seed_of

# Known answers of the Random123 library: counter, key, result.
KNOWN = [
    ((0, 0), ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]),
]


@pytest.mark.parametrize("key, words", KNOWN)
def test_known_answers(key, words):
    assert [f"{w:08x}" for w in philox(key[0] | key[1] << 32, 0, 4)] == words


def reference(seed: int, counter: int) -> list[int]:
    """Philox 4x32-10 in plain integers, from the paper."""
    c, k = [counter & 0xFFFFFFFF, counter >> 32, 0, 0], [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 2**64 - 1])
@pytest.mark.parametrize("start", [0, 4, 2**20, 2**34 + 8])
def test_against_plain_integers(seed, start):
    expected = [w for counter in range(start // 4, start // 4 + 3) for w in reference(seed, counter)][:10]
    assert philox(seed, start, start + 10).tolist() == expected


def test_a_seed_gives_one_answer_whatever_the_threads():
    x = np.random.default_rng(0).standard_normal(17 * PIECE + 3).astype(np.float32)
    expected = qlab.cast(x, "bfloat16", rounding="stochastic", noise=philox(7, 0, x.size))
    try:
        for threads in (1, 2):
            qlab.set_num_threads(threads)
            assert np.array_equal(qlab.cast(x, "bfloat16", rounding="stochastic", rng=7), expected)
            codes = qlab.encode(x, "bfloat16", rounding="stochastic", rng=7)
            assert np.array_equal(qlab.decode(codes, "bfloat16"), expected)
    finally:
        qlab.set_num_threads(None)
    assert not np.array_equal(qlab.cast(x, "bfloat16", rounding="stochastic", rng=8), expected)


def test_a_generator_gives_a_new_seed_each_time_and_the_global_one_is_left_alone():
    rng = np.random.default_rng(3)
    x = np.full(1000, 1.001)
    np.random.seed(0)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (qlab.cast(x, "float16", rounding="stochastic", rng=rng) for _ in range(2))
    assert not np.array_equal(first, second)
    again = qlab.cast(x, "float16", rounding="stochastic", rng=np.random.default_rng(3))
    assert np.array_equal(first, again)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert seed_of(5) == 5


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float4_e2m1fn", "bfloat16", "int4", "nf4", "float16"])
def test_unbiased(name):
    """The mean of many roundings is the value itself, within five standard errors."""
    value = 0.3217
    rounded = np.asarray(qlab.cast(np.full(200_000, value), name, rounding="stochastic", rng=1), np.float64)
    assert len(np.unique(rounded)) == 2
    assert abs(rounded.mean() - value) < 5 * rounded.std() / np.sqrt(rounded.size)


def test_exact_values_stay():
    for name in ("float8_e4m3fn", "int4", "nf4", "bfloat16", "float8_e8m0fnu"):
        values = qlab.get_format(name).values()
        values = values[np.isfinite(values)]
        assert np.array_equal(qlab.cast(values, name, rounding="stochastic", rng=2), values)
