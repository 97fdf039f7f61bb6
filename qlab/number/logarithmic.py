"""Products of takums, exactly, though takums are irrational: what multiplies, divides and takes roots of powers.

A takum is ``sqrt(e)**l``, where l has a few bits, and float64 holds it rounded. So a float64 product of two takums is
off by a few units in its last place, and where the true product, ``sqrt(e)**(l + m)``, is a takum itself or a boundary
between two (13 % of the products of takum8 are), the float64 says nothing about the side. But l + m, l - m and l / 2 lie
on a grid, no finer than ``2**-12`` for 16 bits; takums and boundaries lie on it too; and of two different numbers on
the grid the larger is larger by more than one part in ``2**14``. Hence a float64 that agrees with a takum or a boundary
to one part in ``2**40`` *is* that one, and any other lies on the side that it seems to lie on.

Sums have no such grid; nor do they need one, for no sum of two takums is a boundary or a third takum (the powers of e
with different rational exponents are independent, by the theorem of Lindemann and Weierstrass), save x + 0 and x - x.
They are added as float64, and are right unless a true sum comes within ``2**-52`` times its larger term of a boundary:
none of takum8 does. (L. Hunhold, "Beating Posits at Their Own Game: Takum Arithmetic", 2024.)
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from qlab._pieces import Array
from qlab.number.formats import Format, TableFormat

__all__ = ["is_takum", "settle"]

_CLOSE = 2.0**-40


@lru_cache(maxsize=512)
def is_takum(fmt: Format) -> bool:
    """Whether a format is a takum, as `qlab.number.tapered.takum` makes it."""
    if not (isinstance(fmt, TableFormat) and fmt.name == f"takum{fmt.bits}" and fmt.bits >= 3):
        return False
    from qlab.number.tapered import takum

    return fmt == takum(fmt.bits)


def settle(results: Array, fmt: TableFormat, rounding: str) -> Array:
    """Return float64 products, quotients or roots of takums, those that are takums or boundaries being settled.

    Parameters
    ----------
    results : float64 array of shape (n,)
        Off by a few units in the last place; NaN, infinities, zeros and what lies beyond all takums stay.
    fmt : TableFormat
        A takum.
    rounding : str
        The rounding to come: to nearest, a boundary is a tie, and becomes the neighbour that the tie goes to.
    """
    points, settled = _settled(fmt, rounding)
    above = np.clip(np.searchsorted(points, results), 1, len(points) - 1)
    nearest = above - (results - points[above - 1] < points[above] - results)
    close = np.abs(results - points[nearest]) < _CLOSE * np.abs(results)
    return np.where(close, settled[nearest], results)


@lru_cache(maxsize=64)
def _settled(fmt: TableFormat, rounding: str) -> tuple[Array, Array]:
    """Takums and the boundaries between them in ascending order, and what each becomes: float64 of shape (n,)."""
    values, codes = fmt.ordered
    boundaries = fmt.thresholds[:, 0]
    goes_to = boundaries
    if rounding.startswith("nearest"):
        up = codes[1:] % 2 == 0 if rounding == "nearest_even" else values[1:] > 0
        goes_to = np.where(up, values[1:], values[:-1])
    points = np.concatenate([values, boundaries[boundaries != 0]])  # next to zero there are no ties
    order = np.argsort(points)
    return points[order], np.concatenate([values, goes_to[boundaries != 0]])[order]
