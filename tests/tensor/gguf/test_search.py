"""Types whose encoders search: not worse than llama.cpp's search, and the same answer whatever the units."""

from __future__ import annotations

import numpy as np
import pytest
from reference import REFERENCE, reference_values

import qlab
from qlab.tensor.gguf import GGUF_TYPES, decode_gguf, encode_gguf
from qlab.tensor.gguf.layouts import LAYOUTS


def inputs():
    rng = np.random.default_rng(3)
    weights = [np.ravel(w) for w in qlab.data.training_step().parameters.values()]  # of a trained network
    trained = np.concatenate(weights).astype(np.float32)
    return {
        "normal": rng.standard_normal(256 * 24).astype(np.float32),
        "laplace": rng.laplace(size=256 * 24).astype(np.float32),
        "positive": rng.random(256 * 8).astype(np.float32),
        "trained": np.pad(trained, (0, -len(trained) % 256)),
    }


def relative_rmse(values, x, importance=1.0):
    x = x.astype(np.float64)
    return np.sqrt((importance * (values - x) ** 2).mean() / (importance * x**2).mean())


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("what", ["normal", "laplace", "positive", "trained"])
def test_not_worse_than_the_search_of_llama_cpp(name, what):
    pytest.importorskip("sklearn")
    x = inputs()[what]
    ours = relative_rmse(decode_gguf(encode_gguf(x, name), name), x)
    assert ours < relative_rmse(reference_values(name, x), x)
    importance = np.random.default_rng(0).exponential(size=x.shape)
    ours = relative_rmse(decode_gguf(encode_gguf(x, name, importance=importance), name), x, importance)
    assert ours < 1.003 * relative_rmse(reference_values(name, x, importance), x, importance)


@pytest.mark.parametrize("name, rmse", [("q2_k", 0.2977), ("q4_k", 0.0715), ("q6_k", 0.0177)])
def test_the_reference_is_as_good_as_llama_cpp_itself(name, rmse):
    """Its own C code has these errors on N(0, 1): the port is neither better nor worse, and qlab is better."""
    x = np.random.default_rng(0).standard_normal(256 * 60).astype(np.float32)
    assert relative_rmse(reference_values(name, x), x) == pytest.approx(rmse, rel=0.012)
    assert relative_rmse(decode_gguf(encode_gguf(x, name), name), x) < rmse


@pytest.mark.parametrize("name", [*REFERENCE, "q8_k"])
@pytest.mark.parametrize("k", [-3, 4])
def test_a_power_of_two_changes_nothing_else(name, k):
    x = np.random.default_rng(0).standard_normal(256 * 8).astype(np.float32)
    at_unit_size = decode_gguf(encode_gguf(x, name), name)
    assert np.array_equal(decode_gguf(encode_gguf(x * np.float32(2**k), name), name), at_unit_size * np.float32(2**k))


@pytest.mark.parametrize("name", REFERENCE)
def test_what_a_type_can_hold_comes_back(name):
    """Values that were decoded once are all multiples of stored scales; stored again they stay close to themselves."""
    x = np.random.default_rng(0).standard_normal(256 * 8).astype(np.float32)
    once = decode_gguf(encode_gguf(x, name), name)
    twice = decode_gguf(encode_gguf(once, name), name)
    assert relative_rmse(twice, once) < 0.35 * relative_rmse(once, x)


def test_q8_k_bytes():
    """As ggml's loop: int8 codes of -127 / (the value of largest magnitude), ties to even, and the sums of 16 codes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 256)).astype(np.float32)
    x[1], x[2] = 0, rng.integers(-127, 128, 256) / np.float32(2)
    x[3] *= np.float32(1e35)
    stored = encode_gguf(x, "q8_k").view(LAYOUTS["q8_k"])[:, 0]
    for row, block in zip(x, stored, strict=True):
        peak = row[np.abs(row).argmax()]
        inverse = np.float32(-127) / peak if peak else np.float32(0)
        codes = [min(127, round(float(np.float32(inverse * v)))) for v in row]
        assert block["codes"].tolist() == codes
        assert block["scale"] == (np.float32(1) / inverse if peak else 0)
        assert block["sums"].tolist() == [sum(codes[i : i + 16]) for i in range(0, 256, 16)]


@pytest.mark.parametrize("name", [*REFERENCE, "q8_k"])
def test_the_input_is_not_changed(name):
    x = np.random.default_rng(0).standard_normal((4, GGUF_TYPES[name].block)).astype(np.float32)
    before = x.copy()
    GGUF_TYPES[name].encode(x, np.ones_like(x))
    assert np.array_equal(x, before)
