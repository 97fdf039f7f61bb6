"""The operations on one pair of operands: done exactly, or rounded to odd, in float64, for one rounding to a format.

`exact` tells how: for floats, integers and tables by `qlab.number.error_free`, for takums, whose values are irrational,
by `qlab.number.logarithmic`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qlab._pieces import Array
from qlab.number.error_free import exact_quotient, exact_root, exact_sum, lowest_bit, plain_sum_will_do
from qlab.number.formats import FloatFormat, Format, TableFormat
from qlab.number.logarithmic import is_takum, settle

__all__ = ["Exact", "exact"]

Exact = Callable[..., Array]
"""An operation on float64 arrays of shape (n,), values of the format."""


def exact(operation: str, fmt: Format, rounding: str) -> Exact:
    """Return an operation whose results, once rounded to the format, are the exact ones rounded once.

    Parameters
    ----------
    operation : {"add", "sub", "mul", "div", "fma", "sqrt"}
    fmt : Format
        The format of operands and result, one that `qlab.number.operands.checked_format` lets pass.
    rounding : str
        The rounding to come.
    """
    if isinstance(fmt, TableFormat) and is_takum(fmt):
        return _of_takums(operation, fmt, rounding)
    factors = 2 if operation == "fma" else 1
    plain = isinstance(fmt, FloatFormat) and plain_sum_will_do(
        fmt, factors * (fmt.mantissa_bits + 1), factors * lowest_bit(fmt), rounding
    )
    operations: dict[str, Exact] = {
        "add": lambda x, y: exact_sum(x, y, rounding, plain=plain),
        "sub": lambda x, y: exact_sum(x, -y, rounding, plain=plain),
        "mul": np.multiply,  # 48 bits: exact
        "div": exact_quotient,
        "fma": lambda x, y, z: exact_sum(z, x * y, rounding, plain=plain),
        "sqrt": exact_root,
    }
    return operations[operation]


def _of_takums(operation: str, fmt: TableFormat, rounding: str) -> Exact:
    def total(x: Array, y: Array) -> Array:
        """To odd; and beside a takum, not on it, where the other term is lost."""
        result = exact_sum(x, y, rounding)
        lost = np.where(result == x, y, np.where(result == y, x, 0))
        return np.where(lost != 0, np.nextafter(result, np.copysign(np.inf, lost)), result)

    def product_and_sum(x: Array, y: Array, z: Array) -> Array:
        product = settle(x * y, fmt, "to_odd")  # a takum, or a boundary, where it is one
        return np.where(z == 0, settle(product, fmt, rounding), total(z, product))

    operations: dict[str, Exact] = {
        "add": total,
        "sub": lambda x, y: total(x, -y),
        "mul": lambda x, y: settle(x * y, fmt, rounding),
        "div": lambda x, y: settle(x / y, fmt, rounding),
        "fma": product_and_sum,
        "sqrt": lambda x: settle(np.sqrt(x), fmt, rounding),
    }
    return operations[operation]
