"""Which layer of a network suffers most from quantization, and why.

`sensitivity` quantizes each layer alone, and all of them one after the other from front to back, and compares the model's
outputs with those in float32. For each layer it names a reason: an outlier among its input channels, clipping, one scale
for channels that differ much, scales that their storage spoils, or nothing but rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qlab._progress import Progress
from qlab.model.batches import listed_batches
from qlab.model.fuse import fuse, replace_layer
from qlab.model.outliers import Channels, over_median
from qlab.model.outputs import call_order, in_decibels, output_error, outputs_of, quantized_layers
from qlab.model.recipe import Recipe, get_recipe
from qlab.model.record import LAYERS, collect_inputs
from qlab.model.transform import quantize_model
from qlab.number.codec import cast
from qlab.number.formats import IntFormat
from qlab.show.table import Table
from qlab.tensor.blocks import PerTensor
from qlab.tensor.metrics import error_report

if TYPE_CHECKING:
    from qlab.show.figure import Figure

__all__ = ["LayerSensitivity", "Sensitivity", "sensitivity"]

OUTLIER, SPREAD, SHARE = 10.0, 10.0, 0.5
"""What makes a reason: a channel this many times the median one, and this part of the squared error."""

REMEDIES = {
    "outlier_channel": "smooth_or_rotate", "clipping": "other_range", "channel_spread": "finer_scales",
    "scale_storage": "wider_scale_storage", "rounding": "more_bits", "not_reached": "other_batches",
}  # fmt: skip
"""By reason."""



@dataclass(frozen=True)
class LayerSensitivity:
    """What quantizing a layer does to the model's output, and why.

    Attributes
    ----------
    name, type : str
        Of the layer in the model.
    sqnr, cosine : float
        Of the model's output with this layer alone quantized, against float32; in dB, and of all outputs as one vector.
    accumulated_sqnr, accumulated_cosine : float
        The same with this layer and all before it quantized.
    loss_change, accumulated_loss_change : float or None
        By how much the mean loss rises.
    reason : str
        ``outlier_channel``, ``clipping``, ``channel_spread`` (one scale for rows of weights that differ much),
        ``scale_storage`` (the scale is too small or coarse for its storage), ``rounding`` (none of these) or
        ``not_reached`` (no batch used the layer).
    outlier_ratio : float
        The largest magnitude of an input channel over the median one's; NaN where no floats go in.
    outlier_channel : int or None
        Which channel that is.
    clipped : float
        Share of the weights, or of the sampled inputs if that is larger, which are clipped.
    """

    name: str
    type: str
    sqnr: float
    cosine: float
    accumulated_sqnr: float
    accumulated_cosine: float
    loss_change: float | None
    accumulated_loss_change: float | None
    reason: str
    outlier_ratio: float
    outlier_channel: int | None
    clipped: float


@dataclass(frozen=True)
class Sensitivity:
    """The layers of a model, from front to back. Shows itself as tables; `figure` draws it.

    Attributes
    ----------
    recipe : Recipe
        What was done to the layers.
    layers : tuple of LayerSensitivity
        In the order in which the model calls them.
    loss : float or None
        The mean loss in float32.
    """

    recipe: Recipe
    layers: tuple[LayerSensitivity, ...]
    loss: float | None

    @property
    def worst(self) -> LayerSensitivity:
        """The layer that, quantized alone, does the most harm to the output."""
        return min(self.layers, key=lambda layer: layer.sqnr)

    def tables(self) -> tuple[Table, Table]:
        """Return the table of all layers, and the one line that says which hurts most, why, and what helps."""
        with_loss = self.loss is not None
        columns = ["layer", "sqnr_alone", "cosine", "sqnr_accumulated", *(["loss_change"] * with_loss), "why"]
        rows = [
            (
                each.name, each.sqnr, each.cosine, each.accumulated_sqnr, *([each.loss_change] * with_loss), each.reason,
                each.outlier_ratio, 100 * each.clipped,
            )
            for each in self.layers
        ]  # fmt: skip
        worst = self.worst
        return (
            Table((*columns, "outlier_ratio", "clipped"), rows),
            Table(("hurts_most", "why", "remedy"), [(worst.name, worst.reason, REMEDIES[worst.reason])]),
        )

    def figure(self) -> Figure:
        """Return the figure of all layers' SQNR, alone and accumulated: `qlab.show.sensitivity_bars`."""
        from qlab.show.diagnosis import sensitivity_bars

        return sensitivity_bars(self)

    def __repr__(self) -> str:
        return "\n\n".join(map(repr, self.tables()))

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self.tables())


def sensitivity(
    model: nn.Module, recipe: str | Recipe, batches: Iterable[Any], *, loss: Callable[[Any, Any], Any] | None = None
) -> Sensitivity:
    """Quantize each layer alone, and all up to it, and say what that does to the model's output, and why.

    Parameters
    ----------
    model : nn.Module
        In eval mode; not changed.
    recipe : str or Recipe
        What is done to layers. Static activations are calibrated with `batches`.
    batches : iterable
        A tensor, a tuple (positional arguments) or a dict (keyword arguments) each.
    loss : callable, optional
        ``loss(output, batch)`` gives a number; the mean over batches is reported.

    Returns
    -------
    Sensitivity
        Shown as tables; ``.worst`` is the layer that hurts most, ``.figure()`` draws it.

    Raises
    ------
    ValueError
        As `qlab.quantize_model`; if there are no batches, or the recipe rounds all parameters to a dtype.
    TypeError
        If a batch is none of the three, or the model's output holds no tensor.

    Notes
    -----
    The first tensor in the model's output counts. Each layer's codes are those of the whole model quantized at once. The
    reason is the one that goes furthest beyond its threshold: an input channel 10 times the median one; 10 times as large
    weights in one row as in the median one, where one scale serves all; clipping, or the storage of scales, as half of the
    squared error of weights or (for clipping) of at most 512 sampled inputs. Runs the model twice for each layer.
    Tolerance: that of float32 products. Book: chapter 13.

    Examples
    --------
    >>> import torch, qlab
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8)).eval()
    >>> x = torch.randn(64, 32)
    >>> x[:, 5] *= 40
    >>> report = qlab.sensitivity(model, qlab.Recipe(weights="int8-channel", activations="int8"), [x])
    >>> report.worst.name, report.worst.reason, report.worst.outlier_channel
    ('0', 'outlier_channel', 5)
    """
    recipe = get_recipe(recipe)
    if recipe.dtype is not None:
        raise ValueError(
            f"the recipe rounds all parameters to {recipe.dtype.name}, not layer by layer; name weights, as "
            f"qlab.Recipe(weights='int8-channel')"
        )
    listed = listed_batches(batches)
    quantized = quantize_model(model, recipe, listed, show=False)
    base, new = fuse(model), quantized_layers(quantized)
    if not new:
        raise ValueError(f"the recipe ({recipe}) leaves all layers as they are; lower min_size")
    reached = [name for name in call_order(base, listed) if name in new]
    names = [*reached, *(name for name in new if name not in reached)]
    old = {name: base.get_submodule(name) for name in names}
    channels = {name: Channels(name, old[name]) for name in reached if isinstance(old[name], LAYERS)}
    inputs = collect_inputs(base, listed, list(channels), observers=channels)
    reference = outputs_of(base, listed)

    def measure() -> tuple[float, float, float | None]:
        outputs = outputs_of(base, listed)
        error, cosine = output_error(reference, outputs)
        return in_decibels(error), cosine, _mean_loss(loss, outputs, listed)

    start = _mean_loss(loss, reference, listed)
    alone, accumulated = {}, {}
    with Progress(2 * len(names)) as progress:
        for name in names:
            progress.begin(name)
            base = replace_layer(base, name, new[name])
            alone[name] = measure()
            base = replace_layer(base, name, old[name])
        for name in names:
            progress.begin(name)
            base = replace_layer(base, name, new[name])
            accumulated[name] = measure()

    def change(value: float | None) -> float | None:
        return None if value is None or start is None else value - start

    layers = []
    for name in names:
        seen = channels.get(name)
        sample = inputs[name].sample if name in inputs else None
        reason, clipped = _reason(old[name], new[name], recipe, seen, sample) if name in reached else ("not_reached", 0.0)
        layers.append(LayerSensitivity(
            name, type(old[name]).__name__, *alone[name][:2], *accumulated[name][:2], change(alone[name][2]),
            change(accumulated[name][2]), reason, seen.ratio if seen else math.nan, seen.top[0] if seen else None, clipped,
        ))  # fmt: skip
    return Sensitivity(recipe, tuple(layers), start)


# --- inside ----------------------------------------------------------------------------------------------------------
def _mean_loss(loss: Callable[[Any, Any], Any] | None, outputs: list[Any], batches: list[Any]) -> float | None:
    if loss is None:
        return None
    with torch.no_grad():
        return math.fsum(float(loss(output, batch)) for output, batch in zip(outputs, batches, strict=True)) / len(batches)


def _reason(
    layer: nn.Module, quantized: nn.Module, recipe: Recipe, channels: Channels | None, sample: Tensor | None
) -> tuple[str, float]:
    """The reason that goes furthest beyond its threshold, and the share that is clipped."""
    weight: Any = layer.weight.detach().flatten(1)  # type: ignore[operator]  # (out, in * kernel)
    scheme = recipe.embeddings or recipe.weights if isinstance(layer, nn.Embedding) else recipe.weights
    assert scheme is not None
    report = error_report(weight, scheme)
    clipping = [(report.clipping / report.mse if report.mse else 0.0, report.clipped)]
    if sample is not None and recipe.activations is not None:
        clipping.append(_clipping_of_inputs(sample, quantized))
    one_scale = isinstance(scheme.blocks, PerTensor)
    severity = {
        "outlier_channel": channels.ratio / OUTLIER if channels is not None else 0.0,
        "channel_spread": over_median(weight.abs().amax(1)) / SPREAD if one_scale else 0.0,
        "clipping": max(share for share, _ in clipping) / SHARE,
        "scale_storage": report.storage / report.mse / SHARE if report.mse else 0.0,
    }
    reason = max(severity, key=lambda key: severity[key])
    return (reason if severity[reason] >= 1 else "rounding"), max(clipped for _, clipped in clipping)


def _clipping_of_inputs(sample: Tensor, quantized: Any) -> tuple[float, float]:
    """Of sampled inputs (rows, in): clipping's part of the squared error, and the share of elements that are clipped."""
    scheme, static = quantized.activations.scheme, quantized.static
    if quantized.input_scale is not None:
        sample = sample * quantized.input_scale
    if static is None:
        report = error_report(sample, scheme) if bool(sample.any()) else None
        return (report.clipping / report.mse, report.clipped) if report is not None and report.mse else (0.0, 0.0)
    fmt, scale, zero = scheme.format, float(static.scale), float(static.zero)
    inside = sample.double().clamp((fmt.min - zero) * scale, (fmt.max - zero) * scale)
    steps = inside / scale
    rounded = torch.round(steps) if isinstance(fmt, IntFormat) else cast(steps, fmt)
    clipping = float((sample.double() - inside).square().sum())
    rounding = float((rounded * scale - inside).square().sum())
    beyond = (sample.double() - inside).abs() > scale / 2
    return (clipping / (clipping + rounding) if clipping else 0.0), float(beyond.double().mean())
