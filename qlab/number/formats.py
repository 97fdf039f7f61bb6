"""The named number formats: which values a code can stand for.

A `FloatFormat` is a handful of parameters from which everything else follows; an `IntFormat` is a width and a sign; a
`TableFormat` is a list of values. All are frozen and hashable. `FORMATS` holds the named ones under the names of
ml_dtypes; to add one, add a line to the list at the end of this file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from qlab._check import unknown_name
from qlab.number.float_format import FloatFormat
from qlab.number.list_format import IntFormat, TableFormat

__all__ = ["ALIASES", "FORMATS", "FloatFormat", "Format", "FormatTable", "IntFormat", "TableFormat", "get_format"]

Format = FloatFormat | IntFormat | TableFormat


class FormatTable(Mapping[str, Format]):
    """The named formats, in the order of the book's table; a mapping that a notebook shows as that table.

    An entry is a format, or a name with a function that builds it, called once, when the format is first asked for.
    """

    def __init__(self, formats: Sequence[Format | tuple[str, Callable[[], Format]]]) -> None:
        self._formats: dict[str, Format | Callable[[], Format]] = dict(
            entry if isinstance(entry, tuple) else (entry.name, entry) for entry in formats
        )

    def __getitem__(self, name: str) -> Format:
        entry = self._formats[name]
        if callable(entry):
            entry = self._formats[name] = entry()
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._formats

    def __iter__(self) -> Iterator[str]:
        return iter(self._formats)

    def __len__(self) -> int:
        return len(self._formats)

    def __repr__(self) -> str:
        from qlab.show.table import format_table

        return repr(format_table(list(self.values())))

    def _repr_html_(self) -> str:
        from qlab.show.table import format_table

        return format_table(list(self.values()))._repr_html_()


def get_format(fmt: str | Format) -> Format:
    """Return the format of that name; a format is returned as it is.

    Parameters
    ----------
    fmt : str or Format
        A name of `FORMATS`, an everyday alias (``fp16``, ``bf16``, ``tf32``, ``fp8_e4m3``, ``fp4``), an integer width
        (``int24``), a name of IEEE P3109 (``binary8p3se``, see `p3109`), or an object.

    Raises
    ------
    ValueError
        If no format has that name; the message offers the nearest ones.

    Examples
    --------
    >>> import qlab
    >>> qlab.get_format("bf16").name
    'bfloat16'
    >>> qlab.get_format("float17")
    Traceback (most recent call last):
    ValueError: unknown format 'float17': did you mean 'float16' or 'float' or 'bfloat16'? qlab.FORMATS lists all names
    """
    if isinstance(fmt, (FloatFormat, IntFormat, TableFormat)):
        return fmt
    if not isinstance(fmt, str):
        raise TypeError(f"a format is a name like 'float16', or a FloatFormat, IntFormat or TableFormat, not {fmt!r}")
    name = ALIASES.get(fmt.lower(), fmt.lower())
    if name in FORMATS:
        return FORMATS[name]
    if match := re.fullmatch(r"(u?)int(\d+)", name):
        bits, signed = int(match[2]), not match[1]
        if 1 + signed <= bits <= 32:
            return IntFormat(bits, signed)
    if name.startswith("binary"):
        from qlab.number.p3109 import p3109_from_name

        if found := p3109_from_name(name):
            return found
    unknown_name("format", fmt, [*FORMATS, *ALIASES], "qlab.FORMATS lists all names")


def _posit(bits: int) -> Format:
    from qlab.number.tapered import posit

    return posit(bits)


def _takum(bits: int) -> Format:
    from qlab.number.tapered import takum

    return takum(bits)


# QLoRA, appendix E; the float32 values that bitsandbytes stores.
_NF4 = (
    "-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334 "
    "-0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224 "
    "0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0"
)

_FN = {"infinities": False, "nans": "all_ones"}
_FNUZ = {"infinities": False, "nans": "negative_zero"}
_FINITE = {"infinities": False, "nans": "none"}

FORMATS = FormatTable(
    [
        FloatFormat("float64", 11, 52),
        FloatFormat("float32", 8, 23),
        FloatFormat("tfloat32", 8, 10),
        FloatFormat("bfloat16", 8, 7),
        FloatFormat("float16", 5, 10),
        FloatFormat("float8_e5m2", 5, 2),
        FloatFormat("float8_e5m2fnuz", 5, 2, 16, **_FNUZ),  # type: ignore[arg-type]
        FloatFormat("float8_e4m3", 4, 3),
        FloatFormat("float8_e4m3fn", 4, 3, **_FN),  # type: ignore[arg-type]
        FloatFormat("float8_e4m3fnuz", 4, 3, 8, **_FNUZ),  # type: ignore[arg-type]
        FloatFormat("float8_e4m3b11fnuz", 4, 3, 11, **_FNUZ),  # type: ignore[arg-type]
        FloatFormat("float8_e3m4", 3, 4),
        FloatFormat("float8_e8m0fnu", 8, 0, **_FN, subnormals=False, signed=False),  # type: ignore[arg-type]
        FloatFormat("float6_e3m2fn", 3, 2, **_FINITE),  # type: ignore[arg-type]
        FloatFormat("float6_e2m3fn", 2, 3, **_FINITE),  # type: ignore[arg-type]
        FloatFormat("float4_e2m1fn", 2, 1, **_FINITE),  # type: ignore[arg-type]
        TableFormat("nf4", _NF4.split()),
        ("posit8", partial(_posit, 8)),
        ("posit16", partial(_posit, 16)),
        ("takum8", partial(_takum, 8)),
        ("takum16", partial(_takum, 16)),
        *(IntFormat(bits) for bits in range(2, 17)),
        *(IntFormat(bits, signed=False) for bits in range(2, 17)),
    ]
)
"""The named formats. A new one is one line above (and a line in CHANGELOG.md)."""

ALIASES = {
    "fp64": "float64", "double": "float64", "e11m52": "float64",
    "fp32": "float32", "float": "float32", "single": "float32", "e8m23": "float32",
    "tf32": "tfloat32", "e8m10": "tfloat32",
    "bf16": "bfloat16", "e8m7": "bfloat16",
    "fp16": "float16", "half": "float16", "e5m10": "float16",
    "fp8_e5m2": "float8_e5m2", "e5m2": "float8_e5m2",
    "fp8_e4m3": "float8_e4m3fn", "e4m3": "float8_e4m3fn", "fp8_e4m3fn": "float8_e4m3fn", "e4m3fn": "float8_e4m3fn",
    "fp8_e3m4": "float8_e3m4", "e3m4": "float8_e3m4",
    "e8m0": "float8_e8m0fnu", "ue8m0": "float8_e8m0fnu",
    "fp6_e3m2": "float6_e3m2fn", "e3m2": "float6_e3m2fn",
    "fp6_e2m3": "float6_e2m3fn", "e2m3": "float6_e2m3fn",
    "fp4": "float4_e2m1fn", "fp4_e2m1": "float4_e2m1fn", "e2m1": "float4_e2m1fn",
}  # fmt: skip
"""Everyday names, lower case, and the format each means."""
