"""prepare_qat and convert: what they compute, what they keep, what they refuse."""

import copy
import warnings

import numpy as np
import pytest

import qlab

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from qlab.model.layers import QuantizedConv, QuantizedLinear  # noqa: E402
from qlab.model.qat_layers import QATLayer  # noqa: E402
from qlab.model.qat_rounding import AveragedInput, LearnedWeights, RuleWeights  # noqa: E402


def static(weights: str, inputs: str, **kwargs) -> qlab.Recipe:
    return qlab.Recipe(weights, qlab.Activations(inputs, "static"), **kwargs)


def cnn(seed: int = 0) -> nn.Module:
    """With batch normalization that has seen something, and is not the identity."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 10), nn.BatchNorm1d(10),
    )  # fmt: skip
    for module in model:
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    model.train()
    for _ in range(3):
        model(images())
    return model


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 5))


def images(n: int = 16) -> torch.Tensor:
    return torch.randn(n, 1, 8, 8)


def trained(prepared: nn.Module, batches: list, rate: float = 0.01) -> nn.Module:
    optimizer = torch.optim.SGD(prepared.parameters(), rate)
    prepared.train()
    for x in batches:
        optimizer.zero_grad()
        prepared(x).square().mean().backward()
        optimizer.step()
    return prepared.eval()


# --- the same function -----------------------------------------------------------------------------------------------
WAYS = [
    ("int8-channel", "int8-asym", {}), ("int8", "int8", {}), ("int4-channel", "int4-asym", {"clip": "pact"}),
    ("int3-channel", "int3-asym", {"steps": "lsq"}), ("int2", "int2-asym", {"steps": "lsq"}),
    ("int4-channel", "int4", {"steps": "lsq", "clip": "pact"}), ("binary-channel-mean", "binary-mean", {}),
    ("binary-channel-mean", "int4-asym", {"clip": "pact"}), ("ternary-channel-mean", "uint4-asym", {}),
    ("int4-b3-asym", "e4m3", {}), ("int4-b3/f16", "int8-asym", {"gradient": "clipped"}),
]  # fmt: skip


@pytest.mark.parametrize("weights, inputs, how", WAYS)
def test_convert_is_the_prepared_model_in_eval_mode(weights, inputs, how):
    prepared = trained(qlab.prepare_qat(cnn(), static(weights, inputs), **how), [images() for _ in range(4)])
    small, x = qlab.convert(prepared, show=False), images(64)
    assert not small.training
    for i in (0, 3, 7):
        rounded = prepared[i]._rounded(prepared[i].folded()[0]).detach()
        assert torch.equal(small[i].weights(), rounded), "codes are those that were trained, to the bit"
    with torch.no_grad():
        torch.testing.assert_close(small(x), prepared(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inputs", ["int8-asym", "int8-row", None])
def test_dynamic_inputs_and_weights_alone_convert_too(inputs):
    recipe = qlab.Recipe("int4-channel", inputs)
    prepared = trained(qlab.prepare_qat(mlp(), recipe, steps="lsq"), [torch.randn(8, 12) for _ in range(3)])
    small, x = qlab.convert(prepared, show=False), torch.randn(50, 12)
    assert small[0].integer is (inputs is not None)
    with torch.no_grad():
        torch.testing.assert_close(small(x), prepared(x), rtol=1e-5, atol=1e-5)


def test_products_are_products_of_integers_and_codes_are_packed():
    prepared = trained(qlab.prepare_qat(cnn(), static("int2-channel", "int2-asym"), steps="lsq"), [images()])
    small = qlab.convert(prepared, show=False)
    assert [type(small[i]) for i in (0, 3, 7)] == [QuantizedConv, QuantizedConv, QuantizedLinear]
    assert all(small[i].integer for i in (0, 3, 7))
    assert small[7].weight.payload.numel() == 1280 // 4
    table = str(qlab.quantization_map(small))
    assert "int2-channel" in table
    assert "integer product" in table


def test_ggufs_types_are_trained_by_their_own_search():
    model = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 4))
    recipe = qlab.Recipe("q4_0", skip=("2",))
    prepared = trained(qlab.prepare_qat(model, recipe), [torch.randn(8, 32) for _ in range(3)])
    assert not torch.equal(prepared[0].weight, model[0].weight)
    small, x = qlab.convert(prepared, show=False), torch.randn(9, 32)
    with torch.no_grad():
        assert torch.equal(small(x), prepared(x))
    assert small[0].weight.payload.numel() == 8 * 18


def test_the_short_way_for_plain_weights_gives_the_same_bits():
    generator = torch.Generator().manual_seed(0)
    for name in ("int8-channel", "int2-channel", "int4", "int5-channel"):
        rounding = RuleWeights(qlab.get_scheme(name), "pass")
        assert rounding.plain
        for scale in (1e-30, 1.0, 1e30):
            weight = torch.randn(40, 30, generator=generator) * scale
            weight[3] = 0
            assert torch.equal(rounding(weight), qlab.fake_quantize(weight, name))


# --- batch normalization ---------------------------------------------------------------------------------------------
def without_rounding(prepared: nn.Module) -> nn.Module:
    for module in prepared.modules():
        if isinstance(module, QATLayer):
            module.rounding, module.inputs = nn.Identity(), None
    return prepared


def test_without_rounding_folding_changes_nothing():
    plain = cnn()
    prepared = without_rounding(qlab.prepare_qat(plain, "static_int8"))
    assert not [m for m in prepared if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    x = images(32)
    for mode in (True, True, False):
        plain.train(mode), prepared.train(mode)
        plain.zero_grad(), prepared.zero_grad()
        expected, got = plain(x), prepared(x)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        expected.square().mean().backward()
        got.square().mean().backward()
        for i, bn in ((0, 1), (3, 4), (7, 8)):
            for ours, theirs in ((prepared[i], plain[i]), (prepared[i].norm, plain[bn])):
                for name, parameter in theirs.named_parameters():
                    torch.testing.assert_close(getattr(ours, name).grad, parameter.grad, rtol=1e-3, atol=2e-5)
                for name, buffer in theirs.named_buffers():
                    torch.testing.assert_close(getattr(ours, name), buffer, rtol=1e-5, atol=1e-5)


def test_folded_weights_are_torchs():
    plain = cnn().eval()
    prepared = qlab.prepare_qat(plain, "static_int8")
    for i, bn in ((0, 1), (3, 4)):
        fused = torch.nn.utils.fusion.fuse_conv_bn_eval(plain[i], plain[bn])
        weight, bias = prepared[i].folded()
        torch.testing.assert_close(weight, fused.weight)
        torch.testing.assert_close(bias, fused.bias)


def test_statistics_are_used_and_kept_once_frozen():
    prepared = without_rounding(qlab.prepare_qat(cnn(), "static_int8", freeze_after=2)).train()
    prepared(images()), prepared(images())
    before, x = copy.deepcopy(prepared.state_dict()), images()
    in_training = prepared(x)
    assert all(torch.equal(before[key], value) for key, value in prepared.state_dict().items())
    assert torch.equal(in_training, prepared.eval()(x)), "the running statistics"


def test_norms_in_eval_mode_stay_in_it():
    plain = cnn().train()
    plain[1].eval()
    prepared = qlab.prepare_qat(plain, "static_int8")
    before = prepared[0].norm.running_mean.clone()
    prepared(images())
    assert torch.equal(prepared[0].norm.running_mean, before)
    assert not torch.equal(prepared[3].norm.running_mean, plain[4].running_mean)


def test_a_channel_whose_gamma_is_zero_trains_and_converts():
    plain = cnn()
    with torch.no_grad():
        plain[1].weight[2], plain[1].bias[2] = 0, 1
    prepared = qlab.prepare_qat(plain, static("int8-channel", "int8-asym")).train()
    prepared(images()).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in prepared.parameters())
    assert prepared[0].norm.weight.grad[2] != 0
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(qlab.convert(prepared, show=False)(x), prepared.eval()(x), rtol=1e-5, atol=1e-5)


# --- ranges ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scheme", ["int8", "int8-asym", "int4-asym"])
def test_averaged_ranges_are_torchs(scheme):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import MovingAverageMinMaxObserver

        kind = torch.per_tensor_affine if "asym" in scheme else torch.per_tensor_symmetric
        format_ = qlab.get_scheme(scheme).format
        theirs = MovingAverageMinMaxObserver(
            0.1, dtype=torch.qint8, qscheme=kind, quant_min=format_.min, quant_max=format_.max
        )
    ours = AveragedInput(qlab.Activations(scheme, "static"), 0.9, 5, "x").train()
    for i in range(8):
        x = torch.randn(100) * (i + 1) + 0.5
        ours(x)
        if i < 5:
            theirs(x)
    found = ours.static()
    torch.testing.assert_close(torch.stack([ours.lowest, ours.highest]), torch.stack([theirs.min_val, theirs.max_val]))
    if "asym" in scheme:
        scale, zero = theirs.calculate_qparams()
        torch.testing.assert_close(found.scale, scale[0])
        assert found.zero == zero[0]
    else:
        assert found.scale == pytest.approx(float(torch.maximum(-theirs.min_val, theirs.max_val)) / format_.max)
    assert ours.seen == 5


def test_ranges_are_still_in_eval_mode_and_deaf_to_infinities():
    ours = AveragedInput(qlab.Activations("int8-asym", "static"), 0.5, None, "x").train()
    ours(torch.tensor([-1.0, 3.0]))
    ours(torch.tensor([float("inf"), 0.0]))
    ours(torch.tensor([float("nan"), 0.0]))
    ours.eval()(torch.tensor([-50.0]))
    assert (float(ours.lowest), float(ours.highest), int(ours.seen)) == (-1.0, 3.0, 1)


def test_learned_steps_start_where_the_paper_says():
    model, x = mlp(), torch.randn(40, 12).abs()
    prepared = qlab.prepare_qat(model, static("int3-channel", "int3-asym"), steps="lsq").train()
    prepared(x)
    weight = model[0].weight.detach()
    np.testing.assert_allclose(prepared[0].rounding.value().detach(), 2 * weight.abs().mean(1) / 3**0.5, rtol=1e-6)
    inputs = prepared[0].inputs  # none is negative: codes -4 to 3 are 0 to 7 steps
    assert inputs.zero == -4
    assert inputs.value().item() == pytest.approx(2 * float(x.mean()) / 7**0.5)


def test_the_gradient_of_a_learned_step_is_scaled():
    weight = torch.randn(4, 9)
    ours = LearnedWeights(qlab.get_scheme("int3"), weight)
    step = ours.value().detach().clone().requires_grad_()
    ours(weight).square().sum().backward()
    factor = 1 / (36 * 3) ** 0.5
    torch._fake_quantize_learnable_per_tensor_affine(weight, step, torch.zeros(1), -4, 3, factor).square().sum().backward()
    torch.testing.assert_close(ours.change.grad, step.grad)


def test_a_step_stays_positive_and_can_come_back():
    ours = LearnedWeights(qlab.get_scheme("int3"), torch.randn(4, 9))
    with torch.no_grad():
        ours.change -= 100
    assert (ours.value() == ours.start / 1024).all()
    ours.value().sum().backward()
    assert ours.change.grad == 1


# --- as one trains ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", [{}, {"steps": "lsq"}, {"clip": "pact"}])
def test_a_state_dict_brings_everything_back(how):
    recipe = static("int4-channel", "int4-asym")
    prepared = trained(qlab.prepare_qat(cnn(), recipe, **how), [images() for _ in range(3)])
    fresh = qlab.prepare_qat(cnn(1), recipe, **how).eval()
    with pytest.raises(ValueError, match=r"layer '0' has no range .* train mode"):
        fresh(images())
    assert not [key for key in prepared.state_dict() if key not in fresh.state_dict()]
    fresh.load_state_dict(prepared.state_dict())
    x = images()
    assert torch.equal(fresh(x), prepared(x))
    assert torch.equal(copy.deepcopy(prepared)(x), prepared(x))


@pytest.mark.parametrize("how", [{}, {"steps": "lsq"}, {"clip": "pact"}])
def test_it_trains_under_autocast(how):
    prepared, x = qlab.prepare_qat(cnn(), static("int4-channel", "int4-asym"), **how).train(), images(32)
    target = torch.randn(32, 10)
    optimizer = torch.optim.Adam(prepared.parameters(), 0.01)
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16):
            out = prepared(x)
        loss = (out.float() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(p.dtype is torch.float32 and p.grad.isfinite().all() for p in prepared.parameters())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("how", [{}, {"steps": "lsq"}])
def test_linear_layers_compile_to_one_graph(how):
    prepared = qlab.prepare_qat(mlp(), static("int4-channel", "int4-asym"), freeze_after=2, **how).train()
    other = copy.deepcopy(prepared)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        x = torch.randn(8, 12)
        for model in (prepared, compiled):
            model.zero_grad()
            model(x).square().mean().backward()
        for (name, ours), theirs in zip(prepared.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(theirs.grad, ours.grad, msg=name)
    assert torch.equal(qlab.convert(compiled, show=False)(x), qlab.convert(prepared, show=False)(x))


@pytest.mark.parametrize("training", [True, False])
def test_the_given_model_is_not_changed(training):
    model = cnn().train(training)
    before, x = copy.deepcopy(model.state_dict()), images()
    prepared = qlab.prepare_qat(model, static("int4-channel", "int4-asym"), steps="lsq")
    assert all(module.training is training for module in prepared.modules())
    trained(prepared, [x])
    held = copy.deepcopy(prepared.state_dict())
    prepared.train()
    qlab.convert(prepared, show=False)(x)
    assert prepared.training
    assert model.training is training
    for now, then in ((model, before), (prepared, held)):
        assert list(now.state_dict()) == list(then)
        assert all(torch.equal(value, then[key]) for key, value in now.state_dict().items())


def test_the_same_seed_gives_the_same_bits():
    def run() -> dict:
        torch.manual_seed(3)
        prepared = qlab.prepare_qat(cnn(3), static("int3-channel", "int3-asym"), steps="lsq")
        return qlab.convert(trained(prepared, [images() for _ in range(3)]), show=False).state_dict()

    first, second = run(), run()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_layers_that_are_left_are_as_they_were():
    recipe = static("int8-channel", "int8-asym", skip=("7",))
    prepared = qlab.prepare_qat(cnn(), recipe)
    assert [type(prepared[i]) for i in (0, 7, 8)] == [QATLayer, nn.Linear, nn.BatchNorm1d]
    table = str(qlab.quantization_map(qlab.convert(trained(prepared, [images()]), show=False)))
    assert "left: not prepared" in table


# --- what is refused -------------------------------------------------------------------------------------------------
REFUSED = [
    ({"dtype": "bfloat16"}, {}, "rounds parameters to a dtype.*int8-channel"),
    ({"activations": "int8-asym"}, {}, "leaves weights as they are; give weights"),
    ({"weights": "int8-channel", "types": "Conv1d"}, {}, "takes no layer.*0: Linear"),
    ({"weights": "int8-channel", "embeddings": "int8"}, {}, "embeddings are not trained"),
    ({"weights": "int8-channel", "method": "gptq"}, {}, "method='gptq' searches.*'rtn'"),
    ({"weights": "q4_0"}, {"steps": "lsq"}, "not for weights in q4_0.*steps='absmax'"),
    ({"weights": "q4_0"}, {"gradient": "clipped"}, "GGUF.*gradient='pass'"),
    ({"weights": "int4-axis2"}, {}, r"layer '0' of shape \(24, 12\): x has 2 dimensions"),
    ({"weights": "int4-b4"}, {"steps": "lsq"}, "not for weights in int4-b4"),
    ({"weights": "int4-channel", "activations": "int4-asym"}, {"clip": "pact"}, r"has int4-asym \(dynamic\).*'static'"),
    ({"weights": "int4", "activations": qlab.Activations("e4m3", "static")}, {"steps": "lsq"}, "integers, not e4m3"),
    ({"weights": "int4"}, {"steps": "adam"}, "steps='adam' is not known.*'lsq'"),
    ({"weights": "int4"}, {"clip": True}, "clip=True is not known"),
    ({"weights": "int4"}, {"gradient": "none"}, "gradient='none' is not known"),
    ({"weights": "int4"}, {"decay": 1.0}, "decay=1.0 is not allowed"),
    ({"weights": "int4"}, {"freeze_after": 0}, "freeze_after=0 is not allowed"),
]


@pytest.mark.parametrize("recipe, how, message", REFUSED)
def test_what_cannot_be_trained_is_refused(recipe, how, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        qlab.prepare_qat(mlp(), qlab.Recipe(**recipe), **how)


def test_a_model_that_is_itself_one_layer():
    prepared, x = qlab.prepare_qat(nn.Linear(12, 5), static("int8-channel", "int8-asym")), torch.randn(4, 12)
    prepared.train()(x)
    assert torch.allclose(qlab.convert(prepared, show=False)(x), prepared.eval()(x), atol=1e-5)


def test_models_that_are_not_fit_are_refused():
    recipe, x = static("int8-channel", "int8-asym"), torch.randn(4, 12)
    prepared = qlab.prepare_qat(mlp(), recipe).train()
    with pytest.raises(ValueError, match=r"not prepared.*prepare_qat"):
        qlab.convert(mlp())
    with pytest.raises(ValueError, match="layer '0' has no range"):
        qlab.convert(prepared)
    with pytest.raises(ValueError, match="already prepared"):
        qlab.prepare_qat(prepared, recipe)
    prepared(x)
    with pytest.raises(ValueError, match="already quantized"):
        qlab.prepare_qat(qlab.convert(prepared, show=False), recipe)
    with torch.no_grad():
        prepared[2].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layer '2' of shape \(5, 24\).*NaN"):
        qlab.convert(prepared)
    tied = mlp()
    tied.append(nn.Linear(24, 5))
    tied[3].weight = tied[2].weight
    with pytest.raises(ValueError, match="share one weight"):
        qlab.prepare_qat(tied, recipe)
    with pytest.raises(ValueError, match="padding_mode='circular'"):
        qlab.prepare_qat(nn.Sequential(nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular")), recipe)
    for verb in (lambda m: qlab.prepare_qat(m, recipe), qlab.convert):
        with pytest.raises(TypeError, match=r"torch\.nn\.Module, not list"):
            verb([])


def test_a_recipe_that_leaves_everything_is_refused():
    with pytest.raises(ValueError, match="leaves all layers as they are; lower min_size"):
        qlab.prepare_qat(nn.Sequential(nn.Linear(4, 4)), "dynamic_int8")


def test_the_map_of_a_converted_model_adds_up():
    model = cnn()
    prepared = trained(qlab.prepare_qat(model, static("int4-channel", "int8-asym", skip=("linear",))), [images()])
    small = qlab.convert(prepared, show=False)
    rows = qlab.quantization_map(small).rows
    assert sum(row[6] for row in rows) == sum(
        t.nbytes for name, t in small.state_dict().items() if not name.endswith("about")
    )
    assert sum(row[5] for row in rows) == sum(t.nbytes for t in model.state_dict().values())
