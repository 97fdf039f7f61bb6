"""Rotation: spread each outlier over all channels, and undo it after.

Ashkboos and others, "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", 2024; Chee and others, "QuIP", 2023, call what is
gained incoherence. With R orthogonal, ``x W^T = (x R) (W R)^T``: before rounding nothing changes, but ``x R`` and ``W R`` are
sums of many entries with signs, which look like a normal distribution however spiky x and W were.

R = D H: random signs D (by a seed), then Hadamard's matrix H over its square root, whose entries are all alike in size. H for
2^k m channels is built from H_m and k doublings, in n log n additions instead of n^2:

    H_2n = [[H_n, H_n], [H_n, -H_n]]            m = 1, 12, 20 (Paley's matrices of the primes 11 and 19)

For other numbers of channels, R is block-diagonal, with the largest block of that kind that divides them.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

__all__ = ["Rotation", "hadamard", "hadamard_matrix", "incoherence", "rotate"]

CORES = (20, 12, 1)
"""The m of 2^k m."""


@lru_cache(maxsize=8)
def _core(m: int) -> tuple[tuple[float, ...], ...]:
    """Hadamard's matrix of order m, by Paley's first construction from the prime m - 1."""
    if m == 1:
        return ((1.0,),)
    prime = m - 1
    squares = {i * i % prime for i in range(1, prime)}
    skew = [[0] + [1] * prime]  # what is added to the identity
    for i in range(prime):
        skew.append([-1] + [0 if i == j else 1 if (j - i) % prime in squares else -1 for j in range(prime)])
    return tuple(tuple(float(value + (i == j)) for j, value in enumerate(row)) for i, row in enumerate(skew))


def block_of(channels: int) -> int:
    """Return the largest 2^k m that divides a number of channels, m being 1, 12 or 20.

    Examples
    --------
    >>> from qlab.model.methods.rotation import block_of
    >>> block_of(768), block_of(640), block_of(100), block_of(7)
    (768, 640, 20, 1)
    """
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise ValueError(f"channels={channels!r} is not allowed; give a positive integer")
    power = channels & -channels
    sizes = [1]
    for m in CORES:
        odd, twos = m // (m & -m), m & -m
        if channels % m == 0:
            sizes.append(odd * (power // twos) * twos)
    return max(sizes)


def hadamard(x: Tensor) -> Tensor:
    """Return ``x @ H / sqrt(n)`` for the Hadamard matrix H of the last axis; block by block where there is none.

    Parameters
    ----------
    x : tensor of floats, shape (*lead, n)

    Returns
    -------
    rotated : tensor of the same shape and dtype

    Raises
    ------
    TypeError
        If `x` is not made of floats.

    Notes
    -----
    Orthogonal: lengths and angles are kept, up to rounding (tolerance 1e-6 of the length). n log n additions.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.methods.rotation import hadamard
    >>> hadamard(torch.tensor([4.0, 0, 0, 0]))
    tensor([2., 2., 2., 2.])
    """
    if not x.is_floating_point():
        raise TypeError(f"x is a tensor of {x.dtype}; give floats")
    n = x.shape[-1]
    block = block_of(n)
    m = next(m for m in CORES if block % m == 0 and (block // m) & (block // m - 1) == 0)
    rows = x.reshape(-1, block)
    step = block
    while step > m:  # the halves of each run of `step`: their sum, their difference
        halves = rows.reshape(-1, 2, step // 2)
        rows = torch.stack([halves[:, 0] + halves[:, 1], halves[:, 0] - halves[:, 1]], 1)
        step //= 2
    if m > 1:
        rows = rows.reshape(-1, m) @ torch.tensor(_core(m), dtype=x.dtype, device=x.device)
    return rows.mul(float(block) ** -0.5).reshape(x.shape)


def hadamard_matrix(n: int) -> Tensor:
    """Return the orthogonal matrix that `hadamard` multiplies by: float64 of shape (n, n).

    Examples
    --------
    >>> from qlab.model.methods.rotation import hadamard_matrix
    >>> hadamard_matrix(4)[1] * 2
    tensor([ 1., -1.,  1., -1.], dtype=torch.float64)
    """
    return hadamard(torch.eye(n, dtype=torch.float64))


@dataclass(frozen=True)
class Rotation:
    """A random rotation of channels: ``x -> hadamard(x * signs)``.

    Parameters
    ----------
    channels : int
    seed : int
        Of the signs.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.methods.rotation import Rotation
    >>> turn, x = Rotation(24), torch.randn(5, 24)
    >>> torch.allclose(turn.inverse(turn(x)), x, atol=1e-6)
    True
    """

    channels: int
    seed: int = 0

    def __post_init__(self) -> None:
        block_of(self.channels)

    @property
    def signs(self) -> Tensor:
        """1 or -1 for each channel, float32."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(0, 2, (self.channels,), generator=generator) * 2.0 - 1

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate inputs, or the rows of a weight: shape (*lead, channels)."""
        self._check(x)
        return hadamard(x * self.signs.to(x.device, x.dtype))

    def inverse(self, x: Tensor) -> Tensor:
        """Rotate back."""
        self._check(x)
        block = block_of(self.channels)
        matrix = hadamard_matrix(block).T.to(x.device, x.dtype)  # Paley's is not symmetric
        back = x.reshape(-1, block) @ matrix if block & (block - 1) else hadamard(x).reshape(-1, block)
        return back.reshape(x.shape) * self.signs.to(x.device, x.dtype)

    def _check(self, x: Tensor) -> None:
        if x.shape[-1:] != (self.channels,):
            raise ValueError(f"x has the shape {tuple(x.shape)}; this rotation is of {self.channels} channels, the last axis")


def rotate(linear: nn.Linear, rotation: Rotation) -> nn.Linear:
    """Return a linear layer for rotated inputs: ``rotate(linear, r)(r(x))`` is ``linear(x)``.

    Parameters
    ----------
    linear : Linear
        Not changed.
    rotation : Rotation
        Of as many channels as the layer reads.

    Raises
    ------
    ValueError
        If the channels differ.

    Notes
    -----
    Tolerance: 1e-5 of the outputs. The product with the weight is made in float64.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.methods.rotation import Rotation, rotate
    >>> linear, turn, x = torch.nn.Linear(40, 3), Rotation(40), torch.randn(5, 40)
    >>> torch.allclose(rotate(linear, turn)(turn(x)), linear(x), atol=1e-5)
    True
    """
    turned = rotation(linear.weight.detach().double())
    new = deepcopy(linear)
    with torch.no_grad():
        new.weight.copy_(turned)
    return new


def incoherence(x: Tensor) -> float:
    """Return the largest magnitude over the root mean square: 1 at best, 4 to 5 for normals, the larger the worse to quantize.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.methods.rotation import incoherence
    >>> incoherence(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    1.6
    """
    wide = x.detach().double()
    rms = float(wide.square().mean().sqrt())
    return float(wide.abs().max()) / rms if rms else 1.0
