"""Loss scaling that adapts: the decisions of ``torch.amp.GradScaler``, plain to read, with their history.

    multiply(loss).backward() -> step(optimizer): gradients divided by the scale, skipped if one overflowed -> update()

`LossScaler.state_dict` saves scale and history with a training, `LossScaler.figure` draws them.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

if TYPE_CHECKING:
    from qlab.show.figure import Figure
    from qlab.show.table import Table

__all__ = ["LossScaler", "parameters_of"]

_STATE = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker", "scales", "skipped")
"""The keys of a saved state: GradScaler's, and the history."""


class LossScaler:
    """Loss scaling that adapts, with its history: the decisions of ``torch.amp.GradScaler``.

    A loss that is multiplied by a large number has gradients that are larger by as much, so that fewer of them vanish in a
    narrow format. If some overflow instead, the step is skipped and the scale falls; after `interval` steps without, it rises.

    Parameters
    ----------
    initial : float
        The first scale.
    growth, backoff : float
        What the scale is multiplied by when it rises, and when it falls.
    interval : int
        Steps without overflow until it rises.

    Attributes
    ----------
    scale : float
        The scale now.
    scales : list of float
        The scale of each step so far.
    skipped : list of int
        The steps (from 0) that were skipped.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    Notes
    -----
    Exact: the same scales, gradients and skipped steps as GradScaler's, bit for bit. Micikevicius et al., "Mixed precision
    training", 2018. Book: chapter 14.

    Examples
    --------
    >>> import torch, qlab
    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> optimizer = torch.optim.SGD([weight], lr=0.5)
    >>> scaler = qlab.amp.LossScaler(initial=2.0**127, interval=1)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     scaler.multiply((8 * weight).sum()).backward()
    ...     _ = scaler.step(optimizer)
    ...     scaler.update()
    >>> [s / 2**127 for s in scaler.scales], scaler.skipped
    ([1.0, 0.5, 0.25], [0, 1, 2])
    """

    def __init__(self, initial: float = 2.0**16, growth: float = 2.0, backoff: float = 0.5, interval: int = 2000) -> None:
        with np.errstate(over="ignore"):
            scale = float(np.float32(initial))
        if not (0 < scale < math.inf):
            raise ValueError(f"initial={initial!r} is not allowed; give a positive, finite scale such as 2.0**16")
        _check_factors(growth, backoff, interval)
        self.scale = scale
        self.growth, self.backoff, self.interval = float(growth), float(backoff), interval
        self.scales: list[float] = []
        self.skipped: list[int] = []
        self._calm = 0  # steps since the scale last changed
        self._overflowed: dict[int, bool] = {}  # by optimizer, whose gradients are unscaled
        self._stepped: set[int] = set()

    def __repr__(self) -> str:
        return f"LossScaler(scale={self.scale:g}, steps={len(self.scales)}, skipped={len(self.skipped)})"

    def multiply(self, loss: Tensor) -> Tensor:
        """Return the loss times the scale, to call ``backward()`` of; GradScaler calls this `scale`."""
        return loss * self.scale

    def unscale(self, optimizer: Optimizer) -> bool:
        """Divide the gradients of an optimizer's parameters by the scale, in place, and return whether all are finite.

        For those who look at gradients (clip them, say) before `step`, which does this itself if it was not done.

        Raises
        ------
        ValueError
            If it was done before in this step, or there are no gradients.
        """
        if id(optimizer) in self._overflowed:
            raise ValueError("the gradients of this optimizer are unscaled already; call update() after its step, once")
        gradients = [p.grad for p in parameters_of(optimizer) if p.grad is not None]
        if not gradients:
            raise ValueError("the optimizer's parameters have no gradients; call multiply(loss).backward() first")
        with np.errstate(over="ignore", divide="ignore"):
            inverse = float(np.float32(1 / np.float64(self.scale)))
        finite = True
        for gradient in gradients:
            finite &= bool(torch.isfinite(gradient).all())
            if inverse != 1:
                gradient.mul_(inverse)
        self._overflowed[id(optimizer)] = not finite
        return finite

    def step(self, optimizer: Optimizer) -> bool:
        """Step the optimizer if its gradients are all finite; return whether it was done.

        Raises
        ------
        ValueError
            If it was called before without `update`, or there are no gradients.
        """
        if id(optimizer) in self._stepped:
            raise ValueError("step() was called before with this optimizer; call update() between two steps")
        if id(optimizer) not in self._overflowed:
            self.unscale(optimizer)
        self._stepped.add(id(optimizer))
        if self._overflowed[id(optimizer)]:
            return False
        optimizer.step()
        return True

    def update(self) -> None:
        """End a step: write down what happened and choose the scale of the next one.

        Raises
        ------
        ValueError
            If no optimizer was stepped or unscaled.
        """
        if not self._overflowed:
            raise ValueError("update() ends a step, but no optimizer made one; call step(optimizer) first")
        self.scales.append(self.scale)
        if any(self._overflowed.values()):
            self.skipped.append(len(self.scales) - 1)
            self.scale, self._calm = float(np.float32(self.scale * self.backoff)), 0
        else:
            self._calm += 1
            if self._calm == self.interval:
                with np.errstate(over="ignore"):
                    grown = float(np.float32(self.scale * self.growth))
                self.scale, self._calm = grown if math.isfinite(grown) else self.scale, 0
        self._overflowed, self._stepped = {}, set()

    def state_dict(self) -> dict[str, Any]:
        """Return the state in plain numbers, to be saved between two steps and loaded by `load_state_dict`.

        Returns
        -------
        dict
            GradScaler's five numbers by its own keys, so that it can load them too, and the history: ``scales`` and
            ``skipped``. What ``torch.load(weights_only=True)`` and JSON give back is the same to the last bit.

        Raises
        ------
        ValueError
            Within a step, after `unscale` or `step` and before `update`.

        Examples
        --------
        >>> import qlab
        >>> state = qlab.amp.LossScaler(8.0).state_dict()
        >>> state["scale"], state["scales"], state["skipped"]
        (8.0, [], [])
        """
        if self._overflowed:
            raise ValueError("the state is saved between two steps; call update(), which ends this one, and then state_dict()")
        numbers = (self.scale, self.growth, self.backoff, self.interval, self._calm, list(self.scales), list(self.skipped))
        return dict(zip(_STATE, numbers, strict=True))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: what follows has the same bits as if training had never stopped.

        Parameters
        ----------
        state : mapping
            Of `state_dict`. All of it is taken, growth, backoff and interval too; a step that was begun is forgotten.

        Raises
        ------
        TypeError
            If it is no mapping.
        ValueError
            If it is not the state of a LossScaler; the message names what is missing, left over or not allowed. Nothing
            is loaded then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state is what LossScaler.state_dict() returned, a dict, not {type(state).__name__}")
        missing, foreign = [key for key in _STATE if key not in state], [key for key in state if key not in _STATE]
        if missing or foreign:
            found = " and ".join(f"{what} {keys[:3]}" for what, keys in (("lacks", missing), ("also holds", foreign)) if keys)
            raise ValueError(f"not the state of a LossScaler: it {found}; give what LossScaler.state_dict() returned")
        scale, growth, backoff, interval, calm, scales, skipped = (state[key] for key in _STATE)
        _check_factors(growth, backoff, interval)
        if not _are_scales([scale]):
            raise ValueError(f"scale={scale!r} is not allowed; a scale is a finite float32 number, 0 or more")
        if not _is_count(calm) or calm >= interval:
            raise ValueError(f"_growth_tracker={calm!r} is not allowed; give a number of steps below growth_interval={interval}")
        if not isinstance(scales, (list, tuple)) or not _are_scales(scales):
            raise ValueError("scales is not a list of finite float32 numbers, 0 or more; give what state_dict() returned")
        steps = [-1, *skipped, len(scales)] if isinstance(skipped, (list, tuple)) else []
        if not steps or not all(map(_is_count, steps[1:])) or sorted(set(steps)) != steps:
            raise ValueError(f"skipped={skipped!r} is not allowed; give rising numbers of steps below len(scales)={len(scales)}")
        self.scale, self.growth, self.backoff, self.interval = float(scale), float(growth), float(backoff), interval
        self._calm, self.scales, self.skipped = calm, [float(each) for each in scales], list(skipped)
        self._overflowed, self._stepped = {}, set()

    def figure(self, reports: Mapping[int, Table] | None = None) -> Figure:
        """Return the figure of the scale's history, with underflow by layer if reports are given: `qlab.show.scale_history`."""
        from qlab.show.model import scale_history

        return scale_history(self, reports)


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Return all parameters of an optimizer."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def _check_factors(growth: Any, backoff: Any, interval: Any) -> None:
    if not _is_real(growth) or not (1 < growth < math.inf):
        raise ValueError(f"growth={growth!r} is not allowed; give a factor above 1, such as 2")
    if not _is_real(backoff) or not (0 < backoff < 1):
        raise ValueError(f"backoff={backoff!r} is not allowed; give a factor between 0 and 1, such as 0.5")
    if not _is_count(interval) or interval < 1:
        raise ValueError(f"interval={interval!r} is not allowed; give a number of steps, 1 or more")


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_scales(values: list[Any] | tuple[Any, ...]) -> bool:
    """Whether all are finite float32 numbers, 0 or more: so far a scale can fall."""
    if not all(map(_is_real, values)):
        return False
    exact = np.array(values, np.float64)
    with np.errstate(over="ignore"):
        return bool(((exact >= 0) & (exact < np.inf) & (exact.astype(np.float32) == exact)).all())
