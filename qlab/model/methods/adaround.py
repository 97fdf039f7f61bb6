"""AdaRound: learn for each weight whether it is rounded up or down.

Nagel, Amjad, van Baalen, Louizos and Blankevoort, "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020. Nearest
is best for each weight alone, not for the sum. Between the levels below and above a weight stands a soft choice h,

    W~ = below + h(V) (above - below)            h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)

and V is learned by gradient descent so that outputs stay, while a second term drives each h to 0 or 1, gently at first:

    |X (W~ - W)^T|^2 + strength * sum (1 - |2 h - 1|**beta)            beta from 20 down to 2

It begins where W~ = W. At its end a few choices of each row are still soft, and cutting those would undo much of what was
learned; so choices are flipped, column by column, as long as that lessens the error. Errors of an output are counted in units of
its error by rounding to nearest, so that `strength` means the same for every layer. All rows of the sample are used at each
step: nothing is drawn by chance.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qlab.model.methods.grid import Grid, checked_inputs, weight_array
from qlab.model.record import Inputs
from qlab.tensor.qtensor import QTensor
from qlab.tensor.scheme import Scheme

__all__ = ["quantize_weight"]

LOW, HIGH = -0.1, 1.1
"""The rectified sigmoid runs from here to here before it is cut to [0, 1], so that it can reach both."""

WARM_UP = 0.2
"""The share of steps without the second term."""


@torch.inference_mode(False)
def quantize_weight(
    weight: Tensor,
    inputs: Inputs | None,
    scheme: str | Scheme,
    *,
    steps: int = 400,
    learning_rate: float = 0.02,
    strength: float = 0.1,
) -> QTensor:
    """Quantize a weight by AdaRound.

    Parameters
    ----------
    weight : tensor of shape (out, in)
    inputs : Inputs
        Of which the sample is used.
    scheme : str or Scheme
        Any but GGUF's types; its scales stay.
    steps : int
        Of Adam.
    learning_rate : float
    strength : float
        Of the term that makes choices hard.

    Returns
    -------
    QTensor
        Of NumPy arrays.

    Raises
    ------
    ValueError
        If there are no inputs, or they do not fit the weight, or an option is not allowed.

    Notes
    -----
    Tolerance: the error of each output on the sample is that of rounding to nearest, or less. Same input, same result; no
    random numbers are used. Book: part IV.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.methods import adaround
    >>> from qlab.model.record import inputs_of
    >>> inputs = inputs_of(torch.ones(1, 3))  # all weights meet the same input: only their sum counts
    >>> adaround.quantize_weight(torch.tensor([[7.0, 1.4, 1.45]]), inputs, "int4").dequantize().tolist()
    [[7.0, 1.0, 2.0]]
    """
    array = weight_array(weight)
    known = checked_inputs(inputs, array, "AdaRound")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r} is not allowed; give a positive integer, such as 400")
    for name, value in (("learning_rate", learning_rate), ("strength", strength)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}={value!r} is not allowed; give a positive number")
    grid = Grid(array, scheme)
    codes_below, codes_above = grid.neighbours(array - grid.offset, grid.scale, grid.zero)
    values = [grid.values(codes, grid.scale, grid.zero) + grid.offset for codes in (codes_below, codes_above)]
    below, above = (torch.from_numpy(np.float32(value)) for value in values)  # (out, in)
    nearest = torch.from_numpy(grid.nearest.dequantize())
    products = known.sample.T @ known.sample / len(known.sample)  # (in, in)
    target = torch.from_numpy(array)
    up = _learn(target, below, above, nearest, products, steps, learning_rate, strength)
    up = _settled(up, target, below, above, products)
    codes = np.where(up.numpy(), codes_above, codes_below)
    learned = torch.where(up, above, below)
    worse = _errors(learned - target, products) > _errors(nearest - target, products)  # (out,)
    codes[worse.numpy()] = grid.nearest.codes()[worse.numpy()]
    return grid.store(codes)


@torch.enable_grad()
def _learn(
    target: Tensor, below: Tensor, above: Tensor, nearest: Tensor, products: Tensor, steps: int, rate: float, strength: float
) -> Tensor:
    """Return which weights are rounded up, bool (out, in)."""
    step = above - below
    unit = _errors(nearest - target, products).clamp(min=1e-30)  # (out,)
    share = torch.where(step != 0, (target - below) / torch.where(step != 0, step, 1), 0.5).clamp(0, 1)
    choice = torch.logit((share - LOW) / (HIGH - LOW)).requires_grad_()
    free = step != 0
    optimizer = torch.optim.Adam([choice], lr=rate)
    for number in range(steps):
        soft = (torch.sigmoid(choice) * (HIGH - LOW) + LOW).clamp(0, 1)
        loss = (_errors(below + soft * step - target, products) / unit).sum()
        progress = (number / steps - WARM_UP) / (1 - WARM_UP)
        if progress > 0:
            beta = 2 + 9 * (1 + np.cos(np.pi * progress))  # 20 to 2
            loss = loss + strength * ((1 - (2 * soft - 1).abs() ** beta) * free).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return choice.detach() > 0


def _settled(up: Tensor, target: Tensor, below: Tensor, above: Tensor, products: Tensor, sweeps: int = 10) -> Tensor:
    """Flip single choices, each where that lessens the error of its output, until none does; bool (out, in)."""
    up, wide = up.clone(), products.double()
    step = (above - below).double()
    difference = torch.where(up, above, below).double() - target  # (out, in)
    slope = difference @ wide  # (out, in), half the gradient
    for _ in range(sweeps):
        before = up.clone()
        for j in range(up.shape[1]):
            change = torch.where(up[:, j], -step[:, j], step[:, j])  # (out,)
            better = change * (2 * slope[:, j] + change * wide[j, j]) < 0
            slope += torch.outer(torch.where(better, change, 0.0), wide[j])
            up[:, j] ^= better
        if torch.equal(up, before):
            break
    return up


def _errors(difference: Tensor, products: Tensor) -> Tensor:
    """Return the mean squared error of each output, (out,)."""
    return ((difference @ products) * difference).sum(1)
