"""Hadamard matrices against Sylvester's and their defining property; the function is preserved; incoherence falls."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qlab
from qlab.model.methods.rotation import Rotation, block_of, hadamard, hadamard_matrix, incoherence, rotate

SIZES = [1, 2, 4, 12, 20, 24, 40, 48, 64, 80, 96, 128, 160, 384, 768]


@pytest.mark.parametrize("n", SIZES)
def test_entries_are_alike_and_rows_orthogonal(n):
    matrix = hadamard_matrix(n)
    assert block_of(n) == n
    torch.testing.assert_close(matrix.abs(), torch.full((n, n), n**-0.5, dtype=torch.float64))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [2, 8, 64])
def test_powers_of_two_are_sylvesters(n):
    expected = torch.ones(1, 1, dtype=torch.float64)
    while len(expected) < n:
        expected = torch.kron(torch.tensor([[1.0, 1], [1, -1]], dtype=torch.float64), expected)
    torch.testing.assert_close(hadamard_matrix(n), expected / n**0.5)


@pytest.mark.parametrize("n, block", [(100, 20), (56, 8), (7, 1), (36, 12), (60, 20), (120, 40), (72, 24)])
def test_other_sizes_rotate_block_by_block(n, block):
    assert block_of(n) == block
    matrix = hadamard_matrix(n)
    torch.testing.assert_close(matrix, torch.block_diag(*[hadamard_matrix(block)] * (n // block)))


@pytest.mark.parametrize("n", [*SIZES, 100, 56, 7])
def test_the_function_is_preserved_and_the_inverse_is_one(n):
    torch.manual_seed(n)
    linear, x = nn.Linear(n, 9), torch.randn(2, 5, n)
    weight, turn = linear.weight.clone(), Rotation(n, seed=3)
    expected = linear(x).detach()
    found = rotate(linear, turn)(turn(x)).detach()
    assert (found - expected).abs().max() <= 1e-5 * max(1, float(expected.abs().max()))
    torch.testing.assert_close(turn.inverse(turn(x)), x, rtol=1e-5, atol=1e-5)
    assert torch.equal(linear.weight, weight)


def test_incoherence_falls_and_so_does_the_error():
    torch.manual_seed(0)
    x, weight = torch.randn(300, 384), torch.randn(64, 384)
    x[:, [5, 77]] *= 60
    weight[torch.rand(64, 384) < 0.002] *= 40
    turn = Rotation(384)
    assert incoherence(weight) > 15 > 6 > incoherence(turn(weight))
    assert incoherence(x) > 15 > 9 > incoherence(turn(x))

    def error(inputs, matrix):
        rounded = [torch.from_numpy(qlab.fake_quantize(part.numpy(), "int4-row")) for part in (inputs, matrix)]
        return float((rounded[0] @ rounded[1].T - x @ weight.T).square().mean())

    assert error(turn(x), turn(weight)) < 0.3 * error(x, weight)


def test_signs_follow_the_seed():
    assert torch.equal(Rotation(64, seed=1).signs, Rotation(64, seed=1).signs)
    assert not torch.equal(Rotation(64, seed=1).signs, Rotation(64, seed=2).signs)
    state = torch.get_rng_state()
    Rotation(64)(torch.ones(64))
    assert torch.equal(torch.get_rng_state(), state)


def test_refusals():
    with pytest.raises(ValueError, match="64 channels"):
        Rotation(64)(torch.ones(3, 32))
    with pytest.raises(ValueError, match="channels=0"):
        Rotation(0)
    with pytest.raises(TypeError, match="int64"):
        hadamard(torch.ones(4, dtype=torch.int64))
