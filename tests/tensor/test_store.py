"""store_codes against quantize: what one packs from the codes of the other is the same tensor."""

from __future__ import annotations

import numpy as np
import pytest

import qlab
from qlab.tensor.quantize import store_codes

X = np.random.default_rng(0).standard_normal((6, 200)).astype(np.float32)
SCHEMES = sorted(name for name, scheme in qlab.SCHEMES.items() if scheme.layout is None and not scheme.center)
NOTATIONS = [
    "int4-b32-asym/f16", "uint3-b64-min/f16", "int5-channel-mse", "e4m3-b7x50", "int4-row", "nf4-b64", "uint4-axis1-asym",
]  # fmt: skip


@pytest.mark.parametrize("name", SCHEMES + NOTATIONS)
def test_the_codes_of_quantize_give_the_same_tensor(name):
    qt = qlab.quantize(X, name)
    again = store_codes(qt.codes(), qt.scale, qt.zero, qt.scheme)
    assert np.array_equal(again.payload, qt.payload)
    assert np.array_equal(again.dequantize(), qt.dequantize())
    assert (again.shape, again.dtype) == (qt.shape, qt.dtype)
    assert {part: bits for part, bits in qt.ledger().items() if part != "codebook"} == again.ledger()


def test_negative_codes_are_twos_complement():
    codes = np.array([[-8, 7], [-1, 0]])
    qt = store_codes(codes, np.float32([0.5, 2]), None, "int4-channel")
    assert qt.dequantize().tolist() == [[-4, 3.5], [-2, 0]]
    assert qt.codes().tolist() == [[8, 7], [15, 0]]


def test_scales_are_rounded_to_what_is_stored():
    qt = store_codes(np.ones((1, 32), int), np.float32([[0.1]]), None, "int4-b32/f16")
    assert qt.scale[0, 0] == np.float32(np.float16(0.1))
    assert qt.nbytes == 16 + 2


@pytest.mark.parametrize(
    "codes, scale, zero, scheme, error, message",
    [
        ([[1.0]], 1, None, "int4", TypeError, "integers"),
        ([[16]], 1, None, "int4", ValueError, "code of 16"),
        ([[-9]], 1, None, "int4", ValueError, "code of -9"),
        ([[-1]], 1, 0, "uint4", ValueError, "code of -1"),
        ([[3]], 1, None, "ternary", ValueError, "0 to 2"),
        ([[]], 1, None, "int4", TypeError, "integers"),
        (np.ones((0, 1), int), 1, None, "int4", ValueError, "empty"),
        ([[1]], [1, 1], None, "int4", ValueError, "shape"),
        ([[1]], np.inf, None, "int4", ValueError, "infinite"),
        ([[1]], 1, 3, "int4", ValueError, "zero=3"),
        ([[1]], 1, None, "uint4", ValueError, "zero=None"),
        ([[1]], 1, 0.5, "uint4", ValueError, "0 to 15"),
        ([[1]], 1, 16, "uint4", ValueError, "0 to 15"),
        ([[1]], 1e9, None, "int4/f16", ValueError, "65504"),
        ([[1]], 1, None, "q4_0", ValueError, "use quantize"),
        ([[1]], 1, None, "kmeans4", ValueError, "use quantize"),
    ],
)
def test_refusals(codes, scale, zero, scheme, error, message):
    with pytest.raises(error, match=message):
        store_codes(codes, scale, zero, scheme)
