"""The CUDA kernels beside a device copy: ``make bench-gpu`` on a machine with a GPU, or ``python -m benchmarks.gpu`` with
a torch that has CUDA. Results go to results/gpu.json.

What counts is the share of the copy's bandwidth: bytes read and written by a conversion, over its time, against bytes
read and written by a plain copy over its time, in the same run. Times are medians of CUDA events.
"""

from __future__ import annotations

import sys

import torch

import qlab
from benchmarks.timing import store

FORMATS = ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "bfloat16", "float16")


def run(elements: int = 1 << 28) -> list[dict[str, object]]:
    """Return a row for each conversion: GB/s, and its share of the copy's."""
    from triton.testing import do_bench

    def bandwidth(work, moved: int) -> float:
        return moved / do_bench(work, warmup=50, rep=200, return_mode="median") / 1e6

    x = torch.randn(elements, device="cuda")
    into = torch.empty_like(x)
    copy = bandwidth(lambda: into.copy_(x), 8 * elements)
    rows: list[dict[str, object]] = [{"what": "copy", "format": "float32", "GB/s": round(copy), "share": 1.0}]
    for name in FORMATS:
        codes = qlab.encode(x, name)
        size = codes.element_size()
        for what, work, moved in (
            ("encode", lambda n=name: qlab.encode(x, n, nan="zero"), (4 + size) * elements),
            ("decode", lambda n=name, c=codes: qlab.decode(c, n), (4 + size) * elements),
            ("cast", lambda n=name: qlab.cast(x, n, nan="zero"), 8 * elements),
            ("cast stochastic", lambda n=name: qlab.cast(x, n, nan="zero", rounding="stochastic", rng=1), 8 * elements),
        ):
            speed = bandwidth(work, moved)
            rows.append({"what": what, "format": name, "GB/s": round(speed), "share": round(speed / copy, 3)})
            print(f"{what:16} {name:14} {speed:6.0f} GB/s {speed / copy:6.1%} of a copy", flush=True)
    return rows


def main() -> int:
    """Run on the first CUDA device; say so where there is none."""
    if not torch.cuda.is_available():
        print("no CUDA device here: run `make bench-gpu` on a machine with one (it needs torch with CUDA, and triton)")
        return 1
    print("stored in", store("gpu", run(), device=torch.cuda.get_device_name()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
