"""Figures about networks: which layer suffers, and what a mix of schemes buys."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from qlab.show.figure import COLORS, Figure
from qlab.show.tensor import spread_heights

if TYPE_CHECKING:
    from qlab.model.allocation import Allocation
    from qlab.model.diagnosis import Sensitivity

__all__ = ["pareto_front", "sensitivity_bars"]

Word = Any  # draw(figure, word): word(key) is a label of the figure in the reader's language
_LONGEST, _POINTS = 26, 400


def sensitivity_bars(report: Sensitivity) -> Figure:
    """Draw the SQNR of a model's output with each layer quantized: alone as bars, with all before it as a line.

    Parameters
    ----------
    report : Sensitivity
        Of `qlab.sensitivity`. A layer without error stands at the right edge.

    Examples
    --------
    >>> import torch, qlab
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8)).eval()
    >>> report = qlab.sensitivity(model, "weight_only_int8", [torch.randn(16, 8)])
    >>> report.figure().data["layers"]
    2
    """
    layers = report.layers
    finite = [v for each in layers for v in (each.sqnr, each.accumulated_sqnr) if math.isfinite(v)]
    low = min(0.0, *finite, 0.0)
    high = max(1.0, *finite, 1.0) * 1.08
    alone, accumulated = (
        np.clip([getattr(each, key) for each in layers], low, high) for key in ("sqnr", "accumulated_sqnr")
    )
    places = np.arange(len(layers))
    tall = max(1.2, 0.27 * len(layers))  # of the axes, in inches
    size = (6.8, tall + 1.0)
    names = [each.name if len(each.name) <= _LONGEST else "…" + each.name[1 - _LONGEST :] for each in layers]

    def draw(figure: Any, word: Word) -> None:
        axes = figure.add_axes((0.3, 0.55 / size[1], 0.66, tall / size[1]))
        colors = [COLORS["c1" if each is report.worst else "c0"] for each in layers]
        axes.barh(places, alone - low, left=low, height=0.62, color=colors)
        axes.plot(accumulated, places, "o-", color=COLORS["ink"], markerfacecolor=COLORS["paper"], markersize=5, linewidth=1.2,
                  clip_on=False, zorder=4)  # fmt: skip
        axes.set(xlim=(low, high), ylim=(len(layers) - 0.5, -0.5), xlabel=word("x"))
        axes.set_yticks(places, names, fontsize=8.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        above = 1 - 0.24 / size[1]
        for left, key, color in ((0.02, "alone", "c0"), (0.3, "worst", "c1"), (0.62, "accumulated", "ink")):
            figure.text(left, above, word(key), color=COLORS[color], va="center")

    data = {"layers": len(layers), "worst": report.worst.name, "reason": report.worst.reason}
    return Figure("sensitivity_bars", draw, size, data)


def pareto_front(allocation: Allocation) -> Figure:
    """Draw what mixes of schemes reach: average bits per weight against the predicted SQNR of the model's output.

    Parameters
    ----------
    allocation : Allocation
        Of `qlab.allocate_bits`. A mix without error stands at the upper edge.

    Examples
    --------
    >>> import torch, qlab
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)).eval()
    >>> mix = qlab.allocate_bits(model, ["int8-channel", "int4-b32/f16"], [torch.randn(16, 32)], budget=7)
    >>> mix.figure().data["mixes"]
    3
    """
    points = [*allocation.front, *allocation.uniform]
    heights = np.array([_decibels(mix.error) for mix in points])
    bits = np.array([mix.bits for mix in points])
    finite = heights[np.isfinite(heights)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    room = 0.08 * (high - low) + 1
    low, high = low - room, high + room
    heights = np.clip(heights, low, high)
    mixes, own = len(allocation.front), len(allocation.uniform)
    thin = np.unique(np.linspace(0, mixes - 1, min(mixes, _POINTS)).round().astype(int))
    left, right = math.floor(bits.min() - 0.25), math.ceil(max(*bits, allocation.budget if allocation.budget < 64 else 0) + 0.25)
    size = (6.8, max(3.6, 1.1 + 0.19 * own))
    tall = size[1] - 1.0  # of the axes, in inches
    places = spread_heights(heights[mixes:].tolist(), low, high, (high - low) * 0.174 / tall)
    chosen = (allocation.bits, min(max(_decibels(allocation.error), low), high))

    def draw(figure: Any, word: Word) -> None:
        axes = figure.add_axes((0.09, 0.52 / size[1], 0.68, tall / size[1]))
        axes.axvline(allocation.budget, color=COLORS["c2"], linestyle=(0, (4, 2)), linewidth=1.4)
        axes.step(bits[thin], heights[thin], where="post", color=COLORS["c0"], linewidth=1.6, zorder=3)
        edge = right + 0.03 * (right - left)
        for b, height, place, mix in zip(bits[mixes:], heights[mixes:], places, allocation.uniform, strict=True):
            axes.plot([b, edge], [height, place], color=COLORS["muted"], linewidth=0.4, zorder=1.5, clip_on=False)
            axes.plot([b], [height], "o", color=COLORS["muted"], markerfacecolor=COLORS["paper"], markersize=6, zorder=4,
                      clip_on=False)  # fmt: skip
            axes.text(edge + 0.008 * (right - left), place, mix.name, color=COLORS["muted"], va="center", fontsize=8.5)
        axes.plot(*chosen, "D", color=COLORS["c1"], markersize=8, zorder=5, clip_on=False)
        axes.set(xlim=(left, right), ylim=(low, high), xlabel=word("x"), ylabel=word("y"))
        above = 1 - 0.24 / size[1]
        heads = ((0.09, "front", "c0"), (0.36, "uniform", "muted"), (0.68, "chosen", "c1"), (0.86, "budget", "c2"))
        for start, key, color in heads:
            figure.text(start, above, word(key), color=COLORS[color], va="center")

    data = {
        "mixes": mixes, "layers": len(allocation.layers), "bits": f"{allocation.bits:.2f}",
        "decibels": f"{_decibels(allocation.error):.1f}", "budget": f"{allocation.budget:.2f}",
    }  # fmt: skip
    return Figure("pareto_front", draw, size, data)


def _decibels(error: float) -> float:
    return math.inf if error == 0 else -10 * math.log10(error) if error < math.inf else -math.inf
