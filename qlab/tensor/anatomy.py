"""Adding up the errors of a quantized array block by block: those of clipped elements, and those of the others.

The walk is that of the quantizer (`qlab.tensor.walk`), over three arrays at once: the elements, what came back, and what
would have come back with unrounded scales. `qlab.tensor.metrics` makes a report of the sums.
"""

from __future__ import annotations

import numpy as np

from qlab._pieces import Array, Scratch
from qlab.number.formats import Format
from qlab.tensor.scheme import Scheme
from qlab.tensor.walk import Place, Plan

__all__ = ["Anatomy"]


class Anatomy(Plan):
    """A walk over an array and what became of it, which adds up errors block by block."""

    def __init__(self, x: Array, unrounded: Array, values: Array, scheme: Scheme, fmt: Format, unit: float) -> None:
        super().__init__(x, scheme)
        self._unrounded, self._values = self.regions_of(unrounded), self.regions_of(values)
        self._same, self._unit = values is unrounded, unit
        levels = np.unique(fmt.values()[np.isfinite(fmt.values())]).astype(np.float64)
        self._low = levels[0] - (levels[1] - levels[0]) / 2
        self._high = levels[-1] + (levels[-1] - levels[-2]) / 2
        self._lowest_code = levels[0] if scheme.zero == "min" else 0.0

    def sums(self, scale: Array, zero: Array | None, offset: float) -> dict[str, Array]:
        """Return sums (and maxima) over each block, in the shape of the scales; squares in units of ``unit**2``."""
        found: dict[tuple[int, str], dict[str, Array]] = {}

        def work(region: int, place: Place, scratch: Scratch) -> None:
            s = self.take(scale, region, place).astype(np.float64)
            z = np.zeros(len(s)) if zero is None else self.take(zero, region, place).astype(np.float64)
            found[region, str(place)] = self._measure(region, place, s, z, offset)

        self.each_place(work)
        tables = {key: np.zeros(self.scale_shape) for key in ("clipping", "rounding", "total", "energy", "clipped")}
        largest = {key: np.zeros(self.scale_shape) for key in ("max_error", "absmax")}
        for number, region in enumerate(self.parts):
            for place in self.places(region):  # in order: the same sums for any number of threads
                part = found[number, str(place)]
                for key, table in tables.items():
                    self.put(table, number, place, self.take(table, number, place) + part[key])
                for key, table in largest.items():
                    self.put(table, number, place, np.maximum(self.take(table, number, place), part[key]))
        return tables | largest

    def _measure(self, region: int, place: Place, scale: Array, zero: Array, offset: float) -> dict[str, Array]:
        k, unit = len(scale), self._unit
        x = self.parts[region].view[place].astype(np.float64).reshape(k, -1)  # (k, block)
        unrounded = self._unrounded[region].view[place].astype(np.float64).reshape(k, -1)
        clipped = self._is_clipped(x - offset, scale[:, None], zero[:, None])
        x *= unit
        error = x - unrounded * unit
        squared = np.square(error)
        clipping, rounding = (np.where(which, squared, 0.0).sum(axis=1) for which in (clipped, ~clipped))
        if not self._same:
            error = x - self._values[region].view[place].astype(np.float64).reshape(k, -1) * unit
            squared = np.square(error, out=squared)
        return {
            "clipping": clipping,
            "rounding": rounding,
            "total": squared.sum(axis=1),
            "energy": np.square(x).sum(axis=1),
            "clipped": clipped.sum(axis=1).astype(np.float64),
            "max_error": np.abs(error).max(axis=1),
            "absmax": np.abs(x).max(axis=1),
        }

    def _is_clipped(self, x: Array, scale: Array, zero: Array) -> Array:
        """Whether an element lies beyond the last value of its block's codes, and more than half a step."""
        divisor = np.where(scale == 0, 1.0, scale)
        if self.scheme.zero == "min":
            steps = (x - zero) / divisor + self._lowest_code
        else:
            steps = x / divisor + zero
        return np.asarray((steps < self._low) | (steps > self._high))
