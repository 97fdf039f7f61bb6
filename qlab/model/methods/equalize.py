"""Cross-layer equalization: let two layers share the work of a wide range.

Nagel, van Baalen, Blankevoort and Welling, "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019,
section 4.1. A ReLU lets positive factors through, so that channel i between two layers may be scaled freely:

    W2 relu(W1 x + b1) = (W2 S) relu(S^-1 W1 x + S^-1 b1)            s_i = sqrt(r1_i / r2_i)

with r1_i the largest magnitude of the weights that make channel i, and r2_i of those that read it. Both are sqrt(r1_i r2_i)
after, so that one scale for a whole weight wastes no channel. No data is needed.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["channel_ranges", "equalize"]

Layer = nn.Linear | nn.Conv1d | nn.Conv2d
First = TypeVar("First", nn.Linear, nn.Conv1d, nn.Conv2d)
Second = TypeVar("Second", nn.Linear, nn.Conv1d, nn.Conv2d)


def equalize(first: First, second: Second) -> tuple[First, Second]:
    """Return two layers with a ReLU between them, equalized: together they compute what they did.

    Parameters
    ----------
    first, second : Linear, Conv1d or Conv2d
        Between them may only be what lets a positive factor through: ReLU, leaky ReLU, pooling, flattening, dropout. Grouped
        and depthwise convolutions too. (Batch norms must be folded before; a ReLU6 would have to be scaled too.)

    Returns
    -------
    first, second
        New layers; those given are not changed.

    Raises
    ------
    ValueError
        If the second does not read as many channels as the first makes (or a multiple: after flattening).
    TypeError
        If a layer is of another kind.

    Notes
    -----
    Tolerance: the function is the same up to 1e-5. Channels that are zero on either side stay as they are. A chain of layers is
    equalized pair by pair, again and again. Book: part IV.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.methods.equalize import channel_ranges, equalize
    >>> first, second = equalize(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    >>> makes, reads = channel_ranges(first, second)
    >>> torch.allclose(makes, reads)
    True
    """
    makes, reads = channel_ranges(first, second)
    usable = (makes > 0) & (reads > 0)
    factors = torch.where(usable, (makes / reads).sqrt(), 1.0)  # (channels,)
    factors = torch.where(torch.isfinite(factors) & (factors > 0), factors, 1.0)
    new_first, new_second = deepcopy(first), deepcopy(second)
    with torch.no_grad():
        new_first.weight.copy_(first.weight / factors.reshape(-1, *[1] * (first.weight.ndim - 1)))
        if new_first.bias is not None:
            new_first.bias.copy_(new_first.bias / factors)
        grouped = _by_channel(second, len(factors))
        scaled = grouped * factors.reshape(grouped.shape[0], 1, grouped.shape[2], 1)
        new_second.weight.copy_(scaled.reshape(second.weight.shape))
    return new_first, new_second


def channel_ranges(first: Layer, second: Layer) -> tuple[Tensor, Tensor]:
    """Return the largest magnitudes of the weights that make each channel, and of those that read it: (channels,) each.

    Raises
    ------
    ValueError, TypeError
        As in `equalize`.
    """
    for layer in (first, second):
        if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            raise TypeError(f"layers are Linear, Conv1d or Conv2d, not {type(layer).__name__}")
    makes = first.weight.detach().flatten(1).abs().amax(1)
    reads = _by_channel(second, len(makes)).abs().amax((1, 3)).reshape(-1)
    return makes, reads


def _by_channel(layer: Layer, channels: int) -> Tensor:
    """View a weight as (groups, outputs of a group, channels of a group, weights that read a channel)."""
    weight, groups = layer.weight.detach(), getattr(layer, "groups", 1)
    reads = weight.shape[1] * groups
    if reads % channels or (reads != channels and not isinstance(layer, nn.Linear)):
        raise ValueError(
            f"the first layer makes {channels} channels and the second reads {reads}; give two layers that follow each other"
        )
    return weight.reshape(groups, weight.shape[0] // groups, channels // groups, -1)
