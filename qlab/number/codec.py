"""encode, decode, cast: values to codes and back, each value rounded once.

The verbs check their arguments, choose the float to work in, and walk the array in pieces that stay in the cache
(`qlab._pieces`); what happens to a piece is in `qlab.number.lanes`. float16, bfloat16, float32 and integers of up to 16
bits are worked on as float32 where that holds every value of the format, all else as float64: both hold them exactly.
In long arrays of float16 and bfloat16 what becomes of each of the 65536 values is looked up (`qlab.number.halves`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from qlab._check import one_of
from qlab._pieces import Array, Scratch, parts_of, walk
from qlab.backend.dispatch import is_tensor
from qlab.number.arrays import flat, flat_output, loader, numbers, output, same_memory
from qlab.number.bits import FLOAT32, FLOAT64, Layout
from qlab.number.decoding import decoder_of
from qlab.number.formats import FloatFormat, Format, IntFormat, TableFormat, get_format
from qlab.number.halves import BFLOAT16, PATTERNS, Lookup, is_bfloat16, is_half
from qlab.number.nans import NaNFound, holds_nan, refuse_nan, zero_nan
from qlab.number.noise import philox, seed_of
from qlab.number.policies import PeerExponentLane, overflow_of, rounds_twice
from qlab.number.rounder import Lane, Rounder, lane_of
from qlab.number.rounding import ROUNDINGS

__all__ = ["GRADIENTS", "OVERFLOWS", "Rules", "cast", "code_dtype", "decode", "encode", "value_dtype"]

OVERFLOWS = ("ieee", "saturate")
NAN_RULES = ("raise", "zero")
GRADIENTS = ("pass", "clipped")

def code_dtype(fmt: str | Format) -> np.dtype[Any]:
    """Return the dtype of a format's codes: uint8 up to 8 bits, int32 up to 32, int64 above."""
    bits = get_format(fmt).bits
    return np.dtype(np.uint8 if bits <= 8 else np.int32 if bits <= 32 else np.int64)


def value_dtype(fmt: str | Format) -> np.dtype[Any]:
    """Return float32, or float64 where float32 cannot hold every value of the format."""
    return np.dtype(np.float32 if holds(np.dtype(np.float32), get_format(fmt)) else np.float64)


@lru_cache(maxsize=512)
def holds(dtype: np.dtype[Any], fmt: Format) -> bool:
    """Whether a NumPy float dtype holds every value of the format."""
    info = np.finfo(dtype)
    if isinstance(fmt, FloatFormat):
        fine = fmt.mantissa_bits <= info.nmant and fmt.emin - fmt.mantissa_bits >= info.minexp - info.nmant
        return bool(fine and fmt.max <= float(info.max))
    values = np.array([fmt.min, fmt.max - 1, fmt.max]) if isinstance(fmt, IntFormat) else fmt.values()
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(dtype).astype(np.float64), values, equal_nan=True))


def encode(
    x: Any,
    fmt: str | Format,
    *,
    rounding: str = "nearest_even",
    overflow: str = "ieee",
    nan: str = "raise",
    noise: Any = None,
    rng: Any = None,
    policy: str | None = None,
    generator: Any = None,
    out: Any = None,
) -> Any:
    """Round values to a format and return their codes (bit patterns).

    Parameters
    ----------
    x : array_like of any shape
        float16, bfloat16, float32, float64 or integers.
    fmt : str or Format
        The target, or its name.
    rounding : str
        ``nearest_even``, ``nearest_away`` (ties away from zero), ``toward_zero``, ``up``, ``down``, ``to_odd`` (the
        neighbour with an odd code unless exact) or ``stochastic``.
    overflow : {"ieee", "saturate"}
        ``ieee``: infinity where IEEE 754 section 7.4 calls for it; NaN if the format has no infinity; the largest value
        if it has neither. ``saturate``: the largest value, for infinities too.
    nan : {"raise", "zero"}
        What to do with a NaN where the format has none.
    noise : array of uint8, uint16 or uint32, shape of x
        For stochastic rounding: uniform random bits, as many as the dtype has. A value at the fraction p of the way to
        its upper neighbour (in magnitude) goes there with probability p.
    rng : int or numpy.random.Generator
        Instead of `noise`: the seed of a counter-based stream of 32 noise bits an element (`qlab.number.noise`), or a
        generator that a seed is drawn from. The stream is the same for NumPy, torch and any number of threads.
    generator : torch.Generator
        Instead of `rng`, for tensors.
    policy : {"torch", "ml_dtypes", "ocp"}, optional
        Do as that library or specification does, bit for bit (`qlab.number.policies`), instead of `overflow` and `nan`;
        for arrays and CPU tensors.
    out : array, optional
        Where to write the codes: shape of `x`, dtype of the result.

    Returns
    -------
    codes : array of the shape of x
        uint8 for formats of up to 8 bits, int32 up to 32, int64 above. NaN gives the format's one quiet NaN.

    Raises
    ------
    ValueError
        NaN for a format without NaN (it says how many, and where the first is); unknown names; a wrong `out`.
    TypeError
        If `x` is not made of real numbers.

    Notes
    -----
    Exact: bit for bit the same everywhere, each value rounded once. IEEE 754-2019, sections 4.3 and 7.4. Book: chapter 04.
    A torch tensor gives a tensor on its device. Under ``torch.compile`` this is one operator of the graph, which keeps to
    the same rules when it runs.

    Examples
    --------
    >>> import qlab
    >>> qlab.encode([1.0, 448.0, 500.0, -0.0], "float8_e4m3fn")
    array([ 56, 126, 127, 128], dtype=uint8)
    """
    how = Rules(rounding, overflow, nan, noise, _either(rng, generator), policy)
    if is_tensor(x):
        from qlab.backend import torch_ops

        return torch_ops.encode(x, fmt, how, out)
    return convert(x, get_format(fmt), how, out, to_codes=True)


def cast(
    x: Any,
    fmt: str | Format,
    *,
    rounding: str = "nearest_even",
    overflow: str = "ieee",
    nan: str = "raise",
    noise: Any = None,
    rng: Any = None,
    policy: str | None = None,
    generator: Any = None,
    gradient: str = "pass",
    out: Any = None,
) -> Any:
    """Round values to a format and return them as values: ``decode(encode(x))`` in one pass.

    Parameters
    ----------
    x, fmt, rounding, overflow, nan, noise, rng, generator, policy, out
        As in `encode`; `out` may be `x` itself.
    gradient : {"pass", "clipped"}
        For tensors that require one: the gradient passes straight through; or it is zero where values beyond the
        format's range were clipped.

    Returns
    -------
    values : array of the shape of x
        In the dtype of `x` if that holds every value of the format; else float32, else float64.

    Raises
    ------
    ValueError, TypeError
        As in `encode`.

    Notes
    -----
    Exact: bit for bit the same everywhere, each value rounded once. Minus zero is kept where the format has it.
    Book: chapters 03 and 04.

    Examples
    --------
    >>> import numpy as np, qlab
    >>> qlab.cast(np.float32([3.14159265, 70000, -1e-9]), "float16")
    array([ 3.140625,       inf, -0.      ], dtype=float32)
    >>> qlab.cast(464, "fp8_e4m3"), qlab.cast(500, "fp8_e4m3", overflow="saturate")
    (np.float64(448.0), np.float64(448.0))
    """
    one_of("gradient", gradient, GRADIENTS)
    how = Rules(rounding, overflow, nan, noise, _either(rng, generator), policy)
    if is_tensor(x):
        from qlab.backend import torch_ops

        return torch_ops.cast(x, fmt, how, out, gradient)
    return convert(x, get_format(fmt), how, out, to_codes=False)


def decode(codes: Any, fmt: str | Format, *, dtype: Any = None, out: Any = None) -> Any:
    """Return the values that codes stand for.

    Parameters
    ----------
    codes : integer array_like of any shape
        Bit patterns; bits above the format's width are ignored.
    fmt : str or Format
        The format they belong to, or its name.
    dtype : dtype, optional
        float16, float32 or float64; float32 unless given, or float64 where float32 cannot hold the format.
    out : array, optional
        Where to write the values: shape of `codes`, dtype of the result.

    Returns
    -------
    values : array of the shape of codes

    Raises
    ------
    ValueError
        If `dtype` cannot hold every value of the format, or a code is beyond the end of a table.
    TypeError
        If `codes` are not integers.

    Notes
    -----
    Exact. Book: chapter 02.

    Examples
    --------
    >>> import qlab
    >>> qlab.decode([0x38, 0x7e, 0x7f], "float8_e4m3fn")
    array([  1., 448.,  nan], dtype=float32)
    """
    if is_tensor(codes):
        from qlab.backend import torch_ops

        return torch_ops.decode(codes, fmt, dtype, out)
    fmt, array = get_format(fmt), np.asarray(codes)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"codes are integers (bit patterns), not {array.dtype}; to round values use encode or cast")
    kind = value_dtype(fmt) if dtype is None else np.dtype(dtype)
    if kind.kind != "f" or not holds(kind, fmt):
        raise ValueError(f"dtype={kind} cannot hold every value of {fmt.name}; use {value_dtype(fmt)}")
    if isinstance(fmt, TableFormat) and array.size:
        top = int((array & ((1 << fmt.bits) - 1)).max())
        if top >= len(fmt.table):
            raise ValueError(f"code {top} is beyond the table of {fmt.name}, whose codes are 0 to {len(fmt.table) - 1}")
    result = output(out, array, kind)
    source, target = flat(array), flat_output(result)
    work = decoder_of(fmt, source.dtype, kind)
    walk(array.size, lambda piece, scratch: work(source[piece], target[piece], scratch))
    return result[()] if out is None else result


# --- what the verbs share --------------------------------------------------------------------------------------------
class Rules(NamedTuple):
    """How to round: the options of `encode`, unchecked."""

    rounding: str
    overflow: str
    nan: str
    noise: Any = None
    rng: Any = None
    policy: str | None = None


def _either(rng: Any, generator: Any) -> Any:
    if rng is not None and generator is not None:
        raise ValueError("give either rng or generator, not both")
    return rng if generator is None else generator


def check_rules(how: Rules) -> None:
    """Refuse unknown words among the rules."""
    one_of("rounding", how.rounding, ROUNDINGS)
    one_of("overflow", how.overflow, OVERFLOWS)
    one_of("nan", how.nan, NAN_RULES)


def convert(x: Any, fmt: Format, how: Rules, out: Array | None, *, to_codes: bool) -> Any:
    array = x if isinstance(x, np.ndarray) and x.dtype == BFLOAT16 else numbers(x)
    lane, layout = _choose_lane(array.dtype, fmt, how)
    noise, seed = checked_noise(how, array.shape)
    kind = code_dtype(fmt) if to_codes else cast_dtype(array.dtype, fmt)
    has_nan = getattr(fmt, "nan_code", None) is not None
    refuses_nan = not has_nan and how.nan == "raise" and how.policy != "ml_dtypes"
    if refuses_nan and out is not None:
        refuse_nan(array, fmt)  # before anything is written
    result = output(out, array, kind)
    if result is not array and np.may_share_memory(result, array) and not same_memory(result, array):
        array = array.copy()
    source, target, flat_noise = flat(array), flat_output(result), None if noise is None else flat(noise)
    exact_in_float64 = not isinstance(fmt, FloatFormat) or fmt.bits <= 32
    load = loader(array.dtype, layout, last_rounding=None if exact_in_float64 else how.rounding)
    rounder = Rounder(lane, layout, fmt, np.dtype(np.float32) if is_bfloat16(kind) else kind)

    def work(piece: slice, scratch: Scratch) -> None:
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):  # of this thread
            one_piece(piece, scratch)

    def one_piece(piece: slice, scratch: Scratch) -> None:
        bits = None if flat_noise is None else flat_noise[piece]
        if seed is not None:
            bits = philox(seed, piece.start, piece.stop, scratch)
        values = load(source[piece], scratch, bits)
        if not has_nan and holds_nan(values, scratch):
            if refuses_nan:
                raise NaNFound
            values = zero_nan(values, opposite=how.policy == "ml_dtypes")
        if to_codes:
            np.copyto(target[piece], lane.encode(values, scratch, bits), casting="unsafe")
        else:
            rounder.cast(values, target[piece], scratch, bits)

    def look_up(piece: slice, scratch: Scratch) -> None:
        if refuses_nan and holds_nan(source[piece], scratch):
            raise NaNFound
        table(source[piece], target[piece], scratch)

    try:
        if is_half(array.dtype) and array.size >= PATTERNS and how.rounding != "stochastic":
            table = _lookup(array.dtype, fmt, how._replace(nan="zero"), to_codes)
            walk(array.size, look_up)
        else:
            walk(array.size, work)
    except NaNFound:
        refuse_nan(array, fmt)
    return result[()] if out is None else result


@lru_cache(maxsize=32)
def _lookup(dtype: np.dtype[Any], fmt: Format, how: Rules, to_codes: bool) -> Lookup:
    patterns = np.arange(PATTERNS, dtype=np.uint16).view(dtype)
    parts = [convert(patterns[part], fmt, how, None, to_codes=to_codes) for part in parts_of(PATTERNS)]
    return Lookup(np.concatenate(parts))


def _choose_lane(dtype: np.dtype[Any], fmt: Format, how: Rules) -> tuple[Lane, Layout]:
    """Check the rules, and return the lane that follows them and the float it works in."""
    check_rules(how)
    rounding, layout = how.rounding, _layout(dtype, fmt)
    if how.policy is None:
        return lane_of(fmt, layout, rounding, how.overflow), layout
    overflow = overflow_of(how.policy, fmt, rounding)
    if dtype == np.float64 and rounds_twice(how.policy, fmt):
        layout = _layout(np.dtype(np.float32), fmt)
    if fmt == get_format("float8_e8m0fnu") and how.policy != "ocp":
        return PeerExponentLane(how.policy), FLOAT32
    return lane_of(fmt, layout, rounding, overflow), layout


def cast_dtype(dtype: np.dtype[Any], fmt: Format) -> np.dtype[Any]:
    """Return the dtype of cast's result."""
    if dtype.kind == "f" and holds(dtype, fmt):
        return dtype
    if is_bfloat16(dtype) and isinstance(fmt, FloatFormat) and bfloat16_holds(fmt):
        return dtype
    if dtype.kind in "iu" and dtype.itemsize == 8:
        return np.dtype(np.float64)
    return value_dtype(fmt)


def bfloat16_holds(fmt: FloatFormat) -> bool:
    """Whether bfloat16 holds every value of the format."""
    return fmt.mantissa_bits <= 7 and fmt.emin - fmt.mantissa_bits >= -133 and fmt.max <= 2.0**127 * (2 - 2**-7)


def _layout(dtype: np.dtype[Any], fmt: Format) -> Layout:
    """Return the float to work in: it holds the input and every value of the format."""
    narrow = dtype.itemsize <= 2 or dtype == np.float32
    return FLOAT32 if narrow and holds(np.dtype(np.float32), fmt) else FLOAT64


def checked_noise(how: Rules, shape: tuple[int, ...]) -> tuple[Array | None, int | None]:
    """Return the noise, or the seed to make it from; neither unless rounding is stochastic."""
    if how.rounding != "stochastic":
        for name, value in (("noise", how.noise), ("rng", how.rng)):
            if value is not None:
                raise ValueError(f"{name} is for rounding='stochastic', not for {how.rounding!r}; leave it out")
        return None, None
    if (how.noise is None) == (how.rng is None):
        raise ValueError(
            "rounding='stochastic' needs either noise (an array of uint8, uint16 or uint32 of the shape of x) "
            "or rng (an int seed or a numpy.random.Generator)"
        )
    if how.rng is not None:
        return None, seed_of(how.rng)
    bits: Array = np.asarray(how.noise)
    if bits.dtype not in (np.uint8, np.uint16, np.uint32) or bits.shape != shape:
        raise ValueError(
            f"noise is {bits.dtype} of shape {bits.shape}; it must be uint8, uint16 or uint32 of the shape of x, {shape}"
        )
    return bits, None
