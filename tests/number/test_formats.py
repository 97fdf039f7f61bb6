"""Formats as data: the parameters, what follows from them, names, and refusals."""

from __future__ import annotations

import pickle

import ml_dtypes
import numpy as np
import pytest

import qlab
from qlab.number.formats import ALIASES, FORMATS, FloatFormat, IntFormat, TableFormat


def test_every_promised_name_is_there():
    promised = [
        "float64", "float32", "tfloat32", "bfloat16", "float16", "float8_e5m2", "float8_e4m3", "float8_e4m3fn",
        "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz", "float8_e3m4", "float8_e8m0fnu", "float6_e2m3fn",
        "float6_e3m2fn", "float4_e2m1fn", "nf4", "posit8", "posit16", "takum8", "takum16",
    ]  # fmt: skip
    promised += [f"{sign}int{bits}" for sign in ("", "u") for bits in range(2, 17)]
    assert set(promised) == set(FORMATS)
    assert all(FORMATS[name].name == name for name in promised)
    assert "posit9" not in FORMATS


def test_everyday_names():
    expected = {
        "fp16": "float16", "bf16": "bfloat16", "tf32": "tfloat32", "fp8_e4m3": "float8_e4m3fn", "fp4": "float4_e2m1fn",
        "FP32": "float32", "BFloat16": "bfloat16",
    }  # fmt: skip
    for alias, name in expected.items():
        assert qlab.get_format(alias) is FORMATS[name]
    assert all(target in FORMATS for target in ALIASES.values())
    assert qlab.get_format("int24") == IntFormat(24)
    assert qlab.get_format("uint1") == IntFormat(1, signed=False)


@pytest.mark.parametrize("name", ["float64", "float32", "float16"])
def test_against_numpy_finfo(name):
    fmt, info = qlab.get_format(name), np.finfo(name)
    assert (fmt.max, fmt.min, fmt.epsilon) == (float(info.max), float(info.min), float(info.eps))
    assert (fmt.smallest_normal, fmt.smallest_subnormal) == (float(info.tiny), float(info.smallest_subnormal))
    assert (fmt.bits, fmt.exponent_bits, fmt.mantissa_bits) == (info.bits, info.iexp, info.nmant)


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("signed", [True, False])
def test_integers(bits, signed):
    fmt = IntFormat(bits, signed)
    assert fmt.bits == bits
    values = fmt.values()
    assert sorted(values) == list(range(int(fmt.min), int(fmt.max) + 1))
    assert len(values) == 2**bits
    if bits in (2, 4):
        info = ml_dtypes.iinfo(fmt.name)
        assert (fmt.min, fmt.max) == (info.min, info.max)


def test_frozen_hashable_picklable():
    fmt = FloatFormat("mine", 4, 3)
    assert fmt == FloatFormat("mine", 4, 3, 7)
    assert len({fmt, FloatFormat("mine", 4, 3), FloatFormat("mine", 4, 3, 8)}) == 2
    assert pickle.loads(pickle.dumps(fmt)) == fmt
    with pytest.raises(AttributeError):
        fmt.bias = 3
    for other in (IntFormat(4), TableFormat("t", [0, 1])):
        assert pickle.loads(pickle.dumps(other)) == other
        hash(other)


def test_values_are_a_copy():
    values = qlab.get_format("float4_e2m1fn").values()
    assert values.tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    values[:] = 0
    assert qlab.get_format("float4_e2m1fn").values()[1] == 0.5


def test_large_tables_are_cheap_to_hash_short_to_print_and_equal_after_pickling():
    fmt = TableFormat("large", [*range(65535), float("nan")])
    assert len(repr(fmt)) < 120
    assert hash(fmt) == hash(pickle.loads(pickle.dumps(fmt)))
    assert fmt == pickle.loads(pickle.dumps(fmt))  # NaN and all
    assert fmt != TableFormat("large", [*range(1, 65536), float("nan")])
    assert TableFormat("t", [0.0, 1]) != TableFormat("t", [-0.0, 1])
    assert TableFormat("t", [0, 1]) == TableFormat("t", [0, 1], boundaries=[0.5])
    assert TableFormat("t", [0, 1]) != TableFormat("t", [0, 1], boundaries=[0.6])
    assert repr(TableFormat("t", [0, 1])) == "TableFormat('t', (0.0, 1.0))"
    assert TableFormat("t", [0, 1]) != "t"


def test_nf4_is_the_published_table():
    values = qlab.get_format("nf4").values()
    assert (values < 0).sum() == 7
    assert (values > 0).sum() == 8
    assert np.array_equal(values, values.astype(np.float32))  # the very float32 that bitsandbytes stores


REFUSED = [
    (lambda: qlab.get_format("flaot16"), "did you mean 'float16'"),
    (lambda: qlab.get_format("int99"), "unknown format 'int99'"),
    (lambda: qlab.get_format("int1"), "unknown format 'int1'"),
    (lambda: qlab.get_format(16), "not 16"),
    (lambda: FloatFormat("f", 0, 3), "exponent_bits=0"),
    (lambda: FloatFormat("f", 4, -1), "mantissa_bits=-1"),
    (lambda: FloatFormat("f", 4.0, 3), "exponent_bits=4.0"),
    (lambda: FloatFormat("f", 4, 3, 1.5), "bias=1.5"),
    (lambda: FloatFormat("f", 4, 3, nans="some"), "allowed are 'ieee'"),
    (lambda: FloatFormat("f", 4, 3, nans="negative_zero", signed=False), "needs a sign bit"),
    (lambda: FloatFormat("f", 4, 0), "needs a fraction bit"),
    (lambda: FloatFormat("f", 4, 0, nans="negative_zero", subnormals=False), "needs a zero"),
    (lambda: FloatFormat("f", 8, 25), "at most 32 bits"),
    (lambda: FloatFormat("f", 12, 3), "do not fit into float64"),
    (lambda: FloatFormat("f", 4, 3, bias=-2000), "do not fit into float64"),
    (lambda: FloatFormat("f", 1, 0, nans="none"), "no code is left"),
    (lambda: IntFormat(0), "bits=0"),
    (lambda: IntFormat(33), "bits=33"),
    (lambda: IntFormat(1), "2 to 32 bits"),
    (lambda: TableFormat("t", [1, 1]), "distinct"),
    (lambda: TableFormat("t", [1, float("inf")]), "finite"),
    (lambda: TableFormat("t", [2, 0, 1, 1], boundaries=[0.5]), "t: boundaries of shape (1,) do not fit; give one"),
    (lambda: TableFormat("t", [2, 0, 1, 1], boundaries=[0.5, 2.5]), "boundary 1 is 2.5; it must lie between its values"),
    (lambda: TableFormat("t", [0, 1], boundaries=[float("nan")]), "boundary 0 is nan"),
    (lambda: qlab.get_format("float32").values(), "too many to list"),
]


@pytest.mark.parametrize("act, message", REFUSED)
def test_refusals_say_what_is_allowed(act, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        act()
    assert message in str(caught.value)


def test_formats_show_themselves():
    text, html = repr(FORMATS), FORMATS._repr_html_()
    for name in FORMATS:
        assert f"\n{name} " in text
        assert f"<td><bdi>{name}</bdi></td>" in html
    specials = {line.split()[0]: line.split()[-1] for line in text.splitlines()}
    assert (specials["posit16"], specials["nf4"]) == ("nan", "-")
