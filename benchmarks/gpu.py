"""The CUDA kernels beside a device copy: ``make bench-gpu`` on a machine with a GPU, or ``python -m benchmarks.gpu`` with
a torch that has CUDA. Results go to results/gpu.json.

What counts is the share of the copy's bandwidth: bytes read and written by a conversion, over its time, against bytes
read and written by a plain copy over its time, in the same run. Times are medians of CUDA events, with a cold cache.
Schemes stand beside bitsandbytes and torchao, where these are installed; products of a few rows with 4-bit weights beside
bringing the weights back first, and beside a linear layer of float16.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import torch
from torch.nn import functional

import qlab
from benchmarks.timing import store

Job = tuple[str, str, Callable[[], object], int]
"""What is done, by what, the work, and the bytes that it reads and writes."""

FORMATS = ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "bfloat16", "float16")
SCHEMES = ("nf4", "mxfp4", "int8-b128")
PRODUCTS = ("int4-b32/f16", "int4-b128-asym/f16", "nf4", "mxfp4")
SIZES = ((4096, 4096), (14336, 4096))
"""Of the weights of products, (out, in)."""
ROWS = (1, 4, 16)


def bandwidth(work: Callable[[], object], moved: int) -> float:
    """Return GB/s of work that reads and writes so many bytes."""
    from triton.testing import do_bench

    return moved / do_bench(work, warmup=50, rep=200, return_mode="median") / 1e6


def run(elements: int = 1 << 28) -> list[dict[str, object]]:
    """Return a row for each conversion: GB/s, and its share of the copy's."""
    x = torch.randn(elements, device="cuda")
    into = torch.empty_like(x)
    copy = bandwidth(partial(into.copy_, x), 8 * elements)
    rows: list[dict[str, object]] = [{"what": "copy", "format": "float32", "GB/s": round(copy), "share": 1.0}]
    del into
    for name in FORMATS:
        codes = qlab.encode(x, name)
        size = codes.element_size()
        for what, work, moved in (
            ("encode", lambda n=name: qlab.encode(x, n, nan="zero"), (4 + size) * elements),
            ("decode", lambda n=name, c=codes: qlab.decode(c, n), (4 + size) * elements),
            ("cast", lambda n=name: qlab.cast(x, n, nan="zero"), 8 * elements),
            ("cast stochastic", lambda n=name: qlab.cast(x, n, nan="zero", rounding="stochastic", rng=1), 8 * elements),
        ):
            rows.append(measured(what, name, work, moved, copy))
    x = x.reshape(-1, 1 << 14)
    rows += [measured(*job, copy) for jobs in (own_jobs(x), *peers_jobs(x)) for job in jobs]
    rows += [measured(*job, copy) for job in product_jobs()]
    return rows


def measured(what: str, name: str, work: Callable[[], object], moved: int, copy: float) -> dict[str, object]:
    """Return a row of results, and print it."""
    speed = bandwidth(work, moved)
    us = moved / speed / 1e3
    print(f"{what:18} {name:34} {us:9.1f} us {speed:6.0f} GB/s {speed / copy:6.1%} of a copy", flush=True)
    return {"what": what, "format": name, "us": round(us, 1), "GB/s": round(speed), "share": round(speed / copy, 3)}


def product_jobs(
    device: str = "cuda", sizes: tuple[tuple[int, int], ...] = SIZES, counts: tuple[int, ...] = ROWS
) -> Iterator[Job]:
    """Multiply a few rows of float16 with packed weights: the bytes are those that each way reads and writes."""
    from qlab.backend.triton_products import Product

    for name in PRODUCTS:
        for n_out, n_in in sizes:
            weight = qlab.quantize(torch.randn(n_out, n_in, device=device), name)
            product, dense = Product(weight), weight.dequantize(dtype=torch.float16)
            for rows in counts:
                x = torch.randn(rows, n_in, device=device).half()
                case, ends = f"{name}, {rows} x {n_in} to {n_out}", 2 * rows * (n_in + n_out)
                yield "product", case, partial(product, x, None), weight.nbytes + ends
                yield "dequantize, linear", case, partial(dequantize_and_multiply, weight, x), (
                    weight.nbytes + 2 * dense.nbytes + ends
                )  # fmt: skip
                yield "float16 linear", case, partial(functional.linear, x, dense), dense.nbytes + ends


def dequantize_and_multiply(weight: qlab.QTensor, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, weight.dequantize(dtype=x.dtype))


def own_jobs(x: torch.Tensor) -> Iterator[Job]:
    """Quantize and dequantize by each scheme: the bytes are those of float32 values and of what is stored."""
    out = torch.empty_like(x)
    for name in SCHEMES:
        stored = qlab.quantize(x, name)
        moved = 4 * x.numel() + stored.nbytes
        yield "quantize", name, partial(qlab.quantize, x, name), moved
        yield "dequantize", name, stored.dequantize, moved
        yield "dequantize, out", name, partial(stored.dequantize, out=out), moved


def peers_jobs(x: torch.Tensor) -> Iterator[Iterator[Job]]:
    """The same by the peers that are installed."""
    if find_spec("bitsandbytes"):
        yield bitsandbytes_jobs(x)
    if find_spec("torchao"):
        yield torchao_jobs(x)


def bitsandbytes_jobs(x: torch.Tensor) -> Iterator[Job]:
    from bitsandbytes import functional as bnb

    codes, state = bnb.quantize_4bit(x, blocksize=64, quant_type="nf4")
    moved = 4 * x.numel() + codes.nbytes + state.absmax.nbytes
    yield "bnb quantize", "nf4", partial(bnb.quantize_4bit, x, blocksize=64, quant_type="nf4"), moved
    yield "bnb dequantize", "nf4", partial(bnb.dequantize_4bit, codes, state), moved


def torchao_jobs(x: torch.Tensor) -> Iterator[Job]:
    from torchao.prototype.mx_formats.mx_tensor import to_mx

    moved = 4 * x.numel() + x.numel() // 2 + x.numel() // 32
    yield "torchao quantize", "mxfp4", partial(to_mx, x, torch.float4_e2m1fn_x2, 32), moved


def main() -> int:
    """Run on the first CUDA device; say so where there is none."""
    if not torch.cuda.is_available():
        print("no CUDA device here: run `make bench-gpu` on a machine with one (it needs torch with CUDA, and triton)")
        return 1
    print("stored in", store("gpu", run(), device=torch.cuda.get_device_name()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
