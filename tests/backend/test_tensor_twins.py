"""Every way that a torch tensor is quantized says the same as NumPy, to the last bit; and the gradients are right."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import ml_dtypes
import numpy as np
import pytest
import torch

import qlab
from qlab.backend import torch_blocks, torch_tensor
from qlab.number.formats import TableFormat
from qlab.tensor.clipping import clips_nothing, fake_quantize_and_inside
from qlab.tensor.packing import pack
from qlab.tensor.qtensor import QTensor
from qlab.tensor.scheme import SCHEMES, Fitted

NAMES = [name for name, scheme in SCHEMES.items() if scheme.layout is None]
NOTATIONS = [
    "int4-b32-asym", "uint4-b32-min/f16", "int3-b16-signed/f16", "int5-axis1-pow2",
    "e4m3-unit", "float16-channel-unit", "uint3-b8-asym/bf16", "int8-b7-mean/e4m3",
    "fp4-b4x6-mx_up/e8m0", "int2-b32-mx_nearest_even/e8m0", "e3m2-b32-mx_ceil/e8m0", "nf4-b32-dq", "int6-flat19-center",
    "af4-b32", "int4-b16/uint6-b4-min/f16", "posit8-b32", "int12-channel-high_first", "int4-channel-mse", "int4-b32-p99",
    "e5m2-channel-reciprocal", "dynamic8-flat16", "float8_e8m0fnu", "int8-row", "int8-row-asym", "e4m3-row",
    "int4-b32-late/f16", "uint4-b32-min-late/f16", "fp4_bnb-b5", "nf4-b5-low_first",
    "mxint8-b32-mx_nearest_even/e8m0", "int5-b4-mx_nearest_even",
]  # fmt: skip
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = [(6, 70), (2, 3, 64), (65,)]  # the last with an odd number of codes


def inputs(shape, dtype, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape) * 3).to(dtype)


def as_numpy(x):
    return x.float().numpy() if x.dtype is torch.bfloat16 else x.numpy()


def expected(scheme, x):
    """What NumPy answers to the values of a tensor, in the tensor's dtype; or its error."""
    try:
        stored = qlab.quantize(as_numpy(x), scheme)
    except ValueError as error:
        return None, None, str(error)
    if x.dtype is torch.bfloat16:
        rounded = np.asarray(qlab.fake_quantize(as_numpy(x).astype(ml_dtypes.bfloat16), scheme))
        return stored, torch.from_numpy(rounded.view(np.int16)).view(torch.bfloat16), ""
    return stored, torch.from_numpy(np.asarray(qlab.fake_quantize(as_numpy(x), scheme))).to(x.dtype), ""


def same_bits(a, b):
    """Whether two tensors of floats are the same to the last bit, or an array and a tensor of anything."""
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    own = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(own), b.contiguous().view(own))


def same_stored(ours: QTensor, theirs: QTensor):
    """Whether a QTensor of tensors holds the bits of one of arrays."""
    assert isinstance(ours.payload, torch.Tensor)
    assert ours.scheme == theirs.scheme
    assert (ours.shape, ours.nbytes, ours.ledger(), ours.offset) == (theirs.shape, theirs.nbytes, theirs.ledger(), theirs.offset)
    assert same_bits(ours.payload, theirs.payload)
    assert torch.equal(ours.codes(), torch.from_numpy(theirs.codes()))
    assert (ours.zero is None) == (theirs.zero is None)
    assert ours.zero is None or same_bits(ours.zero, theirs.zero)
    if isinstance(theirs.scale, QTensor):
        same_stored(ours.scale, theirs.scale)
    else:
        assert same_bits(ours.scale, theirs.scale)


def by_public_verbs(x, scheme):
    return qlab.quantize(x, scheme), qlab.fake_quantize(x, scheme)


def by_portable_operations(x, scheme):
    return torch_blocks.quantize(x, scheme), torch_tensor.portable(x, scheme, clipped=False)[0]


WAYS = {"public": by_public_verbs, "portable": by_portable_operations}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*NAMES, *NOTATIONS])
def test_every_way_to_the_last_bit(way, name):
    for shape in SHAPES:
        for dtype in DTYPES:
            x, scheme = inputs(shape, dtype), qlab.get_scheme(name)
            if way == "portable" and not torch_blocks.is_made_for(x, scheme):
                continue
            stored, rounded, error = expected(scheme, x)
            if error:
                with pytest.raises(ValueError) as caught:
                    WAYS[way](x, scheme)
                assert str(caught.value) == error
                continue
            ours, values = WAYS[way](x, scheme)
            same_stored(ours, stored)
            assert ours.dtype is dtype
            assert same_bits(values, rounded), (shape, dtype)
            assert same_bits(ours.dequantize(), rounded), (shape, dtype)
            by_torch = torch_blocks.dequantize(ours, torch.finfo(dtype).max)
            assert same_bits(torch_tensor._rounded(by_torch, dtype), rounded), (shape, dtype)


def test_only_searches_and_what_is_fitted_go_by_way_of_the_cpu():
    x = inputs((6, 70), torch.float32)
    apart = [name for name in [*NAMES, *NOTATIONS] if not torch_blocks.is_made_for(x, qlab.get_scheme(name))]
    assert apart == ["kmeans4", "int4-channel-mse", "int4-b32-p99"]


@pytest.mark.parametrize("name", ["int8", "int4-b32", "nf4", "int8-row-asym", "e4m3-row", "mxfp4", "int4-b8-signed/f16"])
def test_zeros_of_both_signs(name):
    for x in (torch.zeros(2, 64), -torch.zeros(2, 64), torch.tensor([0.0, -0.0]).repeat(64).reshape(2, 64)):
        stored, rounded, _ = expected(name, x)
        for way in WAYS.values():
            ours, values = way(x, qlab.get_scheme(name))
            same_stored(ours, stored)
            assert same_bits(values, rounded)


def test_the_second_zero_of_fp4():
    x = inputs((4, 64), torch.float32)
    x[:, ::3] *= 1e-4
    stored = qlab.quantize(x.numpy(), "fp4_bnb")
    assert 10 < (stored.codes() == 8).sum() < 80
    for way in WAYS.values():
        same_stored(way(x, qlab.get_scheme("fp4_bnb"))[0], stored)


HARD = {
    "subnormal": 2.0**-140, "tiny": 2.0**-129, "at the low end of normal": 2.0**-125, "huge": 2.0**123, "whole": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("factor", HARD.values(), ids=HARD)
@pytest.mark.parametrize("name", [
    "int8_channel", "nf4", "int4-b32-asym", "uint4-b32-min", "int4-b32-pow2", "mxfp4", "int4-b16-signed",
    "e3m2-b32-mx_nearest_even/e8m0", "e4m3-b32-mx_up",
])  # fmt: skip
def test_at_the_ends_of_the_range(name, factor):
    x = inputs((8, 64), torch.float32) * factor
    x[3] = 0
    x[5, :32] = torch.nextafter(torch.tensor(4.0), torch.tensor(0.0)) * factor  # just under a power of two
    stored, rounded, error = expected(name, x)
    assert not error
    for way in WAYS.values():
        ours, values = way(x, qlab.get_scheme(name))
        same_stored(ours, stored)
        assert same_bits(values, rounded)


@pytest.mark.parametrize("name", [
    "int4-b16-mx_up", "e4m3-b16/e4m3", "fp4-b16-pow2", "int3-b16-signed", "int8-row-asym", "uint2-b16-min", "nf4",
    "uint8-flat48-min-center",
])  # fmt: skip
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_saturate(name, dtype):
    largest = torch.finfo(dtype).max
    x = (torch.rand(6, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1) * largest
    x[0], x[1, ::2], x[3, 5], x[4] = largest, -largest, largest, x[4].abs() / 1.5
    if "/e4m3" in name:
        x = x * min(1, 448 * 448 / largest)
    if "center" in name:
        x = x * min(1, 1e36 / largest)  # the mean is kept as float32
    x, scheme = x.to(dtype), qlab.get_scheme(name)
    for source in (x, x.abs() * 0.999):
        stored, rounded, error = expected(scheme, source)
        assert not error
        for way in WAYS.values():
            ours, values = way(source, scheme)
            same_stored(ours, stored)
            assert values.isfinite().all()
            assert same_bits(values, rounded)
            for target in (torch.float16, torch.bfloat16, torch.float32):
                by_torch = torch_tensor._rounded(torch_blocks.dequantize(ours, torch.finfo(target).max), target)
                assert same_bits(ours.dequantize(dtype=target), by_torch)
                assert by_torch.isfinite().all() or dtype is torch.float64


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_k", "q6_k", "mxfp4_gguf"])
def test_gguf_types_go_through_numpy(name):
    for dtype in (*DTYPES, torch.int16):
        x = (inputs((3, 300), torch.float32) * 20).to(dtype)
        stored, rounded, error = expected(qlab.get_scheme(name), x)
        assert not error
        ours = qlab.quantize(x, name)
        assert isinstance(ours.payload, torch.Tensor)
        assert same_bits(ours.payload, stored.payload)
        assert ours.ledger() == stored.ledger()
        kind = torch_blocks.result_dtype(dtype)
        assert ours.dtype is kind
        expected_values = rounded if dtype.is_floating_point else torch.from_numpy(stored.dequantize())
        for values in (ours.dequantize(), qlab.fake_quantize(x, name), ours.dequantize(out=torch.empty(3, 300, dtype=kind))):
            assert same_bits(values, expected_values)
    weights = torch.arange(300.0) % 7
    by_numpy = qlab.quantize(x.numpy(), name, importance=weights.numpy())
    assert same_bits(qlab.quantize(x, name, importance=weights).payload, by_numpy.payload)
    leaf = inputs((2, 256), torch.float32).requires_grad_()
    qlab.fake_quantize(leaf, name).sum().backward()
    assert (leaf.grad == 1).all()
    with pytest.raises(ValueError, match="gradient='pass'"):
        qlab.fake_quantize(leaf, name, gradient="clipped")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integers(dtype):
    x = torch.arange(0, 120, dtype=dtype).reshape(4, 30)
    for name in ("int8", "int4-b32-asym", "nf4"):
        stored = qlab.quantize(x.numpy(), name)
        for way in WAYS.values():
            ours, values = way(x, qlab.get_scheme(name))
            same_stored(ours, stored)
            assert same_bits(values, qlab.fake_quantize(x.numpy(), name))


def test_views_and_strides():
    x = inputs((12, 64), torch.float32)
    for view in (x.t(), x[::2], x[:, 3:40], x[5], x[..., None].expand(12, 64, 2), x[0, 0]):
        before = view.clone()
        for name in ("int8", "int4-flat16", "int4-asym"):
            stored = qlab.quantize(view.numpy(), name)
            for way in WAYS.values():
                ours, values = way(view, qlab.get_scheme(name))
                same_stored(ours, stored)
                assert same_bits(values, qlab.fake_quantize(view.numpy(), name))
                assert values.is_contiguous()
        assert torch.equal(view, before)


def test_dequantize_to_each_dtype_rounds_once():
    x = inputs((16, 96), torch.float64)
    for name in ("int8_channel", "nf4_dq", "uint4-b32-min"):
        for source in DTYPES:
            stored = qlab.quantize(x.to(source), name)
            exact = stored.dequantize(dtype=torch.float64)
            assert exact.dtype is torch.float64
            for target, places in ((torch.float16, 11), (torch.bfloat16, 8), (torch.float32, 24)):
                computed = torch_blocks.dequantize(stored).double().numpy()
                fraction, exponent = np.frexp(computed)
                once = np.ldexp(np.rint(np.ldexp(fraction, places)), exponent - places)  # ties to even, once
                assert np.array_equal(stored.dequantize(dtype=target).double().numpy(), once), (name, source, target)


def test_float64_to_half_floats_rounds_once():
    x = torch.tensor([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-11 + 2.0**-40], dtype=torch.float64)
    assert torch_tensor._rounded(x, torch.bfloat16)[0] == 1 + 2.0**-7
    assert torch_tensor._rounded(x, torch.float16)[1] == 1 + 2.0**-10


def test_out():
    x = inputs((8, 64), torch.float32)
    stored, rounded = qlab.quantize(x, "nf4"), qlab.fake_quantize(x, "nf4")
    for dtype in DTYPES:
        out = torch.empty(8, 64, dtype=dtype)
        assert stored.dequantize(dtype=dtype, out=out) is out
        assert torch.equal(out, rounded.to(dtype))
        mine = x.to(dtype)
        again = qlab.fake_quantize(mine, "nf4")
        assert qlab.fake_quantize(mine, "nf4", out=mine) is mine  # in place
        assert torch.equal(mine, again)
    out = torch.empty(64, 8).t()
    assert torch.equal(stored.dequantize(out=out), rounded)


def test_a_tensor_that_requires_a_gradient_is_detached_by_quantize():
    x = inputs((4, 64), torch.float32).requires_grad_()
    stored = qlab.quantize(x, "nf4_dq")
    assert not stored.dequantize().requires_grad
    assert not stored.scale.scale.requires_grad
    assert torch.equal(copy.deepcopy(stored).dequantize(), stored.dequantize())


# --- gradients -------------------------------------------------------------------------------------------------------
def gradient_of(x, scheme, gradient, weight):
    x = x.clone().requires_grad_()
    (qlab.fake_quantize(x, scheme, gradient=gradient) * weight).sum().backward()
    return x.grad


def test_it_passes_straight_through():
    for dtype in DTYPES:
        x, weight = inputs((4, 64), dtype), inputs((4, 64), dtype, 1)
        for name in ("int8", "nvfp4", "kmeans4", "nf4_dq"):
            assert same_bits(gradient_of(x, name, "pass", weight), weight)
        for name in ("int8", "nf4_dq", "int4-b32-pow2"):  # which clip nothing
            assert same_bits(gradient_of(x, name, "clipped", weight), weight)


def test_where_it_was_clipped_torch_says_the_same():
    x = inputs((16, 200), torch.float32)
    weight = inputs((16, 200), torch.float32, 1)
    for name in ("int4-channel-p90", "int2-channel-mean", "int3-channel-mse", "int4-channel-p90-asym"):
        stored = qlab.quantize(x, name)
        bits = stored.scheme.bits
        zero = torch.zeros(16, dtype=torch.int32) if stored.zero is None else stored.zero.int()
        leaf = x.clone().requires_grad_()
        theirs = torch.fake_quantize_per_channel_affine(leaf, stored.scale, zero, 0, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        (theirs * weight).sum().backward()
        assert 0.001 < (leaf.grad == 0).float().mean() < 0.9
        assert torch.equal(gradient_of(x, name, "clipped", weight), leaf.grad), name


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "int4-b32/e4m3", "ternary", "nf4-b32-mse", "uint4-b32-min-p95", "kmeans4",
                                  "binary", "nf4-p95-late/f16"])  # fmt: skip
def test_where_it_was_clipped_by_the_stored_range(name):
    x = inputs((64, 96), torch.float32)
    stored = qlab.quantize(x, replace(qlab.get_scheme(name), scale=replace(qlab.get_scheme(name).scale, late=False)))
    scale = stored.scale.dequantize() if isinstance(stored.scale, QTensor) else stored.scale
    table = stored.scheme.format.values()
    size = x.numel() // scale.numel()
    scaled = x.double().reshape(-1, size)
    if stored.zero is not None:
        scaled = scaled - stored.zero.double().reshape(-1, 1) + table.min() * scale.double().reshape(-1, 1)
    scaled = (scaled / scale.double().reshape(-1, 1)).reshape(x.shape).numpy()
    margin = 0.5 if name.startswith(("int", "uint")) else 1e-6
    low, high = np.nanmin(table), np.nanmax(table)
    inside = (scaled >= low - margin - abs(low) * 1e-6) & (scaled <= high + margin + abs(high) * 1e-6)
    if name not in ("nf4-p95-late/f16",):
        found = gradient_of(x, name, "clipped", torch.ones_like(x)).numpy() == 1
        assert np.array_equal(found, inside)
        assert name in ("kmeans4", "int4-b32/e4m3") or 0.005 < 1 - found.mean() < 0.9
    values, mask = fake_quantize_and_inside(x.numpy(), name)
    assert same_bits(values, qlab.fake_quantize(x.numpy(), name))
    if torch_blocks.is_made_for(x, qlab.get_scheme(name)):
        by_torch, portable_mask = torch_tensor.portable(x, qlab.get_scheme(name), clipped=True)
        assert np.array_equal(portable_mask.numpy(), mask)
        assert same_bits(by_torch, values)


def test_portable_says_the_same_of_clipping():
    for name in ("nvfp4", "int4-b32-asym", "binary", "mxfp6_e2m3", "uint4-b32-min/f16", "nf4"):
        for dtype in DTYPES:
            x = inputs((8, 96), dtype)
            _, mask = torch_tensor.portable(x, qlab.get_scheme(name), clipped=True)
            assert np.array_equal(mask.numpy(), fake_quantize_and_inside(as_numpy(x), name)[1])


# --- torch.compile, autocast, torch.func -----------------------------------------------------------------------------
ODD = qlab.Scheme(TableFormat("mine", [-1.0, -0.2, 0.0, 0.3, 1.0]), qlab.PerBlock(16))


@pytest.mark.parametrize("scheme", ["int8_channel", "nf4_dq", "int4-b16-mse", "kmeans4", qlab.get_scheme("mxfp4"), ODD,
                                    replace(qlab.get_scheme("int8"), blocks=qlab.PerBlock(32))], ids=str)  # fmt: skip
@pytest.mark.parametrize("gradient", ["pass", "clipped"])
def test_compiles_without_graph_break(scheme, gradient):
    x, weight = inputs((8, 64), torch.float32), inputs((8, 64), torch.float32, 1)

    def loss(t):
        return (qlab.fake_quantize(t * 2, scheme, gradient=gradient) * weight).sum()

    leaves = [x.clone().requires_grad_() for _ in range(2)]
    plain = loss(leaves[0])
    plain.backward()
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(leaves[1])
    compiled.backward()
    assert torch.equal(compiled, plain)
    assert torch.equal(leaves[0].grad, leaves[1].grad)


class Activations(torch.nn.Module):
    def forward(self, x):
        return qlab.fake_quantize(x, "int8-row-asym") * 2


class Weights(torch.nn.Module):
    """A QTensor as buffers, put together again in each forward."""

    def __init__(self, stored):
        super().__init__()
        self.scheme, self.shape, self.dtype, self.offset = stored.scheme, stored.shape, stored.dtype, stored.offset
        self.register_buffer("payload", stored.payload)
        self.register_buffer("zero", stored.zero)
        if isinstance(stored.scale, QTensor):
            self.scale = Weights(stored.scale)
        else:
            self.register_buffer("scale", stored.scale)

    def qtensor(self):
        scale = self.scale.qtensor() if isinstance(self.scale, Weights) else self.scale
        return QTensor(self.payload, scale, self.scheme, self.shape, self.dtype, self.zero, self.offset)

    def forward(self, x):
        return x @ torch_blocks.dequantize(self.qtensor()).t()


def through_compile(module, x):
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend="aot_eager")(x)


def through_export(module, x, strict):
    return torch.export.export(module, (x,), strict=strict).module()(x)


GRAPHS = {
    "compile": through_compile,
    "export": partial(through_export, strict=False), "strict export": partial(through_export, strict=True),
}  # fmt: skip


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("name", [None, "int8-channel", "int4-b32/f16", "nf4", "nf4-dq", "mxfp4", "uint3-b7-min/f16"])
def test_modules_compile_and_export(graph, name):
    x = inputs((8, 64), torch.float32)
    if name is None:
        module, result = Activations(), qlab.fake_quantize(x, "int8-row-asym") * 2
    else:
        stored = qlab.quantize(inputs((48, 64), torch.float32, 1), name)
        module, result = Weights(stored), x @ stored.dequantize().t()
    assert torch.equal(graph(module, x), result)


def test_a_compiled_function_notices_another_scheme():
    x = inputs((8, 64), torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(lambda t, scheme: qlab.fake_quantize(t, scheme), fullgraph=True, backend="aot_eager")
    table = TableFormat("mine", [-1.0, 0.0, 0.5, 0.7, 1.0])  # of the name that ODD's has
    for scheme in ("int4", "int8", qlab.Scheme("int4"), qlab.Scheme("int4", qlab.PerBlock(8)), ODD, replace(ODD, format=table)):
        assert torch.equal(compiled(x, scheme), qlab.fake_quantize(x, scheme)), scheme


def test_where_no_value_can_be_looked_at():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        for dtype in (*DTYPES, torch.int8):
            rounded = qlab.fake_quantize(torch.empty(3, 4, dtype=dtype), "int8", gradient="clipped")
            assert (rounded.shape, rounded.dtype) == ((3, 4), torch_blocks.result_dtype(dtype))
    assert qlab.fake_quantize(torch.empty(3, 4, device="meta"), "nvfp4").is_meta
    with torch.inference_mode():
        assert qlab.quantize(torch.ones(4, 4), "nf4").dequantize().tolist() == torch.ones(4, 4).tolist()


def test_the_operator_keeps_torchs_rules():
    x = inputs((8, 64), torch.float32).requires_grad_()
    for name, clipped in (("int8", False), ("nvfp4", True), ("ternary", True)):
        torch.library.opcheck(torch.ops.qlab.fake_quantize, (x, name, clipped))
    shown = str(torch.ops.qlab.fake_quantize.default._schema)
    assert shown.startswith("qlab::fake_quantize(Tensor x, str scheme, bool clipped)")


def test_schemes_without_a_notation_are_kept_once():
    assert torch_tensor._spec(ODD) == torch_tensor._spec(replace(ODD))
    assert torch_tensor._scheme_of(torch_tensor._spec(ODD)) == ODD
    assert torch_tensor._spec(qlab.get_scheme("nvfp4")) == "nvfp4"
    changed = replace(qlab.get_scheme("int8"), blocks=qlab.PerAxis(0))
    assert str(changed) == "int8-channel"
    assert torch_tensor._scheme_of(torch_tensor._spec(changed)) == changed


def test_autocast():
    x, w = inputs((8, 64), torch.float32), inputs((16, 64), torch.float32, 1).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = qlab.fake_quantize(w, "int4-b32")
        y = x @ rounded.t()
    assert rounded.dtype is torch.float32
    assert torch.equal(rounded, qlab.fake_quantize(w.detach(), "int4-b32"))
    y.float().sum().backward()
    assert w.grad.shape == w.shape


def test_torch_func():
    x = inputs((4, 5, 64), torch.float32)
    for name in ("int4-b32", "nf4-b32-mse", "mxfp4", "int4-b4x8", "int4-b8/f16", "int8-row-asym", "int8-row/uint6-b4-min/f16"):
        blocks = replace(qlab.get_scheme(name), blocks=qlab.PerBlock(16)) if name.startswith("nf4") else qlab.get_scheme(name)
        each = torch.stack([qlab.fake_quantize(entry, blocks) for entry in x])
        assert torch.equal(torch.vmap(lambda t, s=blocks: qlab.fake_quantize(t, s))(x), each)
        turned = torch.vmap(lambda t, s=blocks: qlab.fake_quantize(t, s), in_dims=1, out_dims=1)(x.transpose(0, 1))
        assert torch.equal(turned.transpose(0, 1), each)
    along = qlab.Scheme("int4", qlab.PerBlock(2, 0))
    mapped = torch.vmap(lambda t: qlab.fake_quantize(t, along))(x)
    assert torch.equal(mapped, torch.stack([qlab.fake_quantize(entry, along) for entry in x]))

    def loss(t):
        return (qlab.fake_quantize(t, "mxfp4", gradient="clipped") * 2).sum()

    passed = torch.func.grad(loss)(x)
    assert torch.equal(passed, gradient_of(x, "mxfp4", "clipped", 2))
    assert 0 < (passed == 0).float().mean() < 0.1
    assert torch.equal(torch.vmap(torch.func.grad(loss))(x), passed)
    assert torch.equal(torch.func.grad(lambda t: torch.vmap(loss)(t).sum())(x), passed)
    compiled = torch.compile(torch.vmap(lambda t: qlab.fake_quantize(t, "int4-b32")), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), qlab.fake_quantize(x, "int4-b32"))


@pytest.mark.parametrize("name", ["int8", "int8_channel", "nf4", "kmeans4", "nvfp4", "int4-b16-center"])
def test_vmap_refuses_what_mixes_entries(name):
    with pytest.raises(ValueError, match="never mix two entries"):
        torch.vmap(lambda t: qlab.fake_quantize(t, name))(torch.ones(3, 64))


def test_vmap_refuses_blocks_that_an_entry_has_no_room_for():
    for name in ("int4-b4", "int4-row"):
        with pytest.raises(ValueError, match="never mix"):
            torch.vmap(lambda t, s=name: qlab.fake_quantize(t, s))(torch.ones(8))
    with pytest.raises(ValueError, match="never mix"):
        torch.vmap(lambda t: qlab.fake_quantize(t, "int4-b4x4"))(torch.ones(8, 8))


def test_what_the_rules_do_not_clip_is_inside():
    for name in ("nf4", "e4m3-b32", "int8_channel", "fp4-b32-pow2", "int4-b32-late/f16"):
        assert clips_nothing(qlab.get_scheme(name))
        assert fake_quantize_and_inside(inputs((64, 64), torch.float32), name)[1].all()
    x = inputs((4, 64), torch.float32)
    assert torch.equal(gradient_of(x, "uint8-b64", "clipped", 1), (x * 255 >= -x.abs().amax(1, True) / 2).float())


def test_scales_below_their_format_and_boundaries_at_a_value():
    x = inputs((4, 64), torch.float32) * 1e-9
    x[1] = torch.tensor([-1.0, 0.0, 1.0, 0.5]).repeat(16)
    ends = qlab.Scheme(TableFormat("ends", [-1, 0, 1], boundaries=[0.0, 1.0]), qlab.PerBlock(32))
    for scheme in (qlab.get_scheme("int4-b32/f16"), qlab.get_scheme("uint4-b32-min/f16"), ends):
        stored, rounded, _ = expected(scheme, x)
        ours, values = by_portable_operations(x, scheme)
        same_stored(ours, stored)
        assert same_bits(values, rounded)


def test_packing_by_torch():
    for bits in range(1, 17):
        codes = np.random.default_rng(bits).integers(0, 1 << bits, 37, dtype=np.int32)
        for order in ("low_first", "high_first"):
            packed = torch_blocks.pack(torch.from_numpy(codes), bits, order)
            assert same_bits(packed, pack(codes, bits, order=order))
            assert torch.equal(torch_blocks.unpack(packed, 37, bits, order).int(), torch.from_numpy(codes))


def on_portable(x, name):
    return torch_tensor.portable(x, qlab.get_scheme(name), clipped=False)


NAN = torch.tensor([[1.0, float("nan")], [float("inf"), 2]])
REFUSED = [
    (lambda: qlab.quantize(torch.tensor([1j]), "int8"), TypeError, "complex64"),
    (lambda: qlab.fake_quantize(torch.tensor([True]), "int8"), TypeError, "torch.bool"),
    (lambda: qlab.fake_quantize(torch.ones(2), "int99"), ValueError, "unknown scheme 'int99'"),
    (lambda: qlab.fake_quantize(torch.ones(2), "int8", gradient="none"), ValueError, "'pass', 'clipped'"),
    (lambda: qlab.fake_quantize(torch.ones(2), "int8", out=torch.ones(3)), ValueError, "shape (2,)"),
    (lambda: qlab.fake_quantize(torch.ones(2, requires_grad=True), "int8", out=torch.ones(2)), ValueError, "detach"),
    (lambda: qlab.quantize(torch.ones(2), "int8").dequantize(dtype=torch.int8), ValueError, "torch.bfloat16"),
    (lambda: qlab.quantize(torch.ones(2), "int8").dequantize(out=torch.ones(3)), ValueError, "shape (2,)"),
    (lambda: qlab.quantize(torch.ones(2), "int8", importance=torch.ones(2)), ValueError, "importance"),
    (lambda: torch.vmap(lambda t: qlab.quantize(t, "int4-b2").payload)(torch.ones(2, 2)), ValueError, "use fake_quantize"),
    *((act, ValueError, "2 infinities or NaN (the first at index (0, 1))") for act in (
        lambda: qlab.quantize(NAN, "int8"), lambda: qlab.fake_quantize(NAN.bfloat16(), "int4-b2"),
        lambda: on_portable(NAN, "int8"), lambda: on_portable(NAN.bfloat16(), "uint4-b2-min"))),
    *((act, ValueError, "empty") for act in (
        lambda: qlab.quantize(torch.ones(0, 3), "int8"), lambda: on_portable(torch.ones(0), "int8"))),
    (lambda: on_portable(torch.full((4,), 3e38), "int4-b4/f16"), ValueError, "does not fit float16"),
    (lambda: on_portable(torch.full((4,), -3e38), "uint4-b4-min/f16"), ValueError, "minimum"),
]  # fmt: skip


@pytest.mark.parametrize("act, error, message", REFUSED)
def test_refusals(act, error, message):
    with pytest.raises(error) as caught:
        act()
    assert message in str(caught.value)


def test_fitted_codebooks_come_along():
    stored = qlab.quantize(inputs((4, 64), torch.float32), "kmeans4")
    assert isinstance(qlab.get_scheme("kmeans4").format, Fitted)
    assert isinstance(stored.scheme.format, TableFormat)
    assert stored.ledger()["codebook"] == 32 * 16
