"""From values to values of a format, a piece at a time: by the lane that is made for it, or by way of the codes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from qlab._pieces import SHORT, Array, Scratch, parts_of
from qlab.number.bits import FLOAT32, FLOAT64, Layout
from qlab.number.decoding import decoder_of
from qlab.number.formats import FloatFormat, Format, IntFormat
from qlab.number.halves import narrow
from qlab.number.lanes import FloatLane, IntLane, TableLane
from qlab.number.policies import PeerExponentLane

__all__ = ["Lane", "Rounder", "lane_of", "saturating_rounder"]

Lane = FloatLane | IntLane | TableLane | PeerExponentLane


@lru_cache(maxsize=512)
def lane_of(fmt: Format, layout: Layout, rounding: str, overflow: str) -> Lane:
    """Return the lane that follows the rules, working in a float."""
    if isinstance(fmt, FloatFormat):
        return FloatLane(fmt, layout, rounding, overflow)
    if isinstance(fmt, IntFormat):
        return IntLane(fmt, layout, rounding, overflow)
    return TableLane(fmt, layout, rounding, overflow)


class Rounder:
    """Casts pieces: by the lane where it can, else by way of the codes.

    Parameters
    ----------
    lane : Lane
        What follows the rules of rounding.
    layout : Layout
        The float that the lane works in.
    fmt : Format
        The target.
    kind : dtype
        A float that holds every value of the format.
    """

    def __init__(self, lane: Lane, layout: Layout, fmt: Format, kind: np.dtype[Any]) -> None:
        self.lane, self.kind, self.float_type = lane, kind, np.dtype(layout.float_type)
        self.decoder = decoder_of(fmt, np.dtype(layout.int_type), kind)

    def cast(self, values: Array, into: Array, scratch: Scratch, noise: Array | None = None) -> None:
        """Write the rounded values of a piece; `values` are in the float that the lane works in."""
        rounded = into if into.dtype == self.float_type else scratch("values", self.float_type, values.size)
        if not self.lane.cast(values, rounded, scratch, noise):
            if values.size > SHORT and getattr(self.lane, "fast", None) is not None:
                for part in parts_of(values.size):
                    self.cast(values[part], into[part], scratch, None if noise is None else noise[part])
                return
            rounded = into if into.dtype == self.kind else scratch("decoded", self.kind, values.size)
            self.decoder(self.lane.encode(values, scratch, noise), rounded, scratch)
        if rounded is not into:
            narrow(rounded, into, scratch)  # exact: the result's dtype holds every value of the format


def saturating_rounder(fmt: Format, kind: np.dtype[Any]) -> Rounder:
    """Return what quantizers round with: to nearest, in float32 or float64; what is too large becomes the largest value."""
    layout = FLOAT32 if kind == np.float32 else FLOAT64
    return Rounder(lane_of(fmt, layout, "nearest_even", "saturate"), layout, fmt, kind)
