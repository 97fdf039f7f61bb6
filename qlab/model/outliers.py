"""How large the channels are that go into a network's layers: a few large ones make a scale for all of them coarse."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qlab.model.batches import listed_batches
from qlab.model.outputs import call_order
from qlab.model.record import LAYERS, run_batches
from qlab.show.table import Table

__all__ = ["Channels", "LayerOutliers", "OutlierReport", "outliers", "over_median"]

TOP = 3


@dataclass(frozen=True)
class LayerOutliers:
    """The inputs of a layer.

    Attributes
    ----------
    name : str
        Of the layer.
    channels : int
        How many input channels there are.
    absmax : float
        The largest magnitude.
    kurtosis : float
        Fourth central moment over the squared variance: 3 for a normal distribution, larger with outliers.
    ratio : float
        The largest channel's magnitude over the median one's, of the channels that are not all zero.
    top : tuple of int
        The three channels (or fewer) with the largest magnitudes, the largest first.
    """

    name: str
    channels: int
    absmax: float
    kurtosis: float
    ratio: float
    top: tuple[int, ...]


class OutlierReport(tuple[LayerOutliers, ...]):
    """The layers in the order in which the model calls them; a tuple that shows itself as a table."""

    def table(self) -> Table:
        """Return the table: a row for each layer."""
        rows = [(o.name, o.channels, o.absmax, o.kurtosis, o.ratio, ", ".join(map(str, o.top))) for o in self]
        return Table(("layer", "channels", "absmax", "kurtosis", "outlier_ratio", "top_channels"), rows)

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def outliers(model: nn.Module, batches: Iterable[Any]) -> OutlierReport:
    """Report how large the channels are that go into each linear layer and convolution.

    Parameters
    ----------
    model : nn.Module
        Run in eval mode; not changed.
    batches : iterable
        A tensor, a tuple (positional arguments) or a dict (keyword arguments) each.

    Returns
    -------
    OutlierReport
        Shown as a table. Layers that no batch reached are missing.

    Raises
    ------
    ValueError
        If there are no batches, no such layers, or inputs hold NaN or infinities.

    Notes
    -----
    Memory does not grow with the number of batches. Sums are float64: a tolerance of 1e-9. Outlier channels: Dettmers et
    al., "LLM.int8()", 2022; Xiao et al., "SmoothQuant", 2023. Book: chapter 13.

    Examples
    --------
    >>> import torch, qlab
    >>> x = torch.arange(12.0).reshape(3, 4) % 5 * torch.tensor([1, 1, 50, 1])
    >>> qlab.outliers(torch.nn.Sequential(torch.nn.Linear(4, 2)), [x])
    layer  channels  absmax  kurtosis  outlier_ratio  top_channels
    0             4     100     6.526             25  2, 0, 1
    """
    watching = {name: Channels(name, module) for name, module in model.named_modules() if isinstance(module, LAYERS)}
    if not watching:
        raise ValueError("the model has no Linear, Conv1d or Conv2d layer, whose inputs could be looked at")
    listed = listed_batches(batches)
    modules = dict(model.named_modules())
    for _ in run_batches(model, listed, [(modules[name], channels.update) for name, channels in watching.items()]):
        pass
    seen = [(name, watching[name]) for name in call_order(model, listed) if name in watching and watching[name].count]
    return OutlierReport(
        LayerOutliers(name, len(c.absmax), float(c.absmax.max()), c.kurtosis, c.ratio, c.top) for name, c in seen
    )


class Channels:
    """What is remembered of the channels of a layer's inputs: magnitudes, and sums of powers of all elements.

    Parameters
    ----------
    name : str
        For errors.
    layer : Linear, Conv1d or Conv2d
        Which says where the channels are.
    """

    def __init__(self, name: str, layer: nn.Module) -> None:
        self.name = name
        self.axis = -2 if isinstance(layer, nn.Conv1d) else -3 if isinstance(layer, nn.Conv2d) else -1
        self.absmax = torch.zeros(0)
        self.count, self.near = 0, 0.0
        self.powers = torch.zeros(4, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Take in one batch of inputs."""
        rows = x.detach().to("cpu", torch.float32).movedim(self.axis, -1).flatten(0, -2)  # (n, channels)
        if not rows.numel():
            return
        if wrong := int((~torch.isfinite(rows)).sum()):
            raise ValueError(f"the inputs of layer {self.name!r} hold {wrong} infinities or NaN; clean the batches")
        wide = rows.double()
        if not self.count:
            self.near, self.absmax = float(wide.mean()), torch.zeros(rows.shape[1])
        self.absmax = torch.maximum(self.absmax, rows.abs().amax(0))
        off = wide - self.near  # central moments from powers about a value near the mean: nothing cancels
        square = off * off
        self.powers += torch.stack([off.sum(), square.sum(), (square * off).sum(), (square * square).sum()])
        self.count += rows.numel()

    @property
    def kurtosis(self) -> float:
        """Fourth central moment over the squared variance; NaN where all elements are equal."""
        mean, second, third, fourth = (float(p) / self.count for p in self.powers)
        variance = second - mean**2
        return (fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4) / variance**2 if variance > 0 else math.nan

    @property
    def ratio(self) -> float:
        """The largest channel over the median of those that are not all zero; 1 if all are."""
        return over_median(self.absmax)

    @property
    def top(self) -> tuple[int, ...]:
        """The channels with the largest magnitudes."""
        return tuple(torch.argsort(self.absmax, descending=True, stable=True)[:TOP].tolist())


def over_median(magnitudes: Tensor) -> float:
    """Return the largest magnitude over the median of those that are not zero; 1 if all are."""
    alive = magnitudes[magnitudes > 0]
    return float(alive.max() / alive.median()) if len(alive) else 1.0
