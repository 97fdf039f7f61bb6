"""HQQ: fit each block's scale and zero to the bulk of its weights, without any data.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023. A squared error listens to outliers; the
norm with p = 0.7 forgives them:

    minimise  sum |W - scale (Q - zero)|**p        with Q the nearest codes

Half-quadratic splitting brings in the error E that is to be forgiven, and makes two easy steps of it, again and again:

    E     <- shrink(W - scale (Q - zero))          shrink(e) = sign(e) max(|e| - |e|**(p-1) / beta, 0)
    zero  <- what fits W - E best, in squares      beta <- kappa beta

The original moves the zero alone, in units of the weights. Here the scale is fitted with it (one regression line for each block),
and errors are measured in steps of the grid, so that beta means the same for all weights. Each block keeps the best that it met,
as it is stored; it began with the scheme's own rule. Schemes without a zero get a scale, which may be negative: integers reach
one step further below zero than above it, and the sign says which of a block's tails gets that step.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from qlab._pieces import Array, Scratch, walk
from qlab.model.methods.grid import Grid, weight_array
from qlab.model.record import Inputs
from qlab.number.formats import IntFormat
from qlab.number.rounder import saturating_rounder
from qlab.tensor.qtensor import QTensor, scale_values
from qlab.tensor.scales import store_in
from qlab.tensor.scheme import Scheme
from qlab.tensor.walk import Plan

__all__ = ["quantize_weight"]

PIECE = 1 << 16
"""Elements that are fitted at once: half a dozen arrays of so many float32 stay in the cache."""

STARTS = (0.9, -0.9, 0.8, -0.8)
"""Where else, besides the rule's own scale, the search may begin for integers without a zero: less range, either way round."""

TINY = np.float32(1e-9)
"""What is added to a magnitude, in steps, so that it has a logarithm."""


def quantize_weight(
    weight: Tensor,
    inputs: Inputs | None,
    scheme: str | Scheme,
    *,
    p: float = 0.7,
    beta: float = 3.0,
    kappa: float = 1.15,
    iterations: int = 12,
) -> QTensor:
    """Quantize a weight by HQQ.

    Parameters
    ----------
    weight : tensor of shape (out, in)
    inputs : Inputs or None
        Not looked at.
    scheme : str or Scheme
        Any but GGUF's types. The original's is one with float minima: ``"uint4-b64-min"``.
    p : float
        Of the norm, above 0 and up to 1.
    beta, kappa : float
        How little is forgiven at first, and by how much less each time; positive, and at least 1.
    iterations : int
        At most so many; fewer where no block gains.

    Returns
    -------
    QTensor
        Of NumPy arrays.

    Raises
    ------
    ValueError
        If an option is not allowed.

    Notes
    -----
    Tolerance: no block has a larger p-norm of the error than by rounding to nearest, save where a scheme stores the scales.
    Book: part IV.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from qlab.model.methods import hqq, rtn
    >>> weight = torch.from_numpy(np.float32(np.random.default_rng(0).standard_t(4, (8, 64))))
    >>> error = lambda qt: float(np.abs(qt.dequantize() - weight.numpy()).mean())
    >>> fitted, plain = (method.quantize_weight(weight, None, "uint2-b64-min") for method in (hqq, rtn))
    >>> error(fitted) < 0.7 * error(plain)
    True
    """
    for name, value, allowed in (("p", p, 0 < p <= 1), ("beta", beta, beta > 0), ("kappa", kappa, kappa >= 1)):
        if not allowed:
            raise ValueError(f"{name}={value!r} is not allowed; p is above 0 and up to 1, beta positive, kappa at least 1")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations={iterations!r} is not allowed; give 0 or more, such as 12")
    array = weight_array(weight)
    grid = Grid(array, scheme)
    source = array if grid.offset == 0 else array - grid.offset
    scale = np.array(scale_values(grid.nearest.scale), np.float32)
    zero = None if grid.nearest.zero is None else np.array(grid.nearest.zero, np.float32)
    plan = Plan(np.ascontiguousarray(source), grid.scheme)
    for number, part in enumerate(plan.parts):
        everything = tuple(slice(0, n) for n in part.view.shape)
        scales = plan.take(scale, number, everything).copy()  # (blocks,)
        zeros = None if zero is None else plan.take(zero, number, everything).copy()
        rows = part.view.reshape(len(scales), -1)  # (blocks, block)
        step = max(1, PIECE // rows.shape[1])

        def work(piece: slice, scratch: Scratch, rows: Array = rows, scales: Array = scales, zeros: Array | None = zeros) -> None:
            fit = _Fit(rows[piece], scales[piece], None if zeros is None else zeros[piece], grid, p, scratch)
            fit.run(beta, kappa, iterations)

        walk(len(rows), work, piece=step)
        plan.put(scale, number, everything, scales)
        if zero is not None and zeros is not None:
            plan.put(zero, number, everything, zeros)
    return grid.round_with(source, scale, zero)


class _Fit:
    """Scales of some blocks: of rows (k, block), with scales and zeros (k,) that are replaced by better ones in place."""

    def __init__(self, rows: Array, scale: Array, zero: Array | None, grid: Grid, p: float, scratch: Scratch) -> None:
        self.rows, self.scale, self.zero, self.grid, self.p = rows, scale, zero, grid, np.float32(p)
        self.error = np.full(len(rows), np.inf, np.float32)
        names = ("levels", "errors", "powers", "magnitudes")
        buffers = [scratch(f"hqq {name}", np.float32, rows.size).reshape(rows.shape) for name in names]
        self.levels, self.errors, self.powers, self.magnitudes = buffers
        self.scratch = scratch
        fmt = grid.format
        self.lowest = np.float32(0 if zero is not None else fmt.min)
        self.highest = np.float32(fmt.max - fmt.min if zero is not None else fmt.max)
        self.rounder = None if isinstance(fmt, IntFormat) else saturating_rounder(fmt, np.dtype(np.float32))

    def run(self, beta: float, kappa: float, iterations: int) -> None:
        scale, low = self.scale.copy(), self._low(self.scale, self.zero)
        with np.errstate(all="ignore"):
            if self.zero is None and self.rounder is None and iterations > 0:
                self._offer(scale, None)
                for start in STARTS:
                    self._offer(*self._stored(scale * np.float32(start), None))
                scale = self.scale.copy()
                self.error.fill(np.inf)  # to be offered again: the regression begins with its errors
            for _ in range(iterations + 1):
                if not self._offer(scale, low):
                    break
                scale, low = self._regression(scale, low, np.float32(beta))
                beta *= kappa

    def _low(self, scale: Array, zero: Array | None) -> Array | None:
        """What the lowest code stands for, (k,)."""
        if zero is None or self.grid.scheme.zero == "min":
            return None if zero is None else zero.copy()
        return (np.float32(self.grid.format.min) - zero) * scale

    def _offer(self, scale: Array, low: Array | None) -> bool:
        """Take the scales over where the norm of the error is less; say whether any is."""
        steps, levels, powers = self.errors, self.levels, self.powers
        rows = self.rows if low is None else np.subtract(self.rows, low[:, None], out=steps)
        np.multiply(rows, np.where(scale == 0, 0, 1 / scale)[:, None], out=steps)
        if self.rounder is None:
            np.clip(np.rint(steps, out=levels), self.lowest, self.highest, out=levels)
        else:
            self.rounder.cast(steps.reshape(-1), levels.reshape(-1), self.scratch)
        np.subtract(steps, levels, out=self.errors)  # in steps
        np.add(np.abs(self.errors, out=self.magnitudes), TINY, out=self.magnitudes)
        np.multiply(np.log2(self.magnitudes, out=powers), self.p, out=powers)
        np.exp2(powers, out=powers)  # |e|**p, in half the time of np.power
        error = np.einsum("ij->i", powers) * np.abs(scale) ** self.p
        better = error < self.error
        np.copyto(self.error, error, where=better)
        np.copyto(self.scale, scale, where=better)
        if self.zero is not None and low is not None:
            np.copyto(self.zero, self._zero(scale, low), where=better)
        return bool(better.any())

    def _regression(self, scale: Array, low: Array | None, beta: np.float32) -> tuple[Array, Array | None]:
        """Return scale and low of the line through the levels that fits best what is not forgiven of the weights."""
        levels, limits, kept = self.levels, self.powers, self.errors
        np.divide(limits, np.multiply(self.magnitudes, beta, out=self.magnitudes), out=limits)  # |e|**(p-1) / beta
        np.minimum(kept, limits, out=kept)  # e less what is forgiven of it
        np.maximum(kept, np.negative(limits, out=limits), out=kept)
        products = np.einsum("ij,ij->i", levels, kept)
        squares = np.einsum("ij,ij->i", levels, levels)
        if low is None:
            return self._stored(scale * (1 + products / np.where(squares > 0, squares, 1)), None)
        n = np.float32(levels.shape[1])
        mean, mean_kept = np.einsum("ij->i", levels) / n, np.einsum("ij->i", kept) / n
        spread = squares / n - mean * mean
        slope = np.where(spread > 0, (products / n - mean * mean_kept) / np.where(spread > 0, spread, 1), 0)
        return self._stored(scale * (1 + slope), low + scale * (mean_kept - slope * mean))

    def _stored(self, scale: Array, low: Array | None) -> tuple[Array, Array | None]:
        """Return scale and low as they would be stored."""
        stored = self.grid.scheme.scale.stored
        fmt = None if isinstance(stored, Scheme) else stored
        scale = store_in(scale.astype(np.float32), fmt)
        if low is None:
            return scale, None
        if self.grid.scheme.zero == "min":
            return scale, store_in(low.astype(np.float32), fmt, "minimum")
        return scale, self._low(scale, self._zero(scale, low))

    def _zero(self, scale: Array, low: Array) -> Array:
        """Return what is stored beside the scale: the value of the lowest code, or the code of zero."""
        if self.grid.scheme.zero == "min":
            return low
        fmt = self.grid.format
        zero = np.rint(np.float32(fmt.min) - low / np.where(scale == 0, np.float32(1), scale))
        return np.clip(zero, np.float32(fmt.min), np.float32(fmt.max))
