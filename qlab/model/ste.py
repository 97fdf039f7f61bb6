"""Rounding that can be trained through: what goes back where the true derivative is zero almost everywhere.

    values = step * clamp(round(x / step), lowest, highest)            lowest, highest: codes less the zero point

    to x:      1 inside, 0 where x was clipped                          straight-through, as if round were the identity
    to step:   inside round(x/step) - x/step, else the end              LSQ: Esser et al., "Learned Step Size Quantization", 2020
    to step:   inside 0, else the end                                   PACT: Choi et al., 2018: only the clip is learned

Inside is where the rounded code was in range before it was clamped, so that half a step beyond the ends still counts; for PACT
it is between the ends.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qlab.number.codec import cast
from qlab.number.formats import Format, IntFormat

__all__ = ["round_to_format", "round_to_steps"]


def round_to_steps(
    x: Tensor, step: Tensor, zero: Tensor, fmt: IntFormat, *, learns: str = "nothing", factor: float | Tensor = 1.0
) -> Tensor:
    """Return x rounded to multiples of a step, which are codes of an integer format less a zero point.

    Parameters
    ----------
    x : float tensor of shape (*lead, n)
    step : float32 tensor that broadcasts to x
        Positive.
    zero : float32 tensor ()
        The code that stands for zero, a whole number.
    fmt : IntFormat
        Of the codes.
    learns : {"nothing", "clip", "step"}
        What gradient the step gets: none, PACT's, or LSQ's.
    factor : float or tensor ()
        By which the gradient of the step is multiplied; LSQ takes ``1 / sqrt(n * highest)``.

    Returns
    -------
    values : tensor of the shape and dtype of x
        Computed in float32.

    Notes
    -----
    Values are exact at the given step: the true quotient's float32 is rounded, ties to even. Gradients: tolerance, as sums are.
    Book: chapter 14.

    Examples
    --------
    >>> import torch, qlab
    >>> from qlab.model.ste import round_to_steps
    >>> x = torch.tensor([0.3, 0.8, 9.0], requires_grad=True)
    >>> step = torch.tensor([0.5], requires_grad=True)
    >>> values = round_to_steps(x, step, torch.tensor(0.0), qlab.get_format("int3"), learns="step")
    >>> values.sum().backward()
    >>> values.tolist(), x.grad.tolist(), round(step.grad.item(), 4)  # (1 - 0.6) + (2 - 1.6) + 3
    ([0.5, 1.0, 1.5], [1.0, 1.0, 0.0], 3.8)
    """
    values: Tensor = _ToSteps.apply(x.float(), step, zero, float(fmt.min), float(fmt.max), learns, factor)  # type: ignore[no-untyped-call]
    return values.to(x.dtype)


class _ToSteps(torch.autograd.Function):
    """`round_to_steps` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, zero: Tensor, lowest: float, highest: float, learns: str, factor: float | Tensor
    ) -> Tensor:
        ctx.learns, ctx.factor, ctx.step_shape = learns, factor, step.shape
        scaled = x / step
        rounded = torch.round(scaled)
        steps = rounded.clamp(lowest - zero, highest - zero)
        if learns == "clip":  # of PACT the clip itself: what is beyond its ends, be it by less than half a step
            inside = (scaled >= lowest - zero) & (scaled < highest - zero)
        else:
            inside = steps == rounded
        if learns == "nothing":
            ctx.save_for_backward(inside)
        else:  # what the step is multiplied by, less x / step where that moves along
            ctx.save_for_backward(inside, torch.where(inside, steps - scaled if learns == "step" else 0.0, steps))
        return steps * step  # not in place: under torch 2.11's compiler the gradient would be lost

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        inside, *by_step = ctx.saved_tensors
        of_step = None
        if by_step:
            of_step = (gradient * by_step[0]).sum_to_size(ctx.step_shape) * ctx.factor
        return gradient * inside, of_step, None, None, None, None, None


def round_to_format(x: Tensor, scale: Tensor, fmt: Format) -> Tensor:
    """Return x rounded to multiples of a scale by the values of a format that is not of integers.

    Parameters
    ----------
    x : float tensor of any shape
    scale : float32 tensor ()
        Positive; it gets no gradient.
    fmt : Format
        Such as float8_e4m3fn, or a codebook.

    Returns
    -------
    values : tensor of the shape and dtype of x

    Notes
    -----
    x gets the gradient where ``|x|`` is up to the largest value; with one bit (-1 and 1) up to twice that, half a step beyond
    as with integers. Book: chapter 14.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.ste import round_to_format
    >>> from qlab.tensor.codebooks import binary
    >>> x = torch.tensor([-0.1, 0.6, 1.7], requires_grad=True)
    >>> values = round_to_format(x, torch.tensor(0.5), binary())
    >>> values.sum().backward()
    >>> values.tolist(), x.grad.tolist()
    ([-0.5, 0.5, 0.5], [1.0, 1.0, 0.0])
    """
    reach = float(fmt.max) * (2 if fmt.bits == 1 else 1)
    scaled = (x.float() / scale.detach()).clamp(-reach, reach)
    values: Tensor = cast(scaled, fmt, overflow="saturate")
    return (values * scale.detach()).to(x.dtype)
