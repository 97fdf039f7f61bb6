"""Folding batch normalization into the convolution or linear layer before it, since it is a linear map at inference.

    y = gamma (W x + b - mean) / sqrt(var + eps) + beta = (s W) x + (s (b - mean) + beta),   s = gamma / sqrt(var + eps)

A ReLU that follows needs no folding: it stays, and sees the same numbers. (Jacob et al., "Quantization and training of
neural networks for efficient integer-arithmetic-only inference", 2018, section 3.2.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from qlab.model.checks import refuse_training
from qlab.model.state import HOOKS, copied
from qlab.model.trace import pairs_to_fuse

__all__ = ["Folded", "fuse", "leave_fast_path", "put_for", "replace_layer"]


def fuse(model: nn.Module) -> nn.Module:
    """Return a copy of a model with batch normalization folded into what it follows.

    Parameters
    ----------
    model : nn.Module
        In eval mode; it is not changed.

    Returns
    -------
    nn.Module
        With a `Folded`, an identity that looks at shapes, in place of each folded layer. What is folded: a
        BatchNorm or SyncBatchNorm whose only input is the output of a Conv1d, Conv2d or Linear that nothing else uses; not of
        classes derived from these, which may compute more, nor where hooks are. Of a model that torch.fx cannot trace, the
        parts are folded that it can (`qlab.model.trace`). Encoders of torch call their layers, as they do in training.

    Raises
    ------
    ValueError
        If the model, or a part of it, is in train mode, where batch normalization is no linear map, or cannot be copied.

    Notes
    -----
    Tolerance: the function is the same but for the rounding of float products. Book: chapter 12.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from qlab.model.fuse import fuse
    >>> fuse(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval())
    Sequential(
      (0): Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
      (1): Folded()
      (2): ReLU()
    )
    """
    refuse_training(model)
    model = copied(model)
    for before, norm in pairs_to_fuse(model):
        layer, bn = model.get_submodule(before), model.get_submodule(norm)
        if not bn.affine:  # which torch folds into convolutions only
            ones = torch.ones_like(bn.running_var)  # type: ignore[arg-type]
            bn.weight, bn.bias = nn.Parameter(ones), nn.Parameter(0 * ones)
        folded = fuse_linear_bn_eval(layer, bn) if isinstance(layer, nn.Linear) else fuse_conv_bn_eval(layer, bn)  # type: ignore[type-var, arg-type]
        replace_layer(model, before, folded)
        replace_layer(model, norm, put_for(layer))
    leave_fast_path(model)
    return model


def put_for(layer: nn.Module) -> nn.Module:
    """Return what takes the place of batch normalization that is folded into a layer."""
    return Folded({nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4}[type(layer)])


def leave_fast_path(model: nn.Module) -> None:
    """Make torch's encoders call their layers, and these their parts, where else they compute from the weights at once."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


class Folded(nn.Identity):
    """What stands in place of batch normalization that was folded into a layer, of outputs of shape (n, channels, *rest).

    Of another number of dimensions, axis 1 is not the outputs of the layer, and folding was wrong.

    Parameters
    ----------
    ndim : int
        The number of dimensions that are right.
    """

    def __init__(self, ndim: int) -> None:
        super().__init__()
        self.ndim = ndim

    def forward(self, input: Tensor) -> Tensor:
        """Return the input."""
        if input.ndim != self.ndim:
            raise ValueError(
                f"batch normalization was folded into the layer before it, whose outputs have the shape {tuple(input.shape)}, "
                f"not {self.ndim} dimensions: it normalizes another axis; start from the original, with nn.Flatten() or "
                "another module between the two"
            )
        return input


def replace_layer(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put a module in place of another, and return the model: the new module, if the model is that layer itself.

    Hooks on the old one's calls go over to the new one.
    """
    old = model.get_submodule(name)
    for kind in HOOKS:
        getattr(module, kind).update(getattr(old, kind))
    if not name:
        return module
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
    return model
