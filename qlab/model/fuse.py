"""Folding batch normalization into the convolution or linear layer before it, since it is a linear map at inference.

    y = gamma (W x + b - mean) / sqrt(var + eps) + beta = (s W) x + (s (b - mean) + beta),   s = gamma / sqrt(var + eps)

A ReLU that follows needs no folding: it stays, and sees the same numbers. (Jacob et al., "Quantization and training of
neural networks for efficient integer-arithmetic-only inference", 2018, section 3.2.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from qlab.model.state import copied
from qlab.model.trace import HOOKS, pairs_to_fuse

__all__ = ["Folded", "fuse", "leave_fast_path", "put_for", "refuse_training", "refuse_without_numbers", "replace_layer"]

def fuse(model: nn.Module) -> nn.Module:
    """Return a copy of a model with batch normalization folded into what it follows.

    Parameters
    ----------
    model : nn.Module
        In eval mode; it is not changed.

    Returns
    -------
    nn.Module
        With `nn.Identity` in place of each folded layer (`Folded`, which looks at shapes, after a Linear). What is folded: a
        BatchNorm or SyncBatchNorm whose only input is the output of a Conv1d, Conv2d or Linear that nothing else uses; not of
        classes derived from these, which may compute more, nor where hooks are. What torch.fx cannot trace stays: of such a
        model, fuse the parts. Encoders of torch call their layers, as they do in training.

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
      (1): Identity()
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
    return Folded() if isinstance(layer, nn.Linear) else nn.Identity()


def leave_fast_path(model: nn.Module) -> None:
    """Make torch's encoders call their layers, and these their parts, where else they compute from the weights at once."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def refuse_training(model: nn.Module) -> None:
    """Raise a ValueError if a model, or a part of it, is in train mode."""
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        part = f"the part {training!r} of the model" if training else "the model"
        raise ValueError(f"{part} is in train mode; call model.eval() first (dropout and batch normalization would differ)")


def refuse_without_numbers(model: nn.Module) -> None:
    """Raise a ValueError if a parameter has no numbers: of a lazy layer, or on the meta device."""
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"parameter {name!r} of a lazy layer has no numbers yet; run a batch through the model first")
        if parameter.is_meta:
            raise ValueError(f"parameter {name!r} is on the meta device and has no numbers; load the model's weights first")


class Folded(nn.Identity):
    """What stands in place of batch normalization that was folded into a linear layer, of outputs of shape (n, channels).

    Of a longer shape, axis 1 is not the outputs of the layer, and folding was wrong.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the input."""
        if input.ndim != 2:
            raise ValueError(
                f"batch normalization was folded into the linear layer before it, whose outputs have the shape "
                f"{tuple(input.shape)}, not (n, channels): it normalizes another axis; start from the original, with "
                "nn.Flatten() or another module between the two"
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
