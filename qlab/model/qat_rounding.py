"""What rounds while a network is trained: weights (by the scheme's rule, learned) and inputs (dynamic, averaged, learned).

Nothing here is written into a parameter, and what is measured lies in buffers that all processes agree on: so
DistributedDataParallel and FSDP2 see ordinary modules. A learned number is ``start + change``: `start` is a buffer that
the weights or the first batch set, `change` the parameter, zero at first.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, distributed, nn

from qlab.model.layers import StaticRange
from qlab.model.recipe import Activations
from qlab.model.ste import round_to_format, round_to_steps
from qlab.number.formats import IntFormat
from qlab.tensor.blocks import PerAxis, PerTensor
from qlab.tensor.qtensor import QTensor
from qlab.tensor.quantize import fake_quantize, quantize, store_codes
from qlab.tensor.scheme import Scale, Scheme

__all__ = ["AveragedInput", "DynamicInput", "LearnedInput", "LearnedWeights", "RuleWeights", "is_plain"]


# --- weights ---------------------------------------------------------------------------------------------------------
class RuleWeights(nn.Module):
    """Weights rounded with the scales that the scheme's own rule finds in them, anew at each step.

    Parameters
    ----------
    scheme : Scheme
        Any.
    gradient : {"pass", "clipped"}
        Whether weights that the rule clips get a gradient.
    """

    zero: Tensor

    def __init__(self, scheme: Scheme, gradient: str) -> None:
        super().__init__()
        self.scheme, self.gradient = scheme, gradient
        self.plain = is_plain(scheme) and scheme.scale == Scale("absmax")
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Return a weight of shape (out, n), rounded."""
        fmt = self.scheme.format
        if not self.plain or weight.dtype is torch.float64 or not isinstance(fmt, IntFormat):
            return fake_quantize(weight, self.scheme, gradient=self.gradient)  # type: ignore[no-any-return]
        whole = isinstance(self.scheme.blocks, PerTensor)  # the same numbers with fewer calls, which small layers feel
        magnitude = weight.detach().float().abs()
        step = (magnitude.amax() if whole else magnitude.amax(1, keepdim=True)) / fmt.max
        return round_to_steps(weight, torch.where(step > 0, step, 1.0), self.zero, fmt)

    def packed(self, weight: Tensor) -> QTensor:
        """Return what `forward` returns, as codes."""
        return quantize(weight.detach(), self.scheme)


def is_plain(scheme: Scheme) -> bool:
    """Whether codes are signed integers, with a float32 scale for the tensor or each channel, and nothing else."""
    whole = isinstance(scheme.blocks, PerTensor) or scheme.blocks == PerAxis(0)
    bare = scheme.zero is None and scheme.scale.stored is None and scheme.layout is None and not scheme.center
    return isinstance(scheme.format, IntFormat) and scheme.format.min < 0 and bare and whole


class _Learned(nn.Module):
    """A positive number that is learned, or one for each channel."""

    start: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start.detach().float().clone())
        self.change = nn.Parameter(torch.zeros_like(self.start))

    def value(self) -> Tensor:
        """Return the number; where training would take it below a thousandth of its start, it stays there."""
        learned, least = self.start + self.change, self.start / 1024
        return torch.where(learned > least, learned, least + (learned - learned.detach()))  # with a gradient all the same


class LearnedWeights(_Learned):
    """Weights rounded with learned steps (LSQ), one for the tensor or one for each output channel.

    Parameters
    ----------
    scheme : Scheme
        Of integers, without a zero point, by tensor or channel; its rule for the scale is not used.
    weight : Tensor
        Of shape (out, n): steps start at ``2 * mean|w| / sqrt(largest code)``.
    """

    zero: Tensor

    def __init__(self, scheme: Scheme, weight: Tensor) -> None:
        self.scheme, self.whole = scheme, isinstance(scheme.blocks, PerTensor)
        magnitude = weight.detach().float().abs()
        mean = magnitude.mean().reshape(1) if self.whole else magnitude.mean(1)  # (1,) or (out,)
        super().__init__(torch.where(mean > 0, 2 * mean / math.sqrt(scheme.format.max), 1.0))  # type: ignore[union-attr]
        self.register_buffer("zero", torch.zeros((), device=weight.device), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Return a weight of shape (out, n), rounded."""
        fmt, step = self.scheme.format, self.value()
        assert isinstance(fmt, IntFormat)
        shared = weight.numel() if self.whole else weight.shape[1]
        factor = 1 / math.sqrt(shared * fmt.max)
        return round_to_steps(weight, step if self.whole else step[:, None], self.zero, fmt, learns="step", factor=factor)

    def packed(self, weight: Tensor) -> QTensor:
        """Return what `forward` returns, as codes."""
        fmt, step = self.scheme.format, self.value().detach()
        assert isinstance(fmt, IntFormat)
        codes = torch.round(weight.detach().float() / (step if self.whole else step[:, None])).clamp(fmt.min, fmt.max)
        scale = step[0] if self.whole else step
        return store_codes(codes.to(torch.int32).cpu().numpy(), scale.cpu().numpy(), None, self.scheme)


# --- inputs ----------------------------------------------------------------------------------------------------------
class DynamicInput(nn.Module):
    """Inputs rounded with scales that the scheme's rule finds in each batch."""

    def __init__(self, activations: Activations) -> None:
        super().__init__()
        self.scheme = activations.scheme

    def forward(self, x: Tensor) -> Tensor:
        """Return an input, rounded."""
        return fake_quantize(x, self.scheme)  # type: ignore[no-any-return]

    def static(self) -> None:
        """Return nothing: there is no fixed range."""


class AveragedInput(nn.Module):
    """Inputs rounded with a range that is averaged over batches, and then frozen (Jacob et al., 2018, section 3.1).

    ``range += (1 - decay) * (range of the batch - range)``; the first batch sets it. With one bit, or the rule ``mean_abs``,
    the mean magnitude is averaged instead. Batches that are not finite leave it as it is.

    Parameters
    ----------
    activations : Activations
    decay : float
        How much of the average a batch leaves.
    freeze_after : int or None
        How many batches are averaged; all unless given.
    name : str
        Of the layer, for errors.
    """

    lowest: Tensor
    highest: Tensor
    seen: Tensor

    def __init__(self, activations: Activations, decay: float, freeze_after: int | None, name: str) -> None:
        super().__init__()
        self.scheme, self.decay, self.name = activations.scheme, decay, name
        self.freeze_after = freeze_after if freeze_after is not None else 1 << 62
        self.register_buffer("lowest", torch.zeros(()))
        self.register_buffer("highest", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.begun = False

    def forward(self, x: Tensor) -> Tensor:
        """Return an input, rounded; in training, see its range first."""
        if self.training:
            self._see(x.detach().float())
            self.begun = True
        scale, zero = self._scale_and_zero()
        fmt = self.scheme.format
        if isinstance(fmt, IntFormat):
            return round_to_steps(x, scale, zero, fmt)
        return round_to_format(x, scale, fmt)  # type: ignore[arg-type]

    def static(self) -> StaticRange:
        """Return the scale and zero point."""
        if not self.seen:
            raise _unseen(self.name)
        scale, zero = self._scale_and_zero()
        return StaticRange(float(scale), float(zero)).to(scale.device)

    def _see(self, x: Tensor) -> None:
        with torch.no_grad():
            if self.scheme.scale.rule == "mean_abs":
                highest = _mean_abs(x)
                lowest = -highest
            else:
                lowest, highest = _extremes(x)
            share = torch.where(self.seen == 0, 1.0, 1 - self.decay)
            finite = torch.isfinite(lowest) & torch.isfinite(highest)
            counts = finite & (self.seen < self.freeze_after)
            self.lowest.copy_(torch.where(counts, self.lowest + share * (lowest - self.lowest), self.lowest))
            self.highest.copy_(torch.where(counts, self.highest + share * (highest - self.highest), self.highest))
            self.seen += counts

    def _scale_and_zero(self) -> tuple[Tensor, Tensor]:
        if not self.begun:
            raise _unseen(self.name)
        return _spread(self.lowest, self.highest, self.scheme)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.begun = bool(self.seen > 0)


class LearnedInput(_Learned):
    """Inputs rounded with a step that is learned (LSQ), or to a range whose upper end is learned (PACT).

    The first batch sets the zero point, which then stays, and where learning starts: LSQ's step at
    ``2 * mean|x| / sqrt(largest code)``, PACT's end at the largest value.

    Parameters
    ----------
    activations : Activations
        A scheme of integers for the whole tensor.
    learns : {"step", "clip"}
    name : str
        Of the layer, for errors.
    """

    zero: Tensor

    def __init__(self, activations: Activations, learns: str, name: str) -> None:
        super().__init__(torch.zeros(1))
        self.scheme, self.learns, self.name, self.begun = activations.scheme, learns, name, False
        fmt = activations.scheme.format
        assert isinstance(fmt, IntFormat)
        self.format = fmt
        self.register_buffer("zero", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return an input, rounded; the first batch in training is looked at before."""
        if self.training and not self.begun:
            self._begin(x.detach().float())
            self.begun = True
        factor: Any = 1.0
        if self.learns == "step":  # n: features of one input, so that it does not matter how batches are shared out
            factor = torch.rsqrt(x[0].numel() * (self.format.max - self.zero))
        return round_to_steps(x, self._step(), self.zero, self.format, learns=self.learns, factor=factor)

    def static(self) -> StaticRange:
        """Return the scale and zero point."""
        step = self._step().detach()
        if not math.isfinite(float(step) + float(self.zero)):
            raise ValueError(
                f"layer {self.name!r} has learned a step of {float(step):g} and a zero point of {float(self.zero):g} for its "
                "inputs; training has diverged, or began with a batch that was not finite: prepare and train again"
            )
        return StaticRange(float(step), float(self.zero)).to(step.device)

    def _step(self) -> Tensor:
        if not self.begun:
            raise _unseen(self.name)
        return self.value() if self.learns == "step" else self.value() / (self.format.max - self.zero)

    def _begin(self, x: Tensor) -> None:
        with torch.no_grad():
            scale, zero = _spread(*_extremes(x), self.scheme)
            zero = zero.clamp(max=self.format.max - 1)  # one code at least is above zero
            highest_code = self.format.max - zero
            mean = 2 * _mean_abs(x) / highest_code.sqrt()
            start = torch.where(mean > 0, mean, 1.0) if self.learns == "step" else scale * highest_code
            self.zero.copy_(zero)
            self.start.copy_(start)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.begun = bool(self.start > 0)


def _spread(lowest: Tensor, highest: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """The scale and zero point that spread the codes over a range, as `qlab.model.transform.static_range`."""
    fmt = scheme.format
    if scheme.zero is None:
        scale, zero = torch.maximum(highest, -lowest) / fmt.max, torch.zeros_like(highest)  # type: ignore[union-attr]
        return torch.where(scale > 0, scale, 1.0), zero
    assert isinstance(fmt, IntFormat)
    lowest, highest = lowest.clamp(max=0), highest.clamp(min=0)
    scale = (highest - lowest) / (fmt.max - fmt.min)
    scale = torch.where(scale > 0, scale, 1.0)
    return scale, torch.round(fmt.min - lowest / scale).clamp(fmt.min, fmt.max)


def _unseen(name: str) -> ValueError:
    return ValueError(
        f"layer {name!r} has no range for its inputs yet; run at least one batch (of finite numbers) through the prepared model "
        "in train mode"
    )


# --- what all processes see ------------------------------------------------------------------------------------------
def _in_a_group() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value of a batch, of all processes' shares of it."""
    lowest, highest = torch.aminmax(x)
    if _in_a_group():
        both = torch.stack([-lowest, highest])
        distributed.all_reduce(both, distributed.ReduceOp.MAX)
        lowest, highest = -both[0], both[1]
    return lowest, highest


def _mean_abs(x: Tensor) -> Tensor:
    """The mean magnitude of a batch, of all processes' shares of it."""
    total = torch.stack([x.abs().sum(dtype=torch.float64), torch.tensor(x.numel(), dtype=torch.float64, device=x.device)])
    if _in_a_group():
        distributed.all_reduce(total)
    return (total[0] / total[1]).float()
