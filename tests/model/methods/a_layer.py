"""A layer with inputs such as networks have: channels that go together, a few of them large. And plain error measures."""

from __future__ import annotations

import torch

from qlab.model.record import inputs_of


def layer(out=96, channels=128, rows=1024, *, outliers=4, seed=0):
    """Return weight (out, channels), inputs (rows, channels), and what is recorded of the inputs."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    mix = normal(channels // 2, channels) / channels**0.5  # half as many directions as channels, and a little noise
    x = normal(rows, channels // 2) @ mix + 0.2 * normal(rows, channels) + 0.2 * normal(channels)
    x[:, torch.randperm(channels, generator=generator)[:outliers]] *= 12
    weight = normal(out, channels) / channels**0.5
    return weight, x, inputs_of(x)


def output_error(quantized, weight, x):
    """The mean squared error of ``x @ weight.T``."""
    values = quantized if isinstance(quantized, torch.Tensor) else torch.from_numpy(quantized.dequantize())
    return float((x.double() @ (values - weight).double().T).square().mean())
