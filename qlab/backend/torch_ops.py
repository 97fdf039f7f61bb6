"""encode, decode and cast for torch tensors.

A CPU tensor lends its memory to the NumPy code; a CUDA tensor goes through a Triton kernel where there is one; everything
else through portable torch operations (`torch_law`). All give the same bits.

The gradient of `cast` passes straight through, or only where nothing was clipped. Under ``torch.compile`` a conversion is
one custom operator, ``qlab::convert``, which runs the same code when its time comes; so it needs no graph break.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qlab._pieces import Array
from qlab.backend.torch_law import decode_law, encode_law, philox_tensor
from qlab.number import codec
from qlab.number.bits import FLOAT32, FLOAT64, Layout
from qlab.number.codec import Rules
from qlab.number.formats import FORMATS, FloatFormat, Format, IntFormat, TableFormat, get_format
from qlab.number.halves import BFLOAT16
from qlab.number.nans import nan_message
from qlab.number.noise import seed_of

__all__ = ["cast", "decode", "encode"]

_FLOATS = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}
_INTS = {
    torch.uint8: np.uint8, torch.int8: np.int8, torch.int16: np.int16, torch.int32: np.int32, torch.int64: np.int64,
    torch.uint16: np.uint16, torch.uint32: np.uint32, torch.uint64: np.uint64,
}  # fmt: skip
_WIDE_INTEGERS = (torch.int64, torch.uint64)
_TORCH = {np.dtype(n): t for t, n in (_FLOATS | _INTS).items()}


def encode(x: Tensor, fmt: str | Format, how: Rules, out: Tensor | None) -> Tensor:
    """Return the codes of a tensor; the options are those of `qlab.encode`."""
    if torch.compiler.is_compiling():
        return _finish(_by_operator(x.detach(), fmt, how, to_codes=True, clipped=False), out)
    if _is_wrapped(x):
        return _finish(_StraightThrough.apply(x, get_format(fmt), how, True, False), out)  # type: ignore[no-untyped-call]
    return _finish(_run(x.detach(), get_format(fmt), how, out, to_codes=True), out)


def cast(x: Tensor, fmt: str | Format, how: Rules, out: Tensor | None, gradient: str) -> Tensor:
    """Return a tensor rounded to a format; the options are those of `qlab.cast`."""
    differentiated = x.requires_grad and torch.is_grad_enabled()
    if differentiated and out is not None:
        raise ValueError("out cannot be given for a tensor that requires a gradient; leave it out, or detach the tensor")
    clipped = gradient == "clipped"
    if torch.compiler.is_compiling():
        return _finish(_by_operator(x, fmt, how, to_codes=False, clipped=clipped), out)
    if differentiated or _is_wrapped(x):
        return _finish(_StraightThrough.apply(x, get_format(fmt), how, False, clipped), out)  # type: ignore[no-untyped-call]
    return _finish(_run(x.detach(), get_format(fmt), how, out, to_codes=False), out)


# --- what autograd and vmap see ---------------------------------------------------------------------------------------
def _is_wrapped(x: Tensor) -> bool:
    """Whether torch.func is at work on the tensor."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(x))


class _StraightThrough(torch.autograd.Function):
    """Rounds forward; backward as if it had not, except where values were clipped, if so asked."""

    @staticmethod
    def forward(x: Tensor, fmt: Format, how: Rules, to_codes: bool, clipped: bool) -> Tensor:
        return _run(x.detach(), fmt, how, None, to_codes=to_codes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, fmt, _, to_codes, clipped = inputs
        ctx.dtype, ctx.inside = x.dtype, (x >= fmt.min) & (x <= fmt.max) if clipped else None
        if to_codes:
            ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, fmt: Format, how: Rules, *rest: Any) -> Any:
        if how.rounding == "stochastic":
            raise ValueError("stochastic rounding cannot be mapped by vmap: round the batch as one tensor")
        return _StraightThrough.apply(x, fmt, how, *rest), in_dims[0]  # type: ignore[no-untyped-call]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        passed = gradient if ctx.inside is None else gradient * ctx.inside
        return passed.to(ctx.dtype), None, None, None, None


# --- the operator that torch.compile sees -----------------------------------------------------------------------------


def _by_operator(x: Tensor, fmt: str | Format, how: Rules, *, to_codes: bool, clipped: bool) -> Tensor:
    if isinstance(how.rng, (torch.Generator, np.random.Generator)) and torch.compiler.is_compiling():
        raise ValueError("a generator cannot be drawn from under torch.compile; pass an int seed as rng, or noise")
    seed = None if how.rng is None else _signed(_seeded(how).rng)
    noise = torch.from_numpy(how.noise) if isinstance(how.noise, np.ndarray) else how.noise
    rules = [how.rounding, how.overflow, how.nan, how.policy or ""]
    return torch.ops.qlab.convert(x, noise, _spec(fmt), ",".join(rules), seed, to_codes, clipped)  # type: ignore[no-any-return]


def _spec(fmt: str | Format) -> str:
    """Write a format as a text that `_format_of` reads."""
    if isinstance(fmt, str):
        return fmt
    if isinstance(fmt, FloatFormat):
        parts = (fmt.exponent_bits, fmt.mantissa_bits, fmt.bias, int(fmt.infinities), int(fmt.subnormals), int(fmt.signed))
        return f"float:{fmt.nans}:" + ",".join([str(p) for p in parts])
    if isinstance(fmt, IntFormat):
        return f"{'' if fmt.signed else 'u'}int{fmt.bits}"
    return _spec_of_table(id(fmt))  # type: ignore[no-any-return]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _spec_of_table(address: int) -> str:
    """The same of the table at an address: its arrays are not for a graph, and torch 2.11 hands over no dataclass."""
    fmt: TableFormat = ctypes.cast(address, ctypes.py_object).value
    if fmt.name in FORMATS and FORMATS[fmt.name] == fmt:
        return fmt.name
    boundaries = [] if fmt.boundaries is None else fmt.boundaries.ravel().tolist()
    return "table:" + ";".join(",".join(map(repr, numbers)) for numbers in (fmt.table, boundaries))


def _format_of(spec: str) -> Format:
    kind, _, rest = spec.partition(":")
    if kind == "table":
        values, boundaries = ([float(v) for v in part.split(",") if v] for part in rest.split(";"))
        return TableFormat("table", values, boundaries=np.reshape(boundaries, (-1, 2)) if boundaries else None)
    if kind != "float":
        return get_format(spec)
    nans, _, numbers = rest.partition(":")
    e, m, bias, infinities, subnormals, signed = map(int, numbers.split(","))
    return FloatFormat("float", e, m, bias, infinities=bool(infinities), nans=nans, subnormals=bool(subnormals),
                       signed=bool(signed))  # fmt: skip


def _signed(seed: int) -> int:
    return seed - (1 << 64) if seed >= 1 << 63 else seed  # an operator's integers have 64 bits with a sign


@torch.library.custom_op("qlab::convert", mutates_args=())
def _convert(
    x: Tensor, noise: Tensor | None, fmt: str, rules: str, seed: int | None, to_codes: bool, clipped: bool
) -> Tensor:
    rounding, overflow, nan, policy = rules.split(",")
    how = Rules(rounding, overflow, nan, noise, None if seed is None else seed % (1 << 64), policy or None)
    return _run(x.detach(), _format_of(fmt), how, None, to_codes=to_codes).clone()


@_convert.register_fake
def _convert_shape(x: Tensor, noise: Any, fmt: str, rules: str, seed: Any, to_codes: bool, clipped: bool) -> Tensor:
    target = _format_of(fmt)
    kind = _TORCH[codec.code_dtype(target)] if to_codes else _cast_dtype(x.dtype, target)
    return torch.empty(x.shape, dtype=kind, device=x.device)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, fmt, _, _, _, clipped = inputs
    target = _format_of(fmt)
    ctx.dtype = x.dtype
    ctx.inside = (x >= target.min) & (x <= target.max) if clipped else None


def _straight_through(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    passed = gradient if ctx.inside is None else gradient * ctx.inside
    return passed.to(ctx.dtype), None, None, None, None, None, None


_convert.register_autograd(_straight_through, setup_context=_remember)


# --- one way or another -----------------------------------------------------------------------------------------------
def _run(x: Tensor, fmt: Format, how: Rules, out: Tensor | None, *, to_codes: bool) -> Tensor:
    if x.dtype not in _FLOATS and x.dtype not in _INTS and x.dtype is not torch.bfloat16:
        raise TypeError(
            f"x is a tensor of {x.dtype}; float16, bfloat16, float32, float64 and integers can be rounded: convert it first"
        )
    how = _seeded(how)
    if x.device.type == "cpu":
        return _by_numpy(x, fmt, how, out, to_codes=to_codes)
    if x.device.type == "cuda":
        from qlab.backend import triton_ops

        if triton_ops.is_made_for(x, fmt, how):
            how = _noise_beside(x, how)
            _refuse_nan(x, fmt, how)
            kind = _TORCH[codec.code_dtype(fmt)] if to_codes else _cast_dtype(x.dtype, fmt)
            return triton_ops.convert(x, fmt, how, kind, to_codes=to_codes)
    return _by_torch(x, fmt, how, to_codes=to_codes)


def _finish(result: Tensor, out: Tensor | None) -> Tensor:
    if out is None or result is out:
        return result
    _check_out(out, result.dtype, result.shape, result.device)
    return out.copy_(result)


def _check_out(out: Tensor, dtype: torch.dtype, shape: torch.Size, device: torch.device) -> None:
    if out.shape != shape or out.dtype != dtype or out.device != device:
        raise ValueError(
            f"out is {out.dtype} of shape {tuple(out.shape)} on {out.device}; it must be {dtype} of shape {tuple(shape)} "
            f"on {device}"
        )


def _seeded(how: Rules) -> Rules:
    """Draw the seed here, from a torch generator too, so that every way gets the same one."""
    if isinstance(how.rng, torch.Generator):
        seed = int(torch.randint(0, 1 << 62, (), generator=how.rng, device=how.rng.device))
        return how._replace(rng=seed)
    return how if how.rng is None else how._replace(rng=seed_of(how.rng))


def _cast_dtype(dtype: torch.dtype, fmt: Format) -> torch.dtype:
    if dtype is torch.bfloat16:
        fits = isinstance(fmt, FloatFormat) and codec.bfloat16_holds(fmt)
        return torch.bfloat16 if fits else _TORCH[codec.value_dtype(fmt)]
    return _TORCH[codec.cast_dtype(np.dtype((_FLOATS | _INTS)[dtype]), fmt)]


# --- CPU: lend the memory to NumPy -----------------------------------------------------------------------------------
def _by_numpy(x: Tensor, fmt: Format, how: Rules, out: Tensor | None, *, to_codes: bool) -> Tensor:
    if isinstance(how.noise, Tensor):
        how = how._replace(noise=how.noise.cpu().numpy())
    kind = _TORCH[codec.code_dtype(fmt)] if to_codes else _cast_dtype(x.dtype, fmt)
    target = _lend_out(out, kind, x)
    result = codec.convert(_lend(x), fmt, how, target, to_codes=to_codes)
    return _borrowed(result) if target is None else out  # type: ignore[return-value]


def _lend(x: Tensor) -> Array:
    """Return the memory of a tensor as an array; bfloat16 as what stands for it in NumPy."""
    return x.view(torch.int16).numpy().view(BFLOAT16) if x.dtype is torch.bfloat16 else x.numpy()


def _lend_out(out: Tensor | None, dtype: torch.dtype, like: Tensor) -> Array | None:
    """Return the memory to write to, unless it is none or lies scattered; refuse an `out` that does not fit."""
    if out is None:
        return None
    _check_out(out, dtype, like.shape, like.device)
    return _lend(out) if out.is_contiguous() else None


def _borrowed(result: Any) -> Tensor:
    """Return an array or a number of NumPy's as a tensor, in the same memory."""
    array = np.asarray(result)
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if array.dtype == BFLOAT16 else torch.from_numpy(array)


# --- any device: portable operations ---------------------------------------------------------------------------------
def _layout(dtype: torch.dtype, fmt: Format) -> Layout:
    """Return the float to work in, as for NumPy; the law wants normal numbers of the format to be normal in it."""
    narrow = dtype in (torch.float16, torch.bfloat16, torch.float32, torch.uint8, torch.int8, torch.int16, torch.uint16)
    fine = codec.value_dtype(fmt) == np.float32 and not (isinstance(fmt, FloatFormat) and fmt.emin < -126)
    return FLOAT32 if narrow and fine else FLOAT64


def _by_torch(x: Tensor, fmt: Format, how: Rules, *, to_codes: bool) -> Tensor:
    codec.check_rules(how)
    if how.policy is not None:
        raise ValueError(f"policy={how.policy!r} is for arrays and CPU tensors; move x to the CPU, or leave it out")
    how = _noise_beside(x, how)
    if x.dtype in _WIDE_INTEGERS and fmt == get_format("float64"):  # which must be rounded on the way there
        return _by_numpy(x.cpu(), fmt, how, None, to_codes=to_codes).to(x.device)
    _refuse_nan(x, fmt, how)
    layout = _layout(x.dtype, fmt)
    noise = _noise(x, how)
    values = _widen(x, layout)
    if getattr(fmt, "nan_code", None) is None:
        values = torch.where(values.isnan(), 0.0, values)
    codes = encode_law(values, fmt, layout, how.rounding, how.overflow, noise)
    if to_codes:
        return codes.to(_TORCH[codec.code_dtype(fmt)])
    target = _cast_dtype(x.dtype, fmt)
    return decode_law(codes, fmt, FLOAT64 if target is torch.float64 else FLOAT32).to(target)


def _widen(x: Tensor, layout: Layout) -> Tensor:
    """Bring a tensor to the float to work in; 64-bit integers by way of rounding to odd, see `qlab.number.arrays`."""
    float_type = torch.float32 if layout is FLOAT32 else torch.float64
    if x.dtype not in _WIDE_INTEGERS:
        return x.to(float_type)
    bits = x.view(torch.int64)
    upper = bits >> 32 if x.dtype is torch.int64 else (bits >> 32) & 0xFFFFFFFF
    high, low = upper.double() * 2.0**32, (bits & 0xFFFFFFFF).double()
    total = high + low
    lost = low - (total - high)  # exactly (Dekker 1971)
    nearest = total.view(torch.int64)
    towards = torch.where((lost < 0) == (total < 0), 1, -1)
    return torch.where((lost != 0) & (nearest & 1 == 0), nearest + towards, nearest).view(torch.float64)


def _refuse_nan(x: Tensor, fmt: Format, how: Rules) -> None:
    """Look for NaN where the format has none."""
    if getattr(fmt, "nan_code", None) is not None or how.nan != "raise" or not x.is_floating_point():
        return
    is_nan = x.isnan()
    if bool(is_nan.any()):
        first = tuple(int(i) for i in is_nan.nonzero()[0])
        raise ValueError(nan_message(int(is_nan.sum()), first, fmt))


def _noise(x: Tensor, how: Rules) -> Tensor | None:
    if how.rounding != "stochastic":
        return None
    return philox_tensor(how.rng, x.numel(), x.device).reshape(x.shape) if how.noise is None else how.noise


def _noise_beside(x: Tensor, how: Rules) -> Rules:
    """Check the noise as NumPy does, and bring it to the device."""
    if how.noise is None or how.rounding != "stochastic":
        codec.checked_noise(how, tuple(x.shape))
        return how
    noise = how.noise if isinstance(how.noise, Tensor) else torch.from_numpy(np.asarray(how.noise))
    if noise.dtype not in (torch.uint8, torch.uint16, torch.uint32) or noise.shape != x.shape:
        raise ValueError(
            f"noise is {noise.dtype} of shape {tuple(noise.shape)}; it must be uint8, uint16 or uint32 of the shape of x, "
            f"{tuple(x.shape)}"
        )
    if how.rng is not None:
        raise ValueError("rounding='stochastic' takes either noise or rng, not both")
    return how._replace(noise=noise.to(x.device))


def decode(codes: Tensor, fmt: str | Format, dtype: Any, out: Tensor | None) -> Tensor:
    """Return the values of a tensor of codes; the options are those of `qlab.decode`."""
    if torch.compiler.is_compiling():
        kind = None if dtype is None else _as_torch(dtype)
        return _finish(torch.ops.qlab.decode(codes, _spec(fmt), kind), out)
    return _finish(_decode(codes, get_format(fmt), dtype, out), out)


def _decode(codes: Tensor, fmt: Format, dtype: Any, out: Tensor | None = None) -> Tensor:
    if codes.dtype not in _INTS:
        raise TypeError(f"codes are integers (bit patterns), not {codes.dtype}; to round values use encode or cast")
    kind = _decoded_dtype(fmt, dtype)
    if codes.device.type == "cpu" and not _is_wrapped(codes):
        if kind is torch.bfloat16:
            return _borrowed(codec.decode(codes.numpy(), fmt, dtype=np.float32)).to(kind)
        target = _lend_out(out, kind, codes)
        values = codec.decode(codes.numpy(), fmt, dtype=_FLOATS[kind], out=target)
        return _borrowed(values) if target is None else out  # type: ignore[return-value]
    if codes.device.type == "cuda":
        from qlab.backend import triton_ops

        if triton_ops.is_made_for(codes, fmt, None):
            return triton_ops.decode(codes, fmt, kind)
    return decode_law(codes, fmt, FLOAT64 if kind is torch.float64 else FLOAT32).to(kind)


def _decoded_dtype(fmt: Format, dtype: Any) -> torch.dtype:
    kind = _TORCH[codec.value_dtype(fmt)] if dtype is None else _as_torch(dtype)
    if kind is torch.bfloat16:
        fits = isinstance(fmt, FloatFormat) and codec.bfloat16_holds(fmt)
    else:
        fits = kind in _FLOATS and codec.holds(np.dtype(_FLOATS[kind]), fmt)
    if not fits:
        raise ValueError(f"dtype={kind} cannot hold every value of {fmt.name}; use {_TORCH[codec.value_dtype(fmt)]}")
    return kind


@torch.library.custom_op("qlab::decode", mutates_args=())
def _decode_operator(codes: Tensor, fmt: str, dtype: torch.dtype | None) -> Tensor:
    return _decode(codes, _format_of(fmt), dtype)


@_decode_operator.register_fake
def _decode_shape(codes: Tensor, fmt: str, dtype: torch.dtype | None) -> Tensor:
    return torch.empty(codes.shape, dtype=_decoded_dtype(_format_of(fmt), dtype), device=codes.device)


def _as_torch(dtype: Any) -> torch.dtype:
    return dtype if isinstance(dtype, torch.dtype) else _TORCH[np.dtype(dtype)]


