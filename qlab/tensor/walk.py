"""Going through an array block by block: finding each block's scale, and handing the block on while it is in the cache.

A `Plan` says which places an array falls into, each of whole blocks or, where a block is longer than a piece, of a part of
one. A `Walk` finds scales on the way: on the spot where the place holds whole blocks, in a first round where it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from qlab._pieces import PIECE, Array, Scratch, walk
from qlab.number.formats import Format, TableFormat
from qlab.number.rounder import saturating_rounder
from qlab.tensor.blocks import Region, chunks, regions, scale_shape, scale_table
from qlab.tensor.scales import Extent, extent_of, find_scales, needs_rows, store_in
from qlab.tensor.scheme import Fitted, Scheme

__all__ = ["UNIT", "Finish", "Place", "Plan", "Walk", "first_element"]

UNIT = TableFormat("unit", (-1.0, 1.0))
"""Scaled for it, the largest magnitude of a block is 1: so it is for codebooks, which are fitted to what is scaled."""
Place = tuple[slice, ...]
Finish = Callable[[Array, Array, Array | None, int, Place, Scratch], None]
"""What is done with the rows of a place: `finish(rows, scale, zero, region, place, scratch)`."""


class Plan:
    """How an array is walked: its regions, as two-dimensional as they can be."""

    def __init__(self, array: Array, scheme: Scheme) -> None:
        self.scheme, self.shape = scheme, array.shape
        self.scale_shape = scale_shape(scheme.blocks, array.shape)
        self.flat = False
        self.parts = self.regions_of(array)
        if len(self.parts) == 1 and self.parts[0].view.flags.c_contiguous:
            self.flat = True
            self.parts = self.regions_of(array)
        first = self.parts[0]
        self.each = math.prod(first.view.shape[first.lead :])
        self.blocks = math.prod(first.view.shape[: first.lead])

    def regions_of(self, array: Array) -> list[Region]:
        """Return the regions of a contiguous array of the same shape, walked in the same way."""
        found = regions(self.scheme.blocks, array)
        if not self.flat:
            return found
        view, lead, _ = found[0]
        each = math.prod(view.shape[lead:])
        return [Region(view.reshape(-1, each), 1, (slice(None),))]

    def counts(self, region: Region) -> tuple[int, ...]:
        """How the blocks of a region are counted."""
        shape: tuple[int, ...] = region.view.shape[: region.lead]
        return shape

    def take(self, scales: Array, region: int, place: Place) -> Array:
        """Return the scales of a place, shape (k,)."""
        return self._table(scales)[self.parts[region].at][place[: self.parts[region].lead]].reshape(-1)

    def put(self, scales: Array, region: int, place: Place, values: Array) -> None:
        """Store the scales of a place."""
        view = self._table(scales)[self.parts[region].at][place[: self.parts[region].lead]]
        view[...] = values.reshape(view.shape)

    def _table(self, scales: Array) -> Array:
        """View scales as `Region.at` counts them."""
        table: Array = scales.reshape(-1) if self.flat else scale_table(self.scheme.blocks, self.shape, scales)
        return table

    def each_place(self, work: Callable[[int, Place, Scratch], None]) -> None:
        """Call `work(region, place, scratch)` for places that hold whole blocks, or a part of one block, in threads."""
        for number, region in enumerate(self.parts):
            in_threads([(number, place) for place in self.places(region)], work)

    def places(self, region: Region) -> list[Place]:
        """Return places of at most a piece that cover a region."""
        counts, block = self.counts(region), region.view.shape[region.lead :]
        each = math.prod(block)
        if each <= PIECE:
            whole = tuple(slice(0, n) for n in block)
            return [(*place, *whole) for place in chunks(counts, each)]
        ones = [tuple(slice(i, i + 1) for i in index) for index in np.ndindex(counts)]
        return [(*one, *part) for one in ones for part in chunks(block, 1)]


def in_threads(jobs: list[tuple[int, Place]], work: Callable[[int, Place, Scratch], None]) -> None:
    def some(piece: slice, scratch: Scratch) -> None:
        with np.errstate(all="ignore"):
            for job in jobs[piece]:
                work(*job, scratch)

    walk(len(jobs), some, piece=1)


class Walk(Plan):
    """A walk that finds scales."""

    def __init__(self, array: Array, scheme: Scheme, fmt: Format) -> None:
        if array.size == 0:
            raise ValueError("x is empty; a scale needs at least one value")
        self.source = np.ascontiguousarray(array).reshape(array.shape)
        super().__init__(self.source, scheme)
        self.fmt, self.range = fmt, UNIT if isinstance(scheme.format, Fitted) else fmt
        wide = array.dtype == np.float64 or (array.dtype.kind in "iu" and array.dtype.itemsize > 2)
        self.kind = np.dtype(np.float64 if wide else np.float32)
        self.offset = self._mean() if scheme.center else None
        self.by_cells = fmt.name == "dynamic8" and scheme.scale.reciprocal  # bitsandbytes' nested scales
        self.by_cells = fmt.name == "dynamic8" and scheme.scale.reciprocal  # bitsandbytes' nested scales
        self.rounder = saturating_rounder(fmt, self.kind)

    def _mean(self) -> float:
        mean = float(self.source.mean(dtype=np.float64))
        if not math.isfinite(mean):
            self.refuse()
        return float(np.float32(mean))

    def load(self, region: int, place: Place, scratch: Scratch) -> Array:
        """Return the elements of a place as rows, one block (or part of one) in each, less the offset."""
        part = self.parts[region]
        view: Array = part.view[place]
        k = math.prod(view.shape[: part.lead])
        if view.dtype == self.kind and view.flags.c_contiguous and self.offset is None:
            return view.reshape(k, -1)
        rows = scratch("loaded rows", self.kind, view.size).reshape(view.shape)
        np.copyto(rows, view, casting="unsafe")
        if self.offset is not None:
            np.subtract(rows, self.kind.type(self.offset), out=rows)
        return rows.reshape(k, -1)

    def refuse(self) -> None:
        """Raise the error of data that is not finite."""
        wrong = ~np.isfinite(self.source.reshape(self.shape).astype(np.float64))
        where = tuple(int(i) for i in np.unravel_index(int(wrong.reshape(-1).argmax()), self.shape))
        raise ValueError(
            f"x holds {int(wrong.sum())} infinities or NaN (the first at index {where}), which have no scale; "
            "clean it first, as with numpy.nan_to_num"
        )

    def run(self, finish: Finish | None) -> tuple[Array, Array | None]:
        """Find all scales, hand each place to `finish`; return scales and zeros as numbers."""
        scale = np.empty(self.scale_shape, self.kind)
        zero = None if self.scheme.zero is None else np.empty(self.scale_shape, self.kind)
        self._pass(scale, zero, finish, known=False)
        return scale, zero

    def run_with(self, scale: Array, finish: Finish) -> None:
        """Hand each place to `finish`, with scales that are known."""
        self._pass(scale, None, finish, known=True)

    def _pass(self, scale: Array, zero: Array | None, finish: Finish | None, *, known: bool) -> None:
        for number, region in enumerate(self.parts):
            if math.prod(region.view.shape[region.lead :]) <= PIECE:
                jobs = [(number, place) for place in self.places(region)]
                in_threads(jobs, lambda n, place, s: self._whole_blocks(n, place, scale, zero, finish, known, s))
                continue
            for index in np.ndindex(self.counts(region)):
                self._long_block(number, tuple(slice(i, i + 1) for i in index), scale, zero, finish, known)

    def _whole_blocks(
        self, region: int, place: Place, scale: Array, zero: Array | None, finish: Finish | None, known: bool, scratch: Scratch
    ) -> None:
        rows = self.load(region, place, scratch)
        if known:
            s, z = self.take(scale, region, place), None if zero is None else self.take(zero, region, place)
        else:
            s, z = self._keep(self._scales(extent_of(rows, self.scheme, scratch), rows), scale, zero, region, place)
        if finish is not None:
            finish(rows, s, z, region, place, scratch)

    def _long_block(
        self, region: int, block: Place, scale: Array, zero: Array | None, finish: Finish | None, known: bool
    ) -> None:
        inside = self.parts[region].view.shape[self.parts[region].lead :]
        jobs = [(region, (*block, *part)) for part in chunks(inside, 1)]
        if not known:
            found: dict[str, Extent] = {}

            def look(region: int, place: Place, scratch: Scratch) -> None:
                found[str(place)] = extent_of(self.load(region, place, scratch), self.scheme, scratch)

            in_threads(jobs, look)
            extents = [found[str(place)] for _, place in jobs]  # in order: the same sums for any number of threads
            extent = extents[0]
            for other in extents[1:]:
                extent = extent.joined(other)
            rows = self.load(region, (*block, *(slice(0, n) for n in inside)), Scratch()) if needs_rows(self.scheme) else None
            s, z = self._keep(self._scales(extent, rows), scale, zero, region, block)
        else:
            s, z = self.take(scale, region, block), None if zero is None else self.take(zero, region, block)
        if finish is not None:
            done = finish
            in_threads(jobs, lambda n, place, scratch: done(self.load(n, place, scratch), s, z, n, place, scratch))

    def _scales(self, extent: Extent, rows: Array | None) -> tuple[Array, Array | None]:
        if not (np.isfinite(extent.highest).all() and np.isfinite(extent.lowest).all()):
            self.refuse()
        return find_scales(extent, rows if needs_rows(self.scheme) else None, self.scheme, self.range)

    def _keep(
        self, found: tuple[Array, Array | None], scale: Array, zero: Array | None, region: int, place: Place
    ) -> tuple[Array, Array | None]:
        """Put scales and zeros where they are kept, as their format stores them; return those that codes are found by."""
        s, z = found
        stored = self.scheme.scale.stored
        if stored is not None and not isinstance(stored, Scheme):
            s = store_in(s, stored)
            z = store_in(z, stored, "minimum") if z is not None and self.scheme.zero == "min" else z
        self.put(scale, region, place, s)
        if zero is not None and z is not None:
            self.put(zero, region, place, z)
        return found if self.scheme.scale.late else (s, z)


def first_element(place: Place, each: int) -> int:
    """Where a place of a flat walk begins."""
    return int(place[0].start) * each + int(place[1].start)
