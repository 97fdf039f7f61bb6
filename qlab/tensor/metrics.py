"""The anatomy of a quantizer's error: how much of it is clipping, how much rounding, how much the storage of scales.

`error_report` takes one scheme apart and says how far it is from what its bits could buy at best; `compare_schemes` sets
several side by side. Both quantize for real: bits are those of the bytes that are stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qlab._pieces import Array
from qlab._progress import Progress
from qlab.backend.dispatch import is_tensor
from qlab.number.arrays import numbers
from qlab.tensor.anatomy import Anatomy
from qlab.tensor.blocks import scale_shape
from qlab.tensor.bounds import Fit, decibels, fit_distribution, lloyd_max_error, rate_distortion_error
from qlab.tensor.quantize import quantize
from qlab.tensor.scheme import Fitted, Scheme, get_scheme

if TYPE_CHECKING:
    from qlab.show.figure import Figure
    from qlab.show.table import Table

__all__ = ["Comparison", "ErrorReport", "WorstBlock", "compare_schemes", "error_report"]

WORST = 5


@dataclass(frozen=True)
class WorstBlock:
    """A block that a scheme serves badly.

    Attributes
    ----------
    index : tuple of int
        Its place among the scales, as in ``QTensor.scale[index]``.
    relative_error : float
        Root of its squared error over its energy.
    absmax : float
        Its largest magnitude.
    """

    index: tuple[int, ...]
    relative_error: float
    absmax: float


@dataclass(frozen=True)
class ErrorReport:
    """The error of quantizing an array and bringing it back. Shows itself as tables.

    Attributes
    ----------
    scheme : Scheme
        The scheme.
    bits_per_value : float
        Of all that is stored.
    mse : float
        Mean squared error: ``clipping + rounding + storage``.
    clipping, rounding, storage : float
        Its parts, see `error_report`; `storage` may be negative.
    sqnr : float
        Energy of the values over that of their errors, in dB.
    relative_rmse : float
        Root of the same ratio, turned over.
    max_error : float
        The largest magnitude of an error.
    clipped : float
        Share of the elements that are clipped.
    worst_blocks : tuple of WorstBlock
        The five (or fewer) blocks with the largest relative error, the worst first.
    distribution : {"normal", "laplace", "uniform"}
        The one that fits the array best.
    lloyd_max_sqnr, bound_sqnr : float
        What that distribution would have with a Lloyd-Max quantizer of as many bits as a code has, and at its
        rate-distortion bound for the bits per value; in dB.
    """

    scheme: Scheme
    bits_per_value: float
    mse: float
    clipping: float
    rounding: float
    storage: float
    sqnr: float
    relative_rmse: float
    max_error: float
    clipped: float
    worst_blocks: tuple[WorstBlock, ...]
    distribution: str
    lloyd_max_sqnr: float
    bound_sqnr: float

    @property
    def to_lloyd_max(self) -> float:
        """By how many dB Lloyd-Max is better; negative where the scales of blocks, which it lacks, weigh more."""
        return _distance(self.lloyd_max_sqnr, self.sqnr)

    @property
    def to_bound(self) -> float:
        """By how many dB the rate-distortion bound is better; negative where the array is not like the distribution."""
        return _distance(self.bound_sqnr, self.sqnr)

    def tables(self) -> tuple[Table, ...]:
        """Return the report's tables: in short; the error's parts; what the bits could buy; the worst blocks."""
        from qlab.show.table import Table

        parts = {
            "clipping_error": self.clipping, "rounding_error": self.rounding, "scale_storage": self.storage,
            "total_error": self.mse,
        }  # fmt: skip
        shares = [(name, part, 100 * part / self.mse if self.mse else 0.0) for name, part in parts.items()]
        fitted = f"{self.distribution}_distribution"
        best = [
            ("lloyd_max", fitted, float(self.scheme.bits), self.lloyd_max_sqnr, self.to_lloyd_max),
            ("rate_distortion", fitted, self.bits_per_value, self.bound_sqnr, self.to_bound),
        ]
        blocks = [(", ".join(map(str, b.index)) or "0", b.relative_error, b.absmax) for b in self.worst_blocks]
        return (
            Comparison([self]).table(),
            Table(("part", "mse", "share"), shares),
            Table(("best_possible", "distribution", "bits_per_value", "sqnr", "better_by"), best),
            Table(("worst_block", "relative_error", "absmax"), blocks),
        )

    def __repr__(self) -> str:
        return "\n\n".join(map(repr, self.tables()))

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self.tables())


class Comparison(tuple[ErrorReport, ...]):
    """Several reports, by their bits per value and, where these are equal, from the best; shows itself as one table."""

    def table(self) -> Table:
        """Return the table: a row for each scheme."""
        from qlab.show.table import Table

        rows = [(str(r.scheme), r.bits_per_value, r.sqnr, r.relative_rmse, r.max_error, 100 * r.clipped) for r in self]
        return Table(("scheme", "bits_per_value", "sqnr", "relative_rmse", "max_error", "clipped"), rows)

    def front(self) -> Comparison:
        """Return the schemes that none with fewer or as many bits is as good as: the Pareto front."""
        found: list[ErrorReport] = []
        for report in sorted(self, key=lambda r: (r.bits_per_value, -r.sqnr)):
            if not found or report.sqnr > found[-1].sqnr:
                found.append(report)
        return Comparison(found)

    def figure(self) -> Figure:
        """Return the figure of bits per value against SQNR: `qlab.show.rate_distortion`."""
        from qlab.show.tensor import rate_distortion

        return rate_distortion(self)

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def error_report(x: Any, scheme: str | Scheme) -> ErrorReport:
    """Quantize an array, bring it back, and say where the error comes from.

    Parameters
    ----------
    x : array_like or tensor of real numbers, any shape that the scheme's blocks fit
        Finite values.
    scheme : str or Scheme
        A name, a notation (see `qlab.get_scheme`) or a Scheme.

    Returns
    -------
    ErrorReport
        Shown as tables.

    Raises
    ------
    ValueError
        If `x` is empty, holds infinities or NaN, or does not fit the blocks; if the scheme is unknown.
    TypeError
        If `x` is not made of real numbers.

    Notes
    -----
    With x the array, y what comes back, and u what would come back if scales and zeros were kept as the rule finds them
    (in float32; float64 for float64):

    - ``clipping``: the mean over all elements of ``(x - u)**2`` where an element is clipped, 0 elsewhere. It is clipped if
      it lies beyond the last value of its block's codes by more than half of the last step, so that rounding does not
      explain its error.
    - ``rounding``: the same mean over the elements that are not clipped.
    - ``storage``: ``mean((x - y)**2)`` less these two: what it costs (or, by chance, gains) to store scales and minima in a
      narrower format or by another scheme. Zero if they are not. That a rule takes powers of two, or that a zero point
      is an integer, belongs to the rule: its cost is in clipping and rounding. A GGUF type's own search for scales is
      compared with the plain rule of its notation: here what it gains is in `storage`.

    `lloyd_max_sqnr` and `bound_sqnr` are of the likeliest of the normal, Laplace and uniform distributions. The bound is
    Shannon's rate-distortion function for the normal one, and for the others his lower bound to it; each bit moves it by
    6.02 dB. Both are right for independent elements only, and schemes with blocks may beat Lloyd-Max, since they spend
    more than the code's bits. Sums are of float64: a tolerance of 1e-12. Needs the memory of two arrays like `x`.
    Book: part III.

    Examples
    --------
    >>> import numpy as np, qlab
    >>> report = qlab.error_report(np.float32([7, 7, 3, -1, 0.5, 50]), "int4-p80")
    >>> report.clipping > 0.99 * report.mse, report.storage
    (True, 0.0)
    >>> x = np.random.default_rng(0).standard_normal(2**16).astype(np.float32)
    >>> report = qlab.error_report(x, "nf4")
    >>> report.distribution, round(report.sqnr, 1), round(report.to_bound, 1)
    ('normal', 20.7, 6.4)
    """
    scheme, array = get_scheme(scheme), _real_numbers(x)
    return _report(array, scheme, fit_distribution(array))


def compare_schemes(x: Any, schemes: Iterable[str | Scheme]) -> Comparison:
    """Compare what several schemes make of an array.

    Parameters
    ----------
    x : array_like or tensor of real numbers, any shape that the blocks of all schemes fit
        Finite values.
    schemes : iterable of str or Scheme
        Names, notations or Schemes.

    Returns
    -------
    Comparison
        A tuple of `ErrorReport`, by bits per value; shown as a table. ``.figure()`` draws it.

    Raises
    ------
    ValueError
        If `schemes` is empty, one is unknown or does not fit the shape of `x` (the message says which); if `x` is empty
        or holds infinities or NaN.
    TypeError
        If `x` is not made of real numbers, or `schemes` is a single one.

    Notes
    -----
    As `error_report` for each. Where that takes more than two seconds in a terminal, a line says how far it is.
    Book: part III.

    Examples
    --------
    >>> import numpy as np, qlab
    >>> x = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    >>> qlab.compare_schemes(x, ["int8", "nf4", "int4-b32/f16"])
    scheme        bits_per_value   sqnr  relative_rmse  max_error  clipped
    nf4                      4.5  20.72        0.09207     0.4916        0
    int4-b32/f16             4.5  20.41        0.09537     0.2776        0
    int8                   8.008     41       0.008912    0.01535        0
    """
    if isinstance(schemes, (str, Scheme)):
        raise TypeError(f"schemes is a single one, {schemes!r}; give a list of them, or use error_report for one")
    chosen = [get_scheme(scheme) for scheme in schemes]
    if not chosen:
        raise ValueError("schemes is empty; give at least one, such as ['int8', 'nf4'] (qlab.SCHEMES lists all names)")
    array = _real_numbers(x)
    fit = fit_distribution(array)
    for scheme in chosen:
        with _naming(scheme):
            scale_shape(scheme.blocks, array.shape)
    reports = []
    with Progress(len(chosen)) as progress:
        for scheme in chosen:
            progress.begin(str(scheme))
            with _naming(scheme):
                reports.append(_report(array, scheme, fit))
    return Comparison(sorted(reports, key=lambda r: (r.bits_per_value, -r.sqnr)))


@contextmanager
def _naming(scheme: Scheme) -> Iterator[None]:
    """Errors say of which scheme they are."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"scheme {str(scheme)!r}: {error}") from error


def _report(array: Array, scheme: Scheme, fit: Fit) -> ErrorReport:
    stored = quantize(array, scheme)
    fmt = stored.scheme.format
    assert not isinstance(fmt, Fitted)
    kept = replace(stored.scheme, scale=replace(scheme.scale, stored=None, late=False), layout=None)
    exact = stored if kept == stored.scheme else quantize(array, kept)
    kind = exact.scale.dtype
    unrounded = np.asarray(exact.dequantize(dtype=kind)).reshape(array.shape)
    values = unrounded if stored is exact else np.asarray(stored.dequantize(dtype=kind)).reshape(array.shape)
    if values is not unrounded and np.array_equal(values, unrounded):
        values = unrounded
    anatomy = Anatomy(np.ascontiguousarray(array).reshape(array.shape), unrounded, values, kept, fmt, fit.unit)
    sums = anatomy.sums(exact.scale, exact.zero, exact.offset or 0.0)

    def mean(key: str) -> float:
        return math.fsum(sums[key].reshape(-1)) / array.size

    clipping, rounding = mean("clipping"), mean("rounding")
    mse = clipping + rounding if values is unrounded else mean("total")
    storage = mse - (clipping + rounding)
    squares = {"mse": mse, "clipping": clipping, "rounding": rounding, "storage": storage}
    error = lloyd_max_error(fit.distribution, scheme.bits)
    bound = rate_distortion_error(fit.distribution, stored.bits_per_value)
    return ErrorReport(
        scheme=scheme,
        bits_per_value=stored.bits_per_value,
        **{key: part / fit.unit / fit.unit for key, part in squares.items()},  # exact: the unit is a power of two
        sqnr=decibels(fit.energy, mse),
        relative_rmse=math.sqrt(mse / fit.energy) if mse else 0.0,
        max_error=float(sums["max_error"].max()) / fit.unit,
        clipped=mean("clipped"),
        worst_blocks=_worst(sums, fit.unit),
        distribution=fit.distribution,
        lloyd_max_sqnr=decibels(fit.energy, fit.variance * error),
        bound_sqnr=decibels(fit.energy, fit.variance * bound),
    )


def _distance(best: float, reached: float) -> float:
    """In dB; nothing is left to gain where both are without error."""
    return 0.0 if best == reached else best - reached


def _worst(sums: dict[str, Array], unit: float) -> tuple[WorstBlock, ...]:
    shape = sums["total"].shape
    total, energy, absmax = (sums[key].reshape(-1) for key in ("total", "energy", "absmax"))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(total > 0, np.sqrt(total / energy), 0.0)
    worst = np.argsort(-relative, kind="stable")[:WORST]
    return tuple(
        WorstBlock(
            tuple(int(i) for i in np.unravel_index(place, shape)), float(relative[place]), float(absmax[place]) / unit
        )
        for place in worst.tolist()
    )


def _real_numbers(x: Any) -> Array:
    """Return an array; of a tensor on any device a copy on the CPU, the narrow floats as float32."""
    if is_tensor(x):
        x = x.detach().cpu()
        x = (x.float() if x.is_floating_point() and x.element_size() < 4 else x).numpy()
    return numbers(x)
