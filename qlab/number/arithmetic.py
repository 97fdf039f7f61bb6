"""Arithmetic as hardware of a format does it: operations on values of the format, each rounded once.

`add`, `sub`, `mul`, `div`, `fma` and `sqrt` work on each element; `sum`, `dot` and `matmul` add up along an axis and
round every partial sum, which is where low precision is lost or saved. The operands are first rounded to the format (to
nearest even, with the same overflow rule), so that only values of the format take part. A CPU tensor of torch lends its
memory and gets a tensor back (a CUDA tensor goes through the CPU); no gradient flows.

Formats are those of up to 24 significant bits whose values lie between ``2**-400`` and ``2**400``: of `qlab.FORMATS`
all but float64. So are integers of up to 24 bits, posits, takums, and tables if the boundaries between their values have
no more than 52 bits. A float of 16 bits or fewer whose exponent goes further (ten bits of it, say) is refused: its
products leave float64. What becomes of infinities, of NaN and of overflow is up to the format: the exact result, ``1 / 0
= inf`` say, is cast to it, and becomes infinity, NaN, NaR, or, for integers and others that have none of these, the
largest value. A NaN, given or made, in a format without NaN is a ValueError. (How an exact result is had in float64:
`qlab.number.error_free`; for takums, which are irrational: `qlab.number.logarithmic`.)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qlab._check import one_of
from qlab._pieces import Array, Scratch, walk
from qlab.number.codec import OVERFLOWS, Rules, cast, checked_noise
from qlab.number.formats import Format, get_format
from qlab.number.logarithmic import is_takum
from qlab.number.noise import philox, seed_of
from qlab.number.operands import checked_format, has_nan, has_zero, operands_of, refuse_nan, wide_format
from qlab.number.operations import exact
from qlab.number.reductions import LAST, Plan, matrix_product, parse_order, reduce_columns
from qlab.number.rounding import ROUNDINGS

__all__ = ["add", "div", "dot", "fma", "matmul", "mul", "sqrt", "sub", "sum"]


# --- element by element ----------------------------------------------------------------------------------------------
def add(
    x: Any, y: Any, fmt: str | Format, *, rounding: str = "nearest_even", overflow: str = "ieee", noise: Any = None,
    rng: Any = None,
) -> Any:  # fmt: skip
    """Return x + y in a format, rounded once.

    Parameters
    ----------
    x, y : array_like, of shapes that broadcast
        float16, bfloat16, float32, float64 or integers, or torch tensors. What is not a value of the format is rounded
        to it first.
    fmt : str or Format
        The format of operands and result, of at most 24 significant bits (or a takum).
    rounding : str
        As in `qlab.cast`: ``nearest_even``, ``nearest_away``, ``toward_zero``, ``up``, ``down``, ``to_odd``,
        ``stochastic``.
    overflow : {"ieee", "saturate"}
        As in `qlab.cast`; for the operands too.
    noise : array of uint8, uint16 or uint32, of the shape of the result
        For stochastic rounding: uniform random bits. (A float64 shows float32 no more than 29 of the bits that are to
        be rounded off: finer noise finds the rest cut.)
    rng : int or numpy.random.Generator
        Instead of `noise`, as in `qlab.cast`.

    Returns
    -------
    values : array of the broadcast shape
        In the promoted dtype of the operands if that holds every value of the format; else float32, else float64.
        `qlab.encode` gives their codes.

    Raises
    ------
    ValueError
        NaN, given or made, where the format has none; unknown names; wrong noise; a format that is too wide.
    TypeError
        If the operands are not real numbers.

    Notes
    -----
    Exact: the once-rounded result, bit for bit. x - x is +0, or -0 under ``down``. IEEE 754-2019, sections 5.4.1 and
    6.3. Book: chapter 05.

    Examples
    --------
    >>> import qlab
    >>> qlab.arithmetic.add([256.0, 65504.0], [1.0, 16.0], "bfloat16").tolist()
    [256.0, 65536.0]
    >>> qlab.arithmetic.add([256.0, 65504.0], [1.0, 16.0], "float16").tolist()
    [257.0, inf]
    >>> qlab.arithmetic.add([100.0, -3.0], [100.0, 1.0], "int8").tolist()
    [127.0, -2.0]
    """
    return _elementwise("add", {"x": x, "y": y}, fmt, Rules(rounding, overflow, "zero", noise, rng))


def sub(
    x: Any, y: Any, fmt: str | Format, *, rounding: str = "nearest_even", overflow: str = "ieee", noise: Any = None,
    rng: Any = None,
) -> Any:  # fmt: skip
    """Return x - y in a format, rounded once.

    Parameters, result, errors and contract are those of `add`.

    Notes
    -----
    Exact. IEEE 754-2019, section 5.4.1. Book: chapter 05.

    Examples
    --------
    >>> import qlab
    >>> qlab.arithmetic.sub(1.0, 2.0**-9, "float8_e4m3fn", rounding="toward_zero")
    np.float64(0.9375)
    """
    return _elementwise("sub", {"x": x, "y": y}, fmt, Rules(rounding, overflow, "zero", noise, rng))


def mul(
    x: Any, y: Any, fmt: str | Format, *, rounding: str = "nearest_even", overflow: str = "ieee", noise: Any = None,
    rng: Any = None,
) -> Any:  # fmt: skip
    """Return x * y in a format, rounded once.

    Parameters, result, errors and contract are those of `add`.

    Notes
    -----
    Exact: the product of two operands fits into float64. IEEE 754-2019, section 5.4.1. Book: chapter 05.

    Examples
    --------
    >>> import qlab
    >>> qlab.arithmetic.mul([1.5, 300.0, 0.0625], [1.125, 2.0, 0.0125], "float8_e4m3fn").tolist()
    [1.75, nan, 0.0]
    """
    return _elementwise("mul", {"x": x, "y": y}, fmt, Rules(rounding, overflow, "zero", noise, rng))


def div(
    x: Any, y: Any, fmt: str | Format, *, rounding: str = "nearest_even", overflow: str = "ieee", noise: Any = None,
    rng: Any = None,
) -> Any:  # fmt: skip
    """Return x / y in a format, rounded once.

    Parameters, result, errors and contract are those of `add`. A division by zero is an infinity, which is then cast:
    to NaN, to NaR or to the largest value where the format has no infinity.

    Notes
    -----
    Exact. IEEE 754-2019, sections 5.4.1 and 7.3. Book: chapter 05.

    Examples
    --------
    >>> import qlab
    >>> qlab.arithmetic.div([1.0, -1.0], [3.0, 0.0], "float8_e5m2").tolist()
    [0.3125, -inf]
    >>> qlab.arithmetic.div(0.0, 0.0, "float4_e2m1fn")
    Traceback (most recent call last):
    ValueError: div: 1 result is NaN (the first at index ()), and float4_e2m1fn has none; 0 / 0, inf / inf, inf - inf,
    0 * inf and roots of negative numbers are NaN: keep them out, or use a format that has NaN
    """
    return _elementwise("div", {"x": x, "y": y}, fmt, Rules(rounding, overflow, "zero", noise, rng))


def fma(
    x: Any, y: Any, z: Any, fmt: str | Format, *, rounding: str = "nearest_even", overflow: str = "ieee",
    noise: Any = None, rng: Any = None,
) -> Any:  # fmt: skip
    """Return x * y + z in a format, rounded once: the fused multiply-add.

    Parameters, result, errors and contract are those of `add`.

    Notes
    -----
    Exact: the product is not rounded, the sum is rounded to odd on the way. IEEE 754-2019, section 5.4.1; Boldo and
    Melquiond, "Emulation of FMA and correctly rounded sums", 2008. Book: chapter 05.

    Examples
    --------
    >>> import qlab
    >>> x = 1 + 2.0**-10  # x * x is 1 + 2**-9 + 2**-20
    >>> qlab.arithmetic.fma(x, x, -1.0, "float16") == 2.0**-9 + 2.0**-20
    np.False_
    >>> qlab.arithmetic.fma(x, x, -(1 + 2.0**-9), "float16") == 2.0**-20
    np.True_
    """

    return _elementwise("fma", {"x": x, "y": y, "z": z}, fmt, Rules(rounding, overflow, "zero", noise, rng))


def sqrt(
    x: Any, fmt: str | Format, *, rounding: str = "nearest_even", overflow: str = "ieee", noise: Any = None,
    rng: Any = None,
) -> Any:  # fmt: skip
    """Return the square root of x in a format, rounded once.

    Parameters, result, errors and contract are those of `add`. The root of -0 is -0, that of a negative number is NaN.

    Notes
    -----
    Exact. IEEE 754-2019, section 5.4.1. Book: chapter 05.

    Examples
    --------
    >>> import qlab
    >>> qlab.arithmetic.sqrt([2.0, 16.0, -1.0], "float8_e4m3fn").tolist()
    [1.375, 4.0, nan]
    """
    return _elementwise("sqrt", {"x": x}, fmt, Rules(rounding, overflow, "zero", noise, rng))


def _elementwise(operation: str, operands: dict[str, Any], fmt: str | Format, how: Rules) -> Any:
    """Do an operation exactly, or rounded to odd, in float64, piece by piece, and round the result to the format."""
    to = checked_format(operation, fmt)
    one_of("rounding", how.rounding, ROUNDINGS)
    one_of("overflow", how.overflow, OVERFLOWS)
    arrays, finish = operands_of(operation, operands, to, how.overflow)
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    noise, seed = checked_noise(how, shape)
    do = exact(operation, to, how.rounding)
    flat_noise = None if noise is None else noise.reshape(-1)
    sources = [np.broadcast_to(array, shape).reshape(-1) for array in arrays]
    result = np.empty(shape)
    target = result.reshape(-1)

    def work(piece: slice, scratch: Scratch) -> None:
        with np.errstate(all="ignore"):  # of this thread
            values = do(*(source[piece].astype(np.float64) for source in sources))
        bits = None if flat_noise is None else flat_noise[piece]
        if seed is not None:
            bits = philox(seed, piece.start, piece.stop)
        cast(values, to, rounding=how.rounding, overflow=how.overflow, nan=how.nan, noise=bits, out=target[piece])
        if not has_nan(to):
            np.copyto(target[piece], values, where=np.isnan(values))

    walk(result.size, work)
    refuse_nan(operation, result, to)
    return finish(result)


# --- along an axis ---------------------------------------------------------------------------------------------------
def sum(
    x: Any, fmt: str | Format, *, accumulator: str | Format | None = None, axis: int = -1,
    order: str | tuple[str, int] = "sequential", rounding: str = "nearest_even", overflow: str = "ieee",
    rng: Any = None,
) -> Any:  # fmt: skip
    """Return sums along an axis, every partial sum rounded to the accumulator's format.

    Parameters
    ----------
    x : array_like of shape (*lead, n, *trail)
        As in `add`.
    fmt : str or Format
        The format of the terms and of the result.
    accumulator : str or Format, optional
        The format of partial sums; `fmt` unless given: any that `fmt` may be, integers of up to 32 bits, or float64,
        which rounds to nearest even only. (Takums add up as themselves alone.) The result is cast to `fmt` at the end.
    axis : int
        What to add up along.
    order : str or tuple
        ``sequential``: s = 0; s = s + x[0]; s = s + x[1]; and so on. ``pairwise``: sum(x[:m]) + sum(x[m:]) with m = n
        // 2, down to single terms. ``blocked(k)`` or ``("blocked", k)``: blocks of k terms (the last may be shorter)
        are added up sequentially, then their sums, sequentially too. ``kahan``: compensated, y = x[i] - c; t = s + y; c
        = (t - s) - y; s = t, each of the four rounded.
    rounding, overflow : str
        As in `add`; for every operation.
    rng : int or numpy.random.Generator
        Seed of the noise for stochastic rounding, or a generator to draw it from: 32 bits for each operation, the same
        for any number of threads (`qlab.number.noise`).

    Returns
    -------
    values : array of shape (*lead, *trail)
        As in `add`. The sum of nothing, and that of minus zeros alone, is +0 (-0 under ``down``).

    Raises
    ------
    ValueError, TypeError
        As in `add`; an axis that is not there; an unknown order; a format without zero (float8_e8m0fnu).

    Notes
    -----
    Exact: each operation gives the once-rounded result, in the order stated. Higham, "Accuracy and Stability of
    Numerical Algorithms", 2002, chapter 4. Book: chapter 05.

    Examples
    --------
    >>> import numpy as np, qlab
    >>> ones = np.ones(4096)
    >>> for order in ("sequential", "blocked(64)", "pairwise", "kahan"):
    ...     print(order, qlab.arithmetic.sum(ones, "bfloat16", order=order))
    sequential 256.0
    blocked(64) 4096.0
    pairwise 4096.0
    kahan 4096.0
    """
    plan, own = _plan("sum", fmt, accumulator, order, rounding, overflow, rng)
    (array,), finish = operands_of("sum", {"x": x}, own, overflow)
    terms = np.moveaxis(array, np.lib.array_utils.normalize_axis_index(axis, array.ndim), 0)
    sums = reduce_columns(plan, _two_dimensional(terms))
    return finish(_last_rounding(plan, sums.reshape(terms.shape[1:]), own))


def dot(
    x: Any, y: Any, fmt: str | Format, *, product: str | Format | None = None,
    accumulator: str | Format | None = None, order: str | tuple[str, int] = "sequential", fma: bool = False,
    axis: int = -1, rounding: str = "nearest_even", overflow: str = "ieee", rng: Any = None,
) -> Any:  # fmt: skip
    """Return dot products along an axis, every product and every partial sum rounded.

    Parameters
    ----------
    x, y : array_like, of shapes that broadcast, of the same length along `axis`
        As in `add`.
    fmt : str or Format
        The format of the operands and of the result.
    product : str or Format, optional
        The format that each product is rounded to; that of the accumulator unless given. ``"float64"`` keeps it exact.
    accumulator : str or Format, optional
        The format of partial sums; `fmt` unless given. The result is cast to `fmt` at the end.
    order : str or tuple
        As in `sum`.
    fma : bool
        Whether products stay exact and each step is a fused multiply-add, rounded once (not for ``pairwise``, which has
        no running sum to add a product to).
    axis : int
        What to add up along, counted in the broadcast shape.
    rounding, overflow, rng
        As in `sum`.

    Returns
    -------
    values : array of the broadcast shape without `axis`
        As in `add`.

    Raises
    ------
    ValueError, TypeError
        As in `sum`; lengths that differ.

    Notes
    -----
    Exact: each operation gives the once-rounded result, in the order stated. Higham 2002, chapters 3 and 4; Blanchard,
    Higham, Lopez, Mary and Pranesh, "Mixed precision block fused multiply-add", 2020. Book: chapter 05.

    Examples
    --------
    >>> import numpy as np, qlab
    >>> x = np.full(4096, 0.1, np.float16)
    >>> qlab.arithmetic.dot(x, x, "float16")  # 32 + 0.01 is 32 again
    np.float16(32.0)
    >>> qlab.arithmetic.dot(x, x, "float16", accumulator="float32")
    np.float16(40.94)
    """
    plan, own = _plan("dot", fmt, accumulator, order, rounding, overflow, rng, product=product, fma=fma, factors=2)
    (a, b), finish = operands_of("dot", {"x": x, "y": y}, own, overflow)
    shape = np.broadcast_shapes(a.shape, b.shape)
    axis = np.lib.array_utils.normalize_axis_index(axis, len(shape)) - len(shape)  # counted from the end
    lengths = [array.shape[axis] if array.ndim >= -axis else None for array in (a, b)]
    if lengths[0] != lengths[1]:
        raise ValueError(
            f"dot: x of shape {a.shape} and y of shape {b.shape} differ in length along axis {axis}; "
            "both need that axis, equally long, while the other axes broadcast"
        )
    factors = [np.moveaxis(np.broadcast_to(array, shape), axis, 0) for array in (a, b)]
    sums = reduce_columns(plan, *map(_two_dimensional, factors))
    return finish(_last_rounding(plan, sums.reshape(factors[0].shape[1:]), own))


def matmul(
    a: Any, b: Any, fmt: str | Format, *, product: str | Format | None = None,
    accumulator: str | Format | None = None, order: str | tuple[str, int] = "sequential", fma: bool = False,
    rounding: str = "nearest_even", overflow: str = "ieee", rng: Any = None,
) -> Any:  # fmt: skip
    """Return the matrix product, every product and every partial sum rounded.

    Parameters
    ----------
    a, b : array_like of shapes (*lead, m, k) and (*lead, k, n)
        Leading axes broadcast; a vector of shape (k,) is a row on the left and a column on the right, as in
        `numpy.matmul`.
    fmt, product, accumulator, order, fma, rounding, overflow, rng
        As in `dot`.

    Returns
    -------
    values : array of shape (*lead, m, n)
        As in `add`.

    Raises
    ------
    ValueError, TypeError
        As in `dot`.

    Notes
    -----
    Exact: each element is what `dot` gives for a row and a column (but for the noise of stochastic rounding). Book:
    chapter 05.

    Examples
    --------
    >>> import numpy as np, qlab
    >>> a, b = np.full((2, 512), 0.5), np.full((512, 1), 2.0)
    >>> qlab.arithmetic.matmul(a, b, "float8_e4m3fn").tolist()
    [[16.0], [16.0]]
    >>> qlab.arithmetic.matmul(a, b, "float8_e4m3fn", accumulator="float16", overflow="saturate").tolist()
    [[448.0], [448.0]]
    """
    plan, own = _plan("matmul", fmt, accumulator, order, rounding, overflow, rng, product=product, fma=fma, factors=2)
    (left, right), finish = operands_of("matmul", {"a": a, "b": b}, own, overflow)
    row, column = left.ndim == 1, right.ndim == 1
    if not (left.ndim and right.ndim) or left.shape[-1] != right.shape[-1 if column else -2]:
        raise ValueError(
            f"matmul: a of shape {left.shape} and b of shape {right.shape} do not match; "
            "give shapes (*lead, m, k) and (*lead, k, n), or (k,)"
        )
    left, right = left[None] if row else left, right[:, None] if column else right
    lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    batch = math.prod(lead)
    stacked = [np.broadcast_to(m, lead + m.shape[-2:]).reshape(batch, *m.shape[-2:]) for m in (left, right)]
    result = matrix_product(plan, *stacked)
    shape = lead + (() if row else result.shape[1:2]) + (() if column else result.shape[2:])
    return finish(_last_rounding(plan, result.reshape(shape), own))


# --- what the reductions share ---------------------------------------------------------------------------------------
def _plan(
    operation: str, fmt: str | Format, accumulator: str | Format | None, order: object, rounding: str, overflow: str,
    rng: Any, *, product: str | Format | None = None, fma: bool = False, factors: int = 1,
) -> tuple[Plan, Format]:  # fmt: skip
    """Check the options of a reduction; return its plan and the format of operands and result."""
    one_of("rounding", rounding, ROUNDINGS)
    one_of("overflow", overflow, OVERFLOWS)
    own = checked_format(operation, fmt)
    to = own if accumulator is None else wide_format(operation, accumulator)
    formats = [get_format(one) for one in (fmt, accumulator, product) if one is not None]
    if any(map(is_takum, formats)) and (fma or len(set(formats)) > 1):
        raise ValueError(
            f"{operation}: takums are irrational, so that neither their exact products nor takums in other formats are "
            "had; leave out fma, product and accumulator: each product and each sum is then rounded to the takum"
        )
    if to.bits == 64 and rounding != "nearest_even":
        raise ValueError(
            f"{operation}: a float64 accumulator rounds to nearest_even, not {rounding!r}; "
            "use accumulator='float32', or rounding='nearest_even'"
        )
    for one in (own, to):
        if not has_zero(one):
            raise ValueError(
                f"{operation}: {one.name} has no zero to start a sum from; give a format and an accumulator that have"
            )
    order = parse_order(order)
    rounded_to = None if fma or factors == 1 else to if product is None else wide_format(operation, product)
    if fma and product is not None:
        raise ValueError(
            f"{operation}: product={product!r} rounds products, and fma=True does not; leave one of them out"
        )
    if fma and order[0] == "pairwise":
        raise ValueError(
            f"{operation}: order='pairwise' adds sums to sums, fma=True a product to a running sum; use another order, "
            "or product='float64' for exact products"
        )
    plan = Plan(
        operation, own, to, rounded_to, factors=factors, order=order, rounding=rounding, overflow=overflow,
        seed=_seed(rounding, rng),
    )  # fmt: skip
    return plan, own


def _seed(rounding: str, rng: Any) -> int | None:
    if rounding == "stochastic":
        if rng is None:
            raise ValueError("rounding='stochastic' needs rng: an int (the seed) or a numpy.random.Generator")
        return seed_of(rng)
    if rng is not None:
        raise ValueError(f"rng is for rounding='stochastic', not for {rounding!r}; leave it out")
    return None


def _last_rounding(plan: Plan, sums: Array, fmt: Format) -> Array:
    """Cast sums from the accumulator's format to that of the result."""
    if plan.accumulator == fmt:
        return sums
    refuse_nan(plan.operation, sums, fmt)
    rng = None if plan.seed is None else plan.seed ^ LAST
    return np.asarray(cast(sums, fmt, rounding=plan.rounding, overflow=plan.overflow, rng=rng))


def _two_dimensional(terms: Array) -> Array:
    return terms.reshape(len(terms), math.prod(terms.shape[1:]))
