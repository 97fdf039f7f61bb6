"""The best mix of schemes for the layers of a network: few bits where they do little harm, more where they matter.

    minimize  sum of error[layer, scheme of the layer]    with    sum of bytes[layer, scheme of the layer] <= budget

Errors are measured with one layer quantized at a time and taken to add up; bytes are those that are stored, scales included.
The choice is then a knapsack, solved exactly: layer by layer, partial mixes are kept that no other beats in both sums.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import nn

from qlab._check import one_of
from qlab._pieces import Array
from qlab._progress import Progress
from qlab.model.batches import listed_batches
from qlab.model.fuse import fuse, replace_layer
from qlab.model.outputs import in_decibels, output_error, outputs_of, quantized_layers
from qlab.model.recipe import Recipe
from qlab.model.record import collect_inputs
from qlab.model.transform import LayerChange, quantize_model
from qlab.show.table import Table
from qlab.tensor.scheme import Scheme, get_scheme

if TYPE_CHECKING:
    from qlab.show.figure import Figure

__all__ = ["Allocation", "LayerAllocation", "Mix", "allocate_bits", "best_mixes"]

METRICS = ("output", "layer")
LIMIT = 20_000
"""Partial mixes that are kept, at most; see `best_mixes`."""


class Mix(NamedTuple):
    """A point of bits and error.

    Attributes
    ----------
    bits : float
        Average bits per weight.
    error : float
        Sum of the layers' relative squared errors.
    name : str
        The scheme, where all layers have the same.
    """

    bits: float
    error: float
    name: str = ""


@dataclass(frozen=True)
class LayerAllocation:
    """What a layer gets: its name, number of weights, scheme, bits per weight, bytes, and the error of it alone."""

    name: str
    weights: int
    scheme: Scheme
    bits: float
    bytes: int
    error: float


@dataclass(frozen=True)
class Allocation:
    """A scheme for each layer. Shows itself as a table.

    Attributes
    ----------
    layers : tuple of LayerAllocation
        In the order of the model's modules.
    bits : float
        Average bits per weight of these layers, scales included; biases are not counted.
    bytes : int
        Of their weights.
    budget : float
        What was allowed, in bits per weight.
    error : float
        Predicted: the sum of the layers' errors, each the squared error over the energy of the output.
    measured : float
        The same ratio of the model with all layers so quantized, on the same batches.
    front : tuple of Mix
        The Pareto front of all mixes: none has fewer or as many bits and less error.
    uniform : tuple of Mix
        One scheme for all layers, for each scheme.
    """

    layers: tuple[LayerAllocation, ...]
    bits: float
    bytes: int
    budget: float
    error: float
    measured: float
    front: tuple[Mix, ...]
    uniform: tuple[Mix, ...]

    @property
    def recipes(self) -> dict[str, Recipe]:
        """A recipe for each layer, by its name."""
        return {each.name: Recipe(weights=each.scheme, layers=(glob.escape(each.name),)) for each in self.layers}

    def table(self) -> Table:
        """Return the table: a row for each layer."""
        rows = [(a.name, a.weights, str(a.scheme), a.bits, a.bytes, in_decibels(a.error)) for a in self.layers]
        total = ("total", sum(a.weights for a in self.layers), "", self.bits, self.bytes, in_decibels(self.error))
        return Table(("layer", "count", "scheme", "bits_per_weight", "bytes", "sqnr_alone"), [*rows, total])

    def figure(self) -> Figure:
        """Return the figure of the Pareto front: `qlab.show.pareto_front`."""
        from qlab.show.diagnosis import pareto_front

        return pareto_front(self)

    def apply(self, model: nn.Module, calibration: Iterable[Any] | None = None, *, method: str = "rtn") -> nn.Module:
        """Return a quantized model in which each layer has its scheme.

        Parameters
        ----------
        model : nn.Module
            The one that was looked at, or one with the same layers; not changed.
        calibration, method
            As in `qlab.quantize_model` and `qlab.Recipe`.

        Raises
        ------
        ValueError
            If the model lacks one of the layers, and as `qlab.quantize_model`.
        """
        known = {name for name, _ in model.named_modules()}
        if missing := [each.name for each in self.layers if each.name not in known]:
            raise ValueError(f"the model has no layers {missing}; apply the allocation to the model it was made for")
        batches = None if calibration is None else listed_batches(calibration)
        chosen = {each.name: each.scheme for each in self.layers}
        parts: dict[Scheme, nn.Module] = {}
        for scheme in dict.fromkeys(chosen.values()):
            names = tuple(glob.escape(name) for name in chosen if chosen[name] == scheme)
            parts[scheme] = quantize_model(model, Recipe(weights=scheme, layers=names, method=method), batches, show=False)
        result = next(iter(parts.values()))
        for name, scheme in chosen.items():
            if parts[scheme] is not result:
                result = replace_layer(result, name, parts[scheme].get_submodule(name))
        lines = {scheme: {line.name: line for line in _changes(part)} for scheme, part in parts.items()}
        changes = [lines[chosen[line.name]][line.name] if line.name in chosen else line for line in _changes(result)]
        result.quantization_changes = changes  # type: ignore[assignment]
        return result

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def allocate_bits(
    model: nn.Module, schemes: Iterable[str | Scheme], batches: Iterable[Any], budget: float = 4.5, *,
    budget_bytes: int | None = None, metric: str = "output", skip: tuple[str, ...] = (),
) -> Allocation:  # fmt: skip
    """Choose a scheme for the weights of each linear layer and convolution, under a budget of bits.

    Parameters
    ----------
    model : nn.Module
        In eval mode; not changed.
    schemes : iterable of str or Scheme
        The candidates.
    batches : iterable
        A tensor, a tuple (positional arguments) or a dict (keyword arguments) each.
    budget : float
        Average bits per weight, scales included, of the layers that are quantized.
    budget_bytes : int, optional
        Bytes of all these weights together, instead.
    metric : {"output", "layer"}
        Whose squared error counts: the model's output (one run for each layer and scheme), or each layer's own output,
        relative to its energy (one run in all).
    skip : tuple of str
        Patterns of the names of layers that stay as they are, and are not counted.

    Returns
    -------
    Allocation
        Shown as a table; ``.apply(model)`` quantizes, ``.figure()`` draws the Pareto front.

    Raises
    ------
    ValueError
        If the budget is below the smallest mix (the message says how large that is) or not positive, there are no schemes
        or batches, a name is unknown, and as `qlab.quantize_model`.
    TypeError
        If `schemes` is a single one.

    Notes
    -----
    The mix is the exact optimum of the predicted error (`best_mixes` says from what size on it is not); that errors of
    layers add up is an assumption, and ``.measured`` beside ``.error`` says how good it was. Tolerance: that of float32
    products. Dong et al., "HAWQ-V2", 2020, has the knapsack; the plain measured error stands here for their Hessian.
    Book: chapter 13.

    Examples
    --------
    >>> import torch, qlab
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64)).eval()
    >>> mix = qlab.allocate_bits(model, ["int8-channel", "int4-b32/f16", "int2-b32/f16"], [torch.randn(32, 64)], budget=6.6)
    >>> mix.bits <= 6.6, sorted(str(layer.scheme) for layer in mix.layers)
    (True, ['int4-b32/f16', 'int8-channel'])
    """
    if isinstance(schemes, (str, Scheme)):
        raise TypeError(f"schemes is a single one, {schemes!r}; give a list of candidates")
    candidates = list(dict.fromkeys(get_scheme(scheme) for scheme in schemes))
    if not candidates:
        raise ValueError("schemes is empty; give candidates, such as ['int8-channel', 'int4-b32/f16']")
    one_of("metric", metric, METRICS)
    listed = listed_batches(batches)
    _check_budget(budget, budget_bytes)
    parts = [quantized_layers(quantize_model(model, Recipe(weights=s, skip=skip), show=False)) for s in candidates]
    base, names = fuse(model), list(parts[0])
    stored: list[list[Any]] = [[part[name].weight for part in parts] for name in names]
    sizes = np.array([[packed.qtensor().nbytes for packed in row] for row in stored])  # (layers, schemes)
    counts = [math.prod(base.get_submodule(name).weight.shape) for name in names]  # type: ignore[arg-type]
    weights = sum(counts)
    allowed = budget_bytes if budget_bytes is not None else math.floor(budget * weights / 8 * (1 + 1e-12))
    smallest = int(sizes.min(axis=1).sum())
    if smallest > allowed:
        asked = f"budget_bytes={budget_bytes}" if budget_bytes is not None else f"budget={budget}"
        raise ValueError(
            f"{asked} is less than the smallest mix, {smallest} bytes or {8 * smallest / weights:.4g} bits per weight; "
            "raise it, or add schemes with fewer bits"
        )
    errors = (_errors_of_output if metric == "output" else _errors_of_layers)(base, parts, names, listed)
    total_bytes, total_error, choices = best_mixes(sizes, errors)
    place = int(np.searchsorted(total_bytes, allowed, side="right")) - 1  # errors fall along the front
    chosen = choices(place)
    reference = outputs_of(base, listed)
    for name, choice in zip(names, chosen, strict=True):
        base = replace_layer(base, name, parts[choice][name])
    measured = output_error(reference, outputs_of(base, listed))[0]
    layers = [
        LayerAllocation(name, count, candidates[k], 8 * int(size[k]) / count, int(size[k]), float(error[k]))
        for name, count, k, size, error in zip(names, counts, chosen, sizes, errors, strict=True)
    ]
    used = int(total_bytes[place])
    front = tuple(Mix(8 * int(b) / weights, float(e)) for b, e in zip(total_bytes, total_error, strict=True))
    uniform = tuple(
        Mix(8 * int(size) / weights, float(error), str(scheme))
        for size, error, scheme in zip(sizes.sum(axis=0), errors.sum(axis=0), candidates, strict=True)
    )
    return Allocation(
        tuple(layers), 8 * used / weights, used, 8 * allowed / weights, float(total_error[place]), measured, front, uniform
    )


def best_mixes(sizes: Array, errors: Array) -> tuple[Array, Array, Any]:
    """Return the Pareto front of all mixes.

    Parameters
    ----------
    sizes : integers of shape (layers, choices)
        Bytes of a layer with a choice.
    errors : floats of shape (layers, choices)
        Its error. An infinite one is never chosen if another is there.

    Returns
    -------
    sizes, errors : arrays of shape (mixes,)
        Sums over the layers, sizes rising, errors falling.
    choices : function
        ``choices(i)`` is the list of the choices of mix i, one for each layer.

    Notes
    -----
    Exact while the front of every part of the layers has at most 20000 mixes. Beyond that, sizes fall into 20000 equal
    drawers, of each of which the mix with the least error is kept: what is lost is at most what a budget that is smaller by
    (layers / 20000) of the largest size would lose.

    Examples
    --------
    >>> import numpy as np
    >>> from qlab.model.allocation import best_mixes
    >>> sizes, errors, choices = best_mixes(np.array([[1, 2], [1, 2]]), np.array([[4.0, 1.0], [3.0, 2.0]]))
    >>> sizes.tolist(), errors.tolist(), [choices(i) for i in range(3)]
    ([2, 3, 4], [7.0, 4.0, 3.0], [[0, 0], [1, 0], [1, 1]])
    """
    total, error = np.zeros(1, np.int64), np.zeros(1)
    history: list[tuple[Array, Array]] = []  # of each layer: the mix before, and the choice
    for size, harm in zip(sizes, errors, strict=True):
        wide = (total[:, None] + size).reshape(-1)  # (mixes * choices,)
        deep = (error[:, None] + harm).reshape(-1)
        order = np.lexsort((deep, wide))
        best = np.minimum.accumulate(deep[order])
        better = np.concatenate([[True], best[1:] < best[:-1]])
        kept = order[better]
        if len(kept) > LIMIT:
            drawer = (wide[kept] - wide[kept[0]]) * LIMIT // (wide[kept[-1]] - wide[kept[0]] + 1)
            last = np.concatenate([drawer[1:] != drawer[:-1], [True]])  # of a drawer: it has the least error
            last[0] = True  # and the smallest of all, which any budget allows
            kept = kept[last]
        total, error = wide[kept], deep[kept]
        history.append((kept // len(size), kept % len(size)))

    def choices(mix: int) -> list[int]:
        found: list[int] = []
        for before, choice in reversed(history):
            found.append(int(choice[mix]))
            mix = int(before[mix])
        return found[::-1]

    return total, error, choices


# --- inside ----------------------------------------------------------------------------------------------------------
def _check_budget(budget: float, budget_bytes: int | None) -> None:
    if budget_bytes is not None and (isinstance(budget_bytes, bool) or not isinstance(budget_bytes, int) or budget_bytes < 1):
        raise ValueError(f"budget_bytes={budget_bytes!r} is not allowed; give a number of bytes, 1 or more")
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not (0 < budget < math.inf):
        raise ValueError(f"budget={budget!r} is not allowed; give average bits per weight, such as 4.5")


def _errors_of_output(base: nn.Module, parts: list[dict[str, nn.Module]], names: list[str], batches: list[Any]) -> Array:
    """Relative squared errors of the model's output, (layers, schemes), each layer quantized alone."""
    reference = outputs_of(base, batches)
    errors = np.empty((len(names), len(parts)))
    with Progress(len(names)) as progress:
        for row, name in enumerate(names):
            progress.begin(name)
            layer = base.get_submodule(name)
            for column, part in enumerate(parts):
                base = replace_layer(base, name, part[name])
                errors[row, column] = output_error(reference, outputs_of(base, batches))[0]
            base = replace_layer(base, name, layer)
    return errors


def _errors_of_layers(base: nn.Module, parts: list[dict[str, nn.Module]], names: list[str], batches: list[Any]) -> Array:
    """Relative squared errors of each layer's own output, (layers, schemes)."""
    inputs = collect_inputs(base, batches, names)
    errors = np.empty((len(names), len(parts)))
    for row, name in enumerate(names):
        weight: Any = base.get_submodule(name).weight.detach().cpu().flatten(1)  # type: ignore[operator]
        energy = inputs[name].output_error(weight)
        for column, part in enumerate(parts):
            stored: Any = part[name].weight
            error = inputs[name].output_error(stored.dequantize().cpu().flatten(1) - weight)
            errors[row, column] = error / energy if energy else 0.0
    return errors


def _changes(model: nn.Module) -> list[LayerChange]:
    changes: Any = model.quantization_changes
    return list(changes)
