"""Posits and takums, against decoders and roundings written down from the standards, a code at a time, in fractions."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from oracles import TAPERED_VALUE

import qlab
from qlab.number.tapered import posit, takum

NAMES = ["posit8", "posit16", "takum8", "takum16"]


def round_by_the_standard(x: Fraction, bits: int, value) -> int:
    """Section 4.1 of the posit standard (takums do the same): cut the endless string, ties to even."""
    top = (1 << (bits - 1)) - 1
    if x < 0:
        return (-round_by_the_standard(-x, bits, value)) % (1 << bits)
    if x == 0 or x >= value(top, bits):
        return top if x else 0
    low, high = 1, top  # positive codes grow with their values
    if x <= value(1, bits):
        return 1  # never to zero
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if value(middle, bits) <= x else (low, middle)
    if value(low, bits) == x:
        return low
    between = value(2 * low + 1, bits + 1)
    return low if x < between or (x == between and low % 2 == 0) else high


@pytest.mark.parametrize("kind", ["posit", "takum"])
@pytest.mark.parametrize("bits", [3, 5, 8, 11, 12, 16])
def test_values(kind, bits):
    fmt = {"posit": posit, "takum": takum}[kind](bits)
    values = fmt.values()
    codes = range(1 << bits) if bits <= 12 else [*range(600), *range(600, 1 << 16, 7), *range((1 << 16) - 600, 1 << 16)]
    for code in codes:
        value = TAPERED_VALUE[kind](code, bits)
        assert math.isnan(values[code]) if value is None else values[code] == float(value), code
    assert fmt.bits == bits
    assert fmt.nan_code == 1 << (bits - 1)
    ascending = np.roll(values, (1 << (bits - 1)) - 1)[:-1]  # as two's complement integers, without NaR
    assert (np.diff(ascending) > 0).all()
    assert np.array_equal(ascending, -ascending[::-1])


@pytest.mark.parametrize("name", NAMES)
def test_rounding(name):
    """On values, boundaries, their float64 neighbours, and at random."""
    fmt, kind, bits = qlab.get_format(name), name[:5], int(name[5:])
    every = 1 if bits == 8 else 997
    boundaries, values = fmt.thresholds[::every, 0], fmt.values()[1::every]
    near = np.concatenate([boundaries, values[np.isfinite(values)]])
    rng = np.random.default_rng(0)
    x = np.concatenate([near, np.nextafter(near, np.inf), np.nextafter(near, -np.inf), rng.normal(0, 1, 150),
                        np.exp(rng.normal(0, 40, 150)), [0.0, -0.0, 5e-324, -5e-324, 1e300, -1e300]])  # fmt: skip
    expected = [round_by_the_standard(Fraction(v), bits, TAPERED_VALUE[kind]) for v in x.tolist()]
    codes = qlab.encode(x, fmt)
    wrong = np.flatnonzero(codes != expected)
    assert not wrong.size, (x[wrong[:5]], codes[wrong[:5]], np.array(expected)[wrong[:5]])
    assert np.array_equal(qlab.cast(x, fmt), fmt.values()[expected])
    narrow = np.float32(x[np.abs(x) < 1e38])
    assert np.array_equal(qlab.cast(narrow, fmt), qlab.cast(narrow.astype(np.float64), fmt))


def test_known_values():
    posit8, posit16 = qlab.get_format("posit8"), qlab.get_format("posit16")
    assert posit8.values()[[0x40, 0x7F, 0x01, 0xC0, 0x48]].tolist() == [1, 2.0**24, 2.0**-24, -1, 2]
    assert (posit16.max, posit16.smallest_normal, posit16.epsilon) == (2.0**56, 2.0**-56, 2.0**-11)
    assert qlab.cast(np.pi, posit16) == 3.1416015625  # 0x4C91
    assert qlab.encode(np.pi, posit16) == 0x4C91
    # the README of Takums.jl, by the author of takums: Takum8(4.0) prints as 3.955, its square root (a tie) as 2.117
    assert float(qlab.cast(4.0, "takum8").round(3)) == 3.955
    assert 2.117 in qlab.get_format("takum8").values().round(3)
    assert qlab.get_format("takum16").max == math.exp((254 + 15 / 16) / 2)
    assert qlab.get_format("takum8").max == math.exp(239 / 2)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_number_becomes_not_a_real(name):
    fmt = qlab.get_format(name)
    x = [np.inf, -np.inf, np.nan]
    assert np.isnan(qlab.cast(x, name)).all()
    assert (qlab.encode(x, name) == 1 << (fmt.bits - 1)).all()
    assert qlab.cast(x[:2], name, overflow="saturate").tolist() == [fmt.max, fmt.min]
    assert np.isnan(qlab.cast(np.nan, name, overflow="saturate"))


def test_other_roundings_choose_among_the_neighbours():
    x = np.array([3.3, -3.3, 1e-30, -1e-30, 3.375])
    rounded = {
        "toward_zero": [3.25, -3.25, 0, 0, 3.25], "up": [3.5, -3.25, 2.0**-24, 0, 3.5],
        "down": [3.25, -3.5, 0, -(2.0**-24), 3.25], "nearest_away": [3.25, -3.25, 2.0**-24, -(2.0**-24), 3.5],
    }  # fmt: skip
    for rounding, expected in rounded.items():
        assert qlab.cast(x, "posit8", rounding=rounding).tolist() == expected, rounding
        told = [qlab.explain(v, "posit8", rounding=rounding).value for v in x]
        assert told == expected
    for rounding in ("nearest_even", "nearest_away"):
        assert qlab.cast(0.0, "posit8", rounding=rounding) == 0


def test_boundaries_need_not_be_midpoints():
    """Between 2**20 and 2**24 the posit with one bit more is 2**22, far below the midpoint."""
    assert qlab.cast([2.0**22, np.nextafter(2.0**22, 0), 2.0**22 + 1], "posit8").tolist() == [2.0**20, 2.0**20, 2.0**24]
    told = qlab.explain(2**22 + 1, "posit8")
    assert (told.midpoint, told.why) == (2**22, "above_boundary")
    assert qlab.explain(2**22, "posit8").why == "tie_even"


def test_built_when_first_asked_for_and_once():
    code = (
        "import qlab, sys; qlab.get_format('fp16'); 'posit16' in qlab.FORMATS; list(qlab.FORMATS);"
        "print('qlab.number.tapered' in sys.modules, qlab.get_format('posit16') is qlab.FORMATS['posit16'])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False True"


@pytest.mark.parametrize("name", NAMES)
def test_small_to_hash_and_print(name):
    fmt = qlab.get_format(name)
    assert len(repr(fmt)) < 140
    assert pickle.loads(pickle.dumps(fmt)) == fmt
    assert {fmt: 1}[pickle.loads(pickle.dumps(fmt))] == 1


@pytest.mark.parametrize("bits", [2, 17, 8.0, True, "8"])
def test_refusals(bits):
    for build in (posit, takum):
        with pytest.raises(ValueError, match="3 to 16 bits"):
            build(bits)


def test_softposit_has_the_same_posits():
    softposit = pytest.importorskip("softposit", reason="softposit is not installed")
    rng = np.random.default_rng(1)
    for bits in (8, 16):
        fmt, container = qlab.get_format(f"posit{bits}"), softposit.posit_2_t()
        for code in range(0, 1 << bits, 1 if bits == 8 else 13):
            container.v = code << (32 - bits)
            if code != fmt.nan_code:
                assert softposit.convertPX2ToDouble(container) == fmt.values()[code]
        near = fmt.thresholds[:, 0]
        x = np.concatenate([near, np.nextafter(near, 0), np.exp(rng.normal(0, 20, 5000)), [np.inf, -np.inf]])
        theirs = [softposit.convertDoubleToPX2(v, bits).v >> (32 - bits) for v in x.tolist()]
        assert np.array_equal(qlab.encode(x, fmt), theirs)
