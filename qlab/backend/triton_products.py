"""A CUDA kernel for products of a few rows with a packed matrix of 4-bit codes: codes and scales are read once.

A network that writes one token at a time multiplies one row with each matrix, and its time is the reading of the weights. Here
a program takes some outputs and walks along the rows of the matrix: it loads words of eight codes, brings them back in
registers by the same operations as `torch_blocks.values_of`, and multiplies and adds in float32. Nothing is added by two
programs, so that the same input always gives the same bits. Under Triton's interpreter it runs on a CPU too.

    y[row, out] = sum over in of x[row, in] value[out, in], + bias[out]

Each thread takes groups of up to 32 codes that share a scale (16 bytes, the widest load). Tensors have the groups as their
last axis, for that is the one along which Triton deals elements out to threads: no value moves between threads before the sum.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qlab.backend.torch_law import decode_law
from qlab.backend.torch_ops import _is_wrapped
from qlab.backend.triton_ops import _as_bits
from qlab.number.bits import FLOAT32
from qlab.number.formats import Format, IntFormat
from qlab.tensor.affine import safe_scale
from qlab.tensor.blocks import PerAxis, PerBlock, PerRow, PerTensor
from qlab.tensor.qtensor import QTensor
from qlab.tensor.scheme import Fitted, Scheme

__all__ = ["MOST_ROWS", "Product", "is_made_for"]

MOST_ROWS = {torch.float32: 16, torch.float16: 8, torch.bfloat16: 8}
"""For more rows, bringing the weights back should pay: a product of matrices uses them many times, in 16 bits on tensor cores.
An estimate by counted instructions (9 for a weight and one row, 17 for 4, 27 for 8, 49 for 16), not a measurement."""

COLUMNS = 4096  # of the matrix, that a program takes at a time
PROGRAMS = 1024  # at least so many, before one takes several outputs: enough for every multiprocessor
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_ONE_FOR_ALL, _ONE_A_ROW = 0, 1


def is_made_for(shape: tuple[int, ...], dtype: torch.dtype, scheme: Scheme) -> bool:
    """Whether the kernel knows how a matrix of this shape and dtype is stored by this scheme."""
    if isinstance(scheme.format, Fitted) or scheme.layout or scheme.center or scheme.bits != 4 or dtype not in _FLOATS:
        return False
    return len(shape) == 2 and shape[1] % 2 == 0 and _block(shape, scheme) is not None


def _block(shape: tuple[int, ...], scheme: Scheme) -> int | None:
    """Return how many codes of a row share a scale, or `_ONE_FOR_ALL`, `_ONE_A_ROW`; None if blocks run across rows."""
    blocks = scheme.blocks
    if isinstance(blocks, PerTensor):
        return _ONE_FOR_ALL
    if isinstance(blocks, PerRow) or (isinstance(blocks, PerAxis) and blocks.axis in (0, -2)):
        return _ONE_A_ROW
    if not isinstance(blocks, PerBlock) or not isinstance(blocks.size, int) or blocks.size % 2:
        return None
    within = blocks.axis in (-1, 1) or (blocks.axis is None and shape[1] % blocks.size == 0)
    return blocks.size if within else None


class Product:
    """A packed matrix, ready to be multiplied.

    Parameters
    ----------
    weight : QTensor
        Of tensors, of shape (out, in); its scheme is one that the kernel `is_made_for`. Scales that a scheme or a format of 8
        bits stores are brought back here, once, and kept in 16 bits where those hold them.

    Notes
    -----
    The values inside are those of ``weight.dequantize(dtype=torch.float32)`` to the last bit. Contract: tolerance. Before it
    is rounded to the dtype of x, an output is within ``(in + 2) 2**-24 sum |x value|`` (bias included) of the exact one:
    a sum in float32, in whichever order, as long as no product is subnormal (Higham, "Accuracy and stability of numerical
    algorithms", section 3.1). The order depends on the shapes alone.

    Examples
    --------
    >>> import torch, qlab
    >>> from qlab.backend.triton_products import Product
    >>> weight = qlab.quantize(torch.eye(2, device="cuda"), "int4")  # doctest: +SKIP
    >>> Product(weight)(torch.tensor([[3.0, 5.0]], device="cuda"), None)  # doctest: +SKIP
    tensor([[3., 5.]], device='cuda:0')
    """

    def __init__(self, weight: QTensor) -> None:
        scheme, fmt, (self.n_out, self.n_in) = weight.scheme, weight.scheme.format, weight.shape
        block = _block(weight.shape, scheme)
        assert block is not None
        assert not isinstance(fmt, Fitted)
        scale = weight.scale.dequantize() if isinstance(weight.scale, QTensor) else weight.scale
        self.scale, self.zero = _narrow(scale), scale.new_zeros(1)
        self._largest, self._largest_minimum = float(scale.abs().max()), 0.0
        if scheme.zero == "integer":
            self.zero = (weight.zero - int(fmt.min)).to(torch.uint8).contiguous()
        elif scheme.zero == "min":
            self.zero, self._largest_minimum = _narrow(weight.zero), float(weight.zero.abs().max())
        self.scheme, self.format, self.device = scheme, fmt, weight.payload.device
        self.table = _table(fmt, self.device)
        span = block if block > 1 else 32
        group = min(span & -span, 32)  # a power of two that divides a block
        by_words = group % 8 == 0 and self.n_in % 8 == 0 and weight.payload.storage_offset() % 4 == 0
        self.payload = weight.payload.contiguous().view(torch.int32 if by_words else torch.uint8)
        groups = min(max(triton.next_power_of_2(triton.cdiv(self.n_in, group)), 32), COLUMNS // group)
        most = min(max(self.n_out // PROGRAMS, 1), 4)
        self.scales_of_a_row = {_ONE_FOR_ALL: 0, _ONE_A_ROW: 1}.get(block, triton.cdiv(self.n_in, span))
        self.constants: dict[str, Any] = {
            "KIND": "int" if isinstance(fmt, IntFormat) else "table", "ZERO": scheme.zero, "FLIP": 8 if fmt.min < 0 else 0,
            "HIGH_FIRST": scheme.order == "high_first", "BLOCK": block, "GROUP": group, "GROUPS": groups,
            "CODES": 8 if by_words else 2, "OUT": 1 << (most.bit_length() - 1), "num_warps": min(groups // 32, 4),
            "STEPS": triton.cdiv(self.n_in, groups * group),
            "enable_fp_fusion": scheme.zero != "min",  # value * scale + minimum is rounded twice, as everywhere
        }  # fmt: skip

    def takes(self, x: Tensor) -> bool:
        """Whether this product is one for the kernel: few rows, no gradient, and no value that saturates in x's dtype."""
        if x.dtype not in _FLOATS or x.ndim == 0 or x.shape[-1] != self.n_in or x.device != self.device:
            return False
        if not 1 <= x.numel() // self.n_in <= MOST_ROWS[x.dtype] or _is_traced(x):
            return False
        limit = torch.finfo(x.dtype).max
        return self._largest < safe_scale(self.scheme, self.format, limit) and self._largest_minimum < limit / 4

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x @ weight.T + bias``.

        Parameters
        ----------
        x : tensor of shape (*lead, in)
            float32, float16 or bfloat16; one that it `takes`.
        bias : tensor of shape (out,), or None
            Of one of these dtypes.

        Returns
        -------
        outputs : tensor of shape (*lead, out)
            Of the dtype of x.
        """
        rows = x.reshape(-1, self.n_in).contiguous()
        outputs = torch.empty((*x.shape[:-1], self.n_out), dtype=x.dtype, device=x.device)
        with torch.cuda.device_of(x):
            _product_kernel[(triton.cdiv(self.n_out, self.constants["OUT"]),)](
                _as_bits(rows), self.payload, _as_bits(self.scale), _as_bits(self.zero), self.table,
                _as_bits(rows if bias is None else bias.contiguous()), _as_bits(outputs), len(rows), self.n_out, self.n_in,
                self.n_in // self.constants["CODES"], self.scales_of_a_row, HAS_BIAS=bias is not None,
                ROWS=triton.next_power_of_2(len(rows)), **self.constants,
            )  # fmt: skip
        return outputs


def _is_traced(x: Tensor) -> bool:
    """Whether someone watches the operations: for a gradient, a graph, or to cast."""
    differentiated = x.requires_grad and torch.is_grad_enabled()
    watched = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    watched = watched or torch.is_autocast_enabled(x.device.type)
    return differentiated or watched or type(x) not in (Tensor, torch.nn.Parameter) or _is_wrapped(x)


def _narrow(scale: Tensor) -> Tensor:
    """Return scales in a dtype of 16 bits that holds all of them, or in float32."""
    scale = scale.detach().to(torch.float32).contiguous()
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(scale.to(dtype).to(torch.float32), scale):
            return scale.to(dtype)
    return scale


@lru_cache(maxsize=64)
def _table(fmt: Format, device: torch.device) -> Tensor:
    """Return the values of the 16 codes."""
    return decode_law(torch.arange(16, dtype=torch.uint8), fmt, FLOAT32).to(device)


@triton.jit
def _floats(pointers, mask):
    """Load as float32; bfloat16 is handed over as bits."""
    if pointers.dtype.element_ty == tl.int16:
        return (tl.load(pointers, mask=mask, other=0).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return tl.load(pointers, mask=mask, other=0).to(tl.float32)


@triton.jit
def _store(pointers, value, mask):
    """Round float32 to the target and store; bfloat16 on its bits, ties to even."""
    if pointers.dtype.element_ty == tl.int16:
        bits = value.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        tl.store(pointers, tl.where(value != value, 0x7FC0, rounded).to(tl.int16), mask=mask)
    else:
        tl.store(pointers, value.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def _product_kernel(
    x_ptr, payload_ptr, scale_ptr, zero_ptr, table_ptr, bias_ptr, y_ptr, n_rows, n_out, n_in, n_items, n_scales,
    KIND: tl.constexpr, ZERO: tl.constexpr, FLIP: tl.constexpr, HIGH_FIRST: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, STEPS: tl.constexpr, CODES: tl.constexpr,
    OUT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    out = tl.program_id(0) * OUT + tl.arange(0, OUT)
    is_out = out < n_out
    lines = payload_ptr + out.to(tl.int64)[:, None, None] * n_items  # an item is a word of 8 codes, or a byte of 2
    row = tl.arange(0, ROWS)
    sums = tl.zeros((ROWS, OUT), tl.float32)
    for step in range(STEPS):
        first = step * (GROUPS * GROUP) + tl.arange(0, GROUPS) * GROUP
        item = first[None, :] // CODES + tl.arange(0, GROUP // CODES)[:, None]  # (items of a group, GROUPS)
        packed = tl.load(lines + item[None], mask=is_out[:, None, None] & (item < n_items)[None], other=0).to(tl.int32)
        if CODES == 8:
            packed = tl.join(packed, packed >> 16)
            packed = tl.join(packed, packed >> 8)
            packed = tl.join(packed >> 4, packed) if HIGH_FIRST else tl.join(packed, packed >> 4)
            packed = tl.permute(packed, (0, 1, 3, 4, 5, 2))
        else:
            packed = tl.join(packed >> 4, packed) if HIGH_FIRST else tl.join(packed, packed >> 4)
            packed = tl.permute(packed, (0, 1, 3, 2))
        codes = tl.reshape(packed, (OUT, GROUP, GROUPS)) & 15

        block = first // BLOCK if BLOCK > 1 else first * 0
        place = out[:, None] * n_scales + block[None, :]  # (OUT, GROUPS)
        is_block = is_out[:, None] & (first < n_in)[None, :]
        if KIND == "table":
            values = tl.load(table_ptr + codes)
        else:  # code + 2**23 by its bits, less 2**23 and what stands for zero: exact, and faster than to convert
            values = (codes ^ (FLIP | 0x4B000000)).to(tl.float32, bitcast=True)
            if ZERO == "integer":
                values -= _floats(zero_ptr + place, is_block)[:, None, :] + 8388608.0
            elif ZERO == "min":
                values -= 8388608.0
            else:
                values -= FLIP + 8388608.0
        values *= _floats(scale_ptr + place, is_block)[:, None, :]  # (OUT, GROUP, GROUPS)
        if ZERO == "min":
            values += _floats(zero_ptr + place, is_block)[:, None, :]

        column = first[None, :] + tl.arange(0, GROUP)[:, None]  # (GROUP, GROUPS)
        for r in tl.static_range(ROWS):
            x = _floats(x_ptr + tl.minimum(r, n_rows - 1) * n_in + column, column < n_in)  # what is too many is not stored
            product = tl.sum(tl.sum(values * x[None], axis=1), axis=1)  # (OUT,)
            sums = tl.where((row == r)[:, None], sums + product[None], sums)
    if HAS_BIAS:
        sums += _floats(bias_ptr + out, is_out)[None]
    _store(y_ptr + row[:, None] * n_out + out[None], sums, (row < n_rows)[:, None] & is_out[None])
