"""Products whose sums are rounded on the way, as narrow accumulators do it: forwards, and in both products of the way back.

    sum of `chunk` products in float32 -> added to the accumulator -> rounded to its format -> next chunk

A tensor core adds some products at once and their sum to an accumulator; how many, and how wide that is, differs from one
generation to the next (Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor cores", 2021). Convolutions are
products of the weight with the patches that it meets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["REACHED", "accumulated"]

REACHED = (functional.linear, functional.conv1d, functional.conv2d)
"""What `accumulated` computes."""

Rounder = Callable[[Tensor, int], Tensor]


def accumulated(func: Any, x: Tensor, weight: Tensor, rounder: Rounder, chunk: int, *args: Any, **how: Any) -> Tensor:
    """Return what a function of `REACHED` returns without a bias, its sums rounded after each chunk of products.

    Parameters
    ----------
    func : function
    x, weight : tensors
    rounder : function
        ``rounder(values, axis)`` rounds to the accumulator's format.
    chunk : int
        How many products are summed in float32 at once, along the channels (and places of the kernel) from the first on.
    args, how
        Stride, padding, dilation, groups.

    Notes
    -----
    Exact: each sum is rounded once, from float64. Of a convolution's gradient for its input, what several windows give to the
    same place is added in float32.
    """
    if func is functional.linear:
        rows = _Product.apply(x.unsqueeze(0).flatten(0, -2), weight.t(), rounder, chunk)  # type: ignore[no-untyped-call]
        return rows.reshape(*x.shape[:-1], weight.shape[0])  # type: ignore[no-any-return]
    return _convolved(x, weight, rounder, chunk, *args, **how)


def _convolved(
    x: Tensor, weight: Tensor, rounder: Rounder, chunk: int, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    line, single = weight.ndim == 3, x.ndim == weight.ndim - 1
    dims = weight.ndim - 2

    def each(value: Any) -> tuple[int, ...]:
        return (value,) * dims if isinstance(value, int) else tuple(value) * (dims // len(value))

    stride, dilation = each(stride), each(dilation)
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if isinstance(padding, str):
        sides = [(r // 2, r - r // 2) if padding == "same" else (0, 0) for r in reach]
    else:
        sides = [(p, p) for p in each(padding)]
    x = functional.pad(x.unsqueeze(0) if single else x, [side for pair in reversed(sides) for side in pair])
    if line:  # an image of height 1
        x, weight, stride, dilation = x.unsqueeze(-2), weight.unsqueeze(-2), (1, *stride), (1, *dilation)
    size = [(n - d * (k - 1) - 1) // s + 1 for n, d, k, s in zip(x.shape[2:], dilation, weight.shape[2:], stride, strict=True)]
    columns = functional.unfold(x, weight.shape[2:], dilation=dilation, stride=stride)  # (n, in * kernel, places)
    rows = columns.movedim(1, -1).flatten(0, 1)  # (n * places, in * kernel)
    products = [
        _Product.apply(some, part.flatten(1).t(), rounder, chunk)  # type: ignore[no-untyped-call]
        for some, part in zip(rows.chunk(groups, dim=1), weight.chunk(groups), strict=True)
    ]
    y = torch.cat(products, dim=1).reshape(len(x), *size, weight.shape[0]).movedim(-1, 1)
    y = y.squeeze(-2) if line else y
    return y.squeeze(0) if single else y


class _Product(torch.autograd.Function):
    """``a @ b`` of (m, k) and (k, n), and the two products of its gradient, each with its sums rounded on the way."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, rounder: Rounder, chunk: int) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.how = rounder, chunk
        return _summed(a, b, rounder, chunk)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        a, b = ctx.saved_tensors
        return _summed(gradient, b.t(), *ctx.how), _summed(a.t(), gradient, *ctx.how), None, None


def _summed(a: Tensor, b: Tensor, rounder: Rounder, chunk: int) -> Tensor:
    total = torch.zeros(a.shape[0], b.shape[1], dtype=torch.float64, device=a.device)
    for some, others in zip(torch.split(a, chunk, dim=1), torch.split(b, chunk, dim=0), strict=True):
        total = rounder(total + (some @ others).double(), -1)
    return total.to(a.dtype)
