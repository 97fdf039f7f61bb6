"""Copies of a model: one to change and keep, one to run and throw away.

A forward may keep things: a cache that grows, a counter, the last attention map. What is run only to be looked at must not
leave them in the model that is returned.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qlab.model.batches import tensors_in
from qlab.model.layers import QuantizedConv, QuantizedEmbedding, QuantizedLinear

__all__ = ["HOOKS", "QUANTIZED", "copied", "copied_to_run"]

QUANTIZED = (QuantizedLinear, QuantizedConv, QuantizedEmbedding)
"""Layers that `quantize_model` puts in place. They keep nothing of what passes through them."""

HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)  # fmt: skip
"""Where a module keeps the hooks on its calls."""


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model, with the same process groups, which batch normalization may have and which cannot be copied.

    Tensors that a forward has computed and kept come without their history.

    Raises
    ------
    ValueError
        If something in the model cannot be copied, or would part from its parameter in a copy; the message names it.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.state import copied
    >>> layer = torch.nn.Linear(2, 1)
    >>> layer.last = layer(torch.ones(1, 2))  # torch itself refuses to copy this
    >>> copied(layer).last.requires_grad
    False
    """
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if any(isinstance(x._base, nn.Parameter) for x in tensors_in(value) if not x.is_leaf):
                where = f"{name}.{key}" if name else key
                raise ValueError(f"{where!r} is a view of a parameter, which a copy would part from it; make it in forward")
    return _copy(model, _memo(model, lambda x: x.detach().clone()))


def copied_to_run(model: nn.Module) -> nn.Module:
    """Return a copy that shares its parameters with the model, and the layers of qlab, to be run and thrown away."""
    memo = _memo(model, lambda x: x)
    changed = {id(p) for m in model.modules() if getattr(m, "max_norm", None) is not None for p in m.parameters(recurse=False)}
    memo |= {id(parameter): parameter for parameter in model.parameters() if id(parameter) not in changed}
    memo |= {id(module): module for module in model.modules() if isinstance(module, QUANTIZED)}
    return _copy(model, memo)


def _memo(model: nn.Module, keep: Callable[[Tensor], Tensor]) -> dict[int, Any]:
    """What `deepcopy` is to take for things that it cannot copy: process groups, and tensors with a history."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        group = getattr(module, "process_group", None)
        if group is not None:
            memo[id(group)] = group
        memo |= {id(x): keep(x) for x in tensors_in(vars(module)) if not x.is_leaf}
    return memo


def _copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    known = dict(memo)
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, AttributeError, RuntimeError, pickle.PicklingError) as error:
        if isinstance(error, (RecursionError, torch.OutOfMemoryError)):
            raise
        raise ValueError(
            f"the model cannot be copied, and it is not to be changed: {_culprit(model, known)} ({error}); take it out of the "
            "model, and put it back afterwards"
        ) from error


def _culprit(model: nn.Module, memo: dict[int, Any]) -> str:
    """What it is that cannot be copied."""
    for name, module in model.named_modules():
        where = repr(name) if name else "the model"
        for key, value in vars(module).items():
            if key == "_modules":
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:
                return f"a hook of {where}" if key in HOOKS else f"{key!r} of {where} is a {type(value).__name__}"
    return type(model).__name__
