"""The search for a scale: try some, round, solve for the best scale of these codes, keep the best of all.

Given integer codes, the scale (and minimum) of least squared error follow from a linear equation; given a scale, the codes
follow by rounding. llama.cpp tries some twenty scales around the one that just reaches the largest value, and so do
these functions, with the plain squared error (weighted by the importance, if there is one) as the measure.

Arrays are of shape (k, m): the k elements of a group along the first axis, so that each of NumPy's loops runs along the
many groups. Values should lie near 1 (`unit_size` brings them there), so that no square overflows or vanishes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qlab._pieces import Array
from qlab.tensor.gguf.layouts import reciprocal

__all__ = ["fit_scale", "fit_scale_and_minimum", "to_integers", "unit_size"]

STEPS = tuple(0.1 * k for k in range(-9, 10))
"""How far from the end of the range of codes the largest value is put, for symmetric codes."""

STEPS_WITH_MINIMUM = tuple(0.1 * k for k in range(-10, 11))
"""The same for codes with a minimum."""


def unit_size(blocks: Array) -> tuple[Array, Array]:
    """Return blocks, (n, block), divided by a power of two each to be at most 1, and its exponents, int32 (n,)."""
    columns = np.abs(blocks.T)
    exponent = np.frexp(columns.max(axis=0))[1].astype(np.int32)
    return np.ldexp(blocks, -exponent[:, None]), exponent


def _ratio(above: Array, below: Array) -> Array:
    """Return above / below, and 0 where that has no meaning."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = above / below
    return np.where((below > 0) & np.isfinite(ratio), ratio, np.float32(0))


def to_integers(half: int) -> Callable[[Array], None]:
    """Return the function that replaces numbers by the nearest integers from -half to half - 1, in place."""

    def to_level(numbers: Array) -> None:
        np.rint(numbers, out=numbers)
        np.clip(numbers, np.float32(-half), np.float32(half - 1), out=numbers)

    return to_level


def fit_scale(
    x: Array, weights: Array | None, lowest: float, to_level: Callable[[Array], None], *, steps: Sequence[float] = STEPS
) -> Array:
    """Find the scale of least squared error for ``x ~ scale * level``, among those that trial scales lead to.

    As llama.cpp's ``make_qx_quants``.

    Parameters
    ----------
    x : float32 array of shape (k, m)
        Groups of k values.
    weights : float32 array of shape (k, m), optional
        What an error counts.
    lowest : float
        The lowest level, which is the one of the largest magnitude.
    to_level : function
        Replaces the entries of an array by the nearest levels.
    steps : sequence of float
        Which scales to try: those that put the largest value at lowest - step.

    Returns
    -------
    scale : float32 array of shape (m,)
        It has the sign that makes the value of largest magnitude the lowest level.
    """
    x = np.ascontiguousarray(x)
    weighted = x if weights is None else x * weights
    level, product = np.empty_like(x), np.empty_like(x)
    scale, gain = np.zeros(x.shape[1], np.float32), np.zeros(x.shape[1], np.float32)
    highest, least = x.max(axis=0), x.min(axis=0)
    unit = reciprocal(np.where(highest > -least, highest, least))
    for step in steps:
        np.multiply(x, unit * np.float32(lowest - step), out=level)
        to_level(level)
        along = np.multiply(weighted, level, out=product).sum(axis=0)
        np.multiply(level, level, out=product)
        length = (product if weights is None else np.multiply(product, weights, out=product)).sum(axis=0)
        trial = _ratio(along, length)
        better = trial * along > gain
        np.copyto(scale, trial, where=better)
        np.copyto(gain, trial * along, where=better)
    return scale


def fit_scale_and_minimum(
    x: Array, weights: Array | None, top: int, *, steps: Sequence[float] = STEPS_WITH_MINIMUM
) -> tuple[Array, Array]:
    """Find scale and minimum of least squared error for ``x ~ scale * code + minimum``, codes from 0 to top.

    As llama.cpp's ``make_qkx2_quants``. The minimum is not above zero.

    Parameters
    ----------
    x : float32 array of shape (k, m)
        Groups of k values.
    weights : float32 array of shape (k, m), optional
        What an error counts.
    top : int
        The largest code.
    steps : sequence of float
        Which scales to try: those that put the largest value at top + step.

    Returns
    -------
    scale, minimum : float32 arrays of shape (m,)
    """
    x = np.ascontiguousarray(x)
    k, m = x.shape
    weighted = x if weights is None else x * weights
    sum_w = np.float32(k) if weights is None else weights.sum(axis=0)
    sum_x = weighted.sum(axis=0)
    lowest = np.minimum(x.min(axis=0), np.float32(0))
    above = x - lowest
    unit = _ratio(np.ones(m, np.float32), above.max(axis=0))
    code, product = np.empty_like(x), np.empty_like(x)
    scale, minimum = np.zeros(m, np.float32), np.minimum(sum_x / sum_w, np.float32(0))  # where all codes are 0
    gain = minimum * sum_x
    for step in steps:
        np.multiply(above, unit * np.float32(top + step), out=code)
        np.rint(code, out=code)
        np.clip(code, np.float32(0), np.float32(top), out=code)
        sum_xc = np.multiply(weighted, code, out=product).sum(axis=0)
        counted = code if weights is None else np.multiply(code, weights, out=product)
        sum_c = counted.sum(axis=0)
        sum_cc = np.multiply(counted, code, out=product).sum(axis=0)
        determinant = sum_w * sum_cc - sum_c * sum_c
        trial = _ratio(sum_w * sum_xc - sum_x * sum_c, determinant)
        trial_minimum = _ratio(sum_cc * sum_x - sum_c * sum_xc, determinant)
        alone = (trial_minimum >= 0) | (determinant <= 0)  # then the best minimum allowed is zero
        trial = np.where(alone, _ratio(sum_xc, sum_cc), trial)
        trial_minimum[alone] = 0
        trial_gain = trial * sum_xc + trial_minimum * sum_x
        better = trial_gain > gain
        for best, new in ((scale, trial), (minimum, trial_minimum), (gain, trial_gain)):
            np.copyto(best, new, where=better)
    return scale, minimum
