"""Figures about arithmetic: sums that stall, errors that grow, updates that are lost."""

from __future__ import annotations

from typing import Any

import numpy as np

from qlab._pieces import Array
from qlab.number import arithmetic
from qlab.number.codec import cast
from qlab.number.formats import FloatFormat, Format, get_format
from qlab.number.measures import ulp
from qlab.show.figure import COLORS, Figure, superscript

__all__ = ["lost_updates", "stalling_sums", "sum_errors"]

Word = Any  # draw(figure, word): word(key) is a label of the figure in the reader's language


def stalling_sums(*formats: str | Format, highest: int = 13, seed: int = 0) -> Figure:
    """Draw the running sum of ones against how many were added, rounded to nearest in each format.

    The first format is drawn twice more: with a float32 accumulator, and as dots with stochastic rounding.

    Parameters
    ----------
    *formats : str or FloatFormat
        One to three formats; bfloat16, float16 and float8_e4m3fn unless given.
    highest : int
        The power of two up to which ones are added, 4 to 14.
    seed : int
        Of the noise.
    """
    chosen = [_float_format(f) for f in formats or ("bfloat16", "float16", "float8_e4m3fn")]
    if len(chosen) > 3:
        raise ValueError(f"got {len(chosen)} formats; give one to three")
    _whole("highest", highest, 4, 14)
    powers = np.arange(4 * highest + 1) / 4
    counts = np.unique(np.round(2**powers).astype(int))
    terms = (np.arange(2**highest)[:, None] < counts).astype(np.float32)  # a column of ones for each count
    sums = [_sum(terms, f) for f in chosen]
    wide = _sum(terms, chosen[0], accumulator="float32")
    dots = counts[np.log2(counts) % 0.5 == 0] if highest < 6 else counts[counts >= 64]
    several = np.repeat((np.arange(2**highest)[:, None] < dots).astype(np.float32), 3, axis=1)
    chance = _sum(several, chosen[0], rounding="stochastic", rng=seed)
    top = float(2**highest)

    def draw(figure: Any, word: Word) -> None:
        axes = figure.add_axes((0.09, 0.15, 0.49, 0.81))
        side = {"transform": axes.get_yaxis_transform(), "va": "center"}
        axes.plot(counts, wide, color=COLORS["c2"], linewidth=2.2)
        axes.text(1.02, top * 0.93, word("accumulator", format=chosen[0].name), color=COLORS["c2"], **side)
        axes.plot(np.repeat(dots, 3), chance, ".", color=COLORS["c1"], markersize=5, zorder=3)
        axes.text(1.02, top * 2.1, word("stochastic", format=chosen[0].name), color=COLORS["c1"], **side)
        for fmt, line, key in zip(chosen, sums, ("c0", "c3", "c4"), strict=False):
            axes.plot(counts, line, color=COLORS[key], linewidth=2.2)
            low = min(line[-1], top / 2.2)
            axes.text(1.02, low, f"{fmt.name}: {line[-1]:g}", color=COLORS[key], **side)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        ticks = [2.0**k for k in range(0, highest + 1, 2)]
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(ticks, labels=[f"{t:g}" for t in ticks])
            axis.set_minor_locator(_no_ticks())
        axes.set(xlim=(1, top * 1.08), ylim=(1, top * 2.4), xlabel=word("x"), ylabel=word("y"))

    stalls = " · ".join(f"{fmt.name} {line[-1]:g}" for fmt, line in zip(chosen, sums, strict=True))
    return Figure("stalling_sums", draw, (6.8, 3.6), {"count": 2**highest, "format": chosen[0].name, "stalls": stalls})


def sum_errors(fmt: str | Format = "bfloat16", *, highest: int = 14, rows: int = 64, seed: int = 0) -> Figure:
    """Draw the mean relative error of sums of random positive numbers against how many there are, with its bounds.

    Parameters
    ----------
    fmt : str or FloatFormat
        The format of terms, partial sums and result; with a float32 accumulator too.
    highest : int
        The power of two at which the lengths end, 5 to 16; they begin at 2**4.
    rows : int
        Sums of each length, over which the error is averaged.
    seed : int
        Of the numbers, uniform from 0 to 1, and of the noise for stochastic rounding.
    """
    chosen = _float_format(fmt)
    _whole("highest", highest, 5, 16)
    _whole("rows", rows, 1, 4096)
    x = cast(np.random.default_rng(seed).uniform(0, 1, (2**highest, rows)), chosen)
    lengths = 2 ** np.arange(4, highest + 1)
    unit = chosen.epsilon / 2
    ways: dict[str, dict[str, Any]] = {
        "sequential": {}, "stochastic": {"rounding": "stochastic", "rng": seed}, "pairwise": {"order": "pairwise"},
        "kahan": {"order": "kahan"}, "accumulator": {"accumulator": "float32"},
    }  # fmt: skip
    truth = {n: x[:n].sum(axis=0) for n in lengths}
    errors = {
        way: np.array([float(np.mean(np.abs(_sum(x[:n], chosen, **how) - truth[n]) / truth[n])) for n in lengths])
        for way, how in ways.items()
    }
    colors = dict(zip(ways, ("c0", "c1", "c3", "c2", "c6"), strict=True))
    bounds = {
        "n u": (lengths * unit, "c0"),
        "log₂(n) u": (np.log2(lengths) * unit, "c3"),
        "2u": (0 * lengths + 2 * unit, "c2"),
    }
    low = 2.0 ** np.floor(np.log2(min(float(e[e > 0].min()) for e in errors.values())) - 0.5)

    def draw(figure: Any, word: Word) -> None:
        axes = figure.add_axes((0.1, 0.14, 0.6, 0.82))
        for way, error in errors.items():
            style = (0, (3, 2)) if way == "accumulator" else "-"
            axes.plot(lengths, error, color=COLORS[colors[way]], linestyle=style, zorder=3)
        names = list(ways)
        for way, height in zip(names, _apart([float(errors[w][-1]) for w in names], low, 1.75), strict=True):
            axes.text(1.02, height, word(way), color=COLORS[colors[way]], va="center", transform=axes.get_yaxis_transform())
        for name, (bound, key) in bounds.items():
            axes.plot(lengths, bound, color=COLORS[key], linewidth=0.8, linestyle=(0, (1, 1.5)))
            at = 2 if bound[2] < 1 else 0
            axes.text(lengths[at], bound[at] * 1.12, name, color=COLORS[key], ha="right", va="bottom", fontsize=8.5)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        for axis, first, last in ((axes.xaxis, 4, highest), (axes.yaxis, int(np.log2(low)), 0)):
            exponents = range(first, last + 1, 2)
            axis.set_ticks([2.0**k for k in exponents], labels=[superscript(k) for k in exponents])
            axis.set_minor_locator(_no_ticks())
        axes.set(xlim=(2**3.8, 2**highest), ylim=(low, 2.0), xlabel=word("x"), ylabel=word("y"))

    data = {"format": chosen.name, "rows": rows} | {way: f"{error[-1]:.2g}" for way, error in errors.items()}
    return Figure("sum_errors", draw, (6.8, 3.8), data)


def lost_updates(weights: Any, updates: Any, *formats: str | Format) -> Figure:
    """Draw how large updates are beside half an ulp of the weights that they are added to, a panel for each format.

    Parameters
    ----------
    weights, updates : array_like of one shape
        Of updates that are zero nothing is drawn.
    *formats : str or FloatFormat
        One to four formats of the weights; float16, bfloat16 and float8_e4m3fn unless given.
    """
    chosen = [_float_format(f) for f in formats or ("float16", "bfloat16", "float8_e4m3fn")]
    if len(chosen) > 4:
        raise ValueError(f"got {len(chosen)} formats; give one to four")
    w, u = np.asarray(weights, np.float64).reshape(-1), np.asarray(updates, np.float64).reshape(-1)
    if w.shape != u.shape or not u.any():
        raise ValueError(f"{w.size} weights and {u.size} updates do not match, or all updates are zero; give one for each")
    w, u = w[u != 0], u[u != 0]
    edges = np.arange(-12, 9) / 1.0
    panels = []
    for fmt in chosen:
        old = np.asarray(cast(w, fmt), np.float64)
        size = np.log2(np.abs(u) / (ulp(old, fmt) / 2))
        lost = float(100 * np.mean(arithmetic.add(old, u, fmt) == old))
        heights = np.histogram(np.clip(size, edges[0], edges[-1]), edges)[0] * 100 / u.size
        panels.append((heights, lost))
    highest = max(float(heights.max()) for heights, _ in panels)

    def draw(figure: Any, word: Word) -> None:
        tall = 1 / (len(chosen) + 0.45)
        for i, (fmt, (heights, lost)) in enumerate(zip(chosen, panels, strict=True)):
            axes = figure.add_axes((0.09, 1 - (i + 0.97) * tall, 0.89, 0.8 * tall))
            below = edges[:-1] < 0
            for part, key in ((below, "c1"), (~below, "c0")):
                axes.bar(edges[:-1][part], heights[part], 0.9, color=COLORS[key], align="edge", linewidth=0)
            axes.axvline(0, color=COLORS["ink"], linewidth=1.2)
            axes.text(edges[0], highest * 1.3, fmt.name, color=COLORS["ink"], va="center")
            axes.text(-0.2, highest * 1.3, word("lost", percent=f"{lost:.3g}"), color=COLORS["c1"], va="center", ha="right")
            ticks = range(-12, 9, 4)
            axes.set_xticks(ticks, labels=[superscript(t) for t in ticks])
            axes.tick_params(labelbottom=i == len(chosen) - 1)
            axes.set(xlim=(edges[0] - 0.2, edges[-1] + 0.2), ylim=(0, highest * 1.45))
            axes.locator_params(axis="y", nbins=3)
        figure.text(0.53, 0.02, word("x"), ha="center", va="bottom")
        figure.text(0.003, 0.55, word("y"), ha="left", va="center", rotation=90)

    shares = " · ".join(f"{fmt.name} {lost:.3g}%" for fmt, (_, lost) in zip(chosen, panels, strict=True))
    return Figure("lost_updates", draw, (6.6, 0.7 + 1.1 * len(chosen)), {"updates": u.size, "shares": shares})


def _sum(terms: Array, fmt: FloatFormat, **how: Any) -> Array:
    """Return the sums of columns as float64."""
    return np.asarray(arithmetic.sum(terms, fmt, axis=0, **how), np.float64)


def _apart(heights: list[float], low: float, factor: float) -> list[float]:
    """Move heights on a logarithmic axis up until each is `factor` above the next lower one."""
    moved, last = list(heights), low / factor
    for i in sorted(range(len(heights)), key=lambda k: heights[k]):
        last = moved[i] = max(heights[i], last * factor)
    return moved


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _float_format(fmt: str | Format) -> FloatFormat:
    fmt = get_format(fmt)
    if not isinstance(fmt, FloatFormat):
        raise TypeError(f"{fmt.name} has no exponent; give a FloatFormat such as 'bfloat16'")
    return fmt


def _whole(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}={value!r} is not allowed; give a whole number from {low} to {high}")
