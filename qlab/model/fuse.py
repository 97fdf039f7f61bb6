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

__all__ = ["fuse", "pairs_to_fuse", "refuse_training", "refuse_without_numbers", "replace_layer"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)  # fmt: skip


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
        the output of a Conv1d, Conv2d or Linear that nothing else uses; not of classes derived from these, which may compute
        more. (A Linear's output is taken to be two-dimensional: of a longer one BatchNorm1d would see another axis.)

    Raises
    ------
    ValueError
        If the model, or a part of it, is in train mode, where batch normalization is no linear map.

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
    model = copy.deepcopy(model)
    for before, norm in pairs_to_fuse(model):
        layer, bn = model.get_submodule(before), model.get_submodule(norm)
        if not bn.affine:  # which torch folds into convolutions only
            ones = torch.ones_like(bn.running_var)  # type: ignore[arg-type]
            bn.weight, bn.bias = nn.Parameter(ones), nn.Parameter(0 * ones)
        folded = fuse_linear_bn_eval(layer, bn) if isinstance(layer, nn.Linear) else fuse_conv_bn_eval(layer, bn)  # type: ignore[type-var, arg-type]
        replace_layer(model, before, folded)
        replace_layer(model, norm, nn.Identity())
    return model


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
        if node.op != "call_module" or type(modules[node.target]) not in _NORMS:
            continue
        source = next(iter(node.all_input_nodes), None)
        if source is None or source.op != "call_module" or len(source.users) != 1 or calls.count(source.target) != 1:
            continue
        if _can_take(modules[source.target], modules[node.target]) and calls.count(node.target) == 1:
            found.append((source.target, node.target))
    return found


def _neighbours(model: nn.Module) -> Iterator[tuple[str, str]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential):
            children = list(module.named_children())
            for (a, before), (b, norm) in itertools.pairwise(children):
                if type(norm) in _NORMS and _can_take(before, norm):
                    prefix = f"{name}." if name else ""
                    yield prefix + a, prefix + b


def _can_take(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether folding is right: a class derived from these may do more in its forward, as may a parametrized layer."""
    known = type(layer) in (nn.Conv1d, nn.Conv2d, nn.Linear) and getattr(norm, "running_var", None) is not None
    return known and norm.num_features == layer.weight.shape[0]  # type: ignore[index]


def replace_layer(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put a module in place of another, and return the model: the new module, if the model is that layer itself.

    Hooks on the old one's calls go over to the new one.
    """
    old = model.get_submodule(name)
    for kind in _HOOKS:
        getattr(module, kind).update(getattr(old, kind))
    if not name:
        return module
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
    return model
