"""quantize, dequantize and fake_quantize for torch tensors.

A CPU tensor lends its memory to the NumPy code; a CUDA tensor goes through a Triton kernel where there is one; everything
else through portable torch operations (`torch_blocks`). All give the same bits. Rules that search for their scale, fitted
codebooks and GGUF's types are computed on the CPU, wherever the tensor is.

`fake_quantize` is one custom operator, ``qlab::fake_quantize``, whose gradient passes straight through, or only where
nothing was clipped; torch.func, which knows no gradients of operators, gets the same as an autograd function.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qlab._check import one_of
from qlab.backend import torch_blocks
from qlab.backend.torch_blocks import result_dtype
from qlab.backend.torch_ops import _FLOATS, _INTS, _TORCH, _is_wrapped
from qlab.backend.torch_ops import _run as _convert
from qlab.number.codec import GRADIENTS, Rules
from qlab.number.formats import get_format
from qlab.tensor import quantize as by_numpy
from qlab.tensor.blocks import PerBlock, PerRow
from qlab.tensor.clipping import clips_nothing, fake_quantize_and_inside
from qlab.tensor.qtensor import QTensor
from qlab.tensor.scheme import Fitted, Scheme, get_scheme

__all__ = ["dequantize", "fake_quantize", "quantize"]

_VALUES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}


def quantize(x: Tensor, scheme: Scheme, importance: Any) -> QTensor:
    """Return a QTensor of tensors on the device of x; see `qlab.quantize`."""
    _check_input(x)
    if _is_wrapped(x):
        raise ValueError("torch.func cannot map or differentiate packed bytes; use fake_quantize, or quantize the whole batch")
    x = x.detach()
    if x.device.type == "cpu" or importance is not None or not torch_blocks.is_made_for(x, scheme):
        weights = importance.detach().cpu().numpy() if isinstance(importance, Tensor) else importance
        found = by_numpy.quantize(_array(x), scheme, importance=weights)
        return replace(_as_tensors(found, x.device), dtype=result_dtype(x.dtype))
    kernels = _kernels(x.device, tuple(x.shape), x.dtype, scheme)
    return torch_blocks.quantize(x, scheme) if kernels is None else kernels.quantize(x, scheme)


def dequantize(qtensor: QTensor, dtype: Any, out: Tensor | None) -> Tensor:
    """Return the values of a QTensor of tensors; see `QTensor.dequantize`."""
    kind = qtensor.dtype if dtype is None else dtype if isinstance(dtype, torch.dtype) else _TORCH.get(np.dtype(dtype))
    if kind not in _VALUES:
        raise ValueError(f"dtype={dtype} is not allowed; values are {', '.join(map(str, _VALUES))}")
    device = qtensor.payload.device
    _check_output(out, qtensor.shape, kind, device)
    if device.type == "cpu" or qtensor.scheme.layout is not None:
        arrays = _as_arrays(qtensor)
        if out is not None and device.type == "cpu" and kind in _FLOATS:
            by_numpy.dequantize(arrays, dtype=_FLOATS[kind], out=out.detach().numpy())
            return out
        wide = np.float64 if qtensor.dtype is torch.float64 else np.float32
        found = by_numpy.dequantize(arrays, dtype=_FLOATS.get(kind, wide))
        values = torch.from_numpy(np.asarray(found)).to(device)
    else:
        kernels = _kernels(device, qtensor.shape, qtensor.dtype, qtensor.scheme)
        if kernels is not None and kind is not torch.float64:
            values = kernels.dequantize(qtensor, kind)
        else:
            values = torch_blocks.dequantize(qtensor, torch.finfo(kind).max)
    values = _rounded(values, kind)
    return values if out is None else out.copy_(values)


def fake_quantize(x: Tensor, scheme: str | Scheme, gradient: str, out: Tensor | None) -> Tensor:
    """Return a tensor quantized and brought back; see `qlab.fake_quantize`."""
    one_of("gradient", gradient, GRADIENTS)
    if not isinstance(scheme, str):
        spec = _spec_of(id(scheme)) if torch.compiler.is_compiling() else _spec(scheme)
    else:
        spec = scheme
    if out is None:
        return _apply(x, spec, gradient == "clipped")[0]
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("out cannot be given for a tensor that requires a gradient; leave it out, or detach the tensor")
    _check_input(x)
    _check_output(out, tuple(x.shape), result_dtype(x.dtype), x.device)
    if x.device.type == "cpu" and out.dtype in _FLOATS and x.dtype is not torch.bfloat16:
        by_numpy.fake_quantize(_array(x.detach()), _scheme_of(spec), out=out.detach().numpy())
        return out
    return out.copy_(_run(x.detach(), _scheme_of(spec), clipped=False)[0])


# --- the operator ----------------------------------------------------------------------------------------------------
_NUMBER = count()
_KEPT: dict[str, Scheme] = {}
"""Schemes that no notation expresses, by a name that an operator can carry; they last as long as the process."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _spec_of(address: int) -> str:
    """Write the scheme at an address: the compiler of torch 2.11 does not hand over frozen dataclasses themselves."""
    scheme: Scheme = ctypes.cast(address, ctypes.py_object).value
    return _spec(scheme)


@lru_cache(maxsize=512)
def _spec(scheme: Scheme) -> str:
    """Write a scheme as a text that `_scheme_of` reads."""
    text = str(scheme)
    try:
        if get_scheme(text) == scheme:
            return text
    except ValueError:
        pass
    name = f"kept:{next(_NUMBER)}"
    _KEPT[name] = scheme
    return name


def _scheme_of(spec: str) -> Scheme:
    return _KEPT[spec] if spec in _KEPT else get_scheme(spec)


@torch.library.custom_op("qlab::fake_quantize", mutates_args=())
def _operator(x: Tensor, scheme: str, clipped: bool) -> tuple[Tensor, Tensor]:
    """Return values, and where they were not clipped: an empty tensor where that is not asked for, or is everywhere."""
    _check_input(x)
    values, inside = _run(x.detach(), _scheme_of(scheme), clipped=clipped)
    return values, torch.empty(0, dtype=torch.bool, device=x.device) if inside is None else inside


def _keeps_inside(scheme: str, clipped: bool) -> bool:
    return clipped and not clips_nothing(_scheme_of(scheme))


@_operator.register_fake
def _shapes(x: Tensor, scheme: str, clipped: bool) -> tuple[Tensor, Tensor]:
    shape = x.shape if _keeps_inside(scheme, clipped) else (0,)
    values = torch.empty(x.shape, dtype=result_dtype(x.dtype), device=x.device)
    return values, torch.empty(shape, dtype=torch.bool, device=x.device)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, scheme, clipped = inputs
    ctx.dtype, ctx.clipped = x.dtype, _keeps_inside(scheme, clipped)
    if ctx.clipped:
        ctx.save_for_backward(output[1])


def _straight_through(ctx: Any, gradient: Tensor, _: Any) -> tuple[Any, ...]:
    passed = gradient * ctx.saved_tensors[0] if ctx.clipped else gradient
    return passed.to(ctx.dtype), None, None


_operator.register_autograd(_straight_through, setup_context=_remember)


def _mapped(info: Any, in_dims: tuple[int | None, ...], x: Tensor, scheme: str, clipped: bool) -> Any:
    batched = _spec(_with_a_leading_axis(_scheme_of(scheme), x.dim() - 1))
    results = _apply(x.movedim(in_dims[0] or 0, 0), batched, clipped)
    return results, (0, 0 if _keeps_inside(scheme, clipped) else None)


class _StraightThrough(torch.autograd.Function):
    """The operator as torch.func takes it."""

    @staticmethod
    def forward(x: Tensor, scheme: str, clipped: bool) -> tuple[Tensor, Tensor]:
        values, inside = torch.ops.qlab.fake_quantize(x.detach(), scheme, clipped)
        return values, inside

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        _remember(ctx, inputs, output)

    backward = staticmethod(_straight_through)
    vmap = staticmethod(_mapped)


_operator.register_vmap(_mapped)


def _apply(x: Tensor, scheme: str, clipped: bool) -> tuple[Tensor, Tensor]:
    if not torch.compiler.is_compiling() and _is_wrapped(x):
        return _StraightThrough.apply(x, scheme, clipped)  # type: ignore[no-any-return, no-untyped-call]
    return torch.ops.qlab.fake_quantize(x, scheme, clipped)  # type: ignore[no-any-return]


def _with_a_leading_axis(scheme: Scheme, ndim: int) -> Scheme:
    """Return the scheme that does with a batch what this one does with each of its entries."""
    blocks = scheme.blocks
    tile = isinstance(blocks, PerBlock) and isinstance(blocks.size, tuple)
    apart = isinstance(blocks, PerRow) or (isinstance(blocks, PerBlock) and blocks.axis is not None)
    apart = apart and ndim > tile
    if not apart or scheme.center or isinstance(scheme.format, Fitted):
        raise ValueError(
            f"{scheme}: vmap is for schemes with rows or with blocks along an axis, such as 'int4-b32', which never mix two "
            "entries of a batch; call it on each entry, or leave vmap out"
        )
    if isinstance(blocks, PerBlock) and blocks.axis is not None and blocks.axis >= 0:
        blocks = replace(blocks, axis=blocks.axis + 1)
    scale = scheme.scale
    if isinstance(scale.stored, Scheme):
        scale = replace(scale, stored=_with_a_leading_axis(scale.stored, ndim - isinstance(blocks, PerRow)))
    return replace(scheme, blocks=blocks, scale=scale)


# --- one way or another ----------------------------------------------------------------------------------------------
def _run(x: Tensor, scheme: Scheme, *, clipped: bool) -> tuple[Tensor, Tensor | None]:
    """Return values, and where they lie inside of their block's range; None for everywhere."""
    clipped = clipped and not clips_nothing(scheme)
    kind = result_dtype(x.dtype)
    if x.device.type != "cpu" and torch_blocks.is_made_for(x, scheme):
        kernels = _kernels(x.device, tuple(x.shape), x.dtype, scheme)
        if kernels is None or clipped:
            return portable(x, scheme, clipped=clipped)
        return kernels.dequantize(kernels.quantize(x, scheme), kind), None
    array, mask = _array(x), None
    if clipped:
        array, mask = fake_quantize_and_inside(array, scheme)
    else:
        array = np.asarray(by_numpy.fake_quantize(array, scheme))
    inside = None if mask is None else torch.from_numpy(mask).to(x.device)
    return _rounded(torch.from_numpy(array).to(x.device), kind), inside


def _kernels(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype, scheme: Scheme) -> Any:
    """Return the module of CUDA kernels where they are made for this, or None."""
    if device.type != "cuda":
        return None
    from qlab.backend import triton_blocks

    return triton_blocks if triton_blocks.is_made_for(shape, dtype, scheme) else None


def portable(x: Tensor, scheme: Scheme, *, clipped: bool) -> tuple[Tensor, Tensor | None]:
    """The same by portable torch operations, for schemes that `torch_blocks` is made for."""
    kind = result_dtype(x.dtype)
    coded = torch_blocks.code(x, scheme, clipped=clipped)
    wide = torch.float64 if kind is torch.float64 else torch.float32
    values = torch_blocks.values_of(coded, scheme, wide, torch.finfo(kind).max)
    return _rounded(values, kind), coded.inside


def _rounded(values: Tensor, kind: torch.dtype) -> Tensor:
    """Round to a dtype, once (torch's own way from float64 to the half floats goes through float32); numbers saturate."""
    if values.dtype in (torch.float32, torch.float64) and kind in (torch.float16, torch.bfloat16):
        limit = torch.finfo(kind).max
        values = torch.where(values.isfinite(), values.clamp(-limit, limit), values)
    if values.dtype is torch.float64 and kind in (torch.float16, torch.bfloat16):
        values = _convert(values, get_format(_VALUES[kind]), Rules("nearest_even", "ieee", "raise"), None, to_codes=False)
    return values.to(kind)


def _array(x: Tensor) -> Any:
    """Lend the memory of a tensor to NumPy; bfloat16, which NumPy does not know, as float32."""
    return (x.float() if x.dtype is torch.bfloat16 else x).cpu().numpy()


def _as_tensors(qtensor: QTensor, device: torch.device) -> QTensor:
    """Return a QTensor of arrays as one of tensors."""

    def moved(part: Any) -> Any:
        if isinstance(part, QTensor):
            return _as_tensors(part, device)
        return None if part is None else torch.from_numpy(np.asarray(part)).to(device)

    dtype = _TORCH[np.dtype(qtensor.dtype)]
    return replace(
        qtensor, payload=moved(qtensor.payload), scale=moved(qtensor.scale), zero=moved(qtensor.zero), dtype=dtype
    )


def _as_arrays(qtensor: QTensor) -> QTensor:
    """Return a QTensor of tensors as one of arrays, in the same memory if it is the CPU's."""

    def lent(part: Any) -> Any:
        if isinstance(part, QTensor):
            return _as_arrays(part)
        return None if part is None else _array(part.detach())

    dtype = np.dtype(_FLOATS.get(qtensor.dtype, np.float32))
    return replace(qtensor, payload=lent(qtensor.payload), scale=lent(qtensor.scale), zero=lent(qtensor.zero), dtype=dtype)


def _check_input(x: Tensor) -> None:
    if x.dtype not in _VALUES and x.dtype not in _INTS:
        raise TypeError(
            f"x is a tensor of {x.dtype}; float16, bfloat16, float32, float64 and integers can be quantized: convert it first"
        )


def _check_output(out: Tensor | None, shape: tuple[int, ...], kind: torch.dtype, device: torch.device) -> None:
    if out is not None and (tuple(out.shape) != shape or out.dtype != kind or out.device != device):
        raise ValueError(
            f"out is {out.dtype} of shape {tuple(out.shape)} on {out.device}; it must be {kind} of shape {shape} on {device}"
        )
