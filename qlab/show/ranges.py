"""Figures about range: what falls out of a format's window, above as overflow and below as underflow (chapter 06)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qlab._pieces import Array
from qlab.number.codec import cast
from qlab.number.formats import FloatFormat, Format, get_format
from qlab.show.figure import COLORS, Figure, superscript

__all__ = ["gradient_windows", "softmax_shift"]

Word = Any  # draw(figure, word): word(key) is a label of the figure in the reader's language

_NORMAL, _SUBNORMAL, _LOST = COLORS["c0"], COLORS["c1"], COLORS["c4"]
_HISTOGRAMS = (COLORS["c2"], COLORS["c3"], COLORS["c6"], COLORS["c7"])
_WINDOWS = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def softmax_shift(logits: Sequence[float] | Array, fmt: str | Format = "float16") -> Figure:
    """Draw where the exponentials of logits lie against the range of a format, as they are and with the maximum subtracted.

    Parameters
    ----------
    logits : array_like of shape (n,)
        One row of logits, finite; 2 to 16 of them.
    fmt : str or FloatFormat
        The format in which the exponentials are to be held.
    """
    fmt, z = _float(fmt), np.asarray(logits, np.float64)
    if z.ndim != 1 or not 2 <= z.size <= 16 or not np.isfinite(z).all():
        raise ValueError(f"logits of shape {z.shape} are not allowed; give one row of 2 to 16 finite numbers")
    rows = [z, z - z.max()]
    states = [_states(np.exp(row), fmt) for row in rows]
    powers = [row / math.log(2) for row in rows]  # log2 of the exponentials
    low = min(math.log2(fmt.smallest_subnormal), *(float(p.min()) for p in powers)) - 4
    high = max(math.log2(fmt.max), float(powers[0].max())) + 5

    def draw(figure: Any, word: Word) -> None:
        tall = 0.37
        for row, (power, state) in enumerate(zip(powers, states, strict=True)):
            axes = figure.add_axes((0.06, 0.145 + (1 - row) * (tall + 0.075), 0.92, tall))
            _bands(axes, fmt)
            for key, color, mark in (("kept", _NORMAL, "o"), ("subnormal", _SUBNORMAL, "o"), ("lost", _LOST, "X")):
                chosen = np.flatnonzero(state == key)
                axes.plot(power[chosen], chosen, mark, color=color, markersize=5.5, markeredgewidth=0, zorder=3)
            axes.set(xlim=(low, high), ylim=(z.size + 0.08 * z.size, -0.6))
            axes.set_yticks(range(0, z.size, 1 if z.size <= 5 else 3))
            step = 8 if high - low < 90 else 8 * math.ceil((high - low) / 90)
            axes.set_xticks(range(step * math.ceil(low / step), math.floor(high) + 1, step))
            axes.set_xticklabels([superscript(int(t)) for t in axes.get_xticks()])
            axes.tick_params(labelbottom=row == 1)
            axes.text(0.0, 1.04, word("after" if row else "before"), transform=axes.transAxes, ha="left", va="bottom")
            if row == 0:
                edges = [low, *_window(fmt), high]
                inside = ("zero", "subnormal", "normal", "overflow")
                colors = (_LOST, _SUBNORMAL, _NORMAL, _LOST)
                for key, color, left, right in zip(inside, colors, edges[:-1], edges[1:], strict=True):
                    middle = (left + right) / 2
                    axes.text(middle, 1.07 * z.size, word(key), color=color, ha="center", va="bottom", fontsize=8.5)
        figure.text(0.52, 0.01, word("x"), ha="center", va="bottom")
        figure.text(0.004, 0.55, word("y"), ha="left", va="center", rotation=90)

    lost = [_counts(row, fmt) for row in rows]
    data = {"format": fmt.name, "count": z.size, "overflow": f"{lost[0][0]} / {lost[1][0]}",
            "zeros": f"{lost[0][1]} / {lost[1][1]}"}  # fmt: skip
    return Figure("softmax_shift", draw, (6.6, 4.0), data)


def gradient_windows(
    gradients: Mapping[str, Array], formats: Sequence[str | Format] = _WINDOWS, *, scale: float = 1.0, low: int = -64,
    high: int = 20,
) -> Figure:  # fmt: skip
    """Draw histograms of the magnitudes of gradients over the ranges of formats.

    Parameters
    ----------
    gradients : mapping of str to array_like
        One to four named arrays, each with an element that is finite and not zero. Zeros are left out.
    formats : sequence of str or FloatFormat
        One row of windows each, from the top.
    scale : float
        A power of two that all gradients are multiplied by; unless it is 1, the unscaled histograms are drawn dashed.
    low, high : int
        Exponents of two at the ends of the drawing.
    """
    chosen = [_float(fmt) for fmt in formats]
    if not chosen or not 1 <= len(gradients) <= len(_HISTOGRAMS):
        raise ValueError(f"{len(gradients)} gradients and {len(chosen)} formats were given; give 1 to 4, and at least 1")
    if not 0 < scale < math.inf or math.frexp(scale)[0] != 0.5:
        raise ValueError(f"scale={scale!r} is not allowed; give a power of two, as 2.0**10")
    if low >= high:
        raise ValueError(f"low={low} and high={high} leave no binade; give low below high")
    shift = math.frexp(scale)[1] - 1
    shares = {name: _per_binade(name, array) for name, array in gradients.items()}
    top = max(float(share.max()) for _, share in shares.values())

    def draw(figure: Any, word: Word) -> None:
        height = 2.75 + 0.3 * len(chosen)
        beneath = 0.3 * len(chosen) / height
        axes = figure.add_axes((0.19, beneath + 0.52 / height, 0.79, 1.9 / height))
        for (first, share), color in zip(shares.values(), _HISTOGRAMS, strict=False):
            edges = np.arange(first, first + share.size + 1)
            if shift:
                axes.stairs(share, edges, color=color, linewidth=1.0, linestyle=(0, (2, 2)), alpha=0.8)
            axes.stairs(share, edges + shift, color=color, linewidth=1.7)
            axes.stairs(share, edges + shift, color=color, fill=True, alpha=0.12, linewidth=0)
        axes.set(xlim=(low, high), ylim=(0, 1.12 * top), ylabel=word("y"))
        axes.tick_params(labelbottom=False)
        for i, (name, color) in enumerate(zip(shares, _HISTOGRAMS, strict=False)):
            axes.text(0.2 * i, 1.03, name, color=color, transform=axes.transAxes, ha="left", va="bottom")
        if shift:
            axes.text(1.0, 1.03, f"× {superscript(shift)}", transform=axes.transAxes, ha="right", va="bottom")
        below = figure.add_axes((0.19, 0.52 / height, 0.79, beneath))
        for row, fmt in enumerate(chosen):
            zero, normal, end = _window(fmt)
            for left, right, color, alpha in ((zero, normal, _SUBNORMAL, 0.55), (normal, end, _NORMAL, 0.75)):
                left, right = max(left, low), min(right, high)
                if left < right:
                    below.barh(row, right - left, left=left, height=0.5, color=color, alpha=alpha, linewidth=0)
            below.text(-0.015, row, fmt.name, ha="right", va="center", fontsize=9, transform=below.get_yaxis_transform())
        below.set(xlim=(low, high), ylim=(len(chosen) - 0.5, -0.5), yticks=[])
        below.spines["left"].set_visible(False)
        ticks = range(8 * math.ceil(low / 8), high + 1, 8)
        for part in (axes, below):
            part.set_xticks(ticks, [superscript(t) for t in ticks])
        figure.text(0.585, 0.01, word("x"), ha="center", va="bottom")
        for x, key, color in ((0.19, "subnormal", _SUBNORMAL), (0.8, "normal", _NORMAL)):
            figure.text(x, 0.01, word(key), color=color, ha="left", va="bottom", fontsize=9)

    data = {"gradients": " / ".join(shares), "formats": " / ".join(f.name for f in chosen), "scale": superscript(shift)}
    return Figure("gradient_windows", draw, (6.6, 2.75 + 0.3 * len(chosen)), data)


# --- what the figures share ------------------------------------------------------------------------------------------
def _float(fmt: str | Format) -> FloatFormat:
    found = get_format(fmt)
    if not isinstance(found, FloatFormat):
        raise TypeError(f"{found.name} has no exponent; this figure is for floating-point formats")
    return found


def _window(fmt: FloatFormat) -> tuple[float, float, float]:
    """Return log2 of half the smallest value, up to which all becomes zero, of the smallest normal and of the largest."""
    return math.log2(fmt.smallest_subnormal) - 1, math.log2(fmt.smallest_normal), math.log2(fmt.max)


def _states(values: Array, fmt: FloatFormat) -> Array:
    """Return for each positive value what becomes of it in the format: kept, subnormal or lost; shape (n,)."""
    stored = np.asarray(cast(values, fmt), np.float64)
    lost = ~np.isfinite(stored) | (stored == 0)
    return np.where(lost, "lost", np.where(stored < fmt.smallest_normal, "subnormal", "kept"))


def _counts(logits: Array, fmt: FloatFormat) -> tuple[int, int]:
    """Return how many of the exponentials overflow, and how many become zero."""
    stored = np.asarray(cast(np.exp(logits), fmt), np.float64)
    return int((~np.isfinite(stored)).sum()), int((stored == 0).sum())


def _bands(axes: Any, fmt: FloatFormat) -> None:
    """Shade the normal and the subnormal range."""
    zero, normal, end = _window(fmt)
    axes.axvspan(zero, normal, color=_SUBNORMAL, alpha=0.12, linewidth=0)
    axes.axvspan(normal, end, color=_NORMAL, alpha=0.1, linewidth=0)


def _per_binade(name: str, array: Array) -> tuple[int, Array]:
    """Return the lowest exponent and the percentages of the non-zero elements in each binade from it on."""
    magnitudes = np.abs(np.asarray(array, np.float64))
    magnitudes = magnitudes[np.isfinite(magnitudes) & (magnitudes > 0)]
    if not magnitudes.size:
        raise ValueError(f"gradient {name!r} has no element that is finite and not zero; leave it out")
    exponents = np.frexp(magnitudes)[1] - 1
    first = int(exponents.min())
    return first, 100 * np.bincount(exponents - first) / magnitudes.size
