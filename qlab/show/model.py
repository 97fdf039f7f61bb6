"""Figures about networks (part IV): how observers choose the range of an activation, how a loss scale rises and falls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qlab._pieces import Array
from qlab.show.figure import COLORS, Figure, superscript
from qlab.show.table import Table

if TYPE_CHECKING:
    from torch import Tensor

    from qlab.model.loss_scaler import LossScaler

__all__ = ["observer_ranges", "scale_history"]

Word = Any  # draw(figure, word): word(key) is a label of the figure in the reader's language

_BARS = tuple(COLORS[f"c{i}"] for i in range(5))
_BINS, _BATCHES = 96, 16
_LONGEST, _REPORTS, _SHADES = 22, 200, 32


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


def scale_history(scaler: LossScaler, reports: Mapping[int, Table] | None = None) -> Figure:
    """Draw the loss scale over the steps of a training, and beneath it the share of each layer's gradient that underflows.

    Parameters
    ----------
    scaler : LossScaler
        After one step at least. Steps that were skipped are marked by crosses.
    reports : mapping of int to Table, optional
        By step (from 0): what `qlab.amp.underflow_report` returned between ``backward()`` and `LossScaler.step`, which
        takes the scale out of gradients again. A layer's parameters count together; a report stands until the next one.
        Of more than 200 reports, 200 are drawn.

    Raises
    ------
    TypeError
        If `scaler` is no LossScaler, or `reports` no mapping of underflow reports.
    ValueError
        If there was no step, or no step of a report's number.

    Examples
    --------
    >>> import torch, qlab
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1))
    >>> optimizer, scaler, reports = torch.optim.SGD(model.parameters(), lr=0.1), qlab.amp.LossScaler(2.0**10), {}
    >>> for step in range(3):
    ...     optimizer.zero_grad()
    ...     scaler.multiply(model(torch.tensor([[1e-12, 1.0]])).sum()).backward()
    ...     reports[step] = qlab.amp.underflow_report(model, "float16")
    ...     _ = scaler.step(optimizer)
    ...     scaler.update()
    >>> scaler.figure(reports)
    Figure('scale_history', steps=3, skipped=0, first=2¹⁰, last=2¹⁰, layers=1, largest=33.3)
    """
    from qlab.model.loss_scaler import LossScaler

    if not isinstance(scaler, LossScaler):
        raise TypeError(f"scaler is a qlab.amp.LossScaler, not {type(scaler).__name__}")
    if not scaler.scales:
        raise ValueError(f"{scaler} has no step to draw; train one step at least, up to update()")
    steps, skipped = len(scaler.scales), list(scaler.skipped)  # training may go on before this is drawn
    exponents = np.log2(np.maximum(scaler.scales, 2.0**-149))  # a scale can fall to 0
    layers, starts, shares = _underflow(reports or {}, steps)
    top = float(shares.max(initial=0.0))
    starting = np.flatnonzero(np.diff(exponents, prepend=np.nan))  # the steps at which a scale is new
    low, high = math.floor(exponents.min()), math.ceil(exponents.max())
    beneath = 0.21 * len(layers) + 0.42 * bool(layers)  # in inches, as what follows
    size, left = (6.8, 2.75 + beneath), max(0.09, 0.02 + 0.011 * max(map(len, layers), default=0))

    def draw(figure: Any, word: Word) -> None:
        from matplotlib.lines import Line2D

        def place(bottom: float, tall: float, start: float = left, end: float = 0.98) -> Any:
            return figure.add_axes((start, bottom / size[1], end - start, tall / size[1]))

        above, head = place(0.5 + beneath, 1.85), (size[1] - 0.2) / size[1]
        above.stairs(exponents[starting], np.append(starting, steps) - 0.5, baseline=None, color=COLORS["c0"], linewidth=1.8)
        above.plot(skipped, exponents[skipped], "X", color=COLORS["c1"], markersize=7, markeredgewidth=0, zorder=4,
                   clip_on=False)  # fmt: skip
        apart = math.ceil((high - low + 1) / 7)
        ticks = range(apart * math.ceil(low / apart), high + 1, apart)
        above.set_yticks(ticks, [superscript(tick) for tick in ticks])
        above.set_ylim(low - 0.5, high + 0.5)
        figure.text(left, head, word("scale"), color=COLORS["c0"], va="center")
        figure.add_artist(Line2D([0.645], [head], marker="X", color=COLORS["c1"], markersize=7, markeredgewidth=0))
        figure.text(0.665, head, word("skipped"), color=COLORS["c1"], va="center")
        every = [above]
        if layers:
            below = place(0.5, 0.21 * len(layers))
            _strips(below, starts, shares / (top or 1.0), steps)
            below.set(ylim=(len(layers) - 0.5, -0.5))
            below.set_yticks(range(len(layers)), layers, fontsize=8.5)
            below.tick_params(axis="y", length=0)
            below.grid(visible=False, axis="y")
            above.tick_params(labelbottom=False)
            every.append(below)
            between = (0.5 + 0.21 * len(layers) + 0.19) / size[1]
            figure.text(left, between, word("underflow"), color=COLORS["c3"], va="center")
            if top:
                key = place(between * size[1] - 0.06, 0.12, 0.8, 0.9)
                _strips(key, np.arange(6), np.linspace(0, 1, 6)[None], 6)
                key.set_axis_off()
                figure.text(0.79, between, "0", ha="right", va="center", fontsize=9)
                figure.text(0.91, between, f"{top:.3g}", ha="left", va="center", fontsize=9)
        for axes in every:
            axes.set_xlim(-0.5, steps - 0.5)
            axes.locator_params(axis="x", integer=True)
        figure.text((left + 0.98) / 2, 0.06 / size[1], word("x"), ha="center", va="bottom")

    first, last = (_power(scaler.scales[at]) for at in (0, -1))
    data = {"steps": steps, "skipped": len(skipped), "first": first, "last": last, "layers": len(layers),
            "largest": f"{top:.3g}"}  # fmt: skip
    return Figure("scale_history", draw, size, data)


def _underflow(reports: Mapping[int, Table], steps: int) -> tuple[list[str], Array, Array]:
    """Return layers, the steps of the reports that are drawn, and percentages of shape (layers, reports)."""
    if not isinstance(reports, Mapping):
        raise TypeError(f"reports is a dict of step to the table of qlab.amp.underflow_report, not {type(reports).__name__}")
    for step, report in reports.items():
        if not isinstance(report, Table) or not {"tensor", "count", "underflow"} <= set(report.columns):
            raise TypeError(f"reports[{step!r}] is not a table of qlab.amp.underflow_report; give what that returned")
        if not isinstance(step, int) or not 0 <= step < steps:
            raise ValueError(f"reports[{step!r}] is of no step of this scaler's; it has steps 0 to {steps - 1}")
    chosen = sorted(reports)
    chosen = [chosen[len(chosen) * i // _REPORTS] for i in range(_REPORTS)] if len(chosen) > _REPORTS else chosen
    lost: dict[str, Array] = {}  # of each layer, (elements, elements lost) by report
    for at, step in enumerate(chosen):
        for row in reports[step].rows:
            cells = dict(zip(reports[step].columns, row, strict=True))
            layer = cells["tensor"].rpartition(".")[0] or cells["tensor"]
            lost.setdefault(layer, np.zeros((2, len(chosen))))[:, at] += cells["count"], cells["count"] * cells["underflow"]
    shares = np.array([underflow / np.maximum(count, 1) for count, underflow in lost.values()])
    names = [name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :] for name in lost]
    return names, np.array(chosen, np.int64), shares.reshape(len(names), len(chosen))


def _strips(axes: Any, starts: Array, shares: Array, end: int) -> None:
    """Draw rows of cells from one start to the next, each the stronger the larger its share, 0 to 1, is."""
    from matplotlib.colors import to_rgba

    shades = np.ceil(shares * _SHADES)  # few, so that neighbours become one cell
    for row, shade in enumerate(shades):
        new = np.flatnonzero(np.diff(shade, prepend=np.nan))
        cells = [cell for cell in zip(starts[new], np.append(starts[new][1:], end), shade[new], strict=True) if cell[2]]
        spans = [(start - 0.5, stop - start) for start, stop, _ in cells]
        colors = [to_rgba(COLORS["c3"], alpha=float(depth) / _SHADES) for *_, depth in cells]
        axes.broken_barh(spans, (row - 0.42, 0.84), facecolors=colors, linewidth=0)


def _power(scale: float) -> str:
    fraction, exponent = math.frexp(scale)
    return superscript(exponent - 1) if fraction == 0.5 else f"{scale:.3g}"
