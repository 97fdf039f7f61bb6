"""CUDA kernels for schemes: blocks to packed codes and scales in one pass over memory, and back in one.

A program holds some whole blocks in registers: it finds their largest magnitudes, from them the scales, encodes by the law
of the format (`triton_ops` for floats, rounding for integers, a handful of edges for tables) and packs. A scale that is
stored in a format of its own is rounded between two such passes, by portable operations. Under Triton's interpreter the
kernels run on a CPU too, which is how they are tested where there is no GPU.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from qlab.backend import torch_blocks
from qlab.backend.torch_law import edges_of
from qlab.backend.triton_ops import _as_bits, _constants, _decode_piece, _encode_piece
from qlab.number.bits import FLOAT32
from qlab.number.formats import FloatFormat, Format, IntFormat, TableFormat, get_format
from qlab.tensor.affine import LEAST, safe_scale
from qlab.tensor.blocks import PerBlock, PerRow, scale_shape
from qlab.tensor.codebooks import FP4_SECOND_ZERO
from qlab.tensor.qtensor import QTensor
from qlab.tensor.scheme import Fitted, Scheme

__all__ = ["dequantize", "is_made_for", "quantize"]

TILE = 4096  # elements of a program
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_E8M0 = get_format("float8_e8m0fnu")


def is_made_for(shape: tuple[int, ...], dtype: torch.dtype, scheme: Scheme) -> bool:
    """Whether kernels quantize tensors of this shape and dtype by this scheme, and bring them back."""
    blocks, fmt = scheme.blocks, scheme.format
    if isinstance(fmt, Fitted) or scheme.layout or dtype not in _FLOATS:
        return False
    if not shape or math.prod(shape) == 0 or not isinstance(blocks, (PerRow, PerBlock)):
        return False
    size, axis = (blocks.size, blocks.axis) if isinstance(blocks, PerBlock) else (shape[-1], -1)
    if not isinstance(size, int) or not 16 <= size <= 4096 or size & (size - 1) or axis not in (None, -1, len(shape) - 1):
        return False
    length = math.prod(shape) if axis is None else shape[-1]
    if length % size or scheme.zero is not None or scheme.center or fmt.bits not in (4, 8):
        return False
    if scheme.scale.rule == "mx":
        return scheme.scale.rounding == "floor" and fmt.max >= 1 and _is_held(fmt)
    return scheme.scale.rule == "absmax" and _is_held(fmt)


def _is_held(fmt: Format) -> bool:
    """Whether the kernels know the format's codes."""
    if isinstance(fmt, FloatFormat):
        return fmt.subnormals and fmt.emin >= -126 and fmt.has_zero and fmt.signed
    return isinstance(fmt, IntFormat) or (isinstance(fmt, TableFormat) and len(fmt.table) <= 16 and fmt.nan_code is None)


@triton.jit
def _scale_of(absmax, RULE: tl.constexpr, MAX: tl.constexpr, HIGHEST: tl.constexpr, HAS_ZERO: tl.constexpr):
    """Scales (float32) of largest magnitudes given as bits; NaN where a block is not finite."""
    if RULE == "mx":
        power = tl.maximum((absmax >> 23) - HIGHEST, 0)  # the field of the exponent
        bits = tl.where(power == 0, 0x400000, power << 23)
        if HAS_ZERO:
            bits = tl.where(absmax == 0, 0, bits)
    else:
        bits = tl.div_rn(absmax.to(tl.float32, bitcast=True), MAX).to(tl.int32, bitcast=True)
        bits = tl.where((bits == 0) & (absmax != 0), 1, bits)  # the smallest number there is
    return tl.where(absmax >= 0x7F800000, 0x7FC00000, bits).to(tl.float32, bitcast=True)


@triton.jit
def _quantize_kernel(
    x_ptr, scale_ptr, payload_ptr, edges_ptr, cells_ptr, n_blocks, FIND: tl.constexpr, CODE: tl.constexpr,
    RULE: tl.constexpr, MAX: tl.constexpr, MIN: tl.constexpr, HIGHEST: tl.constexpr, HAS_ZERO: tl.constexpr,
    RECIPROCAL: tl.constexpr, LEAST: tl.constexpr, KIND: tl.constexpr, EDGES: tl.constexpr, SECOND_ZERO: tl.constexpr,
    BITS: tl.constexpr, HIGH_FIRST: tl.constexpr,
    M: tl.constexpr, LOWEST: tl.constexpr, MAX_CODE: tl.constexpr, SIGN: tl.constexpr, NEGATIVE_ZERO: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = rows < n_blocks
    places = rows[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]  # (ROWS, BLOCK)
    if x_ptr.dtype.element_ty == tl.int16:  # bfloat16, handed over as bits
        bits = tl.load(x_ptr + places, mask=there[:, None], other=0).to(tl.int32) << 16
    else:
        bits = tl.load(x_ptr + places, mask=there[:, None], other=0.0).to(tl.float32).to(tl.int32, bitcast=True)
    if FIND:
        scale = _scale_of(tl.max(bits & 0x7FFFFFFF, axis=1), RULE, MAX, HIGHEST, HAS_ZERO)  # (ROWS,)
        tl.store(scale_ptr + rows, scale, mask=there)
    else:
        scale = tl.load(scale_ptr + rows, mask=there, other=1.0)
    if CODE:
        column = tl.where(scale == 0, float("inf"), scale)[:, None]
        x = bits.to(tl.float32, bitcast=True)
        if RECIPROCAL:
            scaled = x * tl.div_rn(1.0, tl.where(tl.abs(column) < LEAST, LEAST, column))  # the rule gives no negative scale
        else:
            scaled = tl.div_rn(x, column)
        if KIND == "float":
            scaled_bits = scaled.to(tl.int32, bitcast=True)
            codes = _encode_piece(
                scaled_bits, scaled_bits, "nearest_even", 32, True, M, LOWEST, MAX_CODE, -1, -1, SIGN, NEGATIVE_ZERO
            )
        elif KIND == "int":
            scaled = tl.minimum(tl.maximum(scaled, MIN), MAX)
            codes = ((scaled + 12582912.0) - 12582912.0).to(tl.int32)  # 1.5 * 2**23: rounds, ties to even
        else:
            codes = (bits & 0) + tl.load(cells_ptr)
            for i in tl.static_range(EDGES):
                codes = tl.where(scaled >= tl.load(edges_ptr + i), tl.load(cells_ptr + i + 1), codes)
            if SECOND_ZERO:
                codes = tl.where((codes == 0) & (scaled > 0), SECOND_ZERO, codes)
        if BITS == 8:
            tl.store(payload_ptr + places, codes.to(tl.uint8), mask=there[:, None])
        else:
            first, second = tl.split(tl.reshape(codes & 15, (ROWS, BLOCK // 2, 2)))
            packed = (first << 4) | second if HIGH_FIRST else first | (second << 4)
            halves = rows[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
            tl.store(payload_ptr + halves, packed.to(tl.uint8), mask=there[:, None])


@triton.jit
def _dequantize_kernel(
    payload_ptr, scale_ptr, out_ptr, table_ptr, n_blocks, KIND: tl.constexpr, BITS: tl.constexpr, HIGH_FIRST: tl.constexpr,
    SIGNED: tl.constexpr, E: tl.constexpr, M: tl.constexpr, BIAS: tl.constexpr, MAX_CODE: tl.constexpr,
    INFINITY: tl.constexpr, SIGN: tl.constexpr, NAN_AT_MINUS_ZERO: tl.constexpr, STEP_HIGH: tl.constexpr,
    STEP_LOW: tl.constexpr, SAFE: tl.constexpr, LIMIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = rows < n_blocks
    places = rows[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]  # (ROWS, BLOCK)
    if BITS == 8:
        codes = tl.load(payload_ptr + places, mask=there[:, None], other=0).to(tl.int32)
    else:
        halves = rows[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
        packed = tl.load(payload_ptr + halves, mask=there[:, None], other=0).to(tl.int32)
        pair = tl.join(packed >> 4, packed & 15) if HIGH_FIRST else tl.join(packed & 15, packed >> 4)
        codes = tl.reshape(pair, (ROWS, BLOCK))
    if KIND == "float":
        values = _decode_piece(codes, E, M, BIAS, MAX_CODE, INFINITY, SIGN, NAN_AT_MINUS_ZERO, STEP_HIGH, STEP_LOW)
    elif KIND == "int":
        half = 1 << (BITS - 1)
        values = (((codes ^ half) - half) if SIGNED else codes).to(tl.float32)
    else:
        values = tl.load(table_ptr + codes)
    scale = tl.load(scale_ptr + rows, mask=there, other=1.0)[:, None]
    values = values * scale
    saturated = tl.where(values > LIMIT, LIMIT, tl.where(values < -LIMIT, -LIMIT, values))
    values = tl.where(tl.abs(scale) >= SAFE, saturated, values)
    if out_ptr.dtype.element_ty == tl.int16:  # bfloat16, rounded on its bits: ties to even
        bits = values.to(tl.int32, bitcast=True)
        tl.store(out_ptr + places, ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.int16), mask=there[:, None])
    else:
        tl.store(out_ptr + places, values.to(out_ptr.dtype.element_ty), mask=there[:, None])


def quantize(x: Tensor, scheme: Scheme) -> QTensor:
    """Return what `qlab.quantize` does; the scheme is one that this `is_made_for`."""
    fmt, stored, shape = scheme.format, scheme.scale.stored, tuple(x.shape)
    payload = torch.empty(x.numel() * fmt.bits // 8, dtype=torch.uint8, device=x.device)
    scale = torch.empty(scale_shape(scheme.blocks, shape), dtype=torch.float32, device=x.device)
    as_found = stored is None or (scheme.scale.rule == "mx" and stored == _E8M0)
    at_once = as_found or scheme.scale.late
    _encode(x, scheme, scale, payload, find=True, code=at_once)
    if not bool(scale.isfinite().all()):
        torch_blocks.code(x, scheme)  # which refuses
    kept: Tensor | QTensor = scale
    if isinstance(stored, Scheme):
        kept = torch_blocks.quantize(scale, stored)
    elif stored is not None and not as_found:
        kept = torch_blocks.store_scales(scale, stored)
    if not at_once:
        _encode(x, scheme, _numbers(kept), payload, find=False, code=True)
    return QTensor(payload, kept, scheme, shape, x.dtype)


def dequantize(qtensor: QTensor, dtype: torch.dtype) -> Tensor:
    """Return the values of a QTensor that `quantize` could have made, rounded once to a dtype of up to 32 bits."""
    scheme, fmt = qtensor.scheme, qtensor.scheme.format
    assert not isinstance(fmt, Fitted)
    scale = _numbers(qtensor.scale).contiguous()
    out = torch.empty(qtensor.shape, dtype=dtype, device=qtensor.payload.device)
    table = torch.zeros(16, dtype=torch.float32)
    if isinstance(fmt, TableFormat):
        table[: len(fmt.table)] = torch.tensor(fmt.table)
    size, rows = _tile(scheme, qtensor.shape)
    limit = torch.finfo(dtype).max
    constants = _constants(fmt if isinstance(fmt, FloatFormat) else _NO_FLOAT)
    _dequantize_kernel[(triton.cdiv(scale.numel(), rows),)](
        qtensor.payload.contiguous(), scale, _as_bits(out), table.to(out.device), scale.numel(), KIND=_kind(fmt),
        BITS=scheme.bits, HIGH_FIRST=scheme.order == "high_first", SIGNED=fmt.min < 0, SAFE=safe_scale(scheme, fmt, limit),
        LIMIT=limit, ROWS=rows, BLOCK=size, enable_fp_fusion=False, **constants,
    )  # fmt: skip
    return out


_NO_FLOAT = FloatFormat("none", 4, 3)  # constants of a branch that is not taken


def _encode(x: Tensor, scheme: Scheme, scale: Tensor, payload: Tensor, *, find: bool, code: bool) -> None:
    fmt = scheme.format
    assert not isinstance(fmt, Fitted)
    edges, cells = np.zeros(1, np.float32), np.zeros(1, np.int64)
    if isinstance(fmt, TableFormat):
        edges, cells = edges_of(fmt, FLOAT32)
    held = fmt if isinstance(fmt, FloatFormat) else _NO_FLOAT
    size, rows = _tile(scheme, tuple(x.shape))
    _quantize_kernel[(triton.cdiv(scale.numel(), rows),)](
        _as_bits(x.contiguous()), scale, payload, torch.from_numpy(edges).to(x.device),
        torch.from_numpy(cells.astype(np.int32)).to(x.device), scale.numel(), FIND=find, CODE=code,
        RULE=scheme.scale.rule, MAX=fmt.max, MIN=fmt.min, HIGHEST=math.frexp(fmt.max)[1] - 1,
        HAS_ZERO=getattr(scheme.scale.stored, "has_zero", True), RECIPROCAL=scheme.scale.reciprocal, LEAST=LEAST["float32"],
        KIND=_kind(fmt), EDGES=len(edges), SECOND_ZERO=FP4_SECOND_ZERO if fmt.name == "fp4_bnb" else 0, BITS=fmt.bits,
        HIGH_FIRST=scheme.order == "high_first", M=held.mantissa_bits, LOWEST=128 - held.bias,
        MAX_CODE=held.max_code, SIGN=held.sign_mask, NEGATIVE_ZERO=held.has_negative_zero, ROWS=rows,
        BLOCK=size, enable_fp_fusion=False,
    )  # fmt: skip


def _numbers(scale: Tensor | QTensor) -> Tensor:
    return torch_blocks.dequantize(scale) if isinstance(scale, QTensor) else scale


def _tile(scheme: Scheme, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the size of a block, and how many of them a program holds."""
    size = scheme.blocks.size if isinstance(scheme.blocks, PerBlock) else shape[-1]
    assert isinstance(size, int)
    return size, max(1, TILE // size)


def _kind(fmt: Format) -> str:
    return "float" if isinstance(fmt, FloatFormat) else "int" if isinstance(fmt, IntFormat) else "table"
