"""What goes into arithmetic and what comes out: the formats, operands as values of them, tensors, refusals."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from qlab._pieces import Array
from qlab.number.arrays import numbers
from qlab.number.codec import bfloat16_holds, cast, cast_dtype, value_dtype
from qlab.number.error_free import PRECISION, REACH, extent
from qlab.number.formats import FloatFormat, Format, IntFormat, TableFormat, get_format
from qlab.number.halves import is_bfloat16
from qlab.number.logarithmic import is_takum

__all__ = ["checked_format", "has_nan", "has_zero", "operands_of", "refuse_nan", "wide_format"]


def checked_format(operation: str, fmt: str | Format) -> Format:
    """Return a format if arithmetic is done in it; raise a ValueError that says what is allowed if not."""
    fmt = get_format(fmt)
    if is_takum(fmt):
        return fmt
    bits, lowest, largest = extent(fmt)
    if bits > PRECISION or lowest < -REACH or largest >= 2.0**REACH:
        raise ValueError(
            f"{operation}: {fmt.name} has {bits} significant bits and values from 2**{lowest} to {largest:g}; arithmetic "
            f"is done in formats of up to {PRECISION} significant bits between 2**-{REACH} and 2**{REACH}: floats and "
            "integers of up to 16 bits, tfloat32, float32, posits, takums, and tables of such values (float64 is NumPy's)"
        )
    if isinstance(fmt, TableFormat) and not _has_short_boundaries(fmt):
        raise ValueError(
            f"{operation}: {fmt.name} has boundaries between its values of 53 significant bits and more, and no float64 "
            "tells on which side an exact result lies; give the table boundaries of fewer bits, or values nearer to one "
            "another"
        )
    return fmt


@lru_cache(maxsize=512)
def _has_short_boundaries(fmt: TableFormat) -> bool:
    """Whether each boundary is a float64 whose last bit is 0."""
    boundary, rest = np.ascontiguousarray(fmt.thresholds.T)
    return not (rest.any() or (boundary.view(np.int64) & 1).any())


def wide_format(operation: str, fmt: str | Format) -> Format:
    """Return a format for products or accumulators, which may also be float64, or integers of up to 32 bits."""
    wide = get_format(fmt)
    is_wide = isinstance(wide, IntFormat) or (isinstance(wide, FloatFormat) and wide.bits == 64)
    return wide if is_wide else checked_format(operation, wide)


def has_nan(fmt: Format) -> bool:
    """Whether a format has NaN (or NaR)."""
    return not isinstance(fmt, IntFormat) and fmt.nan_code is not None


def has_zero(fmt: Format) -> bool:
    """Whether zero is a value of the format."""
    if isinstance(fmt, TableFormat):
        return 0.0 in fmt.table
    return isinstance(fmt, IntFormat) or fmt.has_zero


def operands_of(
    operation: str, given: dict[str, Any], fmt: Format, overflow: str
) -> tuple[list[Array], Callable[[Array], Any]]:
    """Return the operands as arrays of values of the format, and what makes an array of float64 the result.

    Parameters
    ----------
    operation : str
        Its name, for messages.
    given : dict of str to array_like
        The operands by name.
    fmt : Format
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
        if not has_nan(fmt) and array.dtype.kind not in "iu" and (nan := np.isnan(array)).any():
            raise ValueError(
                f"{operation}: {name} holds {int(nan.sum())} NaN (the first at index {_first(nan)}), and {fmt.name} "
                f"has none; clean {name}, or use a format that has NaN"
            )
        arrays.append(array)
    dtype = _result_dtype(operands, arrays, fmt)
    values = [_as_values(array, fmt, overflow) for array in arrays]
    return values, lambda result: give_back(np.asarray(result).astype(dtype, copy=False)[()])


def _as_values(array: Array, fmt: Format, overflow: str) -> Array:
    """Return an array rounded to the format, of a dtype that NumPy computes with."""
    if overflow == "ieee" and array.dtype.kind == "f" and fmt == get_format(array.dtype.name):
        return array  # NumPy's own float16 or float32: nothing to round
    values = np.asarray(cast(array, fmt, overflow=overflow))
    return values.astype(np.float32) if is_bfloat16(values.dtype) else values


def _result_dtype(operands: list[Any], arrays: list[Array], fmt: Format) -> np.dtype[Any]:
    """Return the dtype that `cast` gives for the operands' promoted one; Python's own numbers adapt, as in NumPy."""
    pairs = zip(operands, arrays, strict=True)
    try:
        promoted = np.result_type(*(number if type(number) in (int, float) else array.dtype for number, array in pairs))
    except TypeError:  # bfloat16 and a dtype that ml_dtypes has no rule for
        return value_dtype(fmt)
    return cast_dtype(promoted, fmt)


def _from_torch(operands: list[Any], fmt: Format) -> tuple[list[Any], Callable[[Any], Any]]:
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
        in_float32 = promoted == torch.bfloat16 and tensor.dtype == torch.float32
        narrow = in_float32 and isinstance(fmt, FloatFormat) and bfloat16_holds(fmt)
        return tensor.to(device=tensors[0].device, dtype=torch.bfloat16 if narrow else tensor.dtype)

    return [to_array(number) for number in operands], give_back


def refuse_nan(operation: str, values: Array, fmt: Format) -> None:
    """Raise a ValueError if there is NaN among the results for a format that has none."""
    if has_nan(fmt) or not (nan := np.isnan(values)).any():
        return
    count, first = int(nan.sum()), _first(nan)
    raise ValueError(
        f"{operation}: {count} result{'s are' if count > 1 else ' is'} NaN (the first at index {first}), and "
        f"{fmt.name} has none; 0 / 0, inf / inf, inf - inf, 0 * inf and roots of negative numbers are NaN: keep them "
        "out, or use a format that has NaN"
    )


def _first(mask: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(mask.argmax()), mask.shape))
