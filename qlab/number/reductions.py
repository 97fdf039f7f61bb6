"""Sums as hardware of a format makes them: one addition after the other, each rounded to the accumulator's format.

A reduction loops in Python over the axis that is added up and in NumPy over all else. What it adds, the *terms*, are
values, products rounded to the product format, or exact products (then each addition is a fused multiply-add). `Plan`
finds the fastest *step*, that is ``round(a + b)`` or ``round(a - b)``, which is exact for its formats:

* native: a float32 (or float64) accumulator that rounds to nearest is the machine's own addition;
* split: add, and cut the sum to the format's precision by Veltkamp's three operations, where no sum can overflow;
* push: the same with five operations, where terms have bits below the format's lowest one, as exact products do;
* the law: the sum rounded to odd in float64 (`error_free`), then the lane that also `qlab.cast` uses.

`Tile` does the work, for as many columns (accumulators) at a time as stay in the cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from qlab._pieces import Array, Scratch, walk
from qlab.number.bits import FLOAT32, FLOAT64, Layout
from qlab.number.codec import holds
from qlab.number.decoding import decoder_of
from qlab.number.error_free import exact_sum, extent, lowest_bit, plain_sum_will_do
from qlab.number.formats import FloatFormat, Format, TableFormat, get_format
from qlab.number.logarithmic import is_takum, settle
from qlab.number.noise import philox
from qlab.number.operands import has_nan
from qlab.number.rounder import lane_of

__all__ = ["LAST", "Plan", "matrix_product", "parse_order", "reduce_columns"]

_COLUMNS = 1 << 13  # columns that are worked on together: the handful of arrays of a step stay in the cache
_TERMS = 1 << 17  # elements in a batch of terms
_STEPS = 64  # steps in a batch, at most
_LEAVES = 1 << 20  # terms that are held together, for pairwise
_PRODUCTS, LAST = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03  # give products and the last rounding random bits of their own

Step = Callable[[np.ufunc, Array, Iterable[Array], Array], None]
"""step(ufunc, a, rows, out): out = round(a + rows[0]), then round(out + rows[1]) and so on, for numpy.add."""
Body = Callable[[Step, Array, Array], None]
"""body(step, state, rows): take rows of terms into the state, whose first row is the sums."""
Source = Callable[[int, int], tuple[Array, ...]]
"""source(first, last): the values, or the two factors, of some terms; they broadcast to (last - first, ...)."""


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
        f"order={order!r} is not known; allowed are 'sequential', 'pairwise', 'kahan', and 'blocked(k)' or "
        "('blocked', k) with k of 1 or more"
    )


class _Rounder:
    """Rounding of floats that lie in the cache to a format, as `qlab.cast` does it."""

    def __init__(self, fmt: Format, layout: Layout, rounding: str, overflow: str) -> None:
        self.lane = lane_of(fmt, layout, rounding, overflow)
        self.decode = decoder_of(fmt, np.dtype(layout.int_type), np.dtype(layout.float_type))

    def __call__(self, values: Array, out: Array, scratch: Scratch, noise: Array | None) -> None:
        if not self.lane.cast(values, out, scratch, noise):
            self.decode(self.lane.encode(values, scratch, noise), out, scratch)


class Plan:
    """How one call of `sum`, `dot` or `matmul` makes its terms and adds them up.

    Parameters
    ----------
    operation : str
        Its name, for messages.
    fmt, accumulator : Format
        Formats of the operands and of each partial sum.
    product : Format or None
        Format that products are rounded to; None if there are none, or if they stay exact.
    factors : {1, 2}
        Whether a term is a value or a product of two.
    order : tuple of str and int
        As `parse_order` returns it.
    rounding, overflow : str
        As in `qlab.cast`; for every product and every addition.
    seed : int or None
        Of the noise for stochastic rounding.
    """

    # unless the accumulator is a float: no step but the law
    plain = native = splits = pushes = fast = False
    term_type: type[np.floating[Any]] = np.float64
    steps = _STEPS

    def __init__(
        self, operation: str, fmt: Format, accumulator: Format, product: Format | None, *, factors: int,
        order: tuple[str, int], rounding: str, overflow: str, seed: int | None,
    ) -> None:  # fmt: skip
        self.operation, self.accumulator, self.seed = operation, accumulator, seed
        self.order, self.block = order
        self.rounding, self.overflow = rounding, overflow

        # a term: its significant bits, the power of two that it is a multiple of, its largest value
        bits, lowest, largest = extent(fmt)
        bits, lowest, largest = factors * bits, factors * lowest, largest**factors
        narrow = bits <= 24 and lowest >= -149 and largest < 2.0**128  # float32 holds the exact term
        if product is not None and (product.bits == 64 or (narrow and product == get_format("float32"))):
            product = None  # nothing is lost
        if product is not None:
            bits, lowest, largest = extent(product)
            narrow = narrow and holds(np.dtype(np.float32), product)
        self.product, self.factor_type = product, np.float32 if narrow else np.float64
        layout = FLOAT32 if narrow else FLOAT64
        self.round_products = None if product is None else _Rounder(product, layout, rounding, overflow)
        self.settled = product if isinstance(product, TableFormat) and is_takum(product) else None
        if isinstance(accumulator, FloatFormat):
            self._choose_step(accumulator, bits, lowest, largest)

    def _choose_step(self, to: FloatFormat, bits: int, lowest: int, largest: float) -> None:
        nearest = self.rounding == "nearest_even"
        p, low = to.mantissa_bits + 1, lowest_bit(to)
        alike = bits <= p and lowest >= low  # a term has no more bits than the accumulator, at either end
        narrow = alike and low >= -149 and max(to.max, largest) < 2.0**128  # float32 holds terms and sums
        single = narrow and nearest and to == get_format("float32") and self.overflow == "ieee"
        regular = nearest and to.signed and to.subnormals and to.mantissa_bits >= 1
        self.plain = plain_sum_will_do(to, bits, lowest, self.rounding) and (self.order != "pairwise" or alike)
        self.native = single or to.bits == 64
        self.splits = regular and alike and not self.native
        self.pushes = regular and not alike and self.plain and to.has_negative_zero and not self.native
        in_float32 = single or (self.splits and narrow and 2 * p < 24)
        self.term_type = np.float32 if in_float32 else np.float64
        self.mantissa_bits, self.lowest, self.lowest_normal = to.mantissa_bits, low, to.emin
        self.drop = (24 if in_float32 else 53) - p
        self.limit = min(to.max, 2.0 ** ((127 if in_float32 else 1023) - self.drop))
        self.fast = self.native or self.splits or self.pushes
        self.steps = min(_STEPS, 1 << p) if self.fast else _STEPS

    def columns(self, count: int) -> int:
        """Return how many columns to work on together; pairwise holds all `count` terms of a column at once."""
        return max(1, min(_COLUMNS, _LEAVES // max(count, 1))) if self.order == "pairwise" else _COLUMNS

    def stays_below(self, bound: Array, additions: int) -> bool:
        """Whether no sum overflows if magnitudes add up to `bound` and each addition rounds (no, if there is NaN)."""
        growth = (1 + 2.0 ** -(self.mantissa_bits + 1)) ** additions
        below = additions * 2.0**self.lowest  # what rounding may add to subnormal sums
        return bool((bound.max() + below) * (1.01 * growth) <= self.limit)

    def refuse_nan(self, values: Array, fmt: Format, why: str) -> None:
        """Raise a ValueError if there is NaN for a format that has none."""
        if not has_nan(fmt) and np.isnan(values).any():
            raise ValueError(
                f"{self.operation}: {why} is NaN, and {fmt.name} has none; "
                "use a format that has NaN, or overflow='saturate', which keeps infinities out"
            )

    def fast_step(self, n: int) -> Step:
        """Return the step for n columns, for sums that do not overflow."""
        return _native if self.native else self._split(n) if self.splits else self._push(n)

    def _split(self, n: int) -> Step:
        """Return Veltkamp's splitting of the sum, whose high part is the sum rounded to nearest, ties to even.

        (Boldo, "Pitfalls of a full floating-point proof", 2006.) On a tie, that is an odd number S of half steps, the
        multiplication rounds ``2**drop * S + S`` to ``2**drop * S`` plus the even neighbour of S, as 2 is a step there.
        Sums below the lowest binade have few bits, being multiples of the lowest one, and stay as they are.
        """
        splitter = np.full(n, 2**self.drop + 1, self.term_type)
        total, scaled = np.empty_like(splitter), np.empty_like(splitter)
        multiply, subtract, add = np.multiply, np.subtract, np.add

        def split(ufunc: np.ufunc, a: Array, rows: Iterable[Array], out: Array) -> None:
            for b in rows:
                ufunc(a, b, total)
                multiply(total, splitter, scaled)
                subtract(total, scaled, total)
                add(scaled, total, out)
                a = out

        return split

    def _push(self, n: int) -> Step:
        """Return the step that adds ``1.5 * 2**k`` to the sum and subtracts it again, as `qlab.number.fast` does."""
        mask = np.full(n, FLOAT64.exponent_mask)
        lowest = np.full(n, (self.lowest_normal + FLOAT64.bias) << FLOAT64.mantissa_bits)
        push = np.full(n, ((self.drop << 1) + 1) << (FLOAT64.mantissa_bits - 1))
        total, pusher = np.empty(n), np.empty(n)
        bits, field = total.view(np.int64), pusher.view(np.int64)

        def step(ufunc: np.ufunc, a: Array, rows: Iterable[Array], out: Array) -> None:
            for b in rows:
                ufunc(a, b, total)
                np.bitwise_and(bits, mask, field)
                np.maximum(field, lowest, out=field)
                np.add(field, push, field)
                np.add(total, pusher, out)
                np.subtract(out, pusher, out)
                np.copysign(out, total, out)  # what is rounded to zero keeps its sign
                a = out

        return step


class _Noise:
    """Random bits of a tile: those of an element depend on the seed, its column and the number of its operation."""

    def __init__(self, seed: int | None, first: int, columns: int, total: int, scratch: Scratch) -> None:
        self.seed, self.first, self.columns, self.total, self.scratch = seed, first, columns, total, scratch
        self.taken, self.ahead = 0, np.empty((0, columns), np.uint32)

    def take(self, operations: int) -> Array | None:
        """Return the noise of the next operations: uint32 of shape (operations * columns,)."""
        if self.seed is None:
            return None
        if len(self.ahead) < operations:  # many at a time, which is faster
            make = max(operations, min(_STEPS, _TERMS // self.columns))
            self.ahead = np.concatenate([self.ahead, self._make(self.seed, self.taken, make)])
            self.taken += make
        now, self.ahead = self.ahead[:operations], self.ahead[operations:]
        return now.reshape(-1)

    def _make(self, seed: int, first: int, operations: int) -> Array:
        start, total = first * self.total + self.first, self.total
        if self.columns == total:
            return self._words(seed, start, operations * total).reshape(operations, total)
        return np.stack([self._words(seed, start + i * total, self.columns) for i in range(operations)])

    def _words(self, seed: int, start: int, count: int) -> Array:
        return philox(seed, start & ~3, start + count, self.scratch)[start & 3 :].copy()


class Tile:
    """Some columns of a reduction, from `first` on, of `total` in all: `add_up` returns their sums."""

    def __init__(self, plan: Plan, source: Source, first: int, columns: int, total: int, scratch: Scratch) -> None:
        self.plan, self.source, self.columns, self.scratch = plan, source, columns, scratch
        self.noise = _Noise(plan.seed, first, columns, total, scratch)
        product_seed = None if plan.seed is None else plan.seed ^ _PRODUCTS
        self.product_noise = _Noise(product_seed, first, columns, total, scratch)
        self.lawful = _Rounder(plan.accumulator, FLOAT64, plan.rounding, plan.overflow)

    def add_up(self, count: int) -> Array:
        """Return the sums of `count` terms: an array of shape (columns,), values of the accumulator format."""
        with np.errstate(all="ignore"):  # of this thread
            if self.plan.order == "pairwise":
                return self._pairwise(count)
            if self.plan.order == "blocked":
                return self._blocked(count)
            body, rows = (_compensated, 4) if self.plan.order == "kahan" else (_plain, 1)
            state = np.zeros((rows, self.columns), self.plan.term_type)
            self._run(body, state, self._terms, range(count))
            return np.asarray(state[0])

    def _terms(self, first: int, last: int) -> Array:
        """Return terms, of shape (last - first, columns)."""
        plan, factors = self.plan, self.source(first, last)
        if len(factors) == 1:
            return np.array(factors[0], plan.term_type, order="C")
        products = np.ascontiguousarray(np.multiply(*factors, dtype=plan.factor_type)).reshape(-1)
        if plan.product is not None and plan.round_products is not None:
            plan.refuse_nan(products, plan.product, "0 * inf")
            if plan.settled is not None:
                products = settle(products, plan.settled, plan.rounding)
            exact, products = products, np.empty_like(products)
            plan.round_products(exact, products, self.scratch, self.product_noise.take(last - first))
        return np.asarray(products, plan.term_type).reshape(last - first, -1)

    def _lawful_step(self, ufunc: np.ufunc, a: Array, rows: Iterable[Array], out: Array) -> None:
        """Do the step in float64, for any format and rounding; a row may be several of the tile's."""
        plan = self.plan
        for b in rows:
            total = exact_sum(a, -b if ufunc is np.subtract else b, plan.rounding, plain=plan.plain)
            plan.refuse_nan(total, plan.accumulator, "inf - inf")
            self.lawful(total, out, self.scratch, self.noise.take(total.size // self.columns))
            a = out

    # --- orders ------------------------------------------------------------------------------------------------------
    def _run(self, body: Body, state: Array, terms: Callable[[int, int], Array], steps: range) -> None:
        """Let `body` take the terms of `steps` into `state`, in batches, each with the fastest step that is exact."""
        plan = self.plan
        fast = plan.fast_step(self.columns) if plan.fast else None
        batch = max(1, min(plan.steps, _TERMS // self.columns))
        for start in steps[::batch]:
            rows = terms(start, min(start + batch, steps.stop))
            if fast is not None and (plan.native or self._cannot_overflow(state, rows)):
                body(fast, state, rows)
                continue
            wide = state.astype(np.float64)
            body(self._lawful_step, wide, rows.astype(np.float64))
            state[...] = wide  # exact: they are values of the accumulator format

    def _cannot_overflow(self, state: Array, rows: Array) -> bool:
        bound = np.abs(rows).sum(axis=0) + np.abs(state[:2]).sum(axis=0)
        if len(state) == 1:
            return self.plan.stays_below(bound, len(rows))
        # Kahan: with u half a unit in the last place, |total| + |lost| grows by at most (1 + u) * (1 + 4u) per step,
        # and the difference that is taken in between is at most twice as large (for u up to 1/8)
        return self.plan.mantissa_bits >= 2 and self.plan.stays_below(2 * bound, 6 * len(rows))

    def _blocked(self, count: int) -> Array:
        total = np.zeros((1, self.columns), self.plan.term_type)
        for start in range(0, count, self.plan.block):
            block = np.zeros((1, self.columns), self.plan.term_type)
            self._run(_plain, block, self._terms, range(start, min(start + self.plan.block, count)))
            self._run(_plain, total, lambda first, last, sums=block: sums, range(1))  # type: ignore[misc]
        return np.asarray(total[0])

    def _pairwise(self, count: int) -> Array:
        """Add up along the tree of ``sum(x[:m]) + sum(x[m:])``, ``m = len(x) // 2``, from the leaves to the root."""
        if count == 0:
            return np.zeros(self.columns)
        leaves, depth = self._terms(0, count), count.bit_length() - 1
        bound = np.abs(leaves).sum(axis=0)
        fast = self.plan.native or (self.plan.fast and self.plan.stays_below(bound, depth + 2))
        leaves = leaves if fast else leaves.astype(np.float64)

        def add(a: Array, b: Array) -> Array:
            out = np.empty(a.shape, a.dtype)
            step = self.plan.fast_step(a.size) if fast else self._lawful_step
            step(np.add, a.reshape(-1), (b.reshape(-1),), out.reshape(-1))
            return out

        edges = np.array([0, count])
        for _ in range(depth):  # halve all pieces, until each is of one leaf or of two
            edges = np.insert(edges, np.arange(1, len(edges)), (edges[:-1] + edges[1:]) // 2)
        starts, two = edges[:-1], np.diff(edges) == 2
        sums = leaves[starts]
        if two.any():
            sums[two] = add(sums[two], leaves[starts[two] + 1])
        while len(sums) > 1:
            sums = add(sums[0::2], sums[1::2])
        zero = np.zeros_like(sums[0])
        return np.asarray(add(sums[0], zero))  # a single term is rounded, and minus zeros alone add up to zero


def _native(ufunc: np.ufunc, a: Array, rows: Iterable[Array], out: Array) -> None:
    for b in rows:
        ufunc(a, b, out)
        a = out


def _plain(step: Step, state: Array, rows: Array) -> None:
    step(np.add, state[0], rows, state[0])


def _compensated(step: Step, state: Array, rows: Array) -> None:
    """Kahan (1965): what an addition loses is taken from the next term. Higham 2002, algorithm 4.2."""
    total, lost, corrected, new = state
    for row in rows:
        step(np.subtract, row, (lost,), corrected)
        step(np.add, total, (corrected,), new)
        step(np.subtract, new, (total, corrected), lost)
        total[:] = new


# --- what is reduced -------------------------------------------------------------------------------------------------
def reduce_columns(plan: Plan, *factors: Array) -> Array:
    """Return the sums along the first axis of values, or of products: from arrays of shape (k, n) to float64 (n,)."""
    count, n = factors[0].shape
    width = plan.columns(count)
    result = np.empty(n)

    def work(start: int, scratch: Scratch) -> None:
        tile = [factor[:, start : start + width] for factor in factors]

        def source(first: int, last: int) -> tuple[Array, ...]:
            return tuple(factor[first:last] for factor in tile)

        columns = tile[0].shape[1]
        result[start : start + width] = Tile(plan, source, start, columns, n, scratch).add_up(count)

    _in_threads(list(range(0, n, width)), work)
    return result


def matrix_product(plan: Plan, a: Array, b: Array) -> Array:
    """Return products of matrices: from arrays of shape (batch, m, k) and (batch, k, n) to float64 (batch, m, n)."""
    batch, m, count = a.shape
    n, width = b.shape[2], plan.columns(count)
    left = np.moveaxis(a, -1, 0).astype(plan.factor_type, order="C")[..., None]  # (k, batch, m, 1)
    right = np.moveaxis(b, -2, 0).astype(plan.factor_type, order="C")[:, :, None, :]  # (k, batch, 1, n)
    result = np.empty((batch, m, n))
    matrices, rows = max(1, width // max(1, m * n)), max(1, width // max(1, n))
    tiles = [(i, j) for i in range(0, batch, matrices) for j in range(0, m, rows) if n]

    def work(corner: tuple[int, int], scratch: Scratch) -> None:
        i, j = corner
        some, part = slice(i, i + matrices), slice(j, j + rows)
        target = result[some, part]

        def source(first: int, last: int) -> tuple[Array, ...]:
            return left[first:last, some, part], right[first:last, some]

        tile = Tile(plan, source, (i * m + j) * n, target.size, result.size, scratch)
        target[...] = tile.add_up(count).reshape(target.shape)

    _in_threads(tiles, work)
    return result


def _in_threads(tiles: list[Any], work: Callable[[Any, Scratch], None]) -> None:
    def some(piece: slice, scratch: Scratch) -> None:
        for tile in tiles[piece]:
            work(tile, scratch)

    walk(len(tiles), some, piece=1)
