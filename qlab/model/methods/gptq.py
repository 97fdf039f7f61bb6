"""GPTQ: round column by column, and let the columns that are still free make up for each error.

Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
2022. What counts is the error of the outputs, ``|X (W - Q)^T|^2``, whose second derivative is ``H = 2 X^T X``. With
``H^-1 = U^T U``, U upper triangular (Cholesky), column j of W is rounded, and its error is spread over the columns after it:

    error_j = (w_j - q_j) / U_jj
    W[:, j+1:] -= error_j U[j, j+1:]

Columns within a span of 128 are changed at once, those behind it once for each span, in one matrix product. A share `damping` of
the mean of H's diagonal is added to it, since calibration sees few directions. `act_order` takes the columns with the largest
inputs first: their errors find most columns still free. Scales are those of the weight as it was (`static_groups`), or those of
what a group has become when its span is reached, as in the paper; at 2 and 3 bits the former are clearly better, since what takes
up others' errors grows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qlab._pieces import Array
from qlab.model.methods.grid import Grid, checked_inputs, weight_array
from qlab.model.record import Inputs
from qlab.tensor.blocks import PerBlock
from qlab.tensor.qtensor import QTensor
from qlab.tensor.scheme import Scheme

__all__ = ["quantize_weight"]

SPAN = 128
"""Columns whose errors are spread at once."""


def quantize_weight(
    weight: Tensor,
    inputs: Inputs | None,
    scheme: str | Scheme,
    *,
    damping: float = 0.01,
    act_order: bool = True,
    static_groups: bool = True,
) -> QTensor:
    """Quantize a weight by GPTQ.

    Parameters
    ----------
    weight : tensor of shape (out, in)
    inputs : Inputs
        Of which the Hessian is used.
    scheme : str or Scheme
        Any but GGUF's types.
    damping : float
        What is added to the Hessian's diagonal, as a share of its mean: more for few batches; above 0.
    act_order : bool
        Whether columns are taken by the size of their inputs, the largest first. Blocks stay where they are.
    static_groups : bool
        Whether scales of blocks are found before; else on the way, for blocks along the rows, without `act_order`.

    Returns
    -------
    QTensor
        Of NumPy arrays.

    Raises
    ------
    ValueError
        If there are no inputs, they do not fit the weight, or an option is not allowed.

    Notes
    -----
    Tolerance: at the same options the error is that of the reference, or less. The reference finds scales of groups on the
    way where columns keep their order; static ones are then up to a tenth worse at 4 bits, with `act_order` they are better.
    Channels whose inputs were always zero are rounded to nearest. Sums are float64. Book: part IV.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.methods import gptq
    >>> from qlab.model.record import inputs_of
    >>> inputs = inputs_of(torch.tensor([[1.0, 1.0], [1.0, 0.9]]))  # two channels that go together
    >>> gptq.quantize_weight(torch.tensor([[7.0, 2.4]]), inputs, "int4").dequantize().tolist()
    [[7.0, 2.0]]
    >>> gptq.quantize_weight(torch.tensor([[2.4, 7.0, 0.4]]), inputs_of(torch.ones(2, 3)), "int4").dequantize().tolist()
    [[2.0, 7.0, 1.0]]
    """
    array = weight_array(weight)
    known = checked_inputs(inputs, array, "GPTQ")
    if not 0 < damping < 10:
        raise ValueError(f"damping={damping!r} is not allowed; give a positive share of the mean diagonal, such as 0.01")
    grid = Grid(array, scheme)
    group = None if static_groups else _group(grid.scheme, act_order)
    hessian = known.hessian.detach().to("cpu", torch.float64)
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True).numpy() if act_order else np.arange(len(hessian))
    factor = _inverse_factor(hessian.numpy()[np.ix_(order, order)], damping)  # (in, in)
    columns = np.ascontiguousarray(array.T[order], np.float64) - grid.offset  # (in, out)
    found = _round_columns(columns, factor, grid, order, group)
    codes = np.empty(array.shape, found.codes.dtype)
    codes[:, order] = found.codes.T
    return grid.store(codes, found.scale, found.zero)


class _Found(NamedTuple):
    """Codes by column, (in, out); scales and zeros of blocks where groups found them on the way."""

    codes: Array
    scale: Array | None
    zero: Array | None


def _round_columns(columns: Array, factor: Array, grid: Grid, order: Array, group: int | None) -> _Found:
    """Round the columns of a weight, one after the other; `columns` (in, out) are changed on the way."""
    n, out = columns.shape
    scale = grid.scale.T[order]  # (in, out), copies
    zero = None if grid.zero is None else grid.zero.T[order]
    codes = np.empty((n, out), grid.nearest.codes().dtype)
    for start, stop in _spans(n, group or n):
        if group is not None:
            for first in range(-(-start // group) * group, stop, group):  # the groups that begin here
                ahead = slice(first, min(first + group, n))
                new_scale, new_zero = grid.rescaled(columns[ahead].T)
                scale[ahead] = new_scale
                if zero is not None and new_zero is not None:
                    zero[ahead] = new_zero
        errors = np.empty((stop - start, out))
        for j in range(start, stop):
            zero_here = None if zero is None else zero[j]
            codes[j] = grid.codes(columns[j], scale[j], zero_here)
            error = (columns[j] - grid.values(codes[j], scale[j], zero_here)) / factor[j, j]  # (out,)
            columns[j + 1 : stop] -= factor[j, j + 1 : stop, None] * error
            errors[j - start] = error
        if stop < n:
            columns[stop:] -= factor[start:stop, stop:].T @ errors
    if not group:
        return _Found(codes, None, None)
    return _Found(codes, scale[::group].T, None if zero is None else zero[::group].T)


def _group(scheme: Scheme, act_order: bool) -> int:
    """How many columns share a scale that can be found on the way."""
    blocks = scheme.blocks
    plain = not act_order and not scheme.center and not isinstance(scheme.scale.stored, Scheme)
    if plain and isinstance(blocks, PerBlock) and blocks.axis == -1 and isinstance(blocks.size, int):
        return blocks.size
    raise ValueError(
        f"static_groups=False is not allowed for {scheme} with act_order={act_order}: scales are found on the way for blocks "
        "along the rows, columns in order, scales stored as numbers; leave it out"
    )


def _spans(n: int, group: int) -> list[tuple[int, int]]:
    """Cut columns into spans of at most SPAN, so that each group begins with one or lies within one."""
    if group <= SPAN:
        width = SPAN // group * group
        return [(start, min(start + width, n)) for start in range(0, n, width)]
    return [
        (start, min(start + SPAN, first + group, n))
        for first in range(0, n, group)
        for start in range(first, min(first + group, n), SPAN)
    ]


def _inverse_factor(hessian: Array, damping: float) -> Array:
    """Return the upper triangular U with ``U^T U`` the inverse of the damped Hessian; float64."""
    damped = torch.from_numpy(hessian.copy())
    diagonal = damped.diagonal()
    silent = diagonal == 0  # inputs that were always zero
    diagonal += damping * diagonal.mean()
    diagonal[silent] = 1
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        factor: Array = torch.linalg.cholesky(inverse, upper=True).numpy()
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        raise ValueError(
            f"the Hessian with damping={damping} is not positive definite; raise damping (to 0.1, say), or give more batches"
        ) from None
    return factor
