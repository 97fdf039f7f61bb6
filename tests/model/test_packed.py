"""What packed buffers go through: another dtype, state dicts of other weights."""

import pytest
import torch
from networks import decibels, mlp, recipe, words

import qlab
from qlab.model.layers import QuantizedLinear
from qlab.model.packed import Packed

SCHEMES = [name for name in qlab.SCHEMES if name not in ("q8_k",)]


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


@pytest.mark.parametrize("scheme", [*SCHEMES, "int4-asym", "nf4-b128", "int4-b32-asym/f16", "nf4-b96", "int3-channel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_of_rows_are_the_whole(scheme, dtype, monkeypatch):
    monkeypatch.setattr("qlab.model.packed._PIECE", 5 * 256)
    packed = Packed(qlab.quantize(torch.randn(23, 256), scheme))
    pieces = list(packed.row_pieces(dtype))
    assert [len(piece) for piece in pieces] == ([5, 5, 5, 5, 3] if packed.by_row else [23])
    assert torch.equal(torch.cat(pieces), packed.dequantize(dtype))


def test_which_matrices_are_read_by_rows():
    def by_row(scheme, width):
        return Packed(qlab.quantize(torch.randn(6, width), scheme)).by_row

    assert all(by_row(scheme, 64) for scheme in ("nf4", "int4-b32/f16", "int8", "int8-channel", "q4_0"))
    assert not by_row("nf4", 96)  # a block runs over two rows
    assert not by_row("int3-channel", 65)  # a byte does
    assert not by_row("int8-axis1", 64)


@pytest.mark.parametrize("scheme", ["int8-channel", "nf4_dq", "q4_0"])
def test_products_with_pieces_of_rows(scheme, monkeypatch):
    layer = QuantizedLinear(qlab.quantize(torch.randn(50, 64), scheme), torch.randn(50))
    x = torch.randn(3, 7, 64, requires_grad=True)

    def results():
        out = layer(x)
        (gradient,) = torch.autograd.grad(out.square().sum(), x)
        return out, gradient

    whole = results()
    monkeypatch.setattr("qlab.model.packed._PIECE", 8 * 64)
    assert len(list(layer.weight.row_pieces(torch.float32))) == 7
    for found, wanted in zip(results(), whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.detach().abs().max()))
