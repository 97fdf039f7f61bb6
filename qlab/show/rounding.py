"""Figures about rounding itself: what each way of rounding does to a number between two neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qlab._check import one_of
from qlab.number.codec import cast
from qlab.number.formats import IntFormat
from qlab.number.rounding import ROUNDINGS
from qlab.show.figure import COLORS, Figure

__all__ = ["rounding_errors", "stochastic_mean"]

Word = Any  # draw(figure, word): word(key) is a label of the figure in the reader's language

DETERMINISTIC = tuple(name for name in ROUNDINGS if name != "stochastic")
_WHOLE = IntFormat(6)  # the steps of any format, where they are equally long


def rounding_errors(*roundings: str, limit: int = 4) -> Figure:
    """Draw the error of rounding to whole steps against the value, a panel for each way of rounding.

    Parameters
    ----------
    *roundings : str
        Names as in `qlab.cast`, but not ``stochastic``; all six unless given.
    limit : int
        Steps to either side of zero, 1 to 8.
    """
    chosen = roundings or DETERMINISTIC
    for name in chosen:
        one_of("rounding", name, DETERMINISTIC)
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= 8:
        raise ValueError(f"limit={limit!r} is not allowed; give a whole number of steps from 1 to 8")
    marks = np.arange(-2 * limit, 2 * limit + 1) / 2  # whole numbers and ties; the error is a straight line between two
    hair = 2.0**-30
    pieces = marks[:-1, None] + np.array([hair, 0.5 - hair])
    samples = np.arange(8 * 64) / 64 + 1 / 128  # uniform, for the mean

    def error(x: Any, rounding: str) -> Any:
        return cast(x, _WHOLE, rounding=rounding) - x

    apart = 1 if limit < 3 else 2 if limit < 6 else 4
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    height = 1.45 * rows + 0.6
    width, tall = 0.9 / columns, 1.45 / height

    def panel(axes: Any, name: str) -> None:
        axes.axhline(0, color=COLORS["muted"], linewidth=0.8)
        lines = error(pieces, name)
        for x, y in zip(pieces, lines, strict=True):
            axes.plot(x, y, color=COLORS["c0"], linewidth=1.6, solid_capstyle="butt")
        jumps = 1 + np.flatnonzero(np.abs(lines[1:, 0] - lines[:-1, 1]) > 0.5)
        axes.plot(marks[jumps], error(marks[jumps], name), "o", color=COLORS["c0"], markersize=3.6, zorder=4)
        for side in (-1, 1):
            mean = float(np.mean(error(side * samples, name)))
            axes.plot([0, side * limit], [mean, mean], color=COLORS["c1"], linewidth=1.4, linestyle=(0, (4, 2)))
        axes.set(xlim=(-limit - 0.1, limit + 0.1), ylim=(-1.15, 1.15), yticks=[-1, 0, 1])
        axes.set_xticks([k for k in range(-limit, limit + 1) if k % apart == 0])
        axes.set_title(name, color=COLORS["ink"])

    def draw(figure: Any, word: Word) -> None:
        for i, name in enumerate(chosen):
            row, column = divmod(i, columns)
            bottom = 0.48 / height + (rows - 1 - row) * tall
            axes = figure.add_axes((0.09 + column * width, bottom, width - 0.03, 0.73 * tall))
            panel(axes, name)
            axes.tick_params(labelbottom=i + columns >= len(chosen), labelleft=column == 0)
        figure.text(0.53, 0.02 / height, word("x"), ha="center", va="bottom")
        figure.text(0.006, 0.5, word("y"), ha="left", va="center", rotation=90)

    return Figure("rounding_errors", draw, (6.6, height), {"roundings": " / ".join(chosen), "limit": limit})


def stochastic_mean(copies: Sequence[int] = (1, 16, 1024), *, seed: int = 0, steps: int = 4) -> Figure:
    """Draw the mean of many stochastic roundings of a value against the value, beside rounding to nearest.

    Parameters
    ----------
    copies : sequence of int
        How many roundings of each value are averaged, a panel each; at most four of them.
    seed : int
        Seed of the noise.
    steps : int
        Steps of the format that are drawn, 1 to 8.
    """
    copies = tuple(copies)
    if not 1 <= len(copies) <= 4 or min(copies) < 1:
        raise ValueError(f"copies={copies} is not allowed; give one to four positive numbers")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 8:
        raise ValueError(f"steps={steps!r} is not allowed; give a whole number from 1 to 8")
    x = np.arange(32 * steps + 1) / 32
    nearest = np.arange(steps)
    means = []
    for count in copies:
        rounded = cast(np.broadcast_to(x, (count, x.size)), _WHOLE, rounding="stochastic", rng=seed)
        means.append(np.asarray(rounded, np.float64).mean(axis=0))
    error = [float(np.sqrt(np.mean((mean - x) ** 2))) for mean in means]

    def draw(figure: Any, word: Word) -> None:
        width = 0.9 / len(copies)
        for i, (count, mean) in enumerate(zip(copies, means, strict=True)):
            axes = figure.add_axes((0.08 + i * width, 0.2, width - 0.035, 0.66))
            edges = np.concatenate([[0.0], nearest + 0.5, [float(steps)]])
            axes.stairs(np.arange(steps + 1), edges, baseline=None, color=COLORS["c1"], linewidth=1.2)
            axes.plot(x, mean, ".", color=COLORS["c0"], markersize=4)
            axes.set(xlim=(-0.1, steps + 0.1), ylim=(-0.25, steps + 0.25), xticks=range(steps + 1), yticks=range(steps + 1))
            axes.tick_params(labelleft=i == 0)
            axes.set_title(word("copies" if count > 1 else "one_copy", copies=count), color=COLORS["c0"])
            if i == 0:
                axes.set_ylabel(word("y"))
        figure.text(0.53, 0.02, word("x"), ha="center", va="bottom")

    data = {"copies": " / ".join(map(str, copies)), "error": " / ".join(f"{e:.3f}" for e in error)}
    return Figure("stochastic_mean", draw, (6.6, 2.6), data)
