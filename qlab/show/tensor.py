"""Figures about tensors that share scales: what the bits of a scheme buy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from qlab.show.figure import COLORS, Figure

if TYPE_CHECKING:
    from qlab.tensor.metrics import Comparison

__all__ = ["rate_distortion", "spread_heights"]

Word = Any  # draw(figure, word): word(key) is a label of the figure in the reader's language
_DECIBELS_OF_A_BIT = 20 * math.log10(2)


def rate_distortion(comparison: Comparison) -> Figure:
    """Draw the bits per value of schemes against their SQNR, with the Pareto front and the rate-distortion bound.

    Parameters
    ----------
    comparison : Comparison
        Of `qlab.compare_schemes`. A scheme without error stands at the upper edge.

    Raises
    ------
    ValueError
        If no scheme has a finite SQNR.

    Examples
    --------
    >>> import numpy as np, qlab
    >>> x = np.random.default_rng(0).standard_normal(4096)
    >>> qlab.compare_schemes(x, ["int8", "int4", "nf4"]).figure()
    Figure('rate_distortion', schemes=3, front=int4, nf4, int8)
    """
    reports = list(comparison)
    finite = [r.sqnr for r in reports if math.isfinite(r.sqnr)]
    if not finite:
        raise ValueError(f"none of the {len(reports)} schemes has a finite SQNR; compare schemes that make an error")
    bits = np.array([r.bits_per_value for r in reports])
    left, right = math.floor(bits.min() - 0.25), math.ceil(bits.max() + 0.25)
    bound = None  # of the SQNR at zero bits
    if math.isfinite(reports[0].bound_sqnr):
        bound = reports[0].bound_sqnr - _DECIBELS_OF_A_BIT * reports[0].bits_per_value
    low = min(finite)
    high = max([*finite, *([] if bound is None else [bound + _DECIBELS_OF_A_BIT * float(bits.max())])])
    room = 0.08 * (high - low) + 1
    low, high = low - room, high + room
    heights = np.clip([r.sqnr for r in reports], low, high)
    front = {id(r) for r in comparison.front()}
    size = (6.8, max(3.6, 0.9 + 0.19 * len(reports)))
    tall = size[1] - 0.6  # of the axes, in inches
    line = 0.174 / tall  # of text, as a part of that
    places = spread_heights(heights.tolist(), low, high, (high - low) * line)

    def draw(figure: Any, word: Word) -> None:
        axes = figure.add_axes((0.09, 0.5 / size[1], 0.64, tall / size[1]))
        if bound is not None:
            ends = np.array([left, right])
            axes.plot(ends, bound + _DECIBELS_OF_A_BIT * ends, color=COLORS["c1"], linestyle=(0, (4, 2)), linewidth=1.4)
            note = word(f"bound_{reports[0].distribution}")
            axes.text(0.025, 1 - 0.5 * line, note, color=COLORS["c1"], va="top", transform=axes.transAxes)
        best = sorted((b, h) for b, h, r in zip(bits, heights, reports, strict=True) if id(r) in front)
        axes.plot(*zip(*best, strict=True), color=COLORS["c0"], linewidth=1.4, zorder=3)
        axes.text(0.025, 1 - 1.7 * line, word("front"), color=COLORS["c0"], va="top", transform=axes.transAxes)
        edge = right + 0.03 * (right - left)
        for b, height, place, report in zip(bits, heights, places, reports, strict=True):
            chosen = id(report) in front
            thin = 0.8 if chosen else 0.4
            axes.plot([b, edge], [height, place], color=COLORS["muted"], linewidth=thin, zorder=1.5, clip_on=False)
            color = COLORS["c0" if chosen else "muted"]
            face = color if chosen else COLORS["paper"]
            axes.plot([b], [height], "o", color=color, markerfacecolor=face, markersize=6, zorder=4, clip_on=False)
            axes.text(edge + 0.008 * (right - left), place, str(report.scheme), color=color, va="center", fontsize=8.5)
        axes.set(xlim=(left, right), ylim=(low, high), xlabel=word("x"), ylabel=word("y"))

    data = {
        "schemes": len(reports),
        "front": ", ".join(str(r.scheme) for r in comparison.front()),
    }
    return Figure("rate_distortion", draw, size, data)


def spread_heights(heights: list[float], low: float, high: float, gap: float) -> list[float]:
    """Move heights as little as needs be until neighbours are `gap` apart, between `low` and `high` if there is room."""
    order = sorted(range(len(heights)), key=lambda i: (heights[i], -i))
    groups: list[tuple[float, list[int]]] = []  # height of the lowest of the members, which are a gap apart
    for i in order:
        members = [i]
        while True:
            start = float(np.mean([heights[m] - gap * k for k, m in enumerate(members)]))
            start = max(low, min(start, high - gap * (len(members) - 1)))
            if not groups or groups[-1][0] + gap * len(groups[-1][1]) <= start:
                break
            members = groups.pop()[1] + members
        groups.append((start, members))
    placed = list(heights)
    for start, members in groups:
        for k, member in enumerate(members):
            placed[member] = start + gap * k
    return placed
