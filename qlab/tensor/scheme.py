"""Schemes as data: a quantizer is a format, the blocks that share a scale, and a rule for the scale.

A scheme is one line of `SCHEMES`. For now blocks are the whole tensor, and the scale is kept as float32.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qlab._check import one_of, unknown_name
from qlab.number.formats import Format, IntFormat, TableFormat, get_format

__all__ = ["SCALES", "SCHEMES", "Scheme", "get_scheme"]

SCALES = ("absmax", "mean_abs")


@dataclass(frozen=True)
class Scheme:
    """A quantizer: ``x ~ scale * decode(codes)``, one scale for the tensor.

    Parameters
    ----------
    format : Format
        Which values a code can stand for.
    scale : {"absmax", "mean_abs"}
        The scale is the largest magnitude of the tensor over the largest positive value of the format, so that nothing
        is clipped; or the mean magnitude, which is the best scale for a format of -1 and 1.

    Examples
    --------
    >>> import qlab
    >>> qlab.get_scheme("int4")
    Scheme(format=IntFormat(bits=4, signed=True), scale='absmax')
    """

    format: Format
    scale: str = "absmax"

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", get_format(self.format))
        one_of("scale", self.scale, SCALES)

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.format.bits


SCHEMES: dict[str, Scheme] = {
    **{f"int{bits}": Scheme(IntFormat(bits)) for bits in range(2, 17)},
    "binary": Scheme(TableFormat("binary", (-1.0, 1.0)), scale="mean_abs"),
}
"""The named schemes."""


def get_scheme(scheme: str | Scheme) -> Scheme:
    """Return the scheme of that name; a scheme is returned as it is.

    Raises
    ------
    ValueError
        If no scheme has that name; the message offers the nearest ones.

    Examples
    --------
    >>> import qlab
    >>> qlab.get_scheme("int1")
    Traceback (most recent call last):
    ValueError: unknown scheme 'int1': one bit has no room for a sign and a zero; use 'binary', which stores -1 and 1
    """
    if isinstance(scheme, Scheme):
        return scheme
    if not isinstance(scheme, str):
        raise TypeError(f"a scheme is a name or a Scheme, not {type(scheme).__name__}")
    if scheme in SCHEMES:
        return SCHEMES[scheme]
    if re.fullmatch(r"u?int1", scheme):
        raise ValueError(
            f"unknown scheme {scheme!r}: one bit has no room for a sign and a zero; use 'binary', which stores -1 and 1"
        )
    unknown_name("scheme", scheme, SCHEMES, "qlab.SCHEMES lists all names")
