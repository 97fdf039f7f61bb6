"""Quantization-aware training: a network learns with its weights and activations rounded, so that it works when they are.

    prepare_qat -> train as ever, all tensors are floats that are rounded -> convert -> packed codes, integer products

Rounding has no useful derivative; what is used in its place is in `qlab.model.ste`, what rounds in
`qlab.model.qat_rounding`, the layer that is trained in `qlab.model.qat_layers`. The prepared model in eval mode and the
converted one are the same function, up to the rounding of float sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qlab._check import one_of
from qlab.model.checks import check_model, check_weights
from qlab.model.fuse import leave_fast_path, put_for, replace_layer
from qlab.model.layers import QuantizedConv, QuantizedLinear
from qlab.model.qat_layers import QATLayer
from qlab.model.qat_norm import SyncedNorm
from qlab.model.qat_rounding import AveragedInput, DynamicInput, LearnedInput, LearnedWeights, RuleWeights, is_plain
from qlab.model.recipe import Recipe, get_recipe
from qlab.model.state import copied
from qlab.model.trace import pairs_to_fuse
from qlab.model.transform import LayerChange, _choose, bytes_of, own_bytes, quantization_map, sqnr_of
from qlab.number.codec import GRADIENTS
from qlab.number.formats import IntFormat
from qlab.tensor.blocks import PerTensor
from qlab.tensor.qtensor import QTensor
from qlab.tensor.scheme import Scheme

__all__ = ["convert", "prepare_qat"]

STEPS = ("absmax", "lsq")
CLIPS = ("none", "pact")


@torch.inference_mode(False)  # else nothing could be trained
def prepare_qat(
    model: nn.Module, recipe: str | Recipe, *, steps: str = "absmax", clip: str = "none", gradient: str = "pass",
    decay: float = 0.99, freeze_after: int | None = None,
) -> nn.Module:  # fmt: skip
    """Return a model to be trained with its weights and activations rounded.

    Parameters
    ----------
    model : nn.Module
        In any mode, which the result has too; not changed.
    recipe : str or Recipe
        Which layers (linear and convolutions), and the schemes of weights and activations.
    steps : {"absmax", "lsq"}
        Where steps come from. ``absmax``: weights' by the rule of their scheme, anew at each training step; static
        activations' from a moving average of their range. ``lsq``: both are learned (integer schemes); dynamic
        activations stay dynamic.
    clip : {"none", "pact"}
        ``pact``: the upper end of static activations is learned instead. The paper adds a penalty on these ends to the
        loss: an optimizer's weight decay on parameters named ``inputs.change`` holds them to where they started.
    gradient : {"pass", "clipped"}
        Whether weights that the rule of their scheme clips get a gradient, as if they were not, or none. Activations
        that are clipped get none.
    decay : float
        Of the moving average: how much of it one batch leaves.
    freeze_after : int, optional
        After how many batches in train mode averaged ranges are frozen, and batch normalization takes its running
        statistics, folded in; never unless given. At 2 and 3 bits worth giving, about two thirds of all: weights that
        oscillate between two codes keep the running statistics unsteady.

    Returns
    -------
    nn.Module
        A new model, with `QATLayer` for each layer taken. A batch normalization that follows one is folded into it. Its
        ``state_dict`` holds ranges and steps; call this function again before loading one.

    Raises
    ------
    ValueError
        If the recipe takes no layer, has no weights, a dtype or a method that searches for codes; if the model is
        quantized or prepared already or chosen layers share weights; if a scheme cannot be trained in the way asked for.
        The message names the layer or value, and the remedy.

    Notes
    -----
    Works under autocast, ``torch.compile`` (one graph, unless `freeze_after` is given and there is batch normalization),
    DistributedDataParallel and FSDP2: ranges and the starts of learned steps are of all processes' batches together. Batch
    normalization is each process's own, as ever. ``nn.SyncBatchNorm.convert_sync_batchnorm`` takes the model before this
    function or after it; if before, what is folded is of all processes' batches on a CPU too.
    A range that is NaN or infinite is not counted. Tolerance: gradients are sums of floats. Book: chapter 14.

    Sources: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
    2018; Choi et al., "PACT", 2018; Esser et al., "Learned Step Size Quantization", 2020.

    Examples
    --------
    >>> import torch, qlab
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> recipe = qlab.Recipe("int4-channel", qlab.Activations("int8-asym", "static"))
    >>> prepared = qlab.prepare_qat(model, recipe, steps="lsq")
    >>> prepared(torch.ones(4, 8)).sum().backward()  # train as ever
    >>> small = qlab.convert(prepared, show=False)
    >>> small[0]
    QuantizedLinear(
      activations=int8-asym (static, minmax), integer product
      (static): StaticRange()
      (weight): Packed(int4-channel, shape=(16, 8), 128 bytes)
    )
    """
    recipe = get_recipe(recipe)
    one_of("steps", steps, STEPS)
    one_of("clip", clip, CLIPS)
    one_of("gradient", gradient, GRADIENTS)
    _check_numbers(decay, freeze_after)
    _check_recipe(recipe, steps, clip, gradient)
    check_model(model)
    chosen, _ = _choose(model, recipe)
    if not chosen:
        raise ValueError(f"the recipe ({recipe}) leaves all layers as they are; lower min_size")
    check_weights(model, chosen)
    result = copied(model)
    norms = dict(pairs_to_fuse(result, modes=(False, True)))
    for name in chosen:
        layer = result.get_submodule(name)
        if getattr(layer, "padding_mode", "zeros") != "zeros":
            raise ValueError(
                f"layer {name!r}: padding_mode={layer.padding_mode!r} is not supported; convolutions are padded with "
                f"zeros: leave it out (skip=({name!r},))"
            )
        norm = result.get_submodule(norms[name]) if name in norms else None
        if isinstance(norm, nn.SyncBatchNorm):
            norm = SyncedNorm(norm)
        inputs = _inputs(recipe, steps, clip, decay, freeze_after, name)
        new = QATLayer(layer, norm, inputs, recipe.activations, freeze_after)
        new.rounding = _rounding(new, recipe, steps, gradient, name)
        new.to(layer.weight.device)  # type: ignore[arg-type]
        for part in (new, new.rounding, *([] if inputs is None else [inputs])):
            part.training = layer.training  # batch normalization keeps its own mode
        result = replace_layer(result, name, new)
        if norm is not None:
            result = replace_layer(result, norms[name], put_for(layer).train(norm.training))
    leave_fast_path(result)
    return result


@torch.inference_mode(False)
def convert(model: nn.Module, *, show: bool = True) -> nn.Module:
    """Return the quantized model that a prepared one was trained to be.

    Parameters
    ----------
    model : nn.Module
        From `prepare_qat`, in any mode; not changed. One in DistributedDataParallel or compiled is taken out of it.
    show : bool
        Print the map of what was done.

    Returns
    -------
    nn.Module
        A new model in eval mode: packed weights, integer products where the schemes allow it, as `qlab.quantize_model`
        gives. Its `quantization_map` compares weights with the floats that were trained.

    Raises
    ------
    ValueError
        If the model was not prepared, no batch was seen in training, weights are not finite, or parameters are spread
        over processes (FSDP2).

    Notes
    -----
    Codes are those that the prepared model rounds to, exactly; outputs agree up to the rounding of float sums. Book:
    chapter 14.

    Examples
    --------
    >>> import torch, qlab
    >>> prepared = qlab.prepare_qat(torch.nn.Sequential(torch.nn.Linear(64, 8)), qlab.Recipe("int4-channel"))
    >>> prepared(torch.ones(4, 64)).sum().backward()  # train as ever
    >>> qlab.quantization_map(qlab.convert(prepared, show=False)).rows[0][:5]
    ('0', 'Linear', 'int4-channel', 'as they are', 'dequantized on the fly')
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a torch.nn.Module, not {type(model).__name__}")
    model = _unwrapped(model)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QATLayer)}
    if not layers:
        raise ValueError("the model was not prepared: it has no layer of prepare_qat; call qlab.prepare_qat and train first")
    spread = [name for name, parameter in model.named_parameters() if hasattr(parameter, "full_tensor")]
    if spread:
        raise ValueError(
            f"parameters such as {spread[0]!r} are spread over processes; gather them with torch.distributed.checkpoint"
            ".state_dict.get_model_state_dict(full_state_dict=True), load them into a prepared model, and convert that"
        )
    result = copied(model).eval()
    changes = []
    for name, module in model.named_modules():
        if name in layers:
            new, change = _converted(layers[name], name)
            result = replace_layer(result, name, new)
            changes.append(change)
        elif (size := own_bytes(module)) and not any(name.startswith(f"{taken}.") for taken in layers):
            changes.append(LayerChange(name, type(module).__name__, "", "", "left: not prepared", size, size))
    result.quantization_changes = changes  # type: ignore[assignment]
    result.calibration_hash = None  # type: ignore[assignment]
    if show:
        print(quantization_map(result))
    return result


# --- what is asked ---------------------------------------------------------------------------------------------------
def _check_numbers(decay: float, freeze_after: int | None) -> None:
    if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < 1:
        raise ValueError(f"decay={decay!r} is not allowed; give a number from 0 to below 1, as 0.99")
    if freeze_after is not None and (
        isinstance(freeze_after, bool) or not isinstance(freeze_after, int) or freeze_after < 1
    ):
        raise ValueError(f"freeze_after={freeze_after!r} is not allowed; give a number of batches from 1, or None for never")


def _check_recipe(recipe: Recipe, steps: str, clip: str, gradient: str) -> None:
    if recipe.dtype is not None:
        raise ValueError(
            f"the recipe ({recipe}) rounds parameters to a dtype, which autocast trains with; give weights, such as "
            "'int8-channel', in its place"
        )
    if recipe.weights is None:
        raise ValueError(f"the recipe ({recipe}) leaves weights as they are; give weights, such as 'int8-channel'")
    if recipe.embeddings is not None or "Embedding" in recipe.types:
        raise ValueError(
            "embeddings are not trained with rounding; leave embeddings= and the type 'Embedding' out of the recipe"
        )
    if recipe.method != "rtn":
        raise ValueError(
            f"method={recipe.method!r} searches for codes after training, which training does itself; take 'rtn'"
        )
    if recipe.weights.layout is not None and gradient == "clipped":
        raise ValueError(f"{recipe.weights}: which values a GGUF type clips is not known; take gradient='pass'")
    if steps == "lsq":
        _check_learned(recipe.weights)
    static = recipe.activations is not None and recipe.activations.when == "static"
    if clip == "pact" and not static:
        raise ValueError(
            f"clip='pact' learns the range of static activations; the recipe has {recipe.activations or 'none'}: "
            "give activations=Activations('int4-asym', 'static')"
        )
    if recipe.activations is not None and static:
        _check_static(recipe.activations.scheme, learned=steps == "lsq" or clip == "pact")


def _check_learned(scheme: Scheme) -> None:
    if not is_plain(scheme):
        raise ValueError(
            f"steps='lsq' learns a step for the tensor or each channel of signed integers in float32, not for weights in "
            f"{scheme}; take a scheme such as 'int4-channel', or steps='absmax'"
        )


def _check_static(scheme: Scheme, *, learned: bool) -> None:
    if (
        not isinstance(scheme.blocks, PerTensor)
        or scheme.zero == "min"
        or scheme.center
        or not hasattr(scheme.format, "max")
    ):
        raise ValueError(
            f"static activations have one scale, and a zero point or none, not {scheme}; take 'int8-asym' or 'int8', "
            "or dynamic activations"
        )
    if learned and not isinstance(scheme.format, IntFormat):
        raise ValueError(
            f"learned steps of activations need codes that are integers, not {scheme}; take 'int4-asym', or steps='absmax' "
            "and clip='none'"
        )


# --- what is done ----------------------------------------------------------------------------------------------------
def _inputs(recipe: Recipe, steps: str, clip: str, decay: float, freeze_after: int | None, name: str) -> nn.Module | None:
    activations = recipe.activations
    if activations is None:
        return None
    if activations.when == "dynamic":
        return DynamicInput(activations)
    if clip == "pact":
        return LearnedInput(activations, "clip", name)
    return (
        LearnedInput(activations, "step", name) if steps == "lsq" else AveragedInput(activations, decay, freeze_after, name)
    )


def _rounding(layer: QATLayer, recipe: Recipe, steps: str, gradient: str, name: str) -> nn.Module:
    assert recipe.weights is not None
    weight = layer.folded()[0].detach()
    flat = weight.reshape(weight.shape[0], -1)  # (out, in / groups * kernel)
    made = LearnedWeights(recipe.weights, flat) if steps == "lsq" else RuleWeights(recipe.weights, gradient)
    try:
        made(flat)
    except ValueError as error:
        raise ValueError(f"layer {name!r} of shape {tuple(weight.shape)}: {error}") from None
    return made


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of what `torch.compile` and DistributedDataParallel put around it."""
    while isinstance(model, nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module  # type: ignore[assignment]
    return model


def _converted(layer: QATLayer, name: str) -> tuple[nn.Module, LayerChange]:
    with torch.no_grad():
        weight, bias = layer.folded()
    weight = weight.detach()
    try:
        stored: QTensor = layer.rounding.packed(weight.reshape(weight.shape[0], -1))
    except ValueError as error:
        raise ValueError(f"layer {name!r} of shape {tuple(weight.shape)}: {error}") from None
    static = None if layer.inputs is None else layer.inputs.static()
    new: nn.Module
    if layer.kind == "Linear":
        new = QuantizedLinear(stored, bias, layer.activations, static)
    else:
        keys = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        kind: Any = nn.Conv1d if layer.kind == "Conv1d" else nn.Conv2d
        how: dict[str, Any] = {key: getattr(layer, key) for key in keys}
        like = kind(weight.shape[1] * how["groups"], weight.shape[0], **how, bias=False, device="meta")
        like.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        new = QuantizedConv(like, stored, activations=layer.activations, static=static)
    new.to(weight.device).eval()
    before = bytes_of(layer.parameters(recurse=False)) + (0 if layer.norm is None else own_bytes(layer.norm))
    after = bytes_of([b for key, b in new.named_buffers() if not key.endswith(("about", "sums"))])
    computes = new.extra_repr().rpartition(", ")[2]
    return new, LayerChange(
        name, layer.kind, str(stored.scheme), str(layer.activations or "as they are"), computes, before, after,
        sqnr_of(weight, torch.as_tensor(stored.dequantize()).to(weight.device)),
    )  # fmt: skip
