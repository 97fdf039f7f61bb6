"""The search for a block of 256 values whose groups have scales of their own, integers times the block's scale.

First a scale for each group (see `search`), then the block's scale, to which the groups' scales are rounded, then the codes,
rounded with the scales as they are stored. The block's scale is then solved for once more, given everything else,
and kept where that lowers the error. All this happens at unit size, so that it works for blocks of any magnitude whose
scale float16 can hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from qlab._pieces import Array
from qlab.tensor.gguf.layouts import HALF_MAX, reciprocal, stored_halves
from qlab.tensor.gguf.search import STEPS, fit_scale, fit_scale_and_minimum, to_integers, unit_size

__all__ = ["Found", "search_symmetric", "search_with_minimum", "to_integers"]

ROUNDS = 3
"""How often the block's scales are solved for again."""


@dataclass
class Found:
    """What a search found: ``x ~ scale * scales * levels - minimum * minima``, and the squared error at unit size.

    Inside a search `levels` is of shape (group, n, groups); what is returned has (n, 256).
    """

    scale: Array  # float16 (n, 1), returned as (n,)
    scales: Array  # whole float32 (n, groups)
    minimum: Array  # float16 (n, 1), returned as (n,)
    minima: Array  # whole float32 (n, groups)
    levels: Array
    error: Array  # float32 (n, 1)

    def keep_better(self, trial: Found) -> None:
        """Take over the blocks of another search where its error is lower."""
        better = trial.error < self.error  # (n, 1)
        for field in fields(self):
            np.copyto(getattr(self, field.name), getattr(trial, field.name), where=better)

    def returned(self) -> Found:
        """Return the same, with the levels in the order of the values."""
        group, n, _ = self.levels.shape
        levels = np.ascontiguousarray(self.levels.reshape(group, -1).T).reshape(n, -1)
        return Found(self.scale[:, 0], self.scales, self.minimum[:, 0], self.minima, levels, self.error)


class _Blocks:
    """The values and weights of some blocks at unit size, (group, n, groups), and the sums over a block."""

    def __init__(self, blocks: Array, importance: Array | None, group: int) -> None:
        self.blocks, self.shape = blocks, (group, len(blocks), -1)
        unit_blocks, self.exponent = unit_size(blocks)
        self.x = self._grouped(unit_blocks)
        self.weights = None if importance is None else self._grouped(importance)
        with np.errstate(over="ignore"):
            self.largest_scale = np.ldexp(np.float32(HALF_MAX), -self.exponent)[:, None]

    def _grouped(self, values: Array) -> Array:
        return np.ascontiguousarray(values.reshape(-1, self.shape[0]).T).reshape(self.shape)

    def flat(self) -> tuple[Array, Array | None]:
        """Values and weights of shape (group, n * groups), as `search` wants them."""
        group = self.shape[0]
        return self.x.reshape(group, -1), None if self.weights is None else self.weights.reshape(group, -1)

    def group_sum(self, a: Array, b: Array) -> Array:
        """Return the weighted sum of a * b over each group: (group, n, groups) to (n, groups)."""
        product = np.multiply(a, b)
        if self.weights is not None:
            product *= self.weights
        return np.asarray(product.sum(axis=0))

    def sum(self, a: Array, b: Array) -> Array:
        """Return the weighted sum of a * b over each block, (n, 1); either is (group, n, groups) or (n, groups)."""
        product: Array = np.multiply(a, b)
        if self.weights is not None:
            product = product * self.weights
        elif product.ndim == 2:
            product = product * np.float32(self.shape[0])
        if product.ndim == 3:
            product = product.sum(axis=0)
        return np.asarray(product.sum(axis=-1, keepdims=True))

    def stored(self, *scales: Array) -> list[Array]:
        """Return scales, (n, 1) each, as float16."""
        sizes = [np.ldexp(scale[:, 0], self.exponent) for scale in scales]
        return [stored[:, None] for stored in stored_halves(self.blocks, *sizes)]

    def at_unit_size(self, stored: Array) -> Array:
        """Return what a stored scale is at unit size, float32 (n, 1)."""
        return np.asarray(np.ldexp(stored.astype(np.float32), -self.exponent[:, None]))


def _multiples(values: Array, unit: Array, lowest: int, highest: int) -> Array:
    """Return values, (n, groups), as the nearest allowed multiples of unit, (n, 1): whole float32."""
    multiples: Array = np.rint(values * reciprocal(unit))
    return np.clip(multiples, np.float32(lowest), np.float32(highest), out=multiples)


def search_symmetric(
    blocks: Array,
    importance: Array | None,
    *,
    group: int,
    lowest: float,
    to_level: Callable[[Array], None],
    end: int,
    steps: Sequence[float] = STEPS,
) -> Found:
    """Search ``scale * scales * levels``.

    Parameters
    ----------
    blocks : float32 array of shape (n, 256)
    importance : float32 array of shape (n, 256), optional
    group : int
        Values that share an entry of `scales`.
    lowest, to_level, steps
        See `fit_scale`.
    end : int
        `scales` go from -end to end - 1.

    Returns
    -------
    Found
        Without minima.
    """
    here = _Blocks(blocks, importance, group)
    n = len(blocks)
    group_scale = fit_scale(*here.flat(), lowest, to_level, steps=steps).reshape(n, -1)

    def attempt(scale: Array) -> Found:
        (stored,) = here.stored(scale)
        unit = here.at_unit_size(stored)
        scales = _multiples(group_scale, unit, -end, end - 1)
        step = scales * unit
        levels = here.x * reciprocal(step)
        to_level(levels)
        error = levels * step
        error -= here.x
        none = np.zeros((n, 1), np.float32)
        return Found(stored, scales, none.astype(np.float16), none, levels, here.sum(error, error))

    largest = np.take_along_axis(group_scale, np.abs(group_scale).argmax(axis=1)[:, None], axis=1)  # (n, 1)
    found = attempt(largest / np.float32(-end))
    for _ in range(ROUNDS):
        level = found.levels * found.scales
        scale = here.sum(here.x, level) * reciprocal(here.sum(level, level))
        found.keep_better(attempt(np.clip(scale, -here.largest_scale, here.largest_scale)))
    return found.returned()


def search_with_minimum(blocks: Array, importance: Array | None, *, group: int, top: int, end: int) -> Found:
    """Search ``scale * scales * levels - minimum * minima``, none negative.

    Parameters
    ----------
    blocks : float32 array of shape (n, 256)
    importance : float32 array of shape (n, 256), optional
    group : int
        Values that share entries of `scales` and `minima`.
    top : int
        Levels go from 0 to top.
    end : int
        `scales` and `minima` go from 0 to end.

    Returns
    -------
    Found
    """
    here = _Blocks(blocks, importance, group)
    fitted, lowest = fit_scale_and_minimum(*here.flat(), top)
    group_scale, group_minimum = fitted.reshape(len(blocks), -1), -lowest.reshape(len(blocks), -1)

    def to_levels(above: Array, step: Array) -> Array:
        levels: Array = np.rint(above * reciprocal(step))
        return np.clip(levels, np.float32(0), np.float32(top), out=levels)

    def attempt(scale: Array, minimum: Array) -> Found:
        stored, stored_minimum = here.stored(scale, minimum)
        unit, unit_minimum = here.at_unit_size(stored), here.at_unit_size(stored_minimum)
        minima = _multiples(group_minimum, unit_minimum, 0, end)
        low = minima * unit_minimum
        above = here.x + low
        levels = to_levels(above, group_scale)
        best_scale = here.group_sum(above, levels) * reciprocal(here.group_sum(levels, levels))  # for the minima as stored
        scales = _multiples(best_scale, unit, 0, end)
        step = scales * unit
        levels = to_levels(above, step)
        error = levels * step
        error -= low
        error -= here.x
        return Found(stored, scales, stored_minimum, minima, levels, here.sum(error, error))

    def solve(found: Found) -> tuple[Array, Array]:
        """Return scale and minimum of least squared error, given the integers."""
        level, minima = found.levels * found.scales, found.minima
        ll, lm, mm = here.sum(level, level), here.sum(level, minima), here.sum(minima, minima)
        xl, xm = here.sum(here.x, level), here.sum(here.x, minima)
        determinant = ll * mm - lm * lm
        inverse = np.where(determinant > np.float32(1e-6) * ll * mm, reciprocal(determinant), np.float32(0))
        scale = np.where(inverse > 0, (xl * mm - xm * lm) * inverse, xl * reciprocal(ll))
        minimum = (xl * lm - xm * ll) * inverse
        return np.clip(scale, 0, here.largest_scale), np.clip(minimum, 0, here.largest_scale)

    found = attempt(*(fit.max(axis=1, keepdims=True) / np.float32(end) for fit in (group_scale, group_minimum)))
    for _ in range(ROUNDS):
        found.keep_better(attempt(*solve(found)))
    return found.returned()
