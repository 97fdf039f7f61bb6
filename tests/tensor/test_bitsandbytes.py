"""NF4 and FP4 against bitsandbytes' CPU path: payload, absmax, double quantization, values.

What differs, and why:

- A last block that is shorter than the others: the library divides by its absmax (its CUDA kernels multiply by the
  reciprocal, as everywhere else) and stores an absmax of at least 1e-38. qlab multiplies, and stores what is there. Codes
  can differ where a quotient meets a boundary to the last bit.
- Values of FP4: zero times a scale comes as 0.0 or -0.0 out of the library, after which of its loops ran. Here it is 0.0.
- The offset of double quantization: the library's is a float32 mean, summed in torch's order; here it is the mean rounded
  once. Where they agree, so do the nested absmax and codes (which its CPU path finds by cells, see `dynamic_cells`).
  Where they do not, nested codes are at most one apart.
"""

from __future__ import annotations

import numpy as np
import pytest

import qlab

ml_dtypes = pytest.importorskip("ml_dtypes")
torch = pytest.importorskip("torch")
functional = pytest.importorskip("bitsandbytes.functional")

TYPES = {"nf4": "nf4", "fp4": "fp4_bnb"}
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@pytest.fixture(autouse=True)
def _no_compilation():
    torch.compiler.set_stance("force_eager")  # the library compiles some of its CPU functions, for each shape anew
    yield
    torch.compiler.set_stance("default")


def tensor_of(x):
    if x.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def theirs(x, block, kind, *, nested=False):
    """Payload as a flat array, and the library's state."""
    payload, state = functional.quantize_4bit(
        tensor_of(x.copy()), blocksize=block, quant_type=kind, compress_statistics=nested
    )
    return payload.numpy().reshape(-1), state


def library_values(payload, state):
    return functional.dequantize_4bit(torch.from_numpy(payload.copy()).reshape(-1, 1), state).float().numpy().reshape(state.shape)


def heavy_tailed(seed, n, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(n) * np.exp(rng.standard_normal(n))).astype(np.float32).astype(dtype)


def check(x, kind, block):
    payload, state = theirs(x, block, kind)
    qt = qlab.quantize(x, f"{TYPES[kind]}-b{block}")
    assert np.array_equal(qt.payload, payload)
    assert np.array_equal(qt.scale.view(np.uint32), state.absmax.numpy().view(np.uint32))
    values = qt.dequantize()
    assert values.dtype == x.dtype
    assert np.array_equal(values.astype(np.float32), library_values(payload, state))  # but for the sign of zero


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("kind", TYPES)
def test_bytes_absmax_and_values(kind, block, dtype):
    for n in (4 * block, 3 * block + 18, 3 * block + 17, 37):
        check(heavy_tailed(block + n, n, DTYPES[dtype]), kind, block)


@pytest.mark.parametrize("kind", TYPES)
def test_many_shapes(kind):
    x = heavy_tailed(0, 3 * 10 * 14).reshape(3, 10, 14)
    check(x, kind, 64)
    assert qlab.quantize(x, TYPES[kind]).codes().shape == x.shape


@pytest.mark.parametrize("kind", TYPES)
def test_all_float16_scaled_by_each_boundary(kind):
    """Blocks of 64 whose absmax is 1: every float16 there is up to 1, and the neighbours of each boundary."""
    values = np.sort(np.unique(functional.get_4bit_type(kind, device="cpu").numpy()))
    middles = (values[1:] + values[:-1]) / np.float32(2)
    near = np.concatenate([np.nextafter(middles, np.float32(-9)), middles, np.nextafter(middles, np.float32(9)), values])
    every = np.arange(0x3C01, dtype=np.uint16).view(np.float16).astype(np.float32)
    inside = np.concatenate([every, -every, near.astype(np.float32), np.float32([-0.0, 1e-45, -1e-45])])
    inside = np.concatenate([inside, np.zeros(-len(inside) % 63, np.float32)]).reshape(-1, 63)
    check(np.concatenate([inside, np.ones((len(inside), 1), np.float32)], axis=1).reshape(-1), kind, 64)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-40, 2.9e-39, 3e-39, 9.9e-39, 1e-38, 1.1e-38, 1.2e-38, 1e38, 3.4028235e38])
def test_zero_subnormal_and_huge_blocks(kind, largest):
    """Blocks below 1e-38 are multiplied by 1e38 and mostly become zeros: so it is in the library."""
    x = heavy_tailed(1, 6 * 64).astype(np.float64)
    x = (x / np.abs(x).max() * np.float32(largest)).astype(np.float32)
    x[64:128], x[130] = 0, -0.0
    check(x, kind, 64)


def test_second_zero_of_fp4():
    """Codes 0 and 8 are zero: the CPU path sends to 8 what is above zero, and zero itself to 0."""
    x = np.float32([1, 0.001, 0, -0.001, -0.0] + [0] * 27)
    assert qlab.quantize(x, "fp4_bnb-b32").codes()[:5].tolist() == [3, 8, 0, 0, 0]
    check(x, "fp4", 32)


@pytest.mark.parametrize("kind", TYPES)
def test_a_short_last_block_divides_in_the_library_and_multiplies_here(kind):
    values = np.unique(functional.get_4bit_type(kind, device="cpu").numpy())
    middle = (values[-1] + values[-2]) / np.float32(2)
    absmax = np.random.default_rng(2).uniform(1, 2, 4000).astype(np.float32)
    x = absmax * middle
    multiplied, divided = x * (1 / absmax) > middle, x / absmax > middle
    split = np.flatnonzero(multiplied != divided)[:5]
    assert len(split) == 5
    for i in split:
        tail = np.float32([*[0] * 64, absmax[i], x[i]])
        assert qlab.quantize(tail, TYPES[kind]).payload[-1] & 15 == (15 if kind == "nf4" else 3) - (not multiplied[i])
        assert theirs(tail, 64, kind)[0][-1] & 15 == (15 if kind == "nf4" else 3) - (not divided[i])
    zeros = np.zeros(80, np.float32)
    payload, state = theirs(zeros, 64, kind)
    assert state.absmax[1] == np.float32(1e-38)
    assert qlab.quantize(zeros, TYPES[kind]).scale.tolist() == [0, 0]
    assert np.array_equal(qlab.quantize(zeros, TYPES[kind]).payload, payload)


# --- double quantization ---------------------------------------------------------------------------------------------
def nested_state(qt, state):
    """The library's state with what qlab found: how it reads our bytes."""
    state.absmax = torch.from_numpy(qt.scale.payload.copy())
    state.state2.absmax = torch.from_numpy(qt.scale.scale.copy())
    state.offset = torch.tensor(qt.scale.offset)
    return state


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("block, n", [(32, 32 * 700), (64, 64 * 515 + 22), (128, 128 * 256), (256, 256 * 40), (64, 40)])
def test_double_quantization(kind, block, n, dtype):
    x = heavy_tailed(n, n, DTYPES[dtype])
    payload, state = theirs(x, block, kind, nested=True)
    qt = qlab.quantize(x, f"{TYPES[kind]}-b{block}-dq")
    assert np.array_equal(qt.payload, payload)
    plain = qlab.quantize(x, f"{TYPES[kind]}-b{block}").scale
    assert qt.scale.offset == np.float32(plain.mean(dtype=np.float64))
    ulp = np.spacing(np.float32(qt.scale.offset))
    assert abs(float(state.offset) - qt.scale.offset) <= 2 * ulp
    if float(state.offset) == qt.scale.offset:
        assert np.array_equal(qt.scale.scale, state.state2.absmax.numpy())
    else:
        assert np.allclose(qt.scale.scale, state.state2.absmax.numpy(), rtol=0, atol=4 * ulp)

    # nested codes: the library's, wherever it takes the same offset off; its last nested block, if short, is divided
    ours, theirs_ = qt.scale.codes(), state.absmax.numpy()
    if float(state.offset) == qt.scale.offset:
        whole = len(ours) // 256 * 256
        assert np.array_equal(ours[:whole], theirs_[:whole])
        assert (ours != theirs_).sum() <= 1
    else:
        assert np.abs(ours.astype(int) - theirs_.astype(int)).max() <= 1

    assert np.array_equal(qt.dequantize().astype(np.float32), library_values(qt.payload, nested_state(qt, state)))


def test_the_bits_of_double_quantization():
    qt = qlab.quantize(heavy_tailed(0, 64 * 256 * 16), "nf4_dq")
    assert qt.bits_per_value == pytest.approx(4 + 8 / 64 + 32 / (64 * 256) + 32 / (64 * 256 * 16))
    assert qlab.quantize(heavy_tailed(0, 64 * 16), "nf4").bits_per_value == 4.5


def test_the_nested_map_of_the_library_is_ours():
    ours = qlab.get_scheme("nf4_dq").scale.stored.format.values()
    assert np.array_equal(functional.create_dynamic_map().numpy(), ours)
