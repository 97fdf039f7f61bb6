"""What comes out of a model, batch by batch, and how far two models' outputs are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from qlab.model.record import run_batches
from qlab.model.state import QUANTIZED

__all__ = ["call_order", "in_decibels", "output_error", "outputs_of", "quantized_layers"]


def outputs_of(model: nn.Module, batches: list[Any]) -> list[Any]:
    """Run batches through a model and return what comes out of each."""
    return list(run_batches(model, batches))


def output_error(reference: list[Any], outputs: list[Any]) -> tuple[float, float]:
    """Return the energy of the error over that of the reference, and the cosine between the two, over all outputs.

    The error is infinite, the cosine 0, if an output is not finite; a reference that is not is a ValueError.
    """
    if not any(_first_tensor(output).numel() for output in reference):
        raise ValueError("the model's outputs hold no number; give batches with at least one row")
    signal = noise = dot = energy = 0.0
    for first, second in zip(reference, outputs, strict=True):
        x, y = (_first_tensor(o).detach().double() for o in (first, second))
        signal, noise = signal + float(x.square().sum()), noise + float((x - y).square().sum())
        dot, energy = dot + float((x * y).sum()), energy + float(y.square().sum())
    if not math.isfinite(signal):
        raise ValueError("the model's own outputs hold infinities or NaN; clean the batches, as with torch.nan_to_num")
    if not math.isfinite(noise):
        return math.inf, 0.0
    if noise == 0:
        return 0.0, 1.0
    return (noise / signal if signal else math.inf), (dot / math.sqrt(signal * energy) if signal and energy else 0.0)


def in_decibels(error: float) -> float:
    """Return a relative squared error as SQNR."""
    return math.inf if error == 0 else -10 * math.log10(error) if error < math.inf else -math.inf


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that `quantize_model` put in place, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QUANTIZED)}


def call_order(model: nn.Module, batches: list[Any]) -> list[str]:
    """Return the names of the modules that are called with a tensor, in the order of their first call."""
    order: dict[str, None] = {}
    watching = [(module, lambda _, name=name: order.setdefault(name)) for name, module in model.named_modules()]
    for _ in run_batches(model, batches, watching):
        pass
    return list(order)


def _first_tensor(output: Any) -> Tensor:
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else [output]
    for part in parts:
        if isinstance(part, Tensor):
            return part
    raise TypeError(f"the model's output, a {type(output).__name__}, holds no tensor; wrap the model so that it returns one")
