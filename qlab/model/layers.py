"""Layers whose weights are packed: linear, convolution, embedding.

A layer multiplies integers where both sides are integers (`qlab.model.kernels`), else it brings its weights back on the fly
and multiplies floats (on CUDA a few rows at once with it, `qlab.backend.triton_products`); a *fake* layer keeps them as
floats that are already rounded, for study. In all three the values are the same up to the rounding of the float product.

    sum (x_scale (qx - x_zero)) (w_scale qw) = x_scale w_scale (sum qx qw - x_zero sum qw)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from qlab.model.inputs import Scale, StaticRange, Steps, find_scale, find_steps, has_steps, quantized_input, to_bytes
from qlab.model.kernels import ConvKernel, LinearKernel, has_kernels, integer_matmul
from qlab.model.packed import Packed, of_rows
from qlab.model.recipe import Activations
from qlab.number.formats import IntFormat
from qlab.tensor.blocks import PerAxis, PerTensor
from qlab.tensor.qtensor import QTensor

if TYPE_CHECKING:
    from qlab.backend.triton_products import Product

__all__ = ["QuantizedConv", "QuantizedEmbedding", "QuantizedLinear", "StaticRange"]

_LONGEST = (2**31 - 1) // (255 * 128)
"""Products of as many 8-bit integers, less zero points, add up to what 32 bits hold."""
_IMAGES = 2**18
"""Elements that a convolution takes at once."""
_WIDEST = 15
"""Up to so wide a dilated kernel is filled with zeros; beyond, it is multiplied window by window."""


def _follow_codes(layer: _Quantized, _: Any = None) -> None:
    """Make the sums of codes anew, and drop the kernel, if the weights are no more those that they were made of."""
    if layer.fake:
        return
    weight: Packed = layer._modules["weight"]  # type: ignore[assignment]
    nested = "scale" in weight._modules
    buffers = list(weight.buffers()) if nested else weight._buffers.values()  # the same, but fast
    if len(buffers) == len(layer.followed):
        for held, (tensor, version) in zip(buffers, layer.followed, strict=True):
            if held is not tensor or (version is not None and held._version != version):  # type: ignore[union-attr]
                break
        else:
            return
    layer.kernel = None
    if layer.integer:
        layer.sums = weight.int8_codes().sum(dim=1, dtype=torch.int32)  # (out,)
    layer.followed = [(held, None if held is None or held.is_inference() else held._version) for held in buffers]


class _Quantized(nn.Module):
    """What the layers share: weights, bias, and how the input is quantized."""

    bias: Tensor | None
    input_scale: Tensor | None
    sums: Tensor | None
    weight: Packed
    """Or, of a fake layer, a tensor."""

    def __init__(
        self, weight: QTensor, bias: Tensor | None, activations: Activations | None = None,
        static: StaticRange | None = None, *, input_scale: Tensor | None = None, fake: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.activations, self.static, self.fake, self.weight_shape = activations, static, fake, tuple(weight.shape)
        self.one_scale = static is not None or (activations is not None and isinstance(activations.scheme.blocks, PerTensor))
        self.kernel: LinearKernel | ConvKernel | Product | None = None  # made at the first call; in no state dict
        self.followed: list[tuple[Tensor | None, int | None]] = []  # the buffers that kernel and sums were made of, and versions
        packed = Packed(weight)
        self.integer = not fake and self._can_multiply_integers(weight)
        if fake:
            self.register_buffer("weight", packed.dequantize())
        else:
            self.weight = packed
        self.register_buffer("sums", None, persistent=False)
        _follow_codes(self)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.register_buffer("input_scale", None if input_scale is None else input_scale.detach().clone())
        self.register_load_state_dict_post_hook(_follow_codes)  # type: ignore[no-untyped-call]

    def _can_multiply_integers(self, weight: QTensor) -> bool:
        """Whether both sides are integers of up to 8 bits, times one scale for each output and each row of the input."""
        if self.activations is None or not has_steps(self.activations) or self.activations.scheme.bits > 8:
            return False
        w = weight.scheme
        signed = isinstance(w.format, IntFormat) and w.format.signed and w.bits <= 8
        plain = w.zero is None and w.scale.stored is None and w.layout is None and not w.center
        return signed and plain and isinstance(w.blocks, (PerTensor, PerAxis)) and of_rows(w.blocks) and (
            weight.shape[-1] <= _LONGEST
        )  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kernel": None, "followed": []}

    def weights(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weights as floats."""
        return self.weight.to(dtype) if self.fake else self.weight.dequantize(dtype)  # type: ignore[return-value]

    def _checked(self, x: Tensor) -> Tensor:
        """Refuse inputs that would be an error of torch from the depth, or integers that outputs would be cut to."""
        if self.activations is not None and torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise TypeError("torch.jit.trace would keep the scale of this input as a constant; use torch.export.export")
        if not x.is_floating_point():
            raise TypeError(f"the input is a tensor of {x.dtype}; give floats, as x.float()")
        if not self._fits(x.shape):
            raise ValueError(f"the input has the shape {tuple(x.shape)}; this layer takes {self._wanted()}")
        return x

    def _fits(self, shape: torch.Size) -> bool:
        raise NotImplementedError

    def _wanted(self) -> str:
        raise NotImplementedError

    def _prepared(self, x: Tensor) -> Tensor:
        """The input as floats, quantized and brought back where the recipe says so."""
        x = self._scaled(x)
        return x if self.activations is None else quantized_input(x, self.activations, self.static)

    def _scaled(self, x: Tensor) -> Tensor:
        scale = self._buffers["input_scale"]  # without nn.Module's search for attributes, which takes ten times as long
        return x if scale is None else x * scale.to(x.dtype)

    def _input_codes(self, x: Tensor) -> Steps:
        """Codes of int8, in the shape of x, their scale, and the code that stands for zero.

        Of unsigned 8 bits 0..255 becomes -128..127, and the zero point with it.
        """
        assert self.activations is not None
        steps, scale, zero = find_steps(x, self.activations, self.static)
        if self.activations.scheme.format.max > 127:  # type: ignore[union-attr]
            steps -= 128
            zero = -128 if zero is None else zero - 128
        return Steps(steps.to(torch.int8), scale, zero)

    def _ready_kernel(self, x: Tensor, *, pays: bool = True) -> LinearKernel | ConvKernel | None:
        """The CPU's kernel, if it pays and can do the product: it takes one scale for the whole input, in float32."""
        if not torch.compiler.is_compiling():
            _follow_codes(self)
        if not pays or not self.one_scale or not has_kernels(x):
            return None
        if self.kernel is None and self.weight.scale.dtype == torch.float32:  # type: ignore[union-attr]
            self.kernel = self._make_kernel()
        return self.kernel  # type: ignore[return-value]

    def _make_kernel(self) -> LinearKernel | ConvKernel:
        raise NotImplementedError

    def _multiplied(self, kernel: LinearKernel | ConvKernel, x: Tensor, found: Scale) -> Tensor:
        """Outputs of the kernel, float32."""
        assert self.activations is not None
        bias = self._buffers["bias"]
        bias = None if bias is None else bias.float()
        try:
            return kernel(*to_bytes(x, self.activations, found), found.scale, bias)
        except FloatingPointError:  # np.seterr asks for it, at results that are subnormal
            with np.errstate(all="ignore"):
                return kernel(*to_bytes(x, self.activations, found), found.scale, bias)

    def _rescaled(self, product: Tensor, scale: Tensor | float, zero: Tensor | float | None) -> Tensor:
        """Turn an exact product of codes, int32 of shape (rows, out), into outputs, float32."""
        if zero is not None:
            assert self.sums is not None
            product -= (zero.to(torch.int32) if isinstance(zero, Tensor) else int(zero)) * self.sums
        weight_scale = self.weight.scale
        assert isinstance(weight_scale, Tensor)
        outputs = (product * (scale * weight_scale)).contiguous()
        if self.bias is not None:
            outputs += self.bias
        return outputs

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"activations={self.activations or 'as they are'}, {self.how}"

    @property
    def how(self) -> str:
        """How the layer computes, in words."""
        return "integer product" if self.integer else "fake" if self.fake else "dequantized on the fly"


class QuantizedLinear(_Quantized):
    """A linear layer with packed weights of shape (out, in).

    Parameters
    ----------
    weight : QTensor
        Of shape (out, in).
    bias : Tensor or None
        Of shape (out,).
    activations : Activations, optional
        How the input is quantized.
    static : StaticRange, optional
        The input's scale and zero point, for static activations.
    input_scale : Tensor, optional
        Of shape (in,), by which the input is multiplied first (AWQ, SmoothQuant).
    fake : bool
        Whether to keep the weights as floats that are already rounded.

    Notes
    -----
    Integer products are exact; what is left is the rounding of two float32 operations, of the scale and of the bias. They
    have no gradient: to train, use `prepare_qat`.

    Examples
    --------
    >>> import torch, qlab
    >>> from qlab.model.layers import QuantizedLinear
    >>> layer = QuantizedLinear(qlab.quantize(torch.tensor([[1.0, -1.0]]), "int8"), None, qlab.Activations("int8"))
    >>> layer(torch.tensor([[3.0, 1.0]]))
    tensor([[2.0079]])
    """

    @property
    def in_features(self) -> int:
        """As `nn.Linear` has it."""
        return self.weight_shape[1]

    @property
    def out_features(self) -> int:
        """As `nn.Linear` has it."""
        return self.weight_shape[0]

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input @ weight.T + bias``, shape (*lead, out)."""
        x = self._checked(input)
        if not self.integer:
            x = self._prepared(x)
            bias = None if self.bias is None else self.bias.to(x.dtype)
            product = self._ready_product(x)
            return self._by_rows(x, bias) if product is None else product(x, bias)
        rows = self._scaled(x if x.ndim == 2 else x.reshape(-1, x.shape[-1]))  # (rows, in)
        kernel = self._ready_kernel(x, pays=rows.shape[0] > 1)  # one row is read past the weights as fast, or faster
        if kernel is not None:
            assert self.activations is not None
            outputs = self._multiplied(kernel, rows, find_scale(rows, self.activations, self.static))
        else:
            codes, scale, zero = self._input_codes(rows)
            outputs = self._rescaled(integer_matmul(codes, self.weight.int8_codes()), scale, zero)
        outputs = outputs if x.dtype is outputs.dtype else outputs.to(x.dtype)  # (rows, out)
        return outputs if x.ndim == 2 else outputs.reshape(*x.shape[:-1], self.weight_shape[0])

    def _by_rows(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The float product, of some outputs after the others."""
        if self.fake:
            return functional.linear(x, self.weights(x.dtype), bias)
        outputs, done = [], 0
        for weight in self.weight.row_pieces(x.dtype):
            some = None if bias is None else bias[done : done + len(weight)]
            outputs.append(functional.linear(x, weight, some))
            done += len(weight)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def _fits(self, shape: torch.Size) -> bool:
        return len(shape) > 0 and shape[-1] == self.weight_shape[1]

    def _wanted(self) -> str:
        return f"(*lead, {self.weight_shape[1]})"

    def _make_kernel(self) -> LinearKernel:
        return LinearKernel(self.weight.int8_codes(), self.weight.scale)  # type: ignore[arg-type]

    def _ready_product(self, x: Tensor) -> Product | None:
        """CUDA's kernel for a few rows times codes of 4 bits, if it can do the product."""
        if not x.is_cuda or self.fake or torch.compiler.is_compiling():
            return None
        from qlab.backend import triton_products

        _follow_codes(self)
        if self.kernel is None and triton_products.is_made_for(self.weight.shape, self.weight.dtype, self.weight.scheme):
            self.kernel = triton_products.Product(self.weight.qtensor())
        return self.kernel if isinstance(self.kernel, triton_products.Product) and self.kernel.takes(x) else None


class QuantizedConv(_Quantized):
    """A convolution (of one or two dimensions) with packed weights, flattened to (out, in / groups * kernel).

    Parameters
    ----------
    layer : nn.Conv1d or nn.Conv2d
        Whose stride, padding (of any mode), dilation and groups it takes.
    weight, activations, static, fake
        As in `QuantizedLinear`.
    """

    def __init__(self, layer: nn.Conv1d | nn.Conv2d, weight: QTensor, **kwargs: Any) -> None:
        super().__init__(weight, layer.bias, **kwargs)
        self.integer = self.integer and self.activations is not None and isinstance(self.activations.scheme.blocks, PerTensor)
        self.weight_shape = tuple(layer.weight.shape)
        if self.fake:
            self.weight = self.weight.view(self.weight_shape)  # type: ignore[operator]
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.stride, self.dilation, self.groups, self.kernel_size = layer.stride, layer.dilation, layer.groups, layer.kernel_size
        self.padding = tuple(layer._reversed_padding_repeated_twice)  # as functional.pad takes it, "same" as numbers
        self.padding_mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        reach = [dilation * (kernel - 1) for kernel, dilation in zip(self.kernel_size, self.dilation, strict=True)]
        even = self.padding_mode == "constant" and self.padding[::-2] == self.padding[-2::-2]
        self.pads_itself = even and all(p <= r for p, r in zip(self.padding[::-2], reach, strict=True))  # the kernel does
        self.gaps_fit = all(step == 1 for step in self.dilation) or max(reach) < _WIDEST

    def weights(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weights as floats, shape (out, in / groups, *kernel)."""
        return super().weights(dtype).reshape(self.weight_shape)

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution, shape (n, out, *size), or (out, *size) of an input without a batch."""
        if input.ndim == len(self.kernel_size) + 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        x = self._checked(input)
        if not self.integer:
            x = self._padded(self._prepared(x))
            bias = None if self.bias is None else self.bias.to(x.dtype)
            if len(self.kernel_size) == 1:
                return functional.conv1d(x, self.weights(x.dtype), bias, self.stride, 0, self.dilation, self.groups)
            return functional.conv2d(x, self.weights(x.dtype), bias, self.stride, 0, self.dilation, self.groups)
        kernel = self._ready_kernel(x, pays=self.gaps_fit)
        if kernel is not None:
            return self._by_images(kernel, x if self.pads_itself else self._padded(x)).to(x.dtype)
        codes, scale, zero = self._input_codes(self._padded(x))  # zero is a code of its own: the border is exact
        windows = self._windows(codes)  # (n, *size, in, *kernel)
        size = windows.shape[: 1 + len(self.kernel_size)]
        weight = self.weight.int8_codes()  # (out, in / groups * kernel)
        rows = windows.reshape(-1, self.groups, weight.shape[1]).unbind(1)
        each = weight.chunk(self.groups)
        products = [integer_matmul(r.contiguous(), w) for r, w in zip(rows, each, strict=True)]
        outputs = self._rescaled(products[0] if len(products) == 1 else torch.cat(products, dim=1), scale, zero)
        return outputs.reshape(*size, self.weight_shape[0]).movedim(-1, 1).contiguous().to(x.dtype)

    def _fits(self, shape: torch.Size) -> bool:
        return (
            len(shape) == 2 + len(self.kernel_size)
            and shape[1] == self.in_channels
            and all(size >= least for size, least in zip(shape[2:], self._least(), strict=True))
        )

    def _wanted(self) -> str:
        sizes = ", ".join(f"{least} or more" for least in self._least())
        return f"([n,] {self.in_channels}, {sizes})"

    def _least(self) -> list[int]:
        """The smallest sizes of an image that the kernel fits into, with the padding."""
        reach = [dilation * (kernel - 1) + 1 for kernel, dilation in zip(self.kernel_size, self.dilation, strict=True)]
        padding = zip(self.padding[-2::-2], self.padding[::-2], strict=True)
        return [max(each - before - after, 0) for each, (before, after) in zip(reach, padding, strict=True)]

    def _by_images(self, kernel: LinearKernel | ConvKernel, x: Tensor) -> Tensor:
        """Some images after the others: what is between input and output stays in the cache, and takes no new memory."""
        assert self.activations is not None
        found = find_scale(x, self.activations, self.static)
        some = max(1, _IMAGES // max(1, math.prod(x.shape[2:]) * max(x.shape[1], self.weight_shape[0])))
        outputs, done = x, 0
        for images in torch.split(x, some):
            product = self._multiplied(kernel, images, found)  # channels last in memory
            if not done:
                last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
                layout = torch.channels_last if last else torch.contiguous_format
                outputs = torch.empty((len(x), *product.shape[1:]), memory_format=layout)
            outputs[done : done + len(images)] = product
            done += len(images)
        return outputs

    def _make_kernel(self) -> ConvKernel:
        padding = self.padding[::-2] if self.pads_itself else (0,) * len(self.kernel_size)
        weight = self.weight.int8_codes().view(self.weight_shape)
        return ConvKernel(weight, self.weight.scale, self.stride, padding, self.dilation, self.groups)  # type: ignore[arg-type]

    def _padded(self, x: Tensor) -> Tensor:
        return functional.pad(x, self.padding, mode=self.padding_mode) if any(self.padding) else x

    def _windows(self, x: Tensor) -> Tensor:
        """Every window that the kernel meets, as a view."""
        for axis, (kernel, dilation, stride) in enumerate(zip(self.kernel_size, self.dilation, self.stride, strict=True)):
            x = x.unfold(2 + axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        return x.movedim(1, 1 + len(self.kernel_size))  # channels after the places


class QuantizedEmbedding(nn.Module):
    """An embedding table with packed rows: only those that are asked for are brought back, if no block runs over rows.

    Parameters
    ----------
    weight : QTensor
        Of shape (entries, width).
    padding_idx : int, optional
        Kept for the record.

    Examples
    --------
    >>> import torch, qlab
    >>> from qlab.model.layers import QuantizedEmbedding
    >>> table = QuantizedEmbedding(qlab.quantize(torch.tensor([[1.0, 2.0], [30.0, 40.0]]), "int4-channel"))
    >>> table(torch.tensor([1]))
    tensor([[28.5714, 40.0000]])
    """

    def __init__(self, weight: QTensor, padding_idx: int | None = None) -> None:
        super().__init__()
        self.weight, self.padding_idx = Packed(weight), padding_idx

    @property
    def num_embeddings(self) -> int:
        """As `nn.Embedding` has it."""
        return self.weight.shape[0]

    @property
    def embedding_dim(self) -> int:
        """As `nn.Embedding` has it."""
        return self.weight.shape[1]

    @property
    def how(self) -> str:
        """How the layer computes, in words."""
        return "rows brought back" if self.weight.by_row else "table brought back"

    def extra_repr(self) -> str:
        """What `print` shows."""
        return self.how

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of an index, shape (*input.shape, width)."""
        if input.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"the index is a tensor of {input.dtype}; give integers, as index.long()")
        if not self.weight.by_row:
            return functional.embedding(input, self.weight.dequantize())
        width = self.weight.shape[1]
        if not input.numel():
            return torch.empty(*input.shape, width, dtype=self.weight.dtype, device=input.device)
        return self.weight.dequantize_rows(input.reshape(-1)).reshape(*input.shape, width)
