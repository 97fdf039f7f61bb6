"""The grid that a scheme lays over a weight: what the methods share.

A method decides, for each weight, which code it gets, and sometimes with which scale. `Grid` holds the scales as the scheme
stores them, one for each element, rounds values to the grid, and packs what was decided.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from qlab._pieces import SHORT, Array
from qlab.model.record import Inputs
from qlab.number.codec import code_dtype, decode, encode
from qlab.number.formats import IntFormat
from qlab.tensor.blocks import PerRow
from qlab.tensor.qtensor import QTensor, scale_values
from qlab.tensor.quantize import quantize, store_codes
from qlab.tensor.scheme import Fitted, Scheme, get_scheme
from qlab.tensor.store import store_scales
from qlab.tensor.walk import Plan

__all__ = ["Grid", "checked_inputs", "inverse_or_one", "weight_array"]


class Grid:
    """A scheme's grid for one weight: scales by the scheme's rule, each rounded to what is stored.

    Parameters
    ----------
    weight : float32 array of shape (out, in)
    scheme : str or Scheme
        Not of GGUF's types.

    Attributes
    ----------
    scale : float32 array of shape (out, in)
        Of each element.
    zero : float32 array of shape (out, in), or None
        Zero point or minimum of each element.
    offset : float32 number
        What a scheme with ``center`` takes off first, else 0.
    nearest : QTensor
        The weight rounded to nearest.
    """

    def __init__(self, weight: Array, scheme: str | Scheme) -> None:
        scheme = get_scheme(scheme)
        if scheme.layout is not None:
            raise ValueError(
                f"{scheme} searches for its own scales and codes; use the method 'rtn', or a scheme such as 'int4_b32'"
            )
        self.nearest = quantize(weight, scheme)
        self.scheme = self.nearest.scheme  # with the codebook, if it is one that is fitted
        assert not isinstance(self.scheme.format, Fitted)
        self.format = self.scheme.format
        self.scale = self.spread(scale_values(self.nearest.scale))
        self.zero = None if self.nearest.zero is None else self.spread(self.nearest.zero)
        self.offset = np.float32(self.nearest.offset or 0)

    def spread(self, of_blocks: Array) -> Array:
        """Return what each block has for each element: float32 of shape (out, in)."""
        out = np.empty(self.nearest.shape, np.float32)
        plan = Plan(out, self.scheme)
        for number, part in enumerate(plan.parts):
            everything = tuple(slice(0, n) for n in part.view.shape)
            counts = plan.counts(part)
            values = plan.take(np.asarray(of_blocks, np.float32), number, everything)
            part.view[...] = values.reshape(counts + (1,) * (part.view.ndim - len(counts)))
        return out

    def rescaled(self, rows: Array) -> tuple[Array, Array | None]:
        """Return the scheme's scale (and zero) for whole rows that are one block each: shape (k,)."""
        found = quantize(np.asarray(rows, np.float32), replace(self.scheme, blocks=PerRow(), center=False))
        return scale_values(found.scale), None if found.zero is None else np.asarray(found.zero, np.float32)

    def codes(self, values: Array, scale: Array, zero: Array | None) -> Array:
        """Return the nearest codes (bit patterns) of values less the offset; scale and zero broadcast."""
        fmt = self.format
        if not isinstance(fmt, IntFormat):
            return np.asarray(encode(values * inverse_or_one(scale), fmt, overflow="saturate"))
        steps = values - zero if self.scheme.zero == "min" and zero is not None else values
        steps = np.rint(steps * inverse_or_one(scale))
        if self.scheme.zero == "integer":
            steps += zero
        elif self.scheme.zero == "min":
            steps += fmt.min
        np.clip(steps, fmt.min, fmt.max, out=steps)
        return np.asarray(steps.astype(np.int32) & ((1 << fmt.bits) - 1), code_dtype(fmt))

    def neighbours(self, values: Array, scale: Array, zero: Array | None) -> tuple[Array, Array]:
        """Return the codes next to values less the offset: that of the level below (in steps), and that of the one above."""
        steps = (values - zero if self.scheme.zero == "min" and zero is not None else values) * inverse_or_one(scale)
        if self.scheme.zero is not None:
            steps = steps + (zero if self.scheme.zero == "integer" else self.format.min)
        below, above = (encode(steps, self.format, rounding=way, overflow="saturate") for way in ("down", "up"))
        return np.asarray(below), np.asarray(above)

    def values(self, codes: Array, scale: Array, zero: Array | None) -> Array:
        """Return what codes stand for, without the offset: float64."""
        levels = np.asarray(decode(codes, self.format), np.float64)
        if self.scheme.zero == "integer" and zero is not None:
            levels = levels - zero
        elif self.scheme.zero == "min" and zero is not None:
            return (levels - float(self.format.min)) * scale + zero
        return levels * scale

    def round_with(self, values: Array, scale: Array, zero: Array | None) -> QTensor:
        """Round values less the offset, (out, in), to nearest with other scales (and zeros) of the blocks, as they are stored."""
        shape = scale_values(self.nearest.scale).shape
        kept, kept_zero = store_scales(scale, zero, self.scheme, shape)
        wide, wide_zero = self.spread(scale_values(kept)), None if kept_zero is None else self.spread(kept_zero)
        codes = np.empty(values.shape, code_dtype(self.format))
        step = max(1, SHORT // values.shape[1])
        for start in range(0, len(values), step):
            some = slice(start, start + step)
            codes[some] = self.codes(values[some], wide[some], None if wide_zero is None else wide_zero[some])
        return self.store(codes, kept, kept_zero)

    def store(self, codes: Array, scale: Any = None, zero: Array | None = None) -> QTensor:
        """Pack codes of shape (out, in); with scales (and zeros) of the blocks unless they are those of `nearest`."""
        if scale is None:
            scale, zero = self.nearest.scale, self.nearest.zero
        packed = store_codes(codes, scale, zero, self.scheme)
        return replace(packed, offset=self.nearest.offset, fitted=self.nearest.fitted)


def inverse_or_one(scale: Array) -> Array:
    """Return 1 / scale in float64, and 1 where the scale is 0: of a block of zeros."""
    wide = np.asarray(scale, np.float64)
    return np.asarray(1 / np.where(wide == 0, 1, wide))


def weight_array(weight: Tensor) -> Array:
    """Return a weight as a float32 array of shape (out, in); it may share memory with the tensor.

    Raises
    ------
    TypeError
        If `weight` is not a tensor of floats.
    ValueError
        If it is not two-dimensional, or holds NaN or infinities.
    """
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError(f"weight is a tensor of floats, not {getattr(weight, 'dtype', type(weight).__name__)}")
    if weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(
            f"weight has the shape {tuple(weight.shape)}; methods take (out, in), a convolution's as weight.flatten(1)"
        )
    array: Array = weight.detach().to("cpu").float().numpy()
    if wrong := array.size - int(np.isfinite(array).sum()):
        raise ValueError(f"weight holds {wrong} infinities or NaN, which have no scale; load or train it again")
    return array


def checked_inputs(inputs: Inputs | None, weight: Array, method: str) -> Inputs:
    """Return the inputs of a layer, if they are there and have as many channels as the weight.

    Raises
    ------
    ValueError
        If not.
    """
    if inputs is None:
        raise ValueError(f"{method} needs to know the layer's inputs; give calibration batches, or use 'rtn' or 'hqq'")
    if len(inputs.mean_abs) != weight.shape[1]:
        raise ValueError(
            f"the weight has {weight.shape[1]} input channels, the inputs have {len(inputs.mean_abs)}; "
            "collect the inputs of this layer"
        )
    return inputs
