"""Figures about one number and about why it is worth shrinking: parts I and II of the book."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qlab._pieces import Array
from qlab.number.codec import cast
from qlab.number.formats import FloatFormat, Format, get_format
from qlab.show.figure import COLORS, Figure, superscript

__all__ = [
    "accuracy_and_size", "binades", "digit_with_fewer_words", "energy", "number_line", "roofline", "spacing",
]  # fmt: skip

Word = Any  # draw(figure, word): word(key) is a label of the figure in the reader's language


def number_line(fmt: str | Format, *, limit: float | None = None) -> Figure:
    """Draw the non-negative values of a small format as ticks; powers of two are long, subnormals orange.

    Parameters
    ----------
    fmt : str or Format
        A format of up to 16 bits.
    limit : float, optional
        Where the line ends; at the largest value unless given.
    """
    fmt = get_format(fmt)
    values = np.unique(fmt.values())
    limit = fmt.max if limit is None else float(limit)
    if not limit > 0:
        raise ValueError(f"limit={limit} is not allowed; give a positive number")
    values = values[(values >= 0) & (values <= limit)]
    subnormal = (values < fmt.smallest_normal) & (values > 0)
    power = np.frexp(values)[0] == 0.5

    def draw(figure: Any, word: Word) -> None:
        axes = figure.add_axes((0.02, 0.2, 0.96, 0.75))
        axes.vlines(values[power & ~subnormal], 0, 1.0, color=COLORS["c0"], linewidth=1.6)
        axes.vlines(values[~power & ~subnormal & (values > 0)], 0, 0.62, color=COLORS["c0"], linewidth=1.1)
        axes.vlines(values[subnormal], 0, 0.62, color=COLORS["c1"], linewidth=1.1)
        axes.vlines([0.0], 0, 1.0, color=COLORS["ink"], linewidth=1.6)
        axes.set(xlim=(-0.01 * limit, 1.02 * limit), ylim=(0, 1.25), yticks=[], xlabel=word("x"))
        axes.spines["left"].set_visible(False)
        axes.grid(False)
        if subnormal.any():
            axes.text(0.0, 1.12, word("subnormal"), color=COLORS["c1"], ha="left")
        axes.text(limit, 1.12, word("normal"), color=COLORS["c0"], ha="right")

    data = {"format": fmt.name, "limit": f"{limit:g}", "count": len(values)}
    return Figure("number_line", draw, (6.6, 1.7), data)


def binades(*formats: str | Format, low: int = -10, high: int = 6) -> Figure:
    """Draw the distance to the next value against the value, both on logarithmic axes.

    Parameters
    ----------
    *formats : str or FloatFormat
        One staircase each.
    low, high : int
        Exponents of two between which the values lie.
    """
    chosen = [_float_format(f) for f in formats]
    if not chosen or low >= high:
        raise ValueError(f"got {len(chosen)} formats from 2**{low} to 2**{high}; give at least one, and low below high")
    x = np.exp2(np.linspace(low, high, 24 * (high - low) + 1))
    exponent = np.frexp(x)[1] - 1

    def draw(figure: Any, word: Word) -> None:
        axes = figure.add_axes((0.13, 0.15, 0.68, 0.8))
        for i, fmt in enumerate(chosen):
            step = np.exp2(np.maximum(exponent, fmt.emin) - float(fmt.mantissa_bits))
            color = COLORS[f"c{i % 8}"]
            inside = x <= fmt.max
            axes.plot(x[inside], step[inside], color=color)
            end = float(x[inside][-1])
            if end < 0.9 * x[-1]:  # the format ends within the figure
                axes.text(end, step[inside][-1] * 2.0, fmt.name, color=color, va="bottom", ha="right")
            else:
                axes.text(1.02, step[-1], fmt.name, color=color, transform=axes.get_yaxis_transform(), va="center")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        _power_ticks(axes.xaxis, range(low, high + 1, 4))
        steps = [max(e, fmt.emin) - fmt.mantissa_bits for fmt in chosen for e in (low, high)]
        _power_ticks(axes.yaxis, range(min(steps), max(steps) + 1, 6))
        axes.set(xlim=(2.0**low, 2.0**high), xlabel=word("x"), ylabel=word("y"))

    return Figure("binades", draw, (6.6, 3.4), {"formats": " / ".join(f.name for f in chosen)})


def spacing(fmt: str | Format, *, low: int | None = None, high: int | None = None) -> Figure:
    """Draw the relative rounding error of a format against the value.

    Parameters
    ----------
    fmt : str or FloatFormat
        A format with subnormals.
    low, high : int, optional
        Exponents of two between which the values lie; around the smallest normal unless given.
    """
    fmt = _float_format(fmt)
    low = fmt.emin - fmt.mantissa_bits if low is None else low
    high = fmt.emin + 5 if high is None else high
    x = np.exp2(np.linspace(low, high, 150 * (high - low) + 1))
    error = np.abs(np.asarray(cast(x, fmt), np.float64) - x) / x

    def draw(figure: Any, word: Word) -> None:
        axes = figure.add_axes((0.11, 0.16, 0.86, 0.78))
        axes.axvspan(2.0**low, fmt.smallest_normal, color=COLORS["c1"], alpha=0.1, linewidth=0)
        axes.plot(x, error, color=COLORS["c0"], linewidth=1.1)
        axes.axhline(fmt.epsilon / 2, color=COLORS["c1"], linewidth=1.1, linestyle=(0, (4, 3)))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        bottom = -fmt.mantissa_bits - 6
        _power_ticks(axes.xaxis, range(low, high + 1, max(1, (high - low) // 6)))
        _power_ticks(axes.yaxis, range(bottom, 1, max(1, -bottom // 6)))
        axes.set(xlim=(2.0**low, 2.0**high), ylim=(2.0**bottom, 2.0), xlabel=word("x"), ylabel=word("y"))
        axes.text(2.0**high, fmt.epsilon * 0.6, word("bound"), color=COLORS["c1"], va="bottom", ha="right")
        axes.text(fmt.smallest_normal * 0.9, 1.6, word("subnormal"), color=COLORS["c1"], va="top", ha="right")

    data = {"format": fmt.name, "bound": superscript(-fmt.mantissa_bits - 1), "smallest_normal": superscript(fmt.emin),
            "largest_error": f"{error[x >= fmt.smallest_normal].max():.4g}"}  # fmt: skip
    return Figure("spacing", draw, (6.6, 3.0), data)


def roofline(points: Sequence[tuple[int, int, float]], *, flops: float, bandwidth: float) -> Figure:
    """Draw the roofline of a machine, and products of different batch sizes on it.

    Parameters
    ----------
    points : sequence of (batch, bits, intensity)
        Batch size, bits per weight, and operations per byte moved of each product.
    flops, bandwidth : float
        What the machine computes, in operations per second, and moves, in bytes per second.
    """
    if not (flops > 0 and bandwidth > 0):
        raise ValueError(f"flops={flops}, bandwidth={bandwidth}: a machine computes and moves more than nothing")
    ridge = flops / bandwidth

    def draw(figure: Any, word: Word) -> None:
        axes = figure.add_axes((0.11, 0.15, 0.86, 0.8))
        x = np.geomspace(0.25, 4096, 200)
        axes.plot(x, np.minimum(x * bandwidth, flops) / 1e12, color=COLORS["ink"])
        axes.axvspan(0.25, ridge, color=COLORS["c0"], alpha=0.08, linewidth=0)
        for i, (batch, bits, intensity) in enumerate(points):
            y = min(intensity * bandwidth, flops) / 1e12
            color = COLORS[f"c{i % 8}"]
            axes.plot([intensity], [y], "o", color=color, markersize=8)
            axes.text(intensity * 1.25, y * 0.72, word("point", batch=batch, bits=bits), color=color, va="top")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks([2.0**k for k in range(-2, 13, 2)], ["¼", "1", "4", "16", "64", "256", "1024", "4096"])
        axes.set_yticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
        axes.minorticks_off()
        axes.set(xlim=(0.25, 4096), ylim=(0.6, 2000), xlabel=word("x"), ylabel=word("y"))
        axes.text(0.3, 1200, word("memory"), color=COLORS["c0"])
        axes.text(ridge * 1.15, 1200, word("arithmetic"), color=COLORS["ink"])

    data = {"teraflops": f"{flops / 1e12:g}", "terabytes": f"{bandwidth / 1e12:g}", "ridge": f"{ridge:.0f}"}
    return Figure("roofline", draw, (6.6, 3.6), data)


# Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014: pJ in a 45 nm process at 0.9 V.
# The cache is the 8 KB one, for 64 bits 10 pJ; main memory 1.3 to 2.6 nJ for 64 bits: here half of each, for 32 bits.
ENERGY = {
    "int8_add": 0.03, "int32_add": 0.1, "float16_add": 0.4, "float32_add": 0.9, "int8_mul": 0.2, "int32_mul": 3.1,
    "float16_mul": 1.1, "float32_mul": 3.7, "cache_read": 5.0, "memory_read": 640.0,
}  # fmt: skip
"""Energy of one operation, in picojoules (Horowitz 2014)."""


def energy() -> Figure:
    """Draw the energy of an addition, a multiplication and a memory access by width (Horowitz 2014)."""

    def draw(figure: Any, word: Word) -> None:
        axes = figure.add_axes((0.36, 0.14, 0.56, 0.84))
        kinds = {"add": "c2", "mul": "c0", "read": "c1"}
        for row, (key, picojoules) in enumerate(reversed(ENERGY.items())):
            color = COLORS[kinds[key.split("_")[1]]]
            axes.barh(row, picojoules - 0.01, left=0.01, color=color, height=0.68)
            axes.text(picojoules * 1.15, row, f"{picojoules:g}", va="center", color=COLORS["ink"])
        axes.set_xscale("log")
        axes.set_xticks([0.01, 0.1, 1, 10, 100, 1000], ["0.01", "0.1", "1", "10", "100", "1000"])
        axes.minorticks_off()
        axes.set_yticks(range(len(ENERGY)), [word(key) for key in reversed(ENERGY)])
        axes.set(xlim=(0.01, 2500), xlabel=word("x"))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)

    return Figure("energy", draw, (6.6, 3.4), {"smallest": "0.03", "largest": "640"})


def digit_with_fewer_words(picture: Array, digit: int) -> Figure:
    """Draw one picture with 16, 8, 4 and 2 grey levels.

    Parameters
    ----------
    picture : array of shape (8, 8)
        Grey levels from 0 to 1.
    digit : int
        What it shows.
    """
    picture = np.asarray(picture, np.float64)
    if picture.ndim != 2:
        raise ValueError(f"picture has shape {picture.shape}; it must have rows and columns, as (8, 8)")
    versions = [(bits, np.round(picture * (2**bits - 1)) / (2**bits - 1)) for bits in (4, 3, 2, 1)]

    def draw(figure: Any, word: Word) -> None:
        for i, (bits, levels) in enumerate(versions):
            axes = figure.add_axes((0.01 + 0.25 * i, 0.02, 0.23, 0.82))
            axes.pcolormesh(levels[::-1], cmap="gray_r", vmin=0, vmax=1, edgecolors="face", linewidth=1)
            axes.set(xticks=[], yticks=[], aspect="equal")
            axes.grid(False)
            for side in ("top", "right"):
                axes.spines[side].set_visible(True)
            axes.set_title(word("bits" if bits > 1 else "one_bit", bits=bits), loc="center", color=COLORS["ink"])

    return Figure("digit_with_fewer_words", draw, (6.6, 1.95), {"digit": digit})


def accuracy_and_size(bits: Sequence[int], accuracy: Sequence[float], kilobytes: Sequence[float]) -> Figure:
    """Draw accuracy and size of a model against the bits of its weights.

    Parameters
    ----------
    bits : sequence of int
        Bits per weight, descending.
    accuracy : sequence of float
        Percent.
    kilobytes : sequence of float
        Size of the weights.
    """
    data = {
        "highest": f"{accuracy[0]:.1f}", "lowest": f"{min(accuracy):.1f}",
        "good": min(b for b, a in zip(bits, accuracy, strict=True) if a > accuracy[0] - 2),
    }  # fmt: skip

    def draw(figure: Any, word: Word) -> None:
        position = np.arange(len(bits))
        top = figure.add_axes((0.1, 0.47, 0.88, 0.47))
        top.plot(position, accuracy, "o-", color=COLORS["c0"])
        for i, value in enumerate(accuracy):
            dip = 0 < i < len(bits) - 1 and value < min(accuracy[i - 1], accuracy[i + 1])
            shift, align = (-5, "top") if dip else (4, "bottom")
            top.text(i, value + shift, f"{value:.1f}", ha="center", va=align, color=COLORS["c0"])
        top.set(xlim=(-0.5, len(bits) - 0.5), ylim=(min(50.0, min(accuracy) - 22), 118), xticks=position)
        top.tick_params(labelbottom=False)
        top.set_title(word("accuracy"), color=COLORS["c0"])
        bottom = figure.add_axes((0.1, 0.13, 0.88, 0.22))
        bottom.bar(position, kilobytes, color=COLORS["c1"], width=0.5)
        for i, value in enumerate(kilobytes):
            bottom.text(i, value + 0.06 * max(kilobytes), f"{value:.3g}", ha="center", color=COLORS["c1"])
        bottom.set_xticks(position, [str(b) for b in bits])
        bottom.set(xlim=(-0.5, len(bits) - 0.5), ylim=(0, 1.3 * max(kilobytes)), xlabel=word("x"))
        bottom.set_title(word("size"), color=COLORS["c1"])
        for axes in (top, bottom):
            axes.grid(axis="x", visible=False)

    return Figure("accuracy_and_size", draw, (6.6, 3.9), data)


def _float_format(fmt: str | Format) -> FloatFormat:
    fmt = get_format(fmt)
    if not isinstance(fmt, FloatFormat):
        raise TypeError(f"{fmt.name} has no exponent; this figure is for floating-point formats")
    return fmt


def _power_ticks(axis: Any, exponents: range) -> None:
    axis.set_ticks([2.0**e for e in exponents], [superscript(e) for e in exponents])
    axis.set_minor_locator(_no_ticks())


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


