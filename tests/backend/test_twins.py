"""Every registered twin says the same as NumPy, to the last bit: one test over all of them.

Triton's kernels run under its interpreter, in a process of their own (`test_triton.py`), and on a GPU where there is one.
"""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from oracles import bfloat16_inputs, float16_inputs, same

import qlab
from qlab.backend import torch_law, torch_ops
from qlab.number.codec import Rules
from qlab.number.formats import FORMATS, FloatFormat, IntFormat, TableFormat, get_format
from qlab.number.rounding import ROUNDINGS
from qlab.number.tapered import posit

ODD_ONES = [FloatFormat("dlfloat16", 6, 9, subnormals=False), FloatFormat("unsigned", 5, 1, signed=False),
            FloatFormat("e3m0", 3, 0, infinities=False, nans="none"), FloatFormat("e1m4_all_subnormal", 1, 4),
            FloatFormat("e4m0_no_zero", 4, 0, infinities=False, nans="none", subnormals=False),
            FloatFormat("e3m4_large_no_subnormals", 3, 4, bias=-16, subnormals=False),
            TableFormat("five", [3, -1, 0.5, 0.25, 7])]  # fmt: skip
TRIED = [
    f for f in FORMATS.values() if f.bits <= 32 and f.name not in ("int6", "int7", "uint6", "uint7", "posit16", "takum16")
]


def inputs(fmt, dtype):
    bits = np.random.default_rng(0).integers(0, 2**32, 3000, dtype=np.uint32).view(np.float32)
    normal = np.random.default_rng(1).standard_normal(3000).astype(np.float32)
    values = qlab.decode(np.arange(min(1 << fmt.bits, 4096)) % len(getattr(fmt, "table", range(1 << 30))), fmt)
    with np.errstate(all="ignore"):
        x = np.concatenate([float16_inputs()[::37].astype(np.float32), bfloat16_inputs()[::37], bits, normal, values])
        x = torch.from_numpy(np.concatenate([x, x * np.float32(1.5)])).to(dtype)
    return x if getattr(fmt, "nan_code", None) is not None else x[~x.isnan()]


def by_portable_operations(x, fmt, how, to_codes):
    return torch_ops._by_torch(x, fmt, how, to_codes=to_codes)


def by_numpy_memory(x, fmt, how, to_codes):
    return torch_ops._by_numpy(x, fmt, how, None, to_codes=to_codes)


def by_operator(x, fmt, how, to_codes):
    return torch_ops._by_operator(x, fmt, how, to_codes=to_codes, clipped=False)


TWINS = {"portable": by_portable_operations, "memory": by_numpy_memory, "operator": by_operator}


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("fmt", [*TRIED, *ODD_ONES], ids=lambda f: f.name)
def test_every_twin_to_the_last_bit(twin, fmt):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x = inputs(fmt, dtype)
        reference = x.float().numpy() if dtype is torch.bfloat16 else x.numpy()
        for rounding in ROUNDINGS if dtype is torch.float32 else ("nearest_even", "down"):
            for overflow in ("ieee", "saturate"):
                rng = 5 if rounding == "stochastic" else None
                how = Rules(rounding, overflow, "raise", None, rng)
                options = {"rounding": rounding, "overflow": overflow, "rng": rng}
                codes = TWINS[twin](x, fmt, how, True)
                assert np.array_equal(codes.numpy(), qlab.encode(reference, fmt, **options)), (dtype, rounding, overflow)
                values = TWINS[twin](x, fmt, how, False)
                assert same(values.double().numpy(), qlab.cast(reference, fmt, **options)).all(), (dtype, rounding, overflow)


@pytest.mark.parametrize("fmt", [f for f in TRIED if f.bits <= 16], ids=lambda f: f.name)
def test_decode(fmt):
    codes = torch.arange(len(fmt.values()))
    for dtype in (torch.uint8, torch.int32, torch.int64) if fmt.bits <= 8 else (torch.int32, torch.int64):
        assert same(qlab.decode(codes.to(dtype), fmt).numpy(), fmt.values()).all()
    layout = torch_ops.FLOAT32 if qlab.decode(codes, fmt).dtype is torch.float32 else torch_ops.FLOAT64
    assert same(torch_law.decode_law(codes, fmt, layout).numpy(), fmt.values()).all()


def test_noise_is_the_same_stream():
    from qlab.number.noise import philox

    for seed in (0, 3, 2**64 - 1):
        assert np.array_equal(torch_law.philox_tensor(seed, 1001, torch.device("cpu")).numpy(), philox(seed, 0, 1001))


def test_a_torch_generator_feeds_it_and_the_global_one_is_left_alone():
    x = torch.full((1000,), 1.001)
    state = torch.get_rng_state()
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    first, second = (qlab.cast(x, "fp16", rounding="stochastic", generator=g) for g in generators)
    assert torch.equal(first, second)
    assert not torch.equal(first, qlab.cast(x, "fp16", rounding="stochastic", generator=generators[0]))
    assert torch.equal(torch.get_rng_state(), state)


CAST_DTYPES = [
    (torch.float16, "fp8_e4m3", torch.float16), (torch.float16, "bf16", torch.float32), (torch.bfloat16, "fp16", torch.float32),
    (torch.bfloat16, "fp8_e5m2", torch.bfloat16), (torch.float32, "bf16", torch.float32), (torch.int8, "fp16", torch.float32),
    (torch.int64, "fp16", torch.float64), (torch.float64, "fp8_e4m3", torch.float64), (torch.float32, "float64", torch.float64),
]  # fmt: skip


@pytest.mark.parametrize("source, name, result", CAST_DTYPES)
def test_dtypes_shapes_and_strides(source, name, result):
    x = torch.arange(-6, 6).reshape(3, 4).to(source)
    for view in (x, x.t(), x[:, ::2], x[0, 0], x[:0]):
        rounded = qlab.cast(view, name)
        assert rounded.dtype is result
        assert rounded.shape == view.shape
        assert torch.equal(rounded, view.to(result))


def test_wide_integers_portable():
    x = torch.tensor([2**62 + 2**51, 2**62 + 2**51 + 1, -(2**63), 2**53 + 1, 2**53 + 3, -(2**53) - 1, 2**63 - 1, 0, -5])
    for numbers in (x, x.view(torch.uint64)):
        for fmt in (FloatFormat("e8m10", 8, 10), get_format("float32"), get_format("float64"), get_format("takum16")):
            for rounding in ("nearest_even", "nearest_away", "up", "to_odd"):
                how = Rules(rounding, "ieee", "raise")
                expected = torch.from_numpy(qlab.cast(numbers.numpy(), fmt, rounding=rounding))
                assert torch.equal(torch_ops._by_torch(numbers, fmt, how, to_codes=False), expected), (fmt, rounding)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_integers(dtype):
    x = torch.tensor([0, 1, 300, 65535], dtype=dtype)
    for twin in TWINS.values():
        rounded = twin(x, get_format("bf16"), Rules("nearest_even", "ieee", "raise"), False)
        assert rounded.tolist() == [0, 1, 300, 65536]
        assert rounded.dtype is (torch.float64 if dtype is torch.uint64 else torch.float32)
    assert qlab.decode(qlab.encode(x, "uint16").to(dtype), "uint16").tolist() == [0, 1, 300, 65535]


@pytest.mark.parametrize("noise_type", [np.uint8, np.uint16, np.uint32])
def test_noise_given_as_an_array(noise_type):
    x, fmt = torch.linspace(0.1, 3, 99), get_format("fp8_e4m3")
    noise = np.random.default_rng(0).integers(0, np.iinfo(noise_type).max, 99, noise_type)
    expected = qlab.cast(x.numpy(), fmt, rounding="stochastic", noise=noise)
    for given in (noise, torch.from_numpy(noise)):
        how = Rules("stochastic", "ieee", "raise", given)
        for twin in TWINS.values():
            assert np.array_equal(twin(x, fmt, how, False).numpy(), expected)
        assert isinstance(torch_ops._noise_beside(x, how).noise, torch.Tensor)  # what a kernel is given


def test_out():
    x = torch.randn(100)
    out = torch.empty(100)
    assert qlab.cast(x, "fp16", out=out) is out
    assert torch.equal(out, qlab.cast(x, "fp16"))
    half = torch.empty(100, dtype=torch.bfloat16)
    assert torch.equal(qlab.cast(x.bfloat16(), "fp8_e5m2", out=half), qlab.cast(x.bfloat16(), "fp8_e5m2"))
    codes = torch.empty(100, dtype=torch.uint8)
    assert qlab.encode(x, "fp4", out=codes) is codes
    assert torch.equal(qlab.decode(codes, "fp4", out=out), qlab.cast(x, "fp4"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_out_of_any_dtype_lends_its_memory(dtype):
    """And one that lies scattered is copied to."""
    x = torch.randn(700, 200).to(dtype)
    expected = qlab.cast(x.double(), "fp8_e4m3", rounding="up").to(dtype)
    for source in (x, x[::2], x[:3, 4], x[0, 0], x[:0]):
        out, wide = torch.empty(source.shape, dtype=dtype), torch.empty((*source.shape, 2), dtype=dtype)[..., 0]
        codes, decoded = torch.empty(source.shape, dtype=torch.uint8), torch.empty(source.shape)
        for into in (out, wide):
            assert qlab.cast(source, "fp8_e4m3", rounding="up", out=into) is into
            assert torch.equal(into, qlab.cast(source.double(), "fp8_e4m3", rounding="up").to(dtype))
        qlab.encode(source, "fp8_e4m3", rounding="up", out=codes)
        assert qlab.decode(codes, "fp8_e4m3", out=decoded) is decoded
        assert qlab.decode(codes, "fp8_e4m3", dtype=dtype, out=out) is out
        assert torch.equal(decoded, wide.float())
        assert torch.equal(out, wide)
    assert qlab.cast(x, "fp8_e4m3", rounding="up", out=x) is x
    assert torch.equal(x, expected)


def test_bfloat16_needs_no_ml_dtypes():
    code = """
import sys
sys.modules["ml_dtypes"] = None
import torch, qlab
x = torch.tensor([1.06, 500.0, -0.0], dtype=torch.bfloat16)
print(qlab.cast(x, "fp8_e4m3", overflow="saturate").tolist(), qlab.encode(x.repeat(30000), "int8").sum().item())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.strip() == f"[1.0, 448.0, -0.0] {30000 * 128}"


def test_gradients():
    x = torch.tensor([0.3, 500.0, -7e4, 1.0], requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (qlab.cast(x, "fp8_e4m3", overflow="saturate") * weight).sum().backward()
    assert x.grad.tolist() == [1, 2, 3, 4]
    x.grad = None
    (qlab.cast(x, "fp8_e4m3", overflow="saturate", gradient="clipped") * weight).sum().backward()
    assert x.grad.tolist() == [1, 0, 0, 4]
    half = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    qlab.cast(half, "fp16").sum().backward()
    assert half.grad.dtype is torch.bfloat16
    assert not qlab.cast(x.detach(), "fp16").requires_grad
    with torch.no_grad():
        assert not qlab.cast(x, "fp16").requires_grad
    assert not qlab.encode(x, "fp16").requires_grad


@pytest.mark.parametrize("fmt", ["fp8_e4m3", "int4", "nf4", FloatFormat("mine", 4, 2), TableFormat("t", [0.0, 1, 3])],
                         ids=str)  # fmt: skip
def test_compiles_without_graph_break(fmt):
    x = torch.linspace(-3, 3, 101)

    def rounded(t):
        return qlab.decode(qlab.encode(t * 2, fmt), fmt) + qlab.cast(t, fmt, overflow="saturate")

    torch._dynamo.reset()
    compiled = torch.compile(rounded, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), rounded(x))


def test_tables_of_ones_own_compile():
    """Whatever their names, sizes and boundaries."""
    x, values = torch.linspace(-3, 3, 101), [0.0, 1, 2, math.nan, -1]
    tables = [TableFormat("mine", values, boundaries=[-0.9, 0.1, 1.9]), TableFormat("nf4", values),
              TableFormat("large", np.linspace(-2, 2, 500)), posit(10), get_format("posit16")]  # fmt: skip
    torch._dynamo.reset()
    compiled = torch.compile(lambda t, table: qlab.cast(t, table) + 0, fullgraph=True, backend="aot_eager")
    for table in tables:
        assert torch.equal(compiled(x, table), qlab.cast(x, table)), table


def test_out_is_written_under_compile():
    def fill(t, values, codes, decoded):
        qlab.cast(t, "fp8_e4m3", out=values)
        qlab.encode(t, "fp8_e4m3", out=codes)
        qlab.decode(codes, "fp8_e4m3", out=decoded)

    x = torch.linspace(-3, 3, 101)
    values, codes, decoded = torch.empty(101), torch.empty(101, dtype=torch.uint8), torch.empty(101)
    torch._dynamo.reset()
    torch.compile(fill, fullgraph=True, backend="aot_eager")(x, values, codes, decoded)
    assert torch.equal(values, qlab.cast(x, "fp8_e4m3"))
    assert torch.equal(codes, qlab.encode(x, "fp8_e4m3"))
    assert torch.equal(decoded, values)


def test_compiled_gradient_and_seed():
    def loss(t):
        return (qlab.cast(t, "fp8_e4m3", rounding="stochastic", rng=3, gradient="clipped", overflow="saturate") ** 2).sum()

    x, y = (torch.tensor([0.3, 500.0, -1.0], requires_grad=True) for _ in range(2))
    loss(x).backward()
    torch._dynamo.reset()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(y).backward()
    assert torch.equal(x.grad, y.grad)


def test_torch_func():
    x = torch.randn(4, 5)
    assert torch.equal(torch.vmap(lambda t: qlab.cast(t, "bf16"))(x), qlab.cast(x, "bf16"))
    assert torch.equal(torch.vmap(lambda t: qlab.encode(t, "bf16"), in_dims=1)(x), qlab.encode(x, "bf16").t())
    assert torch.equal(torch.func.grad(lambda t: (qlab.cast(t, "bf16") * 2).sum())(x), torch.full_like(x, 2))


def test_fake_tensors_have_the_right_shape():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(3, 4, dtype=torch.bfloat16)
        assert torch.ops.qlab.convert(x, None, "fp16", "nearest_even,ieee,raise,", None, False, False).dtype is torch.float32
        assert torch.ops.qlab.decode(torch.empty(3, dtype=torch.uint8), "fp4", None).dtype is torch.float32


REFUSED = [
    (lambda: qlab.cast(torch.tensor([1.0, float("nan")]), "int8"), ValueError, "1 NaN (the first at index (1,))"),
    (lambda: by_portable_operations(torch.tensor([[float("nan")]]), IntFormat(8), Rules("up", "ieee", "raise"), False),
     ValueError, "1 NaN (the first at index (0, 0))"),
    (lambda: by_portable_operations(torch.ones(2), IntFormat(8), Rules("stochastic", "ieee", "raise"), False),
     ValueError, "needs either noise"),
    (lambda: by_portable_operations(torch.ones(2), IntFormat(8), Rules("up", "ieee", "raise", np.uint8([1, 2])), False),
     ValueError, "noise is for rounding='stochastic'"),
    (lambda: by_portable_operations(torch.ones(2), IntFormat(8), Rules("stochastic", "ieee", "raise", np.uint8([1])), False),
     ValueError, "shape of x, (2,)"),
    (lambda: qlab.cast(torch.tensor([1j]), "fp16"), TypeError, "complex64"),
    (lambda: qlab.cast(torch.tensor([True]), "fp16"), TypeError, "torch.bool"),
    (lambda: qlab.cast(torch.ones(2), "fp16", gradient="none"), ValueError, "'pass', 'clipped'"),
    (lambda: qlab.cast(torch.ones(2), "fp16", out=torch.ones(3)), ValueError, "shape (2,)"),
    (lambda: qlab.cast(torch.ones(2), "fp16", out=torch.ones(2).half()), ValueError, "must be torch.float32"),
    (lambda: qlab.decode(torch.ones(2).byte(), "fp4", out=torch.ones(3)), ValueError, "must be torch.float32 of shape (2,)"),
    (lambda: qlab.cast(torch.ones(2, requires_grad=True), "fp16", out=torch.ones(2)), ValueError, "detach"),
    (lambda: qlab.cast(torch.ones(2), "fp16", rounding="stochastic"), ValueError, "needs either"),
    (lambda: qlab.decode(torch.ones(2), "fp16"), TypeError, "bit patterns"),
    (lambda: qlab.decode(torch.ones(2, dtype=torch.int32), "bf16", dtype=torch.float16), ValueError, "use torch.float32"),
    (lambda: torch.vmap(lambda t: qlab.cast(t, "fp16", rounding="stochastic", rng=1))(torch.ones(2, 2)), ValueError, "vmap"),
]  # fmt: skip


@pytest.mark.parametrize("act, error, message", REFUSED)
def test_refusals(act, error, message):
    with pytest.raises(error) as caught:
        act()
    assert message in str(caught.value)
