"""Types of one scale per block: the bytes of gguf-py, and of ggml's C code where gguf-py has no encoder."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qlab.tensor.gguf import decode_gguf, encode_gguf

gguf = pytest.importorskip("gguf")

EXACT = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "tq1_0", "tq2_0"]
E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], float)


def gguf_py(x, name):
    with warnings.catch_warnings():  # it divides by zero and casts infinities where a block is tiny
        warnings.simplefilter("ignore")
        return gguf.quants.quantize(x, gguf.GGMLQuantizationType[name.upper()])


def hard_inputs():
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((100, 256))
    yield "normal", normal
    yield "laplace", rng.laplace(size=(100, 256))
    yield "zeros", normal * 0
    yield "zeros of both signs", np.copysign(0, normal)
    yield "constant", np.full((3, 256), -1.75)
    yield "subnormal scales", normal * 1e-6
    yield "tiny", normal * np.exp2(rng.integers(-149, -110, (100, 1)))
    yield "subnormal", normal * np.exp2(-140)
    yield "mixed magnitudes", normal * np.exp2(rng.integers(-40, 10, (100, 256)))
    yield "near the limit", normal * 10000
    for largest in (127, 15, 31, 8, 16, 1, 2):  # multiples of a half of the step: ties, and +max beside -max
        yield "ties", rng.integers(-2 * largest, 2 * largest + 1, (100, 256)) / 2
    below = np.nextafter(np.float32([0.5, 1.5, 2.5, 126.5]), np.float32(0))  # the last floats below ties, at scale 1
    yield "just below ties", np.resize([127, *below, *-below], (32, 256))
    yield "outliers", normal + 1000 * (rng.random((100, 256)) < 0.01)


@pytest.mark.parametrize("name", EXACT)
def test_bytes_are_those_of_gguf_py(name):
    for what, x in hard_inputs():
        x = x.astype(np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            payload = encode_gguf(x, name)
        assert np.array_equal(payload, gguf_py(x, name)), what


@pytest.mark.parametrize("name", EXACT)
@given(x=hnp.arrays(np.float32, 256, elements=st.floats(-60000, 60000, width=32)), k=st.integers(-160, 0))
def test_bytes_are_those_of_gguf_py_on_any_block(name, x, k):
    x = np.ldexp(x, k)
    assert np.array_equal(encode_gguf(x, name), gguf_py(x, name))


def mxfp4_by_hand(x):
    """gguf-py's MXFP4 with the exponent that its formula means: from exact float64, and not below zero."""
    bytes_ = []
    for block in np.asarray(x, np.float64).reshape(-1, 32):
        largest = np.abs(block).max()
        exponent = max(0, int(np.frexp(largest)[1]) - 1 - 2 + 127) if largest > 0 else 0
        codes = np.abs(E2M1 * 2.0 ** (exponent - 128) - block[:, None]).argmin(axis=1)  # exact; the first of equals
        bytes_.append([exponent, *(codes[:16] | codes[16:] << 4)])
    return np.array(bytes_, np.uint8)


def test_mxfp4_bytes():
    for what, x in hard_inputs():
        x = x.astype(np.float32).reshape(-1, 32)
        ours = encode_gguf(x, "mxfp4")
        assert np.array_equal(ours, mxfp4_by_hand(x)), what
        ordinary = np.abs(x).max(axis=1) >= 2.0**-124
        assert np.array_equal(ours[ordinary], gguf_py(x, "mxfp4")[ordinary]), what


def test_mxfp4_exponent_just_under_a_power_of_two():
    k = np.arange(-100, 100)
    x = np.zeros((len(k), 32), np.float32)
    x[:, 0] = np.nextafter(np.ldexp(np.float32(1), k), np.float32(0))
    exponent = encode_gguf(x, "mxfp4")[:, 0]
    assert np.array_equal(exponent, k - 1 - 2 + 127)
    assert (gguf_py(x, "mxfp4")[:, 0] != exponent).any()  # the defect that is not copied


@given(x=hnp.arrays(np.float32, 32, elements=st.floats(-(2.0**127), 2.0**127, width=32)))
def test_mxfp4_bytes_on_any_block(x):
    assert np.array_equal(encode_gguf(x, "mxfp4"), mxfp4_by_hand(x)[0])


def nvfp4_by_hand(x):
    """ggml's NVFP4 with the nearest scale of all that gguf-py decodes, halves up."""
    bytes_, scales = [], gguf.quants.NVFP4.ue4m3_to_fp32(np.arange(127)).astype(np.float64)
    for block in np.asarray(x, np.float32).reshape(-1, 4, 16):
        wanted = (np.abs(block).max(axis=1) / np.float32(6)).astype(np.float64)
        codes_of = np.searchsorted(scales[1:] + scales[:-1], wanted, side="right")  # scales are halved: sums are midpoints
        scale = scales[codes_of]
        codes = np.abs(E2M1 * scale[:, None, None] - block[:, :, None].astype(np.float64)).argmin(axis=2)
        bytes_.append([*codes_of, *(codes[:, :8] | codes[:, 8:] << 4).ravel()])
    return np.array(bytes_, np.uint8)


def test_nvfp4_bytes():
    for what, x in hard_inputs():
        x = x.astype(np.float32).reshape(-1, 64)
        x = x[np.abs(x).max(axis=1) <= 2688]
        if not len(x):
            continue
        assert np.array_equal(encode_gguf(x, "nvfp4"), nvfp4_by_hand(x)), what
    wanted = np.geomspace(2.0**-12, 460, 20000, dtype=np.float32)
    x = np.repeat(np.append(wanted * np.float32(6), 0)[:, None], 64, axis=1).astype(np.float32)
    payload = encode_gguf(x, "nvfp4")
    assert np.array_equal(payload, nvfp4_by_hand(x))
    assert set(np.unique(payload[:, 0])) == set(range(127))  # every scale
    wanted = x[:, 0] / np.float32(6)
    as_ggml = (wanted < 248) & ~((wanted >= 7.5 / 512) & (wanted < 8 / 512))
    assert np.array_equal(payload[as_ggml, 0], gguf.quants.NVFP4.fp32_to_ue4m3(wanted[as_ggml]))


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1"])
def test_equal_importance_is_a_search_too(name):
    x = np.random.default_rng(0).standard_normal((200, 256)).astype(np.float32)
    plain, searched = (decode_gguf(encode_gguf(x, name, importance=w), name) - x for w in (None, np.ones(256)))
    assert (searched**2).mean() < (plain**2).mean()
