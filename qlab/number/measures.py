"""Measures of a format: the step at a value, how many values lie between two, what a format makes of an array."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from qlab._pieces import PIECE, Array
from qlab.number.bits import fields as code_fields
from qlab.number.codec import cast, encode
from qlab.number.formats import FORMATS, FloatFormat, Format, IntFormat, TableFormat, get_format

if TYPE_CHECKING:
    from qlab.show.table import Table

__all__ = ["FormatReport", "FormatReports", "format_report", "rank_formats", "ulp", "ulp_distance"]


def ulp(x: Any, fmt: str | Format) -> Any:
    """Return the step of a format at each value: the distance from its magnitude to the next larger one.

    Parameters
    ----------
    x : array_like or CPU tensor of any shape
        Real numbers; they need not be values of the format.
    fmt : str or Format
        The format, or its name.

    Returns
    -------
    step : float64 array of the shape of x
        For a value between two neighbours, their distance; at a value itself, the distance away from zero (as
        `numpy.spacing`, without its sign). Beyond the ends of the format the step at that end; at the largest float,
        the step of its binade. NaN for NaN and infinities.

    Raises
    ------
    ValueError
        If no format has that name.
    TypeError
        If `x` is not made of real numbers.

    Notes
    -----
    Exact. J.-M. Muller, "On the definition of ulp(x)", 2005 (which differs at powers of two). Book: chapter 02.

    Examples
    --------
    >>> import qlab
    >>> qlab.ulp([1.0, 1000.0, 70000.0, 0.0], "float16")
    array([9.76562500e-04, 5.00000000e-01, 3.20000000e+01, 5.96046448e-08])
    """
    fmt, array = get_format(fmt), _as_array(x)
    down = np.asarray(cast(array, fmt, rounding="toward_zero", overflow="saturate", nan="zero")).astype(np.float64)
    if isinstance(fmt, FloatFormat):
        exponent = np.where(down == 0, fmt.emin, np.maximum(np.frexp(down)[1] - 1, fmt.emin))
        step = np.ldexp(1.0, exponent - fmt.mantissa_bits)
        if not fmt.subnormals and fmt.has_zero:  # nothing but zero below the smallest value
            step = np.where(down == 0, fmt.smallest_subnormal, step)
    elif isinstance(fmt, IntFormat):
        step = np.ones(down.shape)
    else:
        step = _table_step(array.astype(np.float64), fmt)
    number = np.isfinite(array) if array.dtype.kind not in "iu" else True
    return np.where(number, step, np.nan)[()]


def _table_step(x: Array, fmt: TableFormat) -> Array:
    values, _ = fmt.ordered
    above, below = np.searchsorted(values, x, side="right"), np.searchsorted(values, x, side="left")
    low = np.clip(np.where(x >= 0, above, below) - 1, 0, len(values) - 2)
    return np.asarray(np.diff(values)[low])


def ulp_distance(x: Any, y: Any, fmt: str | Format) -> Any:
    """Return how many representable values apart two arrays are: 0 for equal ones, 1 for neighbours.

    Parameters
    ----------
    x, y : array_like or CPU tensor, of shapes that go together
        Values of the format. Zero and minus zero count as one, infinities as the neighbours of the largest values.
    fmt : str or Format
        The format, or its name.

    Returns
    -------
    distance : int64 array of the joint shape; uint64 for float64
        Positive, whichever is larger.

    Raises
    ------
    ValueError
        If an element is not a value of the format (it says which; round it with `cast` first), or is NaN.
    TypeError
        If `x` or `y` is not made of real numbers.

    Notes
    -----
    Exact. Codes without their sign count magnitudes; with the sign given back they are integers in the order of the
    values, and the distance is their difference. Book: chapter 02.

    Examples
    --------
    >>> import qlab
    >>> qlab.ulp_distance([1.0, 2.0, -0.0], [1.125, 1.875, 2.0**-9], "fp8_e4m3")
    array([1, 1, 1])
    """
    fmt = get_format(fmt)
    places = [_place(_as_array(a), fmt, name) for a, name in ((x, "x"), (y, "y"))]
    first, second = np.broadcast_arrays(*places)
    high, low = np.maximum(first, second), np.minimum(first, second)
    if fmt.bits <= 32:
        return (high - low)[()]
    with np.errstate(over="ignore"):
        return (high.astype(np.uint64) - low.astype(np.uint64))[()]  # modulo 2**64, which the difference is below


def _place(x: Array, fmt: Format, name: str) -> Array:
    """Return integers (int64) in the order of the values, one more from each value of the format to the next."""
    down, up = (encode(x, fmt, rounding=rounding, nan="zero") for rounding in ("down", "up"))
    wide = x.astype(np.float64)
    inside = (wide >= fmt.min) & (wide <= fmt.max)
    if isinstance(fmt, FloatFormat) and fmt.infinities:
        inside |= np.isinf(wide)
    wrong = np.asarray((down != up) | ~inside)
    if wrong.any():
        index = tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
        raise ValueError(
            f"{name} holds {int(wrong.sum())} elements that are no values of {fmt.name} (the first, {x[index]}, at "
            f"index {index}); round {name} with qlab.cast first, and leave NaN out"
        )
    codes = np.asarray(down).astype(np.int64)
    if isinstance(fmt, FloatFormat):
        sign, exponent, fraction = code_fields(codes, fmt)
        magnitude = (exponent << fmt.mantissa_bits) | fraction
        return np.where(sign == 1, -magnitude, magnitude)
    if isinstance(fmt, IntFormat):
        return np.where(codes > fmt.max, codes - (1 << fmt.bits), codes)
    return np.asarray(np.searchsorted(fmt.ordered[0], wide))


@dataclass(frozen=True)
class FormatReport:
    """What a format makes of an array. Shows itself as a row of a table, with shares in percent.

    Attributes
    ----------
    format : Format
        The format.
    overflow : float
        Share of all elements that are finite but too large for the format (or negative, in one without sign): those
        that become an infinity or NaN, or lie beyond the end by more than rounding would explain: half of the last step
        (all of it for directed roundings).
    underflow : float
        Share of all elements that are not zero but become zero.
    subnormal : float
        Share of all elements that become subnormal.
    exact : float
        Share of all elements that are values of the format (infinities too, where it has them).
    max_relative_error, mean_relative_error : float
        Of the elements that are finite, not zero, and stay finite; 0 if there is none.
    sqnr : float
        Energy of the values over that of their errors, in dB, of the finite elements: infinite without error, minus
        infinity if a finite element does not stay finite.
    zeros, nans : float
        Shares of zeros and of NaN in the array itself.
    """

    format: Format
    overflow: float
    underflow: float
    subnormal: float
    exact: float
    max_relative_error: float
    mean_relative_error: float
    sqnr: float
    zeros: float
    nans: float

    def __repr__(self) -> str:
        return repr(FormatReports([self]))

    def _repr_html_(self) -> str:
        return FormatReports([self])._repr_html_()


class FormatReports(tuple[FormatReport, ...]):
    """Several reports, in order; a tuple that shows itself as one table."""

    def table(self) -> Table:
        """Return the table: a row for each format."""
        from qlab.show.table import Table

        percent = ("overflow", "underflow", "subnormal", "exact", "zeros", "nans")
        names = [field.name for field in fields(FormatReport)[1:]]
        rows = [
            (r.format.name, r.format.bits, *(getattr(r, name) * (100 if name in percent else 1) for name in names))
            for r in self
        ]
        return Table(("format", "bits", *names), rows)

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def format_report(x: Any, fmt: str | Format, *, rounding: str = "nearest_even", overflow: str = "ieee") -> FormatReport:
    """Report what a format makes of an array when it is cast to it, without any scale.

    Parameters
    ----------
    x : array_like or CPU tensor of any shape, not empty
        Real numbers. NaN are counted and otherwise left out.
    fmt : str or Format
        The format, or its name.
    rounding, overflow : str
        As in `cast`, but not ``stochastic``.

    Returns
    -------
    FormatReport
        Shares of overflow, underflow, subnormal and exact elements, relative errors, SQNR; shown as a table.

    Raises
    ------
    ValueError
        If `x` is empty or a name is unknown.
    TypeError
        If `x` is not made of real numbers.

    Notes
    -----
    Shares are exact; errors and SQNR are summed in float64 (tolerance: a relative 1e-12). Book: chapter 03.

    Examples
    --------
    >>> import numpy as np, qlab
    >>> report = qlab.format_report(np.float32([1, 1.1, 70000, 1e-9, 0]), "float16")
    >>> report.overflow, report.underflow, report.exact, report.zeros
    (0.2, 0.2, 0.4, 0.2)
    """
    fmt, array = get_format(fmt), _as_array(x)
    if not array.size:
        raise ValueError("x is empty; a report needs at least one element")
    flat = array.reshape(-1)
    cast(flat[:1], fmt, rounding=rounding, overflow=overflow, nan="zero")  # refuses what cast refuses, before all else
    largest = max(float(np.abs(piece[np.isfinite(piece)]).max(initial=0.0)) for piece in _pieces(flat))
    unit = math.ldexp(1.0, min(-math.frexp(largest)[1], 1023))  # energies are taken in this unit: no square overflows or vanishes
    parts = [_measure(piece, fmt, rounding, overflow, unit) for piece in _pieces(flat)]

    def total(key: str) -> float:
        return math.fsum(part[key] for part in parts)

    shares = ("overflow", "underflow", "subnormal", "exact", "zeros", "nans")
    return FormatReport(
        format=fmt,
        **{key: total(key) / flat.size for key in shares},
        max_relative_error=max(part["max_relative_error"] for part in parts),
        mean_relative_error=total("relative_error") / max(total("nonzero"), 1),
        sqnr=_decibels(total("signal"), total("noise")),
    )


def _measure(x: Array, fmt: Format, rounding: str, overflow: str, unit: float) -> dict[str, float]:
    """Return the counts and sums of one piece (float64, shape (n,))."""
    result = np.asarray(cast(x, fmt, rounding=rounding, overflow=overflow, nan="zero")).astype(np.float64)
    number = np.isfinite(x)
    stays = number & np.isfinite(result)
    kept, error = x[stays], np.abs(x[stays] - result[stays])
    relative = error[kept != 0] / np.abs(kept[kept != 0])
    counted = {
        "overflow": number & (~stays | _beyond(x, fmt, rounding)),
        "underflow": number & (x != 0) & (result == 0),
        "subnormal": ~np.isnan(x) & _is_subnormal(result, fmt),
        "exact": result == x,
        "zeros": x == 0,
        "nans": np.isnan(x),
    }
    return {
        **{key: float(np.count_nonzero(elements)) for key, elements in counted.items()},
        "nonzero": float(relative.size),
        "relative_error": float(relative.sum()),
        "max_relative_error": float(relative.max(initial=0.0)),
        "signal": float(np.square(kept * unit).sum()),
        "noise": float(np.square(error * unit).sum()) if np.array_equal(stays, number) else math.inf,
    }


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and noise < math.inf else -math.inf


def _pieces(flat: Array) -> Iterable[Array]:
    return (flat[start : start + PIECE].astype(np.float64) for start in range(0, flat.size, PIECE))


def _beyond(values: Array, fmt: Format, rounding: str) -> Array:
    """Whether each value lies so far beyond the format's ends that rounding does not bring it back."""
    room = 0.5 if rounding.startswith("nearest") else 1.0
    upper = fmt.max + room * float(ulp(fmt.max, fmt))
    lower = fmt.min - (room * float(ulp(fmt.min, fmt)) if fmt.min < 0 else 0.0)
    return np.asarray((values > upper) | (values < lower))


def _is_subnormal(result: Array, fmt: Format) -> Array:
    smallest = fmt.smallest_normal if isinstance(fmt, FloatFormat) else 0.0
    return np.asarray((result != 0) & (np.abs(result) < smallest))


def rank_formats(
    x: Any, formats: Iterable[str | Format] | None = None, *, bits: int | None = None, overflow: str = "ieee"
) -> FormatReports:
    """Rank formats by the SQNR with which they hold an array, best first.

    Parameters
    ----------
    x : array_like or CPU tensor of any shape, not empty
        Real numbers.
    formats : iterable of str or Format, optional
        The candidates; all of `FORMATS` unless given.
    bits : int, optional
        Take only formats of at most that many bits.
    overflow : {"ieee", "saturate"}
        As in `cast`. With ``ieee`` a format in which a finite element becomes an infinity or NaN ranks last.

    Returns
    -------
    FormatReports
        A tuple of `FormatReport`, shown as a table. Of equal SQNR the format with fewer bits comes first.

    Raises
    ------
    ValueError
        If no format is left, `x` is empty, or a name is unknown.
    TypeError
        If `x` is not made of real numbers.

    Notes
    -----
    This is a plain cast: nothing is scaled, so that formats with a small range, integers above all, lose to others that
    a scale would let them beat. For quantizers, which scale, see `error_report`. Tolerance as in `format_report`.
    Book: chapter 03.

    Examples
    --------
    >>> import numpy as np, qlab
    >>> ranking = qlab.rank_formats(np.linspace(-1, 1, 101), ["fp8_e4m3", "fp8_e5m2", "posit8", "int8"])
    >>> [report.format.name for report in ranking]
    ['float8_e4m3fn', 'posit8', 'float8_e5m2', 'int8']
    """
    candidates = [get_format(fmt) for fmt in (FORMATS if formats is None else formats)]
    chosen = [fmt for fmt in candidates if bits is None or fmt.bits <= bits]
    if not chosen:
        least = f"; the narrowest given has {min(fmt.bits for fmt in candidates)} bits" if candidates else ""
        raise ValueError(f"no format is left with bits={bits!r}{least}")
    reports = [format_report(x, fmt, overflow=overflow) for fmt in chosen]
    return FormatReports(sorted(reports, key=lambda report: (-report.sqnr, report.format.bits)))


def _as_array(x: Any) -> Array:
    """Return an array; a torch tensor on the CPU lends its memory, without torch being imported here."""
    if hasattr(x, "detach") and hasattr(x, "numpy"):
        x = x.detach()
        try:
            return np.asarray(x.numpy())
        except TypeError:  # bfloat16 and the 8-bit floats, which NumPy has not: float32 holds them
            return np.asarray(x.float().numpy())
    return np.asarray(x)
