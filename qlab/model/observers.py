"""Observers: they watch a stream of activations and say to which range to clip it.

    update(x)   sees one batch            range()   the lowest and the highest value that keep a code

A wide range makes rounding coarse, a narrow one clips: each observer is one answer to that trade. Memory is constant
whatever the length of the stream, and all but the moving average see the stream as a whole, however it is cut into batches.

An asymmetric range holds zero, which must have a code of its own (ReLU, padding); a symmetric one is (-limit, limit), for
codes from -(2**(bits-1) - 1) up to 2**(bits-1) - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from qlab._pieces import Array
from qlab.model.histogram import Bins, Histogram

__all__ = [
    "OBSERVERS", "EntropyObserver", "HistogramMSEObserver", "MinMaxObserver", "MovingAverageObserver", "Observer",
    "PercentileObserver",
]  # fmt: skip


class Observer:
    """What all observers share: their arguments, and that they refuse what no range can be made of.

    Parameters
    ----------
    symmetric : bool
        Whether the range is to be symmetric about zero.
    bits : int
        Of the codes, 2 to 16.

    Attributes
    ----------
    count : int
        How many values were seen.
    """

    def __init__(self, *, symmetric: bool = False, bits: int = 8) -> None:
        if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16:
            raise ValueError(f"bits={bits!r} is not allowed; give an integer from 2 to 16")
        self.symmetric, self.bits, self.count = bool(symmetric), bits, 0

    def update(self, x: Tensor) -> None:
        """Watch one batch.

        Parameters
        ----------
        x : Tensor
            Of any shape, real dtype and device; it is taken as float32 and not changed. An empty one counts as nothing.

        Raises
        ------
        TypeError
            If `x` is not a tensor of real numbers.
        ValueError
            If it holds NaN or infinities, or what is infinite in float32; nothing of it is then counted.
        """
        if not isinstance(x, Tensor) or x.is_complex():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"an observer watches tensors of real numbers, not {kind}; give a float tensor")
        x = x.detach().to(torch.float32)
        if not x.numel():
            return
        lowest, highest = (float(v) + 0.0 for v in torch.aminmax(x))  # a NaN shows in both; -0 becomes 0
        if not math.isfinite(lowest) or not math.isfinite(highest):
            nans, bad = int(x.isnan().sum()), int((~x.isfinite()).sum())
            raise ValueError(
                f"{bad} of {x.numel()} values are not finite ({nans} NaN, {bad - nans} infinite); "
                "no range holds them: look at the layer before, or leave this batch out"
            )
        self._see(x, lowest, highest)
        self.count += x.numel()

    def range(self) -> tuple[float, float]:
        """Return the lowest and the highest clipping limit.

        Raises
        ------
        ValueError
            If nothing was seen.
        """
        if not self.count:
            raise ValueError(f"{type(self).__name__} has seen no value; call update(x) with calibration batches first")
        lowest, highest = self._limits()
        if self.symmetric:
            limit = max(highest, -lowest)
            return -limit, limit
        return min(lowest, 0.0), max(highest, 0.0)

    def _see(self, x: Tensor, lowest: float, highest: float) -> None:
        raise NotImplementedError

    def _limits(self) -> tuple[float, float]:
        raise NotImplementedError

    def __repr__(self) -> str:
        seen = "[{:.6g}, {:.6g}]".format(*self.range()) if self.count else "nothing seen"
        return f"{type(self).__name__}({seen}, bits={self.bits}, count={self.count})"


class MinMaxObserver(Observer):
    """From the smallest value seen to the largest: nothing is clipped. Contract: exact.

    Examples
    --------
    >>> import torch
    >>> observer = MinMaxObserver()
    >>> observer.update(torch.tensor([-1.0, 3.0]))
    >>> observer.range()
    (-1.0, 3.0)
    """

    def __init__(self, *, symmetric: bool = False, bits: int = 8) -> None:
        super().__init__(symmetric=symmetric, bits=bits)
        self.lowest, self.highest = math.inf, -math.inf

    def _see(self, x: Tensor, lowest: float, highest: float) -> None:
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)

    def _limits(self) -> tuple[float, float]:
        return self.lowest, self.highest


class MovingAverageObserver(Observer):
    """The extremes of a batch, averaged over batches: ``average += (1 - decay) * (extreme - average)``.

    The first batch sets the average. Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference" (2018), section 3.1. It alone depends on how the stream is cut. Contract: exact, in
    float64.

    Parameters
    ----------
    decay : float
        How much of the average a new batch leaves, from 0 to below 1: 0.9 for ten batches or more, 0.99 for hundreds.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.observers import MovingAverageObserver
    >>> observer = MovingAverageObserver(decay=0.5)
    >>> for x in (torch.tensor([0.0, 4.0]), torch.tensor([-2.0, 8.0])):
    ...     observer.update(x)
    >>> observer.range()
    (-1.0, 6.0)
    """

    def __init__(self, *, symmetric: bool = False, bits: int = 8, decay: float = 0.9) -> None:
        super().__init__(symmetric=symmetric, bits=bits)
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay!r} is not allowed; give a number from 0 to below 1, as 0.9")
        self.decay, self.lowest, self.highest = decay, math.inf, -math.inf

    def _see(self, x: Tensor, lowest: float, highest: float) -> None:
        if not self.count:
            self.lowest, self.highest = lowest, highest
        self.lowest += (1 - self.decay) * (lowest - self.lowest)
        self.highest += (1 - self.decay) * (highest - self.highest)

    def _limits(self) -> tuple[float, float]:
        return self.lowest, self.highest


class _HistogramObserver(Observer):
    """An observer that decides from a histogram of all that it has seen."""

    def __init__(self, *, symmetric: bool = False, bits: int = 8) -> None:
        super().__init__(symmetric=symmetric, bits=bits)
        self.histogram = Histogram()

    def _see(self, x: Tensor, lowest: float, highest: float) -> None:
        self.histogram.add(x)


class PercentileObserver(_HistogramObserver):
    """The range that leaves a given share of values outside: of magnitudes if symmetric, else at each end.

    Contract: tolerance. Each limit is within one bin, 1/1024 of its binade, of `numpy.percentile` of the whole stream (within
    2**-23 of the largest magnitude where it is smaller than that).

    Parameters
    ----------
    percent : float
        Above 50, up to 100.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.observers import PercentileObserver
    >>> observer = PercentileObserver(percent=99)
    >>> observer.update(torch.arange(-500.0, 501.0))
    >>> [round(limit, -1) for limit in observer.range()]
    [-490.0, 490.0]
    """

    def __init__(self, *, symmetric: bool = False, bits: int = 8, percent: float = 99.99) -> None:
        super().__init__(symmetric=symmetric, bits=bits)
        if not 50 < percent <= 100:
            raise ValueError(f"percent={percent!r} is not allowed; give a number above 50, up to 100, as 99.99")
        self.percent = percent

    def _limits(self) -> tuple[float, float]:
        if self.symmetric:
            limit = _percentile(self.histogram.magnitudes(), self.percent)
            return -limit, limit
        bins = self.histogram.bins()
        return _percentile(bins, 100 - self.percent), _percentile(bins, self.percent)


def _percentile(bins: Bins, percent: float) -> float:
    """Return the percentile as NumPy defines it (linear), each value taken to lie evenly in its bin."""
    until = np.cumsum(bins.counts)
    rank = percent / 100 * (int(until[-1]) - 1)

    def value(rank: int) -> float:
        i = int(np.searchsorted(until, rank, side="right"))
        inside = (rank - (until[i] - bins.counts[i]) + 0.5) / bins.counts[i]
        return float(bins.lower[i] + inside * (bins.upper[i] - bins.lower[i]))

    below, above = value(math.floor(rank)), value(math.ceil(rank))
    return below + (rank - math.floor(rank)) * (above - below)


class HistogramMSEObserver(_HistogramObserver):
    """The range with the least squared error, of rounding inside and clipping outside, for codes of `bits` bits.

    The error is that of the histogram, with values spread evenly over each bin, in closed form. The search is over limits
    that both sides share, then over each side on its own. Contract: tolerance; the squared error is within 2 % of the least
    that any range has.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.observers import HistogramMSEObserver
    >>> observer = HistogramMSEObserver(symmetric=True, bits=4)
    >>> observer.update(torch.cat([torch.linspace(-1, 1, 9999), torch.tensor([3.0])]))  # one value lies far out
    >>> observer.range()[1] < 1.2
    True
    """

    def _limits(self) -> tuple[float, float]:
        bins, lowest, highest = self.histogram.bins(), self.histogram.lowest, self.histogram.highest
        top = max(highest, -lowest)
        if top == 0:
            return 0.0, 0.0
        if self.symmetric:
            steps = 2 ** (self.bits - 1) - 1
            limit = _least(lambda limit: _squared_error(bins, limit / steps, -steps, steps), top)
            return -limit, limit
        lowest, highest = min(lowest, 0.0), max(highest, 0.0)

        def error(low: float, high: float) -> float:
            return _squared_error(bins, *_grid_of(low, high, self.bits))

        def error_below(high: float, limit: float) -> float:
            return error(-limit, high)

        def shared(limit: float) -> tuple[float, float]:
            return max(lowest, -limit), min(highest, limit)

        low, high = shared(_least(lambda limit: error(*shared(limit)), top))
        for _ in range(2):
            if highest > 0:
                high = _least(partial(error, low), highest, first=high)
            if lowest < 0:
                low = -_least(partial(error_below, high), -lowest, first=-low)
        scale, first, last = _grid_of(low, high, self.bits)
        return first * scale, last * scale


def _grid_of(low: float, high: float, bits: int) -> tuple[float, int, int]:
    """Return the step, and the first and last multiple of it that have a code: zero is a multiple."""
    scale = (high - low) / (2**bits - 1)
    first = round(low / scale)
    return scale, first, first + 2**bits - 1


def _squared_error(bins: Bins, scale: float, first: int, last: int) -> float:
    """Return the sum of squared errors of values spread evenly over their bins, rounded to first..last times the scale."""
    lower, upper = bins.lower / scale, bins.upper / scale
    width = upper - lower
    wide = width > 0
    mean = (_integral(upper, first, last) - _integral(lower, first, last)) / np.where(wide, width, 1)
    point = lower - np.clip(np.rint(lower), first, last)
    return float(np.dot(bins.counts, np.where(wide, mean, point * point)) * scale * scale)


def _integral(steps: Array, first: int, last: int) -> Array:
    """Return an integral of the squared distance to the nearest of the integers first..last."""
    nearest = np.clip(np.rint(steps), first, last)
    distance = steps - nearest
    return np.asarray(nearest / 12 + distance * distance * distance / 3)


def _least(error: Callable[[float], float], top: float, first: float | None = None) -> float:
    """Return the limit up to `top` with the least error: by quarters of a binade, then ever finer about the best."""
    best = top if first is None else first
    least = error(best)
    for steps, ratio in ((64, 2**0.25), (8, 2**0.05), (6, 2**0.01), (5, 2**0.002)):
        centre = top if steps == 64 else best
        for step in range(-steps, steps + 1):
            limit = centre * ratio**step
            if limit <= top and (found := error(limit)) < least:
                best, least = limit, found
    return best


class EntropyObserver(_HistogramObserver):
    """The range that keeps most information: the least Kullback-Leibler divergence of the quantized histogram.

    Migacz, "8-bit Inference with TensorRT" (GTC 2017), as NVIDIA's pytorch-quantization has it: magnitudes in bins of one width;
    for each limit, the clipped histogram (what is outside counts in its last bin) against itself in as few bins as there
    are codes; the first bin is given the count of the second, for the zeros of a ReLU say nothing. If all values have one sign,
    an asymmetric range has twice the codes for them.
    Limits are tried from as many bins as there are codes, so that above 10 bits, and if nothing is better, the range is that
    of `MinMaxObserver`. Contract: tolerance, one of 1025 to 2048 bins up to the largest magnitude.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.observers import EntropyObserver
    >>> observer = EntropyObserver(symmetric=True, bits=4)
    >>> observer.update(torch.erfinv(torch.linspace(-0.9999, 0.9999, 20001)) ** 3)  # up to 20, most are small
    >>> observer.range()[1] < 10
    True
    """

    def _limits(self) -> tuple[float, float]:
        lowest, highest = self.histogram.lowest, self.histogram.highest
        counts, width = self.histogram.linear()
        one_sign = not self.symmetric and (lowest >= 0 or highest <= 0)
        limit = _entropy_bins(counts, 2 ** (self.bits - 1 + one_sign)) * width
        return max(lowest, -limit), min(highest, limit)


def _entropy_bins(counts: Array, levels: int) -> int:
    """Return how many bins to keep, of those counted: the most that have the least divergence."""
    counts = counts.astype(np.float64)
    if len(counts) > 1:
        counts[0] = counts[1]
    best, least = len(counts), math.inf
    outside = counts.sum() - np.cumsum(counts)
    for keep in range(levels, len(counts) + 1):
        inside = counts[:keep]
        reference = inside.copy()
        reference[-1] += outside[keep - 1]
        if reference[-1] > 0 and inside[-1] == 0:
            continue  # an infinite divergence: a value with no code that is nearest
        seen = inside > 0
        group = (np.arange(keep) * levels // keep)[seen]
        kept, reference = inside[seen], reference[seen]
        mean = np.bincount(group, kept, levels) / np.maximum(np.bincount(group, minlength=levels), 1)
        p, quantized = reference / reference.sum(), mean[group]
        divergence = float(np.dot(p, np.log(p / (quantized / quantized.sum()))))
        if divergence <= least:
            best, least = keep, divergence
    return best


OBSERVERS: dict[str, type[Observer]] = {
    "minmax": MinMaxObserver,
    "moving_average": MovingAverageObserver,
    "percentile": PercentileObserver,
    "histogram_mse": HistogramMSEObserver,
    "entropy": EntropyObserver,
}
"""The observers by name, as a recipe names them."""
