"""SmoothQuant: hand the difficulty of large input channels over to the weights.

Xiao, Lin, Seznec, Wu, Demouth and Han, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", 2023. A few channels of an input are a hundred times larger than the others, and a scale for the whole token wastes its
codes on them. Dividing channel j of the input by s_j and multiplying the weight's by it changes nothing before rounding:

    y = (x / s) (W s)^T            s_j = max|x_j|**alpha / max|W_j|**(1 - alpha)

The division is done once, in what comes before: a norm's weight and bias, or a linear layer's rows. alpha = 1/2 makes both sides
equally hard; `search_alpha` asks the quantized outputs. `smooth_model` finds the norms of a whole model that can be smoothed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qlab.model.batches import listed_batches, tensors_in
from qlab.model.checks import refuse_training, refuse_without_numbers
from qlab.model.fuse import leave_fast_path
from qlab.model.outputs import outputs_of
from qlab.model.record import Inputs, collect_inputs, run_batches
from qlab.model.state import copied
from qlab.show.table import Table
from qlab.tensor.quantize import fake_quantize
from qlab.tensor.scheme import Scheme, get_scheme

__all__ = ["ALPHAS", "search_alpha", "smooth", "smooth_model", "smoothing_scales"]

ALPHAS = tuple(step / 20 for step in range(21))
"""What `search_alpha` tries: 0 to 1."""

NORMS = (nn.LayerNorm, nn.RMSNorm)

TOLERANCE = 1e-5
"""By how much of their size `smooth_model` may change a model's outputs."""


def smoothing_scales(inputs_absmax: Tensor, weights: Iterable[Tensor], alpha: float = 0.5) -> Tensor:
    """Return the factors that inputs are divided by and weights multiplied by.

    Parameters
    ----------
    inputs_absmax : tensor of shape (in,)
        The largest magnitude of each input channel.
    weights : tensors of shape (out, in)
        Of all layers that read these inputs.
    alpha : float
        How much of the difficulty the weights take: 0 to 1.

    Returns
    -------
    scales : float32 tensor of shape (in,)
        Positive; 1 for channels whose inputs or weights are all zero.

    Raises
    ------
    ValueError
        If `alpha` is not allowed or the shapes do not fit.

    Notes
    -----
    ``absmax(x)**alpha / absmax(w)**(1 - alpha)``. Tolerance: powers of float32, 1e-6. Xiao et al., "SmoothQuant", 2023,
    equation 4. Book: part IV.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.methods.smoothquant import smoothing_scales
    >>> smoothing_scales(torch.tensor([64.0, 1.0]), [torch.tensor([[0.25, -1.0]])])
    tensor([16.,  1.])
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha!r} is not allowed; give a number from 0 (inputs stay) to 1 (inputs are all alike)")
    tops = []
    for weight in weights:
        if weight.ndim != 2 or weight.shape[1:] != inputs_absmax.shape:
            raise ValueError(
                f"a weight has the shape {tuple(weight.shape)}, and inputs_absmax {tuple(inputs_absmax.shape)}; "
                "the weight's second number must be the inputs' channels"
            )
        tops.append(weight.detach().to("cpu", torch.float64).abs().amax(0))
    if not tops:
        raise ValueError("there are no weights; give those of the layers that read these inputs")
    x, w = inputs_absmax.detach().to("cpu", torch.float64), torch.stack(tops).amax(0)
    scales = (x**alpha / w ** (1 - alpha)).float()
    usable = (x > 0) & (w > 0) & torch.isfinite(scales) & (scales > 0)
    return torch.where(usable, scales, torch.ones(()))


def smooth(
    before: nn.Module, linears: Sequence[nn.Linear], inputs_absmax: Tensor, alpha: float = 0.5
) -> tuple[nn.Module, list[nn.Linear]]:
    """Return a norm (or linear layer) and the linear layers after it, smoothed: together they compute what they did.

    Parameters
    ----------
    before : LayerNorm, RMSNorm or Linear
        Whose output is what `linears` read, and nothing else reads. A norm needs a weight (``elementwise_affine``).
    linears : sequence of Linear
    inputs_absmax : tensor of shape (in,)
        Of the inputs of `linears`, see `record.Inputs`.
    alpha : float
        0 to 1; `search_alpha` finds one.

    Returns
    -------
    before, linears
        New modules; those given are not changed.

    Raises
    ------
    ValueError
        If shapes do not fit, `alpha` is not allowed, or a norm has no weight.
    TypeError
        If `before` or a layer is of another kind.

    Notes
    -----
    Tolerance: the function is the same up to 1e-5. Book: part IV.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.methods.smoothquant import smooth
    >>> norm, linear, x = torch.nn.LayerNorm(4), torch.nn.Linear(4, 3), torch.randn(5, 4)
    >>> new_norm, [new_linear] = smooth(norm, [linear], norm(x).abs().amax(0))
    >>> torch.allclose(new_linear(new_norm(x)), linear(norm(x)), atol=1e-5)
    True
    """
    for layer in linears:
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"layers after are Linear, not {type(layer).__name__}")
    if not isinstance(before, (*NORMS, nn.Linear)):
        raise TypeError(f"what comes before is a LayerNorm, RMSNorm or Linear, not {type(before).__name__}")
    if before.weight is None:
        raise ValueError(f"{before} has no weight to take the scales; make it with elementwise_affine=True")
    if before.weight.shape[:1] != inputs_absmax.shape or before.weight.ndim > (1 + isinstance(before, nn.Linear)):
        raise ValueError(
            f"{before} gives {len(before.weight)} channels, and inputs_absmax has the shape "
            f"{tuple(inputs_absmax.shape)}; they must be as many"
        )
    scales = smoothing_scales(inputs_absmax, [layer.weight for layer in linears], alpha)
    first, after = deepcopy(before), [deepcopy(layer) for layer in linears]
    with torch.no_grad():
        factors = scales.to(first.weight.device)
        first.weight.copy_(first.weight / (factors[:, None] if isinstance(first, nn.Linear) else factors))
        bias = getattr(first, "bias", None)
        if bias is not None:
            bias.copy_(bias / factors)
        for layer in after:
            layer.weight.copy_(layer.weight * scales.to(layer.weight.device))
    return first, after


def search_alpha(
    linears: Sequence[nn.Linear],
    inputs: Inputs,
    *,
    weights: str | Scheme = "int8_channel",
    activations: str | Scheme = "int8",
    alphas: Sequence[float] = ALPHAS,
) -> float:
    """Return the alpha with the least error of the quantized layers' outputs on the sample.

    Parameters
    ----------
    linears : sequence of Linear
        That read the same inputs.
    inputs : Inputs
        Of which the largest magnitudes and the sample are used.
    weights, activations : str or Scheme
        How the weights and the inputs will be quantized.
    alphas : sequence of float
        Which to try, from 0 to 1; of equals the first wins.

    Returns
    -------
    alpha : float

    Raises
    ------
    ValueError
        If there is no alpha to try, or the shapes do not fit.

    Notes
    -----
    Tolerance: sums of float32 products; of two alphas that are as good either may win. Book: part IV.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.methods.smoothquant import search_alpha
    >>> from qlab.model.record import inputs_of
    >>> x = torch.tensor([[100.0, 0.2, 0.3], [-90.0, 0.1, -0.4]])
    >>> linear = torch.nn.Linear(3, 1)
    >>> _ = torch.nn.init.ones_(linear.weight)
    >>> search_alpha([linear], inputs_of(x), alphas=(0.0, 0.5, 1.0))
    0.5
    """
    if not alphas:
        raise ValueError("alphas is empty; give numbers from 0 to 1 to try")
    weight_scheme, input_scheme = get_scheme(weights), get_scheme(activations)
    matrices = [layer.weight.detach().to("cpu").float() for layer in linears]
    sample = inputs.sample
    errors = []
    for alpha in alphas:
        scales = smoothing_scales(inputs.absmax, matrices, alpha)
        x = torch.from_numpy(fake_quantize((sample / scales).numpy(), input_scheme))  # (rows, in)
        error = 0.0
        for matrix in matrices:
            rounded = torch.from_numpy(fake_quantize((matrix * scales).numpy(), weight_scheme))
            error += float((x @ rounded.T - sample @ matrix.T).double().square().sum())
        errors.append(error)
    return float(alphas[errors.index(min(errors))])


def smooth_model(model: nn.Module, batches: Iterable[Any], *, alpha: float | Literal["search"] = 0.5) -> nn.Module:
    """Return a model in which every norm that can be is smoothed, with the linear layers that read its output.

    Parameters
    ----------
    model : nn.Module
        In eval mode; not changed.
    batches : iterable
        What shows how large the inputs are, and which layers read a norm's output: a tensor, a tuple (positional arguments) or
        a dict (keyword arguments) each.
    alpha : float or "search"
        How much of the difficulty the weights take, 0 to 1; or what `search_alpha` finds for each norm.

    Returns
    -------
    nn.Module
        A new model that computes what the given one does. Its ``smoothing_map`` is a table with a line for each norm: the alpha
        and the layers that took its scales, or why it was left.

    Raises
    ------
    ValueError
        If `alpha` is not allowed, there are no batches, they hold NaN or show a layer infinities, the model is in train mode,
        or no linear layer reads the output of a norm.
    TypeError
        If the model is none, its outputs hold no tensor, or a batch is none of the three.

    Notes
    -----
    Layers that read a norm are those whose input is the very tensor that a LayerNorm or RMSNorm returned. If that tensor has
    another use as well, such as a residual, or a weight has, smoothing would change the function: a norm stays smoothed only
    if no output on any batch changes by more than 1e-5 of the largest one. In float16 or bfloat16, which round more coarsely
    than that, hardly any does: smooth in float32. Tolerance: those 1e-5. Each norm that has to be left costs a few more runs.
    Source: Xiao et al., "SmoothQuant", 2023, section 4. Book: part IV.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from qlab.model.methods.smoothquant import smooth_model
    >>> model, x = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3), nn.ReLU(), nn.LayerNorm(3)).eval(), torch.randn(5, 4)
    >>> smoothed = smooth_model(model, [x], alpha=0.5)
    >>> torch.allclose(smoothed(x), model(x), atol=1e-5)
    True
    >>> smoothed.smoothing_map
    layer  alpha  how
    0      0.5    smoothed, with 1
    3             left: no Linear reads its output itself
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a torch.nn.Module, not {type(model).__name__}")
    given: object = alpha
    number = isinstance(given, Real) and not isinstance(given, bool)
    if not (0 <= float(alpha) <= 1 if number else isinstance(given, str) and given == "search"):
        raise ValueError(f"alpha={alpha!r} is not allowed; give a number from 0 to 1, or 'search' for the best of each norm")
    refuse_training(model)
    refuse_without_numbers(model)
    listed = listed_batches(batches)
    result: Any = copied(model)
    leave_fast_path(result)
    readers = _readers(result, listed)
    if not any(readers.values()):
        raise ValueError(
            "no Linear of the model reads the output of a LayerNorm or RMSNorm itself, and only such pairs can be smoothed; "
            "smooth other pairs by hand, with qlab.model.methods.smoothquant.smooth"
        )
    inputs = collect_inputs(result, listed, [names[0] for names in readers.values() if names])
    lines: dict[str, tuple[float | str, str]] = dict.fromkeys(readers, ("", "left: no Linear reads its output itself"))
    pairs = []
    for name, names in readers.items():
        if not names:
            continue
        norm, linears = result.get_submodule(name), [result.get_submodule(each) for each in names]
        seen = inputs[names[0]]
        chosen = search_alpha(linears, seen) if alpha == "search" else float(alpha)
        try:
            new_norm, new_linears = smooth(norm, linears, seen.absmax, chosen)
        except ValueError as error:
            lines[name] = ("", f"left: {error}")
            continue
        lines[name] = (chosen, f"smoothed, with {', '.join(names)}")
        pairs.append(_Pair(name, _parameters([norm, *linears]), _parameters([new_norm, *new_linears])))
    with torch.no_grad():
        changes = _fold(pairs, result, listed, outputs_of(result, listed)) if pairs else {}
    for name, change in changes.items():
        why = f"the outputs would change by {change:.1e} of their size; its output, or a weight, has another use"
        lines[name] = ("", f"left: {why}")
    result.smoothing_map = Table(("layer", "alpha", "how"), [(name, *line) for name, line in lines.items()])
    return result  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class _Pair:
    """A norm and the linear layers that read it: their parameters, and what these would be."""

    norm: str
    parameters: list[Tensor]
    smoothed: list[Tensor]


def _parameters(modules: Iterable[nn.Module]) -> list[Tensor]:
    return [parameter for module in modules for parameter in module.parameters()]


def _readers(model: nn.Module, batches: list[Any]) -> dict[str, list[str]]:
    """The norms of a model, and the linear layers whose input is the very tensor that the norm returned."""
    modules = dict(model.named_modules())
    readers: dict[str, list[str]] = {name: [] for name, module in modules.items() if isinstance(module, NORMS)}
    made: dict[int, tuple[str, Tensor]] = {}  # by identity; a tensor is held so that no other takes its place

    def note(linear: str, x: Tensor) -> None:
        if id(x) in made and linear not in readers[made[id(x)][0]]:
            readers[made[id(x)][0]].append(linear)

    given = [(module, partial(note, name)) for name, module in modules.items() if isinstance(module, nn.Linear)]
    made_by = [(modules[name], lambda y, name=name: made.update({id(y): (name, y)})) for name in readers]
    for batch in batches:
        for _ in run_batches(model, [batch], given, made_by):
            made.clear()
    return readers


def _fold(pairs: list[_Pair], model: nn.Module, batches: list[Any], reference: list[Any]) -> dict[str, float]:
    """Smooth pairs in the model but for those that change its outputs, which halving finds; by how much these would."""
    kept = [(parameter, parameter.clone()) for pair in pairs for parameter in pair.parameters]
    for pair in pairs:
        for parameter, smoothed in zip(pair.parameters, pair.smoothed, strict=True):
            parameter.copy_(smoothed)
    change = _change(reference, outputs_of(model, batches))
    if change <= TOLERANCE:
        return {}
    for parameter, value in kept:
        parameter.copy_(value)
    if len(pairs) == 1:
        return {pairs[0].norm: change}
    half = len(pairs) // 2
    return _fold(pairs[:half], model, batches, reference) | _fold(pairs[half:], model, batches, reference)


def _change(reference: list[Any], outputs: list[Any]) -> float:
    """The largest change of an output tensor, relative to its largest finite entry; equal infinities and NaN are no change."""
    before, after = list(tensors_in(reference)), list(tensors_in(outputs))
    if not before:
        raise TypeError("the model's outputs hold no tensor; wrap the model so that it returns one")
    if [x.shape for x in before] != [y.shape for y in after]:
        return math.inf
    changes = [0.0]
    for x, y in zip((x.double() for x in before), (y.double() for y in after), strict=True):
        differ = (x != y) & ~(x.isnan() & y.isnan())
        if bool(differ.any()):
            change = float((x - y)[differ].abs().max() / torch.where(torch.isfinite(x), x, 0).abs().max())
            changes.append(math.inf if math.isnan(change) else change)
    return max(changes)
