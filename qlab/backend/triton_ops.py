"""CUDA kernels: encode, decode and cast in one pass over memory, for any floating-point format given as constants.

The kernel is the law of `qlab.number.rounding` once more, on float32 in registers. It runs under Triton's interpreter on
a CPU too (``TRITON_INTERPRET=1``), which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qlab.number.codec import Rules, check_rules, value_dtype
from qlab.number.formats import FloatFormat, Format

__all__ = ["convert", "decode", "is_made_for"]

BLOCK = 1024
_SOURCES = (torch.float32, torch.float16, torch.bfloat16)
_CODES = (torch.uint8, torch.int32)
_WIDTHS = {torch.uint8: 8, torch.uint16: 16, torch.uint32: 32}


def is_made_for(x: Tensor, fmt: Format, how: Rules | None) -> bool:
    """Whether a kernel converts this tensor to (or, without rules, from) this format."""
    if not isinstance(fmt, FloatFormat) or value_dtype(fmt) != "float32" or fmt.emin < -126 or fmt.bits > 31:
        return False
    if not fmt.subnormals:
        return False
    return x.dtype in _CODES if how is None else x.dtype in _SOURCES and how.policy is None


@triton.jit
def _encode_piece(
    bits, noise, ROUNDING: tl.constexpr, WIDTH: tl.constexpr, SATURATE: tl.constexpr,
    M: tl.constexpr, LOWEST: tl.constexpr, MAX_CODE: tl.constexpr, BEYOND: tl.constexpr, NAN: tl.constexpr,
    SIGN: tl.constexpr, NEGATIVE_ZERO: tl.constexpr,
):  # fmt: skip
    """Codes of float32 given as bits; SIGN is the mask of the sign bit, 0 without one; BEYOND and NAN are codes or -1."""
    magnitude = bits & 0x7FFFFFFF
    negative = bits < 0
    field = magnitude >> 23
    significand = ((bits & 0x7FFFFF) | (tl.minimum(field, 1) << 23)) << 2
    field = tl.maximum(field, 1)
    whole_shift = tl.maximum(LOWEST - field, 0) + (25 - M)
    shift = tl.minimum(whole_shift, 27)
    codes = significand >> shift
    step = (codes * 0 + 1) << shift
    remainder = significand & (step - 1)
    codes += tl.maximum(field - LOWEST, 0) << M
    if ROUNDING == "nearest_even":
        codes += (remainder * 2 > step - (codes & 1)).to(tl.int32)
    elif ROUNDING == "nearest_away":
        codes += (remainder * 2 >= step).to(tl.int32)
    elif ROUNDING == "up":
        codes += ((remainder != 0) & (bits >= 0)).to(tl.int32)
    elif ROUNDING == "down":
        codes += ((remainder != 0) & negative).to(tl.int32)
    elif ROUNDING == "to_odd":
        codes += ((remainder != 0) & ((codes & 1) == 0)).to(tl.int32)
    elif ROUNDING == "stochastic":
        by = whole_shift.to(tl.int64) - WIDTH
        top = (remainder.to(tl.int64) << tl.maximum(-by, 0)) >> tl.minimum(tl.maximum(by, 0), 63)
        codes += ((top + noise) >> WIDTH).to(tl.int32)
    over = codes > MAX_CODE
    is_infinite = magnitude == 0x7F800000
    if SATURATE or BEYOND < 0:
        codes = tl.minimum(codes, MAX_CODE)
    elif ROUNDING == "toward_zero" or ROUNDING == "to_odd":
        codes = tl.where(over, tl.where(is_infinite, BEYOND, MAX_CODE), codes)
    elif ROUNDING == "up":
        codes = tl.where(over, tl.where(is_infinite | (bits >= 0), BEYOND, MAX_CODE), codes)
    elif ROUNDING == "down":
        codes = tl.where(over, tl.where(is_infinite | negative, BEYOND, MAX_CODE), codes)
    else:
        codes = tl.where(over, BEYOND, codes)
    is_nan = magnitude > 0x7F800000
    codes = tl.where(is_nan, NAN if NAN >= 0 else 0, codes)
    negative = negative & (is_nan == 0) & ((codes <= MAX_CODE) | (codes == BEYOND) & (BEYOND != NAN))
    if SIGN == 0:
        codes = tl.where(negative & (codes != 0), 0 if SATURATE or NAN < 0 else NAN, codes)
    else:
        if not NEGATIVE_ZERO:
            negative = negative & (codes != 0)
        codes = tl.where(negative, codes | SIGN, codes)
    return codes


@triton.jit
def _decode_piece(
    codes, E: tl.constexpr, M: tl.constexpr, BIAS: tl.constexpr, MAX_CODE: tl.constexpr, INFINITY: tl.constexpr,
    SIGN: tl.constexpr, NAN_AT_MINUS_ZERO: tl.constexpr, STEP_HIGH: tl.constexpr, STEP_LOW: tl.constexpr,
):  # fmt: skip
    """Values (float32) of codes; STEP_HIGH * STEP_LOW is the smallest subnormal, in two factors that are normal."""
    magnitude = codes & ((1 << (E + M)) - 1)
    field = magnitude >> M
    fraction = magnitude & ((1 << M) - 1)
    exponent = tl.minimum(tl.maximum(field + (127 - BIAS), 0), 254)
    normal = ((exponent << 23) | (fraction << (23 - M))).to(tl.float32, bitcast=True)
    low = fraction.to(tl.float32) * STEP_HIGH * STEP_LOW
    value = tl.where(field == 0, low, normal).to(tl.int32, bitcast=True)
    value = tl.where(magnitude > MAX_CODE, 0x7F800000 if INFINITY >= 0 else 0x7FC00000, value)
    if INFINITY >= 0:
        value = tl.where(magnitude > INFINITY, 0x7FC00000, value)
    if SIGN != 0:
        negative = (codes & SIGN) != 0
        value = tl.where(negative, value ^ -2147483648, value)
        if NAN_AT_MINUS_ZERO:
            value = tl.where(negative & (magnitude == 0), 0x7FC00000, value)
    return value.to(tl.float32, bitcast=True)


@triton.jit
def _philox(seed, offsets):
    """The word of each element: word i % 4 of counter i // 4, as in `qlab.number.noise`."""
    a, b, c, d = tl.randint4x(seed, offsets // 4)
    word = offsets % 4
    noise = tl.where(word == 0, a, tl.where(word == 1, b, tl.where(word == 2, c, d)))
    return noise.to(tl.uint32, bitcast=True).to(tl.int64)


@triton.jit
def _convert_kernel(
    x_ptr, noise_ptr, out_ptr, n, seed, TO_CODES: tl.constexpr, HAS_NOISE: tl.constexpr,
    ROUNDING: tl.constexpr, WIDTH: tl.constexpr, SATURATE: tl.constexpr,
    E: tl.constexpr, M: tl.constexpr, BIAS: tl.constexpr, MAX_CODE: tl.constexpr, INFINITY: tl.constexpr,
    BEYOND: tl.constexpr, NAN: tl.constexpr, SIGN: tl.constexpr, NEGATIVE_ZERO: tl.constexpr,
    NAN_AT_MINUS_ZERO: tl.constexpr, STEP_HIGH: tl.constexpr, STEP_LOW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    if x_ptr.dtype.element_ty == tl.int16:  # bfloat16, handed over as bits
        bits = tl.load(x_ptr + offsets, mask=inside, other=0).to(tl.int32) << 16
    else:
        bits = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32).to(tl.int32, bitcast=True)
    noise = bits.to(tl.int64)
    if ROUNDING == "stochastic":
        if HAS_NOISE:
            noise = tl.load(noise_ptr + offsets, mask=inside, other=0).to(tl.int64)
        else:
            noise = _philox(seed, offsets)
    codes = _encode_piece(
        bits, noise, ROUNDING, WIDTH, SATURATE, M, 128 - BIAS, MAX_CODE, BEYOND, NAN, SIGN, NEGATIVE_ZERO
    )
    if TO_CODES:
        tl.store(out_ptr + offsets, codes.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        value = _decode_piece(
            codes, E, M, BIAS, MAX_CODE, INFINITY, SIGN, NAN_AT_MINUS_ZERO, STEP_HIGH, STEP_LOW
        )
        _store(out_ptr + offsets, value, inside)


@triton.jit
def _store(pointers, value, inside):
    """Store values that the target holds exactly; bfloat16 as bits, for the interpreter rounds it in its own way."""
    if pointers.dtype.element_ty == tl.int16:
        tl.store(pointers, (value.to(tl.int32, bitcast=True) >> 16).to(tl.int16), mask=inside)
    else:
        tl.store(pointers, value.to(pointers.dtype.element_ty), mask=inside)


@triton.jit
def _decode_kernel(
    codes_ptr, out_ptr, n, E: tl.constexpr, M: tl.constexpr, BIAS: tl.constexpr, MAX_CODE: tl.constexpr,
    INFINITY: tl.constexpr, SIGN: tl.constexpr, NAN_AT_MINUS_ZERO: tl.constexpr, STEP_HIGH: tl.constexpr,
    STEP_LOW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    codes = tl.load(codes_ptr + offsets, mask=inside, other=0).to(tl.int32)
    value = _decode_piece(codes, E, M, BIAS, MAX_CODE, INFINITY, SIGN, NAN_AT_MINUS_ZERO, STEP_HIGH, STEP_LOW)
    _store(out_ptr + offsets, value, inside)


def _as_bits(x: Tensor) -> Tensor:
    return x.view(torch.int16) if x.dtype is torch.bfloat16 else x


def _constants(fmt: FloatFormat) -> dict[str, Any]:
    smallest = fmt.emin - fmt.mantissa_bits
    return {
        "E": fmt.exponent_bits, "M": fmt.mantissa_bits, "BIAS": fmt.bias, "MAX_CODE": fmt.max_code,
        "INFINITY": -1 if fmt.infinity_code is None else fmt.infinity_code,
        "SIGN": fmt.sign_mask, "NAN_AT_MINUS_ZERO": fmt.nans == "negative_zero",
        "STEP_HIGH": math.ldexp(1.0, max(smallest, -126)), "STEP_LOW": math.ldexp(1.0, min(smallest + 126, 0)),
    }  # fmt: skip


def convert(x: Tensor, fmt: Format, how: Rules, dtype: torch.dtype, *, to_codes: bool) -> Tensor:
    """Return codes or rounded values of a tensor, in the given dtype; NaN was looked for before."""
    assert isinstance(fmt, FloatFormat)
    check_rules(how)
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    if x.numel() == 0:
        return out
    noise, width = x, 32
    if isinstance(how.noise, Tensor):
        noise, width = how.noise.to(x.device).contiguous(), _WIDTHS[how.noise.dtype]
    beyond = fmt.infinity_code if fmt.infinity_code is not None else fmt.nan_code
    _convert_kernel[(triton.cdiv(x.numel(), BLOCK),)](
        _as_bits(x), noise, _as_bits(out), x.numel(), _signed(how.rng), TO_CODES=to_codes, HAS_NOISE=how.noise is not None,
        ROUNDING=how.rounding, WIDTH=width, SATURATE=how.overflow == "saturate",
        BEYOND=-1 if beyond is None else beyond, NAN=-1 if fmt.nan_code is None else fmt.nan_code,
        NEGATIVE_ZERO=fmt.has_negative_zero, BLOCK=BLOCK, **_constants(fmt),
    )  # fmt: skip
    return out


def _signed(seed: int | None) -> int:
    seed = seed or 0
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def decode(codes: Tensor, fmt: Format, dtype: torch.dtype) -> Tensor:
    """Return the values of a tensor of codes, in the given dtype."""
    assert isinstance(fmt, FloatFormat)
    codes = codes.contiguous()
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    if codes.numel() == 0:
        return out
    _decode_kernel[(triton.cdiv(codes.numel(), BLOCK),)](codes, _as_bits(out), codes.numel(), BLOCK=BLOCK, **_constants(fmt))
    return out


