"""A quantized tensor as the buffers of a module, so that a state dict holds packed bytes and nothing else.

Scales are kept in the format that the scheme stores them in: float16 as float16, 8-bit formats as their codes. What the
bytes mean (scheme, shape, codebook) is text, held as bytes too: no pickle of code is ever needed.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qlab.number.codec import decode, encode
from qlab.number.formats import Format, TableFormat
from qlab.tensor.qtensor import QTensor
from qlab.tensor.scheme import Scheme

__all__ = ["Packed"]

_OWN = {"float16": torch.float16, "bfloat16": torch.bfloat16}  # formats of scales that torch can keep as they are


class Packed(nn.Module):
    """Buffers ``payload``, ``scale`` (a `Packed` where a scheme stores the scales), ``zero``, ``offset`` and ``about``.

    Parameters
    ----------
    qtensor : QTensor
        Of arrays or tensors.
    """

    payload: Tensor
    offset: Tensor | None
    zero: Tensor | None
    about: Tensor

    def __init__(self, qtensor: QTensor) -> None:
        super().__init__()
        self.scheme, self.shape, self.fitted = qtensor.scheme, tuple(qtensor.shape), qtensor.fitted
        self.dtype = qtensor.dtype if isinstance(qtensor.dtype, torch.dtype) else getattr(torch, np.dtype(qtensor.dtype).name)
        stored = self.scheme.scale.stored
        self.register_buffer("payload", _tensor(qtensor.payload))
        if isinstance(qtensor.scale, QTensor):
            self.scale: Any = Packed(qtensor.scale)
        else:
            self.register_buffer("scale", None if qtensor.scale is None else _stored(qtensor.scale, stored))
        zero = None if qtensor.zero is None else _tensor(qtensor.zero)
        if zero is not None:
            zero = zero.to(_zero_dtype(self.scheme)) if self.scheme.zero == "integer" else _stored(zero, stored)
        self.register_buffer("zero", zero)
        self.register_buffer("offset", None if qtensor.offset is None else torch.tensor(qtensor.offset))
        self.register_buffer("about", torch.frombuffer(bytearray(json.dumps(self._about()).encode()), dtype=torch.uint8))

    def _about(self) -> dict[str, Any]:
        codebook = self.scheme.format
        about: dict[str, Any] = {"scheme": str(self.scheme), "shape": list(self.shape), "dtype": str(self.dtype)}
        return about | ({"codebook": list(codebook.table)} if self.fitted and isinstance(codebook, TableFormat) else {})

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.scheme}, shape={self.shape}, {self.nbytes} bytes"

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers but the text."""
        return sum(b.numel() * b.element_size() for name, b in self.named_buffers() if not name.endswith("about"))

    def qtensor(self) -> QTensor:
        """Return the quantized tensor that the buffers hold."""
        stored, scale, zero = self.scheme.scale.stored, self.scale, self.zero
        if isinstance(scale, Packed):
            scale = scale.qtensor()
        elif scale is not None:
            scale = _numbers(scale, stored)
        if zero is not None:
            zero = zero.to(torch.int32) if self.scheme.zero == "integer" else _numbers(zero, stored)
        offset: Any = self.offset
        return QTensor(self.payload, scale, self.scheme, self.shape, self.dtype, zero, offset, self.fitted)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the values; traced as ordinary operations by ``torch.compile`` and ``torch.export``."""
        if self.scheme.layout is not None:
            return torch.ops.qlab.decode_gguf(self.payload, self.scheme.layout, list(self.shape)).to(dtype or self.dtype)  # type: ignore[no-any-return]
        if torch.compiler.is_compiling():
            from qlab.backend import torch_blocks

            return torch_blocks.dequantize(self.qtensor()).to(dtype or self.dtype)
        offset = None if self.offset is None else float(self.offset)
        held = self.qtensor()
        held = QTensor(held.payload, held.scale, held.scheme, held.shape, held.dtype, held.zero, offset, held.fitted)
        return held.dequantize(dtype=dtype)  # type: ignore[no-any-return]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        held = state_dict.get(prefix + "about")
        if held is not None:
            about = json.loads(held.cpu().numpy().tobytes().decode())
            if (about["scheme"], tuple(about["shape"])) != (str(self.scheme), self.shape):
                raise ValueError(
                    f"{prefix[:-1]}: the state dict holds {about['scheme']} of shape {tuple(about['shape'])}, the layer "
                    f"{self.scheme} of shape {self.shape}; build the model with the same recipe before loading"
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _zero_dtype(scheme: Scheme) -> torch.dtype:
    if scheme.bits > 8:
        return torch.int32
    return torch.int8 if getattr(scheme.format, "signed", True) else torch.uint8


def _tensor(x: Any) -> Tensor:
    return x.detach().clone() if isinstance(x, Tensor) else torch.from_numpy(np.array(x))


def _stored(scale: Any, fmt: Format | Scheme | None) -> Tensor:
    """Scales, which are values of the format, in as few bits as torch can keep them."""
    values = _tensor(scale)
    if fmt is None or isinstance(fmt, Scheme):
        return values
    if fmt.name in _OWN:
        return values.to(_OWN[fmt.name])
    return encode(values, fmt) if fmt.bits <= 8 else values  # type: ignore[no-any-return]


def _numbers(held: Tensor, fmt: Format | Scheme | None) -> Tensor:
    """The inverse of `_stored`: float32 (float64 where scales are)."""
    if fmt is None or isinstance(fmt, Scheme) or held.dtype == torch.float64:
        return held
    return decode(held, fmt) if held.dtype == torch.uint8 else held.to(torch.float32)  # type: ignore[no-any-return]


@torch.library.custom_op("qlab::decode_gguf", mutates_args=())
def _decode_gguf(payload: Tensor, layout: str, shape: list[int]) -> Tensor:
    from qlab.tensor.gguf import decode_gguf

    rows = payload.numel() if not shape else int(np.prod(shape[:-1]))
    values = torch.from_numpy(decode_gguf(payload.cpu().numpy().reshape(rows, -1), layout))
    return values[:, : shape[-1]].reshape(shape).to(payload.device).clone()


@_decode_gguf.register_fake
def _decoded_shape(payload: Tensor, layout: str, shape: list[int]) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=payload.device)
