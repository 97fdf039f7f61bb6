"""Folding batch normalization into the convolution or linear layer before it, since it is a linear map at inference.

    y = gamma (W x + b - mean) / sqrt(var + eps) + beta = (s W) x + (s (b - mean) + beta),   s = gamma / sqrt(var + eps)

A ReLU that follows needs no folding: it stays, and sees the same numbers. (Jacob et al., "Quantization and training of
neural networks for efficient integer-arithmetic-only inference", 2018, section 3.2.)
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

__all__ = ["fuse", "pairs_to_fuse", "replace_layer"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def fuse(model: nn.Module) -> nn.Module:
    """Return a copy of a model with batch normalization folded into what it follows.

    Parameters
    ----------
    model : nn.Module
        In eval mode; it is not changed.

    Returns
    -------
    nn.Module
        With `nn.Identity` in place of each folded layer. What is folded: a BatchNorm or SyncBatchNorm whose only input is
        the output of a Conv1d, Conv2d or Linear that nothing else uses. (A Linear's output is taken to be two-dimensional:
        of a longer one BatchNorm1d would see another axis.)

    Raises
    ------
    ValueError
        If the model is in train mode, where batch normalization is no linear map.

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
    if model.training:
        raise ValueError("the model is in train mode, where batch normalization is no linear map; call model.eval() first")
    model = copy.deepcopy(model)
    for before, norm in pairs_to_fuse(model):
        layer, bn = model.get_submodule(before), model.get_submodule(norm)
        folded = fuse_linear_bn_eval(layer, bn) if isinstance(layer, nn.Linear) else fuse_conv_bn_eval(layer, bn)  # type: ignore[type-var, arg-type]
        replace_layer(model, before, folded)
        replace_layer(model, norm, nn.Identity())
    return model


def pairs_to_fuse(model: nn.Module) -> list[tuple[str, str]]:
    """Return the names of layers, and of the batch normalization that follows each.

    By following the graph, if `torch.fx` can trace the model; else only neighbours in an `nn.Sequential` are seen.
    """
    try:
        graph = torch.fx.symbolic_trace(model).graph
    except Exception:  # the tracer refuses in many ways
        return list(_neighbours(model))
    modules, found = dict(model.named_modules()), []
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], _NORMS):
            continue
        source = node.args[0]
        if source.op != "call_module" or len(source.users) != 1 or calls.count(source.target) != 1:
            continue
        if _can_take(modules[source.target], modules[node.target]) and calls.count(node.target) == 1:
            found.append((source.target, node.target))
    return found


def _neighbours(model: nn.Module) -> Iterator[tuple[str, str]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential):
            children = list(module.named_children())
            for (a, before), (b, norm) in itertools.pairwise(children):
                if isinstance(norm, _NORMS) and _can_take(before, norm):
                    prefix = f"{name}." if name else ""
                    yield prefix + a, prefix + b


def _can_take(layer: nn.Module, norm: nn.Module) -> bool:
    return isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear)) and getattr(norm, "running_var", None) is not None


def replace_layer(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put a module in place of another, and return the model: the new module, if the model is that layer itself."""
    if not name:
        return module
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
    return model
