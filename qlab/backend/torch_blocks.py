"""The law of schemes in portable torch operations: blocks, scales and codes on any device.

The same steps as `qlab.tensor.scales` and `qlab.tensor.quantize`, which explain them, on whole tensors. Rules that search,
codebooks that are fitted and GGUF's types are not written twice: `is_made_for` says so, and they go by way of the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qlab.backend.torch_law import decode_law, encode_law
from qlab.number.bits import FLOAT32, FLOAT64
from qlab.number.codec import code_dtype
from qlab.number.formats import FloatFormat, Format, IntFormat
from qlab.tensor.affine import LEAST, safe_scale
from qlab.tensor.blocks import regions, scale_shape, scale_table
from qlab.tensor.clipping import SLACK
from qlab.tensor.codebooks import FP4_SECOND_ZERO, dynamic_cells
from qlab.tensor.packing import packed_size
from qlab.tensor.qtensor import QTensor
from qlab.tensor.quantize import filler_of
from qlab.tensor.quantize import quantize as quantize_by_numpy
from qlab.tensor.scales import _fraction_bits, needs_rows, store_in
from qlab.tensor.scheme import Fitted, Scale, Scheme

__all__ = ["Coded", "code", "dequantize", "is_made_for", "pack", "quantize", "result_dtype", "unpack", "values_of"]

_WIDE = (torch.float64, torch.int32, torch.int64, torch.uint32, torch.uint64)


class Coded(NamedTuple):
    """A tensor as codes that are not packed yet: `scale` is a QTensor where a scheme stores the scales."""

    codes: Tensor
    scale: Tensor | QTensor
    zero: Tensor | None
    offset: float | None
    inside: Tensor | None


def is_made_for(x: Tensor, scheme: Scheme) -> bool:
    """Whether a scale needs no search, and no sum whose last bits depend on the order of adding."""
    if scheme.layout is not None or needs_rows(scheme) or isinstance(scheme.format, Fitted):
        return False
    inner = scheme.scale.stored
    if x.dtype is torch.float64 and scheme.scale.rule == "mean_abs":
        return False
    return not isinstance(inner, Scheme) or is_made_for(x, inner)


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the values that a tensor is brought back to: its own, or a float for integers."""
    return dtype if dtype.is_floating_point else torch.float64 if dtype in _WIDE else torch.float32


def quantize(x: Tensor, scheme: Scheme) -> QTensor:
    """Return what `qlab.quantize` does, on the device of x; the scheme is one that this `is_made_for`."""
    coded = code(x, scheme)
    payload = pack(coded.codes.reshape(-1), scheme.bits, scheme.order)
    assert not isinstance(scheme.format, Fitted)
    if filler := filler_of(scheme, scheme.format, x.numel()):
        payload[-1] |= filler
    zero = coded.zero
    if zero is not None and scheme.zero == "integer":
        zero = zero.to(torch.int16 if scheme.bits <= 8 else torch.int32)
    return QTensor(payload, coded.scale, scheme, tuple(x.shape), result_dtype(x.dtype), zero, coded.offset)


def dequantize(qtensor: QTensor, limit: float | None = None) -> Tensor:
    """Return the values of a QTensor of any scheme but GGUF's, in float32, or in float64 for a tensor of float64.

    They saturate at `limit`, the largest number of the float that they are for. No value is looked at: this goes through
    `torch.compile` and `torch.export`, also for a QTensor that is put together there from a module's buffers.
    """
    kind = torch.float64 if qtensor.dtype is torch.float64 else torch.float32
    count = math.prod(qtensor.shape)
    codes = unpack(qtensor.payload, count, qtensor.scheme.bits, qtensor.scheme.order).reshape(qtensor.shape)
    coded = Coded(codes, qtensor.scale, qtensor.zero, qtensor.offset, None)
    return values_of(coded, qtensor.scheme, kind, limit)


# --- codes and values ------------------------------------------------------------------------------------------------
def code(x: Tensor, scheme: Scheme, *, clipped: bool = False) -> Coded:
    """Return codes, scales and zeros, and where values lay inside of their block's range if `clipped` is asked for."""
    if x.numel() == 0:
        raise ValueError("x is empty; a scale needs at least one value")
    fmt, shape = scheme.format, tuple(x.shape)
    assert not isinstance(fmt, Fitted)
    scale_shape(scheme.blocks, shape)  # which refuses a shape that the blocks do not fit
    wide = x.dtype in _WIDE
    values = x.to(torch.float64 if wide else torch.float32).contiguous()
    offset = None
    if scheme.center:
        offset = float(np.float32(float(values.mean(dtype=torch.float64))))
        values = values - torch.tensor(offset, dtype=values.dtype, device=x.device)
    parts = [region.view.reshape(*_two_axes(region)) for region in regions(scheme.blocks, values)]
    scale, zero = _scales(x, parts, scheme, fmt, shape)
    kept, kept_zero = _as_stored(scale, zero, scheme)
    if not scheme.scale.late:
        scale, zero = dequantize(kept) if isinstance(kept, QTensor) else kept, kept_zero
    codes = torch.empty(shape, dtype=_code_type(fmt), device=x.device)
    inside = torch.empty(shape, dtype=torch.bool, device=x.device) if clipped else None
    masks = regions(scheme.blocks, inside) if inside is not None else []
    for number, into in enumerate(regions(scheme.blocks, codes)):
        column = _of_region(scale, into, scheme, shape)
        from_zero = None if zero is None else _of_region(zero, into, scheme, shape)
        found, within = _code_rows(parts[number], column, from_zero, scheme, fmt, clipped=clipped)
        into.view[...] = found.reshape(into.view.shape)
        if within is not None:
            masks[number].view[...] = within.reshape(into.view.shape)
    return Coded(codes, kept, kept_zero, offset, inside)


def values_of(coded: Coded, scheme: Scheme, kind: torch.dtype, limit: float | None = None) -> Tensor:
    """Return the values that codes stand for, float32 or float64, saturating at `limit` (or the float's own largest)."""
    fmt, shape = scheme.format, tuple(coded.codes.shape)
    assert not isinstance(fmt, Fitted)
    limit, offset = torch.finfo(kind).max if limit is None else limit, coded.offset
    scale = (dequantize(coded.scale) if isinstance(coded.scale, QTensor) else coded.scale).to(kind)
    zero = None if coded.zero is None else coded.zero.to(kind)
    values = decode_law(coded.codes, fmt, FLOAT64 if kind is torch.float64 else FLOAT32)
    for region in regions(scheme.blocks, values):
        rows = region.view.reshape(*_two_axes(region))
        from_zero = None if zero is None else _of_region(zero, region, scheme, shape)
        if scheme.zero == "integer":
            rows = rows - from_zero
        elif scheme.zero == "min" and fmt.min:
            rows = rows - fmt.min
        column, minimum = _of_region(scale, region, scheme, shape), from_zero if scheme.zero == "min" else None
        half = _halves(column, minimum, offset or 0.0, scheme, limit)
        rows = rows * (column * half)
        if minimum is not None:
            rows = rows + minimum * half
        if offset is not None:
            rows = rows + offset * half
        ends = torch.where(half < 1, limit * half, math.inf)
        region.view[...] = (torch.clamp(rows, -ends, ends) / half).reshape(region.view.shape)
    return values


def _safe_scale(scheme: Scheme, limit: float) -> float:
    assert not isinstance(scheme.format, Fitted)
    return safe_scale(scheme, scheme.format, limit)


def _halves(scale: Tensor, minimum: Tensor | None, offset: float, scheme: Scheme, limit: float) -> Tensor:
    """For each block 1/2 where its values could be too large, else 1, as in `qlab.tensor.affine`: shape (k, 1)."""
    large = scale.abs() >= _safe_scale(scheme, limit)
    if minimum is not None:
        large = large | (minimum.abs() >= limit / 4)
    if abs(offset) >= limit / 4:
        large = torch.ones_like(large)
    return torch.ones_like(scale).masked_fill(large, 0.5)


def _two_axes(region: Any) -> tuple[int, int]:
    """Blocks, and elements of each."""
    shape = region.view.shape
    return math.prod(shape[: region.lead]), math.prod(shape[region.lead :])


def _of_region(scales: Tensor, region: Any, scheme: Scheme, shape: tuple[int, ...]) -> Tensor:
    """Return the scales of a region as a column, (k, 1)."""
    table: Tensor = scale_table(scheme.blocks, shape, scales)
    return table[region.at].reshape(-1, 1)


def _code_type(fmt: Format) -> torch.dtype:
    return torch.uint8 if code_dtype(fmt) == np.uint8 else torch.int32


def _code_rows(
    rows: Tensor, scale: Tensor, zero: Tensor | None, scheme: Scheme, fmt: Format, *, clipped: bool
) -> tuple[Tensor, Tensor | None]:
    if scheme.zero == "min":
        assert zero is not None
        limit = torch.finfo(scale.dtype).max
        half = _halves(scale, None, 0.0, scheme, limit)
        rows, scale = rows * half - zero * half, scale * half
    column = torch.where(scale == 0, math.inf, scale)
    if scheme.scale.reciprocal:
        least = _number(LEAST[str(scale.dtype).removeprefix("torch.")], scale)
        column = torch.where(column.abs() < least, torch.copysign(least, column), column)
        scaled = rows * (torch.ones_like(column) / column)
    else:
        scaled = rows / column
    if isinstance(fmt, IntFormat):
        scaled = torch.round(scaled)
        if zero is not None:
            scaled = scaled + (zero if scheme.zero == "integer" else fmt.min)
    inside = None
    if clipped:
        slack = scaled.new_tensor(1 + SLACK * torch.finfo(scaled.dtype).eps / 2)
        inside = (scaled >= fmt.min * slack) & (scaled <= fmt.max * slack)
    if isinstance(fmt, IntFormat):
        codes = scaled.clamp(fmt.min, fmt.max).to(torch.int32)
        return (codes & ((1 << fmt.bits) - 1) if fmt.bits <= 8 else codes), inside
    if fmt.name == "dynamic8" and scheme.scale.reciprocal:  # as bitsandbytes finds them, by cells
        cells = ((scaled + 1) * 32767.5 + 0.5).long().clamp(0, 65535)
        codes = torch.from_numpy(dynamic_cells()).to(scaled.device)[cells]
        return torch.where(scale == 0, 0, codes.int()).to(torch.uint8), inside
    deep = isinstance(fmt, FloatFormat) and fmt.emin < -126
    layout = FLOAT64 if deep or scaled.dtype is torch.float64 else FLOAT32
    scaled = scaled.double() if layout is FLOAT64 else scaled
    codes = encode_law(scaled.contiguous(), fmt, layout, "nearest_even", "saturate", None)
    if fmt.name == "fp4_bnb":
        codes = torch.where((codes == 0) & (scaled > 0), FP4_SECOND_ZERO, codes)
    return codes, inside


# --- scales ----------------------------------------------------------------------------------------------------------
def _scales(
    x: Tensor, parts: list[Tensor], scheme: Scheme, fmt: Format, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor | None]:
    """Find the scale (and the zero) of every block."""
    kind, device = parts[0].dtype, x.device
    scale = torch.empty(scale_shape(scheme.blocks, shape), dtype=kind, device=device)
    zero = None if scheme.zero is None else torch.empty_like(scale)
    counted = regions(scheme.blocks, x.contiguous())
    extents = [(rows.amin(1) + 0.0, rows.amax(1) + 0.0) for rows in parts]  # zeros without a sign
    if not all(bool((low.isfinite() & high.isfinite()).all()) for low, high in extents):
        quantize_by_numpy(x.cpu().float().numpy() if x.dtype is torch.bfloat16 else x.cpu().numpy(), scheme)  # which refuses
    for rows, region, (low, high) in zip(parts, counted, extents, strict=True):
        if scheme.zero is None:
            found, start = _RULES[scheme.scale.rule](rows, low, high, fmt, scheme.scale), None
        else:
            found, start = _from_range(low, high, scheme, fmt)
        for table, values in ((scale, found), (zero, start)):
            if table is not None and values is not None:
                view = scale_table(scheme.blocks, shape, table)[region.at]
                view[...] = values.reshape(view.shape)
    return scale, zero


def _as_stored(scale: Tensor, zero: Tensor | None, scheme: Scheme) -> tuple[Tensor | QTensor, Tensor | None]:
    """Return scales and zeros as their format, or a scheme of their own, stores them."""
    stored = scheme.scale.stored
    if stored is None:
        return scale, zero
    if isinstance(stored, Scheme):
        if zero is not None:
            raise ValueError(f"{scheme}: scales that a scheme stores go with zero=None, or with a GGUF type")
        return quantize(scale, stored), None
    if zero is not None and scheme.zero == "min":
        zero = store_scales(zero, stored, "minimum")
    return store_scales(scale, stored), zero


def _number(value: float, like: Tensor) -> Tensor:
    """A number as a tensor on the device: torch divides by a Python number in its own way, by a reciprocal on CUDA."""
    return torch.tensor(value, dtype=like.dtype, device=like.device)


def _absmax(low: Tensor, high: Tensor) -> Tensor:
    return torch.maximum(high, -low).abs()  # of zeros, plus zero


def _not_lost(scale: Tensor, extreme: Tensor) -> Tensor:
    tiny = float(np.finfo(str(scale.dtype).removeprefix("torch.")).smallest_subnormal)
    return torch.where((scale == 0) & (extreme != 0), tiny, scale)


def _by_absmax(rows: Tensor, low: Tensor, high: Tensor, fmt: Format, scale: Scale) -> Tensor:
    absmax = _absmax(low, high)
    return _not_lost(absmax / _number(fmt.max, absmax), absmax)


def _by_signed_absmax(rows: Tensor, low: Tensor, high: Tensor, fmt: Format, scale: Scale) -> Tensor:
    extreme = torch.where(high >= -low, high, low)
    return _not_lost(extreme / _number(fmt.min, extreme) + 0.0, extreme)


def _by_mean_abs(rows: Tensor, low: Tensor, high: Tensor, fmt: Format, scale: Scale) -> Tensor:
    total = rows.abs().sum(1, dtype=torch.float64)
    return _not_lost((total / _number(rows.shape[1], total)).to(rows.dtype), _absmax(low, high))


def _by_power_of_two(rows: Tensor, low: Tensor, high: Tensor, fmt: Format, scale: Scale) -> Tensor:
    absmax = _absmax(low, high)
    fraction, exponent = torch.frexp(absmax)
    limit, limit_exponent = math.frexp(fmt.max)
    return _power(exponent - limit_exponent + (fraction > limit), absmax)


def _by_mx(rows: Tensor, low: Tensor, high: Tensor, fmt: Format, scale: Scale) -> Tensor:
    if scale.rounding == "up":
        return _by_power_of_two(rows, low, high, fmt, scale)
    absmax = _absmax(low, high)
    fraction, exponent = torch.frexp(absmax)
    power = exponent - math.frexp(fmt.max)[1]
    if scale.rounding == "ceil":
        power = power + (fraction > 0.5)
    elif scale.rounding == "nearest_even":
        power = power + (fraction + 2.0 ** -(_fraction_bits(fmt) + 2) >= 1)
    return _power(power, absmax)


def _by_unit(rows: Tensor, low: Tensor, high: Tensor, fmt: Format, scale: Scale) -> Tensor:
    return torch.ones_like(high)


def _power(power: Tensor, absmax: Tensor) -> Tensor:
    """2**power where there is anything, from its bits."""
    layout = FLOAT64 if absmax.dtype is torch.float64 else FLOAT32
    power = power.clamp(-layout.bias, layout.bias).to(torch.int64 if layout is FLOAT64 else torch.int32)
    normal, lowest = (power + layout.bias) << layout.mantissa_bits, 1 << (layout.mantissa_bits - 1)
    powers = torch.where(power == -layout.bias, lowest, normal).view(absmax.dtype)
    return torch.where(absmax > 0, powers, 0.0)


_RULES: dict[str, Callable[[Tensor, Tensor, Tensor, Format, Scale], Tensor]] = {
    "absmax": _by_absmax, "signed_absmax": _by_signed_absmax, "mean_abs": _by_mean_abs, "power_of_two": _by_power_of_two,
    "mx": _by_mx, "unit": _by_unit,
}  # fmt: skip


def _from_range(low: Tensor, high: Tensor, scheme: Scheme, fmt: Format) -> tuple[Tensor, Tensor]:
    steps = _number(fmt.max - fmt.min, low)
    if scheme.zero == "integer":
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    span = high - low
    scale = torch.where(span.isfinite(), span / steps, high / steps - low / steps)
    scale = _not_lost(scale, span)
    if scheme.zero == "min":
        return scale, low
    zero = torch.round(fmt.min - low / torch.where(scale == 0, 1.0, scale))
    return scale, zero.clamp(fmt.min, fmt.max)


def store_scales(scales: Tensor, fmt: Format, what: str = "scale") -> Tensor:
    largest = scales.abs().amax()
    if bool(largest > fmt.max):
        store_in(largest.cpu().numpy().reshape(1), fmt, what)  # which refuses
    deep = scales.dtype is torch.float64 or (isinstance(fmt, FloatFormat) and fmt.emin < -126)
    layout = FLOAT64 if deep else FLOAT32
    codes = encode_law(scales.double() if deep else scales, fmt, layout, "nearest_even", "saturate", None)
    stored = decode_law(codes, fmt, layout).to(scales.dtype)
    if not getattr(fmt, "has_zero", True):
        return stored
    tiny = torch.copysign(_number(fmt.smallest_subnormal, scales), scales)
    return torch.where((stored == 0) & (scales != 0), tiny, stored)


# --- packing ---------------------------------------------------------------------------------------------------------
def pack(codes: Tensor, bits: int, order: str) -> Tensor:
    """Return the bytes of codes of shape (n,), as `qlab.tensor.packing.pack`."""
    if bits == 8:
        return codes.to(torch.uint8)
    each = _bits(codes, bits, order).reshape(-1)  # (n * bits,)
    whole = torch.zeros(8 * packed_size(len(codes), bits), dtype=torch.uint8, device=codes.device)
    whole[: len(each)] = each
    return (whole.reshape(-1, 8) << _places(8, order, codes.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, count: int, bits: int, order: str) -> Tensor:
    """Return the codes that bytes hold, as `qlab.tensor.packing.unpack`."""
    if bits == 8:
        return packed[:count]
    each = _bits(packed, 8, order).reshape(-1)[: count * bits].reshape(count, bits).to(torch.int32)
    codes = (each << _places(bits, order, packed.device)).sum(1, dtype=torch.int32)
    return codes.to(torch.uint8) if bits <= 8 else codes


def _bits(words: Tensor, bits: int, order: str) -> Tensor:
    """The bits of each word in the order in which they lie in a file: (n, bits)."""
    return ((words.reshape(-1, 1) >> _places(bits, order, words.device)) & 1).to(torch.uint8)


def _places(bits: int, order: str, device: torch.device) -> Tensor:
    places = torch.arange(bits, dtype=torch.uint8, device=device)
    return places if order == "low_first" else places.flip(0)
