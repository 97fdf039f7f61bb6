"""encode, decode and cast of 2**24 float32 beside ml_dtypes and a plain copy, on one thread."""

from __future__ import annotations

import ml_dtypes
import numpy as np

import qlab
from benchmarks.timing import progress, side_by_side

FORMATS = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3", "float8_e8m0fnu", "float6_e2m3fn", "float4_e2m1fn", "bfloat16", "float16")


def run(elements: int = 1 << 24) -> list[dict[str, object]]:
    x = np.random.default_rng(0).standard_normal(elements, dtype=np.float32)
    out = np.empty_like(x)
    rows = []
    qlab.set_num_threads(1)
    for name in FORMATS:
        progress(f"number: {name}")
        dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
        codes = qlab.encode(x, name)
        theirs = x.astype(dtype)
        ns = side_by_side(
            {
                "copy": lambda: np.copyto(out, x),
                "cast": lambda: qlab.cast(x, name, out=out),
                "cast_new": lambda: qlab.cast(x, name),
                "encode": lambda: qlab.encode(x, name),
                "decode": lambda: qlab.decode(codes, name),
                "peer_encode": lambda: x.astype(dtype),
                "peer_decode": lambda: theirs.astype(np.float32),
            },
            elements=elements,
            repeats=5,
        )
        peer = ns["peer_encode"] + ns["peer_decode"]
        rows.append(
            {
                "format": name, **{key: round(value, 3) for key, value in ns.items()},
                "cast_over_copy": round(ns["cast"] / ns["copy"], 2), "times_peer_cast": round(peer / ns["cast_new"], 2),
                "times_peer_encode": round(ns["peer_encode"] / ns["encode"], 2),
                "times_peer_decode": round(ns["peer_decode"] / ns["decode"], 2),
            }
        )  # fmt: skip
    qlab.set_num_threads(None)
    return rows
