"""The formats of IEEE P3109, arithmetic for machine learning: every width and precision from one rule.

A binaryKpP format has K bits, of which P - 1 are stored fraction bits. There is one zero and one NaN: the NaN has the
code that would be minus zero, or all ones where there is no sign. The largest finite code gives way to infinity in the
*extended* formats. Below the lowest binade come subnormals.
"""

from __future__ import annotations

import re

import numpy as np

from qlab.number.formats import FloatFormat

__all__ = ["p3109", "p3109_from_name"]

_NAME = re.compile(r"binary(\d+)p(\d+)(?:([su])([ef]))?")


def p3109(bits: int, precision: int, *, signed: bool = True, extended: bool = True) -> FloatFormat:
    """Return the IEEE P3109 format of a width and a precision.

    Parameters
    ----------
    bits : int
        Width K, 3 to 32.
    precision : int
        Significant bits P with the hidden one: 1 to K - 1, or to K without a sign.
    signed : bool
        Whether there is a sign bit. The bias is ``2**(K-P-1)`` with it and ``2**(K-P)`` without.
    extended : bool
        Whether there are infinities (``e`` at the end of the name) or only finite values (``f``).

    Returns
    -------
    FloatFormat
        Called as in the draft: ``binary8p3se`` is signed and extended, ``binary8p3uf`` unsigned and finite.
        `get_format` knows these names too; ``binary8p3``, as in the interim report, is ``binary8p3se``.

    Raises
    ------
    ValueError
        If there is no such format, or its values do not fit into float64.

    References
    ----------
    IEEE P3109 working group, interim report and drafts since 2023. Book: chapter 03.

    Notes
    -----
    The draft still moves: tables of 2024 (gfloat's) have a bias one smaller for precision 1 than the rule above.

    Examples
    --------
    >>> import qlab
    >>> fmt = qlab.p3109(8, 3)
    >>> fmt.name, fmt.max, fmt.smallest_subnormal
    ('binary8p3se', 49152.0, 7.62939453125e-06)
    >>> qlab.encode([float("nan"), float("inf"), -0.0], fmt)
    array([128, 127,   0], dtype=uint8)
    """
    _check_integer("bits", bits, 3, 32)
    _check_integer("precision", precision, 1, bits - signed)
    exponent_bits = int(bits) - int(precision) + (not signed)
    return FloatFormat(
        f"binary{int(bits)}p{int(precision)}{'s' if signed else 'u'}{'e' if extended else 'f'}",
        exponent_bits,
        int(precision) - 1,
        2 ** (exponent_bits - 1),
        infinities=extended,
        nans="negative_zero" if signed else "all_ones",
        signed=signed,
    )


def _check_integer(argument: str, value: int, lowest: int, highest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not lowest <= value <= highest:
        raise ValueError(f"{argument}={value!r} is not allowed; give an integer from {lowest} to {highest}")


def p3109_from_name(name: str) -> FloatFormat | None:
    """Return the format called ``binary8p3se`` or the like; None if the name is of another kind."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return p3109(int(match[1]), int(match[2]), signed=match[3] != "u", extended=match[4] != "f")
