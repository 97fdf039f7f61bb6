"""IEEE P3109: the definition as fractions for every width and precision, values that others have published, names."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

import qlab

EVERY = [
    (bits, precision, signed, extended)
    for bits in range(3, 9)
    for precision in range(1, bits + 1)
    for signed in (True, False)
    for extended in (True, False)
    if precision < bits or not signed
]


def defined(code: int, bits: int, precision: int, signed: bool, extended: bool) -> Fraction | float:
    """The value of a code, by the definition of the draft (section "decoding"): no bit fields, only arithmetic."""
    half = 2 ** (bits - 1)
    if signed:
        if code == half:
            return math.nan
        if code > half:
            return -defined(code - half, bits, precision, signed, extended)
        if extended and code == half - 1:
            return math.inf
        bias = Fraction(2) ** (bits - precision - 1)
    else:
        if code == 2**bits - 1:
            return math.nan
        if extended and code == 2**bits - 2:
            return math.inf
        bias = Fraction(2) ** (bits - precision)
    step = 2 ** (precision - 1)
    exponent, trailing = divmod(code, step)
    significand = Fraction(trailing, step) + (exponent > 0)
    return significand * Fraction(2) ** int(max(exponent, 1) - bias)


@pytest.mark.parametrize("bits, precision, signed, extended", EVERY)
def test_every_code_of_every_small_format(bits, precision, signed, extended):
    fmt = qlab.p3109(bits, precision, signed=signed, extended=extended)
    values = [defined(code, bits, precision, signed, extended) for code in range(2**bits)]
    for code, (ours, value) in enumerate(zip(fmt.values().tolist(), values, strict=True)):
        same = math.isnan(ours) if isinstance(value, float) and math.isnan(value) else ours == value
        assert same, (code, ours, value)
    assert math.copysign(1, fmt.values()[0]) == 1
    assert (fmt.bits, fmt.mantissa_bits + 1) == (bits, precision)
    finite = [v for v in values if isinstance(v, Fraction)]
    assert fmt.max == max(finite)
    assert fmt.smallest_subnormal == min(v for v in finite if v > 0)
    codes = np.flatnonzero(np.isfinite(fmt.values()))
    assert np.array_equal(qlab.encode(fmt.values()[codes], fmt), codes)


def test_published_values():
    """The table of the formats of 8 bits in the documentation of gfloat (graphcore-research)."""
    published = {2: (2.0**-32, 2.0**-31, 2.0**31), 3: (2.0**-17, 2.0**-15, 49152.0), 4: (2.0**-10, 2.0**-7, 224.0),
                 5: (2.0**-7, 2.0**-3, 15.0), 6: (2.0**-6, 0.5, 3.875)}  # fmt: skip
    for precision, (smallest, normal, largest) in published.items():
        fmt = qlab.p3109(8, precision)
        assert (fmt.smallest_subnormal, fmt.smallest_normal, fmt.max) == (smallest, normal, largest)


def test_special_codes():
    assert qlab.encode([np.nan, np.inf, -np.inf, -0.0], "binary8p3se").tolist() == [0x80, 0x7F, 0xFF, 0]
    assert qlab.encode([np.nan, np.inf, -0.0], "binary8p3ue").tolist() == [0xFF, 0xFE, 0]
    assert qlab.encode([np.nan, 1e30, -1.0], "binary8p4uf").tolist() == [0xFF, 0xFF, 0xFF]
    saturated = qlab.cast([1e30, -1e30, np.inf], "binary8p4sf", overflow="saturate")
    assert saturated.tolist() == [240.0, -240.0, 240.0]  # one value more than with infinities


def test_names():
    assert qlab.get_format("binary8p3se") == qlab.get_format("Binary8p3") == qlab.p3109(8, 3)
    assert qlab.get_format("binary6p4uf") == qlab.p3109(6, 4, signed=False, extended=False)
    for bits, precision, signed, extended in EVERY:
        fmt = qlab.p3109(bits, precision, signed=signed, extended=extended)
        assert qlab.get_format(fmt.name) == fmt
    assert qlab.p3109(np.int64(8), np.int64(3)) == qlab.p3109(8, 3)


@pytest.mark.parametrize(
    "act, message",
    [
        (lambda: qlab.p3109(2, 1), "bits=2 is not allowed; give an integer from 3 to 32"),
        (lambda: qlab.p3109(8.0, 3), "bits=8.0"),
        (lambda: qlab.p3109(8, 8), "precision=8 is not allowed; give an integer from 1 to 7"),
        (lambda: qlab.p3109(8, 9, signed=False), "from 1 to 8"),
        (lambda: qlab.p3109(8, True), "precision=True"),
        (lambda: qlab.p3109(16, 2), "do not fit into float64"),
        (lambda: qlab.get_format("binary8p8"), "precision=8"),
        (lambda: qlab.get_format("binary8p3xx"), "unknown format 'binary8p3xx'"),
    ],
)
def test_refusals(act, message):
    with pytest.raises(ValueError) as caught:
        act()
    assert message in str(caught.value)


def test_gfloat_has_the_same_values():
    gfloat = pytest.importorskip("gfloat", reason="gfloat is not installed")
    formats = pytest.importorskip("gfloat.formats")
    for bits, precision, signed, extended in EVERY:
        sign = formats.Signedness.Signed if signed else formats.Signedness.Unsigned
        domain = formats.Domain.Extended if extended else formats.Domain.Finite
        theirs = gfloat.decode_ndarray(formats.format_info_p3109(bits, precision, sign, domain), np.arange(2**bits))
        ours = qlab.p3109(bits, precision, signed=signed, extended=extended).values()
        assert np.array_equal(ours, theirs, equal_nan=True)
