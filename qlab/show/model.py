"""Figures about networks (part IV): how observers choose the range of an activation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from qlab._pieces import Array
from qlab.show.figure import COLORS, Figure

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["observer_ranges"]

Word = Any  # draw(figure, word): word(key) is a label of the figure in the reader's language

_BARS = tuple(COLORS[f"c{i}"] for i in range(5))
_BINS, _BATCHES = 96, 16


def observer_ranges(x: Array | Tensor, bits: int = 8, *, symmetric: bool = False) -> Figure:
    """Draw the histogram of an activation, and beneath it the range that each observer clips it to, with its SQNR.

    Parameters
    ----------
    x : array_like or Tensor
        The recorded activation, finite and not all zero. Observers see it in 16 batches along the first axis, or in as
        many as it is long.
    bits : int
        Of the codes, 2 to 16.
    symmetric : bool
        Whether ranges are to be symmetric about zero.

    Raises
    ------
    ValueError
        If `x` holds NaN or infinities, or nothing but zeros.
    """
    import torch

    from qlab.model.observers import OBSERVERS

    values = torch.as_tensor(x).detach().to(device="cpu", dtype=torch.float32)
    if not values.any():
        raise ValueError(f"an activation of shape {tuple(values.shape)} without a value other than zero has no range to draw")
    ranges = {}
    for name, kind in OBSERVERS.items():
        observer = kind(symmetric=symmetric, bits=bits)
        for batch in values.reshape(-1).tensor_split(_BATCHES) if values.ndim < 2 else values.tensor_split(_BATCHES):
            observer.update(batch)
        ranges[name] = observer.range()
    flat = values.reshape(-1).numpy().astype(np.float64)
    sqnr = {name: _sqnr(flat, *limits, bits, symmetric) for name, limits in ranges.items()}
    counts, edges = np.histogram(flat, bins=_BINS)
    low, high = min(edges[0], *(r[0] for r in ranges.values())), max(edges[-1], *(r[1] for r in ranges.values()))
    margin = 0.02 * (high - low)

    def draw(figure: Any, word: Word) -> None:
        above = figure.add_axes((0.19, 0.52, 0.67, 0.4))
        below = figure.add_axes((0.19, 0.13, 0.67, 0.34))
        above.stairs(np.maximum(counts, 0.5), edges, baseline=0.5, color=COLORS["c7"], fill=True, alpha=0.35, linewidth=0)
        above.set(yscale="log", ylim=(0.5, 2.2 * counts.max()))
        powers = range(0, math.floor(math.log10(counts.max())) + 1)
        above.set_yticks([10**p for p in powers], [f"{10**p:,}" for p in powers])
        above.minorticks_off()
        above.tick_params(labelbottom=False)
        for row, (name, (left, right)) in enumerate(ranges.items()):
            below.barh(row, right - left, left=left, height=0.46, color=_BARS[row], linewidth=0)
            for end in (left, right):
                above.axvline(end, color=_BARS[row], linewidth=0.9, linestyle=(0, (2, 2)))
            along = below.get_yaxis_transform()
            below.text(-0.015, row, name, color=_BARS[row], ha="right", va="center", fontsize=9, transform=along)
            below.text(1.015, row, f"{sqnr[name]:.1f}", color=_BARS[row], ha="left", va="center", transform=along)
        below.set(ylim=(len(ranges) - 0.4, -0.6), yticks=[])
        below.spines["left"].set_visible(False)
        for axes in (above, below):
            axes.set_xlim(low - margin, high + margin)
        figure.text(0.19, 0.935, word("y"), ha="left", va="bottom")
        figure.text(0.99, 0.485, word("sqnr"), ha="right", va="center", fontsize=9)
        figure.text(0.525, 0.005, word("x"), ha="center", va="bottom")

    data = {"bits": bits, "count": flat.size, "sqnr": " / ".join(f"{name} {value:.1f}" for name, value in sqnr.items())}
    return Figure("observer_ranges", draw, (6.6, 3.9), data)


def _sqnr(x: Array, low: float, high: float, bits: int, symmetric: bool) -> float:
    """Return the signal-to-quantization-noise ratio in dB of codes of `bits` bits over a range."""
    first, last = (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    scale = (high - low) / (last - first)
    zero = first - round(low / scale) if scale else 0
    scale = scale or 1.0
    noise = (np.clip(np.rint(x / scale) + zero, first, last) - zero) * scale - x
    squared = float(np.dot(noise, noise))
    return 10 * math.log10(float(np.dot(x, x)) / squared) if squared else math.inf
