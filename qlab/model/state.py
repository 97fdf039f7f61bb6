"""What a model holds besides parameters, and copies of it: one to change and keep, one to run and throw away.

A forward may keep things: a cache that grows, a counter, the last attention map. What is run only to be looked at must not
leave them in the model that is returned.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from qlab.model.layers import QuantizedConv, QuantizedEmbedding, QuantizedLinear

__all__ = ["QUANTIZED", "copied", "copied_to_run", "tensors_in"]

QUANTIZED = (QuantizedLinear, QuantizedConv, QuantizedEmbedding)
"""Layers that `quantize_model` puts in place. They keep nothing of what passes through them."""


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model, with the same process groups, which batch normalization may have and which cannot be copied.

    Tensors that a forward has computed and kept come without their history.

    Raises
    ------
    ValueError
        If something in the model cannot be copied; the message names it.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.state import copied
    >>> layer = torch.nn.Linear(2, 1)
    >>> layer.last = layer(torch.ones(1, 2))  # torch itself refuses to copy this
    >>> copied(layer).last.requires_grad
    False
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        group = getattr(module, "process_group", None)
        if group is not None:
            memo[id(group)] = group
        memo |= {id(x): x.detach().clone() for x in tensors_in(vars(module)) if not x.is_leaf}
    return _copy(model, memo)[0]


def copied_to_run(model: nn.Module) -> tuple[nn.Module, dict[nn.Module, nn.Module]]:
    """Return a copy that shares its parameters with the model, to be run and thrown away, and the copy of each module."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    for module in model.modules():
        if isinstance(module, QUANTIZED):
            memo[id(module)] = module
        memo |= {id(x): x for x in tensors_in(vars(module)) if not x.is_leaf}
    run, memo = _copy(model, memo)
    return run, {module: memo[id(module)] for module in model.modules() if id(module) in memo}


def _copy(model: nn.Module, memo: dict[int, Any]) -> tuple[nn.Module, dict[int, Any]]:
    known = dict(memo)
    try:
        return copy.deepcopy(model, memo), memo
    except Exception as error:
        raise ValueError(
            f"the model cannot be copied, and it is not to be changed: {_culprit(model, known)} ({error}); take it out of the "
            "model, and put it back afterwards"
        ) from error


def _culprit(model: nn.Module, memo: dict[int, Any]) -> str:
    """What it is that cannot be copied."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key == "_modules":
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:
                return f"{key!r} of {repr(name) if name else 'the model'} is a {type(value).__name__}"
    return type(model).__name__


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Go through the tensors in tuples, lists and dicts in each other, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(part)
