"""`qlab.arithmetic.dot` of 4096 products in 256 rows beside Python loops that simulate the same, and the elementwise verbs.

The loops do a few rows, and the time per multiply-add is compared: one rounds with `struct` (any Python), one is made of
NumPy's float16 scalars (for float16 alone, and the fastest there is), one calls `qlab.cast` (any format), and one rounds all
rows at once with pychop, where that is installed.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable

import numpy as np

import qlab
from benchmarks.timing import progress, side_by_side

DOTS: tuple[tuple[str, dict[str, object]], ...] = (
    ("float16", {}), ("float16", {"order": "blocked(64)"}), ("float16", {"order": "pairwise"}),
    ("float16", {"order": "kahan"}), ("float16", {"fma": True}), ("float16", {"accumulator": "float32"}),
    ("float16", {"rounding": "stochastic", "rng": 0}), ("bfloat16", {}), ("bfloat16", {"accumulator": "float32"}),
    ("float8_e4m3fn", {"accumulator": "float16"}), ("float8_e4m3fn", {}),
)  # fmt: skip
VERBS = ("add", "mul", "div", "sqrt", "fma")


def struct_loop(x: np.ndarray, y: np.ndarray) -> list[float]:
    half, sums = struct.Struct("e"), []
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        total = 0.0
        for u, v in zip(a, b, strict=True):
            product = half.unpack(half.pack(u * v))[0]
            total = half.unpack(half.pack(total + product))[0]
        sums.append(total)
    return sums


def scalar_loop(x: np.ndarray, y: np.ndarray) -> list[np.float16]:
    sums = []
    for a, b in zip(x, y, strict=True):
        total = np.float16(0)
        for u, v in zip(a, b, strict=True):
            total = total + u * v
        sums.append(total)
    return sums


def cast_loop(x: np.ndarray, y: np.ndarray) -> list[float]:
    sums = []
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        total = 0.0
        for u, v in zip(a, b, strict=True):
            total = float(qlab.cast(total + float(qlab.cast(u * v, "float16")), "float16"))
        sums.append(total)
    return sums


def pychop_loop(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    from pychop import Chop

    chop, total = Chop(exp_bits=5, sig_bits=10), np.zeros(len(x))
    for u, v in zip(x.T.astype(np.float64), y.T.astype(np.float64), strict=True):
        total = chop(total + chop(u * v))
    return total


def run(rows: int = 256, length: int = 4096) -> list[dict[str, object]]:
    x, y = np.random.default_rng(0).standard_normal((2, rows, length)).astype(np.float16)
    qlab.set_num_threads(1)
    table = []
    expected = qlab.arithmetic.dot(x, y, "float16")
    loops: dict[str, tuple[slice, Callable[[np.ndarray, np.ndarray], object]]] = {
        "struct": (slice(4), struct_loop), "np.float16": (slice(4), scalar_loop), "qlab.cast": (slice(1), cast_loop),
    }  # fmt: skip
    if importlib.util.find_spec("pychop") is not None:
        loops["pychop"] = slice(None), pychop_loop
    of_loop = {}
    for name, (some, loop) in loops.items():
        progress(f"arithmetic: loop of {name}")
        part = x[some], y[some]
        assert np.array_equal(loop(*part), expected[some])
        ns = side_by_side({name: lambda loop=loop, part=part: loop(*part)}, elements=part[0].size, repeats=3)  # type: ignore[misc]
        of_loop[name] = ns[name]
    for fmt, options in DOTS:
        progress(f"arithmetic: dot {fmt} {options}")
        ns = side_by_side(
            {"dot": lambda fmt=fmt, options=options: qlab.arithmetic.dot(x, y, fmt, **options)},  # type: ignore[misc]
            elements=x.size, repeats=5,
        )  # fmt: skip
        words = ", ".join(f"{key}={value}" for key, value in options.items())
        row = {"what": f"dot {fmt} {words}".strip(), "ns": round(ns["dot"], 2)}
        table.append(row | {f"times_{name}": round(slow / ns["dot"], 1) for name, slow in of_loop.items()})
    v = np.random.default_rng(1).standard_normal((3, 1 << 20)).astype(np.float32)
    for verb in VERBS:
        progress(f"arithmetic: {verb}")
        operands = np.abs(v[: {"sqrt": 1, "fma": 3}.get(verb, 2)])
        for fmt in ("float16", "bfloat16", "float32"):
            ns = side_by_side(
                {verb: lambda: getattr(qlab.arithmetic, verb)(*operands, fmt)},  # noqa: B023
                elements=v.shape[1], repeats=5,
            )  # fmt: skip
            table.append({"what": f"{verb} {fmt}", "ns": round(ns[verb], 2)} | {f"times_{name}": "" for name in of_loop})
    qlab.set_num_threads(None)
    return table
