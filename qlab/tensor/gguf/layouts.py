"""What a GGUF block looks like in a file: its fields, and how codes of fewer than 8 bits share bytes.

Each layout is a structured dtype, so that ``payload.view(layout)`` reads a block's fields by name. In all of GGUF codes
share bytes in one way: a run of bytes holds the first codes of a group in its lowest bits, the codes after them in the
next bits, and so on. `pack` and `unpack` do that for any width and any length of run.

The layouts are those of llama.cpp's ``ggml-common.h``, little-endian.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qlab._pieces import Array

__all__ = ["HALF_MAX", "LAYOUTS", "pack", "read", "reciprocal", "stored_halves", "unpack", "write"]

HALF_MAX = 65504.0
"""Largest float16."""

_HALF_END = 65520.0  # from here on a number rounds to float16's infinity


def _layout(**fields: Any) -> np.dtype[Any]:
    return np.dtype([(name, *field) if isinstance(field, tuple) else (name, field) for name, field in fields.items()])


LAYOUTS: dict[str, np.dtype[Any]] = {
    # 32 values, one scale
    "q8_0": _layout(scale="<f2", codes=("i1", 32)),
    "q4_0": _layout(scale="<f2", codes=("u1", 16)),
    "q4_1": _layout(scale="<f2", minimum="<f2", codes=("u1", 16)),
    "q5_0": _layout(scale="<f2", high=("u1", 4), codes=("u1", 16)),
    "q5_1": _layout(scale="<f2", minimum="<f2", high=("u1", 4), codes=("u1", 16)),
    "iq4_nl": _layout(scale="<f2", codes=("u1", 16)),
    "mxfp4": _layout(exponent="u1", codes=("u1", 16)),
    # 64 values, four scales
    "nvfp4": _layout(scales=("u1", 4), codes=("u1", 32)),
    # 256 values, one scale
    "tq1_0": _layout(codes=("u1", 52), scale="<f2"),
    "tq2_0": _layout(codes=("u1", 64), scale="<f2"),
    "q8_k": _layout(scale="<f4", codes=("i1", 256), sums=("<i2", 16)),
    # 256 values in groups of 16 or 32, whose scales (and minima) are integers, multiples of the block's
    "q2_k": _layout(scales=("u1", 16), codes=("u1", 64), scale="<f2", minimum="<f2"),
    "q3_k": _layout(high=("u1", 32), codes=("u1", 64), scales=("u1", 12), scale="<f2"),
    "q4_k": _layout(scale="<f2", minimum="<f2", scales=("u1", 12), codes=("u1", 128)),
    "q5_k": _layout(scale="<f2", minimum="<f2", scales=("u1", 12), high=("u1", 32), codes=("u1", 128)),
    "q6_k": _layout(codes=("u1", 128), high=("u1", 64), scales=("i1", 16), scale="<f2"),
    "iq4_xs": _layout(scale="<f2", scales_high="<u2", scales_low=("u1", 4), codes=("u1", 128)),
    # 256 values, of which 8 or 4 neighbours together have one code
    "iq1_s": _layout(scale="<f2", codes=("u1", 32), high=("<u2", 8)),
    "iq1_m": _layout(codes=("u1", 32), high=("u1", 16), scales=("<u2", 4)),
    "iq2_xxs": _layout(scale="<f2", codes=("<u4", (8, 2))),
    "iq2_xs": _layout(scale="<f2", codes=("<u2", 32), scales=("u1", 8)),
    "iq2_s": _layout(scale="<f2", codes=("u1", 32), signs=("u1", 32), high=("u1", 8), scales=("u1", 8)),
    "iq3_xxs": _layout(scale="<f2", codes=("u1", 64), signs=("<u4", 8)),
    "iq3_s": _layout(scale="<f2", codes=("u1", 64), high=("u1", 8), signs=("u1", 32), scales=("u1", 4)),
}


def read(payload: Array, name: str) -> Array:
    """Return blocks as records: uint8 (n, type_size) to (n,) of `LAYOUTS`."""
    return np.ascontiguousarray(payload).view(LAYOUTS[name])[:, 0]


def write(n: int, name: str, **fields: Array) -> Array:
    """Return n blocks as bytes, (n, type_size), from all their fields."""
    layout = LAYOUTS[name]
    blocks = np.empty(n, layout)
    assert set(fields) == set(layout.names or ())
    for field, content in fields.items():
        if content.ndim == 2 and content.itemsize == blocks[field].itemsize == 1:  # a block's run of bytes in one move
            run = f"V{content.shape[1]}"
            blocks[field].view(run)[:] = np.ascontiguousarray(content).view(run)
        else:
            blocks[field] = content
    return blocks.view(np.uint8).reshape(n, layout.itemsize)


def pack(codes: Array, bits: int, run: int) -> Array:
    """Put codes of 1, 2 or 4 bits into bytes: uint8 (n, count) to (n, count * bits // 8).

    Examples
    --------
    >>> import numpy as np
    >>> pack(np.uint8([[1, 2, 3, 4]]), bits=4, run=2).tolist()  # 1 | 3 << 4, 2 | 4 << 4
    [[49, 66]]
    """
    n, share = codes.shape[0], 8 // bits
    runs = np.ascontiguousarray(codes).view(f"V{run}").reshape(n, -1, share)  # (n, groups, share)
    packed = runs[:, :, 0].copy().view(np.uint8).reshape(n, -1)
    for k in range(1, share):
        later = runs[:, :, k].copy().view(np.uint8).reshape(n, -1)
        packed |= np.left_shift(later, np.uint8(k * bits), out=later)
    return packed


def unpack(packed: Array, bits: int, run: int) -> Array:
    """Take codes of 1, 2 or 4 bits out of bytes: uint8 (n, bytes) to (n, bytes * 8 // bits).

    Examples
    --------
    >>> import numpy as np
    >>> unpack(np.uint8([[49, 66]]), bits=4, run=2).tolist()
    [[1, 2, 3, 4]]
    """
    n, share, mask = packed.shape[0], 8 // bits, np.uint8((1 << bits) - 1)
    packed = np.ascontiguousarray(packed)
    codes = np.empty((n, packed.shape[1] // run, share), f"V{run}")
    for k in range(share):
        part = np.right_shift(packed, np.uint8(k * bits))
        codes[:, :, k] = np.bitwise_and(part, mask, out=part).view(f"V{run}")
    return codes.view(np.uint8).reshape(n, -1)


def stored_halves(blocks: Array, *scales: Array) -> list[Array]:
    """Return scales (and minima), float32 (n,) each, as float16.

    Raises
    ------
    ValueError
        If float16 cannot hold one; `blocks`, (n, block), are the values they are for.
    """
    size = np.maximum.reduce([np.abs(scale) for scale in scales])
    if size.size and not size.max() < _HALF_END:
        worst = int(np.flatnonzero(~(size < _HALF_END))[0])
        largest = float(np.abs(blocks[worst]).max())
        fits = largest / float(size[worst]) * HALF_MAX
        raise ValueError(
            f"a block whose largest magnitude is {largest:.7g} needs a scale or minimum of {size[worst]:.7g}, and float16 "
            f"holds at most {HALF_MAX:g}: the largest magnitude allowed in such a block is {fits:.7g}; divide x by a constant"
        )
    return [scale.astype(np.float16) for scale in scales]


def reciprocal(scale: Array) -> Array:
    """Return 1 / scale, and 0 for 0."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(scale == 0, np.float32(0), 1 / scale)
