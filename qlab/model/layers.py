"""Layers whose weights are packed: linear, convolution, embedding.

A layer multiplies integers where both sides are integers (`torch._int_mm`, zero points expanded), else it brings its weights
back on the fly and multiplies floats; a *fake* layer keeps them as floats that are already rounded, for study. In all three
the values are the same up to the rounding of the float product.

    sum (x_scale (qx - x_zero)) (w_scale qw) = x_scale w_scale (sum qx qw - x_zero sum qw)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qlab.model.packed import Packed
from qlab.model.recipe import Activations
from qlab.number.codec import cast
from qlab.number.formats import IntFormat
from qlab.tensor.blocks import PerAxis, PerRow, PerTensor
from qlab.tensor.qtensor import QTensor
from qlab.tensor.quantize import fake_quantize

__all__ = ["QuantizedConv", "QuantizedEmbedding", "QuantizedLinear", "StaticRange"]


class StaticRange(nn.Module):
    """The scale and zero point that calibration found for a layer's input: two numbers as buffers."""

    scale: Tensor
    zero: Tensor

    def __init__(self, scale: float, zero: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("zero", torch.tensor(zero, dtype=torch.float32))


class _Quantized(nn.Module):
    """What the layers share: weights, bias, and how the input is quantized."""

    bias: Tensor | None
    input_scale: Tensor | None
    sums: Tensor | None

    def __init__(
        self, weight: QTensor, bias: Tensor | None, activations: Activations | None = None,
        static: StaticRange | None = None, *, input_scale: Tensor | None = None, fake: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.activations, self.static, self.fake = activations, static, fake
        packed = Packed(weight)
        self.integer = not fake and self._can_multiply_integers(weight)
        if fake:
            self.register_buffer("values", packed.dequantize())
        else:
            self.weight = packed
        self.register_buffer("sums", self._sums(packed) if self.integer else None, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.register_buffer("input_scale", input_scale)

    def _can_multiply_integers(self, weight: QTensor) -> bool:
        if self.activations is None:
            return False
        w, x = weight.scheme, self.activations.scheme
        of_integers = all(isinstance(s.format, IntFormat) and s.format.signed and s.bits <= 8 for s in (w, x))
        w_blocks = isinstance(w.blocks, PerTensor) or w.blocks == PerAxis(0)
        plain = w.scale.stored is None and x.scale.stored is None and w.layout is None
        return of_integers and w.zero is None and x.zero != "min" and plain and w_blocks and isinstance(
            x.blocks, (PerTensor, PerRow)
        )  # fmt: skip

    def _codes(self, packed: Packed) -> Tensor:
        """The weights' codes, int8 of shape (out, all others)."""
        if packed.scheme.bits == 8:
            return packed.payload.view(torch.int8).view(packed.shape[0], -1)
        codes = packed.qtensor().codes().to(torch.int16)
        half = 1 << (packed.scheme.bits - 1)
        return ((codes + half) % (2 * half) - half).to(torch.int8).reshape(packed.shape[0], -1)

    def _sums(self, packed: Packed) -> Tensor:
        return self._codes(packed).sum(dim=1, dtype=torch.int32)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.integer:
            self.register_buffer("sums", None, persistent=False)  # made again when first needed: the codes come later

    def weights(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weights as floats."""
        values: Any = self.values.to(dtype) if self.fake else self.weight.dequantize(dtype)
        return values  # type: ignore[no-any-return]

    # --- the input ---------------------------------------------------------------------------------------------------
    def _prepared(self, x: Tensor) -> Tensor:
        """The input as floats, quantized and brought back where the recipe says so."""
        if self.input_scale is not None:
            x = x * self.input_scale.to(x.dtype)
        if self.activations is None:
            return x
        if self.static is None:
            return fake_quantize(x, self.activations.scheme)  # type: ignore[no-any-return]
        fmt, scale, zero = self.activations.scheme.format, self.static.scale, self.static.zero
        if not isinstance(fmt, IntFormat):
            return (cast(x.float() / scale, fmt, overflow="saturate") * scale).to(x.dtype)  # type: ignore[no-any-return]
        steps = torch.clamp(torch.round(x.float() / scale) + zero, fmt.min, fmt.max)
        return ((steps - zero) * scale).to(x.dtype)

    def _input_codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes (rows, in) of int8, scales () or (rows, 1), zero points in the same shape or None."""
        assert self.activations is not None
        scheme = self.activations.scheme
        fmt: Any = scheme.format
        x = x.float()
        zero: Tensor | None
        if self.static is not None:
            scale, zero = self.static.scale, self.static.zero if scheme.zero else None
        else:
            each = {"dim": -1, "keepdim": True} if isinstance(scheme.blocks, PerRow) else {}
            if scheme.zero is None:
                scale, zero = x.abs().amax(**each) / fmt.max, None
            else:
                lowest, highest = x.amin(**each).clamp(max=0), x.amax(**each).clamp(min=0)
                scale = (highest - lowest) / (fmt.max - fmt.min)
                zero = torch.round(fmt.min - lowest / torch.where(scale == 0, 1.0, scale)).clamp(fmt.min, fmt.max)
        steps = (x / torch.where(scale == 0, 1.0, scale)).round_()
        if zero is not None:
            steps += zero
        return steps.clamp_(fmt.min, fmt.max).to(torch.int8), scale, zero

    def _integer_product(self, rows: Tensor, codes: Tensor, sums: Tensor) -> Tensor:
        """Return rows (n, in) times the weights, codes (out, in), of which these are the sums: float32 (n, out)."""
        x, scale, zero = self._input_codes(rows)
        product = torch._int_mm(x, codes.t()).to(torch.float32)
        if zero is not None:
            product -= zero * sums
        w_scale = self.weight.scale
        return product * (scale * w_scale)

    def extra_repr(self) -> str:
        """What `print` shows."""
        how = "integer product" if self.integer else "fake" if self.fake else "dequantized on the fly"
        return f"activations={self.activations or 'as they are'}, {how}"


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
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x @ weight.T + bias``, shape (*lead, out)."""
        if not self.integer:
            x = self._prepared(x)
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return functional.linear(x, self.weights(x.dtype), bias)
        codes = self._codes(self.weight)
        sums = self.sums if self.sums is not None else codes.sum(dim=1, dtype=torch.int32)
        rows = x.reshape(-1, x.shape[-1])
        if self.input_scale is not None:
            rows = rows * self.input_scale.to(rows.dtype)
        product = self._integer_product(rows, codes, sums)
        if self.bias is not None:
            product = product + self.bias
        return product.reshape(*x.shape[:-1], -1).to(x.dtype)


class QuantizedConv(_Quantized):
    """A convolution (of one or two dimensions) with packed weights, flattened to (out, in / groups * kernel).

    Parameters
    ----------
    layer : nn.Conv1d or nn.Conv2d
        Whose stride, padding, dilation and groups it takes; with zeros for padding.
    weight, activations, static, input_scale, fake
        As in `QuantizedLinear`.
    """

    def __init__(self, layer: Any, weight: QTensor, **kwargs: Any) -> None:
        if layer.padding_mode != "zeros":
            raise ValueError(f"padding_mode={layer.padding_mode!r} is not supported; convolutions are padded with zeros")
        super().__init__(weight, layer.bias, **kwargs)
        self.weight_shape = tuple(layer.weight.shape)
        self.stride, self.dilation, self.groups, self.kernel = layer.stride, layer.dilation, layer.groups, layer.kernel_size
        self.padding = layer.padding if isinstance(layer.padding, str) else tuple(layer.padding)
        self.integer = self.integer and not isinstance(self.padding, str)

    def weights(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weights as floats, shape (out, in / groups, *kernel)."""
        return super().weights(dtype).reshape(self.weight_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution, shape (n, out, *size)."""
        if not self.integer:
            x = self._prepared(x)
            bias = None if self.bias is None else self.bias.to(x.dtype)
            apply = functional.conv1d if len(self.kernel) == 1 else functional.conv2d
            return apply(x, self.weights(x.dtype), bias, self.stride, self.padding, self.dilation, self.groups)
        codes = self._codes(self.weight)
        x_codes, scale, zero = self._input_codes(x)
        patches = self._patches(x_codes, 0 if zero is None else int(zero))  # (n, *size, in, *kernel)
        size = patches.shape[: 1 + len(self.kernel)]
        patches = patches.reshape(-1, self.groups, codes.shape[1])
        each = codes.shape[0] // self.groups
        products = [
            torch._int_mm(patches[:, g].contiguous(), codes[g * each : (g + 1) * each].t()) for g in range(self.groups)
        ]
        product = torch.cat(products, dim=1).to(torch.float32)
        if zero is not None:
            product -= zero * codes.sum(dim=1, dtype=torch.int32)
        product = product * (scale * self.weight.scale)
        if self.bias is not None:
            product = product + self.bias
        return product.reshape(*size, -1).movedim(-1, 1).to(x.dtype)

    def _patches(self, x: Tensor, zero: int) -> Tensor:
        """Every window that the kernel meets, of codes; the border holds the code of zero."""
        pads = [p for size in reversed(self.padding) for p in (int(size), int(size))]
        x = functional.pad(x, pads, value=zero)
        spread = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        for axis, (window, stride) in enumerate(zip(spread, self.stride, strict=True)):
            x = x.unfold(2 + axis, window, stride)
        for axis, dilation in enumerate(self.dilation):
            x = x[(..., slice(None, None, dilation), *([slice(None)] * (len(self.kernel) - 1 - axis)))]
        return x.movedim(1, 1 + len(self.kernel))  # channels after the places


class QuantizedEmbedding(nn.Module):
    """An embedding table with packed rows; rows that are asked for are brought back.

    Parameters
    ----------
    weight : QTensor
        Of shape (entries, width).
    padding_idx : int, optional
        Kept for the record.
    """

    def __init__(self, weight: QTensor, padding_idx: int | None = None) -> None:
        super().__init__()
        self.weight, self.padding_idx = Packed(weight), padding_idx

    def forward(self, index: Tensor) -> Tensor:
        """Return the rows of an index, shape (*index.shape, width)."""
        return functional.embedding(index, self.weight.dequantize())
