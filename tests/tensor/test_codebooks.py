"""Codebooks against bitsandbytes, published tables and numbers, and slow ways to the same values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qlab
from qlab.tensor import codebooks
from qlab.tensor.codebooks import abnormal_float, dynamic_map, lloyd_max, log_codes, normal_float

LLOYD_MAX_ERRORS = [0.363380, 0.117482, 0.034548, 0.009501, 0.002505]  # Max, 1960, table I, for 1 to 5 bits


@pytest.fixture(scope="module")
def bnb():
    return pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")


# --- from a distribution -----------------------------------------------------------------------------------------------
def test_nf4_is_the_published_table(bnb):
    assert normal_float(4) == qlab.get_format("nf4")
    assert np.array_equal(normal_float(4).values(), bnb.get_4bit_type("nf4", "cpu").numpy().astype(np.float64))


@pytest.mark.parametrize("bits", range(2, 9))
def test_normal_float(bits):
    values = normal_float(bits).values()
    half = 1 << (bits - 1)
    assert (np.diff(values) > 0).all()
    assert values[[0, half - 1, -1]].tolist() == [-1, 0, 1]
    shares = [math.erfc(v) for v in values[half:] * _probit(values, half)]  # evenly spaced in probability
    assert np.allclose(np.diff(shares), np.diff(shares)[0], rtol=1e-3)


def _probit(values, half):
    """The factor that the quantiles were divided by, over sqrt(2), by bisection on the outermost probability."""
    outermost = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2
    low, high = 0.0, 5.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - math.erfc(middle) / 2 < outermost else (low, middle)
    return low


def test_af4_is_the_published_table(bnb):
    published = [
        -1.0, -0.69441008, -0.51243739, -0.3736951, -0.25607552, -0.14982478, -0.04934812, 0.0,
        0.04273164, 0.12934483, 0.21961274, 0.31675666, 0.42563882, 0.55496234, 0.72424863, 1.0,
    ]  # fmt: skip
    assert np.abs(abnormal_float(64).values() - published).max() < 2e-8
    assert np.abs(abnormal_float(64).values() - np.sort(bnb.get_4bit_type("af4", "cpu", blocksize=64).numpy())).max() < 6e-8
    assert qlab.get_scheme("af4").format == abnormal_float(64)


@pytest.mark.parametrize("block", [3, 32, 256, 4096])
def test_af4_values_are_medians(block):
    values = abnormal_float(block).values()
    z = np.abs(np.random.default_rng(0).standard_normal((max(1, (1 << 20) // block), block)))
    z = np.sort(z / z.max(axis=1, keepdims=True), axis=1)[:, :-1].ravel()  # without the largest ones
    for side in (values[8:], -values[6::-1]):
        ends = np.concatenate([[0.0], (side[1:] + side[:-1]) / 2])
        for value, low, high in zip(side[:-1], ends[:-1], ends[1:], strict=True):
            below, above = np.sum((z >= low) & (z < value)), np.sum((z >= value) & (z < high))
            assert abs(below - above) < 4 * math.sqrt(below + above) + 1, (value, below, above)


@pytest.mark.parametrize("bits", range(1, 9))
def test_lloyd_max_for_the_normal_distribution(bits):
    values = lloyd_max("normal", bits).values()
    assert np.array_equal(values, -values[::-1])
    ends = [-math.inf, *((values[1:] + values[:-1]) / 2).tolist(), math.inf]
    below = np.array([math.erfc(-e / math.sqrt(2)) / 2 for e in ends])
    density = np.array([math.exp(-e * e / 2) / math.sqrt(2 * math.pi) for e in ends])
    share = np.diff(below)
    assert np.allclose(-np.diff(density) / share, values, rtol=1e-6, atol=1e-6)  # each is the mean of its cell
    error = 1 - 2 * float(-np.diff(density) @ values) + float(share @ values**2)
    if bits <= 5:
        assert round(error, 6) == LLOYD_MAX_ERRORS[bits - 1]


def test_lloyd_max_of_an_array_nears_that_of_its_distribution():
    x = np.random.default_rng(0).standard_normal(1 << 17).astype(np.float32)
    for bits, best in enumerate(LLOYD_MAX_ERRORS, start=1):
        own, ideal = lloyd_max(x, bits), lloyd_max("normal", bits)
        mine, theirs = (np.square(qlab.cast(x, fmt) - x).mean(dtype=np.float64) for fmt in (own, ideal))
        assert mine <= theirs
        assert abs(mine / best - 1) < 0.02
        assert lloyd_max(x[::-1].reshape(2, -1), bits) == own


@given(x=st.lists(st.integers(-1000, 1000), min_size=2, max_size=12).filter(lambda v: len(set(v)) > 1))
def test_lloyd_max_levels_are_the_means_of_their_cells(x):
    low, high = lloyd_max(x, 1).table
    array = np.sort(np.array(x, np.float64))
    upper = array > (low + high) / 2
    if len(set(x)) > 2:
        assert np.allclose([array[~upper].mean(), array[upper].mean()], [low, high], atol=1e-3)
    else:
        assert [low, high] == sorted(set(x))


def test_lloyd_max_of_few_numbers():
    assert lloyd_max([3.0, 1.0, 3.0], 2).table == (1.0, 3.0, 3.0, 3.0)
    assert lloyd_max(np.float32([0.1, 0.2]), 1).table == (float(np.float32(0.1)), float(np.float32(0.2)))
    assert lloyd_max([0.1, 0.2], 1).table == (0.1, 0.2)


# --- designs -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("signed", [True, False])
def test_dynamic_map(bnb, signed):
    theirs = bnb.create_dynamic_map(signed=signed).numpy()
    assert np.array_equal(dynamic_map(signed=signed).values(), theirs.astype(np.float64))


def test_fp4_values(bnb):
    assert np.array_equal(np.float32(codebooks.bitsandbytes_fp4().table), bnb.get_4bit_type("fp4", "cpu").numpy())


@pytest.mark.parametrize("bits", range(2, 9))
def test_log_codes(bits):
    fmt = log_codes(bits)
    magnitudes = np.unique(np.abs(fmt.values()))
    assert len(magnitudes) == 1 << (bits - 1)
    assert magnitudes[0] == 0
    assert np.array_equal(magnitudes[1:], 2.0 ** np.arange(2 - len(magnitudes), 1))
    assert np.array_equal(fmt.values()[: len(magnitudes)], -fmt.values()[len(magnitudes) :])


def test_named_ones():
    assert qlab.encode([-2.0, -0.5, 0.0, 0.5, 0.51], qlab.get_scheme("ternary").format).tolist() == [0, 0, 1, 2, 2]
    assert qlab.encode([-2.0, 0.0, 0.1], codebooks.binary()).tolist() == [0, 0, 1]
    assert qlab.get_scheme("log4").format == log_codes(4)
    assert qlab.get_scheme("fp4_bnb").format == codebooks.bitsandbytes_fp4()


# --- bitsandbytes decides ----------------------------------------------------------------------------------------------
def their_codes(bnb, x, kind):
    """Codes of x in [-1, 1], in blocks of 64 of which each starts with 1."""
    torch = pytest.importorskip("torch")
    blocks = np.ones((-(-x.size // 63), 64), np.float32)  # (n_blocks, 64)
    blocks[:, 1:].flat[: x.size] = x
    packed, state = bnb.quantize_4bit(torch.from_numpy(blocks), blocksize=64, quant_type=kind)
    assert (state.absmax == 1).all()
    packed = packed.numpy().reshape(-1)
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1, 64)
    return codes[:, 1:].reshape(-1)[: x.size]


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_codes_of_bitsandbytes(bnb, kind):
    """On both ends of all buckets of float32, 4 ulp about each value and boundary, and at random."""
    fmt = {"nf4": codebooks.bitsandbytes_nf4, "fp4": codebooks.bitsandbytes_fp4}[kind]()
    rng = np.random.default_rng(0)
    first = np.arange(65536, dtype=np.uint32) << 16
    points = np.float32(np.concatenate([fmt.thresholds[:, 0], fmt.values(), [0.0, -0.0]])).view(np.uint32)
    near = [points + np.uint32(k % (1 << 32)) for k in range(-4, 5)]
    ends = [first + np.uint32(k % (1 << 32)) for k in range(-4, 5)]
    x = np.concatenate([*ends, *near, rng.integers(0, 1 << 32, 1 << 21, np.uint32)]).view(np.float32)
    x = np.concatenate([x, rng.uniform(-1, 1, 1 << 22).astype(np.float32)])
    x = x[np.abs(x) <= 1]  # NaN are not
    mine, theirs = qlab.encode(x, fmt), their_codes(bnb, x, kind)
    assert np.array_equal(fmt.values()[mine], fmt.values()[theirs])
    if kind == "fp4":  # its second zero: what is positive and becomes zero
        theirs = np.where(theirs == 8, np.where((x > 0) & (x <= np.float32(1 / 384)), 0, 99), theirs)
    wrong = mine != theirs
    assert not wrong.any(), (x[wrong][:5], mine[wrong][:5], theirs[wrong][:5])


@pytest.mark.parametrize("call", [
    lambda: normal_float(9), lambda: normal_float(True), lambda: abnormal_float(2), lambda: abnormal_float(64.0),
    lambda: log_codes(1), lambda: lloyd_max("uniform", 2), lambda: lloyd_max([1.0, 1.0], 2), lambda: lloyd_max([], 2),
    lambda: lloyd_max([1.0, np.nan], 2), lambda: lloyd_max([1.0, -np.inf], 2), lambda: lloyd_max([0.0, 1.0], 0),
])  # fmt: skip
def test_refusals(call):
    with pytest.raises(ValueError, match=r"not allowed|needs finite"):
        call()


def test_refuses_what_are_no_numbers():
    with pytest.raises(TypeError, match="real numbers"):
        lloyd_max(np.array([1j, 2]), 2)
