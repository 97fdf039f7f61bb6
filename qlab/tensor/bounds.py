"""What bits can buy at best: which distribution an array follows, its Lloyd-Max quantizer, its rate-distortion bound.

    normal    density exp(-t**2 / 2)         Lloyd-Max by Newton's method        D(R) = 2**(-2 R)
    laplace   density exp(-sqrt(2) |t|)      Lloyd-Max cell by cell              D(R) >= (e / pi) 2**(-2 R)
    uniform   density 1 on an interval       Lloyd-Max: steps of equal width     D(R) >= (6 / (pi e)) 2**(-2 R)

All errors here are mean squares in units of the variance. An error report measures itself against them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from qlab._check import one_of
from qlab._pieces import PIECE, Array
from qlab.tensor.codebooks import lloyd_max

__all__ = ["DISTRIBUTIONS", "Fit", "decibels", "fit_distribution", "lloyd_max_error", "rate_distortion_error"]

DISTRIBUTIONS = ("normal", "laplace", "uniform")
_AT_ZERO_BITS = {"normal": 1.0, "laplace": math.e / math.pi, "uniform": 6 / (math.pi * math.e)}


@dataclass(frozen=True)
class Fit:
    """An array in a few numbers.

    Attributes
    ----------
    distribution : {"normal", "laplace", "uniform"}
        The one under which the array is likeliest.
    energy, variance : float
        Mean square, and mean square about the mean, of the array times `unit`.
    unit : float
        A power of two that brings the largest magnitude to about 1, so that no square overflows or vanishes.
    """

    distribution: str
    energy: float
    variance: float
    unit: float


def fit_distribution(array: Array) -> Fit:
    """Return what an array looks like.

    Parameters
    ----------
    array : array of real numbers of any shape
        Finite.

    Raises
    ------
    ValueError
        If the array is empty, or holds infinities or NaN.

    Notes
    -----
    Of each family the member with the greatest likelihood is taken: mean and variance of the normal distribution; mean
    and mean absolute deviation of Laplace's (its median would be a little likelier); ends of the uniform one. Sums are
    of float64: a tolerance of 1e-12.

    Examples
    --------
    >>> import numpy as np
    >>> from qlab.tensor.bounds import fit_distribution
    >>> fit_distribution(np.random.default_rng(0).laplace(size=1000)).distribution
    'laplace'
    """
    if not array.size:
        raise ValueError("x is empty; a scale needs at least one value")
    flat = np.ascontiguousarray(array).reshape(-1)
    ends = [(float(piece.min()), float(piece.max())) for piece in _pieces(flat)]
    if not all(math.isfinite(low) and math.isfinite(high) for low, high in ends):
        wrong = ~np.isfinite(flat.astype(np.float64))
        where = tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), array.shape))
        raise ValueError(
            f"x holds {int(wrong.sum())} infinities or NaN (the first at index {where}), which have no scale; "
            "clean it first, as with numpy.nan_to_num"
        )
    lowest, highest = min(low for low, _ in ends), max(high for _, high in ends)
    unit = math.ldexp(1.0, min(-math.frexp(max(highest, -lowest))[1], 1023))
    mean = math.fsum(float((piece * unit).sum()) for piece in _pieces(flat)) / flat.size
    sums = []  # of squares, of squares about the mean, of magnitudes about the mean: (pieces, 3)
    for piece in _pieces(flat):
        piece *= unit
        deviation = piece - mean
        sums.append((float(piece @ piece), float(deviation @ deviation), float(np.abs(deviation).sum())))
    energy, variance, spread = (math.fsum(column) / flat.size for column in zip(*sums, strict=True))
    if lowest == highest:
        return Fit("normal", energy, 0.0, unit)
    surprise = {  # minus the mean log-likelihood
        "normal": math.log(2 * math.pi * math.e * variance) / 2,
        "laplace": math.log(2 * math.e * spread),
        "uniform": math.log(highest * unit - lowest * unit),
    }
    return Fit(min(surprise, key=lambda name: surprise[name]), energy, variance, unit)


def _pieces(flat: Array) -> Iterator[Array]:
    return (flat[start : start + PIECE].astype(np.float64) for start in range(0, flat.size, PIECE))


@lru_cache(maxsize=64)
def lloyd_max_error(distribution: str, bits: int) -> float:
    """Return the mean squared error of the best ``2**bits`` values for a distribution, in units of its variance.

    Parameters
    ----------
    distribution : {"normal", "laplace", "uniform"}
    bits : int
        1 to 16.

    Raises
    ------
    ValueError
        If `distribution` or `bits` is none of these.

    Notes
    -----
    Lloyd, 1957 (1982); Max, 1960. Laplace's tails have no memory, which gives its cells one by one from the outermost
    (Sullivan, "Efficient scalar quantization of exponential and Laplacian random variables", 1996). Tolerance: 1e-6 of the
    error; for the normal distribution and more than 8 bits that of Panter and Dite's asymptote (1951), 0.4 % and less.

    Examples
    --------
    >>> from qlab.tensor.bounds import lloyd_max_error
    >>> round(lloyd_max_error("normal", 2), 6), lloyd_max_error("laplace", 1), lloyd_max_error("uniform", 1)
    (0.117482, 0.5, 0.25)
    """
    one_of("distribution", distribution, DISTRIBUTIONS)
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or not 1 <= bits <= 16:
        raise ValueError(f"bits={bits!r} is not allowed; codes have 1 to 16 bits")
    if distribution == "uniform":
        return math.ldexp(1.0, -2 * bits)
    if distribution == "laplace":
        return _exponential_error(1 << (bits - 1)) / 2
    return _normal_error(bits) if bits <= 8 else math.ldexp(math.sqrt(3) * math.pi / 2, -2 * bits)


def _normal_error(bits: int) -> float:
    levels = lloyd_max("normal", bits).table
    middles = [(low + high) / 2 for low, high in pairwise(levels)]
    below = [0.0, *(math.erfc(-t / math.sqrt(2)) / 2 for t in middles), 1.0]
    density = [0.0, *(math.exp(-t * t / 2) / math.sqrt(2 * math.pi) for t in middles), 0.0]
    parts = [  # of a cell: c**2 times its probability, less 2 c times its first moment
        c * c * (below[i + 1] - below[i]) - 2 * c * (density[i] - density[i + 1]) for i, c in enumerate(levels)
    ]
    return 1 + math.fsum(parts)


def _exponential_error(count: int) -> float:
    """The error of the best `count` values for the density exp(-t), t > 0: by the cells, from the outermost inwards.

    What lies beyond an edge looks like the whole: a cell's width w follows from the distance of the next value to the
    edge between them, which is also its own, w - 1 + w / (exp(w) - 1).
    """
    distance, error = 1.0, 1.0  # of the last cell, which has no end: mean and variance
    for _ in range(count - 1):
        width = 2 * distance
        for _ in range(50):  # Newton's method from above: convex
            grown = math.expm1(width)
            excess = width - 1 + width / grown - distance
            change = excess / (1 + 1 / grown - width * (grown + 1) / grown**2)
            width -= change
            if abs(change) < 1e-14 * width:
                break
        grown = math.expm1(width)
        inside = 1 - (width / (2 * math.sinh(width / 2))) ** 2  # the variance of a cell
        error = (1 - math.exp(-width)) * inside + math.exp(-width) * error
        distance = 1 - width / grown
    return error


def rate_distortion_error(distribution: str, bits: float) -> float:
    """Return the least mean squared error with which any code, of whatever length, can describe a distribution.

    Parameters
    ----------
    distribution : {"normal", "laplace", "uniform"}
    bits : float
        Bits for each value, not negative.

    Returns
    -------
    error : float
        In units of the variance. For the normal distribution Shannon's rate-distortion function; for the others his lower
        bound to it, which high rates approach.

    Raises
    ------
    ValueError
        If `distribution` or `bits` is none of these.

    Notes
    -----
    Shannon, 1959; Cover and Thomas, "Elements of information theory", chapter 10: ``2**(2 (h - bits)) / (2 pi e)`` for the
    differential entropy h in bits. Each bit is worth 6.02 dB. Exact to rounding.

    Examples
    --------
    >>> from qlab.tensor.bounds import rate_distortion_error
    >>> rate_distortion_error("normal", 4)
    0.00390625
    """
    one_of("distribution", distribution, DISTRIBUTIONS)
    if not bits >= 0:
        raise ValueError(f"bits={bits!r} is not allowed; give bits for each value, 0 or more")
    return _AT_ZERO_BITS[distribution] * math.exp2(-2 * bits)


def decibels(signal: float, noise: float) -> float:
    """Return a ratio of energies in dB: infinite without noise.

    Examples
    --------
    >>> from qlab.tensor.bounds import decibels
    >>> decibels(100.0, 1.0), decibels(0.0, 0.0)
    (20.0, inf)
    """
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
