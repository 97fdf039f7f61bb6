"""What a model must be before its layers can be quantized: the refusals, each with its remedy."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from qlab.model.qat_layers import QATLayer
from qlab.model.state import QUANTIZED

__all__ = ["KINDS", "check_model", "check_weights", "refuse_training", "refuse_without_numbers"]

_TORCHS_QUANTIZED = re.compile(r"torch\.ao\.nn\.(intrinsic\.)?(quantized|qat)\b")
KINDS: dict[str, type[nn.Module]] = {
    "Linear": nn.Linear, "Conv1d": nn.Conv1d, "Conv2d": nn.Conv2d, "Embedding": nn.Embedding,
}  # fmt: skip
"""The layers that can be quantized, by the names that recipes have for them."""


def check_model(model: nn.Module) -> None:
    """Raise an error if what is given is no model, is quantized or prepared already, or computes weights at each call."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a torch.nn.Module, not {type(model).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, QUANTIZED) or _TORCHS_QUANTIZED.match(type(module).__module__):
            raise ValueError(f"the model is already quantized ({name!r} is a quantized layer); start from the original")
        if isinstance(module, QATLayer):
            raise ValueError(
                f"the model is already prepared for training ({name!r} is a layer of prepare_qat); qlab.convert quantizes "
                "it, or start from the original"
            )
        if isinstance(module, tuple(KINDS.values())) and "weight" in vars(module):
            raise ValueError(
                f"layer {name!r} computes its weight at each call (pruning, weight_norm or spectral_norm of "
                "torch.nn.utils); make it permanent first, with prune.remove, remove_weight_norm or remove_spectral_norm"
            )


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


def check_weights(model: nn.Module, chosen: list[str]) -> None:
    """Raise a ValueError if weights of chosen layers are empty, not finite, or shared with another layer."""
    for name in chosen:
        weight: Any = model.get_submodule(name).weight
        if not weight.numel():
            raise ValueError(f"layer {name!r} of shape {tuple(weight.shape)} has no weights; leave it out (skip=({name!r},))")
        if not weight.is_meta and (wrong := int((~torch.isfinite(weight.detach())).sum())):
            raise ValueError(
                f"layer {name!r} of shape {tuple(weight.shape)}: the weight holds {wrong} infinities or NaN, which have no "
                "scale; load or train it again"
            )
        bias: Any = getattr(model.get_submodule(name), "bias", None)
        if bias is not None and not bias.is_meta and (wrong := int((~torch.isfinite(bias.detach())).sum())):
            raise ValueError(f"layer {name!r}: the bias holds {wrong} infinities or NaN; load or train it again")
    owners: dict[int, list[str]] = {}  # by where the numbers lie
    for name, parameter in model.named_parameters(remove_duplicate=False):
        place = 0 if nn.parameter.is_lazy(parameter) else parameter.data_ptr()
        owners.setdefault(place or id(parameter), []).append(name.removesuffix(".weight"))
    for names in owners.values():
        if len(names) > 1 and set(names) & set(chosen):
            raise ValueError(
                f"the layers {names} share one weight; quantizing one of them would part them: skip them "
                f"(skip=({', '.join(repr(name) for name in names if name in chosen)},)), or give each a copy of its own"
            )
