"""Schemes as data: a quantizer is a format, the blocks that share a scale, and a rule for the scale.

    value ~ scale * decode(code)                     zero=None
    value ~ scale * (code - zero)                    zero="integer"
    value ~ scale * (code - lowest code) + zero      zero="min"

A scale may itself be stored by a scheme: that gives double quantization, NVFP4 and GGUF's K-types. The named schemes are a
table of one line each (`SCHEMES`), in the notation of `qlab.tensor.notation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from qlab._check import one_of, unknown_name
from qlab.number.formats import FORMATS, Format, IntFormat, TableFormat, get_format
from qlab.tensor.blocks import Blocks, PerAxis, PerBlock, PerRow, PerTensor
from qlab.tensor.packing import ORDERS

__all__ = ["MX_ROUNDINGS", "RULES", "SCHEMES", "Fitted", "Scale", "Scheme", "get_scheme"]

RULES = (
    "absmax", "minmax", "signed_absmax", "percentile", "mse", "entropy", "mean_abs", "power_of_two", "mx", "unit",
)  # fmt: skip
MX_ROUNDINGS = ("floor", "ceil", "nearest_even", "up")
ZEROS = (None, "integer", "min")
_SYMMETRIC = ("absmax", "signed_absmax", "entropy", "mean_abs", "power_of_two", "mx", "unit")


@dataclass(frozen=True)
class Fitted:
    """A codebook that is fitted to each tensor, by Lloyd and Max's method (k-means in one dimension).

    Parameters
    ----------
    bits : int
        Of a code, 1 to 8.
    """

    bits: int

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 1 <= self.bits <= 8:
            raise ValueError(f"bits={self.bits!r} is not allowed; a codebook is fitted for codes of 1 to 8 bits")

    @property
    def name(self) -> str:
        """What it is called in the notation."""
        return f"kmeans{self.bits}"


@dataclass(frozen=True)
class Scale:
    """How the scale of a block is chosen and stored.

    Parameters
    ----------
    rule : str
        ``absmax``: the largest magnitude becomes the largest value of the format, nothing is clipped. ``minmax``: the
        range from the smallest to the largest value, for schemes with a zero. ``signed_absmax``: what is largest in
        magnitude becomes the lowest code, so that the scale may be negative (GGUF). ``percentile``: values beyond the
        percentile are clipped. ``mse``: the range with the least mean squared error. ``entropy``: the range whose
        histogram loses the least information (Kullback and Leibler). ``mean_abs``: the mean magnitude, for codes -1 and
        1. ``power_of_two``: the smallest power of two that clips nothing. ``mx``: the power of two of OCP's
        microscaling formats. ``unit``: 1, whatever the values; what is beyond the format is clipped.
    stored : Format or Scheme, optional
        In what the scales are stored; float32 (float64 for float64 input) unless given.
    percent : float
        For ``percentile``: which one, above 50 and up to 100.
    rounding : {"floor", "ceil", "nearest_even", "up"}
        For ``mx``, how the shared exponent is rounded: down (OCP), up, as the format rounds the largest magnitude, or up
        until nothing is clipped (NVIDIA).
    reciprocal : bool
        Multiply by the reciprocal of the scale instead of dividing by the scale, as bitsandbytes does.
    late : bool
        Whether codes are found by the scale (and minimum) before it is rounded to what is stored (bitsandbytes), or
        after.
    """

    rule: str = "absmax"
    stored: Format | Scheme | None = None
    percent: float = 99.9
    rounding: str = "floor"
    reciprocal: bool = False
    late: bool = False

    def __post_init__(self) -> None:
        one_of("scale", self.rule, RULES)
        one_of("rounding", self.rounding, MX_ROUNDINGS)
        if self.stored is not None and not isinstance(self.stored, Scheme):
            object.__setattr__(self, "stored", get_format(self.stored))
        if not 50 < self.percent <= 100:
            raise ValueError(f"percent={self.percent!r} is not allowed; give a percentile above 50 and up to 100")


@dataclass(frozen=True)
class Scheme:
    """A quantizer.

    Parameters
    ----------
    format : Format, str or Fitted
        Which values a code can stand for.
    blocks : PerTensor, PerAxis, PerRow or PerBlock
        Which elements share a scale.
    scale : Scale or str
        How the scale is chosen and stored; a rule's name alone will do.
    zero : {None, "integer", "min"}
        The code that stands for zero, an integer; or the value of the lowest code, a float; or none of these. For
        integer formats.
    center : bool
        Whether the tensor's mean is taken off before (and kept as one float32).
    order : {"low_first", "high_first"}
        How codes are packed, see `qlab.tensor.packing`.
    layout : str, optional
        The name of a GGUF type: its bytes, its search for scales.

    Attributes
    ----------
    name : str
        What `get_scheme` was asked for; "" for a scheme that is made in another way, `dataclasses.replace` among them.

    Examples
    --------
    >>> import qlab
    >>> qlab.get_scheme("int4-b128-asym") == qlab.Scheme("int4", qlab.PerBlock(128), "minmax", zero="integer")
    True
    >>> qlab.Scheme("float4_e2m1fn", qlab.PerBlock(32), "mse")
    get_scheme('fp4-b32-mse')
    """

    format: Format | Fitted
    blocks: Blocks = field(default_factory=PerTensor)
    scale: Scale = field(default_factory=Scale)
    zero: str | None = None
    center: bool = False
    order: str = "low_first"
    layout: str | None = None
    name: str = field(default="", init=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.format, Fitted):
            object.__setattr__(self, "format", get_format(self.format))
        if isinstance(self.scale, str):
            object.__setattr__(self, "scale", Scale(self.scale))
        if not isinstance(self.blocks, (PerTensor, PerAxis, PerRow, PerBlock)):
            raise TypeError(f"blocks are PerTensor(), PerAxis(axis), PerRow() or PerBlock(size), not {self.blocks!r}")
        if self.zero not in ZEROS:
            raise ValueError(f"zero={self.zero!r} is not known; allowed are None, 'integer', 'min'")
        if self.zero is not None and not isinstance(self.format, IntFormat):
            raise ValueError(f"zero={self.zero!r} needs an integer format, such as 'uint4', not {self.format.name}")
        if (self.scale.rule == "minmax" and self.zero is None) or (self.scale.rule in _SYMMETRIC and self.zero is not None):
            raise ValueError(
                f"scale={self.scale.rule!r} does not go with zero={self.zero!r}; 'minmax' needs a zero, "
                "'percentile' and 'mse' go with either, all others without"
            )
        if self.format.bits > 16:
            raise ValueError(f"{self.format.name} has {self.format.bits} bits; schemes are for codes of up to 16 bits")
        one_of("order", self.order, ORDERS)

    def __str__(self) -> str:
        from qlab.tensor.notation import compose

        return self.name or compose(self)

    def __repr__(self) -> str:
        text = str(self)
        try:
            if get_scheme(text) == self:
                return f"get_scheme({text!r})"
        except ValueError:
            pass
        parts = f"{self.format!r}, {self.blocks!r}, {self.scale!r}, zero={self.zero!r}, center={self.center}"
        return f"Scheme({parts}, order={self.order!r}, layout={self.layout!r})"

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.format.bits


# A name, and what it means in the notation (`qlab.tensor.notation`): a new scheme is one line.
_NAMED = {
    **{f"int{bits}": f"int{bits}" for bits in range(2, 17)},
    **{f"uint{bits}": f"uint{bits}-asym" for bits in range(2, 17)},
    "int8_channel": "int8-channel",
    "int4_b32": "int4-b32",
    "nf4": "nf4", "nf4_dq": "nf4-dq", "fp4_bnb": "fp4_bnb", "af4": "af4",
    "mxfp8_e4m3": "e4m3-b32-mx/e8m0", "mxfp8_e5m2": "e5m2-b32-mx/e8m0",
    "mxfp6_e3m2": "e3m2-b32-mx/e8m0", "mxfp6_e2m3": "e2m3-b32-mx/e8m0",
    "mxfp4": "fp4-b32-mx/e8m0", "mxint8": "mxint8-b32-mx/e8m0",
    "nvfp4": "fp4-b16/e4m3-tensor",
    "fp8_e4m3_tensor": "e4m3-tensor",
    "binary": "binary-mean", "ternary": "ternary-mean", "log4": "log4", "kmeans4": "kmeans4",
}  # fmt: skip
# GGUF's types: what they are in the notation, and by their name the bytes (`qlab.tensor.gguf`).
_GGUF = {
    "q8_0": "int8-b32/f16", "q8_k": "int8-b256-signed",
    "q4_0": "int4-b32-signed/f16", "q4_1": "uint4-b32-min/f16", "q5_0": "int5-b32-signed/f16", "q5_1": "uint5-b32-min/f16",
    "q2_k": "uint2-b16-min/uint4-b16/f16", "q3_k": "int3-b16-signed/int6-b16/f16", "q4_k": "uint4-b32-min/uint6-b8/f16",
    "q5_k": "uint5-b32-min/uint6-b8/f16", "q6_k": "int6-b16-signed/int8-b16/f16",
    "iq4_nl": "iq4_nl-b32/f16", "iq4_xs": "iq4_nl-b32/int6-b8/f16",
    "tq1_0": "ternary-b256/f16", "tq2_0": "ternary-b256/f16",
    "mxfp4_gguf": "fp4-b32-mx/e8m0", "nvfp4_gguf": "fp4-b16/e4m3",
}  # fmt: skip


class SchemeTable(Mapping[str, Scheme]):
    """The named schemes: a read-only mapping of name to Scheme, which a notebook shows as a table."""

    def __init__(self, named: dict[str, str], gguf: dict[str, str]) -> None:
        self._notation, self._gguf = {**named, **gguf}, gguf
        self._made: dict[str, Scheme] = {}

    def __getitem__(self, name: str) -> Scheme:
        if name not in self._made:
            layout = name.removesuffix("_gguf") if name in self._gguf else None
            self._made[name] = _called(replace(_parse_once(self._notation[name]), layout=layout), name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._notation)

    def __len__(self) -> int:
        return len(self._notation)

    def notation(self, name: str) -> str:
        """Return what a name means in the notation; of a GGUF type it says the structure, not the bytes.

        Examples
        --------
        >>> import qlab
        >>> qlab.SCHEMES.notation("q4_k")
        'uint4-b32-min/uint6-b8/f16'
        """
        return self._notation[name]

    def _repr_html_(self) -> str:
        from qlab.show.table import Table

        rows = [(name, self._notation[name], scheme.bits) for name, scheme in self.items()]
        return Table(("scheme", "notation", "bits"), rows)._repr_html_()


SCHEMES = SchemeTable(_NAMED, _GGUF)
"""The named schemes."""


def get_scheme(scheme: str | Scheme) -> Scheme:
    """Return the scheme of that name, or that a notation describes; a scheme is returned as it is.

    Raises
    ------
    ValueError
        If the text is neither a name nor notation; the message shows the grammar.

    Examples
    --------
    >>> import qlab
    >>> qlab.get_scheme("int4-b32/f16")
    get_scheme('int4-b32/f16')
    >>> qlab.get_scheme("int1")
    Traceback (most recent call last):
    ValueError: unknown scheme 'int1': one bit has no room for a sign and a zero; use 'binary', which stores -1 and 1
    """
    if isinstance(scheme, Scheme):
        return scheme
    if not isinstance(scheme, str):
        raise TypeError(f"a scheme is a name, a notation or a Scheme, not {type(scheme).__name__}")
    if scheme in SCHEMES:
        return SCHEMES[scheme]
    if scheme in ("int1", "uint1"):
        raise ValueError(
            f"unknown scheme {scheme!r}: one bit has no room for a sign and a zero; use 'binary', which stores -1 and 1"
        )
    from qlab.tensor.notation import GRAMMAR

    try:
        return _parse_once(scheme)
    except ValueError:
        if "-" in scheme or "/" in scheme or scheme in FORMATS:
            raise
    unknown_name("scheme", scheme, SCHEMES, f"qlab.SCHEMES lists all names; or write {GRAMMAR}")


@lru_cache(maxsize=512)
def _parse_once(text: str) -> Scheme:
    from qlab.tensor.notation import parse

    return _called(parse(text), text)


def _called(scheme: Scheme, name: str) -> Scheme:
    """Give a scheme that was just made its name."""
    object.__setattr__(scheme, "name", name)
    return scheme


@lru_cache(maxsize=64)
def codebook(name: str) -> Format | Fitted | None:
    """Return the codebook of a name that only schemes know, or None."""
    from qlab.tensor import codebooks

    if name.startswith("kmeans") and name[6:].isdigit():
        return Fitted(int(name[6:]))
    if name.startswith("log") and name[3:].isdigit():
        return codebooks.log_codes(int(name[3:]))
    if name == "iq4_nl":
        return TableFormat("iq4_nl", (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))
    if name == "mxint8":  # OCP MX 1.0: an integer and an implied 2**-6
        return TableFormat("mxint8", [(code - 256 * (code > 127)) / 64 for code in range(256)])
    made = {
        "nf4": codebooks.bitsandbytes_nf4, "fp4_bnb": codebooks.bitsandbytes_fp4, "af4": codebooks.abnormal_float,
        "dynamic8": codebooks.dynamic_map, "ternary": codebooks.ternary, "binary": codebooks.binary,
    }  # fmt: skip
    return made[name]() if name in made else None
