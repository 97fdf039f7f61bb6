"""Sums as hardware of a format makes them: one addition after the other, each rounded to the accumulator's format.

A reduction loops in Python over the axis that is added up and in NumPy over all else. What it adds, the *terms*, are
values, products rounded to the product format, or exact products (then each addition is a fused multiply-add). `Plan`
finds the fastest *step*, that is ``out = round(a + b)`` or ``round(a - b)``, which is exact for its formats:

* native: a float32 (or float64) accumulator that rounds to nearest is the machine's own addition;
* split: add, and cut the sum to the format's precision by Veltkamp's three operations, where no sum can overflow;
* the law: the sum rounded to odd in float64 (`error_free`), then the lane that also `qlab.cast` uses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qlab._pieces import Array, Scratch, walk
from qlab.number.bits import FLOAT64
from qlab.number.codec import _decoder, cast
from qlab.number.error_free import exact_sum, lowest_bit, plain_sum_will_do
from qlab.number.formats import FloatFormat, get_format
from qlab.number.lanes import FloatLane

__all__ = ["ORDERS", "Plan", "matrix_product", "parse_order", "reduce_columns"]

ORDERS = ("sequential", "pairwise", "blocked(k)", "kahan")

COLUMNS = 1 << 13
"""Accumulators that are worked on together: the handful of arrays of a step stay in the cache."""

_TERMS = 1 << 17  # elements in a batch of terms
_STEPS = 64  # steps in a batch, at most

Step = Callable[[np.ufunc, Array, Array, Array], None]
Terms = Callable[[int, int], Array]
"""terms(first, last): those of some steps, of shape (last - first, columns)."""


def parse_order(order: object) -> tuple[str, int]:
    """Return the name of an order and the length of its blocks (0 if it has none)."""
    if isinstance(order, str):
        if order in ("sequential", "pairwise", "kahan"):
            return order, 0
        if (match := re.fullmatch(r"blocked\((\d+)\)", order)) and int(match[1]) > 0:
            return "blocked", int(match[1])
    elif isinstance(order, tuple) and len(order) == 2 and order[0] == "blocked":
        length = order[1]
        if isinstance(length, (int, np.integer)) and not isinstance(length, bool) and length > 0:
            return "blocked", int(length)
    raise ValueError(
        f"order={order!r} is not known; allowed are 'sequential', 'pairwise', 'kahan', and 'blocked(k)' or ('blocked', k) "
        "with k of 1 or more"
    )


def random_generator(rng: object, rounding: str) -> np.random.Generator | None:
    """Return the generator of the noise for stochastic rounding; None for every other rounding."""
    if rounding != "stochastic":
        if rng is not None:
            raise ValueError(f"rng is for rounding='stochastic', not for {rounding!r}; leave it out")
        return None
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool) and rng >= 0:
        return np.random.Generator(np.random.Philox(int(rng)))
    raise ValueError(f"rounding='stochastic' needs rng: a seed (an integer of 0 or more) or a numpy Generator, not {rng!r}")


class Plan:
    """How one call of `sum`, `dot` or `matmul` makes its terms and adds them up.

    Parameters
    ----------
    operation : str
        Its name, for messages.
    fmt, accumulator : FloatFormat
        Formats of the operands and of each partial sum.
    product : FloatFormat or None
        Format that products are rounded to; None if there are none, or if they stay exact.
    factors : {1, 2}
        Whether a term is a value or a product of two.
    order : tuple of str and int
        As `parse_order` returns it.
    rounding, overflow : str
        As in `qlab.cast`; for every product and every addition.
    rng : numpy.random.Generator or None
        Source of the noise for stochastic rounding.
    """

    def __init__(
        self, operation: str, fmt: FloatFormat, accumulator: FloatFormat, product: FloatFormat | None, *, factors: int,
        order: tuple[str, int], rounding: str, overflow: str, rng: np.random.Generator | None,
    ) -> None:  # fmt: skip
        self.operation, self.accumulator, self.product = operation, accumulator, product
        self.order, self.block = order
        self.rounding, self.overflow, self.rng = rounding, overflow, rng

        # a term: its significant bits, the power of two that it is a multiple of, its largest value
        bits, lowest, largest = factors * (fmt.mantissa_bits + 1), factors * lowest_bit(fmt), fmt.max**factors
        exact_in_float32 = bits <= 24 and lowest >= -149 and largest < 2.0**128
        self.factor_type: type = np.float32 if exact_in_float32 else np.float64
        if product is not None and product.bits < 64:
            if product == get_format("float32") and exact_in_float32:
                self.product = None  # it is exact
            else:
                bits, lowest, largest = product.mantissa_bits + 1, lowest_bit(product), product.max
        elif product is not None:
            self.product = None
        self.term_type: type = np.float64
        self._choose_step(bits, lowest, largest)

    def _choose_step(self, bits: int, lowest: int, largest: float) -> None:
        to, nearest = self.accumulator, self.rounding == "nearest_even"
        p = to.mantissa_bits + 1
        like_accumulator = bits <= p and lowest >= lowest_bit(to)
        into_float32 = like_accumulator and to.max < 2.0**128 and largest < 2.0**128 and lowest_bit(to) >= -149
        regular = to.signed and to.subnormals and to.mantissa_bits >= 1
        single = to == get_format("float32") and nearest and self.overflow == "ieee" and into_float32
        self.native = single or to.bits == 64
        self.splits = not self.native and nearest and regular and like_accumulator
        two_long_ones = self.order == "pairwise" and bits > p
        self.plain = plain_sum_will_do(to, bits, lowest, self.rounding) and not two_long_ones
        width = 53
        if single or (self.splits and into_float32 and plain_sum_will_do(to, bits, lowest, self.rounding, 24)):
            self.term_type, width = np.float32, 24
        self.drop = width - p
        self.limit = min(to.max, 2.0 ** ((127 if width == 24 else 1023) - self.drop))
        self.steps = min(_STEPS, 1 << p) if self.splits else _STEPS

    # --- steps ---------------------------------------------------------------------------------------------------
    def _fast_step(self, n: int) -> Step:
        """Return the step of n columns for sums that do not overflow."""
        if self.native:
            return lambda ufunc, a, b, out: ufunc(a, b, out)
        splitter = self.term_type(2**self.drop + 1)
        total, scaled = np.empty(n, self.term_type), np.empty(n, self.term_type)
        multiply, subtract, add = np.multiply, np.subtract, np.add

        def step(ufunc: np.ufunc, a: Array, b: Array, out: Array) -> None:
            """Veltkamp's splitting: the high part is the sum rounded to nearest, ties to even.

            (Boldo, "Pitfalls of a full floating-point proof", 2006. On a tie, the odd number S of half steps, the middle
            line makes ``2**drop * S + S`` into ``2**drop * S`` plus the even neighbour of S, as 2 is a step there.) What
            is below the lowest binade has few bits, for it is a multiple of the lowest one, and stays as it is.
            """
            ufunc(a, b, total)
            multiply(total, splitter, scaled)
            subtract(total, scaled, total)
            add(scaled, total, out)

        return step

    def _lawful_step(self, n: int) -> Step:
        """Return the step of n columns, in float64, for any format and rounding."""
        lane, scratch = FloatLane(self.accumulator, FLOAT64, self.rounding, self.overflow), Scratch()
        decoder = _decoder(self.accumulator, np.dtype(np.int64), np.dtype(np.float64))

        def step(ufunc: np.ufunc, a: Array, b: Array, out: Array) -> None:
            total = exact_sum(a, -b if ufunc is np.subtract else b, self.rounding, plain=self.plain)
            if self.accumulator.nan_code is None and np.isnan(total).any():
                raise ValueError(
                    f"{self.operation}: inf - inf is NaN, and {self.accumulator.name} has none; use an accumulator "
                    "format that has NaN, or overflow='saturate', which keeps infinities out"
                )
            noise = None if self.rng is None else self._noise(n)
            if not lane.cast(total, out, scratch, noise):
                decoder(lane.encode(total, scratch, noise), out, scratch)

        return step

    def _noise(self, n: int) -> Array:
        assert self.rng is not None
        return self.rng.integers(0, 1 << 32, n, dtype=np.uint32)

    def _stays_below(self, bound: Array, additions: int) -> bool:
        """Whether no sum overflows if all magnitudes add up to `bound` and each addition is rounded (False for NaN)."""
        growth = (1 + 2.0 ** -(self.accumulator.mantissa_bits + 1)) ** additions
        return bool(bound.max() * growth * 1.01 <= self.limit)

    # --- terms ---------------------------------------------------------------------------------------------------
    def terms(self, *factors: Array) -> Array:
        """Return values, or the products of two that broadcast, as terms: an array of shape (steps, columns)."""
        if len(factors) == 1:
            return np.array(factors[0], self.term_type, order="C")
        exact = np.multiply(*factors, dtype=self.factor_type, order="C")
        flat = exact.reshape(-1)
        if self.product is not None:
            if self.product.nan_code is None and np.isnan(flat).any():
                raise ValueError(
                    f"{self.operation}: 0 * inf is NaN, and {self.product.name} has none; use a product format that has "
                    "NaN, or overflow='saturate', which keeps infinities out"
                )
            noise = None if self.rng is None else self._noise(flat.size)
            flat = cast(flat, self.product, rounding=self.rounding, overflow=self.overflow, noise=noise)
        return np.asarray(flat, self.term_type).reshape(len(exact), -1)

    # --- orders --------------------------------------------------------------------------------------------------
    def add_up(self, terms: Terms, count: int, n: int) -> Array:
        """Return the sums of `count` terms: an array of shape (n,), each a value of the accumulator format."""
        with np.errstate(all="ignore"):  # of this thread
            if self.order == "pairwise":
                return self._pairwise(terms, count, n)
            if self.order == "blocked":
                return self._blocked(terms, count, n)
            body, rows = (_compensated, 4) if self.order == "kahan" else (_plain, 1)
            state = np.zeros((rows, n), self.term_type)
            self._run(body, state, terms, 0, count)
            return np.asarray(state[0])

    def _run(self, body: Callable[[Step, Array, Array], None], state: Array, terms: Terms, first: int, last: int) -> None:
        """Let `body` take terms first to last into `state`, in batches of which each finds the fastest step."""
        n = state.shape[1]
        fast = self._fast_step(n) if self.native or self.splits else None
        lawful: Step | None = None
        batch = max(1, min(self.steps, _TERMS // max(n, 1)))
        for start in range(first, last, batch):
            rows = terms(start, min(start + batch, last))
            if fast is not None and (self.native or self._cannot_overflow(state, rows)):
                for row in rows:
                    body(fast, state, row)
                continue
            lawful = lawful or self._lawful_step(n)
            wide = state.astype(np.float64)
            for row in rows.astype(np.float64):
                body(lawful, wide, row)
            state[...] = wide  # exact: they are values of the accumulator format

    def _cannot_overflow(self, state: Array, rows: Array) -> bool:
        bound = np.abs(rows).sum(axis=0) + np.abs(state[:2]).sum(axis=0)
        if len(state) == 1:
            return self._stays_below(bound, len(rows))
        # Kahan: with u half a unit in the last place, |total| + |lost| grows by (1 + u) * (1 + 4u) per step, and the
        # difference that is taken in between is at most twice as large (for u up to 1/8)
        return self.accumulator.mantissa_bits >= 2 and self._stays_below(2 * bound, 6 * len(rows))

    def _blocked(self, terms: Terms, count: int, n: int) -> Array:
        total = np.zeros((1, n), self.term_type)
        for start in range(0, count, self.block):
            block = np.zeros((1, n), self.term_type)
            self._run(_plain, block, terms, start, min(start + self.block, count))
            self._run(_plain, total, lambda first, last, block=block: block, 0, 1)  # type: ignore[misc]
        return np.asarray(total[0])

    def _pairwise(self, terms: Terms, count: int, n: int) -> Array:
        """Add up along the tree of ``sum(x[:m]) + sum(x[m:])`` with ``m = len(x) // 2``, from the leaves to the root."""
        if count == 0:
            return np.zeros(n)
        leaves, depth = terms(0, count), count.bit_length() - 1
        bound = np.abs(leaves).sum(axis=0)
        fast = self.native or (self.splits and self._stays_below(bound, depth + 2))
        leaves = leaves if fast else leaves.astype(np.float64)

        def add(a: Array, b: Array) -> Array:
            out = np.empty(a.shape, a.dtype)
            step = self._fast_step(a.size) if fast else self._lawful_step(a.size)
            step(np.add, np.ascontiguousarray(a).reshape(-1), np.ascontiguousarray(b).reshape(-1), out.reshape(-1))
            return out

        edges = np.array([0, count])
        for _ in range(depth):  # halve all pieces, until each is of one leaf or of two
            middles = (edges[:-1] + edges[1:]) // 2
            edges = np.insert(edges, np.arange(1, len(edges)), middles)
        starts, two = edges[:-1], np.diff(edges) == 2
        sums = leaves[starts]
        if two.any():
            sums[two] = add(sums[two], leaves[starts[two] + 1])
        while len(sums) > 1:
            sums = add(sums[0::2], sums[1::2])
        return np.asarray(add(sums[0], np.zeros_like(sums[0])))  # a single term is rounded; minus zeros sum to zero


def _plain(step: Step, state: Array, term: Array) -> None:
    step(np.add, state[0], term, state[0])


def _compensated(step: Step, state: Array, term: Array) -> None:
    """Kahan (1965): what an addition loses is taken from the next term. Higham 2002, algorithm 4.2."""
    total, lost, corrected, new = state
    step(np.subtract, term, lost, corrected)
    step(np.add, total, corrected, new)
    step(np.subtract, new, total, lost)
    step(np.subtract, lost, corrected, lost)
    total[:] = new


# --- what is reduced -------------------------------------------------------------------------------------------------
def _in_tiles(plan: Plan, tiles: list[Any], work: Callable[[Any], None]) -> None:
    """Do the tiles, in threads unless they share a random generator."""
    if plan.rng is not None:
        for tile in tiles:
            work(tile)
        return
    walk(len(tiles), lambda piece, scratch: [work(tile) for tile in tiles[piece]] and None, piece=1)


def _columns(plan: Plan, count: int) -> int:
    return max(1, min(COLUMNS, 8 * _TERMS // max(count, 1))) if plan.order == "pairwise" else COLUMNS


def reduce_columns(plan: Plan, *factors: Array) -> Array:
    """Return the sums along the first axis of values, or of products: from arrays of shape (k, n) to float64 (n,)."""
    count, n = factors[0].shape
    width = _columns(plan, count)
    result = np.empty(n)

    def work(start: int) -> None:
        tile = [factor[:, start : start + width] for factor in factors]
        columns = tile[0].shape[1]
        result[start : start + width] = plan.add_up(
            lambda first, last: plan.terms(*(factor[first:last] for factor in tile)), count, columns
        )

    _in_tiles(plan, list(range(0, n, width)), work)
    return result


def matrix_product(plan: Plan, a: Array, b: Array) -> Array:
    """Return the products of matrices: from arrays of shape (batch, m, k) and (batch, k, n) to float64 (batch, m, n)."""
    batch, m, count = a.shape
    n = b.shape[2]
    left = np.moveaxis(a, -1, 0).astype(plan.factor_type, order="C")[..., None]  # (k, batch, m, 1)
    right = np.moveaxis(b, -2, 0).astype(plan.factor_type, order="C")[:, :, None, :]  # (k, batch, 1, n)
    result = np.empty((batch, m, n))

    def tiles() -> Iterator[tuple[slice, slice]]:
        width = _columns(plan, count)
        matrices, rows = max(1, width // max(1, m * n)), max(1, width // max(1, n))
        for start in range(0, batch, matrices):
            for row in range(0, m, rows):
                yield slice(start, start + matrices), slice(row, row + rows)

    def work(tile: tuple[slice, slice]) -> None:
        some, rows = tile
        part = result[some, rows]
        sums = plan.add_up(
            lambda first, last: plan.terms(left[first:last, some, rows], right[first:last, some]), count, part.size
        )
        part[...] = sums.reshape(part.shape)

    _in_tiles(plan, list(tiles()), work)
    return result


def bits_of_largest(fmt: FloatFormat) -> int:
    """Return the exponent of the power of two just above the largest value."""
    return math.frexp(fmt.max)[1]
