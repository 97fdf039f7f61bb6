"""Codebooks: formats that are lists of values, each derived here from the idea behind it.

A codebook is a `TableFormat`. Some follow from a distribution: `normal_float` takes quantiles of the normal one,
`abnormal_float` the best values for what a block scaled by its absmax holds, `lloyd_max` the best ones for an array or
for the normal distribution. Others are designs: `log_codes` holds powers of two, `dynamic_map` and `bitsandbytes_fp4`
are those of bitsandbytes. Book: part III.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from qlab._pieces import Array
from qlab.number.list_format import TableFormat

__all__ = [
    "abnormal_float", "binary", "bitsandbytes_fp4", "bitsandbytes_nf4", "dynamic_map", "lloyd_max", "log_codes",
    "normal_float", "ternary",
]  # fmt: skip


# --- from a distribution -----------------------------------------------------------------------------------------------
def normal_float(bits: int = 4) -> TableFormat:
    """Return NormalFloat: quantiles of the normal distribution, evenly spaced in probability, scaled to end at -1 and 1.

    Parameters
    ----------
    bits : int
        2 to 8. There is a zero, one value fewer below it than above.

    Raises
    ------
    ValueError
        If `bits` is none of these.

    Notes
    -----
    Dettmers et al., "QLoRA", 2023, section 3, which has 4 bits; exact for those: the table that bitsandbytes publishes.
    The outermost probability is the mean of 1 - 1/(2 n) over n = 2**bits and n = 2**bits - 1 values, to seven digits.

    Examples
    --------
    >>> from qlab.tensor.codebooks import normal_float
    >>> normal_float(2).table
    (-1.0, 0.0, 0.43581822514533997, 1.0)
    """
    from statistics import NormalDist

    half = 1 << (_checked_bits(bits, 2, 8) - 1)
    outermost = round(1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2, 7)
    quantile = NormalDist().inv_cdf
    above = [quantile(float(p)) for p in _linspace(outermost, 0.5, half + 1)[:-1]]
    below = [-quantile(float(p)) for p in _linspace(outermost, 0.5, half)[:-1]]
    return TableFormat(f"nf{bits}", np.array([*below, 0, *above[::-1]], np.float32) / np.float32(above[0]))


def abnormal_float(block: int = 64) -> TableFormat:
    """Return AbnormalFloat: 16 values for blocks of normals over their absmax, with little expected absolute error.

    Parameters
    ----------
    block : int
        Elements that share an absmax, 3 to 65536.

    Raises
    ------
    ValueError
        If `block` is none of these.

    Notes
    -----
    Yoshida, "NF4 Isn't Information Theoretically Optimal (and that's Good)", 2023: each value is the median of what is
    nearest to it, in a code for the positive numbers whose eighth value is 1 and one for the negative numbers whose
    seventh is -1; then zero is added. (So the cells next to it are wider than they end up, and the error is not quite
    the least with a zero.) Tolerance: 1e-6; the published values for blocks of 64 are met in all their digits.

    Examples
    --------
    >>> from qlab.tensor.codebooks import abnormal_float
    >>> [round(value, 4) for value in abnormal_float(64).table[7:11]]
    [0.0, 0.0427, 0.1293, 0.2196]
    """
    if isinstance(block, bool) or not isinstance(block, (int, np.integer)) or not 3 <= block <= 65536:
        raise ValueError(f"block={block!r} is not allowed; the elements of a block are 3 to 65536")
    name = "af4" if block == 64 else f"af4_b{block}"
    below, above = _medians(int(block), 6), _medians(int(block), 7)
    return TableFormat(name, np.array([-1, *-below[::-1], 0, *above, 1], np.float32))


def _medians(block: int, count: int) -> Array:
    """Return `count` values between 0 and 1, each the median of its cell: of what is positive and nearest to it, not to 1.

    For a normal z and the largest magnitude m of its block, z/m lies between 0 and x with the probability (of those
    that are not largest themselves) E[erf(x m) / erf(m)] / 2, with m in units of sqrt(2); m has the distribution erf(m)**block.
    """
    m = np.linspace(0, 9, 601)[1:]  # the trapezoid rule: the integrands and their derivatives vanish at both ends
    weights = np.exp(-m * m) * _erf(m) ** (block - 2)
    weights /= (weights * _erf(m)).sum()  # (m,)

    def probability(x: Array) -> Array:
        return np.asarray(_erf(np.multiply.outer(x, m)) @ weights)

    def density(x: Array) -> Array:
        return np.asarray(np.exp(-(np.multiply.outer(x, m) ** 2)) @ (weights * m) * 2 / math.sqrt(math.pi))

    def equations(x: Array) -> tuple[Array, Array, Array, Array]:
        middles = np.concatenate([[0.0], (x[1:] + x[:-1]) / 2, [(x[-1] + 1) / 2]])
        p, d = probability(middles), density(middles) / 4
        d[0] = 0.0  # the first cell begins at zero, wherever its value lies
        return probability(x) - (p[1:] + p[:-1]) / 2, density(x) - d[1:] - d[:-1], -d[1:-1], -d[1:-1]

    grid = np.linspace(0, 1, 257)
    crowding = np.sqrt(density(grid)).cumsum()  # the best density of values, for many of them
    start = np.interp(np.arange(1, count + 1) / (count + 1), (crowding - crowding[0]) / (crowding[-1] - crowding[0]), grid)
    return _newton(start, equations)


def lloyd_max(x: Any, bits: int) -> TableFormat:
    """Return the codebook with the least mean squared error for an array, or for the standard normal distribution.

    Parameters
    ----------
    x : array_like of any shape, or "normal"
        Finite numbers, at least two of them distinct.
    bits : int
        1 to 8.

    Returns
    -------
    codebook : TableFormat
        ``2**bits`` ascending values, each the mean of what is nearest to it; float32 unless `x` is float64 or wide
        integers. An array of fewer distinct numbers gives just these, the last one repeated.

    Raises
    ------
    ValueError
        If `x` holds NaN or infinities or fewer than two distinct numbers, or `bits` is not allowed.
    TypeError
        If `x` is not made of real numbers.

    Notes
    -----
    Lloyd, "Least squares quantization in PCM", 1957 (1982); Max, "Quantizing for minimum distortion", 1960. For an
    array this is k-means in one dimension: from levels spaced as suits the density, until no element changes its cell,
    always with the same result. It is the best one nearby, which is not always the best of all. Tolerance: 1e-6 of the
    largest value.

    Examples
    --------
    >>> from qlab.tensor.codebooks import lloyd_max
    >>> [round(value, 4) for value in lloyd_max("normal", 2).table]
    [-1.5104, -0.4528, 0.4528, 1.5104]
    >>> lloyd_max([0, 1, 1, 1, 7, 9], 1).table
    (0.75, 8.0)
    """
    count = 1 << _checked_bits(bits, 1, 8)
    if isinstance(x, str):
        if x != "normal":
            raise ValueError(f"x={x!r} is not allowed; give an array of numbers, or 'normal'")
        half = _normal_centroids(count // 2)
        return TableFormat(f"lloyd_max_normal{bits}", np.concatenate([-half[::-1], half]).astype(np.float32))
    array = np.asarray(x)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"x is an array of {array.dtype}; give real numbers, or 'normal'")
    wide = array.dtype.itemsize > (4 if array.dtype.kind == "f" else 2)
    values, counts = np.unique(array.astype(np.float64), return_counts=True)
    if len(values) < 2 or not np.isfinite(values[[0, -1]]).all():
        raise ValueError(
            f"x holds {len(values)} distinct numbers, the largest {values[-1:]}; a codebook needs finite ones, "
            "and at least two distinct: clean x first, as with numpy.nan_to_num"
        )
    levels = _means(values, counts, count) if len(values) > count else np.resize(values, count)
    levels[len(values) :] = values[-1]
    return TableFormat(f"kmeans{bits}", levels if wide else levels.astype(np.float32))


def _means(values: Array, counts: Array, k: int) -> Array:
    """Return k levels, each the mean of its cell, for ascending distinct values that occur so many times."""
    number = np.concatenate([[0], counts.cumsum()])  # of elements below a place
    total = np.concatenate([[0.0], (values * counts).cumsum()])  # their sum
    crowding = np.cbrt(counts[1:] * np.diff(values) ** 2).cumsum()  # the cube root of the density: best for many levels
    levels: Array = np.interp((2 * np.arange(k) + 1) / (2 * k) * crowding[-1], crowding, values[1:])
    places = np.empty(0, np.intp)
    while True:  # the error falls with each change, so that no partition comes twice
        middles = (levels[1:] + levels[:-1]) / 2
        before, places = places, np.searchsorted(values, middles, side="right")
        if np.array_equal(before, places):
            return levels
        ends = np.concatenate([[0], places, [len(values)]])
        inside, sums = np.diff(number[ends]), np.diff(total[ends])
        levels = np.asarray(np.where(inside > 0, sums / np.maximum(inside, 1), levels))


def _normal_centroids(count: int) -> Array:
    """Return the positive half of the Lloyd-Max values of the standard normal distribution."""
    from statistics import NormalDist

    def equations(x: Array) -> tuple[Array, Array, Array, Array]:
        ends = np.concatenate([[0.0], (x[1:] + x[:-1]) / 2, [40.0]])  # of the cells, (count + 1,)
        density = np.exp(-ends * ends / 2) / math.sqrt(2 * math.pi)
        beyond = _erfc(ends / math.sqrt(2)) / 2
        probability = beyond[:-1] - beyond[1:]
        mean = (density[:-1] - density[1:]) / probability
        by_lower = density[:-1] * (mean - ends[:-1]) / probability / 2  # how the mean follows its lower neighbour
        by_upper = density[1:] * (ends[1:] - mean) / probability / 2
        by_lower[0] = 0.0  # whose cell ends at zero, wherever it lies
        return x - mean, 1 - by_lower - by_upper, -by_lower[1:], -by_upper[:-1]

    quantile = NormalDist(sigma=math.sqrt(3)).inv_cdf  # the cube root of the density: the best for many values
    start = np.array([quantile(0.5 + (j + 0.5) / (2 * count)) for j in range(count)])
    return _newton(start, equations)


# --- designs -----------------------------------------------------------------------------------------------------------
def ternary() -> TableFormat:
    """Return -1, 0 and 1: codes 0, 1 and 2.

    Examples
    --------
    >>> from qlab.tensor.codebooks import ternary
    >>> ternary().table
    (-1.0, 0.0, 1.0)
    """
    return TableFormat("ternary", (-1, 0, 1))


def binary() -> TableFormat:
    """Return -1 and 1: codes 0 and 1; zero goes to -1.

    Examples
    --------
    >>> from qlab.tensor.codebooks import binary
    >>> binary().bits
    1
    """
    return TableFormat("binary", (-1, 1))


def log_codes(bits: int = 4) -> TableFormat:
    """Return zero and the powers of two from 1 downwards, with a sign: multiplying by one is a shift.

    Parameters
    ----------
    bits : int
        2 to 8: a sign bit, and a magnitude of which 0 is zero and k is ``2**(k - k_max)``. Minus zero is not used.

    Raises
    ------
    ValueError
        If `bits` is none of these.

    Notes
    -----
    Exact. Miyashita et al., "Convolutional neural networks using logarithmic data representation", 2016. There the
    logarithm is rounded; here, as everywhere, a number goes to the nearest value.

    Examples
    --------
    >>> from qlab.tensor.codebooks import log_codes
    >>> log_codes(3).table
    (0.0, 0.25, 0.5, 1.0, -0.0, -0.25, -0.5, -1.0)
    """
    top = (1 << (_checked_bits(bits, 2, 8) - 1)) - 1
    magnitudes = [0.0, *(math.ldexp(1.0, k - top) for k in range(1, top + 1))]
    return TableFormat(f"log{bits}", [*magnitudes, *(-value for value in magnitudes)])


def bitsandbytes_nf4() -> TableFormat:
    """Return NF4 with the boundaries of bitsandbytes: float32 midpoints, which belong to the lower value.

    Notes
    -----
    Exact: on [-1, 1] the codes are those of bitsandbytes, on its CPU and (the literals of its kernel are the same
    float32) CUDA paths. The format `nf4` has the true midpoints instead, ties to the even code.

    Examples
    --------
    >>> from qlab.tensor.codebooks import bitsandbytes_nf4
    >>> bitsandbytes_nf4().bits
    4
    """
    return _as_bitsandbytes("nf4_bnb", np.array(normal_float(4).table, np.float32))


FP4_SECOND_ZERO = 8
"""The code of the FP4 of bitsandbytes that stands for zero once more."""


def bitsandbytes_fp4() -> TableFormat:
    """Return the FP4 of bitsandbytes: sign, and 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4 in the order of its codes.

    Notes
    -----
    Exact: on [-1, 1] the values are those that bitsandbytes stores, and so are the codes but for one: its table has a
    second zero, code 8, to which its CPU path sends what lies above 0 up to the first boundary (and its CUDA path
    what lies below). `encode` gives every zero the code 0; `quantize` does as the CPU path does. Its CPU path decides
    at float32 midpoints, which belong to the lower value.

    Examples
    --------
    >>> import qlab
    >>> from qlab.tensor.codebooks import bitsandbytes_fp4
    >>> qlab.encode([1, 0.5, 0.17, -1], bitsandbytes_fp4())
    array([ 3,  5,  6, 11], dtype=uint8)
    """
    magnitudes = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32) / np.float32(12)
    return _as_bitsandbytes("fp4_bnb", np.concatenate([magnitudes, 0 - magnitudes]))  # no minus zero


def _as_bitsandbytes(name: str, table: Array) -> TableFormat:
    """A number goes to the upper of two values if it is above their midpoint in float32."""
    values = np.unique(table)
    midpoints = (values[1:] + values[:-1]) / np.float32(2)
    boundaries = [(float(midpoint), 2.0**-1000) for midpoint in midpoints]  # a little more: ties go down
    return TableFormat(name, table, boundaries=boundaries)


def dynamic_map(*, signed: bool = True) -> TableFormat:
    """Return the 8-bit dynamic map of bitsandbytes: seven decades, each with twice the values of the one below.

    Parameters
    ----------
    signed : bool
        Whether half of the values are negative (127 of them; 0 and 1 take the two remaining codes).

    Notes
    -----
    Exact: bit for bit its ``create_dynamic_map``. Dettmers, "8-bit approximations for parallelism in deep learning",
    2015. Decade i of 0 to 6 holds the midpoints of an even division of 0.1 to 1, times ``10**(i - 6)``.

    Examples
    --------
    >>> from qlab.tensor.codebooks import dynamic_map
    >>> dynamic_map().table[126:130]
    (-5.500000384017767e-07, 0.0, 5.500000384017767e-07, 3.250000190746505e-06)
    """
    decades = []
    for i in range(7):
        edges = _linspace(0.1, 1.0, (1 << (i + (not signed))) + 1)
        decades.append(np.float32(10.0 ** (i - 6)) * ((edges[:-1] + edges[1:]) / np.float32(2)))
    positive = np.concatenate(decades)
    negative = -positive if signed else positive[:0]
    ends = np.array([0, 1], np.float32)
    return TableFormat("dynamic8" if signed else "udynamic8", np.sort(np.concatenate([negative, ends, positive])))


@lru_cache(maxsize=1)
def dynamic_cells() -> Array:
    """Return the code of each of the 65,536 cells that bitsandbytes' CPU path divides -1 to 1 into: uint8 of shape (65536,).

    It takes the code that is nearest to the middle of the cell ``int((x + 1) * 32767.5 + 0.5)``, not to `x` itself.

    Examples
    --------
    >>> from qlab.tensor.codebooks import dynamic_cells
    >>> dynamic_cells()[[0, 32768, 65535]].tolist()
    [0, 131, 255]
    """
    values = np.array(dynamic_map().table)
    middles = np.arange(1 << 16) / 32767.5 - 1
    return np.searchsorted((values[1:] + values[:-1]) / 2, middles).astype(np.uint8)


# --- tools -------------------------------------------------------------------------------------------------------------
def _checked_bits(bits: int, low: int, high: int) -> int:
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or not low <= bits <= high:
        raise ValueError(f"bits={bits!r} is not allowed; this codebook has {low} to {high} bits")
    return int(bits)


def _linspace(start: float, stop: float, n: int) -> Array:
    """Return n even steps in float32, each a fused multiply-add from the nearer end, as torch.linspace has them."""
    first, last = np.float64(np.float32(start)), np.float64(np.float32(stop))
    step = np.float64(np.float32(np.float32(last) - np.float32(first)) / np.float32(n - 1))
    i = np.arange(n)
    return np.where(i < n // 2, first + step * i, last - step * (n - 1 - i)).astype(np.float32)  # exact, then rounded once


_erf = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _newton(start: Array, equations: Callable[[Array], tuple[Array, Array, Array, Array]]) -> Array:
    """Solve equations each of which has an unknown and its two neighbours: residuals, then the diagonals of their slopes."""
    x = start
    for _ in range(100):
        residual, diagonal, lower, upper = equations(x)
        slopes = np.diag(diagonal) + np.diag(lower, -1) + np.diag(upper, 1)
        change = np.linalg.solve(slopes, residual)
        x = x - change
        if np.abs(change).max() < 1e-13 * np.abs(x).max():
            break
    return x
