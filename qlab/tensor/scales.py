"""How the scale of a block is chosen: one function for each rule, on all blocks of a piece at once.

A rule sees a piece as rows, one block in each, and gives a scale (and a zero) for each row. Most rules need only the
smallest and the largest value of a block (`Extent`), which can be gathered in parts; `percentile`, `mse` and `entropy` need
the block itself. Exact, except those three: they search, and their contract is the error that they reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from qlab._pieces import Array, Scratch
from qlab.number.codec import cast
from qlab.number.formats import FloatFormat, Format, IntFormat, TableFormat
from qlab.number.rounder import saturating_rounder
from qlab.tensor.extremes import row_extremes
from qlab.tensor.scheme import Scale, Scheme

__all__ = ["Extent", "extent_of", "find_scales", "needs_rows", "store_in"]


class Extent(NamedTuple):
    """Of each block: the smallest value, the largest, and the sum of magnitudes in float64 (None unless asked for)."""

    lowest: Array
    highest: Array
    magnitudes: Array | None
    length: int

    def joined(self, other: Extent) -> Extent:
        """Return the extent of blocks of which these are two parts."""
        magnitudes = None
        if self.magnitudes is not None and other.magnitudes is not None:
            magnitudes = self.magnitudes + other.magnitudes
        lowest, highest = np.minimum(self.lowest, other.lowest), np.maximum(self.highest, other.highest)
        return Extent(lowest, highest, magnitudes, self.length + other.length)

    @property
    def absmax(self) -> Array:
        """The largest magnitudes."""
        return np.abs(np.maximum(self.highest, -self.lowest))  # of zeros, plus zero


def needs_rows(scheme: Scheme) -> bool:
    """Whether the scale cannot be found from the extent of a block alone."""
    return scheme.scale.rule in ("percentile", "mse", "entropy")


def extent_of(rows: Array, scheme: Scheme, scratch: Scratch) -> Extent:
    """Return the extent of each row, shape (k,); NaN and infinities show in it."""
    magnitudes = None
    if scheme.scale.rule == "mean_abs":
        magnitudes = np.abs(rows).sum(axis=1, dtype=np.float64)
    lowest, highest = row_extremes(rows, scratch)
    return Extent(lowest + 0.0, highest + 0.0, magnitudes, rows.shape[1])  # zeros without a sign


def find_scales(extent: Extent, rows: Array | None, scheme: Scheme, fmt: Format) -> tuple[Array, Array | None]:
    """Return the scale of each block, and its zero if the scheme has one: shape (k,), in the dtype of the values.

    Parameters
    ----------
    extent : Extent
        Finite.
    rows : array of shape (k, block), or None
        The blocks, for rules that need them.
    scheme : Scheme
        The rule.
    fmt : Format
        The format of the codes (a fitted codebook once it is known).
    """
    kind = extent.highest.dtype.type
    with np.errstate(all="ignore"):
        if rows is not None:
            return _SEARCHES[scheme.scale.rule](rows, extent, scheme, fmt)
        if scheme.zero is not None:
            return from_range(extent.lowest, extent.highest, scheme, fmt)
        return np.asarray(_RULES[scheme.scale.rule](extent, fmt, scheme.scale), kind), None


# --- from the extent -------------------------------------------------------------------------------------------------
def _absmax(extent: Extent, fmt: Format, scale: Scale) -> Array:
    return _not_lost(extent.absmax / extent.highest.dtype.type(fmt.max), extent.absmax)


def _signed_absmax(extent: Extent, fmt: Format, scale: Scale) -> Array:
    """The value of the largest magnitude becomes the lowest of the format (of two alike, the positive one)."""
    extreme = np.where(extent.highest >= -extent.lowest, extent.highest, extent.lowest)
    return _not_lost(extreme / extent.highest.dtype.type(fmt.min) + 0.0, extreme)


def _mean_abs(extent: Extent, fmt: Format, scale: Scale) -> Array:
    assert extent.magnitudes is not None
    return _not_lost((extent.magnitudes / extent.length).astype(extent.highest.dtype), extent.absmax)


def _power_of_two(extent: Extent, fmt: Format, scale: Scale) -> Array:
    """The smallest power of two with which the largest magnitude is not beyond the largest value."""
    return _up_to(extent.absmax, fmt.max)


def _up_to(absmax: Array, limit: float) -> Array:
    """Return the smallest power of two s with absmax <= s * limit; exact, from the exponents."""
    fraction, exponent = np.frexp(absmax)
    limit_fraction, limit_exponent = math.frexp(limit)
    power = exponent - limit_exponent + (fraction > absmax.dtype.type(limit_fraction))
    return np.asarray(_power(power, absmax))


def _mx(extent: Extent, fmt: Format, scale: Scale) -> Array:
    """The shared scale of OCP's microscaling formats 1.0, section 6.3: a power of two."""
    absmax = extent.absmax
    if scale.rounding == "up":
        return _up_to(absmax, fmt.max)
    highest = math.frexp(fmt.max)[1] - 1  # the exponent of the format's largest binade
    fraction, exponent = np.frexp(absmax)  # fraction from 1/2 to 1: the exponent is one more than the value's
    power = exponent - 1 - highest
    if scale.rounding == "ceil":
        power = power + (fraction > 0.5)
    elif scale.rounding == "nearest_even":  # as the format rounds the largest magnitude, if its exponent had no end
        half = 2.0 ** -(_fraction_bits(fmt) + 2)
        power = power + (fraction + half >= 1)
    return np.asarray(_power(power, absmax))


def _unit(extent: Extent, fmt: Format, scale: Scale) -> Array:
    return np.ones_like(extent.highest)


def _fraction_bits(fmt: Format) -> int:
    """How many bits follow the first one of the largest values."""
    if isinstance(fmt, FloatFormat):
        return fmt.mantissa_bits
    step = float(fmt.max - fmt.ordered[0][-2]) if isinstance(fmt, TableFormat) else 1.0
    return math.frexp(fmt.max)[1] - math.frexp(step)[1]


def _power(power: Array, absmax: Array) -> Array:
    """2**power where there is anything, from 2**-127 (for float32: the lowest scale of OCP) to the largest."""
    info, kind = np.finfo(absmax.dtype), absmax.dtype.type
    powers = np.ldexp(kind(1), np.clip(power, info.minexp - 1, info.maxexp - 1))
    return np.asarray(np.where(absmax > 0, powers, kind(0)), kind)


def _not_lost(scale: Array, extreme: Array) -> Array:
    """Where a scale became zero though the block is not: the smallest number there is."""
    tiny = np.finfo(scale.dtype).smallest_subnormal
    return np.asarray(np.where((scale == 0) & (extreme != 0), tiny, scale), scale.dtype)


_RULES: dict[str, Callable[[Extent, Format, Scale], Array]] = {
    "absmax": _absmax, "signed_absmax": _signed_absmax, "mean_abs": _mean_abs, "power_of_two": _power_of_two, "mx": _mx,
    "unit": _unit,
}  # fmt: skip


def from_range(lowest: Array, highest: Array, scheme: Scheme, fmt: Format) -> tuple[Array, Array | None]:
    """Return the scale (and zero) that spread the codes over a range, shape (k,)."""
    kind = highest.dtype.type
    if scheme.zero is None:
        extreme = np.abs(np.maximum(highest, -lowest))
        return _not_lost(extreme / kind(fmt.max), extreme), None
    assert isinstance(fmt, IntFormat)
    steps = kind(fmt.max - fmt.min)
    if scheme.zero == "integer":  # zero itself must have a code
        lowest, highest = np.minimum(lowest, kind(0)), np.maximum(highest, kind(0))
    span = highest - lowest
    scale = np.where(np.isfinite(span), span / steps, highest / steps - lowest / steps).astype(kind)
    scale = _not_lost(scale, span)
    if scheme.zero == "min":
        return scale, lowest
    zero = np.rint(kind(fmt.min) - lowest / np.where(scale == 0, kind(1), scale))
    return scale, np.clip(zero, kind(fmt.min), kind(fmt.max))


# --- by a search -----------------------------------------------------------------------------------------------------
def _percentile(rows: Array, extent: Extent, scheme: Scheme, fmt: Format) -> tuple[Array, Array | None]:
    percent = scheme.scale.percent
    if scheme.zero is None:
        limit = np.percentile(np.abs(rows), percent, axis=1).astype(rows.dtype)
        limit = np.where(limit > 0, limit, extent.absmax)
        return from_range(-limit, limit, scheme, fmt)
    lowest, highest = np.percentile(rows, [100 - percent, percent], axis=1).astype(rows.dtype)
    return from_range(lowest, highest, scheme, fmt)


SHRINKS = (1, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7, 0.64, 0.58, 0.5, 0.42, 0.34, 0.27, 0.2, 0.14)
"""By how much `mse` tries to shrink the range, before it fits the scale to the codes."""


def _mse(rows: Array, extent: Extent, scheme: Scheme, fmt: Format) -> tuple[Array, Array | None]:
    """Try shrunk ranges; then, from the best, let codes and scale follow each other: each step lessens the squared error."""
    kind = rows.dtype.type
    top = np.where(extent.absmax > 0, extent.absmax, kind(1))
    rows = rows / top[:, None]  # so that no square overflows
    search = _Search(rows, scheme, fmt)
    for shrink in SHRINKS:
        by = kind(shrink) / top
        if not search.offer(*from_range(extent.lowest * by, extent.highest * by, scheme, fmt)) and shrink < 0.5:
            break
    for _ in range(3):
        search.offer(*search.fitted())
    return search.scale * top, None if search.zero is None else search.zero * (top if scheme.zero == "min" else kind(1))


class _Search:
    """The best scale (and zero) of each block so far, by the squared error."""

    def __init__(self, rows: Array, scheme: Scheme, fmt: Format) -> None:
        self.rows, self.scheme, self.fmt, self.kind = rows, scheme, fmt, rows.dtype.type
        self.scratch = Scratch()
        self.rounder = saturating_rounder(fmt, rows.dtype)
        self.error = np.full(len(rows), np.inf, rows.dtype)
        self.scale = np.zeros(len(rows), rows.dtype)
        self.zero: Array | None = None if scheme.zero is None else np.zeros(len(rows), rows.dtype)

    def offer(self, scale: Array, zero: Array | None) -> bool:
        """Take the scales over where they are better; say whether any is."""
        values = self._values(scale, zero)
        np.multiply(values, scale[:, None], out=values)
        if self.scheme.zero == "min":
            assert zero is not None
            np.add(values, zero[:, None], out=values)
        np.subtract(values, self.rows, out=values)
        error = np.einsum("ij,ij->i", values, values)
        better = error < self.error
        np.copyto(self.error, error, where=better)
        np.copyto(self.scale, scale, where=better)
        if zero is not None and self.zero is not None:
            np.copyto(self.zero, zero, where=better)
        return bool(better.any())

    def fitted(self) -> tuple[Array, Array | None]:
        """Return the scale, and the minimum if there is one, with the least squared error for the codes of the best."""
        rows, values = self.rows, self._values(self.scale, self.zero)
        squares, products = np.einsum("ij,ij->i", values, values), np.einsum("ij,ij->i", values, rows)
        if self.scheme.zero != "min":
            return np.where(squares > 0, products / np.where(squares > 0, squares, 1), self.scale).astype(rows.dtype), self.zero
        assert self.zero is not None
        n, sums, totals = rows.shape[1], values.sum(axis=1), rows.sum(axis=1)
        determinant = n * squares - sums * sums
        safe = np.where(determinant > 0, determinant, 1)
        scale = np.where(determinant > 0, (n * products - sums * totals) / safe, self.scale)
        return scale.astype(rows.dtype), ((totals - scale * sums) / n).astype(rows.dtype)

    def _values(self, scale: Array, zero: Array | None) -> Array:
        """What the codes stand for, in steps: shape of the rows."""
        rows, fmt, kind = self.rows, self.fmt, self.kind
        steps = self.scratch("steps", rows.dtype, rows.size).reshape(rows.shape)
        if self.scheme.zero == "min":
            assert zero is not None
            np.subtract(rows, zero[:, None], out=steps)
            rows = steps
        np.multiply(rows, (1 / np.where(scale == 0, kind(1), scale))[:, None], out=steps)
        if not isinstance(fmt, IntFormat):
            values = self.scratch("values of steps", rows.dtype, rows.size)
            self.rounder.cast(steps.reshape(-1), values, self.scratch)
            return values.reshape(rows.shape)
        np.rint(steps, out=steps)
        lowest, highest = kind(fmt.min), kind(fmt.max)
        if self.scheme.zero == "min":
            np.clip(steps, kind(0), highest - lowest, out=steps)
        elif zero is None:
            np.clip(steps, lowest, highest, out=steps)
        else:
            np.clip(steps, (lowest - zero)[:, None], (highest - zero)[:, None], out=steps)
        return steps


def _entropy(rows: Array, extent: Extent, scheme: Scheme, fmt: Format, bins: int = 2048) -> tuple[Array, Array | None]:
    """The clipping limit whose quantized histogram is nearest to the clipped one (Migacz, "8-bit inference", GTC 2017)."""
    limits = np.array([_entropy_limit(row, top, fmt, bins) for row, top in zip(np.abs(rows), extent.absmax, strict=True)])
    return from_range(-limits.astype(rows.dtype), limits.astype(rows.dtype), scheme, fmt)


def _entropy_limit(magnitudes: Array, top: float, fmt: Format, bins: int) -> float:
    levels = 2 ** (fmt.bits - 1)
    if top == 0:
        return 0.0
    counts, _ = np.histogram(magnitudes / top, bins=bins, range=(0, 1))
    counts[0] = 0 if counts[1:].any() else counts[0]  # zeros have a code of their own
    best, best_divergence = bins, math.inf
    for keep in range(levels, bins + 1, max(1, bins // 128)):
        inside = counts[:keep].astype(np.float64)
        reference = inside.copy()
        reference[-1] += counts[keep:].sum()
        group = np.arange(keep) * levels // keep
        total = np.bincount(group, inside, levels)
        occupied = np.bincount(group, inside > 0, levels)
        quantized = np.where(inside > 0, (total / np.maximum(occupied, 1))[group], 0)
        if not quantized.any():
            continue
        p, q = reference / reference.sum(), quantized / quantized.sum()
        seen = p > 0
        divergence = float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))))
        if divergence < best_divergence:
            best, best_divergence = keep, divergence
    return float(top) * best / bins


_SEARCHES: dict[str, Callable[[Array, Extent, Scheme, Format], tuple[Array, Array | None]]] = {
    "percentile": _percentile, "mse": _mse, "entropy": _entropy,
}  # fmt: skip


# --- what is stored --------------------------------------------------------------------------------------------------
def store_in(scales: Array, fmt: Format | None, what: str = "scale") -> Array:
    """Return scales as their storage format holds them, in the dtype they came in.

    Raises
    ------
    ValueError
        If one is beyond the format's largest value.
    """
    if fmt is None:
        return scales
    largest = np.abs(scales).max(initial=0)
    if largest > fmt.max:
        raise ValueError(
            f"a {what} of {largest:.6g} does not fit {fmt.name}, whose largest value is {fmt.max:g}; "
            f"scale x down (by {largest / fmt.max:.3g} or more), or store scales as float32"
        )
    if getattr(fmt, "has_zero", True):
        stored = cast(scales, fmt, overflow="saturate")
        tiny = scales.dtype.type(fmt.smallest_subnormal)
        return np.asarray(np.where((stored == 0) & (scales != 0), np.copysign(tiny, scales), stored), scales.dtype)
    return np.array(cast(scales, fmt, overflow="saturate"), scales.dtype)
