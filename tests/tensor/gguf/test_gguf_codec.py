"""The verbs: every type's decoder against gguf-py on random bytes, what goes in and comes out, and what is refused."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import qlab
from qlab.tensor.gguf import GGUF_TYPES, decode_gguf, encode_gguf
from qlab.tensor.gguf.layouts import LAYOUTS, pack, unpack

gguf = pytest.importorskip("gguf")

ENCODED = [name for name, kind in GGUF_TYPES.items() if kind.encode]
HALF_SCALED = [name for name in ENCODED if name not in ("mxfp4", "nvfp4", "q8_k")]


def theirs(name):
    return gguf.GGMLQuantizationType[name.upper()]


def random_payload(name, n, seed=0):
    """Random bytes, but finite float16 where a scale is."""
    rng = np.random.default_rng(seed)
    payload = rng.integers(0, 256, (n, GGUF_TYPES[name].type_size), dtype=np.uint8)
    stored = payload.view(LAYOUTS[name])
    for field in ("scale", "minimum"):
        if field in (stored.dtype.names or ()):
            stored[field] = rng.standard_normal(stored[field].shape) * np.exp2(rng.integers(-24, 14, stored[field].shape))
    if name == "iq1_m":
        stored["scales"][..., 3] &= 0xBFFF  # the uppermost bits of the scale's exponent
    return payload


def same_bits(a, b):
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


def test_block_and_type_sizes_are_those_of_ggml():
    for name, kind in GGUF_TYPES.items():
        block, size = gguf.GGML_QUANT_SIZES[theirs(name)]
        assert (kind.name, kind.block) == (name, block)
        # gguf-py counts 4 bytes for each of Q8_K's sums, which are int16 in C
        assert kind.type_size == (size if name != "q8_k" else 4 + 256 + 2 * 16)


@pytest.mark.parametrize("name", [name for name in GGUF_TYPES if name != "q8_k"])  # gguf-py has no Q8_K
def test_decodes_random_bytes_as_gguf_py(name):
    payload = random_payload(name, 4000)
    with np.errstate(over="ignore"):
        assert same_bits(decode_gguf(payload, name), gguf.quants.dequantize(payload, theirs(name)))


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_decodes_every_scale_and_code(name):
    kind = GGUF_TYPES[name]
    payload = np.zeros((256, kind.type_size), np.uint8)
    n_scales = kind.type_size - kind.block // 2
    payload[:, :n_scales] = np.arange(256)[:, None]
    payload[:, n_scales:] = np.resize([0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE], kind.block // 2)
    with np.errstate(over="ignore"):
        assert same_bits(decode_gguf(payload, name), gguf.quants.dequantize(payload, theirs(name)))


def test_decodes_q8_k_as_the_c_struct_says():
    payload = random_payload("q8_k", 100)
    scale, codes = payload[:, :4].copy().view(np.float32), payload[:, 4:260].view(np.int8)
    assert same_bits(decode_gguf(payload, "q8_k"), scale * codes.astype(np.float32))


@pytest.mark.parametrize("name", [name for name in ENCODED if name != "q8_k"])
def test_what_is_written_is_read_alike(name):
    x = np.random.default_rng(1).standard_normal((7, 3 * 256)).astype(np.float32)
    payload = encode_gguf(x, name)
    assert same_bits(decode_gguf(payload, name), gguf.quants.dequantize(payload, theirs(name)))


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("run", [1, 4, 16, 32])
def test_packing_is_the_sum_of_shifted_codes(bits, run):
    share = 8 // bits
    codes = np.random.default_rng(0).integers(0, 1 << bits, (5, 3 * share * run), dtype=np.uint8)
    shifted = codes.reshape(5, 3, share, run).astype(int) << (np.arange(share) * bits)[:, None]
    packed = pack(codes, bits, run)
    assert np.array_equal(packed, shifted.sum(axis=2).reshape(5, -1))
    assert np.array_equal(unpack(packed, bits, run), codes)


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("lead", [(), (3,), (2, 0), (2, 3)])
def test_shapes_dtypes_and_input(name, lead):
    kind = GGUF_TYPES[name]
    x = np.random.default_rng(0).standard_normal((*lead, 256))
    x = x.astype(np.float16)
    x.flags.writeable = False
    payload = encode_gguf(x, name)
    assert payload.dtype == np.uint8
    assert payload.shape == (*lead, 256 // kind.block * kind.type_size)
    assert np.array_equal(payload, encode_gguf(x.astype(np.float64), name))
    assert decode_gguf(payload, name).shape == x.shape
    assert encode_gguf(np.zeros((*lead, 0)), name).shape == (*lead, 0)
    assert decode_gguf(np.zeros((*lead, 0), np.uint8), name).shape == (*lead, 0)


@pytest.mark.parametrize("name", ["q8_0", "q4_k", "iq4_nl"])
def test_pieces_threads_and_strides_do_not_matter(name):
    x = np.random.default_rng(0).standard_normal((1100, 256)).astype(np.float32)
    kind = GGUF_TYPES[name]
    expected = np.concatenate([kind.encode(row.reshape(-1, kind.block), None).ravel() for row in x[::50]])
    try:
        qlab.set_num_threads(3)
        payload = encode_gguf(x, name)
        assert np.array_equal(payload[::50].ravel(), expected)
        values = decode_gguf(payload, name)
        assert same_bits(values[::50], decode_gguf(payload[::50], name))
        importance = np.random.default_rng(0).exponential(size=x.shape)
        by_rows = encode_gguf(x[::50], name, importance=importance[::50])
        assert np.array_equal(encode_gguf(x, name, importance=importance)[::50], by_rows)
    finally:
        qlab.set_num_threads(None)
    assert np.array_equal(encode_gguf(np.asfortranarray(x), name), payload)


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"])
def test_importance_lowers_the_error_where_it_lies(name):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 512)).astype(np.float32)
    importance = rng.exponential(size=512) ** 3

    def weighted_error(payload):
        return (importance * (decode_gguf(payload, name).astype(np.float64) - x) ** 2).mean()

    payload = encode_gguf(x, name, importance=importance)
    assert weighted_error(payload) < 0.97 * weighted_error(encode_gguf(x, name))
    assert np.array_equal(payload, encode_gguf(x, name, importance=np.broadcast_to(importance, x.shape)))
    assert np.array_equal(payload, encode_gguf(x, name, importance=importance * 2.0**100))
    equal = decode_gguf(encode_gguf(x, name, importance=np.zeros(512)), name)
    assert np.abs(equal - x).max() < 1.5  # no importance anywhere counts as equal importance


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("importance", [None, 1.0])
def test_extraordinary_blocks_give_the_right_answer_or_a_refusal(name, importance):
    rng = np.random.default_rng(0)
    weights = None if importance is None else np.full(256, importance)
    tolerance = {"q2_k": 0.45, "tq1_0": 0.55, "tq2_0": 0.55, "q3_k": 0.2, "mxfp4": 0.26, "nvfp4": 0.2}.get(name, 0.15)
    normal = rng.standard_normal(256).astype(np.float32)
    rows = {
        "zeros": normal * 0, "constant": np.full(256, 0.7), "negative constant": np.full(256, -0.7),
        "one outlier": np.eye(1, 256, 77) * 100, "ramp": np.arange(256) / 256, "large": normal * 700,
        "half zero": normal * (np.arange(256) < 128), "minus zeros": normal * -0.0,
    }  # fmt: skip
    for what, row in rows.items():
        values = decode_gguf(encode_gguf(row, name, importance=weights), name)
        assert np.abs(values - row).max() <= tolerance * np.abs(row).max(), what
    for scale in (1e-45, 1e-42, 1e-38, 1e-30, 1e-10):
        tiny = (normal * np.float32(scale)).astype(np.float32)
        values = decode_gguf(encode_gguf(tiny, name, importance=weights), name)
        assert np.abs(values - tiny).max() <= max(np.abs(tiny).max(), 1e-7 * 0.01)
    for scale in (1e5, 1e8, 1e20, 1e38):
        row = normal / np.abs(normal).max() * np.float32(scale)
        try:
            values = decode_gguf(encode_gguf(row, name, importance=weights), name)
        except ValueError as error:
            refusal = str(error)
        else:
            refusal = ""
            assert np.abs(values - row).max() <= tolerance * scale
        if refusal:
            assert "largest magnitude allowed" in refusal
            assert "inf" not in refusal
            assert "nan" not in refusal


@pytest.mark.parametrize("name", HALF_SCALED)
def test_the_largest_magnitude_named_is_allowed_and_more_is_not(name):
    row = np.random.default_rng(0).standard_normal(256)
    with pytest.raises(ValueError, match=r"float16 holds at most 65504") as caught:
        encode_gguf(row / np.abs(row).max() * 1e30, name)
    # the same block, at the magnitude that the message allows (a message is about one block of x)
    limit = float(str(caught.value).split("allowed in such a block is ")[1].split(";")[0])
    start = 0 if GGUF_TYPES[name].block == 256 else next(
        i for i in range(0, 256, 32)
        if f"{np.float32(np.abs(row[i:i+32]).max() / np.abs(row).max() * 1e30):.7g}" in str(caught.value)
    )  # fmt: skip
    block = row[start : start + GGUF_TYPES[name].block]
    block = block / np.abs(block).max()
    assert np.isfinite(decode_gguf(encode_gguf(block * limit * 0.9999, name), name)).all()
    with pytest.raises(ValueError, match="float16"):
        encode_gguf(block * limit * 1.01, name)


def test_memory_beside_the_result_is_small():
    x = np.random.default_rng(0).standard_normal((512, 4096)).astype(np.float32)
    try:
        qlab.set_num_threads(2)
        for name in ("q8_0", "q4_k", "iq4_xs"):
            tracemalloc.start()
            payload = encode_gguf(x, name)
            encoding = tracemalloc.get_traced_memory()[1] - payload.nbytes
            tracemalloc.reset_peak()
            values = decode_gguf(payload, name)
            decoding = tracemalloc.get_traced_memory()[1] - payload.nbytes - values.nbytes
            tracemalloc.stop()
            assert max(encoding, decoding) < 24 << 20, (name, encoding, decoding)
    finally:
        qlab.set_num_threads(None)


X = np.ones((2, 256), np.float32)
BAD = X.copy()
BAD[1, 3:5] = np.nan, np.inf
LATE = np.ones((3000, 32), np.float32)
LATE[2500, 7] = -np.inf


@pytest.mark.parametrize(
    "act, error, message",
    [
        (lambda: encode_gguf(X, "q9_0"), ValueError, "allowed are q8_0, q4_0"),
        (lambda: encode_gguf(X, 8), TypeError, "not by int"),
        (lambda: encode_gguf(X, "iq2_xs"), ValueError, "can only be decoded"),
        (lambda: encode_gguf(X[:, :100], "q4_0"), ValueError, "multiple of 32; pad"),
        (lambda: encode_gguf(1.0, "q4_0"), ValueError, "shape ()"),
        (lambda: encode_gguf(BAD, "q4_0"), ValueError, "2 NaN or infinities, the first at flat index 259"),
        (lambda: encode_gguf(LATE, "q8_0"), ValueError, "1 NaN or infinities, the first at flat index 80007"),
        (lambda: encode_gguf(X * np.float64(1e300), "q4_0"), ValueError, "float32 cannot hold"),
        (lambda: encode_gguf(X * 1j, "q4_0"), TypeError, "complex"),
        (lambda: encode_gguf(X * 1e4, "nvfp4"), ValueError, "allowed is 2688"),
        (lambda: encode_gguf(X, "q4_k", importance=-X), ValueError, "negative"),
        (lambda: encode_gguf(X, "q4_k", importance=BAD), ValueError, "NaN"),
        (lambda: encode_gguf(X, "q4_k", importance=X[:, :32]), ValueError, "(2, 256), and (256,)"),
        (lambda: decode_gguf(np.zeros(33, np.uint8), "q8_0"), ValueError, "multiple of 34"),
        (lambda: decode_gguf(np.zeros(34), "q8_0"), TypeError, "float64"),
        (lambda: decode_gguf(np.zeros(34, np.uint8), "q80"), ValueError, "q8_0"),
    ],
)
def test_refusals(act, error, message):
    with pytest.raises(error) as caught:
        act()
    assert message in str(caught.value)
