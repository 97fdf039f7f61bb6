"""Emulated mixed precision against products by hand with ml_dtypes' casts, loss scaling against torch's own GradScaler."""

from __future__ import annotations

import copy
import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import qlab

DTYPES = {
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2, "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}  # fmt: skip


def by_library(x: torch.Tensor, name: str) -> torch.Tensor:
    """Rounded by ml_dtypes, in float64."""
    return torch.from_numpy(x.detach().numpy().astype(DTYPES[name]).astype(np.float64))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.allclose(first.double(), second.double(), rtol=1e-5, atol=1e-5)


# --- emulate ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("forward", "backward"), [("float8_e4m3fn", "float8_e5m2"), ("bfloat16", "bfloat16"), ("float16", "float8_e4m3fn")]
)
def test_linear_by_hand(forward, backward):
    layer, x, gradient = nn.Linear(24, 7), drawn(3, 5, 24).requires_grad_(), drawn(3, 5, 7, seed=1)
    with qlab.amp.emulate(forward, backward):
        y = layer(x)
    y.backward(gradient)  # outside: the way back remembers
    x8, w8, g8 = by_library(x, forward), by_library(layer.weight, forward), by_library(gradient, backward)
    assert close(y, x8 @ w8.T + layer.bias.double())
    assert close(x.grad, g8 @ w8)
    assert close(layer.weight.grad, g8.reshape(-1, 7).T @ x8.reshape(-1, 24))
    assert close(layer.bias.grad, gradient.sum((0, 1)))
    assert not close(y, layer(x))  # the test would see a plain product


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 3, stride=2),
        nn.Conv2d(4, 6, 3, padding=1, groups=2),
        nn.Conv2d(4, 6, (3, 1), dilation=2, bias=False),
        nn.ConvTranspose2d(4, 6, 3, stride=2),
    ],
)
def test_convolutions_by_hand(layer):
    x = drawn(2, 4, *[9] * (layer.weight.ndim - 2)).requires_grad_()
    with qlab.amp.emulate("float8_e4m3fn", "float8_e5m2"):
        y = layer(x)
    gradient = drawn(*y.shape, seed=1)
    y.backward(gradient)
    rounded = copy.deepcopy(layer).double()
    rounded.weight.data = by_library(layer.weight, "float8_e4m3fn")
    x8 = by_library(x, "float8_e4m3fn").requires_grad_()
    y8 = rounded(x8)
    rounded.zero_grad()
    y8.backward(by_library(gradient, "float8_e5m2"))
    assert close(y, y8)
    assert close(x.grad, x8.grad)
    assert close(layer.weight.grad, rounded.weight.grad)


def test_blocks_of_schemes_run_along_the_channels():
    linear, conv = nn.Linear(64, 4, bias=False), nn.Conv2d(64, 4, 1, bias=False)
    conv.weight.data = linear.weight.data[:, :, None, None].clone()
    rows = drawn(6, 64) * torch.logspace(-2, 2, 64)
    picture = rows.T.reshape(1, 64, 2, 3)
    with qlab.amp.emulate("mxfp8_e4m3", "mxfp8_e5m2"):
        y, z = linear(rows), conv(picture)
    by_hand = qlab.fake_quantize(rows, "mxfp8_e4m3") @ qlab.fake_quantize(linear.weight.detach(), "mxfp8_e4m3").T
    assert close(y, by_hand)
    assert close(z.reshape(4, 6).T, by_hand)
    y.backward(gradient := drawn(6, 4, seed=2))
    gradient = qlab.fake_quantize(gradient, "mxfp8_e5m2")
    assert close(linear.weight.grad, gradient.T @ qlab.fake_quantize(rows, "mxfp8_e4m3"))


def test_results_are_rounded_after_the_product():
    layer, x = nn.Linear(32, 8, bias=False), drawn(4, 32).requires_grad_()
    with qlab.amp.emulate("float16", "float16", accumulate="bfloat16"):
        y = layer(x)
    y.backward(drawn(4, 8, seed=1))
    for values in (y, x.grad, layer.weight.grad):
        assert torch.equal(values, values.bfloat16().float())
    product = qlab.cast(x.detach(), "float16") @ qlab.cast(layer.weight.detach(), "float16").T
    assert torch.equal(y, product.bfloat16().float())


def test_stochastic_rounding_has_a_seed_and_no_bias():
    layer, x = nn.Linear(16, 16, bias=False), drawn(64, 16)

    def run(seed: int, **options) -> torch.Tensor:
        with qlab.amp.emulate("float8_e4m3fn", "float8_e5m2", stochastic="forward", rng=seed, **options):
            return layer(x).detach()

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    exact = layer(x)
    with qlab.amp.emulate("float8_e4m3fn", "float8_e5m2"):
        nearest = layer(x)
    mean = torch.stack([run(seed) for seed in range(60)]).mean(0)
    assert (mean - exact).square().mean() < 0.2 * (nearest - exact).square().mean()


def test_master_weights_or_none():
    x = drawn(8, 4)
    for master in (True, False):
        layer = nn.Linear(4, 2)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        with qlab.amp.emulate("bfloat16", "bfloat16", master=master):
            layer(x).square().sum().backward()
            optimizer.step()
        rounded = all(torch.equal(p, p.detach().bfloat16().float()) for p in layer.parameters())
        assert rounded is not master
        before = layer.weight.detach().clone()
        optimizer.step()  # outside, nothing is rounded
        assert not torch.equal(layer.weight, layer.weight.bfloat16().float()) or torch.equal(before, layer.weight)


def test_nothing_stays_changed():
    layer, x = nn.Linear(4, 4), drawn(2, 4)
    before, plain = layer.weight.detach().clone(), layer(x)
    with qlab.amp.emulate():
        assert not torch.equal(layer(x), plain)
    with pytest.raises(RuntimeError, match="shapes"), qlab.amp.emulate():
        layer(drawn(2, 5))
    assert torch.equal(layer(x), plain)
    assert torch.equal(layer.weight, before)


def test_float32_changes_nothing():
    layer, x = nn.Linear(4, 4), drawn(2, 4)
    with qlab.amp.emulate("float32", "float32"):
        assert torch.equal(layer(x), F.linear(x, layer.weight) + layer.bias)


@pytest.mark.parametrize("layer", [nn.LSTM(4, 4), nn.GRU(4, 4), nn.RNN(4, 4), nn.LSTMCell(4, 4)])
def test_what_cannot_be_reached_is_refused(layer):
    with qlab.amp.emulate(), pytest.raises(ValueError, match=f"inside of nn.{type(layer).__name__}; build it from Linear"):
        layer(drawn(1, 4))


def test_attention_is_refused():
    x = drawn(3, 1, 4)
    with qlab.amp.emulate(), pytest.raises(ValueError, match=r"inside of nn\.MultiheadAttention"):
        nn.MultiheadAttention(4, 2)(x, x, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forward": "float9"}, "forward='float9' is neither a floating-point format nor a scheme"),
        ({"backward": qlab.get_format("int8")}, "backward=int8 has no scale; name a scheme"),
        ({"accumulate": "mxfp4"}, "unknown format 'mxfp4'"),
        ({"overflow": "wrap"}, "overflow='wrap' is not known"),
        ({"stochastic": ("sideways",)}, "stochastic='sideways' is not known"),
        ({"stochastic": "backward"}, "needs a seed: give rng="),
        ({"backward": "mxfp4", "stochastic": "backward", "rng": 0}, "rounds to nearest; name a format"),
    ],
)
def test_emulate_refuses(options, message):
    with pytest.raises(ValueError, match=message), qlab.amp.emulate(**options):
        pass


# --- weights without a master ----------------------------------------------------------------------------------------
def test_round_weights():
    layer = nn.Linear(64, 64)
    before = layer.weight.detach().clone()
    qlab.amp.round_weights(layer, "float8_e4m3fn")
    assert torch.equal(layer.weight.double(), by_library(before, "float8_e4m3fn"))
    assert layer.weight.requires_grad
    up = nn.Linear(64, 64)
    up.weight.data = before.clone()
    qlab.amp.round_weights(up, "bfloat16", rounding="stochastic", rng=3)
    lower, upper = (qlab.cast(before, "bfloat16", rounding=r) for r in ("down", "up"))
    assert ((up.weight == lower) | (up.weight == upper)).all()
    assert 0.3 < float((up.weight == upper)[lower != upper].double().mean()) < 0.7
    huge = nn.Linear(1, 1)
    huge.weight.data.fill_(1e9)
    qlab.amp.round_weights(huge, "float16")
    assert huge.weight.item() == 65504
    with pytest.raises(ValueError, match="needs a seed"):
        qlab.amp.round_weights(up, "bfloat16", rounding="stochastic")
    with pytest.raises(ValueError, match="name a format"):
        qlab.amp.round_weights(up, "nf4", rounding="up")
    with pytest.raises(TypeError, match="not list"):
        qlab.amp.round_weights([], "bfloat16")


# --- loss scaling ----------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(
    overflows=st.lists(st.booleans(), min_size=1, max_size=30),
    initial=st.sampled_from([2.0**16, 1.0, 3e38, 1e-20, 777.7]),
    growth=st.sampled_from([2.0, 1.7]), backoff=st.sampled_from([0.5, 0.3]), interval=st.integers(1, 4),
)  # fmt: skip
def test_the_decisions_of_gradscaler(overflows, initial, growth, backoff, interval):
    ours = qlab.amp.LossScaler(initial, growth, backoff, interval)
    theirs = torch.amp.GradScaler(
        "cpu", init_scale=initial, growth_factor=growth, backoff_factor=backoff, growth_interval=interval
    )
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizers = [torch.optim.SGD([w], lr=0.1) for w in weights]
    scales, skipped = [], []
    for step, overflow in enumerate(overflows):
        factor = torch.tensor([math.inf if overflow else 1.0, 0.3, -1e-3])
        for weight, optimizer, multiply in zip(weights, optimizers, (ours.multiply, theirs.scale), strict=True):
            optimizer.zero_grad()
            multiply((weight * factor).sum()).backward()
        scales.append(theirs.get_scale())
        before = weights[1].detach().clone()
        done = ours.step(optimizers[0])
        theirs.step(optimizers[1])
        ours.update()
        theirs.update()
        skipped += [step] * (not done)
        assert done is not torch.equal(before, weights[1])  # theirs moved where ours says that it did
        assert torch.equal(weights[0].detach(), weights[1].detach())
        assert ours.scale == theirs.get_scale()
    assert ours.scales == scales
    assert ours.skipped == skipped


def test_two_optimizers_and_clipping():
    ours = qlab.amp.LossScaler(8.0)
    theirs = torch.amp.GradScaler("cpu", init_scale=8.0)
    results = []
    for scaler, multiply, unscale in ((ours, ours.multiply, ours.unscale), (theirs, theirs.scale, theirs.unscale_)):
        a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        first, second = torch.optim.SGD([a], lr=0.5), torch.optim.SGD([b], lr=0.5)
        multiply((3 * a).sum() + (b * torch.tensor([1.0, math.inf])).sum()).backward()
        unscale(first)
        nn.utils.clip_grad_norm_([a], 1.0)
        scaler.step(first)
        scaler.step(second)
        scaler.update()
        results.append((a.detach(), b.detach()))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
    assert (ours.scale, ours.skipped) == (theirs.get_scale(), [0]) == (4.0, [0])


def test_a_scaler_used_wrongly():
    scaler, weight = qlab.amp.LossScaler(), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    with pytest.raises(ValueError, match="no gradients; call multiply"):
        scaler.step(optimizer)
    with pytest.raises(ValueError, match=r"call step\(optimizer\) first"):
        scaler.update()
    scaler.multiply(weight.sum()).backward()
    scaler.unscale(optimizer)
    with pytest.raises(ValueError, match="unscaled already"):
        scaler.unscale(optimizer)
    scaler.step(optimizer)
    with pytest.raises(ValueError, match=r"call update\(\) between"):
        scaler.step(optimizer)
    for options in ({"initial": 0}, {"initial": math.inf}, {"growth": 1}, {"backoff": 1.0}, {"interval": 0}, {"interval": True}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}=.* is not allowed; give"):
            qlab.amp.LossScaler(**options)


# --- reports ---------------------------------------------------------------------------------------------------------
def test_underflow_report_counts_as_numpy_does():
    layer = nn.Linear(50, 40)
    gradient = drawn(40, 50) * 10.0 ** (6 * drawn(40, 50, seed=1))
    layer.weight.grad = gradient.clone()
    layer.weight.grad[0, 0] = 0
    for scale in (1.0, 1024.0):
        table = qlab.amp.underflow_report(layer, "float16", scale=scale)
        assert [row[0] for row in table.rows] == ["weight"]
        row = dict(zip(table.columns, table.rows[0], strict=True))
        wide = (layer.weight.grad * scale).numpy()
        with np.errstate(over="ignore"):
            narrow = wide.astype(np.float16)
        share = 100 / wide.size
        assert row["underflow"] == pytest.approx(share * ((narrow == 0) & (wide != 0)).sum())
        assert row["overflow"] == pytest.approx(share * np.isinf(narrow).sum())
        assert row["subnormal"] == pytest.approx(share * ((narrow != 0) & (abs(narrow) < 2.0**-14)).sum())
        assert row["zeros"] == pytest.approx(share)
        assert row["absmax"] == abs(wide).max()
        assert row["underflow"] > 5
        assert row["overflow"] > 5
    with pytest.raises(ValueError, match="no parameter of the model has a gradient"):
        qlab.amp.underflow_report(nn.Linear(2, 2), "float16")
    with pytest.raises(ValueError, match="scale=0"):
        qlab.amp.underflow_report(layer, "float16", scale=0)


# --- training --------------------------------------------------------------------------------------------------------
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


@pytest.fixture(scope="module")
def digits():
    return [torch.from_numpy(part) for part in qlab.data.digits()]


def train(digits, *, scaler=None, steps=60, **formats) -> tuple[nn.Module, float]:
    train_x, train_y, test_x, test_y = digits
    train_x, train_y = train_x[:600], train_y[:600]
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with qlab.amp.emulate(**formats):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(train_x), train_y)
            if scaler is None:
                loss.backward()
                optimizer.step()
            else:
                scaler.multiply(loss).backward()
                scaler.step(optimizer)
                scaler.update()
        return model, 100 * float((model(test_x).argmax(1) == test_y).double().mean())


def test_digits_are_learned_in_narrow_formats(digits):
    _, reference = train(digits, forward="float32", backward="float32")
    assert reference > 92
    scaler = qlab.amp.LossScaler(2.0**30, interval=20)
    found = {
        "bf16": train(digits, forward="bfloat16", backward="bfloat16")[1],
        "fp16": train(digits, forward="float16", backward="float16", scaler=scaler)[1],
        "fp8": train(digits, scaler=qlab.amp.LossScaler(2.0**10))[1],
        "mx": train(digits, forward="mxfp8_e4m3", backward="mxfp8_e5m2")[1],
    }
    assert min(found.values()) > reference - 3, found
    assert scaler.skipped  # 2**30 was too much
    assert scaler.skipped[0] == 0
    assert scaler.scales[-1] < 2.0**30


def test_fp16_without_scaling_loses_gradients(digits):
    """Of a trained network's tiny gradients, a sixteenth of them as when 16 batches are accumulated, much vanishes."""
    train_x, train_y = (part[:600] for part in digits[:2])
    model, _ = train(digits, forward="float32", backward="float32", steps=150)
    gradients = {}
    for name, backward, scale in (("exact", "float32", 1.0), ("plain", "float16", 1.0), ("scaled", "float16", 2.0**12)):
        model.zero_grad()
        with qlab.amp.emulate("float32", backward):
            loss = F.cross_entropy(model(train_x), train_y) / 16 * scale
        loss.backward()
        gradients[name] = torch.cat([(p.grad / scale).reshape(-1) for p in model.parameters() if p.ndim == 2])
    exact = gradients.pop("exact")
    lost = {name: float((found - exact).norm() / exact.norm()) for name, found in gradients.items()}
    assert lost["plain"] > 0.05
    assert lost["scaled"] < 0.005


def test_round_weights_rounds_all_or_nothing():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model[1].weight.data[0, 0] = torch.nan
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match="NaN"):
        qlab.amp.round_weights(model, "mxfp4")
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("initial", [1e39, 1e-46])
def test_a_first_scale_that_float32_cannot_hold_is_refused(initial):
    with pytest.raises(ValueError, match=r"initial=.*positive, finite"):
        qlab.amp.LossScaler(initial=initial)


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, *, target):
        return F.mse_loss(torch.matmul(torch.relu(self.linear(x)), x.T), target)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast_report_is_what_torch_does(dtype):
    model, x, target = Loss(), torch.randn(3, 4), torch.randn(3, 3)
    report = qlab.amp.autocast_report(model, {"x": x, "target": target}, dtype)
    found = {row[1]: row for row in report.rows}
    assert found["linear"] == ("linear", "linear", "float32", dtype)
    assert found["relu"] == ("", "relu", dtype, dtype)
    assert found["matmul"][2:] == (f"{dtype}, float32", dtype)
    assert found["mse_loss"][3] == "float32"
    with torch.autocast("cpu", getattr(torch, dtype)):
        assert str(model.linear(x).dtype) == f"torch.{found['linear'][3]}"
        assert model(x, target=target).dtype == torch.float32
    assert not model._forward_hooks
    assert model.linear.weight.dtype == torch.float32


def test_autocast_report_refuses():
    with pytest.raises(TypeError, match=r"a torch\.nn\.Module, not str"):
        qlab.amp.autocast_report("model", torch.ones(1))
    with pytest.raises(ValueError, match="float16"):
        qlab.amp.autocast_report(nn.Linear(1, 1), torch.ones(1, 1), "float8")
    with pytest.raises(TypeError, match="a batch is a tensor, a tuple"):
        qlab.amp.autocast_report(nn.Linear(1, 1), [1.0])


def test_bare_products_with_weights_are_refused_and_others_are_not():
    weight, x = nn.Parameter(torch.randn(4, 4)), torch.randn(3, 4)
    products = {
        "matmul": lambda: x @ weight, "view": lambda: x @ weight.T, "addmm": lambda: torch.addmm(x[:, :4], x, weight),
        "einsum": lambda: torch.einsum("ij,jk->ik", x, weight), "mm": lambda: x.mm(weight[:, 1:]),
    }  # fmt: skip
    for product in products.values():
        with qlab.amp.emulate(), pytest.raises(ValueError, match=r"functional\.linear and convolutions, not in"):
            product()
    with qlab.amp.emulate():
        assert torch.equal(x @ x.T, torch.matmul(x, x.T))
        F.linear(x, weight.T)


def by_steps(a, b, dtype, chunk):
    """A product whose running sum is rounded by NumPy or ml_dtypes after each chunk; sums of a chunk are exact here."""
    total = np.zeros((len(a), b.shape[1]))
    for start in range(0, a.shape[1], chunk):
        part = a[:, start : start + chunk].astype(np.float64) @ b[start : start + chunk].astype(np.float64)
        total = (total + part.astype(np.float32)).astype(dtype).astype(np.float64)
    return torch.from_numpy(total.astype(np.float32))


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
@pytest.mark.parametrize("accumulate", ["float16", "bfloat16", "float8_e5m2"])
def test_sums_are_rounded_after_each_chunk(accumulate, chunk):
    torch.manual_seed(0)
    layer, x = nn.Linear(40, 6), torch.randn(2, 9, 40, requires_grad=True)
    with qlab.amp.emulate("float8_e4m3fn", "float8_e5m2", accumulate, chunk=chunk):
        y = layer(x)
    upstream = torch.randn(2, 9, 6)
    y.backward(upstream)
    dtype = DTYPES[accumulate]
    xs, w = (by_library(t.detach(), "float8_e4m3fn").numpy() for t in (x.reshape(-1, 40), layer.weight))
    g = by_library(upstream.reshape(-1, 6), "float8_e5m2").numpy()
    assert torch.equal(y.detach().reshape(-1, 6), by_steps(xs, w.T, dtype, chunk) + layer.bias.detach())
    assert torch.equal(x.grad.reshape(-1, 40), by_steps(g, w, dtype, chunk))
    assert torch.equal(layer.weight.grad, by_steps(xs.T, g, dtype, chunk).T)


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9, 8)),
        (lambda: nn.Conv2d(3, 5, (2, 3), padding="same", dilation=2), (2, 3, 7, 8)),
        (lambda: nn.Conv2d(3, 5, 2, padding="valid"), (3, 7, 8)),
        (lambda: nn.Conv1d(4, 6, 4, stride=2, padding=2), (2, 4, 9)), (lambda: nn.Conv1d(4, 6, 4, padding="same"), (4, 9)),
    ],
)  # fmt: skip
def test_convolutions_by_chunks(make, shape):
    """With an accumulator of float32, sums in another order; with a narrow one, those of the patches."""
    torch.manual_seed(0)
    layer, x = make(), torch.randn(shape, requires_grad=True)
    results = []
    for chunk in (None, 5):
        layer.zero_grad()
        x.grad = None
        with qlab.amp.emulate("bfloat16", "bfloat16", chunk=chunk):
            y = layer(x)
        y.square().sum().backward()
        results.append((y, x.grad, layer.weight.grad, layer.bias.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2 * float(one.detach().abs().max()))
    ones = nn.Conv2d(64, 1, 3, bias=False)
    nn.init.ones_(ones.weight)
    with qlab.amp.emulate("bfloat16", accumulate="bfloat16", chunk=1):
        assert (ones(torch.ones(1, 64, 4, 5)) == 256).all()  # of 576


def test_chunks_of_odd_shapes():
    x, w = torch.randn(1, 4, 9, 9), torch.randn(8, 4, 3, 3)
    with qlab.amp.emulate("float32", "float32", chunk=8):
        for how in ({"padding": (1,)}, {"stride": (2,)}, {"dilation": (2,), "padding": [1]}):
            torch.testing.assert_close(F.conv2d(x, w, **how), torch.conv2d(x, w, **how), rtol=1e-4, atol=1e-4)
        assert F.conv2d(x[:0], w).shape == (0, 8, 7, 7)
        assert F.linear(torch.zeros(3, 0), torch.zeros(2, 0)).shape == (3, 2)
        assert F.linear(torch.zeros(0, 3), torch.zeros(2, 3)).shape == (0, 2)
        assert F.linear(torch.ones(3), torch.ones(2, 3)).tolist() == [3, 3]


def test_accumulators_are_of_floating_point():
    for wrong in ("int8", "nf4"):
        with pytest.raises(ValueError, match=f"accumulate='{wrong}' has no scale"), qlab.amp.emulate(accumulate=wrong):
            pass


def test_autocast_report_is_the_same_the_second_time():
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU()).eval(), torch.randn(5, 64)
    quantized = qlab.quantize_model(model, qlab.Recipe("int8-channel", "int8"), show=False)
    assert repr(qlab.amp.autocast_report(quantized, x)) == repr(qlab.amp.autocast_report(quantized, x))


def test_chunks_are_checked():
    for chunk in (0, True, 1.5):
        with pytest.raises(ValueError, match=f"chunk={chunk}"), qlab.amp.emulate(chunk=chunk):
            pass
    with pytest.raises(ValueError, match="not in conv_transpose2d; leave out chunk"), qlab.amp.emulate(chunk=4):
        nn.ConvTranspose2d(1, 1, 2)(torch.ones(1, 1, 3, 3))
