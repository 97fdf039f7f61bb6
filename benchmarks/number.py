"""encode, decode and cast of 2**24 float32 beside ml_dtypes and a plain copy, on one thread."""

from __future__ import annotations

import ml_dtypes
import numpy as np

import qlab
from benchmarks.timing import progress, side_by_side

FORMATS = ["float16", *(name for name in qlab.FORMATS if "float" in name and hasattr(ml_dtypes, name))]
"""Those that ml_dtypes or NumPy has too."""
ROUNDINGS = ("nearest_even", "nearest_away", "toward_zero", "up", "down", "to_odd")


def run(elements: int = 1 << 24) -> list[dict[str, object]]:
    """Return a row of nanoseconds and ratios for each format."""
    x = np.random.default_rng(0).standard_normal(elements, dtype=np.float32)
    qlab.set_num_threads(1)
    rows = [_one_format(name, x) for name in FORMATS]
    qlab.set_num_threads(None)
    return rows


def _one_format(name: str, x: np.ndarray) -> dict[str, object]:
    progress(f"number: {name}")
    dtype, out = np.dtype(getattr(ml_dtypes, name, None) or name), np.empty_like(x)
    codes, theirs = qlab.encode(x, name), x.astype(dtype)
    ns = side_by_side(
        {
            "copy": lambda: np.copyto(out, x),
            "cast_out": lambda: qlab.cast(x, name, out=out),
            "cast": lambda: qlab.cast(x, name),
            "encode": lambda: qlab.encode(x, name),
            "decode": lambda: qlab.decode(codes, name),
            "peer_encode": lambda: x.astype(dtype),
            "peer_decode": lambda: theirs.astype(np.float32),
        },
        elements=x.size,
    )
    return {
        "format": name, **{key: round(value, 3) for key, value in ns.items()},
        "cast_out/copy": round(ns["cast_out"] / ns["copy"], 2),
        "peer/cast": round((ns["peer_encode"] + ns["peer_decode"]) / ns["cast"], 2),
        "peer/encode": round(ns["peer_encode"] / ns["encode"], 2),
        "peer/decode": round(ns["peer_decode"] / ns["decode"], 2),
    }  # fmt: skip


def roundings(elements: int = 1 << 24) -> list[dict[str, object]]:
    """Return nanoseconds of cast for each rounding, stochastic with noise given and made from a seed; two threads; torch.

    The last rows are of float16 and bfloat16 input.
    """
    x = np.random.default_rng(0).standard_normal(elements, dtype=np.float32)
    out, noise = np.empty_like(x), np.random.default_rng(1).integers(0, 1 << 32, elements, dtype=np.uint32)
    rows = []
    for name in ("float8_e4m3fn", "float8_e8m0fnu", "float4_e2m1fn", "bfloat16", "float16", "int8", "nf4", "posit16"):
        progress(f"roundings: {name}")
        rows.append(_one_rounding_table(name, x, out, noise))
    for dtype in (np.float16, ml_dtypes.bfloat16):
        progress(f"roundings: {np.dtype(dtype)} input")
        row = _one_rounding_table("float8_e4m3fn", x.astype(dtype), out.astype(dtype), noise)
        rows.append(row | {"format": f"float8_e4m3fn from {np.dtype(dtype)}"})
    qlab.set_num_threads(None)
    return rows


def _one_rounding_table(name: str, x: np.ndarray, out: np.ndarray, noise: np.ndarray) -> dict[str, object]:
    def with_threads(n: int) -> None:
        qlab.set_num_threads(n)
        qlab.cast(x, name, out=out)
        qlab.set_num_threads(1)

    qlab.set_num_threads(1)
    candidates = {r: (lambda r=r: qlab.cast(x, name, rounding=r, out=out)) for r in ROUNDINGS}
    candidates["stochastic"] = lambda: qlab.cast(x, name, rounding="stochastic", noise=noise, out=out)
    candidates["stochastic_seed"] = lambda: qlab.cast(x, name, rounding="stochastic", rng=1, out=out)
    candidates["two_threads"] = lambda: with_threads(2)
    try:
        import torch
    except ImportError:
        pass
    else:
        patterns = f"i{x.itemsize}"  # torch takes no array of bfloat16
        kind = getattr(torch, x.dtype.name)
        tensor, into = (torch.from_numpy(array.view(patterns)).view(kind) for array in (x, out))
        candidates["torch_tensor"] = lambda: qlab.cast(tensor, name, out=into)
    ns = side_by_side(candidates, elements=x.size, repeats=5)
    row: dict[str, object] = {"format": name, **{key: round(value, 2) for key, value in ns.items()}}
    return row | {"one/two_threads": round(ns["nearest_even"] / ns["two_threads"], 2)}
