"""Packed layers: exact integer products, against int64 arithmetic, torch.ao and ONNX Runtime; rows of packed tables."""

import copy
import io
import itertools
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import qlab
from qlab.model.inputs import (
    Scale,
    StaticRange,
    _spread,
    _spread_one,
    find_scale,
    find_steps,
    quantized_input,
    static_range,
    to_bytes,
    to_steps,
)
from qlab.model.kernels import _padded_matmul, integer_matmul
from qlab.model.layers import QuantizedConv, QuantizedEmbedding, QuantizedLinear
from qlab.model.packed import Packed
from qlab.tensor.quantize import store_codes

SCHEMES = [name for name in qlab.SCHEMES if name not in ("q8_k",)]
INTEGER = ["int8", "int8-asym", "uint8-asym", "int8-row", "int8-row-asym", "int4-asym", "uint7-asym"]


def activations(scheme, static=False):
    return qlab.Activations(scheme, "static" if static else "dynamic")


def int64_outputs(x, weight, acts, static, bias):
    """The layer's sum in integers, by NumPy's own codes: float64 of an exact int64 product."""
    steps, scale, zero = find_steps(x, acts, static)
    codes = weight.codes().astype(np.int8).astype(np.int64) if weight.scheme.bits == 8 else None
    left = steps.numpy().astype(np.int64) - (0 if zero is None else np.asarray(zero, np.int64))
    product = left @ codes.T
    return product * np.asarray(scale, np.float64) * weight.scale.astype(np.float64) + bias.double().numpy()


@given(st.integers(1, 70), st.integers(1, 90), st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_integer_products_are_exact(rows, size, out, seed):
    rng = np.random.default_rng(seed)
    x, w = (rng.integers(-128, 128, (n, size)).astype(np.int8) for n in (rows, out))
    want = x.astype(np.int64) @ w.astype(np.int64).T
    for matmul in (integer_matmul, _padded_matmul):  # for CUDA's kernel, whose sizes are multiples of 8; exact here too
        got = matmul(torch.from_numpy(x), torch.from_numpy(w))
        assert got.dtype == torch.int32
        assert np.array_equal(got.numpy(), want)


def test_large_and_extreme_integer_products_are_exact():
    x, w = np.full((3, 2100), -128, np.int8), np.full((1000, 2100), -128, np.int8)
    w[::3] = 127
    want = x.astype(np.int64) @ w.astype(np.int64).T
    assert np.array_equal(integer_matmul(torch.from_numpy(x), torch.from_numpy(w)).numpy(), want)


@pytest.mark.parametrize("scheme", INTEGER)
@pytest.mark.parametrize("weights", ["int8", "int8-channel"])
def test_linear_is_the_int64_product(scheme, weights):
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.standard_normal((40, 70)).astype(np.float32) + 0.7)
    weight, bias = qlab.quantize(rng.standard_normal((30, 70)).astype(np.float32), weights), torch.randn(30)
    layer = QuantizedLinear(weight, bias, activations(scheme))
    assert layer.integer
    want = int64_outputs(x, weight, activations(scheme), None, bias)
    np.testing.assert_allclose(layer(x).numpy(), want, rtol=1e-6, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("scheme", ["int8", "int8-asym", "uint8-asym", "int4-asym", "int16"])
def test_numbers_and_tensors_find_the_same_scale(scheme):
    """On the CPU the scale of a whole input is found in numbers, elsewhere and under compile in tensors."""
    acts, rng = activations(scheme), np.random.default_rng(3)
    ends = np.float32([0, 1e-45, 3e-45, 1e-38, 1.1754944e-38, 1, 3, 1e30, 3e38])
    pairs = [(a, b) for a in (*-ends, *ends) for b in (*-ends, *ends) if a <= b]
    pairs += [(-2.5000002, 252.5), (-2.5, 252.5), (-3.5, 251.5)]  # of 8 bits, the lowest or the highest is a step beyond the end
    pairs += np.sort(np.float32(rng.standard_normal((2000, 2)) * np.exp2(rng.integers(-120, 100, (2000, 1)))), axis=1).tolist()
    for pair in pairs:
        low, high = torch.tensor(pair, dtype=torch.float32)
        if high - low == torch.inf:  # which `quantize` refuses
            continue
        how = *acts.ends, acts.scheme.zero is None
        (scale, zero, _), (number, code, within) = _spread(low, high, *how), _spread_one(low.item(), high.item(), *how)
        steps = [torch.round(end / scale) + (0 if zero is None else zero) for end in (low, high)]
        assert within == (acts.ends[0] <= steps[0] and steps[1] <= acts.ends[1]), pair
        assert (scale.item(), None if zero is None else zero.item()) == (number, code), pair


@pytest.mark.parametrize("scheme", ["int8", "int8-asym", "uint8-asym", "int8-row", "int8-row-asym", "int4-asym", "int16"])
def test_steps_are_the_codes_of_quantize(scheme):
    rng = np.random.default_rng(2)
    for x in (rng.standard_normal((6, 33)), rng.random((6, 33)) * 1e-42, np.zeros((6, 33)), -rng.random((6, 33))):
        x = x.astype(np.float32)
        found = find_steps(torch.from_numpy(x), activations(scheme), None)
        stored = qlab.quantize(x, scheme)
        assert np.array_equal(quantized_input(torch.from_numpy(x), activations(scheme), None).numpy(), stored.dequantize())
        if np.abs(x).max() > 1e-30:
            assert np.array_equal(np.float32(found.scale).reshape(stored.scale.shape), stored.scale)


@pytest.mark.parametrize("scheme", ["int8", "int8-asym", "uint8-asym", "int4-asym", "uint7-asym"])
def test_bytes_are_the_steps(scheme):
    acts, rng = activations(scheme), np.random.default_rng(5)
    lowest, highest = acts.ends

    def same(x, found):
        codes, zero = to_bytes(x, acts, found)
        shift = 128 if lowest < 0 else 0
        steps = to_steps(x, acts, found.scale, found.zero)
        assert torch.equal(codes.int() - shift, steps.int())
        assert zero - shift == (found.zero or 0)
        assert codes.dtype == torch.uint8
        return codes

    halves = torch.arange(-2 * 300, 2 * 300) / 2  # every tie, and far beyond the ends
    nearly = torch.from_numpy(np.nextafter(halves.numpy()[None], np.float32([[-np.inf], [np.inf]])))
    far = torch.tensor([torch.inf, -torch.inf, 3e38, -3e38, 1e-45, -0.0, 2.0**22 + 1, 2.0**24, 1e9])
    for zero in range(lowest, highest + 1) if acts.scheme.zero else (None,):
        for scale in (1.0, torch.tensor(0.25)):
            for x in (halves, nearly, far):
                found = Scale(scale, zero if zero is None else float(zero))
                same(x * scale, found)
                inside = x[(x > lowest - (zero or 0) - 0.5) & (x < highest - (zero or 0) + 0.5)]
                if isinstance(scale, float):
                    same(inside, found._replace(within=True))  # by NumPy, without clipping
    for power in range(-149, 120, 3):  # dynamic: none is beyond the ends
        x = torch.from_numpy(rng.standard_normal((4, 6, 5, 3)).astype(np.float32)) * 2.0**power + rng.integers(-1, 2) * 2.0**power
        codes = same(x, find_scale(x, acts, None))
        last = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(to_bytes(last, acts, find_scale(last, acts, None))[0], codes)
        assert torch.equal(to_bytes(x[::2, 1:], acts, find_scale(x, acts, None))[0], codes[::2, 1:])
    large = torch.from_numpy(rng.standard_normal(2**18 + 1).astype(np.float32))  # by torch, on its threads
    codes = same(large, find_scale(large, acts, None))
    assert torch.equal(same(large[:-1], find_scale(large, acts, None)), codes[:-1])


@pytest.mark.parametrize(
    "ends, scheme, scale, zero",
    [
        ((-1.0, 3.0), "int8-asym", 4 / 255, -64), ((-1.0, 3.0), "uint8-asym", 4 / 255, 64),
        ((2.0, 3.0), "int8-asym", 3 / 255, -128), ((-3.0, -2.0), "int8-asym", 3 / 255, 127),
        ((-3.0, 2.0), "int8", 3 / 127, 0), ((0.0, 0.0), "int8-asym", 1, -128),
    ],
)  # fmt: skip
def test_static_ranges(ends, scheme, scale, zero):
    found = static_range(*ends, activations(scheme, static=True))
    assert float(found.scale) == pytest.approx(scale, rel=1e-6)
    assert float(found.zero) == zero


def test_the_scale_of_an_input_is_that_of_its_extremes():
    for size in (5, 2**18, 2**18 + 7):  # by NumPy, and by torch
        x = torch.randn(size)
        x[size // 2], x[-1] = -7.0, 9.0
        assert find_scale(x, activations("int8"), None).scale == float(np.float32(9) / np.float32(127))
        x[1] = torch.nan
        assert np.isnan(find_scale(x, activations("int8"), None).scale)
        assert np.isnan(find_scale(x, activations("int8-asym"), None).scale)


@pytest.mark.parametrize("weights", ["int8-channel", "int4-channel", "int3"])
@pytest.mark.parametrize("inputs, static", [("int8-asym", True), ("int8-asym", False), ("int8-row", False), ("uint8-asym", True)])
def test_fake_and_integer_agree(weights, inputs, static):
    torch.manual_seed(3)
    x, weight = torch.randn(50, 64), qlab.quantize(torch.randn(20, 64), weights)
    scale = StaticRange(0.02, 5.0) if static else None
    both = [QuantizedLinear(weight, torch.randn(20), activations(inputs, static), scale, fake=f) for f in (False, True)]
    both[1].bias = both[0].bias
    assert [layer.how for layer in both] == ["integer product", "fake"]
    one, two = (layer(x) for layer in both)
    assert (one - two).abs().max() < 3e-6 * one.abs().max()  # the same codes, so that no rounding can flip


@pytest.mark.parametrize("name", SCHEMES)
def test_dequantizing_and_fake_agree_for_every_scheme(name):
    torch.manual_seed(4)
    x, weight = torch.randn(3, 256), qlab.quantize(torch.randn(8, 256), name)
    on_the_fly, fake = QuantizedLinear(weight, None), QuantizedLinear(weight, None, fake=True)
    assert torch.equal(on_the_fly.weights(), torch.as_tensor(weight.dequantize()))
    assert torch.equal(on_the_fly(x), fake(x))


@pytest.mark.parametrize("name", SCHEMES)
def test_packed_holds_what_the_ledger_says(name):
    stored = qlab.quantize(np.random.default_rng(5).standard_normal((8, 512)).astype(np.float32), name)
    packed = Packed(stored)
    codebook = stored.ledger().get("codebook", 0) // 8  # in the text
    assert packed.nbytes + codebook == stored.nbytes
    again = packed.qtensor()
    assert torch.equal(again.payload, torch.as_tensor(stored.payload))
    assert again.ledger() == stored.ledger()


CONVS = [
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": (1, 3), "padding": (2, 1), "dilation": (1, 2)},
    {"kernel_size": 3, "groups": 2, "padding": 2, "dilation": 2},
    {"kernel_size": 3, "groups": 4, "padding": "same"},
    {"kernel_size": 2, "padding": "same", "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "stride": (2, 1)},
]


def fits(dimensions, options):
    return dimensions == 2 or not any(isinstance(value, tuple) for value in options.values())


@pytest.mark.parametrize("dimensions, options", [each for each in itertools.product((1, 2), CONVS) if fits(*each)])
@pytest.mark.parametrize("inputs, static", [("int8-asym", True), ("int8-asym", False), ("int8", False), ("uint8-asym", False)])
def test_convolutions_are_exact(dimensions, options, inputs, static):
    torch.manual_seed(6)
    layer = (nn.Conv1d, nn.Conv2d)[dimensions - 1](4, 8, **options)
    x = torch.randn(3, 4, *(11, 9)[:dimensions]) + 0.3
    weight = qlab.quantize(layer.weight.detach().flatten(1), "int8-channel")
    static_range = StaticRange(0.03, -20.0) if static else None
    quantized = QuantizedConv(layer, weight, activations=activations(inputs, static), static=static_range)
    assert quantized.integer
    steps, scale, zero = find_steps(x, activations(inputs, static), static_range)
    reference = copy.deepcopy(layer).double()  # in integers of float64, which are exact here
    reference.weight.data = weight.codes().view(torch.int8).double().reshape(layer.weight.shape)
    reference.bias.data.zero_()
    shape = (-1, *[1] * dimensions)
    want = reference(steps.double() - (0 if zero is None else zero)) * scale
    want = want * torch.as_tensor(weight.scale).double().reshape(shape) + layer.bias.detach().double().reshape(shape)
    got = quantized(x)
    assert got.shape == layer(x).shape
    assert (got - want).abs().max() < 1e-6 * want.abs().max()
    torch.testing.assert_close(quantized(x[0]), got[0], rtol=0, atol=0 if static else 0.1)
    fake = QuantizedConv(layer, weight, activations=activations(inputs, static), static=static_range, fake=True)
    assert (fake(x) - want).abs().max() < 3e-6 * want.abs().max()


def test_what_is_not_integer_says_so():
    weight = qlab.quantize(torch.randn(8, 64), "int8-channel")
    for scheme in ("int16", "e4m3-row", "int8-b32", "int8-mse"):
        layer = QuantizedLinear(weight, None, activations(scheme))
        assert layer.how == "dequantized on the fly"
        fake = QuantizedLinear(weight, None, activations(scheme), fake=True)
        assert torch.equal(layer(torch.ones(2, 64)), fake(torch.ones(2, 64)))
    assert not QuantizedLinear(qlab.quantize(torch.randn(8, 64), "int8-asym"), None, activations("int8")).integer
    conv = nn.Conv2d(1, 8, 8)
    assert not QuantizedConv(conv, weight, activations=activations("int8-row")).integer


def test_nan_is_not_lost():
    layer = QuantizedLinear(qlab.quantize(torch.randn(8, 64), "int8-channel"), None, activations("int8-asym"))
    x = torch.ones(2, 64)
    x[1, 3] = torch.nan
    assert layer(x).isnan().all()


# --- tables ----------------------------------------------------------------------------------------------------------
MORE = ["int4-asym", "int4-channel-asym", "int4-b32-asym", "int4-b48", "int3-b32", qlab.Scheme("int4", qlab.PerBlock(5, axis=0))]


@pytest.mark.parametrize("scheme", [*SCHEMES, *MORE], ids=str)
def test_embeddings_bring_back_the_rows_that_are_asked_for(scheme):
    stored = qlab.quantize(np.random.default_rng(7).standard_normal((50, 256)).astype(np.float32), scheme)
    table, index = QuantizedEmbedding(stored, 0), torch.tensor([[3, 3, 49], [0, 7, 1]])
    assert torch.equal(table(index), functional.embedding(index, torch.as_tensor(stored.dequantize())))
    with pytest.raises(IndexError):
        table(torch.tensor([50]))


def test_a_large_table_is_not_brought_back(monkeypatch):
    table = QuantizedEmbedding(qlab.quantize(np.ones((1000, 64), np.float32), "int4-b32/f16"))
    seen = []
    monkeypatch.setattr(Packed, "_values", lambda self, payload, *args: seen.append(payload.numel()) or torch.zeros(2, 64))
    table(torch.tensor([1, 2]))
    assert seen == [2 * 32]
    assert table.how == "rows brought back"


# --- other libraries -------------------------------------------------------------------------------------------------
def ao(model, x=None):
    """torch.ao.quantization's own: dynamic without data, else static; weights of one scale."""
    from torch.ao import quantization as old

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if x is None:
            return old.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        wrapped = nn.Sequential(old.QuantStub(), copy.deepcopy(model), old.DeQuantStub()).eval()
        wrapped.qconfig = old.get_default_qconfig("x86")
        ready = old.prepare(wrapped)
        ready(x)
        return old.convert(ready)


def weight_of(layer):
    """A layer's weight of torch.ao as a QTensor: its codes and scales, as they are."""
    held = layer.weight()
    codes = held.int_repr().flatten(1).numpy()
    if held.qscheme() == torch.per_tensor_affine:
        return store_codes(codes, np.float32(held.q_scale()), None, qlab.get_scheme("int8"))
    return store_codes(codes, held.q_per_channel_scales().float().numpy(), None, qlab.get_scheme("int8-channel"))


@pytest.mark.parametrize("seed", range(12))
def test_dynamic_int8_is_torch_ao(seed):
    """Given its weights' codes (it spreads them over 2 absmax / 255) and its 7 bits of inputs (reduce_range)."""
    torch.manual_seed(seed)
    model, x = nn.Sequential(nn.Linear(128, 64)).eval(), torch.randn(200, 128) + 0.2
    theirs = ao(model)[0]
    ours = QuantizedLinear(weight_of(theirs), theirs.bias().detach(), activations("uint7-asym"))
    input_step = float(find_steps(x, activations("uint7-asym"), None).scale)
    difference = (ours(x) - theirs(x)).abs() / (input_step * float(ours.weight.scale))  # in steps of the product's integers
    assert ours.integer
    other = difference.amax(1) > 0.05  # what is left elsewhere is the rounding of floats
    assert other.sum() <= 1  # they multiply by 1 / scale: at a tie an input's code may be the next one
    assert difference.max() < 128


@pytest.mark.parametrize("layer", [nn.Linear(32, 24), nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.Conv2d(4, 8, 3, groups=2)])
def test_static_int8_is_torch_ao(layer):
    torch.manual_seed(9)
    x = torch.randn(64, 32) if isinstance(layer, nn.Linear) else torch.randn(4, layer.in_channels, 9, 9)
    converted = ao(layer.eval(), x)
    stub, theirs = converted[0], converted[1]
    acts = activations("uint7-asym", static=True)  # x86's default observer keeps to 7 bits; quint8 codes 0..127
    static = StaticRange(float(stub.scale), float(stub.zero_point))
    x = x.clamp(max=(127 - static.zero) * static.scale)  # their own clamp is at 255
    weight, bias = weight_of(theirs), theirs.bias().detach()
    if isinstance(layer, nn.Linear):
        ours = QuantizedLinear(weight, bias, acts, static)
    else:
        ours = QuantizedConv(layer, weight, activations=acts, static=static)
    assert ours.integer
    got = torch.clamp(torch.round(ours(x) / theirs.scale) + theirs.zero_point, 0, 255)
    want = theirs(stub(x)).int_repr().float()
    assert (x / static.scale + static.zero).round().amax() <= 127
    assert (got - want).abs().max() <= 1
    assert (got != want).float().mean() < 0.01


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_static_int8_is_onnxruntime(kind):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    torch.manual_seed(10)
    layer = nn.Linear(40, 24) if kind == "linear" else nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2)
    x = torch.randn(16, 40) if kind == "linear" else torch.randn(2, 4, 9, 9)
    weight = qlab.quantize(layer.weight.detach().flatten(1).numpy(), "int8-channel")
    static = StaticRange(0.025, 11.0)
    how = {"activations": activations("int8-asym", static=True), "static": static}
    bias = layer.bias.detach()
    ours = QuantizedLinear(weight, bias, **how) if kind == "linear" else QuantizedConv(layer, weight, **how)
    codes = weight.codes().view(np.int8).reshape(layer.weight.shape)
    out_scale, out_zero = np.float32(0.03), np.int8(-7)
    constants = {
        "xs": static.scale.numpy(), "xz": np.int8(11), "w": codes, "ws": weight.scale,
        "wz": np.zeros(len(codes), np.int8), "b": bias.numpy(),
        "os": out_scale, "oz": out_zero,
    }  # fmt: skip
    node = helper.make_node
    product = (
        node("Gemm", ["xd", "wd", "b"], ["y"], transB=1)
        if kind == "linear"
        else node("Conv", ["xd", "wd", "b"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2], group=2)
    )
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]), node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0), product,
        node("QuantizeLinear", ["y", "os", "oz"], ["yq"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "qdq", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("yq", TensorProto.INT8, ours(x).shape)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    want = session.run(None, {"x": x.numpy()})[0].astype(int)
    got = np.clip(np.rint(ours(x).numpy() / out_scale) + out_zero, -128, 127).astype(int)
    assert ours.integer
    assert np.abs(got - want).max() <= 1
    assert (got != want).mean() < 0.005
    assert np.ptp(want) > 60


# --- as modules ------------------------------------------------------------------------------------------------------
def test_copies_pickles_and_bytes():
    layer = QuantizedLinear(qlab.quantize(torch.randn(8, 64), "int4-channel"), torch.randn(8), activations("int8-asym"))
    x = torch.randn(5, 64)
    want = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), want)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), want)
    saved = io.BytesIO()
    torch.save(layer.state_dict(), saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    assert all(isinstance(t, torch.Tensor) for t in state.values())
    other = QuantizedLinear(qlab.quantize(torch.randn(8, 64), "int4-channel"), torch.randn(8), activations("int8-asym"))
    assert not torch.equal(other(x), want)
    other.load_state_dict(state)
    assert torch.equal(other(x), want)
    assert torch.equal(other.sums, layer.sums)
    wrong = QuantizedLinear(qlab.quantize(torch.randn(8, 64), "int8-channel"), torch.randn(8), activations("int8-asym"))
    with pytest.raises(ValueError, match=r"holds int4-channel.*same recipe"):
        wrong.load_state_dict(state)


# --- inputs of every sort --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scheme", [None, *INTEGER, "int16", "e4m3-row", "mxfp4"])
def test_no_rows_give_no_rows(scheme):
    how = {"activations": None if scheme is None else activations(scheme)}
    layer = QuantizedLinear(qlab.quantize(torch.randn(8, 64), "int8-channel"), torch.randn(8), **how)
    assert layer(torch.zeros(0, 64)).shape == (0, 8)
    assert layer(torch.zeros(2, 0, 64)).shape == (2, 0, 8)
    conv = nn.Conv2d(4, 8, 3)
    layer = QuantizedConv(conv, qlab.quantize(conv.weight.detach().flatten(1), "int8-channel"), **how)
    assert layer(torch.zeros(0, 4, 8, 8)).shape == (0, 8, 6, 6)


@pytest.mark.parametrize("scheme", ["int8-channel", "nf4_dq", "q4_0", "int8"])
def test_an_empty_index_gives_no_rows(scheme):
    table = QuantizedEmbedding(qlab.quantize(torch.randn(50, 64), scheme))
    assert table(torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, 64)


@pytest.mark.parametrize("scheme", [None, "int8-asym", "int8-row", "int16"])
def test_inputs_that_do_not_fit_are_refused(scheme):
    how = {"activations": None if scheme is None else activations(scheme)}
    layer = QuantizedLinear(qlab.quantize(torch.randn(8, 64), "int8-channel"), None, **how)
    for shape in ((3, 63), ()):
        with pytest.raises(ValueError, match=r"has the shape .*; this layer takes \(\*lead, 64\)"):
            layer(torch.ones(shape))
    for dtype in (torch.int64, torch.bool, torch.complex64):  # outputs would be cut to integers
        with pytest.raises(TypeError, match=f"tensor of {dtype}; give floats"):
            layer(torch.ones(3, 64, dtype=dtype))
    conv = nn.Conv2d(4, 8, (3, 5), dilation=2, padding=(1, 2))
    layer = QuantizedConv(conv, qlab.quantize(conv.weight.detach().flatten(1), "int8-channel"), **how)
    assert layer(torch.ones(4, 3, 5)).shape == conv(torch.ones(4, 3, 5)).shape
    for shape in ((2, 3, 9, 9), (9,), (1, 2, 4, 9, 9), (2, 4, 2, 9), (2, 4, 9, 4)):
        with pytest.raises(ValueError, match=r"this layer takes \(\[n,\] 4, 3 or more, 5 or more\)"):
            layer(torch.ones(shape))


def test_layers_are_called_as_those_that_they_replace():
    linear = QuantizedLinear(qlab.quantize(torch.randn(8, 64), "int8-channel"), None)
    table = QuantizedEmbedding(qlab.quantize(torch.randn(50, 64), "int8-channel"))
    assert linear(input=table(input=torch.tensor([3]))).shape == (1, 8)


def test_torch_jit_trace_is_refused():
    layer = QuantizedLinear(qlab.quantize(torch.randn(8, 64), "int8-channel"), None, activations("int8-asym"))
    with pytest.raises(TypeError, match=r"use torch\.export\.export"):
        torch.jit.trace(layer, (torch.ones(2, 64),))


@pytest.mark.parametrize("fake", [False, True])
def test_gradients_of_torch_func_go_through_scales_that_are_found_anew(fake):
    layer = QuantizedLinear(qlab.quantize(torch.randn(4, 8), "int8-channel"), None, activations("int8-asym"), fake=fake)
    x = torch.randn(3, 8)
    gradient = torch.func.grad(lambda x: layer(x).sum() + x.square().sum())(x)
    assert torch.isfinite(gradient).all()


@pytest.mark.filterwarnings("error")
def test_what_numpy_is_told_to_do_about_errors_changes_nothing():
    """Subnormal steps, infinite outputs."""
    x = torch.tensor([[1e30, 1e-20, 0.0], [0.0, -1e30, 2e-42]])
    for weight in (1.0, 2e37):
        layer = QuantizedLinear(qlab.quantize(torch.full((2, 3), weight), "int8-channel"), None, activations("int8-asym"))
        want = layer(x)
        assert torch.isfinite(want).all() == (weight == 1)
        with np.errstate(all="raise"):
            assert torch.equal(layer(x), want)


@pytest.mark.filterwarnings("error")
def test_ranges_beyond_float32_are_infinite_without_a_word():
    x = torch.tensor([[-3e38, 3e38, 1.0]])
    assert find_scale(x, activations("int8-asym"), None).scale == np.inf
    assert find_scale(x, activations("int8"), None).scale == float(np.float32(3e38) / np.float32(127))
    assert np.isnan(find_scale(x * torch.nan, activations("int8-asym"), None).scale)
