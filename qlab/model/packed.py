"""A quantized tensor as the buffers of a module, so that a state dict holds packed bytes and nothing else.

Scales are kept in the format that the scheme stores them in: float16 as float16, 8-bit formats as their codes. What the
bytes mean (scheme, shape, codebook) is text, held as bytes too: no pickle of code is ever needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from qlab.number.codec import decode, encode
from qlab.number.formats import Format, IntFormat, TableFormat
from qlab.tensor.blocks import PerAxis, PerBlock, PerRow, PerTensor, scale_shape
from qlab.tensor.packing import pack, unpack
from qlab.tensor.qtensor import QTensor
from qlab.tensor.scheme import Scheme

__all__ = ["Packed", "keeping_dtypes", "of_rows"]

_OWN = {"float16": torch.float16, "bfloat16": torch.bfloat16}  # formats of scales that torch can keep as they are

_PIECE = 2**20
"""Elements that are brought back at once: as floats they stay in the last cache."""

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers as wide as floats


class Packed(nn.Module):
    """Buffers ``payload``, ``scale`` (a `Packed` where a scheme stores the scales), ``zero``, ``offset`` and ``about``.

    Functions of torch take it for the tensor of its values (``functional.linear(x, layer.weight)``); it has a tensor's ``shape``,
    ``dtype`` and ``device``, but none of its operators and methods: for these, `dequantize` gives the tensor.

    Parameters
    ----------
    qtensor : QTensor
        Of arrays or tensors.
    """

    payload: Tensor
    scale: Tensor | Packed | None
    offset: Tensor | None
    zero: Tensor | None
    about: Tensor

    def __init__(self, qtensor: QTensor) -> None:
        super().__init__()
        self.scheme, self.shape, self.fitted = qtensor.scheme, torch.Size(qtensor.shape), qtensor.fitted
        self.dtype = qtensor.dtype if isinstance(qtensor.dtype, torch.dtype) else getattr(torch, np.dtype(qtensor.dtype).name)
        stored = self.scheme.scale.stored
        self.register_buffer("payload", _tensor(qtensor.payload))
        if isinstance(qtensor.scale, QTensor):
            self.scale = Packed(qtensor.scale)
        else:
            self.register_buffer("scale", None if qtensor.scale is None else _stored(qtensor.scale, stored))
        zero = None if qtensor.zero is None else _tensor(qtensor.zero)
        if zero is not None:
            zero = _packed_zero(zero, self.scheme) if self.scheme.zero == "integer" else _stored(zero, stored)
        self.register_buffer("zero", zero)
        self.register_buffer("offset", None if qtensor.offset is None else torch.tensor(qtensor.offset))
        self.register_buffer("about", torch.frombuffer(bytearray(json.dumps(self._about()).encode()), dtype=torch.uint8))

    def _about(self) -> dict[str, Any]:
        codebook = self.scheme.format
        about: dict[str, Any] = {"scheme": str(self.scheme), "shape": list(self.shape), "dtype": str(self.dtype)}
        return about | ({"codebook": list(codebook.table)} if self.fitted and isinstance(codebook, TableFormat) else {})

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.scheme}, shape={tuple(self.shape)}, {self.nbytes} bytes"

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers but the text."""
        return sum(b.numel() * b.element_size() for name, b in self.named_buffers() if not name.endswith("about"))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let a model that computes with a layer's weight itself have it as a tensor: the values are brought back."""
        args, kwargs = tree_map_only(cls, cls.dequantize, (args, kwargs or {}))
        return func(*args, **kwargs)

    @property
    def device(self) -> torch.device:
        """Where the bytes are."""
        return self.payload.device

    @property
    def ndim(self) -> int:
        """Number of dimensions of the values."""
        return len(self.shape)

    def dim(self) -> int:
        """Return the number of dimensions of the values."""
        return len(self.shape)

    def size(self, dim: int | None = None) -> torch.Size | int:
        """Return the shape of the values, or one of its numbers."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """Return the number of values."""
        return self.shape.numel()

    def qtensor(self) -> QTensor:
        """Return the quantized tensor that the buffers hold."""
        scale = self.scale.qtensor() if isinstance(self.scale, Packed) else self._as_numbers(self.scale)
        offset = None if self.offset is None else float(self.offset)
        zero = self._zero_as_numbers(self.zero)
        return QTensor(self.payload, scale, self.scheme, tuple(self.shape), self.dtype, zero, offset, self.fitted)

    def _zero_as_numbers(self, zero: Tensor | None) -> Tensor | None:
        if zero is None or self.scheme.zero != "integer":
            return self._as_numbers(zero)
        shape = scale_shape(self.scheme.blocks, self.shape)
        steps = self._unpacked(zero, math.prod(shape)).to(torch.int32 if self.scheme.bits > 8 else torch.int16)
        fmt = self.scheme.format
        assert isinstance(fmt, IntFormat)
        return (steps + int(fmt.min)).reshape(shape)

    def _unpacked(self, packed: Tensor, count: int) -> Tensor:
        """Codes of the scheme's bits, uint8 or int32, of shape (count,)."""
        order = "low_first" if packed is self.zero else self.scheme.order
        if torch.compiler.is_compiling() or packed.device.type != "cpu":
            from qlab.backend import torch_blocks

            return torch_blocks.unpack(packed, count, self.scheme.bits, order)
        return torch.from_numpy(unpack(packed.numpy(), count, self.scheme.bits, order=order))

    def _as_numbers(self, held: Tensor | None) -> Tensor | None:
        """Scales (or minima) as floats, from the format that they are kept in."""
        fmt = self.scheme.scale.stored
        if held is None or fmt is None or isinstance(fmt, Scheme) or held.dtype == torch.float64:
            return held
        if held.dtype != torch.uint8:
            return held.to(torch.float32)
        values: Tensor = decode(held, fmt)
        return values

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the values; traced as ordinary operations by ``torch.compile`` and ``torch.export``."""
        scale = self.scale.dequantize() if isinstance(self.scale, Packed) else self._as_numbers(self.scale)
        return self._values(self.payload, scale, self._zero_as_numbers(self.zero), self.shape, dtype or self.dtype)

    @property
    def by_row(self) -> bool:
        """Whether rows of a matrix can be brought back one by one: no block runs over several, and no byte."""
        blocks, width = self.scheme.blocks, self.shape[-1]
        return self.scheme.layout is not None or (of_rows(blocks, width) and width * self.scheme.bits % 8 == 0)

    def dequantize_rows(self, index: Tensor) -> Tensor:
        """Return some rows of a matrix that can be read `by_row`.

        Parameters
        ----------
        index : integer tensor of shape (n,)

        Returns
        -------
        values : tensor of shape (n, width)
        """
        return self._row_reader()(index, self.dtype)

    def row_pieces(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """Yield the values of a matrix, some rows after the others: all of them as floats never are in memory at once.

        But they are where blocks run over rows, and under ``torch.compile``.
        """
        rows = max(1, _PIECE // self.shape[1])
        if rows >= self.shape[0] or not self.by_row or torch.compiler.is_compiling():
            yield self.dequantize(dtype)
            return
        read = self._row_reader()
        for start in range(0, self.shape[0], rows):
            yield read(slice(start, start + rows), dtype)

    def _row_reader(self) -> Callable[[Tensor | slice, torch.dtype], Tensor]:
        """Return what brings back the rows of an index, or of a slice."""
        entries, width = self.shape
        nested = self.scale.dequantize() if isinstance(self.scale, Packed) else None
        zeros, payload = self._zero_as_numbers(self.zero), self.payload.reshape(entries, -1)

        def read(index: Tensor | slice, dtype: torch.dtype) -> Tensor:
            scale = self._as_numbers(_rows(self.scale, index, entries)) if nested is None else _rows(nested, index, entries)  # type: ignore[arg-type]
            chosen = _pick(payload, index)
            return self._values(chosen.reshape(-1), scale, _rows(zeros, index, entries), (chosen.shape[0], width), dtype)

        return read

    def _values(
        self, payload: Tensor, scale: Tensor | None, zero: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        if self.scheme.layout is not None:
            found: Tensor = torch.ops.qlab.decode_gguf(payload, self.scheme.layout, list(shape))
            return found.to(dtype)
        if not torch.compiler.is_compiling():
            offset = None if self.offset is None else float(self.offset)
            held = QTensor(payload, scale, self.scheme, shape, self.dtype, zero, offset, self.fitted)
            values: Tensor = held.dequantize(dtype=dtype)
            return values
        from qlab.backend import torch_blocks

        values = torch_blocks.dequantize(QTensor(payload, scale, self.scheme, shape, self.dtype, zero, None, self.fitted))
        return (values if self.offset is None else values + self.offset.to(values.dtype)).to(dtype)

    def int8_codes(self) -> Tensor:
        """Return the codes of a signed integer format of up to 8 bits: int8 of shape (rows, all others)."""
        bits, rows = self.scheme.bits, self.shape[0]
        if bits == 8:
            return self.payload.view(torch.int8).view(rows, -1)
        codes = self._unpacked(self.payload, math.prod(self.shape))
        return ((codes << (8 - bits)).view(torch.int8) >> (8 - bits)).reshape(rows, -1)  # the sign comes down with the shift

    def _apply(self, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> Packed:
        """Scales stay as they are stored; a change of dtype is one of the values that come back."""
        self.dtype = convert(torch.empty(0, dtype=self.dtype)).dtype
        result: Packed = super()._apply(keeping_dtypes(convert), recurse)  # type: ignore[no-untyped-call]
        return result

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        held = state_dict.get(prefix + "about")
        if held is not None:
            about = json.loads(held.cpu().numpy().tobytes().decode())
            if (about["scheme"], tuple(about["shape"])) != (str(self.scheme), tuple(self.shape)):
                raise ValueError(
                    f"{prefix[:-1]}: the state dict holds {about['scheme']} of shape {tuple(about['shape'])}, the layer "
                    f"{self.scheme} of shape {tuple(self.shape)}; build the model with the same recipe before loading"
                )
            codebook = self.scheme.format
            if "codebook" in about and isinstance(codebook, TableFormat):
                self.scheme = replace(self.scheme, format=TableFormat(codebook.name, about["codebook"]))
            self.about = torch.empty_like(held, device=self.about.device)  # of another length: another codebook or dtype
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _pick(table: Tensor, index: Tensor | slice) -> Tensor:
    return table[index] if isinstance(index, slice) else table.index_select(0, index)


def _rows(part: Tensor | None, index: Tensor | slice, entries: int) -> Tensor | None:
    """Of scales, one for the whole, or in the shape (entries,), (entries, blocks) or (entries * blocks,)."""
    if part is None or part.ndim == 0:
        return part
    chosen = _pick(part.reshape(entries, -1), index)
    return chosen if part.ndim == 2 else chosen.reshape(-1)


def of_rows(blocks: Any, width: int | None = None) -> bool:
    """Whether each block lies within one row of a matrix (of that width), or is all of it."""
    if isinstance(blocks, PerBlock):
        within = blocks.axis in (-1, 1) or (blocks.axis is None and width is not None and width % int(blocks.size) == 0)  # type: ignore[arg-type]
        return isinstance(blocks.size, int) and within
    return isinstance(blocks, (PerTensor, PerRow)) or (isinstance(blocks, PerAxis) and blocks.axis in (0, -2))


def keeping_dtypes(convert: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return what `nn.Module.to` does to tensors (`half`, `cuda`), less the change of dtype: it is shown integers only."""

    def keep(x: Tensor) -> Tensor:
        return convert(x.view(_BITS[x.element_size()])).view(x.dtype) if x.is_floating_point() else convert(x)

    return keep


def _packed_zero(zero: Tensor, scheme: Scheme) -> Tensor:
    """Zero points are codes, and take the bits of codes."""
    assert isinstance(scheme.format, IntFormat)
    steps = zero.numpy().astype(np.int64) - int(scheme.format.min)
    return torch.from_numpy(pack(steps, scheme.bits))


def _tensor(x: Any) -> Tensor:
    return x.detach().clone() if isinstance(x, Tensor) else torch.from_numpy(np.array(x))


def _stored(scale: Any, fmt: Format | Scheme | None) -> Tensor:
    """Scales, which are values of the format, in as few bits as torch can keep them."""
    values = _tensor(scale)
    if fmt is None or isinstance(fmt, Scheme):
        return values
    if fmt.name in _OWN:
        return values.to(_OWN[fmt.name])
    codes: Tensor = encode(values, fmt) if fmt.bits <= 8 else values
    return codes


@torch.library.custom_op("qlab::decode_gguf", mutates_args=())
def _decode_gguf(payload: Tensor, layout: str, shape: list[int]) -> Tensor:
    from qlab.tensor.gguf import decode_gguf

    rows = payload.numel() if not shape else int(np.prod(shape[:-1]))
    values = torch.from_numpy(decode_gguf(payload.cpu().numpy().reshape(rows, -1), layout))
    return values[:, : shape[-1]].reshape(shape).to(payload.device).clone()


@_decode_gguf.register_fake
def _decoded_shape(payload: Tensor, layout: str, shape: list[int]) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=payload.device)
