"""The layer that is trained: a linear layer or convolution with rounded weights and inputs, batch normalization folded in.

    input -> rounded -> product with rounded weights (-> batch normalization)

What rounds is in `qlab.model.qat_rounding`, batch normalization over several processes in `qlab.model.qat_norm`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qlab.model.recipe import Activations

__all__ = ["QATLayer"]


class QATLayer(nn.Module):
    """A linear layer or convolution that rounds its weights and inputs, with the batch normalization after it, if any.

    While batch statistics are used, weights are rounded as they will be folded by the running statistics, the product is
    scaled back, and batch normalization follows as ever; so its statistics do not make the grid jump from batch to batch
    (Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018, section 3.2.2). In eval mode, and
    once they are frozen, the layer is what it will be when it is converted: folded weights, rounded, and a bias.

    Parameters
    ----------
    layer : nn.Linear, nn.Conv1d or nn.Conv2d
        Whose parameters it takes over.
    norm : nn.BatchNorm1d, nn.BatchNorm2d, SyncedNorm or None
        That follows it. The statistics of the last are those of all processes' batches.
    inputs : DynamicInput, AveragedInput, LearnedInput or None
    activations : Activations or None
        What `inputs` was made for.
    freeze_after : int or None
        After how many training batches the running statistics are frozen and used; never unless given.

    Attributes
    ----------
    rounding : RuleWeights or LearnedWeights
        Given once the layer is there, since learned steps start from the folded weight.
    """

    seen: Tensor

    def __init__(
        self,
        layer: nn.Module,
        norm: nn.Module | None,
        inputs: Any,
        activations: Activations | None,
        freeze_after: int | None,
    ) -> None:
        super().__init__()
        self.activations = activations
        self.kind = type(layer).__name__
        self.weight: nn.Parameter = layer.weight  # type: ignore[assignment]
        self.bias: nn.Parameter | None = layer.bias  # type: ignore[assignment]
        self.norm: Any = norm
        self.rounding: Any = None
        self.inputs, self.freeze_after = inputs, freeze_after
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        if self.kind != "Linear":
            for key in ("stride", "padding", "dilation", "groups", "kernel_size", "padding_mode"):
                setattr(self, key, getattr(layer, key))

    def forward(self, input: Tensor) -> Tensor:
        """Return what the layer, and the batch normalization after it, give for a rounded input."""
        x = input if self.inputs is None else self.inputs(input)
        if self.norm is None or not self.norm.training or self._is_frozen():
            weight, bias = self.folded()
            return self._product(x, self._rounded(weight), bias)
        factor = self.factor().detach()
        factor = torch.where(factor == 0, 1.0, factor)  # a channel whose gamma is zero: any grid will do
        product = self._product(x, self._rounded(self.weight * self._column(factor)), None)
        product = product * (1 / factor).to(product.dtype).reshape(self._along(product))
        if self.bias is not None:
            product = product + self.bias.to(product.dtype).reshape(self._along(product))
        return self.norm(product)  # type: ignore[no-any-return]

    def factor(self) -> Tensor:
        """Return what folding multiplies each output channel by, shape (out,)."""
        gamma = 1.0 if self.norm.weight is None else self.norm.weight
        factor: Tensor = gamma * torch.rsqrt(self.norm.running_var + self.norm.eps)
        return factor

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias with batch normalization by its running statistics folded in."""
        if self.norm is None:
            return self.weight, self.bias
        factor = self.factor()
        shift = -self.norm.running_mean if self.bias is None else self.bias - self.norm.running_mean
        bias = shift * factor
        return self.weight * self._column(factor), bias if self.norm.bias is None else bias + self.norm.bias

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.kind}, weights {tuple(self.weight.shape)} {self.rounding.scheme}"

    def _is_frozen(self) -> bool:
        """Count a batch; whether running statistics are to be used."""
        if self.freeze_after is None or not self.training:
            return False
        if bool(self.seen >= self.freeze_after):
            return True
        self.seen += 1
        return False

    def _rounded(self, weight: Tensor) -> Tensor:
        values: Tensor = self.rounding(weight.reshape(weight.shape[0], -1))  # (out, in / groups * kernel)
        return values.reshape(weight.shape)

    def _column(self, of_channels: Tensor) -> Tensor:
        """Numbers of output channels, to multiply weights with."""
        return of_channels.reshape(-1, *[1] * (self.weight.ndim - 1))

    def _along(self, product: Tensor) -> list[int]:
        """The shape of numbers of output channels, to multiply outputs with; channels are axis 1, or the only one."""
        return [-1] if self.kind == "Linear" else [-1] + [1] * (self.weight.ndim - 2)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.kind == "Linear":
            return functional.linear(x, weight, bias)
        apply: Any = functional.conv1d if self.kind == "Conv1d" else functional.conv2d
        values: Tensor = apply(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return values
