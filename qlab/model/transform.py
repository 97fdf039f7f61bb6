"""From a model and a recipe to a quantized model, layer by layer.

    fuse -> look at the inputs (calibration) -> find codes (method) -> packed layer

The model that is given is not changed. What was done to each layer, and to which layers nothing was done and why, is in a
table: `quantization_map`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from qlab._progress import Progress
from qlab.model.batches import Batches
from qlab.model.checks import KINDS, check_model, check_weights, refuse_training, refuse_without_numbers
from qlab.model.fuse import fuse, replace_layer
from qlab.model.inputs import StaticRange, static_range
from qlab.model.layers import QuantizedConv, QuantizedEmbedding, QuantizedLinear
from qlab.model.methods import adaround, awq, gptq, hqq, rtn
from qlab.model.observers import OBSERVERS, Observer
from qlab.model.recipe import Recipe, get_recipe
from qlab.model.record import Inputs, collect_inputs
from qlab.model.state import copied
from qlab.model.trace import weights_read
from qlab.number.codec import cast
from qlab.show.table import Table
from qlab.tensor.qtensor import QTensor
from qlab.tensor.quantize import quantize
from qlab.tensor.scheme import Scheme

__all__ = ["LayerChange", "quantization_map", "quantize_model", "static_range"]

_METHODS: dict[str, Any] = {"rtn": rtn, "gptq": gptq, "awq": awq, "hqq": hqq, "adaround": adaround}



@dataclass(frozen=True)
class LayerChange:
    """A line of the map: what was done to a layer, or why nothing.

    Attributes
    ----------
    name, type : str
        The layer's name in the model, and its class.
    weights, activations, how : str
        Schemes and how the layer computes; or, where it was left, the reason.
    bytes_before, bytes_after : int
        Of what a state dict holds of it, but for the text that says what packed bytes mean.
    sqnr : float or None
        Signal to quantization noise of the weights, in decibels.
    """

    name: str
    type: str
    weights: str
    activations: str
    how: str
    bytes_before: int
    bytes_after: int
    sqnr: float | None = None


@torch.inference_mode(False)  # else what comes back could not be loaded into
def quantize_model(
    model: nn.Module, recipe: str | Recipe, calibration: Iterable[Any] | None = None, *, fake: bool = False,
    show: bool = True,
) -> nn.Module:  # fmt: skip
    """Return a quantized model.

    Parameters
    ----------
    model : nn.Module
        In eval mode; not changed.
    recipe : str or Recipe
        What to do, see `qlab.RECIPES`. After ``float16`` and ``bfloat16`` the model computes in that dtype and takes inputs in
        it, as after ``model.half()``.
    calibration : iterable, optional
        Batches for recipes that must see data: a tensor, a tuple (positional arguments) or a dict (keyword arguments).
    fake : bool
        Keep weights as floats that are already rounded, and round inputs to floats: to study the error alone. Of recipes with
        a dtype, which round all parameters and nothing else, it changes nothing.
    show : bool
        Print the map of what was done.

    Returns
    -------
    nn.Module
        A new model: layers of `qlab.model.layers` in place of those that the recipe takes. `quantization_map` shows what
        was done; ``calibration_hash`` is the SHA-256 of the calibration data, if any was given.

    Raises
    ------
    ValueError
        If the model, or a part of it, is in train mode, already quantized or prepared for training; the recipe takes no
        layer; weights are shared with another layer, are not there yet or not finite; calibration is missing, empty,
        holds NaN, or shows a layer NaN. The message names the layer or batch, and the remedy.

    Notes
    -----
    Tolerance: codes are exact for ``rtn``; the other methods search. The same seed and data give the same bits.

    Less memory is not always less time. On a CPU (``make bench``) integers make linear layers of 1024 and more three to ten
    times as fast as float32 and convolutions of 3x3 up to twice; those of 1x1 and in groups take up to three times
    as long, and weights that are brought back on the fly about twice.

    Book: chapter 12.

    Examples
    --------
    >>> import torch, qlab
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)).eval()
    >>> small = qlab.quantize_model(model, "weight_only_int8", show=False)
    >>> small[0]
    QuantizedLinear(
      activations=as they are, dequantized on the fly
      (weight): Packed(int8-channel, shape=(64, 64), 4352 bytes)
    )
    """
    recipe = get_recipe(recipe)
    check_model(model)
    refuse_training(model)
    refuse_without_numbers(model)
    batches = None if calibration is None else Batches(calibration, "calibration")
    if recipe.dtype is not None:
        return _rounded(model, recipe, batches, show)
    chosen, left = _choose(model, recipe)
    check_weights(model, chosen)
    if recipe.needs_calibration and batches is None:
        raise ValueError(f"the recipe ({recipe}) needs to see data; give calibration=, an iterable of batches")
    result = fuse(model)
    inputs, ranges = _look(result, recipe, chosen, batches)
    changes = [_after_fusing(change, result) for change in left]
    with Progress(len(chosen)) as progress:
        for name in chosen:
            progress.begin(name)
            before = own_bytes(model.get_submodule(name))
            layer, seen, static = result.get_submodule(name), inputs.get(name), ranges.get(name)
            new, change = _quantize_layer(layer, name, recipe, seen, static, before, fake=fake)
            result = replace_layer(result, name, new)
            changes.append(change)
    order = {name: place for place, (name, _) in enumerate(result.named_modules())}
    result.quantization_changes = sorted(changes, key=lambda change: order.get(change.name, len(order)))  # type: ignore[assignment]
    result.calibration_hash = None if batches is None else batches.hash  # type: ignore[assignment]
    if show:
        print(quantization_map(result))
    return result


def quantization_map(model: nn.Module) -> Table:
    """Return the table of what `quantize_model` did: a line for each layer that holds numbers, and the calibration data's hash.

    Raises
    ------
    ValueError
        If the model does not come from `quantize_model` or `convert`.

    Examples
    --------
    >>> import torch, qlab
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.LayerNorm(8)).eval()
    >>> small = qlab.quantize_model(model, qlab.Recipe(weights="int8-tensor"), show=False)
    >>> [row[:5] for row in qlab.quantization_map(small).rows]  # doctest: +NORMALIZE_WHITESPACE
    [('0', 'Linear', 'int8-tensor', 'as they are', 'dequantized on the fly'),
     ('1', 'LayerNorm', '', '', 'left: normalization stays in floats')]
    """
    changes: list[LayerChange] | None = getattr(model, "quantization_changes", None)
    if changes is None:
        raise ValueError("the model does not come from quantize_model; there is no map of it")
    columns = ("layer", "type", "weights", "activations", "how", "bytes_before", "bytes_after", "sqnr")
    rows = [(*astuple(c)[:-1], "" if c.sqnr is None else round(c.sqnr, 2)) for c in changes]
    seen: str | None = getattr(model, "calibration_hash", None)
    return Table(columns, rows, notes={"calibration_hash": seen[:16]} if seen else {})


# --- what is asked ---------------------------------------------------------------------------------------------------
def _choose(model: nn.Module, recipe: Recipe) -> tuple[list[str], list[LayerChange]]:
    """The layers that the recipe takes, and lines for all others that have parameters of their own."""
    kinds = tuple(KINDS[kind] for kind in recipe.types)
    if recipe.embeddings is not None:
        kinds = (*kinds, nn.Embedding)
    read = weights_read(model)
    chosen, left = [], []
    for name, module in model.named_modules():
        size = own_bytes(module)
        if not size and not isinstance(module, kinds):
            continue
        why = _why_left(module, name, kinds, recipe, read)
        if why is None:
            chosen.append(name)
            continue
        left.append(LayerChange(name, type(module).__name__, "", "", why, size, size))
    if not chosen and not any("min_size" in change.how for change in left):
        there = [f"{name or '(the model)'}: {type(m).__name__}" for name, m in model.named_modules() if list(m.parameters(False))]
        raise ValueError(f"the recipe ({recipe}) takes no layer of this model; it has {', '.join(there) or 'no parameters'}")
    return chosen, left


def _why_left(
    module: nn.Module, name: str, kinds: tuple[type[nn.Module], ...], recipe: Recipe, read: set[str]
) -> str | None:  # fmt: skip
    """The reason why a layer is left; None if it is taken. The model computes itself with the weights of those in `read`."""
    if type(module) not in kinds:
        if type(module) in KINDS.values():
            return f"left: the recipe takes {', '.join(recipe.types)} only"
        if parametrize.is_parametrized(module):
            return "left: its weight is parametrized; remove_parametrizations makes it permanent"
        if isinstance(module, tuple(KINDS.values())):
            return "left: a class of its own, whose forward may differ"
        if isinstance(module, parametrize.ParametrizationList):
            return "left: a parametrized weight; remove_parametrizations makes it permanent"
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _BatchNorm)):
            return "left: normalization stays in floats"
        return "left: qlab has no such layer"
    if getattr(module, "max_norm", None) is not None:
        return "left: max_norm changes its rows as they are looked up"
    if not recipe.takes(name):
        return "left: by its name"
    if "forward" in vars(module):
        return "left: its forward was replaced by another"
    if not isinstance(module.weight, nn.Parameter):
        return "left: its weight is no parameter"
    if name in read:
        return "left: the model computes with its weight itself"
    if module.weight.numel() < recipe.min_size:
        return f"left: below min_size={recipe.min_size}"
    return None


def _look(
    model: nn.Module, recipe: Recipe, chosen: list[str], batches: Batches | None
) -> tuple[dict[str, Inputs], dict[str, StaticRange]]:
    """Run the calibration: what the methods need of the inputs, and the ranges of static activations."""
    if batches is None:
        return {}, {}
    if not recipe.needs_calibration:
        batches.exhaust()
        return {}, {}
    layers = [name for name in chosen if not isinstance(model.get_submodule(name), nn.Embedding)]
    observers = {}
    if recipe.activations is not None and recipe.activations.when == "static":
        scheme = recipe.activations.scheme
        if scheme.scale.rule == "mean_abs":
            raise ValueError(f"static {scheme} activations are for training (prepare_qat); take 'int8-asym', or when='dynamic'")
        kind = OBSERVERS[recipe.activations.observer]
        observers = {name: _Named(name, kind(symmetric=scheme.zero is None, bits=scheme.bits)) for name in layers}
    names = layers if recipe.method in ("gptq", "awq", "adaround") else []
    inputs = collect_inputs(model, batches, names, observers=observers)
    ranges = {}
    for name, named in observers.items():
        try:
            lowest, highest = named.observer.range()
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}; leave it out (skip=), or calibrate with batches that reach it") from None
        assert recipe.activations is not None
        ranges[name] = static_range(lowest, highest, recipe.activations)
    return inputs, ranges


@dataclass
class _Named:
    """An observer that says whose inputs it refuses."""

    name: str
    observer: Observer

    def update(self, x: Tensor) -> None:
        try:
            self.observer.update(x)
        except ValueError as error:
            raise ValueError(f"the inputs of layer {self.name!r}: {error}") from None


# --- what is done ----------------------------------------------------------------------------------------------------
def _quantize_layer(
    layer: nn.Module, name: str, recipe: Recipe, inputs: Inputs | None, static: StaticRange | None, before: int, *, fake: bool
) -> tuple[nn.Module, LayerChange]:
    """The new layer, and what was done; `before` are the bytes that it took before batch normalization was folded in."""
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    embedding = isinstance(layer, nn.Embedding)
    scheme = recipe.embeddings or recipe.weights if embedding else recipe.weights
    try:
        stored, input_scale = _codes(weight, scheme, recipe, inputs, embedding=embedding)
    except (ValueError, TypeError) as error:
        raise type(error)(f"layer {name!r} of shape {tuple(weight.shape)}: {error}") from None
    new: QuantizedConv | QuantizedEmbedding | QuantizedLinear
    if embedding:
        new = QuantizedEmbedding(stored, layer.padding_idx)  # type: ignore[arg-type]
    else:
        how: dict[str, Any] = {"activations": recipe.activations, "static": static, "input_scale": input_scale, "fake": fake}
        conv = isinstance(layer, (nn.Conv1d, nn.Conv2d))
        new = QuantizedConv(layer, stored, **how) if conv else QuantizedLinear(stored, layer.bias, **how)  # type: ignore[arg-type]
    new.eval()
    brought_back = torch.as_tensor(stored.dequantize()).to(weight.device, torch.float64)  # (out, in * kernel)
    if input_scale is not None:
        brought_back = brought_back * input_scale.double()
    after = bytes_of([b for key, b in new.named_buffers() if not key.endswith(("about", "sums"))])
    return new, LayerChange(
        name, type(layer).__name__, str(scheme or "as they are"), "" if embedding else str(recipe.activations or "as they are"),
        new.how, before, after, sqnr_of(weight, brought_back),
    )  # fmt: skip


def _after_fusing(change: LayerChange, fused: nn.Module) -> LayerChange:
    """The line of a layer that was left: it may have got a bias, or be batch normalization that is gone."""
    module = fused.get_submodule(change.name)
    if not isinstance(module, nn.Identity):
        return replace(change, bytes_after=own_bytes(module))
    return replace(change, how="folded into the layer before", bytes_after=0)


def _codes(
    weight: Tensor, scheme: Scheme | None, recipe: Recipe, inputs: Inputs | None, *, embedding: bool
) -> tuple[QTensor, Tensor | None]:
    """The weight as it is stored, and what the input is multiplied by first."""
    if scheme is None:
        raise ValueError("the recipe quantizes inputs only, which qlab's layers do not; give weights, such as 'int16-channel'")
    flat = weight.reshape(weight.shape[0], -1)  # (out, in * kernel)
    if scheme.scale.rule == "unit" and float(flat.abs().max()) > float(scheme.format.max):  # type: ignore[union-attr]
        most = float(flat.abs().max())
        raise ValueError(f"it goes up to {most:.6g}, beyond the largest value of {scheme}; take one that scales")
    if embedding or recipe.method == "rtn":
        return quantize(flat, scheme), None
    options = dict(recipe.options)
    if recipe.method != "awq":
        return _METHODS[recipe.method].quantize_weight(flat, inputs, scheme, **options), None
    if weight.ndim != 2:
        raise ValueError("awq scales the inputs of linear layers; take gptq for convolutions, or types=('Linear',)")
    scales = awq.search_scales(flat, inputs, scheme, **options)
    return quantize(flat * scales, scheme), 1 / scales


def _rounded(model: nn.Module, recipe: Recipe, batches: Batches | None, show: bool) -> nn.Module:
    """All floating-point parameters and buffers rounded to a format; in torch's own dtype where it has one."""
    assert recipe.dtype is not None
    if batches is not None:
        batches.exhaust()
    result, fmt = copied(model), recipe.dtype
    own = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(fmt.name)
    before = {name: p.numel() * p.element_size() for name, p in result.named_parameters()}
    for name, tensor in (*result.named_parameters(), *result.named_buffers()):
        if tensor.is_floating_point():
            rounded = cast(tensor.data, fmt)
            if before.get(name) and torch.isfinite(tensor).all() and not torch.isfinite(rounded).all():
                raise ValueError(
                    f"parameter {name!r} goes up to {float(tensor.data.abs().max()):.6g}, beyond {fmt.name}'s largest value, "
                    f"{float(fmt.max):.6g}; take a wider format, such as 'bfloat16'"
                )
            tensor.data = rounded
    if own is not None:
        result._apply(lambda x: x.to(own) if x.is_floating_point() else x)  # type: ignore[no-untyped-call]  # complex numbers stay
    changes = []
    for name, p in result.named_parameters():
        how = "left: no real numbers" if not p.is_floating_point() else "in that dtype" if own else "rounded"
        changes.append(LayerChange(name, "parameter", fmt.name if p.is_floating_point() else "", "", how, before[name], p.nbytes))
    result.quantization_changes = changes  # type: ignore[assignment]
    result.calibration_hash = None if batches is None else batches.hash  # type: ignore[assignment]
    if show:
        print(quantization_map(result))
    return result


def sqnr_of(weight: Tensor, rounded: Tensor) -> float | None:
    """Return the signal to quantization noise in decibels; None where nothing was lost."""
    noise = (rounded.double() - weight.reshape(rounded.shape).double()).square().sum()
    return None if noise == 0 else 10 * float(torch.log10(weight.double().square().sum() / noise))


def own_bytes(module: nn.Module) -> int:
    """Return how many bytes of a state dict are a module's own, and not of its parts."""
    lasting = [b for name, b in module.named_buffers(recurse=False) if name not in module._non_persistent_buffers_set]
    return bytes_of([*module.parameters(recurse=False), *lasting])


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return how many bytes tensors take."""
    return sum(t.numel() * t.element_size() for t in tensors)
