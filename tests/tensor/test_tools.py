"""The tools of the walk against slow ones: notation there and back, packing by strings of bits, blocks element by element."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qlab
from qlab.tensor.blocks import PerAxis, PerBlock, PerTensor, regions, scale_shape
from qlab.tensor.notation import GRAMMAR, compose, parse
from qlab.tensor.packing import pack, packed_size, unpack
from qlab.tensor.scheme import MX_ROUNDINGS, Scale

NAMED = [name for name in qlab.SCHEMES if qlab.SCHEMES[name].layout is None]


# --- notation --------------------------------------------------------------------------------------------------------
@st.composite
def schemes(draw, depth=2):
    words = ["int2", "int8", "uint4", "int16", "fp4", "e4m3", "nf4", "fp4_bnb", "af4", "binary", "log4", "mxint8"]
    fmt = draw(st.sampled_from(words))
    ours, integer = fmt in ("nf4", "fp4_bnb", "af4"), "int" in fmt and fmt != "mxint8"
    size = st.integers(3, 512)
    blocks = draw(
        st.just(PerTensor()) | st.integers(0, 3).map(PerAxis) | size.map(lambda n: PerBlock(n, None))
        | (st.tuples(size, size) if ours else size | st.tuples(size, size)).map(PerBlock)
    )  # fmt: skip
    zero = draw(st.sampled_from([None, "integer", "min"])) if integer else None
    free = ["percentile", "mse"]
    rules = [*free, "minmax"] if zero else [*free, "absmax", "signed_absmax", "entropy", "mean_abs", "power_of_two", "mx", "unit"]
    rule = draw(st.sampled_from(rules))
    stored = draw(st.sampled_from([None, "float16", "bfloat16", "float8_e8m0fnu", "float8_e4m3fn"]))
    if depth > 1 and draw(st.booleans()):
        stored = draw(schemes(depth=1))
    percent = draw(st.sampled_from([99.0, 99.99, 97.5])) if rule == "percentile" else 99.9
    rounding = draw(st.sampled_from(MX_ROUNDINGS)) if rule == "mx" else "floor"
    scale = Scale(rule, stored, percent, rounding, reciprocal=ours or draw(st.booleans()), late=draw(st.booleans()))
    made = parse(fmt).format
    if fmt == "af4" and isinstance(blocks, PerBlock) and isinstance(blocks.size, int):
        made = parse(f"af4-b{blocks.size}").format
    return qlab.Scheme(made, blocks, scale, zero, draw(st.booleans()), draw(st.sampled_from(["low_first", "high_first"])))


@settings(max_examples=80, deadline=None)
@given(scheme=schemes())
def test_notation_round_trip(scheme):
    text = compose(scheme)
    assert parse(text) == scheme
    assert compose(parse(text)) == text
    assert repr(scheme) == f"get_scheme({text!r})"


@pytest.mark.parametrize("name", NAMED)
def test_named_schemes_in_notation(name):
    scheme = qlab.get_scheme(name)
    assert parse(compose(scheme)) == parse(qlab.SCHEMES.notation(name)) == scheme
    assert repr(scheme) == f"get_scheme({name!r})"
    assert hash(scheme) == hash(parse(compose(scheme)))


# --- packing ---------------------------------------------------------------------------------------------------------
def bit_string(codes, bits, order):
    """Bytes by way of strings of 0 and 1."""
    words = [format(int(code) & (2**bits - 1), f"0{bits}b") for code in codes]
    if order == "high_first":
        text = "".join(words)
        text += "0" * (-len(text) % 8)
        return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]
    text = "".join(word[::-1] for word in words)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8][::-1], 2) for i in range(0, len(text), 8)]


@pytest.mark.parametrize("order", ["low_first", "high_first"])
@pytest.mark.parametrize("bits", range(1, 17))
def test_packing_against_strings(bits, order):
    rng = np.random.default_rng(bits)
    for n in (0, 1, 2, 3, 7, 8, 9, 50):
        codes = rng.integers(-(2**15), 2**16, n)  # of each the lower bits are taken
        packed = pack(codes, bits, order=order)
        assert packed.dtype == np.uint8
        assert packed.tolist() == bit_string(codes, bits, order)
        assert len(packed) == packed_size(n, bits)
        back = unpack(packed, n, bits, order=order)
        assert back.dtype == (np.uint8 if bits <= 8 else np.int32)
        assert np.array_equal(back, codes & (2**bits - 1))
        assert np.array_equal(unpack(np.append(packed, np.uint8(255)), n, bits, order=order), back)


# --- blocks ----------------------------------------------------------------------------------------------------------
@st.composite
def shapes_and_blocks(draw):
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=9))
    axis = st.integers(-len(shape), len(shape) - 1)
    kinds = [st.just(PerTensor()), axis.map(PerAxis), st.builds(PerBlock, st.integers(1, 12), axis | st.none())]
    if len(shape) > 1:
        kinds.append(st.tuples(st.integers(1, 12), st.integers(1, 12)).map(PerBlock))
    return shape, draw(st.one_of(kinds))


@settings(max_examples=100, deadline=None)
@given(case=shapes_and_blocks())
def test_regions_hold_each_element_once(case):
    shape, blocks = case
    x = np.arange(np.prod(shape)).reshape(shape)
    seen = np.concatenate([region.view.reshape(-1) for region in regions(blocks, x)])
    assert np.array_equal(np.sort(seen), x.reshape(-1))


def block_number(index, shape, blocks):
    """Which scale an element has, as an index of the scales."""
    if isinstance(blocks, PerTensor):
        return ()
    if isinstance(blocks, PerAxis):
        return (index[blocks.axis],)
    if isinstance(blocks.size, tuple):
        return (*index[:-2], index[-2] // blocks.size[0], index[-1] // blocks.size[1])
    if blocks.axis is None:
        return (int(np.ravel_multi_index(index, shape)) // blocks.size,)
    axis = blocks.axis % len(shape)
    return (*index[:axis], index[axis] // blocks.size, *index[axis + 1 :])


@settings(max_examples=50, deadline=None)
@given(case=shapes_and_blocks(), seed=st.integers(0, 99))
def test_each_scale_is_that_of_its_block(case, seed):
    """absmax found element by element, with dictionaries."""
    shape, blocks = case
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    absmax: dict[tuple[int, ...], float] = {}
    for index in itertools.product(*map(range, shape)):
        number = block_number(index, shape, blocks)
        absmax[number] = max(absmax.get(number, 0), abs(x[index]))
    qt = qlab.quantize(x, qlab.Scheme("int8", blocks))
    assert qt.scale.shape == scale_shape(blocks, shape)
    assert qt.scale.size == len(absmax)
    for number, largest in absmax.items():
        assert qt.scale[number] == np.float32(largest) / np.float32(127)
    values = qt.dequantize()
    for index in itertools.product(*map(range, shape)):
        scale = qt.scale[block_number(index, shape, blocks)]
        assert values[index] == np.rint(x[index] / scale) * scale


@pytest.mark.parametrize(
    "text", ["int4-b0", "int4-what", "int44-b32", "int4-b32/int8", "nf4-b64-asym", "int4-p10", "int4-b32/nothing", "fp4-min"]
)
def test_every_error_of_the_notation_shows_the_grammar(text):
    with pytest.raises(ValueError, match=re.escape(GRAMMAR)):
        qlab.get_scheme(text)
