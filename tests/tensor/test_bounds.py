"""What bits can buy at best: against published tables and against k-means on samples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qlab.tensor.bounds import DISTRIBUTIONS, decibels, fit_distribution, lloyd_max_error, rate_distortion_error

# Max, "Quantizing for minimum distortion", 1960; Adams and Giesler, "Quantizing characteristics for signals having
# Laplacian amplitude probability density function", 1978.
PUBLISHED = {"normal": (0.3634, 0.1175, 0.03454, 0.009497, 0.002499), "laplace": (0.5, 0.1762, 0.0545, 0.0154)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_errors(name):
    for bits, error in enumerate(PUBLISHED[name], 1):
        assert lloyd_max_error(name, bits) == pytest.approx(error, rel=3e-3)


def samples(name: str, n: int) -> np.ndarray:
    """Quantiles, evenly spaced in probability, of unit variance."""
    p = (np.arange(n) + 0.5) / n
    if name == "uniform":
        return (p - 0.5) * math.sqrt(12)
    if name == "laplace":
        return np.where(p < 0.5, np.log(2 * p), -np.log(2 - 2 * p)) / math.sqrt(2)
    from statistics import NormalDist

    return np.array([NormalDist().inv_cdf(float(q)) for q in p])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_no_fixed_point_of_lloyd_is_better(name, bits):
    x = samples(name, 100_000)
    levels = np.quantile(x, (np.arange(2**bits) + 0.5) / 2**bits)
    for _ in range(500):  # Lloyd's iteration, from scratch
        cell = np.searchsorted((levels[1:] + levels[:-1]) / 2, x)
        before, levels = levels, np.bincount(cell, x) / np.bincount(cell)
        if np.allclose(before, levels, rtol=0, atol=1e-6):
            break
    error = np.mean((x - levels[cell]) ** 2) / np.mean(x**2)
    assert lloyd_max_error(name, bits) == pytest.approx(error, rel=5e-3)


@pytest.mark.parametrize("name, constant", [("normal", math.sqrt(3) * math.pi / 2), ("laplace", 4.5), ("uniform", 1.0)])
def test_many_bits_approach_panter_and_dite(name, constant):
    ratios = [lloyd_max_error(name, bits) * 4**bits / constant for bits in range(1, 17)]
    assert ratios == sorted(ratios)
    assert ratios[-1] == pytest.approx(1, abs=1e-4)
    assert ratios[7] == pytest.approx(1, abs=0.01)


def test_bound_from_the_entropy():
    entropies = {"normal": math.log2(2 * math.pi * math.e) / 2, "laplace": math.log2(math.sqrt(2) * math.e)}
    entropies["uniform"] = math.log2(math.sqrt(12))
    for name, entropy in entropies.items():
        expected = 2 ** (2 * (entropy - 2.5)) / (2 * math.pi * math.e)
        assert rate_distortion_error(name, 2.5) == pytest.approx(expected, rel=1e-12)
        assert all(rate_distortion_error(name, bits) < lloyd_max_error(name, bits) for bits in range(1, 17))
        assert decibels(rate_distortion_error(name, 3), rate_distortion_error(name, 4)) == pytest.approx(6.0206, abs=1e-4)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("scale, shift", [(1, 0), (1e-200, 0), (1e200, 0), (3, 100)])
def test_fit(name, scale, shift):
    rng = np.random.default_rng(3)
    draw = {"normal": rng.standard_normal, "laplace": lambda n: rng.laplace(size=n), "uniform": rng.random}[name]
    x = draw(300_003) * scale + shift
    fit = fit_distribution(x.reshape(3, -1))
    assert fit.distribution == name
    assert fit.variance == pytest.approx(np.var(x * fit.unit), rel=1e-9)
    assert fit.energy == pytest.approx(np.mean((x * fit.unit) ** 2), rel=1e-12)


def test_refusals():
    with pytest.raises(ValueError, match="'normal', 'laplace', 'uniform'"):
        lloyd_max_error("cauchy", 2)
    with pytest.raises(ValueError, match="1 to 16 bits"):
        lloyd_max_error("normal", 17)
    with pytest.raises(ValueError, match="bits=-1"):
        rate_distortion_error("normal", -1)
    with pytest.raises(ValueError, match="empty"):
        fit_distribution(np.empty(0))
    with pytest.raises(ValueError, match=r"2 infinities or NaN \(the first at index \(0, 1\)\)"):
        fit_distribution(np.float32([[1, np.nan], [np.inf, 2]]))
