"""Products of 8-bit integers, exact, by what each device has for them.

* `integer_matmul` is `torch._int_mm`, on any device and under ``torch.compile``.
* `LinearKernel` and `ConvKernel` are oneDNN's, for the CPU: they take weights that were laid out beforehand and multiply by
  the scales, and add the bias, while the sums are still in registers.

    outputs = scale * sum (codes - zero) weight + bias

Both give the same bits: the sum is exact, and is rounded once, then times the scale once, then plus the bias once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["ConvKernel", "LinearKernel", "has_kernels", "integer_matmul"]

_LARGE = 2**21
"""From so many weights on, `_int_mm` is faster with the weight on the left: it lays out anew only what is right."""


def integer_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Return the exact product of integers.

    Parameters
    ----------
    x : int8 tensor of shape (rows, in)
    weight : int8 tensor of shape (out, in)

    Returns
    -------
    product : int32 tensor of shape (rows, out)
        ``x @ weight.T``. Exact.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.kernels import integer_matmul
    >>> integer_matmul(torch.full((1, 3), -128, dtype=torch.int8), torch.full((2, 3), 127, dtype=torch.int8))
    tensor([[-48768, -48768]], dtype=torch.int32)
    """
    if x.device.type == "cuda":
        return _padded_matmul(x, weight)
    if x.shape[1] == 1:  # which torch 2.13 gets wrong on the CPU: it reads beside the weight
        return x.to(torch.int32) * weight.t().to(torch.int32)
    if weight.numel() >= _LARGE:
        return torch._int_mm(weight, x.t()).t()
    return torch._int_mm(x, weight.t())


def _padded_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """The same for CUDA's kernel, which takes more than 16 rows, and multiples of 8 else: what is missing is zeros."""
    (rows, size), out = x.shape, weight.shape[0]
    x = functional.pad(x, (0, -size % 8, 0, max(17 - rows, 0)))
    weight = functional.pad(weight, (0, -size % 8, 0, -out % 8))
    return torch._int_mm(x, weight.t())[:rows, :out]


def has_kernels(x: Tensor) -> bool:
    """Whether a layer is to use the kernels for this input: on a CPU for which they are exact, outside of compile."""
    return x.is_cpu and not torch.compiler.is_compiling() and _are_exact()


@cache
def _are_exact() -> bool:
    """Try the largest codes: processors without dot products of bytes add pairs of them in 16 bits, which overflow."""
    try:
        codes, weight = torch.full((1, 64), 255, dtype=torch.uint8), torch.full((1, 64), 127, dtype=torch.int8)
        one, each = torch.ones(()), (1, 64, 1, 1)
        found = LinearKernel(weight, one)(codes, 0, 1.0, None)
        windows = ConvKernel(weight.view(each), one, (1, 1), (0, 0), (1, 1), 1)(codes.view(each), 0, 1.0, None)
    except (AttributeError, RuntimeError):  # no such operators in this torch, or no oneDNN
        return False
    return found.item() == windows.item() == 64 * 255 * 127


class LinearKernel:
    """The weights of a linear layer, laid out for the CPU's kernel.

    Parameters
    ----------
    weight : int8 tensor of shape (out, in)
    scale : float32 tensor of shape () or (out,)
    """

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self.weight, self.scale = torch.ops.onednn.qlinear_prepack(weight, None), scale.expand(len(weight)).contiguous()
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.most = torch.finfo(torch.float32).max / float(self.scale.max())

    def __call__(self, codes: Tensor, zero: int, scale: float | Tensor, bias: Tensor | None) -> Tensor:
        """Return outputs of shape (rows, out), float32.

        Parameters
        ----------
        codes : uint8 tensor of shape (rows, in)
        zero : int
            The code that stands for zero.
        scale : float, or float32 tensor of shape ()
            Of the codes.
        bias : float32 tensor of shape (out,), or None
        """
        outputs: Tensor = torch.ops.onednn.qlinear_pointwise.default(
            codes, 1.0, zero, self.weight, self._times(scale), self.zeros, bias, 1.0, 0, torch.float32, "none", [], ""
        )
        return outputs

    def _times(self, scale: float | Tensor) -> Tensor:
        """The scales of the outputs: by NumPy in half the time, where it has no infinities to warn of."""
        if isinstance(scale, float) and scale < self.most:
            try:
                return torch.from_numpy(self.scale.numpy() * scale)
            except RuntimeError:  # inside of a transform of torch.func, tensors have no memory to lend
                pass
        return self.scale * scale


class ConvKernel:
    """The weights of a convolution, laid out for the CPU's kernel. Of one dimension, it is of images of height 1.

    What oneDNN 3.12 gets wrong, on processors with AMX above all, is not asked of it. Gaps of dilated kernels are filled with
    zeros; groups are convolved one after the other, but for those of one channel in and out; a column is given images that
    are padded already; and where outputs are one place wide, they are made two.

    Parameters
    ----------
    weight : int8 tensor of shape (out, in / groups, *kernel)
        One or two dimensions.
    scale : float32 tensor of shape () or (out,)
    stride, padding, dilation : tuple of int
        As `torch.nn.Conv2d` takes them, a number for each dimension. Padding is with the code of zero, and no window lies in it
        alone: at such places there may be garbage.
    groups : int
    """

    def __init__(self, weight: Tensor, scale: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> None:
        self.line = weight.ndim == 3
        if self.line:
            weight, stride, padding, dilation = weight.unsqueeze(-2), (1, *stride), (0, *padding), (1, *dilation)
        weight = _filled(weight, dilation)
        self.above, self.width = (padding[0] if weight.shape[-1] == 1 else 0), weight.shape[-1]
        self.parts = 1 if groups == weight.shape[0] and weight.shape[1] == 1 else groups
        self.how = (list(stride), [padding[0] - self.above, padding[1]], [1, 1], groups // self.parts)
        self.scale = scale.expand(len(weight)).contiguous()
        self.weights = [
            torch.ops.onednn.qconv_prepack(part, of_part, 1.0, 0, *self.how, None)
            for part, of_part in zip(weight.chunk(self.parts), self.scale.chunk(self.parts), strict=True)
        ]
        self.zeros = torch.zeros(len(weight) // self.parts, dtype=torch.int32)

    def __call__(self, codes: Tensor, zero: int, scale: float | Tensor, bias: Tensor | None) -> Tensor:
        """Return outputs of shape (n, out, *size), channels last in memory, of codes of shape (n, in, *size)."""
        codes = codes.unsqueeze(-2) if self.line else codes
        (_, stride), (_, beside), *_ = self.how
        beyond = codes.shape[-1] + 2 * beside - self.width  # the places to which a window can move
        narrow = self.width > 1 and beyond < stride
        if self.above or narrow:
            codes = functional.pad(codes, (0, stride - beyond if narrow else 0, self.above, self.above), value=zero)
        scales = (self.scale * scale).chunk(self.parts)
        biases = (None,) * self.parts if bias is None else bias.chunk(self.parts)
        outputs = [
            torch.ops.onednn.qconv_pointwise.default(
                part.contiguous(memory_format=torch.channels_last), 1.0, zero, weight, of_part, self.zeros, added, *self.how,
                1.0, 0, torch.float32, "none", [], "",
            )
            for part, weight, of_part, added in zip(codes.chunk(self.parts, 1), self.weights, scales, biases, strict=True)
        ]  # fmt: skip
        found = outputs[0] if self.parts == 1 else torch.cat(outputs, 1)
        found = found[..., :1] if narrow else found
        return found.squeeze(-2) if self.line else found


def _filled(weight: Tensor, dilation: Any) -> Tensor:
    """The same kernels without gaps: where they had them, there are zeros."""
    down, across = dilation
    *lead, height, width = weight.shape
    filled = weight.new_zeros(*lead, down * (height - 1) + 1, across * (width - 1) + 1)
    filled[..., ::down, ::across] = weight
    return filled
