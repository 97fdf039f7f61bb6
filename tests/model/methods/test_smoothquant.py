"""SmoothQuant: the same function before rounding, and far less error after."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from a_layer import layer
from torch import nn

import qlab
from qlab.model.methods.smoothquant import ALPHAS, search_alpha, smooth, smooth_model, smoothing_scales
from qlab.model.record import collect_inputs, inputs_of


def outliers(channels=64, seed=0):
    """A norm whose output has two channels a hundred times larger than the others, as in language models."""
    generator = torch.Generator().manual_seed(seed)
    norm = nn.LayerNorm(channels)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(channels, generator=generator) + 0.5)
        norm.weight[[3, 40]] *= 100
        norm.bias.copy_(torch.randn(channels, generator=generator) * 0.1)
    torch.manual_seed(seed)
    linears = [nn.Linear(channels, 48), nn.Linear(channels, 32, bias=False)]
    return norm, linears, torch.randn(400, channels, generator=generator)


def quantized_error(before, linears, x, weights="int8_channel", activations="int8"):
    """Mean squared error of outputs when inputs and weights are rounded; the scale of the inputs is for the whole tensor."""
    h = before(x).detach()
    rounded = torch.from_numpy(qlab.fake_quantize(h.numpy(), activations))
    error = 0.0
    for linear in linears:
        weight = torch.from_numpy(qlab.fake_quantize(linear.weight.detach().numpy(), weights))
        error += float(((rounded @ weight.T) - h @ linear.weight.detach().T).square().mean())
    return error


@pytest.mark.parametrize("alpha", [0, 0.3, 0.5, 0.85, 1])
@pytest.mark.parametrize("kind", ["layer", "rms", "linear", "no bias"])
def test_the_function_is_preserved(kind, alpha):
    norm, linears, x = outliers()
    before = {"layer": norm, "rms": nn.RMSNorm(64), "linear": nn.Linear(64, 64), "no bias": nn.LayerNorm(64, bias=False)}[kind]
    absmax = before(x).abs().amax(0)
    expected = [linear(before(x)).detach() for linear in linears]
    kept = [parameter.clone() for module in (before, *linears) for parameter in module.parameters()]
    new_before, new_linears = smooth(before, linears, absmax, alpha)
    for found, wanted in zip([linear(new_before(x)).detach() for linear in new_linears], expected, strict=True):
        assert (found - wanted).abs().max() <= 1e-5 * max(1, float(wanted.abs().max()))
    after = [parameter for module in (before, *linears) for parameter in module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(kept, after, strict=True))  # those given are not changed


def test_scales_are_the_formula_of_the_paper():
    x, w = torch.rand(10) * 9 + 0.1, [torch.randn(5, 10), torch.randn(7, 10)]
    top = torch.cat(w).abs().amax(0)
    for alpha in (0.25, 0.5, 0.8):
        torch.testing.assert_close(smoothing_scales(x, w, alpha), x**alpha / top ** (1 - alpha))


def test_less_error_after_rounding():
    norm, linears, x = outliers()
    absmax = norm(x).detach().abs().amax(0)
    plain = quantized_error(norm, linears, x)
    smoothed = quantized_error(*smooth(norm, linears, absmax, 0.5), x)
    assert smoothed < plain / 10


def test_the_searched_alpha_is_the_best_of_the_grid():
    norm, linears, x = outliers()
    inputs = inputs_of(norm(x))
    for activations in ("int8", "int8-row"):
        alpha = search_alpha(linears, inputs, activations=activations)
        errors = {}
        for candidate in (0.0, 0.25, 0.5, 0.75, 1.0, alpha):
            before, after = smooth(norm, linears, inputs.absmax, candidate)
            errors[candidate] = quantized_error(before, after, x, activations=activations)
        assert errors[alpha] <= min(errors.values()) * 1.02  # the search weighs the two layers by their width
        assert 0 < alpha < 1


@pytest.mark.parametrize("spread, weights", [(1, "int8_channel"), (30, "int3-channel"), (1, "int4_b32")])
def test_no_alpha_of_the_grid_is_better(spread, weights):
    """By the formula of the paper, tried out at every alpha on the rows that the search has."""
    _, linears, x = outliers()
    x[:, [3, 40]] *= 100
    with torch.no_grad():
        for linear in linears:
            linear.weight[:, 7] *= spread  # with large weights in a channel whose inputs are small
    inputs = inputs_of(x)
    w = torch.cat([linear.weight for linear in linears]).detach()  # (out, in), all layers together
    errors = []
    for alpha in ALPHAS:
        s = inputs.absmax**alpha / w.abs().amax(0) ** (1 - alpha)
        rounded = torch.from_numpy(qlab.fake_quantize((inputs.sample / s).numpy(), "int8"))
        error = 0.0
        for linear in linears:
            brought_back = torch.from_numpy(qlab.fake_quantize((linear.weight.detach() * s).numpy(), weights))
            error += float((rounded @ brought_back.T - inputs.sample @ linear.weight.detach().T).double().square().sum())
        errors.append(error)
    found = search_alpha(linears, inputs, weights=weights, activations="int8")
    assert errors[list(ALPHAS).index(found)] <= min(errors) * 1.0001
    assert errors[len(errors) // 2] > min(errors) * 1.01  # the middle one would not do


def test_silent_channels_stay():
    x, weight = torch.tensor([0.0, 2, 3]), torch.tensor([[1.0, 0, 3]])
    assert smoothing_scales(x, [weight], 0.5).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "act, error, message",
    [
        (lambda n, ls, a: smooth(n, ls, a, 1.5), ValueError, "alpha=1.5"),
        (lambda n, ls, a: smooth(nn.ReLU(), ls, a), TypeError, "ReLU"),
        (lambda n, ls, a: smooth(n, [nn.Conv1d(64, 2, 1)], a), TypeError, "Conv1d"),
        (lambda n, ls, a: smooth(n, ls, a[:5]), ValueError, "64 channels"),
        (lambda n, ls, a: smooth(nn.LayerNorm(64, elementwise_affine=False), ls, a), ValueError, "elementwise_affine"),
        (lambda n, ls, a: smooth(n, [nn.Linear(8, 2)], a), ValueError, r"\(2, 8\)"),
        (lambda n, ls, a: smooth(n, [], a), ValueError, "no weights"),
        (lambda n, ls, a: search_alpha(ls, layer()[2], alphas=[]), ValueError, "empty"),
    ],
)
def test_refusals(act, error, message):
    norm, linears, x = outliers()
    with pytest.raises(error, match=message):
        act(norm, linears, norm(x).abs().amax(0))


# --- a whole model ---------------------------------------------------------------------------------------------------
def transformer_with_outliers():
    """A trained transformer that computes the same as ever, but two channels of each norm are 60 times as large."""
    model = qlab.data.digits_transformer().requires_grad_(False)
    for block in model.blocks:
        attention = block.attention
        for norm, readers in ((block.norm1, (attention.query, attention.key, attention.value)), (block.norm2, (block.up,))):
            for parameter in (norm.weight, norm.bias):
                parameter[[5, 20]] *= 60
            for linear in readers:
                linear.weight[:, [5, 20]] /= 60
    return model, torch.from_numpy(qlab.data.digits().train_x[:96])


def change(model, other, x):
    """The largest change of an output, relative to the largest output."""
    want = model(x)
    return float((other(x) - want).detach().abs().max() / want.detach().abs().max())


def lines(model):
    return {name: (alpha, how) for name, alpha, how in model.smoothing_map.rows}


@pytest.mark.parametrize("alpha", [0, 0.5, 1, "search"])
def test_a_whole_model_computes_the_same(alpha):
    model, x = transformer_with_outliers()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    smoothed = smooth_model(model, iter([x[:40], x[40:]]), alpha=alpha)
    assert change(model, smoothed, x) <= 1e-5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for m in (model, smoothed) for module in m.modules())
    found = lines(smoothed)
    assert {name: how for name, (_, how) in found.items()} == {
        "blocks.0.norm1": "smoothed, with blocks.0.attention.query, blocks.0.attention.key, blocks.0.attention.value",
        "blocks.0.norm2": "smoothed, with blocks.0.up",
        "blocks.1.norm1": "smoothed, with blocks.1.attention.query, blocks.1.attention.key, blocks.1.attention.value",
        "blocks.1.norm2": "smoothed, with blocks.1.up",
        "norm": "left: no Linear reads its output itself",
    }
    if alpha == "search":
        inputs = collect_inputs(model, [x[:40], x[40:]], ["blocks.1.up"])["blocks.1.up"]
        assert found["blocks.1.norm2"][0] == search_alpha([model.blocks[1].up], inputs)
        assert all(found[name][0] in ALPHAS for name in found if name != "norm")
    else:
        assert all(found[name][0] == alpha for name in found if name != "norm")


def test_a_whole_model_is_the_formula_of_the_paper():
    model, x = transformer_with_outliers()
    smoothed = smooth_model(model, [x], alpha=0.7)
    block, new = model.blocks[0], smoothed.blocks[0]
    inputs = block.norm1(model.embed(x.view(-1, 8, 8)) + model.position).abs().amax((0, 1))
    readers = [block.attention.query, block.attention.key, block.attention.value]
    scales = inputs**0.7 / torch.cat([linear.weight for linear in readers]).abs().amax(0) ** 0.3
    torch.testing.assert_close(new.norm1.weight, block.norm1.weight / scales)
    torch.testing.assert_close(new.norm1.bias, block.norm1.bias / scales)
    torch.testing.assert_close(new.attention.key.weight, block.attention.key.weight * scales)
    assert torch.equal(new.attention.out.weight, block.attention.out.weight)


@pytest.mark.parametrize("name", ["dynamic_int8", "static_int8"])
@pytest.mark.parametrize("alpha", [0.5, "search"])
def test_a_whole_model_has_less_error_in_int8(name, alpha):
    model, x = transformer_with_outliers()
    recipe = replace(qlab.RECIPES[name], min_size=0)
    errors = []
    for each in (model, smooth_model(model, [x], alpha=alpha)):
        quantized = qlab.quantize_model(each, recipe, [x], show=False)
        errors.append(float((quantized(x) - model(x)).square().mean()))
    assert errors[1] < errors[0] / 5


class Block(nn.Module):
    """Norms whose outputs go to a linear layer, and elsewhere too: added after, or read as a weight of the output."""

    def __init__(self):
        super().__init__()
        self.clean, self.residual, self.plain = nn.LayerNorm(16), nn.RMSNorm(16), nn.LayerNorm(16, elementwise_affine=False)
        self.a, self.b, self.c, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.tied = nn.LayerNorm(16)
        self.head.weight = self.b.weight

    def forward(self, x):
        x = x + self.a(self.clean(x))
        x = self.residual(x)
        x = x + torch.relu(self.b(x))
        x = x + self.c(self.plain(x))
        return {"logits": [self.head(self.tied(x))], "mask": torch.tensor([0.0, -torch.inf])}


def test_norms_with_another_use_are_left_and_named():
    torch.manual_seed(0)
    model, x = Block().eval().requires_grad_(False), torch.randn(50, 16) * 3
    smoothed = smooth_model(model, [x[:3], x[3:]])
    found = lines(smoothed)
    assert found["clean"] == (0.5, "smoothed, with a")
    assert found["residual"][0] == found["tied"][0] == found["plain"][0] == ""
    assert found["residual"][1].startswith("left: the outputs would change by ")
    assert found["residual"][1].endswith("of their size; its output, or a weight, has another use")
    assert found["tied"][1].startswith("left: the outputs would change by ")
    assert "has no weight to take the scales" in found["plain"][1]
    changed = {name for name, value in smoothed.state_dict().items() if not torch.equal(value, model.state_dict()[name])}
    assert changed == {"clean.weight", "a.weight"}  # the bias is zero
    assert smoothed.head.weight is smoothed.b.weight
    want, got = model(x)["logits"][0], smoothed(x)["logits"][0]
    assert float((want - got).abs().max()) <= 1e-5 * float(want.abs().max())
    table = smoothed.smoothing_map
    assert "residual" in repr(table)
    assert "<table" in table._repr_html_()


def test_a_use_that_only_a_later_batch_shows():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x):
            h = self.norm(x)
            return self.linear(h) + (h if len(x) > 4 else 0)

    torch.manual_seed(1)
    model, small, large = Sometimes().eval(), torch.randn(3, 8), torch.randn(6, 8)
    assert lines(smooth_model(model, [small]))["norm"][0] == 0.5
    assert lines(smooth_model(model, [small, large]))["norm"][0] == ""


def test_torch_encoder_layers():
    torch.manual_seed(2)
    layers = [nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=first).eval() for first in (True, False)]
    before, after = (smooth_model(layer, [torch.randn(4, 5, 16)]) for layer in layers)
    assert lines(before)["norm2"] == (0.5, "smoothed, with linear1")
    assert lines(before)["norm1"] == ("", "left: no Linear reads its output itself")  # attention computes from its weights
    assert lines(after)["norm1"][1].startswith("left: the outputs would change by ")


def test_half_precision_is_left_rather_than_changed():
    model, x = transformer_with_outliers()
    half = model.bfloat16()
    smoothed = smooth_model(half, [x.bfloat16()])
    assert change(half, smoothed, x.bfloat16()) <= 1e-5


PAIR = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)).eval()
NAN = torch.tensor([[1.0, torch.nan, 0, 0]])


@pytest.mark.parametrize(
    "act, error, message",
    [
        (lambda x: smooth_model(PAIR, []), ValueError, "batches is empty"),
        (lambda x: smooth_model(PAIR, x), TypeError, r"put it into a list: \[batch\]"),
        (lambda x: smooth_model(PAIR, [x, NAN]), ValueError, "batches: batch 1 holds 1 NaN"),
        (lambda x: smooth_model(PAIR, [x], alpha=1.5), ValueError, "alpha=1.5 .*from 0 to 1, or 'search'"),
        (lambda x: smooth_model(PAIR, [x], alpha=-0.1), ValueError, "alpha=-0.1 is not allowed"),
        (lambda x: smooth_model(PAIR, [x], alpha=float("nan")), ValueError, "alpha=nan is not allowed"),
        (lambda x: smooth_model(PAIR, [x], alpha="x"), ValueError, "alpha='x' is not allowed"),
        (lambda x: smooth_model(PAIR, [x], alpha=True), ValueError, "alpha=True is not allowed"),
        (lambda x: smooth_model(PAIR, [x], alpha=None), ValueError, "alpha=None is not allowed"),
        (lambda x: smooth_model(nn.Sequential(*PAIR).train(), [x]), ValueError, r"train mode; call model.eval\(\)"),
        (lambda x: smooth_model("model", [x]), TypeError, "torch.nn.Module, not str"),
        (lambda x: smooth_model(nn.Sequential(PAIR[1], nn.LayerNorm(2)).eval(), [x]), ValueError, "no Linear of the model reads"),
        (lambda x: smooth_model(nn.Sequential(PAIR[0], nn.Tanh(), PAIR[1]).eval(), [x]), ValueError, "no Linear of the model"),
    ],
)
def test_refusals_of_whole_models(act, error, message):
    PAIR.eval()
    with pytest.raises(error, match=message):
        act(torch.randn(3, 4))
