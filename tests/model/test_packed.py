"""What packed buffers go through: another dtype, state dicts of other weights."""

import pytest
import torch
from networks import decibels, mlp, recipe, words

import qlab


@pytest.mark.parametrize("name", ["dynamic_int8", "static_int8", "static_int16x8", "weight_only_nf4", "fp8_dynamic"])
@pytest.mark.parametrize("dtype, least", [(torch.float16, 40), (torch.bfloat16, 27), (torch.float64, 100)])
def test_another_dtype_is_one_of_outputs_not_of_scales(name, dtype, least):
    x = torch.randn(8, 64)
    quantized = qlab.quantize_model(mlp(), recipe(name), [x], show=False)
    scales = {key: t for key, t in quantized.state_dict().items() if "scale" in key or "static" in key}
    before = quantized(x)
    found = quantized.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    assert decibels(before, found) > least
    assert all(torch.equal(t, quantized.state_dict()[key]) and t.dtype == torch.float32 for key, t in scales.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tables_follow_the_dtype_of_their_model(dtype):
    model = qlab.quantize_model(words(), qlab.Recipe("nf4_dq", types=("Linear", "Embedding")), show=False).to(dtype)
    assert model(torch.tensor([1, 2])).dtype == dtype


@pytest.mark.parametrize("assign", [False, True])
def test_a_fitted_codebook_comes_with_the_state_dict(assign):
    x = torch.randn(8, 64)
    first, second = (qlab.quantize_model(mlp(seed), qlab.Recipe("kmeans4"), show=False) for seed in (0, 1))
    second.load_state_dict(first.state_dict(), assign=assign)
    assert torch.equal(second(x), first(x))
    third = qlab.quantize_model(mlp(2), qlab.Recipe("kmeans4"), show=False)
    third.load_state_dict(second.state_dict())
    assert torch.equal(third(x), first(x))


def test_a_state_of_a_model_in_another_dtype():
    first = qlab.quantize_model(mlp().bfloat16(), "weight_only_nf4", show=False)
    second = qlab.quantize_model(mlp(1), "weight_only_nf4", show=False)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second[0].weight.payload, first[0].weight.payload)
