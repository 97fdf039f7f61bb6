"""Sensitivity against layers quantized by hand, the allocation of bits against all mixes there are, outliers against SciPy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import qlab
from qlab.model import allocation
from qlab.model.allocation import best_mixes
from qlab.model.packed import Packed

SCHEMES = ["int8-channel", "nf4", "int3-b32/f16", "int2-b32/f16"]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for seed, (width, out) in enumerate(itertools.pairwise(widths)):
        layer = nn.Linear(width, out)
        layer.weight.data, layer.bias.data = drawn(out, width, seed=seed) / width**0.5, drawn(out, seed=seed) / 10
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


class Pictures(nn.Module):
    """Convolutions with batch normalization, called in another order than they are written down, and one not at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(8, 5)
        self.first = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.idle = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(torch.relu(self.norm(self.first(x))).mean((2, 3)))}


def sqnr(reference: torch.Tensor, found: torch.Tensor) -> float:
    x, y = reference.double(), found.double()
    return 10 * math.log10(float((x.square().sum() / (x - y).square().sum()).detach()))


# --- sensitivity -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("recipe", [qlab.RECIPES["static_int8"], qlab.Recipe(weights="int4-b32/f16", method="gptq")])
def test_each_layer_alone_and_accumulated(recipe):
    model, batches = network(32, 32, 48, 10), [drawn(20, 32, seed=5), drawn(12, 32, seed=6)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = qlab.sensitivity(model, recipe, batches)
    assert [layer.name for layer in report.layers] == ["0", "2", "4"]
    with torch.no_grad():
        reference = model(torch.cat(batches))
        whole = qlab.quantize_model(model, recipe, batches, show=False)
        for place, layer in enumerate(report.layers):
            hybrids = [nn.Sequential(*model), nn.Sequential(*model)]
            hybrids[0][2 * place] = whole[2 * place]
            for k in range(place + 1):
                hybrids[1][2 * k] = whole[2 * k]
            alone, accumulated = (torch.cat([hybrid(batch) for batch in batches]) for hybrid in hybrids)
            assert layer.sqnr == pytest.approx(sqnr(reference, alone), abs=1e-6)
            assert layer.accumulated_sqnr == pytest.approx(sqnr(reference, accumulated), abs=1e-6)
            cosine = nn.functional.cosine_similarity(reference.double().reshape(1, -1), alone.double().reshape(1, -1))
            assert layer.cosine == pytest.approx(float(cosine), abs=1e-12)
    assert report.worst.sqnr == min(layer.sqnr for layer in report.layers)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert type(model[0]) is nn.Linear


def test_change_of_the_loss():
    model, x = network(32, 32, 10).requires_grad_(False), drawn(24, 32)
    target = model(x).argmax(1)
    batches = [(x[:12],), (x[12:],)]
    answers = {id(batches[0]): target[:12], id(batches[1]): target[12:]}

    def loss(output, batch):
        return nn.functional.cross_entropy(output, answers[id(batch)])

    report = qlab.sensitivity(model, qlab.Recipe(weights="int2-channel"), batches, loss=loss)
    alone = qlab.quantize_model(model, qlab.Recipe(weights="int2-channel", layers=("2",)), show=False)
    means = [sum(float(loss(m(b[0]), b)) for b in batches) / 2 for m in (model, alone)]
    assert report.loss == pytest.approx(means[0])
    assert report.layers[1].loss_change == pytest.approx(means[1] - means[0], abs=1e-6)
    assert report.layers[1].loss_change > 0.01
    assert "loss_change" in repr(report)
    assert "loss_change" not in repr(qlab.sensitivity(model, "weight_only_int8", batches))


def test_order_of_calls_convolutions_and_an_idle_layer():
    model, x = Pictures().eval(), drawn(4, 3, 8, 8)
    x[:, 1] *= 60
    report = qlab.sensitivity(model, qlab.Recipe(weights="int8-channel", activations="int8"), [{"x": x}])
    assert [(layer.name, layer.type) for layer in report.layers] == [("first", "Conv2d"), ("head", "Linear"), ("idle", "Linear")]
    first, head, idle = report.layers
    assert (first.reason, first.outlier_channel) == ("outlier_channel", 1)
    assert first.outlier_ratio == pytest.approx(float(x[:, 1].abs().max() / x[:, [0, 2]].abs().amax((0, 2, 3)).max()), rel=0.5)
    assert head.reason == "rounding"
    assert (idle.reason, idle.sqnr, idle.outlier_channel) == ("not_reached", math.inf, None)


def reason(weight: torch.Tensor, recipe: qlab.Recipe, x: torch.Tensor) -> tuple[str, float]:
    model = nn.Sequential(nn.Linear(*weight.shape[::-1])).eval()
    model[0].weight.data = weight
    worst = qlab.sensitivity(model, recipe, [x]).worst
    return worst.reason, worst.clipped


def test_why():
    weight, x = drawn(16, 32), drawn(64, 32, seed=1)
    tall = weight.clone()
    tall[3] *= 200
    assert reason(weight, qlab.Recipe(weights="int4"), x) == ("rounding", 0)
    assert reason(tall, qlab.Recipe(weights="int4"), x) == ("channel_spread", 0)
    assert reason(tall, qlab.Recipe(weights="int4-channel"), x) == ("rounding", 0)  # a scale of its own cures it
    assert reason(weight, qlab.Recipe(weights="int8-p90"), x)[0] == "clipping"
    assert reason(weight, qlab.Recipe(weights="int8-p90"), x)[1] == pytest.approx(0.1, abs=0.01)
    assert reason(weight * 1e-7, qlab.Recipe(weights="int8-b32/f16"), x)[0] == "scale_storage"
    spiky = x.clone()
    spiky[:, 7] *= 30
    assert reason(weight, qlab.Recipe(weights="int8-channel", activations="int8"), spiky)[0] == "outlier_channel"
    assert qlab.sensitivity(network(8, 8), "weight_only_int8", [drawn(4, 8)]).worst.reason == "rounding"


def test_static_ranges_that_clip():
    """One row is thirty times larger; the observer leaves it out, and nearly all of the error is its."""
    x = drawn(20_000, 32)
    x[0] = 100.0  # the first row, which every sample holds
    for observer, expected in (("percentile", "clipping"), ("minmax", "rounding")):
        activations = qlab.Activations("int8", "static", observer)
        found, clipped = reason(drawn(16, 32), qlab.Recipe(weights="int8-channel", activations=activations), x)
        assert found == expected
        assert (1 / 512 <= clipped < 0.01) == (observer == "percentile")


def test_tables_in_both_shapes():
    report = qlab.sensitivity(network(8, 8, 8), "weight_only_int8", [drawn(4, 8)])
    assert report.worst.name in repr(report).splitlines()[-1]
    qlab.set_language("zh")
    try:
        html = report._repr_html_()
    finally:
        qlab.set_language(None)
    assert qlab.show.label("cell.more_bits", "zh") in html
    assert "more_bits" not in html


def test_sensitivity_refuses():
    model, x = network(8, 8), drawn(4, 8)
    with pytest.raises(ValueError, match="rounds all parameters to float16, not layer by layer"):
        qlab.sensitivity(model, "float16", [x])
    with pytest.raises(ValueError, match="batches is empty"):
        qlab.sensitivity(model, "weight_only_int8", iter([]))
    with pytest.raises(TypeError, match=r"not a single Tensor; put it into a list: \[batch\]"):
        qlab.sensitivity(model, "weight_only_int8", x)
    with pytest.raises(ValueError, match="train mode"):
        qlab.sensitivity(network(8, 8).train(), "weight_only_int8", [x])
    with pytest.raises(ValueError, match="batches: batch 0 holds 4 NaN"):
        qlab.sensitivity(model, "weight_only_int8", [torch.full((1, 8), math.nan)[:, :4].repeat(1, 2).masked_fill_(
            torch.arange(8) > 3, 0.0)])  # fmt: skip

    class Words(nn.Sequential):
        def forward(self, x):
            super().forward(x)
            return "words"

    with pytest.raises(TypeError, match="the model's output, a str, holds no tensor"):
        qlab.sensitivity(Words(*model).eval(), "weight_only_int8", [x])


# --- bits ------------------------------------------------------------------------------------------------------------
TABLES = st.integers(1, 5).flatmap(
    lambda choices: st.lists(
        st.lists(st.tuples(st.integers(1, 9), st.integers(0, 50)), min_size=choices, max_size=choices), min_size=1, max_size=4
    )
)


@settings(max_examples=150, deadline=None)
@given(TABLES)
def test_best_mixes_is_what_trying_all_finds(table):
    sizes, errors = (np.array([[cell[k] for cell in row] for row in table]) for k in (0, 1))
    layers = np.arange(len(table))
    every = [
        (int(sizes[layers, mix].sum()), float(errors[layers, mix].sum()))
        for mix in itertools.product(range(sizes.shape[1]), repeat=len(table))
    ]
    front = sorted({p for p in every if not any(o != p and o[0] <= p[0] and o[1] <= p[1] for o in every)})
    bytes_, error, choices = best_mixes(sizes, errors.astype(float))
    assert list(zip(bytes_.tolist(), error.tolist(), strict=True)) == front
    for place in range(len(front)):
        mix = choices(place)
        assert (sizes[layers, mix].sum(), errors[layers, mix].sum()) == front[place]


def test_best_mixes_beyond_what_is_kept(monkeypatch):
    rng = np.random.default_rng(0)
    sizes, errors = np.sort(rng.integers(1, 100_000, (12, 4))), -np.sort(-rng.random((12, 4)))
    exact_bytes, exact_error, _ = best_mixes(sizes, errors)
    monkeypatch.setattr(allocation, "LIMIT", 200)
    bytes_, error, choices = best_mixes(sizes, errors)
    assert len(bytes_) <= 201 < len(exact_bytes)
    assert bytes_[0] == sizes.min(axis=1).sum()
    slack = len(sizes) / 200 * sizes.max(axis=1).sum()
    for budget in np.linspace(bytes_[0] + slack, bytes_[-1], 50):
        found = error[np.searchsorted(bytes_, budget, side="right") - 1]
        assert found <= exact_error[np.searchsorted(exact_bytes, budget - slack, side="right") - 1]
    assert sizes[np.arange(12), choices(100)].sum() == bytes_[100]


@pytest.mark.parametrize("budget", [2.6, 3.9, 4.5, 6.0, 20.0])
def test_no_mix_is_better_within_the_budget(budget):
    model, batches = network(64, 32, 96, 64), [drawn(16, 64, seed=9)]
    found = qlab.allocate_bits(model, SCHEMES, batches, budget)
    reference, names, counts = model(batches[0]), ["0", "2", "4"], [64 * 32, 32 * 96, 96 * 64]
    size, error = {}, {}
    for name, scheme in itertools.product(names, SCHEMES):
        alone = qlab.quantize_model(model, qlab.Recipe(weights=scheme, layers=(name,)), show=False)
        packed = next(module for module in alone.modules() if isinstance(module, Packed))
        size[name, scheme] = packed.qtensor().nbytes
        error[name, scheme] = 10 ** (-sqnr(reference, alone(batches[0])) / 10)
    mixes = [list(zip(names, mix, strict=True)) for mix in itertools.product(SCHEMES, repeat=3)]
    allowed = [mix for mix in mixes if 8 * sum(size[part] for part in mix) <= budget * sum(counts)]
    best = min(sum(error[part] for part in mix) for mix in allowed)
    assert found.error == pytest.approx(best, rel=1e-5)
    assert found.bits <= budget
    assert found.bits == 8 * found.bytes / sum(counts)
    assert found.error == pytest.approx(sum(layer.error for layer in found.layers))
    assert found.bytes == sum(size[layer.name, str(layer.scheme)] for layer in found.layers)
    assert {mix.name for mix in found.uniform} == set(SCHEMES)


def test_apply_is_the_mix_that_was_measured():
    model, x = network(64, 32, 96, 64), drawn(16, 64, seed=9)
    found = qlab.allocate_bits(model, SCHEMES, [x], budget_bytes=6000)
    small = found.apply(model)
    packed = [module for module in small.modules() if isinstance(module, Packed)]
    assert sum(module.qtensor().nbytes for module in packed) == found.bytes <= 6000
    assert [str(module.scheme) for module in packed] == [str(layer.scheme) for layer in found.layers]
    assert len({str(layer.scheme) for layer in found.layers}) > 1
    with torch.no_grad():
        assert -10 * math.log10(found.measured) == pytest.approx(sqnr(model(x), small(x)), abs=1e-6)
    assert found.measured == pytest.approx(found.error, rel=0.3)  # errors of layers nearly add up
    lines = qlab.quantization_map(small).rows
    assert [(line[0], line[2]) for line in lines] == [(layer.name, str(layer.scheme)) for layer in found.layers]
    assert {name: str(recipe.weights) for name, recipe in found.recipes.items()} == {a.name: str(a.scheme) for a in found.layers}
    assert "total" in repr(found)
    with pytest.raises(ValueError, match=r"the model has no layers \['2', '4'\]; apply the allocation to"):
        found.apply(nn.Sequential(model[0], nn.ReLU()).eval())


def test_error_of_the_layers_own_outputs():
    model, x = network(64, 32, 64), drawn(40, 64, seed=9)
    found = qlab.allocate_bits(model, ["nf4"], [x[:20], x[20:]], metric="layer")
    hidden = torch.relu(model[0](x))
    for layer, inputs, module in zip(found.layers, (x, hidden), (model[0], model[2]), strict=True):
        weight = module.weight.detach()
        back = qlab.quantize(weight.numpy(), "nf4").dequantize()
        want = inputs.double() @ weight.double().T
        found_outputs = inputs.double() @ torch.tensor(back).double().T
        assert -10 * math.log10(layer.error) == pytest.approx(sqnr(want, found_outputs), abs=1e-4)


@pytest.mark.parametrize("metric", ["output", "layer"])
def test_batches_with_nan_are_refused(metric):
    with pytest.raises(ValueError, match=r"batch 0 holds 16 NaN; clean the batches"):
        qlab.allocate_bits(network(8, 8), ["int8-channel"], [torch.full((2, 8), math.nan)], 40, metric=metric)


def test_skipped_layers_do_not_count():
    model = network(64, 32, 64)
    found = qlab.allocate_bits(model, ["int8-channel"], [drawn(4, 64)], budget=9, skip=("2",))
    assert [layer.name for layer in found.layers] == ["0"]
    assert type(found.apply(model)[2]) is nn.Linear


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 4}, r"budget=4 is less than the smallest mix, 1152 bytes or 4.5 bits per weight; raise it, or add"),
        ({"budget_bytes": 1151}, "budget_bytes=1151 is less than the smallest mix, 1152 bytes"),
        ({"budget": 0}, "budget=0 is not allowed; give average bits"),
        ({"budget": math.nan}, "budget=nan is not allowed"),
        ({"budget_bytes": 3.5}, "budget_bytes=3.5 is not allowed; give a number of bytes"),
        ({"metric": "loss"}, "metric='loss' is not known; allowed are 'output', 'layer'"),
        ({"schemes": []}, "schemes is empty"),
        ({"schemes": ["nf5"]}, "unknown scheme 'nf5'"),
        ({"batches": []}, "batches is empty"),
        ({"skip": ("*",)}, "takes no layer of this model"),
    ],
)
def test_allocate_bits_refuses(options, message):
    options = {"schemes": ["nf4"], "batches": [drawn(4, 64)]} | options
    with pytest.raises(ValueError, match=message):
        qlab.allocate_bits(network(64, 32), **options)
    with pytest.raises(TypeError, match="schemes is a single one, 'nf4'"):
        qlab.allocate_bits(network(64, 32), "nf4", [drawn(4, 64)])


# --- outliers --------------------------------------------------------------------------------------------------------
def test_outliers_of_linear_and_convolution():
    model, batches = Pictures().eval(), [7 + drawn(2, 3, 8, 8), 7 + drawn(5, 3, 8, 8, seed=1)]
    for batch in batches:
        batch[:, 2] *= 9
    first, head = qlab.outliers(model, batches)
    x = torch.cat(batches)
    assert (first.name, first.channels, head.name, head.channels) == ("first", 3, "head", 8)
    assert first.absmax == float(x.abs().max())
    assert first.kurtosis == pytest.approx(stats.kurtosis(x.numpy().reshape(-1).astype(np.float64), fisher=False), rel=1e-9)
    each = x.abs().amax((0, 2, 3))
    assert first.ratio == pytest.approx(float(each.max() / each.median()))
    assert first.top[0] == 2
    assert sorted(first.top) == [0, 1, 2]


def test_outliers_refuses():
    with pytest.raises(ValueError, match="no Linear, Conv1d or Conv2d"):
        qlab.outliers(nn.Sequential(nn.ReLU()), [drawn(2)])
    with pytest.raises(ValueError, match="layer '0' hold 2 infinities or NaN"):
        qlab.outliers(network(2, 2), [torch.tensor([[math.inf, -math.inf]])])
    with pytest.raises(ValueError, match="batches: batch 1 holds 1 NaN"):
        qlab.outliers(network(2, 2), [drawn(1, 2), torch.tensor([[math.inf, math.nan]])])
    with pytest.raises(ValueError, match="batches is empty"):
        qlab.outliers(network(2, 2), [])


# --- what nobody hopes to give ---------------------------------------------------------------------------------------
def test_a_model_that_is_one_layer():
    layer, x = nn.Linear(64, 4).eval(), drawn(32, 64)
    assert qlab.sensitivity(layer, "weight_only_int8", [x]).worst.name == ""
    mix = qlab.allocate_bits(layer, ["int8-channel", "int4-channel"], [x], budget=9)
    assert torch.equal(mix.apply(layer)(x), qlab.quantize_model(layer, qlab.Recipe("int8-channel"), show=False)(x))


def test_nothing_to_look_at():
    model = network(8, 8)
    with pytest.raises(ValueError, match="leaves all layers as they are; lower min_size"):
        qlab.sensitivity(model, "dynamic_int8", [drawn(4, 8)])
    with pytest.raises(ValueError, match="outputs hold no number"):
        qlab.allocate_bits(model, ["int8-channel", "int4-channel"], [torch.zeros(0, 8)], budget=9)
    assert qlab.outliers(model, [torch.zeros(0, 8)]) == ()


def test_a_compiled_model_is_looked_into():
    model, x = torch.compile(network(8, 8), backend="eager"), drawn(4, 8)
    with torch.no_grad():
        model(x)  # compiled code does not call hooks that come later
    assert [layer.name for layer in qlab.outliers(model, [x])] == ["_orig_mod.0"]
