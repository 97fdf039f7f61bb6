"""Figures that set number formats side by side: part I of the book, chapter 03."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qlab._pieces import Array
from qlab.number.formats import FloatFormat, Format, IntFormat, TableFormat, get_format
from qlab.show.figure import COLORS, Figure, superscript

__all__ = ["bit_layouts", "density", "format_map", "number_lines"]

Word = Any  # draw(figure, word): word(key) is a label of the figure in the reader's language
Box = tuple[float, float, float, float]  # left, bottom, right, top, in inches

_KINDS = {FloatFormat: ("floats", "c0"), IntFormat: ("integers", "c1"), TableFormat: ("tables", "c3")}


def format_map(*formats: str | Format) -> Figure:
    """Draw a map of formats, one labelled dot each: dynamic range to the right, precision upwards.

    Parameters
    ----------
    *formats : str or Format
        At least one. Range is the number of powers of two from the smallest positive to the largest value, subnormals
        included. Precision is the number of significant bits, the hidden one counted, where the format has most of them.

    Notes
    -----
    Both axes are logarithmic. For tables, posits and takums the precision is 1 + log2(values in the fullest binade).
    """
    chosen = _formats(formats)
    x = [max(1.0, math.log2(fmt.max) - math.log2(fmt.smallest_subnormal)) for fmt in chosen]
    y = [_significant_bits(fmt) for fmt in chosen]

    def draw(figure: Any, word: Word) -> None:
        width, height = 6.6, 4.4
        left, bottom, wide, high = 0.09, 0.12, 0.89, 0.8
        axes = figure.add_axes((left, bottom, wide, high))
        (x0, x1), (y0, y1) = (1.15, 6000.0), (0.8, 80.0)
        axes.set(xscale="log", yscale="log", xlim=(x0, x1), ylim=(y0, y1), xlabel=word("x"), ylabel=word("y"))
        for axis, ticks in (
            (axes.xaxis, [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048]),
            (axes.yaxis, [1, 2, 4, 8, 16, 32, 64]),
        ):
            axis.set_ticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
        inch_x = [wide * width * math.log(v / x0) / math.log(x1 / x0) for v in x]
        inch_y = [high * height * math.log(v / y0) / math.log(y1 / y0) for v in y]
        places = _label_places([f.name for f in chosen], inch_x, inch_y, (0, 0, wide * width, high * height))
        for fmt, px, py, (tx, ty) in zip(chosen, x, y, places, strict=True):
            color = COLORS[_KINDS[type(fmt)][1]]
            axes.plot([px], [py], "o", color=color, markersize=6)
            axes.text(tx / (wide * width), ty / (high * height), fmt.name, color=color, fontsize=8.5, va="center",
                      ha="left", transform=axes.transAxes)  # fmt: skip
        kinds = [k for cls, k in _KINDS.items() if any(isinstance(f, cls) for f in chosen)]
        for i, (key, name) in enumerate(kinds):
            axes.text(0.33 * i, 1.04, word(key), color=COLORS[name], transform=axes.transAxes, ha="left")

    data = {"formats": " / ".join(f.name for f in chosen), "count": len(chosen)}
    return Figure("format_map", draw, (6.6, 4.4), data)


def bit_layouts(*formats: str | Format) -> Figure:
    """Draw how formats divide their bits into sign, exponent and fraction, with the fractions' beginnings aligned.

    Parameters
    ----------
    *formats : str, FloatFormat or IntFormat
        One row each, from the top.

    Raises
    ------
    TypeError
        For a table of values (posits and takums are such tables), which has no fields.
    """
    chosen = _formats(formats)
    for fmt in chosen:
        if isinstance(fmt, TableFormat):
            raise TypeError(f"{fmt.name} has no fields; this figure is for floats and integers")
    widths = [(int(f.signed), f.exponent_bits, f.mantissa_bits) for f in chosen if not isinstance(f, TableFormat)]
    before = max(s + e for s, e, _ in widths)
    total = before + max(m for *_, m in widths)

    def draw(figure: Any, word: Word) -> None:
        axes = figure.add_axes((0.22, 0.02, 0.76, 0.86))
        axes.set(xlim=(-before, total - before + 2), ylim=(len(chosen) - 0.4, -0.6), xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[["left", "bottom"]].set_visible(False)
        for row, (fmt, (sign, exponent, fraction)) in enumerate(zip(chosen, widths, strict=True)):
            start = -(sign + exponent)
            for key, count in (("sign", sign), ("exponent", exponent), ("fraction", fraction)):
                if count:
                    axes.barh(
                        row, count, left=start, height=0.74, color=COLORS[key], edgecolor=COLORS["muted"], linewidth=0.7
                    )
                    axes.text(start + count / 2, row, str(count), ha="center", va="center", color=COLORS["ink"], fontsize=9)
                start += count
            axes.text(-0.02, row, fmt.name, ha="right", va="center", transform=axes.get_yaxis_transform())
        for i, key in enumerate(("sign", "exponent", "fraction")):
            axes.add_artist(_swatch(axes, 0.3 * i, key))
            axes.text(0.3 * i + 0.04, 1.055, word(key), va="center", ha="left", transform=axes.transAxes)

    data = {"formats": " / ".join(f.name for f in chosen)}
    return Figure("bit_layouts", draw, (6.6, 0.5 + 0.31 * len(chosen)), data)


def number_lines(*formats: str | Format, limits: Sequence[float] = (8.0,)) -> Figure:
    """Draw the non-negative values of several formats as ticks: a row for each format, a column for each zoom.

    Parameters
    ----------
    *formats : str or Format
        Formats of up to 16 bits, from the top.
    limits : sequence of float
        Where the line ends, for each column from the left; each must be positive.
    """
    chosen = _formats(formats, listed=True)
    ends = [float(limit) for limit in limits]
    if not 1 <= len(ends) <= 3 or not all(0 < end < math.inf for end in ends):
        raise ValueError(f"limits={limits!r} is not allowed; give one to three positive numbers")
    values = [np.unique(fmt.values()[fmt.values() >= 0]) for fmt in chosen]

    def draw(figure: Any, word: Word) -> None:
        rows, columns = len(chosen), len(ends)
        room = 0.785 / columns
        unit = 0.42 / (0.62 + 0.42 * rows)  # height of a row, as a share of the figure
        for row, (fmt, all_values) in enumerate(zip(chosen, values, strict=True)):
            bottom = 1 - unit * (row + 1)
            figure.text(0.005, bottom + 0.3 * unit, fmt.name, ha="left", va="center", fontsize=9)
            for column, end in enumerate(ends):
                axes = figure.add_axes((0.205 + room * column, bottom, room - 0.025, 0.72 * unit))
                _ticks(axes, fmt, all_values[all_values <= end])
                axes.set(xlim=(-0.012 * end, 1.012 * end), ylim=(0, 1.05), yticks=[])
                axes.set_xticks([0, end / 4, end / 2, 3 * end / 4, end])
                axes.grid(False)
                axes.spines["left"].set_visible(False)
                if row < rows - 1:
                    axes.tick_params(labelbottom=False, length=0)
                else:
                    axes.set_xticklabels([f"{t:g}" for t in (0, end / 4, end / 2, 3 * end / 4, end)], fontsize=9)
                    axes.set_xlabel(word("x"))

    data = {"formats": " / ".join(f.name for f in chosen), "limits": " / ".join(f"{end:g}" for end in ends)}
    return Figure("number_lines", draw, (6.6, 0.62 + 0.42 * len(chosen)), data)


def density(*formats: str | Format, low: int = -20, high: int = 20) -> Figure:
    """Draw how many values each format has between one power of two and the next.

    Parameters
    ----------
    *formats : str or Format
        Formats of up to 16 bits, one row each from the top.
    low, high : int
        Exponents of two between which the positive values are counted.

    Notes
    -----
    The heights are logarithmic: one step up is twice as many values, that is one more significant bit.
    """
    chosen = _formats(formats, listed=True)
    if low >= high:
        raise ValueError(f"low={low} and high={high} leave no binade; give low below high")
    counts = [_per_binade(fmt, low, high) for fmt in chosen]
    top = max(1, max(int(c.max()) for c in counts))
    shift = math.ceil(math.log2(top)) + 1

    def draw(figure: Any, word: Word) -> None:
        rows = len(chosen)
        unit = 0.62 / (0.55 + 0.62 * rows)
        for row, (fmt, count) in enumerate(zip(chosen, counts, strict=True)):
            bottom = 1 - unit * (row + 1)
            axes = figure.add_axes((0.3, bottom, 0.685, 0.84 * unit))
            present = np.flatnonzero(count)
            color = COLORS[_KINDS[type(fmt)][1]]
            axes.bar(low + present + 0.5, np.log2(count[present]) + 1, width=0.84, color=color, linewidth=0)
            axes.set(xlim=(low, high), ylim=(0, shift + 0.3))
            levels = range(0, shift, 2 if shift > 3 else 1)
            axes.set_yticks([level + 1 for level in levels], [str(2**level) for level in levels], fontsize=8)
            axes.set_xticks(range(low, high + 1, max(1, (high - low) // 8)))
            figure.text(0.005, bottom + 0.42 * unit, fmt.name, ha="left", va="center", color=color, fontsize=9)
            if row < rows - 1:
                axes.tick_params(labelbottom=False)
            else:
                axes.set_xticklabels([superscript(int(t)) for t in axes.get_xticks()])
                axes.set_xlabel(word("x"))

    data = {"formats": " / ".join(f.name for f in chosen), "low": superscript(low), "high": superscript(high)}
    return Figure("density", draw, (6.6, 0.55 + 0.62 * len(chosen)), data)


# --- what the figures share ------------------------------------------------------------------------------------------
def _formats(formats: Sequence[str | Format], *, listed: bool = False) -> list[Format]:
    """Return the formats; refuse none at all, and those whose values are too many to list where they must be."""
    chosen = [get_format(fmt) for fmt in formats]
    if not chosen:
        raise ValueError("no format was given; name at least one, as 'float16'")
    for fmt in chosen:
        if listed and fmt.bits > 16:
            raise ValueError(f"{fmt.name} has {fmt.bits} bits, too many values to draw; take formats of up to 16 bits")
    return chosen


def _per_binade(fmt: Format, low: int, high: int) -> Array:
    """Return the number of distinct values in [2**k, 2**(k+1)) for k from low to high - 1: int64 of shape (high - low,)."""
    values = np.unique(fmt.values())
    exponent = np.frexp(values[(values > 0) & np.isfinite(values)])[1] - 1
    inside = exponent[(exponent >= low) & (exponent < high)]
    return np.bincount(inside - low, minlength=high - low)


def _significant_bits(fmt: Format) -> float:
    if isinstance(fmt, FloatFormat):
        return fmt.mantissa_bits + 1.0
    if isinstance(fmt, IntFormat):
        return float(fmt.mantissa_bits)
    return 1 + math.log2(int(_per_binade(fmt, -1074, 1024).max()))


def _ticks(axes: Any, fmt: Format, values: Array) -> None:
    """Draw values as ticks: zero and powers of two long, subnormals orange."""
    power = (np.frexp(values)[0] == 0.5) | (values == 0)
    subnormal = (values > 0) & (values < fmt.smallest_normal)
    axes.vlines(values[power & ~subnormal], 0, 1.0, color=COLORS["c0"], linewidth=1.5)
    axes.vlines(values[~power & ~subnormal], 0, 0.6, color=COLORS["c0"], linewidth=0.9)
    axes.vlines(values[subnormal], 0, 0.6, color=COLORS["c1"], linewidth=0.9)


def _swatch(axes: Any, x: float, key: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, 1.02), 0.03, 0.07, transform=axes.transAxes, facecolor=COLORS[key], edgecolor=COLORS["muted"],
                     linewidth=0.7, clip_on=False)  # fmt: skip


def _label_places(names: Sequence[str], x: Sequence[float], y: Sequence[float], frame: Box) -> list[tuple[float, float]]:
    """Return where each label begins (its left end, half its height), in inches, so that none covers a dot or a label."""
    dots = [(px - 0.06, py - 0.06, px + 0.06, py + 0.06) for px, py in zip(x, y, strict=True)]
    wide = [0.074 * len(name) for name in names]
    choices = [_around(px, py, w) for px, py, w in zip(x, y, wide, strict=True)]
    places = [around[0] for around in choices]
    for _ in range(8):  # each label in turn moves to the best place that the others leave it
        for i, around in enumerate(choices):
            others = [_box(place, w) for j, (place, w) in enumerate(zip(places, wide, strict=True)) if j != i]
            costs = [100 * _clashes(_box(place, wide[i]), dots + others, frame) + k for k, place in enumerate(around)]
            places[i] = around[costs.index(min(costs))]
    return places


def _around(x: float, y: float, wide: float) -> list[tuple[float, float]]:
    """Return places for a label around a dot, the best first."""
    tries = [(x + 0.1, y), (x - 0.1 - wide, y)]
    for height in (y + 0.15, y - 0.15):
        tries += [(x - wide / 2, height), (x - 0.04, height), (x + 0.04 - wide, height)]
    return tries


def _box(place: tuple[float, float], wide: float) -> Box:
    return place[0], place[1] - 0.07, place[0] + wide, place[1] + 0.07


def _clashes(box: Box, taken: Sequence[Box], frame: Box) -> int:
    outside = box[0] < frame[0] or box[1] < frame[1] or box[2] > frame[2] or box[3] > frame[3]
    return outside + sum(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken)
