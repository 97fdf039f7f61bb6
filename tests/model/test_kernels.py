"""Exact products of 8-bit integers: the CPU's kernels against int64 arithmetic, and against what runs without them."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import qlab
from qlab.model import kernels
from qlab.model.inputs import find_steps
from qlab.model.kernels import ConvKernel, LinearKernel
from qlab.model.layers import QuantizedConv, QuantizedLinear, _follow_codes

needs_kernels = pytest.mark.skipif(not kernels._are_exact(), reason="no exact kernels for this processor")


def codes_of(rng, *shape):
    return torch.from_numpy(rng.integers(0, 256, shape).astype(np.uint8))


def weights_of(rng, *shape):
    return torch.from_numpy(rng.integers(-128, 128, shape).astype(np.int8))


@needs_kernels
@given(st.integers(0, 70), st.integers(1, 90), st.integers(1, 40), st.integers(0, 255), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_linear_kernel_rounds_the_exact_sum_once(rows, size, out, zero, seed):
    rng = np.random.default_rng(seed)
    x, w = codes_of(rng, rows, size), weights_of(rng, out, size)
    scale, bias = (torch.from_numpy(rng.random(out).astype(np.float32)) for _ in range(2))
    exact = ((x.long() - zero) @ w.long().t()).float()
    assert torch.equal(LinearKernel(w, scale)(x, zero, 0.3, None), exact * (scale * 0.3))
    assert torch.equal(LinearKernel(w, scale)(x, zero, torch.tensor(0.3), bias), exact * (scale * 0.3) + bias)
    assert torch.equal(LinearKernel(w, scale[0])(x, zero, 0.3, bias), exact * (scale[0] * 0.3) + bias)


@needs_kernels
@settings(max_examples=80, deadline=None)
@given(st.data())
def test_conv_kernel_rounds_the_exact_sum_once(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    dims, groups = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([1, 1, 2, 3, 32]))
    most = 40 if groups < 32 else 2
    n, into, out = data.draw(st.integers(1, 3)), *(groups * data.draw(st.integers(1, most)) for _ in range(2))
    k, s, d = (tuple(data.draw(st.integers(1, largest)) for _ in range(dims)) for largest in (5, 3, 3))
    reach = [step * (width - 1) for step, width in zip(d, k, strict=True)]
    p = tuple(data.draw(st.integers(0, each)) for each in reach)
    size = tuple(data.draw(st.integers(1, 20)) + each for each in reach)
    zero = data.draw(st.integers(0, 255))
    x, w = codes_of(rng, n, into, *size), weights_of(rng, out, into // groups, *k)
    scale, bias = (torch.from_numpy(rng.random(out).astype(np.float32)) for _ in range(2))
    conv = functional.conv1d if dims == 1 else functional.conv2d
    exact = conv(x.double() - zero, w.double(), None, s, p, d, groups).float()
    column = (-1,) + (1,) * dims
    found = ConvKernel(w, scale, s, p, d, groups)(x, zero, 0.3, bias)
    assert torch.equal(found, exact * (scale * 0.3).view(column) + bias.view(column))


# batch, channels in and out of a group, groups, kernel, stride, padding, dilation, size of the image
ONEDNN_IS_WRONG = [
    (2, 3, 6, 2, (1, 3), (1, 3), (0, 0), (1, 3), (7, 7)), (1, 28, 20, 3, (2, 3), (2, 3), (0, 0), (1, 1), (7, 7)),
    (1, 1, 1, 1, (1, 3), (1, 2), (0, 0), (3, 3), (7, 7)), (1, 80, 80, 2, (1, 2), (3, 1), (0, 0), (1, 1), (8, 16)),
    (1, 16, 16, 1, (2, 1), (1, 1), (1, 0), (1, 1), (7, 16)), (2, 16, 32, 1, (3, 2), (3, 2), (2, 0), (1, 1), (24, 3)),
    (3, 1, 46, 8, (4, 2), (2, 2), (2, 0), (2, 1), (22, 4)), (2, 62, 35, 1, (2, 3), (3, 1), (1, 2), (3, 2), (2, 19)),
]  # fmt: skip


@pytest.mark.parametrize("case", ONEDNN_IS_WRONG)
def test_convolutions_that_onednn_gets_wrong(case):
    """Garbage, an error, or the end of the process, of oneDNN 3.12 with AMX: layers give what integers give."""
    n, into, out, groups, k, s, p, d, size = case
    conv = nn.Conv2d(into * groups, out * groups, k, s, p, d, groups)
    weight = qlab.quantize(conv.weight.detach().flatten(1), "int8-channel")
    layer = QuantizedConv(conv, weight, activations=qlab.Activations("int8-asym"))
    x = torch.from_numpy(np.random.default_rng(0).uniform(-0.3, 1, (n, into * groups, *size)).astype(np.float32))
    found = find_steps(x, layer.activations, None)
    codes = weight.codes().view(torch.int8).reshape(conv.weight.shape)
    sums = functional.conv2d(found.steps.double() - found.zero, codes.double(), None, s, p, d, groups).float()
    scale = torch.as_tensor(weight.scale).reshape(-1) * found.scale
    want = sums * scale.view(-1, 1, 1) + conv.bias.detach().view(-1, 1, 1)
    for _ in range(3):
        assert torch.equal(layer(x), want)


@pytest.mark.parametrize("padding", [(2, 0), (3, 0), (0, 3), (3, 3), (3, 1)])
@pytest.mark.parametrize("kernel, channels", [((2, 1), 1), ((1, 2), 1), (2, 1), ((3, 2), 1), (1, 3), ((3, 2), 3)])
@pytest.mark.parametrize("out", [2, 16])
def test_windows_that_lie_in_the_padding_alone(padding, kernel, channels, out):
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, out, kernel, padding=padding)
    weight = qlab.quantize(conv.weight.detach().flatten(1), "int8-channel")
    layer, x = QuantizedConv(conv, weight, activations=qlab.Activations("int8-asym")), torch.randn(1, channels, 7, 7)
    want = conv(x)
    assert all((layer(x) - want).abs().max() < 0.03 * want.abs().max() for _ in range(5))  # garbage is not always there


def layers():
    rng = np.random.default_rng(0)
    for name in ("int8", "int8-asym", "uint8-asym"):
        weight = qlab.quantize(rng.standard_normal((30, 70)).astype(np.float32), "int8-channel")
        yield QuantizedLinear(weight, torch.randn(30), qlab.Activations(name)), torch.randn(9, 70) + 0.5
        for conv in (
            nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.Conv2d(4, 6, (3, 2), padding="same"),
            nn.Conv1d(4, 6, 3, dilation=2, padding=1), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        ):  # fmt: skip
            weight = qlab.quantize(conv.weight.detach().flatten(1), "int8-channel")
            x = torch.randn(2, 4, *(9,) * (conv.weight.ndim - 2)) + 0.5
            yield QuantizedConv(conv, weight, activations=qlab.Activations(name)), x


@needs_kernels
@pytest.mark.parametrize("case", range(15))
def test_layers_give_the_same_bits_with_and_without_kernels(case, monkeypatch):
    layer, x = list(layers())[case]
    found = layer(x)
    assert layer.kernel is not None
    monkeypatch.setattr("qlab.model.layers.has_kernels", lambda device: False)
    assert torch.equal(layer(x), found)
    assert layer(x).is_contiguous()


@needs_kernels
@pytest.mark.parametrize("images", [0, 1, 5])
def test_convolutions_of_many_images_keep_the_layout_of_the_input(images, monkeypatch):
    conv = nn.Conv2d(3, 4, 3)
    weight = qlab.quantize(conv.weight.detach().flatten(1), "int8-channel")
    layer, x = QuantizedConv(conv, weight, activations=qlab.Activations("int8")), torch.randn(images, 3, 8, 6)
    for limit in (1 << 18, 2 * 4 * 48):  # at once; two by two
        monkeypatch.setattr("qlab.model.layers._IMAGES", limit)
        assert layer(x).shape == (images, 4, 6, 4)
        if not images:
            continue
        want = functional.conv2d(x, conv.weight, conv.bias)
        assert (layer(x) - want).abs().max() < 0.05 * want.abs().max()
        assert layer(x).is_contiguous()
        last = x.contiguous(memory_format=torch.channels_last)
        assert layer(last).is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(layer(last), layer(x))
        strided = torch.randn(images, 3, 8, 12)[..., ::2]
        assert layer(strided).is_contiguous()
        assert torch.equal(layer(strided), layer(strided.contiguous()))


def test_a_kernel_follows_scales_that_a_scheme_stores():
    layer = QuantizedLinear(qlab.quantize(torch.randn(8, 64), "nf4_dq"), None)
    layer.kernel = kernel = object()
    _follow_codes(layer)
    assert layer.kernel is kernel
    layer.weight.scale.payload[0] ^= 1
    _follow_codes(layer)
    assert layer.kernel is None


@needs_kernels
def test_a_kernel_is_in_no_copy_and_follows_the_weights():
    first, second = (
        QuantizedLinear(qlab.quantize(torch.randn(8, 16), "int8-channel"), None, qlab.Activations("int8")) for _ in range(2)
    )
    x = torch.randn(4, 16)
    before, wanted = first(x), second(x)
    assert not torch.equal(before, wanted)
    for twin in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert twin.kernel is None
        assert torch.equal(twin(x), before)
    file = io.BytesIO()
    torch.save(second.state_dict(), file)
    file.seek(0)
    first.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(first(x), wanted)


def test_a_processor_whose_kernels_overflow_is_found_out(monkeypatch):
    monkeypatch.setattr(LinearKernel, "__call__", lambda self, codes, zero, scale, bias: torch.full((1, 1), 32767.0 * 32))
    assert not kernels._are_exact.__wrapped__()
    monkeypatch.setattr(LinearKernel, "__init__", lambda self, weight, scale: torch.ops.onednn.no_such_operator)
    assert not kernels._are_exact.__wrapped__()


@needs_kernels
@pytest.mark.parametrize("inputs", ["int8-asym", "int8-row-asym"])  # with a kernel, and with sums of codes alone
def test_what_is_made_of_the_codes_follows_them(inputs):
    def layer():
        return QuantizedLinear(qlab.quantize(torch.randn(8, 16), "int8-channel"), torch.randn(8), qlab.Activations(inputs))

    def loaded_in_part(one, other):
        one.weight.load_state_dict(other.weight.state_dict())
        one.bias.copy_(other.bias)

    def written_to(one, other):
        for key, held in other.state_dict().items():
            one.get_buffer(key).copy_(held)

    def replaced(one, other):
        one.weight, one.bias = other.weight, other.bias

    x = torch.randn(4, 16) + 0.5
    for change in (
        loaded_in_part, replaced, written_to, lambda one, other: one.load_state_dict(other.state_dict(), assign=True)
    ):  # fmt: skip
        one, other = layer(), layer()
        one(x)
        wanted = other(x)
        change(one, other)
        assert torch.equal(one(x), wanted)
    one, other = layer(), layer()
    before, wanted = one(x), other(x)
    assert torch.equal(torch.func.functional_call(one, other.state_dict(), (x,)), wanted)
    assert torch.equal(one(x), before)
