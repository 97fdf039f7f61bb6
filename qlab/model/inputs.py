"""A layer's input as integers: steps of a scale that is found anew for each input, or once, from calibration data.

    steps = clamp(round(x / scale) + zero)              x ~ scale * (steps - zero)

`to_steps` makes the steps for integer products and for fake quantization, so that both see the same numbers; `to_bytes`
makes the same ones as the CPU's kernels take them, in a third of the time. Exact: what `qlab.quantize` gives for the same
scheme, code by code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from qlab.model.packed import keeping_dtypes
from qlab.model.recipe import Activations
from qlab.number.codec import cast
from qlab.number.formats import IntFormat
from qlab.tensor.blocks import PerRow, PerTensor
from qlab.tensor.quantize import fake_quantize
from qlab.tensor.scheme import Fitted

__all__ = [
    "Scale", "StaticRange", "Steps", "find_scale", "find_steps", "has_steps", "quantized_input", "static_range", "to_bytes",
    "to_steps",
]  # fmt: skip

_SMALLEST = 2.0**-149
_BEYOND = (2 - 2.0**-24) * 2.0**127  # what float32 rounds to infinity
_LARGE = 2**18
"""From so many elements on, the search for extremes is worth threads."""
_WHOLE = 1.5 * 2**23
"""Added to it, a float32 of up to 2**22 loses its fraction, rounded to nearest, ties to even, and the integer lies in the low
bits of the sum."""


class StaticRange(nn.Module):
    """The scale and zero point that calibration found for a layer's input: two numbers as buffers.

    Inputs are not looked at again, so an integer product does not see NaN: it is given some code, and the output is an
    ordinary number where a dynamic scale would make all of it NaN. Infinities saturate. Where NaN can occur, look for it
    before, as with ``torch.isnan``.

    Parameters
    ----------
    scale : float
        Positive.
    zero : float
        The integer that stands for zero.
    """

    scale: Tensor
    zero: Tensor

    def __init__(self, scale: float, zero: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("zero", torch.tensor(zero, dtype=torch.float32))

    def _apply(self, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> StaticRange:
        """In float32 whatever the layer computes in: codes times scales may go beyond float16."""
        result: StaticRange = super()._apply(keeping_dtypes(convert), recurse)  # type: ignore[no-untyped-call]
        return result


def static_range(lowest: float, highest: float, activations: Activations) -> StaticRange:
    """Return scale and zero point that spread the codes over a range, as `qlab.tensor.scales` does.

    Examples
    --------
    >>> import qlab
    >>> from qlab.model.inputs import static_range
    >>> found = static_range(-1.0, 3.0, qlab.Activations("int8-asym", "static"))
    >>> found.zero
    tensor(-64.)
    """
    scheme, fmt = activations.scheme, activations.scheme.format
    if scheme.zero != "integer":
        largest = max(abs(lowest), abs(highest))
        return StaticRange(largest / float(fmt.max) if largest > 0 else 1.0)  # type: ignore[union-attr]
    assert isinstance(fmt, IntFormat)
    lowest, highest = min(lowest, 0.0), max(highest, 0.0)
    scale = (highest - lowest) / (fmt.max - fmt.min) or 1.0
    return StaticRange(scale, float(min(max(round(fmt.min - lowest / scale), fmt.min), fmt.max)))


class Scale(NamedTuple):
    """How an input becomes integers.

    Attributes
    ----------
    scale : float, or float32 tensor of shape () or (*lead, 1)
    zero : as the scale, or None
    within : bool
        Whether it is known that no step of this input is beyond the codes.
    """

    scale: Tensor | float
    zero: Tensor | float | None
    within: bool = False


class Steps(NamedTuple):
    """An input as integers.

    Attributes
    ----------
    steps : float32 tensor of the shape of the input
        Integers from the lowest to the highest code of the format.
    scale : float, or float32 tensor of shape () or (*lead, 1)
    zero : as the scale, or None
    """

    steps: Tensor
    scale: Tensor | float
    zero: Tensor | float | None


def has_steps(activations: Activations) -> bool:
    """Whether inputs become integers times one scale for the whole tensor, or one for each row."""
    scheme = activations.scheme
    plain = scheme.zero != "min" and scheme.scale.stored is None and scheme.layout is None and not scheme.center
    by_extremes = activations.when == "static" or scheme.scale.rule in ("absmax", "minmax")
    return isinstance(scheme.format, IntFormat) and isinstance(scheme.blocks, (PerTensor, PerRow)) and plain and by_extremes


def find_steps(x: Tensor, activations: Activations, static: StaticRange | None) -> Steps:
    """Return the steps of an input, for activations that `has_steps`.

    Parameters
    ----------
    x : tensor of shape (*lead, in)
        Of floats.
    activations : Activations
    static : StaticRange or None
        The scale, if calibration has found it.

    Examples
    --------
    >>> import torch, qlab
    >>> from qlab.model.inputs import find_steps
    >>> found = find_steps(torch.tensor([[-1.0, 0.5]]), qlab.Activations("int8-row"), None)
    >>> found.steps, found.scale
    (tensor([[-127.,   64.]]), tensor([[0.0079]]))
    """
    scale, zero, _ = find_scale(x, activations, static)
    return Steps(to_steps(x, activations, scale, zero), scale, zero)


def find_scale(x: Tensor, activations: Activations, static: StaticRange | None) -> Scale:
    """Return the scale and the zero point of an input, for activations that `has_steps`."""
    symmetric = activations.scheme.zero is None
    if static is not None:
        return Scale(static.scale, None if symmetric else static.zero)
    if not x.numel():
        return Scale(1.0, None if symmetric else 0.0)
    if isinstance(activations.scheme.blocks, PerRow):
        return _spread(*torch.aminmax(x.float(), dim=-1, keepdim=True), *activations.ends, symmetric)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _spread_one(*_extremes_as_numbers(x), *activations.ends, symmetric)
    return _spread(*torch.aminmax(x.float()), *activations.ends, symmetric)


def to_steps(x: Tensor, activations: Activations, scale: Tensor | float, zero: Tensor | float | None) -> Tensor:
    """Return the steps of an input at a given scale, float32."""
    steps = (x.float() / scale).round_()
    if zero is not None:
        steps += zero
    return steps.clamp_(*activations.ends)


def to_bytes(x: Tensor, activations: Activations, found: Scale) -> tuple[Tensor, int]:
    """Return the steps of an input at one scale as bytes, and the byte that stands for zero.

    Parameters
    ----------
    x : tensor of any shape
    activations : Activations
        Of integers of up to 8 bits, for the whole tensor.
    found : Scale

    Returns
    -------
    codes : uint8 tensor of the shape of x
        Steps, and 128 more where the lowest is below zero. Exact: those of `to_steps`; NaN becomes some code.
    zero : int

    Examples
    --------
    >>> import torch, qlab
    >>> from qlab.model.inputs import Scale, to_bytes
    >>> to_bytes(torch.tensor([-1.0, 0.25, 9.0]), qlab.Activations("int8"), Scale(0.1, None))
    (tensor([118, 130, 218], dtype=torch.uint8), 128)
    """
    lowest, highest = activations.ends
    zero = 0 if found.zero is None else int(found.zero)
    byte = zero + 128 if lowest < 0 else zero
    even = byte & ~1  # an odd number, added before rounding, would send ties to the odd neighbour
    values = _as_array(x) if found.within else None
    if values is not None:
        values = values / found.scale
        values += _WHOLE + even
        codes = torch.from_numpy(values.view(np.int32).astype(np.uint8))  # the low byte
    else:  # the same by torch, and clipped
        steps = x.float() / found.scale
        if not found.within:
            steps.clamp_(lowest - zero, highest - zero)
        codes = steps.add_(_WHOLE + even).view(torch.int32).to(torch.uint8)
    return codes if even == byte else codes.add_(1), byte


def _as_array(x: Tensor) -> np.ndarray | None:
    """A small input as NumPy sees it, float32: it does with a call of a microsecond what takes torch three or four."""
    if x.numel() > _LARGE or not x.ndim:
        return None
    if x.requires_grad or x.dtype != torch.float32:
        x = x.detach().float()
    try:
        return x.numpy()
    except RuntimeError:  # inside of a transform of torch.func, tensors have no memory to lend
        return None


def _extremes_as_numbers(x: Tensor) -> tuple[float, float]:
    """The lowest and the highest element; NaN where there is one."""
    values = _as_array(x)
    if values is not None:
        return float(np.minimum.reduce(values, axis=None)), float(np.maximum.reduce(values, axis=None))
    low, high = torch.aminmax(x.detach().float())
    return low.item(), high.item()


def _spread(low: Tensor, high: Tensor, lowest: int, highest: int, symmetric: bool) -> Scale:
    """Scale and zero point that spread the codes from the lowest to the highest value of each row."""
    if symmetric:
        absmax = torch.maximum(high, -low)
        scale = absmax / torch.full_like(absmax, highest)  # a tensor: CUDA multiplies by a number's reciprocal
        scale.clamp_(min=_SMALLEST)  # zeros stay zeros; and no scale is lost that was too small for float32
        return Scale(scale, None)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / torch.full_like(low, highest - lowest)).clamp_(min=_SMALLEST)
    return Scale(scale, (lowest - low / scale).round_().clamp_(lowest, highest))


def _spread_one(low: float, high: float, lowest: int, highest: int, symmetric: bool) -> Scale:
    """The same of one row, in numbers: a dozen calls of torch take longer than the quantizing of a small input.

    The arithmetic is that of float32: float64 holds enough that rounding twice is rounding once.
    """
    float32 = np.float32
    if symmetric:
        scale = float(float32(max(high, -low) / highest))
    else:
        low, high = min(low, 0.0), max(high, 0.0)
        if not high - low < _BEYOND:
            return Scale((high - low) * math.inf, 0.0)
        scale = float(float32(float(float32(high - low)) / (highest - lowest)))
    if not scale < math.inf:
        return Scale(scale, None)  # infinities or NaN, as the outputs will be
    scale = max(scale, _SMALLEST)
    below, above = float(float32(low / scale)), float(float32(high / scale))  # between them lies all the rest
    zero = 0 if symmetric else min(max(round(float(float32(lowest - below))), lowest), highest)
    within = lowest <= round(below) + zero and round(above) + zero <= highest
    return Scale(scale, None if symmetric else float(zero), within)


def quantized_input(x: Tensor, activations: Activations, static: StaticRange | None) -> Tensor:
    """Return an input that is quantized and brought back, in its own dtype.

    Examples
    --------
    >>> import torch, qlab
    >>> from qlab.model.inputs import quantized_input
    >>> quantized_input(torch.tensor([[-1.0, 0.5]]), qlab.Activations("int2-row"), None)
    tensor([[-1.,  0.]])
    """
    if has_steps(activations):
        steps, scale, zero = find_steps(x, activations, static)
        return ((steps if zero is None else steps - zero) * scale).to(x.dtype)
    if not x.numel():
        return x
    if static is None:
        return fake_quantize(x, activations.scheme)  # type: ignore[no-any-return]
    fmt = activations.scheme.format
    assert not isinstance(fmt, Fitted)
    return (cast(x.float() / static.scale, fmt, overflow="saturate") * static.scale).to(x.dtype)  # type: ignore[no-any-return]
