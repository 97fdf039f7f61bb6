"""quantize, dequantize, fake_quantize: tensors to codes and scales and back, a piece of blocks at a time.

The walk (`qlab.tensor.walk`) finds each block's scale and hands the block on, while it is in the cache, to what packs codes or
writes rounded values. Beside input and output that needs the scratch of a few pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from qlab._pieces import PIECE, Array, Scratch
from qlab.backend.dispatch import is_tensor
from qlab.number.arrays import numbers, output
from qlab.number.codec import code_dtype, encode
from qlab.number.decoding import decoder_of
from qlab.number.formats import Format, IntFormat, TableFormat
from qlab.tensor.affine import LEAST, from_minimum, largest_of, to_values
from qlab.tensor.codebooks import FP4_SECOND_ZERO, dynamic_cells, lloyd_max
from qlab.tensor.packing import pack, packed_size, unpack
from qlab.tensor.qtensor import QTensor, scale_values
from qlab.tensor.scheme import Fitted, Scheme, get_scheme
from qlab.tensor.store import store_codes
from qlab.tensor.walk import UNIT, Finish, Place, Plan, Walk, first_element

__all__ = ["dequantize", "fake_quantize", "filler_of", "find_scale", "quantize", "store_codes"]


def quantize(x: Any, scheme: str | Scheme, *, importance: Any = None) -> QTensor:
    """Quantize a tensor.

    Parameters
    ----------
    x : array_like of real numbers, any shape that the scheme's blocks fit
        Finite values.
    scheme : str or Scheme
        A name, a notation (see `qlab.get_scheme`) or a Scheme.
    importance : array of the shape of x, or of its last axis, optional
        Weights of the squared errors, not negative: for GGUF's types, whose scales are searched for.

    Returns
    -------
    QTensor
        Packed codes and scales. A torch tensor gives one of torch tensors, on its device.

    Raises
    ------
    ValueError
        If `x` is empty, holds infinities or NaN, or does not fit the blocks; if a scale does not fit its storage format.
    TypeError
        If `x` is not made of real numbers.

    Notes
    -----
    Exact at the scale that the rule gives; `percentile`, `mse`, `entropy`, fitted codebooks and GGUF's K-types search,
    with the error as their contract. Codes saturate. Book: part III.

    Examples
    --------
    >>> import numpy as np, qlab
    >>> qt = qlab.quantize(np.float32([[-0.7, 0.22, 0.05, 0.3]]), "int4")
    >>> qt.scale, qt.codes().tolist(), qt.payload.tolist()
    (array(0.1, dtype=float32), [[9, 2, 0, 3]], [41, 48])
    >>> qt.dequantize()
    array([[-0.7,  0.2,  0. ,  0.3]], dtype=float32)
    """
    scheme = get_scheme(scheme)
    if is_tensor(x):
        from qlab.backend import torch_tensor

        return torch_tensor.quantize(x, scheme, importance)
    if scheme.layout is not None:
        from qlab.tensor.gguf import quantize_gguf

        return quantize_gguf(x, scheme, importance)
    if importance is not None:
        raise ValueError(f"importance is for GGUF's types, whose scales are searched for; leave it out for {scheme}")
    array = numbers(x)
    fmt, scheme = _fit(array, scheme)
    step = Walk(array, scheme, fmt)
    payload = np.empty(packed_size(array.size, fmt.bits), np.uint8)
    aligned = step.flat and (step.each * fmt.bits % 8 == 0 or step.blocks == 1)
    codes = None if aligned else np.empty(array.shape, code_dtype(fmt))
    views = [] if codes is None else [region.view for region in step.regions_of(codes)]

    def finish(rows: Array, scale: Array, zero: Array | None, region: int, place: Place, scratch: Scratch) -> None:
        found = _codes(rows, scale, zero, step, scratch)
        if codes is None:
            start = first_element(place, step.each) * fmt.bits // 8
            packed = pack(found, fmt.bits, order=scheme.order)
            payload[start : start + packed.size] = packed
        else:
            view = views[region][place]
            view[...] = np.asarray(found).reshape(view.shape)

    scale, zero = _run(step, finish)
    if codes is not None:
        _pack_in_pieces(codes, payload, fmt.bits, scheme.order)
    if filler := filler_of(scheme, fmt, array.size):
        payload[-1] |= filler
    fitted = isinstance(scheme.format, Fitted)
    stored = replace(scheme, format=fmt) if fitted else scheme
    if zero is not None and scheme.zero == "integer":
        zero = zero.astype(np.int16 if fmt.bits <= 8 else np.int32)
    return QTensor(payload, scale, stored, array.shape, _result_dtype(array), zero, step.offset, fitted)


def dequantize(qtensor: QTensor, *, dtype: Any = None, out: Any = None) -> Any:
    """Return the values of a quantized tensor: see `QTensor.dequantize`."""
    if is_tensor(qtensor.payload):
        from qlab.backend import torch_tensor

        return torch_tensor.dequantize(qtensor, dtype, out)
    kind = np.dtype(qtensor.dtype if dtype is None else dtype)
    if kind.kind not in "fV" or kind.itemsize > 8:
        raise ValueError(f"dtype={kind} is not allowed; values are float16, bfloat16, float32 or float64")
    if qtensor.scheme.layout is not None:
        from qlab.tensor.gguf import dequantize_gguf

        return dequantize_gguf(qtensor, kind, out)
    result = output(out, np.broadcast_to(np.empty((), kind), qtensor.shape), kind)
    scheme, fmt = qtensor.scheme, qtensor.scheme.format
    assert not isinstance(fmt, Fitted)
    work_kind = np.dtype(np.float64 if np.dtype(qtensor.dtype) == np.float64 else np.float32)
    decode = _unpacker(fmt, scheme.order, work_kind)
    scales = scale_values(qtensor.scale).astype(work_kind)
    zeros = None if qtensor.zero is None else qtensor.zero.astype(work_kind)
    target = result if result.flags.c_contiguous else np.empty(result.shape, kind)
    plan = Plan(target, scheme)
    aligned = plan.flat and (plan.each * fmt.bits % 8 == 0 or plan.blocks == 1)
    unpacked: list[Array] = []
    if not aligned:
        codes = unpack(qtensor.payload, target.size, fmt.bits, order=scheme.order).reshape(target.shape)
        unpacked = [region.view for region in plan.regions_of(codes)]
    limit = largest_of(kind)
    shift = work_kind.type(float(fmt.min)) if scheme.zero == "min" else work_kind.type(0)

    def one(region: int, place: Place, scratch: Scratch) -> None:
        view = plan.parts[region].view[place]
        scale, zero = plan.take(scales, region, place), None if zeros is None else plan.take(zeros, region, place)
        rows = scratch("rows", work_kind, view.size).reshape(len(scale), -1)
        straight = view.dtype == work_kind and view.flags.c_contiguous
        if straight:
            rows = view.reshape(rows.shape)
        if aligned:
            start = first_element(place, plan.each)
            decode(qtensor.payload, start, rows.reshape(-1), scratch)
        else:
            decode(pack(unpacked[region][place], fmt.bits, order=scheme.order), 0, rows.reshape(-1), scratch)
        if scheme.zero == "integer":
            assert zero is not None
            np.subtract(rows, zero[:, None], out=rows)
        elif shift:
            np.subtract(rows, shift, out=rows)
        to_values(rows, scale, zero if scheme.zero == "min" else None, scheme, fmt, limit, rows, offset=qtensor.offset)
        if not straight:
            view[...] = rows.reshape(view.shape)

    plan.each_place(one)
    if target is not result:
        result[...] = target
    return result if out is not None or result.ndim else result[()]


def fake_quantize(x: Any, scheme: str | Scheme, *, gradient: str = "pass", out: Any = None) -> Any:
    """Quantize values and bring them back: each becomes the nearest value that the scheme can store.

    Parameters
    ----------
    x : array_like of real numbers, any shape that the scheme's blocks fit
        Finite values.
    scheme : str or Scheme
        A name, a notation (see `qlab.get_scheme`) or a Scheme.
    gradient : {"pass", "clipped"}
        For torch tensors that require one: it passes straight through; or it is zero where values were clipped.
    out : array, optional
        Where to write the values; may be `x` itself.

    Returns
    -------
    values : array of the shape of x
        In the dtype of `x`; float32 for integers of up to 16 bits, else float64.

    Raises
    ------
    ValueError, TypeError
        As in `quantize`.

    Notes
    -----
    ``quantize(x, scheme).dequantize()`` without packing, in one pass over the data. Exact at the given scale. Zeros stay
    zeros. Book: chapter 01 and part III.

    Examples
    --------
    >>> import numpy as np, qlab
    >>> qlab.fake_quantize(np.float32([-0.7, 0.22, 0.05]), "int4")
    array([-0.7,  0.2,  0. ], dtype=float32)
    """
    if is_tensor(x):
        from qlab.backend import torch_tensor

        return torch_tensor.fake_quantize(x, scheme, gradient, out)
    scheme = get_scheme(scheme)
    array = numbers(x)
    if scheme.layout is not None or scheme.scale.late:
        return quantize(array, scheme).dequantize(out=out)
    fmt, scheme = _fit(array, scheme)
    step = Walk(array, scheme, fmt)
    result = output(out, array, _result_dtype(array))
    target = result if result.flags.c_contiguous else np.empty(result.shape, result.dtype)
    views = [region.view for region in step.regions_of(target)]

    def finish(rows: Array, scale: Array, zero: Array | None, region: int, place: Place, scratch: Scratch) -> None:
        view = views[region][place]
        straight = view.dtype == step.kind and view.flags.c_contiguous
        into = view.reshape(-1) if straight else scratch("values out", step.kind, rows.size)
        _values(rows, scale, zero, into, largest_of(view.dtype), step, scratch)
        if not straight:
            view[...] = into.reshape(view.shape)

    _run(step, finish)
    if target is not result:
        result[...] = target
    return result if out is not None or result.ndim else result[()]


def find_scale(x: Array, scheme: str | Scheme) -> Array:
    """Return the scales of a tensor as the scheme stores them (as numbers), in the shape that `QTensor.scale` has.

    Raises
    ------
    ValueError
        As in `quantize`.

    Examples
    --------
    >>> import numpy as np
    >>> from qlab.tensor.quantize import find_scale
    >>> find_scale(np.float32([[1, 14], [7, -2]]), "int4-channel")
    array([2., 1.], dtype=float32)
    """
    scheme, array = get_scheme(scheme), numbers(x)
    fmt, scheme = _fit(array, scheme)
    return scale_values(_run(Walk(array, scheme, fmt), None)[0])


def _run(step: Walk, finish: Finish | None) -> tuple[Any, Array | None]:
    """Walk, and return scales and zeros as they are stored: by a scheme of their own, if they have one."""
    stored = step.scheme.scale.stored
    if not isinstance(stored, Scheme):
        return step.run(finish)
    if step.scheme.scale.late:
        scale, zero = step.run(finish)
        return quantize(scale, stored), zero
    scale, zero = step.run(None)
    if zero is not None:
        raise ValueError(f"{step.scheme}: scales that a scheme stores go with zero=None, or with a GGUF type")
    kept = quantize(scale, stored)
    if finish is not None:
        step.run_with(np.asarray(kept.dequantize()), finish)
    return kept, zero


# --- a place of blocks -----------------------------------------------------------------------------------------------
def _scaled(rows: Array, scale: Array, step: Walk, scratch: Scratch) -> Array:
    """Return ``rows / scale``, zero where the scale is zero; flat, in scratch memory."""
    out = scratch("scaled", step.kind, rows.size).reshape(rows.shape)
    column = np.where(scale == 0, step.kind.type(np.inf), scale)[:, None]
    if not step.scheme.scale.reciprocal:
        return np.divide(rows, column, out=out).reshape(-1)
    least = step.kind.type(LEAST[step.kind.name])
    return np.multiply(rows, 1 / np.where(np.abs(column) < least, np.copysign(least, column), column), out=out).reshape(-1)


def _steps(rows: Array, scale: Array, zero: Array | None, step: Walk, scratch: Scratch) -> Array:
    """The codes of an integer format, as floats: shape (k, block), in scratch memory."""
    fmt, scheme, kind = step.fmt, step.scheme, step.kind.type
    if scheme.zero == "min":
        assert zero is not None
        out = scratch("from minimum", step.kind, rows.size).reshape(rows.shape)
        rows, scale = from_minimum(rows, scale, zero, scheme, fmt, out)
    steps = _scaled(rows, scale, step, scratch).reshape(rows.shape)
    np.rint(steps, out=steps)
    if scheme.zero == "integer":
        assert zero is not None
        np.add(steps, zero[:, None], out=steps)
    elif scheme.zero == "min" and fmt.min:
        np.add(steps, kind(fmt.min), out=steps)
    return np.clip(steps, kind(fmt.min), kind(fmt.max), out=steps)


def _codes(rows: Array, scale: Array, zero: Array | None, step: Walk, scratch: Scratch) -> Array:
    if isinstance(step.fmt, IntFormat):
        steps = _steps(rows, scale, zero, step, scratch).reshape(-1)
        narrow = np.int8 if step.fmt.min < 0 else np.uint8
        codes = scratch("codes", narrow if step.fmt.bits <= 8 else np.int32, steps.size)
        np.copyto(codes, steps, casting="unsafe")
        return codes.view(np.uint8) if step.fmt.bits <= 8 else codes
    scaled = _scaled(rows, scale, step, scratch)
    if step.by_cells:
        return _codes_by_cells(scaled, scale, rows.shape[1])
    codes = step.rounder.lane.encode(scaled, scratch)
    if step.fmt.name == "fp4_bnb":  # its second zero
        np.copyto(codes, FP4_SECOND_ZERO, where=(codes == 0) & (scaled > 0))
    return codes


def _codes_by_cells(scaled: Array, scale: Array, block: int) -> Array:
    """Codes of the dynamic map as bitsandbytes finds them; 0 in blocks of zeros."""
    kind = scaled.dtype.type
    cells = ((scaled + kind(1)) * kind(32767.5) + kind(0.5)).astype(np.intp)
    codes: Array = dynamic_cells()[np.clip(cells, 0, 65535)]
    codes[np.repeat(scale == 0, block)] = 0
    return codes


def _values(rows: Array, scale: Array, zero: Array | None, into: Array, limit: float, step: Walk, scratch: Scratch) -> None:
    if isinstance(step.fmt, IntFormat):
        values = _steps(rows, scale, zero, step, scratch)
        if step.scheme.zero == "integer":
            assert zero is not None
            np.subtract(values, zero[:, None], out=values)
        elif step.scheme.zero == "min" and step.fmt.min:
            np.subtract(values, step.kind.type(step.fmt.min), out=values)
        else:
            np.add(values, 0, out=values)  # integers have one zero
    elif step.by_cells:
        codes = _codes_by_cells(_scaled(rows, scale, step, scratch), scale, rows.shape[1])
        values = np.array(step.fmt.values()[codes], step.kind).reshape(rows.shape)
    else:
        values = scratch("rounded rows", step.kind, rows.size)
        step.rounder.cast(_scaled(rows, scale, step, scratch), values, scratch)
        values = values.reshape(rows.shape)
    zero = zero if step.scheme.zero == "min" else None
    to_values(values, scale, zero, step.scheme, step.fmt, limit, into.reshape(rows.shape), offset=step.offset)


def _unpacker(fmt: Format, order: str, kind: np.dtype[Any]) -> Callable[[Array, int, Array, Scratch], None]:
    """Return what writes the values of codes, from the one at `start` on: `(payload, start, into, scratch)`."""
    bits = fmt.bits
    if bits == 8 and isinstance(fmt, IntFormat):
        own = np.int8 if fmt.min < 0 else np.uint8
        return lambda payload, start, into, scratch: np.copyto(into, payload[start : start + into.size].view(own))
    if bits == 4 and kind == np.float32:
        return _pairs_of_a_byte(fmt, order)
    decode = decoder_of(fmt, code_dtype(fmt), kind)

    def unpack_and_decode(payload: Array, start: int, into: Array, scratch: Scratch) -> None:
        decode(unpack(payload[start * bits // 8 :], into.size, bits, order=order), into, scratch)

    return unpack_and_decode


def _pairs_of_a_byte(fmt: Format, order: str) -> Callable[[Array, int, Array, Scratch], None]:
    """Two float32 for each byte, in one float64 that is only carried, never computed with."""
    with np.errstate(over="ignore"):
        values = np.zeros(16, np.float32)
        known = fmt.values().astype(np.float32)
    values[: len(known)] = known
    byte = np.arange(256)
    low, high = values[byte & 15], values[byte >> 4]
    pairs = np.stack([low, high] if order == "low_first" else [high, low], axis=1).reshape(-1).view(np.float64)

    def look_up(payload: Array, start: int, into: Array, scratch: Scratch) -> None:
        even = into.size & ~1
        index = scratch("index", np.intp, (into.size + 1) // 2)
        np.copyto(index, payload[start // 2 : start // 2 + index.size])
        into_pairs = into[:even].view(np.float64)
        np.take(pairs, index[: even // 2], out=into_pairs, mode="clip")
        if into.size > even:
            into[even] = pairs[index[-1]].reshape(1).view(np.float32)[0]

    return look_up


def _fit(array: Array, scheme: Scheme) -> tuple[Format, Scheme]:
    """Return the format of the codes: the scheme's, or a codebook fitted to the scaled data."""
    if not isinstance(scheme.format, Fitted):
        return scheme.format, scheme
    step = Walk(array, replace(scheme, format=UNIT, scale=replace(scheme.scale, stored=None)), UNIT)
    scaled = np.empty(array.shape, step.kind)
    views = [region.view for region in step.regions_of(scaled)]

    def finish(rows: Array, scale: Array, zero: Array | None, region: int, place: Place, scratch: Scratch) -> None:
        view = views[region][place]
        view[...] = _scaled(rows, scale, step, scratch).reshape(view.shape)

    step.run(finish)
    if scaled.min() == scaled.max():
        return TableFormat(scheme.format.name, (0.0, float(scaled.flat[0]) or 1.0)), scheme
    values = np.array(lloyd_max(scaled, scheme.format.bits).table, np.float32)
    return TableFormat(scheme.format.name, values.tolist()), scheme


def filler_of(scheme: Scheme, fmt: Format, count: int) -> int:
    """Return what the last byte holds beside the last code: bitsandbytes fills up with zeros, and these with their code."""
    if not scheme.scale.reciprocal or fmt.bits != 4 or count % 2 == 0:
        return 0
    return int(encode(0.0, fmt)) << (4 if scheme.order == "low_first" else 0)


def _pack_in_pieces(codes: Array, payload: Array, bits: int, order: str) -> None:
    flat = codes.reshape(-1)
    for start in range(0, flat.size, PIECE):  # a multiple of 8 codes: whole bytes
        packed = pack(flat[start : start + PIECE], bits, order=order)
        payload[start * bits // 8 : start * bits // 8 + packed.size] = packed


def _result_dtype(array: Array) -> Any:
    if array.dtype.kind in "iu":
        return np.dtype(np.float64 if array.dtype.itemsize > 2 else np.float32)
    return array.dtype
