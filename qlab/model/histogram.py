"""A histogram of a stream in constant memory, the same however the stream is cut into batches.

The bins are those that float32 itself has: a sign, an exponent and the first ten fraction bits, so that a value's bin is
found by a shift of its bits, and each bin is 1/1024 of a binade wide. Kept are the 24 binades up to the largest magnitude seen;
what is smaller counts as one bin around zero. When a larger value comes, whole binades move into that bin. Counts are
integers and no edge depends on an order: the histogram of a stream is that of the whole.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qlab._pieces import PIECE, Array

__all__ = ["Bins", "Histogram"]

_FRACTION, _BINADES = 10, 24
_SHIFT, _SIZE = 23 - _FRACTION, _BINADES << _FRACTION  # bits of float32 that a bin does not see; bins of a sign


class Bins(NamedTuple):
    """Bins in rising order: their lower ends, upper ends, float64, and counts, int64, all of shape (bins,)."""

    lower: Array
    upper: Array
    counts: Array


class Histogram:
    """Counts of finite float32 values in bins of 1/1024 of a binade.

    Attributes
    ----------
    lowest, highest : float
        The exact extremes of what was seen.
    count : int
        How many values were seen.

    Examples
    --------
    >>> histogram = Histogram()
    >>> histogram.add(torch.tensor([1.0, -2.0, 1.0]))
    >>> bins = histogram.bins()
    >>> bins.lower.tolist(), bins.counts.tolist()
    ([-2.0, 1.0], [1, 2])
    """

    def __init__(self) -> None:
        self.lowest, self.highest, self.count = float("inf"), float("-inf"), 0
        self._counts = np.zeros((2, _SIZE), np.int64)  # by sign, then by magnitude
        self._top = 0  # exponent field of the largest magnitude

    def add(self, x: Tensor) -> None:
        """Count the elements of `x`, float32 of any shape, all finite."""
        x = x.detach().contiguous().view(-1)
        if not x.numel():
            return
        lowest, highest = (float(v) for v in torch.aminmax(x))
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        self.count += x.numel()
        self._raise_to(int(np.float32(max(highest, -lowest)).view(np.int32)) >> 23)
        for piece in torch.split(x.view(torch.int32), PIECE):
            number = (piece & 0x7FFFFFFF) >> _SHIFT
            number.sub_(self._first).clamp_(min=0)
            number.add_((piece >> 31) & _SIZE)  # the negative ones after the others
            self._counts += torch.bincount(number, minlength=2 * _SIZE).view(2, _SIZE).cpu().numpy()

    @property
    def _first(self) -> int:
        """What the bits of a magnitude in the lowest bin begin with."""
        return (self._top - _BINADES + 1) << _FRACTION

    def _raise_to(self, top: int) -> None:
        """Let the bins end with the binade of exponent field `top`; what falls below the lowest goes into it."""
        by = min(max(top - self._top, 0) << _FRACTION, _SIZE - 1)
        if by:
            counts = np.zeros_like(self._counts)
            counts[:, : _SIZE - by] = self._counts[:, by:]
            counts[:, 0] += self._counts[:, :by].sum(axis=1)
            self._counts = counts
        self._top = max(top, self._top)

    def _ends(self) -> Array:
        """Return the lower ends of the magnitudes' bins and the last upper end, float64 of shape (bins + 1,)."""
        begins = np.maximum(np.arange(self._first, self._first + _SIZE + 1), 0).astype(np.int64)
        ends = (begins << _SHIFT).astype(np.int32).view(np.float32).astype(np.float64)
        ends[0] = 0.0
        ends[-1] = 2.0 ** (self._top - 126)  # after the last binade float32 has infinity
        return ends

    def bins(self) -> Bins:
        """Return the bins that are not empty, cut to the exact extremes."""
        ends, (positive, negative) = self._ends(), self._counts
        lower = np.concatenate([-ends[:0:-1], ends[:-1]])
        upper = np.concatenate([-ends[-2::-1], ends[1:]])
        counts = np.concatenate([negative[::-1], positive])
        seen = counts > 0
        lower, upper = (np.clip(end[seen], self.lowest, self.highest) for end in (lower, upper))
        return Bins(lower, upper, counts[seen])

    def magnitudes(self) -> Bins:
        """Return the bins of magnitudes that are not empty, cut to the largest."""
        ends, counts = self._ends(), self._counts.sum(axis=0)
        seen = counts > 0
        upper = np.minimum(ends[1:][seen], max(self.highest, -self.lowest))
        return Bins(ends[:-1][seen], upper, counts[seen])

    def linear(self) -> tuple[Array, float]:
        """Return counts of magnitudes in bins of one width, and the width, a power of two: 1025 to 2048 bins to the largest.

        It is exact: each bin of one width is a whole number of the others.
        """
        ends, counts = self._ends(), self._counts.sum(axis=0)
        width = float(ends[-1] - ends[-2])
        number = (ends[:-1] / width).astype(np.int64)
        wide = np.bincount(number, counts).astype(np.int64)  # exact below 2**53
        return wide[: np.flatnonzero(wide)[-1] + 1], width
