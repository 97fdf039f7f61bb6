"""All 2**32 float32 to every named format of up to 16 bits, beside the libraries that have it: ``make exhaustive``.

Each code is compared, to nearest even. Takes some twenty minutes on two cores; the summary is stored under results/.
float8_e8m0fnu is compared under the policy of its library, since qlab's own rule differs on purpose (ties to even).
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time

import ml_dtypes
import numpy as np

import qlab
from benchmarks.timing import machine, store
from qlab.number.formats import FORMATS, FloatFormat

PIECE = 1 << 22
PIECES = (1 << 32) // PIECE
KNOWN = ("float16", *(n for n in FORMATS if hasattr(ml_dtypes, n)))  # to NumPy or ml_dtypes
NAMES = [n for n, f in FORMATS.items() if isinstance(f, FloatFormat) and f.bits <= 16 and n in KNOWN]
WITH_TORCH = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")


def compare(job: tuple[str, str, int]) -> tuple[int, int]:
    """Return how many floats of one piece were compared, and how many codes differ."""
    peer, name, piece = job
    qlab.set_num_threads(1)
    bits = np.arange(piece * PIECE, (piece + 1) * PIECE, dtype=np.uint64).astype(np.uint32)
    x, fmt = bits.view(np.float32), FORMATS[name]
    if fmt.nan_code is None:
        x = x[~np.isnan(x)]
    theirs = _by_torch(x, name) if peer == "torch" else _by_ml_dtypes(x, name)
    policy = "torch" if peer == "torch" else "ml_dtypes" if name == "float8_e8m0fnu" else None
    ours = qlab.encode(x, name, policy=policy)
    differ = ours != theirs
    if fmt.nan_code is not None and differ.any():  # NaN has many codes, and theirs may have a sign
        differ[np.isnan(qlab.decode(theirs, name)) & np.isnan(qlab.decode(ours, name))] = False
    return x.size, int(differ.sum())


def _by_ml_dtypes(x: np.ndarray, name: str) -> np.ndarray:
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    with np.errstate(all="ignore"):
        return x.astype(dtype).view(np.uint8 if dtype.itemsize == 1 else np.uint16)


def _by_torch(x: np.ndarray, name: str) -> np.ndarray:
    import torch

    torch.set_num_threads(1)
    theirs = torch.from_numpy(x).to(getattr(torch, name))
    return theirs.view(torch.uint8 if theirs.itemsize == 1 else torch.uint16).numpy()


def main() -> int:
    """Walk all formats, show how far it is, store the summary; 1 if any code differs."""
    jobs = [("ml_dtypes" if n != "float16" else "numpy", n) for n in NAMES]
    try:
        import torch  # noqa: F401
    except ImportError:
        print("torch is not installed: compared with ml_dtypes and NumPy only")
    else:
        jobs += [("torch", n) for n in WITH_TORCH]
    rows, start, walked = [], time.perf_counter(), machine()
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for done, (peer, name) in enumerate(jobs):
            compared = different = 0
            results = pool.imap_unordered(compare, [(peer, name, p) for p in range(PIECES)])
            for i, (size, wrong) in enumerate(results, 1):
                compared, different = compared + size, different + wrong
                if sys.stderr.isatty():
                    share = (done + i / PIECES) / len(jobs)
                    print(f"\r{share:6.1%} {name} against {peer}: {different} differ\033[K", end="", file=sys.stderr)
            seconds = time.perf_counter() - start
            print(f"{name} against {peer}: {compared} compared, {different} differ, {seconds:.0f} s", flush=True)
            rows.append({"format": name, "peer": peer, "compared": compared, "different": different})
    print("stored in", store("exhaustive", rows, machine=walked))
    return int(any(row["different"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
