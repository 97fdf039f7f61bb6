"""A quantized tensor as plain data: packed bytes, scales, zeros, and the scheme that says what they mean."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qlab._pieces import Array
from qlab.tensor.packing import unpack
from qlab.tensor.scheme import Scheme

__all__ = ["QTensor"]


@dataclass(frozen=True, eq=False)
class QTensor:
    """A tensor as a scheme stores it.

    Attributes
    ----------
    payload : uint8 array, one-dimensional
        The packed codes, in the order of the tensor's elements; for GGUF's types the file's blocks, scales inside.
    scale : array, QTensor or None
        The scales as they are stored, in the shape of `scale_shape`; a QTensor where a scheme stores them; None for
        GGUF's types.
    zero : array or None
        Integer zero points or float minima, in the shape of the scales; None where the scheme has none.
    offset : float or None
        The mean that was taken off, for schemes with ``center``.
    scheme : Scheme
        With the fitted codebook in place of a format that is fitted.
    shape : tuple of int
    dtype : dtype
        Of the tensor that was quantized, and of `dequantize`; float32 for integers.
    """

    payload: Any
    scale: Any
    scheme: Scheme
    shape: tuple[int, ...]
    dtype: Any
    zero: Any = None
    offset: float | None = None
    fitted: bool = field(default=False, repr=False)

    def __repr__(self) -> str:
        return f"QTensor({self.scheme}, shape={self.shape}, {self.nbytes} bytes, {self.bits_per_value:.4g} bits per value)"

    def dequantize(self, *, dtype: Any = None, out: Any = None) -> Any:
        """Return the values that are stored.

        Parameters
        ----------
        dtype : dtype, optional
            float16, float32 or float64 (or bfloat16); that of the tensor unless given.
        out : array, optional
            Where to write them.

        Returns
        -------
        values : array of shape `shape`
        """
        from qlab.tensor.quantize import dequantize

        return dequantize(self, dtype=dtype, out=out)

    def codes(self) -> Any:
        """Return the codes, one for each element: uint8 of shape `shape` for up to 8 bits, else int32.

        Raises
        ------
        ValueError
            For GGUF's types, whose bytes hold more than codes.
        """
        if self.scheme.layout is not None:
            raise ValueError(f"{self.scheme}: its blocks hold codes and scales together; use payload or dequantize()")
        from qlab.backend.dispatch import is_tensor

        payload = self.payload.cpu().numpy() if is_tensor(self.payload) else self.payload
        codes = unpack(payload, math.prod(self.shape), self.scheme.bits, order=self.scheme.order).reshape(self.shape)
        if not is_tensor(self.payload):
            return codes
        import torch

        return torch.from_numpy(codes).to(self.payload.device)

    def ledger(self) -> dict[str, int]:
        """Return what the bits are spent on; they add up to ``8 * nbytes``.

        Examples
        --------
        >>> import numpy as np, qlab
        >>> qlab.quantize(np.ones((2, 100), np.float32), "int4-b32/f16").ledger()
        {'codes': 800, 'scale': 128}
        """
        if self.scheme.layout is not None:
            from qlab.tensor.gguf import ledger_of

            return ledger_of(self)
        count = math.prod(self.shape)
        parts = {"codes": count * self.scheme.bits, "padding": 8 * int(self.payload.shape[0]) - count * self.scheme.bits}
        stored = self.scheme.scale.stored
        if isinstance(self.scale, QTensor):
            parts |= {f"scale.{part}": bits for part, bits in self.scale.ledger().items()}
        else:
            size = math.prod(self.scale.shape)
            bits = 8 * self.scale.dtype.itemsize if stored is None else stored.bits
            parts |= {"scale": size * bits, "scale.padding": -size * bits % 8}
        if self.zero is not None:
            size, integer = math.prod(self.zero.shape), self.scheme.zero == "integer"
            bits = self.scheme.bits if integer else 8 * self.scale.dtype.itemsize if stored is None else stored.bits
            parts |= {"zero": size * bits, "zero.padding": -size * bits % 8}
        if self.offset is not None:
            parts["offset"] = 32
        if self.fitted:
            parts["codebook"] = 32 * 2**self.scheme.bits
        return {part: bits for part, bits in parts.items() if bits}

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored: codes, scales, zeros; what a file of it holds, names and shapes aside."""
        return sum(self.ledger().values()) // 8

    @property
    def bits_per_value(self) -> float:
        """Bits of all that is stored, for each element."""
        return 8 * self.nbytes / math.prod(self.shape)


def scale_values(scale: Any) -> Array:
    """Return scales as numbers."""
    values: Array = scale.dequantize() if isinstance(scale, QTensor) else scale
    return np.asarray(values)
