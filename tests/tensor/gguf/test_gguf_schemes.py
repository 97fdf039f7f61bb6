"""GGUF's types as schemes: sizes to the byte, ragged shapes, the published figures."""

from __future__ import annotations

import numpy as np
import pytest

import qlab
from qlab.tensor.gguf import GGUF_TYPES, decode_gguf

# ggml's bits per weight, as llama.cpp prints them
BITS = {
    "tq1_0": 1.6875, "tq2_0": 2.0625, "q2_k": 2.625, "q3_k": 3.4375, "iq4_xs": 4.25, "mxfp4_gguf": 4.25, "q4_0": 4.5,
    "q4_k": 4.5, "iq4_nl": 4.5, "nvfp4_gguf": 4.5, "q4_1": 5, "q5_0": 5.5, "q5_k": 5.5, "q5_1": 6, "q6_k": 6.5625,
    "q8_0": 8.5, "q8_k": 9.125,
}  # fmt: skip
NORMAL = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32)


def test_every_type_is_a_scheme():
    written = {name for name, kind in GGUF_TYPES.items() if kind.encode is not None}
    assert {scheme.layout for scheme in qlab.SCHEMES.values() if scheme.layout} == written
    assert set(BITS) == {name for name, scheme in qlab.SCHEMES.items() if scheme.layout}


@pytest.mark.parametrize("name", BITS)
def test_bits_and_ledger(name):
    qt = qlab.quantize(NORMAL, name)
    assert qt.bits_per_value == BITS[name]
    assert sum(qt.ledger().values()) == 8 * qt.nbytes == 8 * qt.payload.size
    assert qt.ledger()["codes"] >= NORMAL.size * 1.6
    assert "padding" not in qt.ledger()
    assert np.array_equal(qt.dequantize(), decode_gguf(qt.payload.reshape(8, -1), qt.scheme.layout))
    assert np.array_equal(qlab.fake_quantize(NORMAL, name), qt.dequantize())


@pytest.mark.parametrize("name", BITS)
def test_ragged_rows_are_padded_and_come_back_in_their_shape(name):
    x = NORMAL.reshape(4, 2, 512)[:, :, :301]
    qt = qlab.quantize(x, name)
    padded = np.zeros((4, 2, 512), np.float32)
    padded[:, :, :301] = x
    block = GGUF_TYPES[qt.scheme.layout].block
    whole = qlab.quantize(padded[:, :, : -(-301 // block) * block], name)
    assert np.array_equal(qt.payload, whole.payload)
    assert np.array_equal(qt.dequantize(), whole.dequantize()[:, :, :301])
    assert qt.ledger()["padding"] > 0
    assert sum(qt.ledger().values()) == 8 * qt.payload.size


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_dtypes(dtype):
    x = NORMAL.astype(dtype)
    qt = qlab.quantize(x, "q4_k")
    assert qt.dequantize().dtype == dtype
    assert np.array_equal(qt.payload, qlab.quantize(x.astype(np.float32), "q4_k").payload)
    out = np.empty(x.shape, np.float32)
    assert qt.dequantize(dtype=np.float32, out=out) is out
    assert np.array_equal(out, qlab.quantize(x.astype(np.float32), "q4_k").dequantize())


@pytest.mark.parametrize("name, db", [("q4_0", 21.31), ("q4_1", 22.13)])
def test_signal_to_noise_on_the_normal(name, db):
    x = np.random.default_rng(1).standard_normal(1 << 21).astype(np.float32)
    error = qlab.fake_quantize(x, name).astype(np.float64) - x
    assert 10 * np.log10(np.square(x, dtype=np.float64).mean() / np.square(error).mean()) == pytest.approx(db, abs=0.03)


@pytest.mark.parametrize("name, gigabytes", [("q8_0", 12.634), ("q5_0", 8.175), ("q4_0", 6.689), ("q2_k", 3.902)])
def test_size_of_a_model_of_11_891_178_560_parameters(name, gigabytes):
    bits = qlab.quantize(NORMAL, name).bits_per_value
    assert round(11_891_178_560 * bits / 8 / 1e9, 3) == gigabytes


def test_importance_moves_the_error():
    importance = np.where(np.arange(512) % 32 < 4, 100.0, 0.01)
    plain, weighted = qlab.quantize(NORMAL, "q4_0"), qlab.quantize(NORMAL, "q4_0", importance=importance)
    error = [((qt.dequantize() - NORMAL) ** 2 * importance).sum() for qt in (plain, weighted)]
    assert error[1] < 0.8 * error[0]


def test_refusals():
    with pytest.raises(ValueError, match="last axis"):
        qlab.quantize(np.float32(1), "q4_0")
    with pytest.raises(ValueError, match="blocks hold codes and scales"):
        qlab.quantize(NORMAL, "q4_0").codes()
    with pytest.raises(ValueError, match="float16"):
        qlab.quantize(NORMAL * 1e30, "q4_0")
