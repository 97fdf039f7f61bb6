"""What goes into arithmetic and what comes out: the formats, operands as values of them, tensors, refusals."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from qlab._pieces import Array
from qlab.number.arrays import numbers
from qlab.number.codec import bfloat16_holds, cast, cast_dtype, value_dtype
from qlab.number.error_free import PRECISION, REACH, lowest_bit
from qlab.number.formats import FloatFormat, Format, get_format
from qlab.number.halves import is_bfloat16

__all__ = ["float_format", "operands_of", "refuse_nan", "wide_format"]


def float_format(operation: str, fmt: str | Format) -> FloatFormat:
    """Return a format if arithmetic is done in it; raise a TypeError or ValueError that says what is allowed if not."""
    fmt = get_format(fmt)
    if not isinstance(fmt, FloatFormat):
        raise TypeError(
            f"{operation}: {fmt.name} is of type {type(fmt).__name__}; arithmetic is done in a FloatFormat of up to "
            f"{PRECISION} significant bits: all floats of up to 16 bits, tfloat32 and float32"
        )
    if fmt.mantissa_bits >= PRECISION or lowest_bit(fmt) < -REACH or fmt.max >= 2.0**REACH:
        raise ValueError(
            f"{operation}: {fmt.name} has {fmt.mantissa_bits + 1} significant bits and values from "
            f"2**{lowest_bit(fmt)} to {fmt.max:g}; arithmetic is done in formats of up to {PRECISION} significant bits "
            f"between 2**-{REACH} and 2**{REACH}: floats of up to 16 bits, tfloat32 and float32 (float64 is NumPy's)"
        )
    return fmt


def wide_format(operation: str, fmt: str | Format) -> FloatFormat:
    """Return a format for products or accumulators, which may also be float64."""
    wide = get_format(fmt)
    return wide if isinstance(wide, FloatFormat) and wide.bits == 64 else float_format(operation, wide)


def operands_of(
    operation: str, given: dict[str, Any], fmt: FloatFormat, overflow: str
) -> tuple[list[Array], Callable[[Array], Any]]:
    """Return the operands as arrays of values of the format, and what makes an array of float64 the result.

    Parameters
    ----------
    operation : str
        Its name, for messages.
    given : dict of str to array_like
        The operands by name.
    fmt : FloatFormat
        The format that they are rounded to, to nearest even.
    overflow : str
        As in `qlab.cast`.

    Returns
    -------
    values : list of float16, float32 or float64 arrays
    finish : function
        From an array of values of the format to what the verb returns: of the dtype that `cast` would give, a scalar if
        it has no axes, a tensor if an operand was one.
    """
    operands, give_back = _from_torch(list(given.values()), fmt)
    arrays = []
    for name, number in zip(given, operands, strict=True):
        array = numbers(number)
        if fmt.nan_code is None and array.dtype.kind not in "iu" and (nan := np.isnan(array)).any():
            raise ValueError(
                f"{operation}: {name} holds {int(nan.sum())} NaN (the first at index {_first(nan)}), and {fmt.name} "
                f"has none; clean {name}, or use a format that has NaN"
            )
        arrays.append(array)
    dtype = _result_dtype(operands, arrays, fmt)
    values = [_as_values(array, fmt, overflow) for array in arrays]
    return values, lambda result: give_back(np.asarray(result).astype(dtype, copy=False)[()])


def _as_values(array: Array, fmt: FloatFormat, overflow: str) -> Array:
    """Return an array rounded to the format, of a dtype that NumPy computes with."""
    if overflow == "ieee" and array.dtype.kind == "f" and fmt == get_format(array.dtype.name):
        return array  # NumPy's own float16 or float32: nothing to round
    values = np.asarray(cast(array, fmt, overflow=overflow))
    return values.astype(np.float32) if is_bfloat16(values.dtype) else values


def _result_dtype(operands: list[Any], arrays: list[Array], fmt: FloatFormat) -> np.dtype[Any]:
    """Return the dtype that `cast` gives for the operands' promoted one; Python's own numbers adapt, as in NumPy."""
    pairs = zip(operands, arrays, strict=True)
    try:
        promoted = np.result_type(*(number if type(number) in (int, float) else array.dtype for number, array in pairs))
    except TypeError:  # bfloat16 and a dtype that ml_dtypes has no rule for
        return value_dtype(fmt)
    return cast_dtype(promoted, fmt)


def _from_torch(operands: list[Any], fmt: FloatFormat) -> tuple[list[Any], Callable[[Any], Any]]:
    """Return operands in which tensors have become arrays, and what makes a result a tensor if there were any."""
    torch: Any = sys.modules.get("torch")
    tensors = [number for number in operands if torch is not None and isinstance(number, torch.Tensor)]
    if not tensors:
        return operands, lambda result: result
    promoted = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))

    def to_array(number: Any) -> Any:
        if not isinstance(number, torch.Tensor):
            return number
        tensor = number.detach().cpu()
        in_numpy = not tensor.is_floating_point() or tensor.dtype in (torch.float16, torch.float32, torch.float64)
        return (tensor if in_numpy else tensor.float()).numpy()

    def give_back(result: Any) -> Any:
        tensor = torch.from_numpy(np.asarray(result))
        narrow = promoted == torch.bfloat16 and tensor.dtype == torch.float32 and bfloat16_holds(fmt)
        return tensor.to(device=tensors[0].device, dtype=torch.bfloat16 if narrow else tensor.dtype)

    return [to_array(number) for number in operands], give_back


def refuse_nan(operation: str, values: Array, fmt: FloatFormat) -> None:
    """Raise a ValueError if there is NaN among the results for a format that has none."""
    if fmt.nan_code is not None or not (nan := np.isnan(values)).any():
        return
    count, first = int(nan.sum()), _first(nan)
    raise ValueError(
        f"{operation}: {count} result{'s are' if count > 1 else ' is'} NaN (the first at index {first}), and "
        f"{fmt.name} has none; 0 / 0, inf / inf, inf - inf, 0 * inf and roots of negative numbers are NaN: keep them "
        "out, or use a format that has NaN"
    )


def _first(mask: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(mask.argmax()), mask.shape))
