"""Which elements share a scale: the whole tensor, a channel, a row, or a block; and how an array is walked block by block.

Every choice is one strided view of the array, whose first axes count the blocks and whose last axes run through a block.
Where a block does not divide an axis, what is left over is a second view with shorter blocks: nothing is padded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from qlab._pieces import PIECE

__all__ = [
    "Blocks", "PerAxis", "PerBlock", "PerRow", "PerTensor", "Region", "chunks", "regions", "scale_shape", "scale_table",
]  # fmt: skip


@dataclass(frozen=True)
class PerTensor:
    """One scale for all elements. Scales have the shape ()."""


@dataclass(frozen=True)
class PerAxis:
    """One scale for each index along an axis: a channel. Scales have the shape (length of the axis,)."""

    axis: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.axis, bool) or not isinstance(self.axis, int):
            raise ValueError(f"axis={self.axis!r} is not allowed; give the number of an axis, such as 0 or -1")


@dataclass(frozen=True)
class PerRow:
    """One scale for each row, that is for all that lies along the last axis: a token. Scales have the other axes' shape."""


@dataclass(frozen=True)
class PerBlock:
    """One scale for each run of `size` elements.

    Parameters
    ----------
    size : int or (int, int)
        Elements along the axis; or rows and columns of a tile of the last two axes.
    axis : int or None
        The axis that blocks run along, the last one unless given; None for blocks of the flattened tensor. Tiles have
        no axis of their own.

    Notes
    -----
    Scales have the shape of the tensor, with the axis as long as there are blocks along it; (blocks,) for the flattened
    tensor.
    """

    size: int | tuple[int, int] = 32
    axis: int | None = -1

    def __post_init__(self) -> None:
        sizes = self.size if isinstance(self.size, tuple) else (self.size,)
        whole = all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in sizes)
        if not whole or (isinstance(self.size, tuple) and len(sizes) != 2):
            raise ValueError(f"size={self.size!r} is not allowed; give a positive integer, or two for a tile")
        if isinstance(self.size, tuple) and self.axis != -1:
            raise ValueError("a tile lies in the last two axes; leave axis out")
        if isinstance(self.axis, bool) or not isinstance(self.axis, (int, type(None))):
            raise ValueError(f"axis={self.axis!r} is not allowed; give the number of an axis, or None to flatten")


Blocks = PerTensor | PerAxis | PerRow | PerBlock


class Region(NamedTuple):
    """Blocks of one size.

    Attributes
    ----------
    view : array or tensor of shape (*counts, *block)
        The elements.
    lead : int
        How many of the axes count blocks.
    at : tuple of slices
        Where the blocks' scales are among all scales, in the shape of `scale_table`.
    """

    view: Any
    lead: int
    at: tuple[slice, ...]


def _axis(axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise ValueError(f"x has {ndim} dimensions; blocks along axis {axis} need an axis that it has")
    return axis % ndim


def scale_shape(blocks: Blocks, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the scales of a tensor of a shape.

    Raises
    ------
    ValueError
        If the tensor has no such axis.

    Examples
    --------
    >>> from qlab.tensor.blocks import PerBlock, scale_shape
    >>> scale_shape(PerBlock(32), (8, 100)), scale_shape(PerBlock((2, 50)), (8, 100))
    ((8, 4), (4, 2))
    """
    if isinstance(blocks, PerTensor):
        return ()
    if isinstance(blocks, PerAxis):
        return (shape[_axis(blocks.axis, len(shape))],)
    if isinstance(blocks, PerRow):
        _axis(-1, len(shape))
        return shape[:-1]
    if isinstance(blocks.size, tuple):
        if len(shape) < 2:
            raise ValueError(f"x has the shape {shape}; tiles of {blocks.size} need at least two dimensions")
        rows, columns = blocks.size
        return (*shape[:-2], -(-shape[-2] // rows), -(-shape[-1] // columns))
    if blocks.axis is None:
        return (-(-math.prod(shape) // blocks.size),)
    axis = _axis(blocks.axis, len(shape))
    return (*shape[:axis], -(-shape[axis] // blocks.size), *shape[axis + 1 :])


def scale_table(blocks: Blocks, shape: tuple[int, ...], scales: Any) -> Any:
    """View the scales of a tensor of a shape as `Region.at` counts them: (outer, blocks, inner), (outer, rows, columns)."""
    if not isinstance(blocks, PerBlock):
        return scales.reshape(-1)
    if isinstance(blocks.size, tuple):
        return scales.reshape(-1, *scales.shape[-2:])
    if blocks.axis is None:
        return scales.reshape(1, -1, 1)
    axis = blocks.axis % len(shape)
    return scales.reshape(math.prod(shape[:axis]), scales.shape[axis], -1)


def regions(blocks: Blocks, x: Any) -> list[Region]:
    """Return views of a contiguous array or tensor that together hold each element once, block by block."""
    everything = slice(None)
    if isinstance(blocks, PerTensor):
        return [Region(x.reshape(1, -1), 1, (everything,))]
    if isinstance(blocks, PerAxis):
        axis = _axis(blocks.axis, x.ndim)
        outer, along, inner = _around(x.shape, axis)
        return [Region(x.reshape(outer, along, inner).swapaxes(0, 1), 1, (everything,))]
    if isinstance(blocks, PerRow):
        return [Region(x.reshape(-1, x.shape[-1]), 1, (everything,))]
    if isinstance(blocks.size, tuple):
        (a, b), flat = blocks.size, x.reshape(-1, *x.shape[-2:])
        found = []
        for rows, height, row_at in _parts(flat.shape[1], a):
            for columns, width, column_at in _parts(flat.shape[2], b):
                part = flat[:, rows, columns].reshape(
                    len(flat), (rows.stop - rows.start) // height, height, (columns.stop - columns.start) // width, width
                )
                found.append(Region(part.swapaxes(2, 3), 3, (everything, row_at, column_at)))
        return found
    outer, along, inner = (1, math.prod(x.shape), 1) if blocks.axis is None else _around(x.shape, _axis(blocks.axis, x.ndim))
    flat, found = x.reshape(outer, along, inner), []
    for run, size, run_at in _parts(along, blocks.size):
        part = flat[:, run].reshape(outer, (run.stop - run.start) // size, size, inner)
        found.append(Region(part.swapaxes(2, 3), 3, (everything, run_at, everything)))
    return found


def _around(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _parts(length: int, size: int) -> list[tuple[slice, int, slice]]:
    """The part of an axis that blocks divide, and what is left: elements, size of a block, blocks."""
    whole = length // size
    parts = [(slice(0, whole * size), size, slice(0, whole))] if whole else []
    rest = length - whole * size
    return [*parts, (slice(whole * size, length), rest, slice(whole, whole + 1))] if rest else parts


def chunks(shape: tuple[int, ...], each: int, limit: int = PIECE) -> Iterator[tuple[slice, ...]]:
    """Cut the axes of a shape into chunks of at most `limit` elements, where an index of the shape stands for `each`.

    A chunk is contiguous in the order of the shape, and holds at least one index.
    """
    if not shape:
        yield ()
        return
    inside = math.prod(shape[1:]) * each
    if inside <= limit:
        step = max(1, limit // max(inside, 1))
        for start in range(0, shape[0], step):
            yield (slice(start, min(start + step, shape[0])), *(slice(0, n) for n in shape[1:]))
        return
    for index in range(shape[0]):
        for rest in chunks(shape[1:], each, limit):
            yield (slice(index, index + 1), *rest)
