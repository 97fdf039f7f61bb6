"""A layer's input as integers: steps of a scale that is found anew for each input, or once, from calibration data.

    steps = clamp(round(x / scale) + zero)              x ~ scale * (steps - zero)

One function makes the steps for integer products and for fake quantization, so that both see the same numbers. Exact: what
`qlab.quantize` gives for the same scheme, code by code.
"""

from __future__ import annotations

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
from qlab.tensor.scheme import Fitted, Scheme

__all__ = ["StaticRange", "Steps", "find_scale", "find_steps", "has_steps", "quantized_input", "static_range", "to_steps"]

_SMALLEST = 2.0**-149


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
    scale, zero = find_scale(x, activations, static)
    return Steps(to_steps(x, activations, scale, zero), scale, zero)


def find_scale(
    x: Tensor, activations: Activations, static: StaticRange | None
) -> tuple[Tensor | float, Tensor | float | None]:
    """Return the scale and the zero point of an input, as in `Steps`."""
    scheme, fmt = activations.scheme, activations.scheme.format
    assert isinstance(fmt, IntFormat)
    if static is not None:
        return static.scale, static.zero if scheme.zero == "integer" else None
    if not x.numel():
        return 1.0, None if scheme.zero is None else 0.0
    if isinstance(scheme.blocks, PerRow):
        return _spread(*torch.aminmax(x.float(), dim=-1, keepdim=True), scheme, fmt)
    spread = _spread_one if x.device.type == "cpu" and not torch.compiler.is_compiling() else _spread
    return spread(*torch.aminmax(x.float()), scheme, fmt)


def to_steps(x: Tensor, activations: Activations, scale: Tensor | float, zero: Tensor | float | None) -> Tensor:
    """Return the steps of an input at a given scale, float32."""
    fmt = activations.scheme.format
    assert isinstance(fmt, IntFormat)
    steps = (x.float() / scale).round_()
    if zero is not None:
        steps += zero
    return steps.clamp_(fmt.min, fmt.max)


def _spread(low: Tensor, high: Tensor, scheme: Scheme, fmt: IntFormat) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point that spread the codes from the lowest to the highest value of each row."""
    if scheme.zero is None:
        absmax = torch.maximum(high, -low)
        scale = absmax / torch.full_like(absmax, fmt.max)  # a tensor: CUDA multiplies by a number's reciprocal
        return scale.clamp_(
            min=float(_SMALLEST)
        ), None  # zeros stay zeros; and no scale is lost that was too small for float32
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / torch.full_like(low, fmt.max - fmt.min)).clamp_(min=_SMALLEST)
    return scale, (fmt.min - low / scale).round_().clamp_(fmt.min, fmt.max)


def _spread_one(low: Tensor, high: Tensor, scheme: Scheme, fmt: IntFormat) -> tuple[float, float | None]:
    """The same of one row, in numbers: a dozen calls of torch take longer than the quantizing of a small input."""
    lowest, highest = low.item(), high.item()
    if scheme.zero is None:
        return max(float(np.float32(max(highest, -lowest)) / np.float32(fmt.max)), _SMALLEST), None
    lowest, highest = min(lowest, 0.0), max(highest, 0.0)
    scale = np.float32(highest - lowest) / np.float32(fmt.max - fmt.min)  # float64 holds a difference well enough
    if not scale < np.inf:
        return float(scale), 0.0  # infinities or NaN, as the outputs will be
    scale = max(scale, np.float32(_SMALLEST))
    zero = float(np.rint(np.float32(fmt.min) - np.float32(lowest) / scale))
    return float(scale), min(max(zero, float(fmt.min)), float(fmt.max))


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
