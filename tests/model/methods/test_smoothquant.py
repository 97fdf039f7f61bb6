"""SmoothQuant: the same function before rounding, and far less error after."""

from __future__ import annotations

import pytest
import torch
from a_layer import layer
from torch import nn

import qlab
from qlab.model.methods.smoothquant import search_alpha, smooth, smoothing_scales
from qlab.model.record import inputs_of


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
