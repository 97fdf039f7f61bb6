"""The law of rounding in portable torch operations: any device, clean under ``torch.compile(fullgraph=True)``.

The same integers as `qlab.number.rounding` and `qlab.number.lanes`, which explain them, without scratch memory and
without looking at a value: what is rare there (overflow, NaN) is computed everywhere here and chosen by `where`.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from qlab._pieces import Array
from qlab.number.bits import FLOAT32, Layout
from qlab.number.formats import FloatFormat, Format, IntFormat, TableFormat
from qlab.number.lanes import TableLane
from qlab.number.noise import MULTIPLIERS, ROUNDS, WEYL

__all__ = ["decode_law", "edges_of", "encode_law", "philox_tensor"]

_GUARD = 2


def _types(layout: Layout) -> tuple[torch.dtype, torch.dtype]:
    return (torch.float32, torch.int32) if layout is FLOAT32 else (torch.float64, torch.int64)


def encode_law(x: Tensor, fmt: Format, layout: Layout, rounding: str, overflow: str, noise: Tensor | None) -> Tensor:
    """Return the codes of a float32 or float64 tensor, as integers of its width; NaN is zero where the format has none."""
    if isinstance(fmt, IntFormat):
        return _encode_integers(x, fmt, rounding, noise)
    if isinstance(fmt, TableFormat):
        return _encode_table(x, fmt, layout, rounding, overflow, noise)
    bits = x.view(_types(layout)[1])
    codes = _magnitudes(bits, layout, fmt, rounding, noise)
    if not fmt.subnormals:
        codes = _below_the_lowest_binade(codes, x, bits, fmt, rounding, noise)
    magnitude = bits & layout.magnitude_mask
    codes = _overflow(codes, bits, magnitude, layout, fmt, rounding, overflow)
    is_nan = magnitude > layout.exponent_mask
    codes = torch.where(is_nan, 0 if fmt.nan_code is None else fmt.nan_code, codes)
    negative = (bits < 0) & ~is_nan & (codes <= fmt.max_code + fmt.infinities)  # a NaN is encoded without its sign
    if not fmt.signed:
        negative = negative & ((codes if fmt.has_zero else magnitude) != 0)
        smallest = 0 if overflow == "saturate" or fmt.nan_code is None else fmt.nan_code
        return torch.where(negative, smallest, codes)
    if fmt.nans == "negative_zero":
        negative = negative & (codes != 0)
    sign = fmt.sign_mask - (1 << layout.width) * (fmt.bits == layout.width)
    return torch.where(negative, codes | sign, codes)


def _magnitudes(bits: Tensor, layout: Layout, fmt: FloatFormat, rounding: str, noise: Tensor | None) -> Tensor:
    mantissa, drop = layout.mantissa_bits, layout.mantissa_bits - fmt.mantissa_bits
    lowest = fmt.emin + layout.bias
    field = (bits & layout.magnitude_mask) >> mantissa
    significand = ((bits & ((1 << mantissa) - 1)) | (field.clamp(max=1) << mantissa)) << _GUARD
    field = field.clamp(min=1)
    whole_shift = (lowest - field).clamp(min=0) + (drop + _GUARD)
    shift = whole_shift.clamp(max=mantissa + _GUARD + 2)
    codes = significand >> shift
    step = torch.ones_like(shift) << shift
    remainder = significand & (step - 1)
    codes = codes + ((field - lowest).clamp(min=0) << fmt.mantissa_bits)
    if not fmt.subnormals:
        codes = codes - (1 << fmt.mantissa_bits)
    negative = bits < 0
    if rounding == "nearest_even":
        up = remainder * 2 > step - (codes & 1)
    elif rounding == "nearest_away":
        up = remainder * 2 >= step
    elif rounding == "toward_zero":
        return codes
    elif rounding == "stochastic":
        assert noise is not None
        up = _noise_rounds_up(remainder, whole_shift, noise)
    else:
        away = {"up": ~negative, "down": negative, "to_odd": (codes & 1) == 0}[rounding]
        up = (remainder != 0) & away
    return codes + up


def _noise_width(noise: Tensor) -> int:
    return {torch.uint8: 8, torch.uint16: 16, torch.uint32: 32}[noise.dtype]


def _noise_rounds_up(remainder: Tensor, shift: Tensor, noise: Tensor) -> Tensor:
    width = _noise_width(noise)
    wide, by = remainder.to(torch.int64), shift.to(torch.int64) - width
    top = (wide << (-by).clamp(min=0)) >> by.clamp(min=0, max=63)
    return top + noise.to(torch.int64) >= 1 << width


def _share_rounds_up(share: Tensor, noise: Tensor) -> Tensor:
    scale = 2.0 ** _noise_width(noise)
    return torch.floor(share.double() * scale) + noise.to(torch.float64) >= scale


def _below_the_lowest_binade(
    codes: Tensor, x: Tensor, bits: Tensor, fmt: FloatFormat, rounding: str, noise: Tensor | None
) -> Tensor:
    magnitude, smallest = x.abs().double(), fmt.smallest_subnormal
    if not fmt.has_zero:
        return torch.where(magnitude <= smallest, 0, codes)
    share, negative = magnitude / smallest, bits < 0
    if rounding == "stochastic":
        assert noise is not None
        up = _share_rounds_up(share, noise)
    else:
        up = {
            "nearest_even": share > 0.5, "nearest_away": share >= 0.5, "toward_zero": torch.zeros_like(negative),
            "up": (magnitude > 0) & ~negative, "down": (magnitude > 0) & negative, "to_odd": magnitude > 0,
        }[rounding]  # fmt: skip
    return torch.where(magnitude < smallest, up.to(codes.dtype), codes)


def _overflow(
    codes: Tensor, bits: Tensor, magnitude: Tensor, layout: Layout, fmt: FloatFormat, rounding: str, overflow: str
) -> Tensor:
    beyond = fmt.infinity_code if fmt.infinity_code is not None else fmt.nan_code
    if overflow == "saturate" or beyond is None:
        return codes.clamp(max=fmt.max_code)
    if rounding in ("toward_zero", "to_odd"):
        due = magnitude == layout.exponent_mask
    elif rounding in ("up", "down"):
        due = ((bits < 0) == (rounding == "down")) | (magnitude == layout.exponent_mask)
    else:
        return torch.where(codes > fmt.max_code, beyond, codes)
    new = torch.where(due, beyond, fmt.max_code).to(codes.dtype)
    return torch.where(codes > fmt.max_code, new, codes)


def _encode_integers(x: Tensor, fmt: IntFormat, rounding: str, noise: Tensor | None) -> Tensor:
    x = torch.where(x.isnan(), 0.0, x).clamp(fmt.min, fmt.max)
    whole = {"nearest_even": torch.round, "toward_zero": torch.trunc, "up": torch.ceil, "down": torch.floor}
    if rounding in whole:
        x = whole[rounding](x)
    else:
        kept = torch.trunc(x)
        rest = (x - kept).abs()
        if rounding == "nearest_away":
            away = rest >= 0.5
        elif rounding == "to_odd":
            away = (rest > 0) & (torch.remainder(kept, 2) == 0)
        else:
            assert noise is not None
            away = _share_rounds_up(rest, noise)
        x = kept + torch.where(away, torch.copysign(torch.ones_like(x), x), 0.0)
    return x.to(torch.int64) & ((1 << fmt.bits) - 1)


def _encode_table(
    x: Tensor, fmt: TableFormat, layout: Layout, rounding: str, overflow: str, noise: Tensor | None
) -> Tensor:
    """Neighbours in the sorted table; what is not to nearest `TableLane` chooses on the CPU."""
    if rounding.startswith("nearest") and (fmt.nan_code is None or overflow == "saturate"):
        edges, of_cell = (torch.from_numpy(array).to(x.device) for array in edges_of(fmt, layout, rounding))
        codes = of_cell[torch.searchsorted(edges, x.detach().contiguous(), right=True)]
        return codes if fmt.nan_code is None else torch.where(x.isnan(), fmt.nan_code, codes)
    lane = TableLane(fmt, layout, rounding, overflow)
    values = x.detach().double().cpu().numpy().reshape(-1)
    if fmt.nan_code is None:
        values = np.where(np.isnan(values), 0.0, values)
    flat_noise = None if noise is None else noise.cpu().numpy().reshape(-1)
    chosen = lane.codes_by_rank[lane.ranks(values, flat_noise)]
    return torch.from_numpy(chosen.astype(np.int64)).reshape(x.shape).to(x.device)


@lru_cache(maxsize=64)
def edges_of(fmt: TableFormat, layout: Layout, rounding: str = "nearest_even") -> tuple[Array, Array]:
    """Return, for rounding to nearest, the smallest float that goes to each value but the lowest, and the code of each.

    The edges ascend, in the layout's float; a number goes to the value after the last edge that it is not below.
    """
    lane = TableLane(fmt, layout, rounding, "saturate")
    edges = np.where(lane.tie_up, lane.middle, np.nextafter(lane.middle, np.inf))
    edges = np.minimum(edges, lane.values[1:])
    narrow = edges.astype(layout.float_type)
    up = np.nextafter(narrow, layout.float_type(np.inf))
    return np.where(narrow.astype(np.float64) < edges, up, narrow), np.array(lane.codes, np.int64)


def decode_law(codes: Tensor, fmt: Format, layout: Layout) -> Tensor:
    """Return the values (float32 or float64, as the layout) that codes stand for."""
    float_type, int_type = _types(layout)
    if not isinstance(fmt, FloatFormat):
        table = torch.from_numpy(fmt.values()).to(float_type).to(codes.device) if fmt.bits <= 16 else None
        code = codes.to(torch.int64) & ((1 << fmt.bits) - 1)
        if table is not None:
            return table[code]
        assert isinstance(fmt, IntFormat)
        return torch.where(code > int(fmt.max), code - (1 << fmt.bits), code).to(float_type)
    code = codes.to(int_type)
    magnitude = code & fmt.magnitude_mask
    if (fmt.exponent_bits, fmt.mantissa_bits, fmt.bias) == (layout.width - 1 - layout.mantissa_bits, layout.mantissa_bits,
                                                             layout.bias):  # fmt: skip
        return code.view(float_type)
    field, fraction = magnitude >> fmt.mantissa_bits, magnitude & ((1 << fmt.mantissa_bits) - 1)
    exponent = (field + (layout.bias - fmt.bias)).clamp(min=0, max=2 * layout.bias)
    bits = (exponent << layout.mantissa_bits) | (fraction << (layout.mantissa_bits - fmt.mantissa_bits))
    value = bits.view(float_type)
    low = field == 0
    if fmt.subnormals:
        value = torch.where(low, fraction.to(float_type) * math.ldexp(1.0, fmt.emin - fmt.mantissa_bits), value)
    elif fmt.has_zero:
        value = torch.where(magnitude == 0, 0.0, value)
    else:
        value = torch.where(low, math.ldexp(1.0, fmt.emin), value)  # float8_e8m0fnu: a subnormal of float32
    value = torch.where(magnitude > fmt.max_code, math.inf if fmt.infinities else math.nan, value)
    if fmt.infinity_code is not None:
        value = torch.where(magnitude > fmt.infinity_code, math.nan, value)
    if not fmt.signed:
        return value
    negative = (code & (fmt.sign_mask - (1 << layout.width) * (fmt.bits == layout.width))) != 0
    value = torch.where(negative, -value, value)
    return torch.where(negative & (magnitude == 0), math.nan, value) if fmt.nans == "negative_zero" else value


def philox_tensor(seed: int, count: int, device: torch.device) -> Tensor:
    """Return the noise of the first `count` elements, as `qlab.number.noise.philox` gives it: uint32, shape (count,)."""
    counters = torch.arange((count + 3) // 4, dtype=torch.int64, device=device)
    low = 0xFFFFFFFF
    c = [counters & low, counters >> 32, torch.zeros_like(counters), torch.zeros_like(counters)]
    k = [seed & low, seed >> 32]
    for _ in range(ROUNDS):
        p0, p1 = c[0] * MULTIPLIERS[0], c[2] * MULTIPLIERS[1]
        c = [((p1 >> 32) & low) ^ c[1] ^ k[0], p1 & low, ((p0 >> 32) & low) ^ c[3] ^ k[1], p0 & low]
        k = [(k[0] + WEYL[0]) & low, (k[1] + WEYL[1]) & low]
    return torch.stack(c, dim=-1).reshape(-1)[:count].to(torch.uint32)
