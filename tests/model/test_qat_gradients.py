"""Gradients of rounding against PyTorch's own, against plain functions, and by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab

torch = pytest.importorskip("torch")

from qlab.model.qat_rounding import LearnedInput  # noqa: E402
from qlab.model.ste import round_to_format, round_to_steps  # noqa: E402
from qlab.tensor.codebooks import binary  # noqa: E402

ZERO = torch.tensor(0.0)


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8), signed=st.booleans(), offset=st.floats(0, 1), step=st.floats(0.01, 2), seed=st.integers(0, 10**6)
)
def test_lsq_is_torchs_learnable_fake_quantization(bits, signed, offset, step, seed):
    fmt = qlab.get_format(f"{'int' if signed else 'uint'}{bits}")
    zero = torch.tensor(float(round(fmt.min + offset * (fmt.max - fmt.min))))
    generator = torch.Generator().manual_seed(seed)
    x, upstream = torch.randn(2, 40, generator=generator), torch.randn(40, generator=generator)
    scaled = x[0].double() / step
    near_a_tie = (scaled - scaled.floor() - 0.5).abs() < 1e-5  # PyTorch multiplies by 1 / step: there it may round otherwise
    start = torch.where(near_a_tie, 0.0, x[0])
    factor = 1 / math.sqrt(start.numel() * max(fmt.max, 1))
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    our_step, their_step = torch.tensor([step], requires_grad=True), torch.tensor([step], requires_grad=True)
    values = round_to_steps(ours, our_step, zero, fmt, learns="step", factor=factor)
    # counted from 0: of a negative zero point PyTorch 2.13 makes one that is larger by one in its backward pass
    args = (their_step, (zero - fmt.min).reshape(1), 0, int(fmt.max - fmt.min), factor)
    expected = torch._fake_quantize_learnable_per_tensor_affine(theirs, *args)
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-6)
    (values * upstream).sum().backward()
    (expected * upstream).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)
    torch.testing.assert_close(our_step.grad, their_step.grad, rtol=1e-4, atol=1e-4)


def test_lsq_by_channel_is_torchs():
    fmt = qlab.get_format("int3")
    generator = torch.Generator().manual_seed(0)
    x, upstream = torch.randn(2, 5, 33, generator=generator)
    start = torch.rand(5, generator=generator) + 0.1
    ours, theirs, our_step, their_step = (t.clone().requires_grad_() for t in (x, x, start, start))
    values = round_to_steps(ours, our_step[:, None], ZERO, fmt, learns="step", factor=0.25)
    expected = torch._fake_quantize_learnable_per_channel_affine(theirs, their_step, torch.zeros(5), 0, -4, 3, 0.25)
    (values * upstream).sum().backward()
    (expected * upstream).sum().backward()
    torch.testing.assert_close(values, expected)
    assert torch.equal(ours.grad, theirs.grad)
    torch.testing.assert_close(our_step.grad, their_step.grad, rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8), kind=st.sampled_from(["relu", "symmetric"]), end=st.floats(0.2, 3), seed=st.integers(0, 10**6)
)
def test_pact_has_the_gradient_of_the_clip_alone(bits, kind, end, seed):
    fmt = qlab.get_format(f"uint{bits}" if kind == "relu" else f"int{bits}")
    generator = torch.Generator().manual_seed(seed)
    x, upstream = torch.randn(2, 200, generator=generator)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    our_end, their_end = torch.tensor(end, requires_grad=True), torch.tensor(end, requires_grad=True)
    (round_to_steps(ours, our_end / fmt.max, ZERO, fmt, learns="clip") * upstream).sum().backward()
    lowest = their_end * (fmt.min / fmt.max)
    clipped = torch.where(theirs < lowest, lowest, torch.where(theirs < their_end, theirs, their_end))
    (clipped * upstream).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)
    torch.testing.assert_close(our_end.grad, their_end.grad, rtol=1e-4, atol=1e-4)


def test_straight_through_by_hand():
    x = torch.tensor([-3.0, -1.2, 0.2, 0.74, 0.9], requires_grad=True)  # int2: codes -2 to 1, steps of 0.5
    values = round_to_steps(x, torch.tensor(0.5), ZERO, qlab.get_format("int2"))
    (values * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).sum().backward()
    assert values.tolist() == [-1.0, -1.0, 0.0, 0.5, 0.5]
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0]  # -1.2 and 0.74 are within half a step of the ends


def test_the_step_by_hand():
    x, step = torch.tensor([0.2, -9.0, 9.0]), torch.tensor([0.5], requires_grad=True)
    values = round_to_steps(x, step, ZERO, qlab.get_format("int2"), learns="step", factor=0.5)
    values.sum().backward()
    assert step.grad.item() == pytest.approx(0.5 * ((0 - 0.4) - 2 + 1))


def test_half_precision_goes_in_and_comes_out():
    x = torch.tensor([0.3, 1.0], dtype=torch.bfloat16, requires_grad=True)
    step = torch.tensor([0.25], requires_grad=True)
    values = round_to_steps(x, step, ZERO, qlab.get_format("int4"), learns="step")
    values.sum().backward()
    assert values.dtype is x.grad.dtype is torch.bfloat16
    assert step.grad.dtype is torch.float32


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float4_e2m1fn"])
def test_formats_are_clipped_at_their_largest_value(name):
    fmt, scale = qlab.get_format(name), torch.tensor(0.5)
    x = torch.tensor([-0.6 * fmt.max, -0.4 * fmt.max, 0.1, 0.4 * fmt.max, 0.6 * fmt.max], requires_grad=True)
    values = round_to_format(x, scale, fmt)
    values.sum().backward()
    assert torch.equal(values, qlab.cast(x.detach() / scale, fmt, overflow="saturate") * scale)
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_one_bit_reaches_to_twice_its_value():
    x = torch.tensor([-1.01, -0.99, -0.1, 0.3, 0.99, 1.01], requires_grad=True)
    values = round_to_format(x, torch.tensor(0.5), binary())
    values.sum().backward()
    assert values.tolist() == [-0.5, -0.5, -0.5, 0.5, 0.5, 0.5]
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("scheme", ["int3", "uint4-asym", "int4-asym"])
def test_steps_of_inputs_learn_at_the_papers_pace(scheme):
    """The factor 1 / sqrt(n Q), n being the features of one input, however many there are."""
    activations = qlab.Activations(scheme, "static")
    layer = LearnedInput(activations, "step", "layer").train()
    x, upstream = torch.randn(7, 5, 6), torch.randn(7, 5, 6)
    (layer(x) * upstream).sum().backward()
    lowest, highest = activations.ends
    zero = int(layer.zero) - lowest  # counted from 0, see above
    step = layer.start.clone().requires_grad_()
    factor = 1 / math.sqrt(5 * 6 * (highest - int(layer.zero)))
    values = torch._fake_quantize_learnable_per_tensor_affine(
        x, step, torch.tensor([float(zero)]), 0, highest - lowest, factor
    )  # fmt: skip
    (values * upstream).sum().backward()
    torch.testing.assert_close(layer.change.grad, step.grad, rtol=1e-4, atol=1e-5)


def test_clipped_weights_learn_or_not_as_prepare_qat_is_told():
    model = torch.nn.Sequential(torch.nn.Linear(64, 4, bias=False))
    with torch.no_grad():
        model[0].weight[:, 0] = 50.0
    for gradient in ("pass", "clipped"):
        prepared = qlab.prepare_qat(model, qlab.Recipe("int3-channel-p95"), gradient=gradient).train()
        prepared(torch.ones(2, 64)).sum().backward()
        learns = prepared[0].weight.grad != 0
        assert learns.float().mean() > 0.9
        assert bool(learns[:, 0].all()) == (gradient == "pass")
