"""Quantized linear layers beside float32 and torch.ao's dynamic int8, on one thread: microseconds of a call."""

from __future__ import annotations

import warnings
from dataclasses import replace

import qlab
from benchmarks.timing import progress, side_by_side

SIZES = ((256, 64), (384, 64), (512, 64), (768, 64), (1024, 64), (2048, 64), (4096, 64), (1024, 1), (4096, 1))
"""Width of the square weight, and rows of the input."""


def run(sizes: tuple[tuple[int, int], ...] = SIZES) -> list[dict[str, object]]:
    """Return a row for each size: times of a call, and how many times as fast as float32 the integer products are."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    qlab.set_num_threads(1)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.ao.quantization is deprecated
            return [_one_size(*size) for size in sizes]
    finally:
        torch.set_num_threads(threads)
        qlab.set_num_threads(None)


def _one_size(width: int, rows: int) -> dict[str, object]:
    import torch
    from torch import nn

    progress(f"model: {rows} x {width}")
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(width, width)).eval(), torch.randn(rows, width)
    names = ("dynamic_int8", "weight_only_int8", "weight_only_int4", "weight_only_nf4")
    made = {name: qlab.quantize_model(model, replace(qlab.RECIPES[name], min_size=0), show=False) for name in names}
    made["static_int8"] = qlab.quantize_model(model, replace(qlab.RECIPES["tflite_full_integer"], min_size=0), [x], show=False)
    made |= {"float32": model, "torch_ao_dynamic": torch.ao.quantization.quantize_dynamic(model, {nn.Linear})}
    each = {name: (lambda m=m: m(x)) for name, m in made.items()}
    us = {name: ns / 1000 for name, ns in side_by_side(each, elements=1, repeats=15 if width < 4096 else 5).items()}
    row: dict[str, object] = {"width": width, "rows": rows}
    row |= {name: round(us[name], 1) for name in ("float32", "dynamic_int8", "static_int8", "torch_ao_dynamic", *names[1:])}
    row["float32/dynamic_int8"] = round(us["float32"] / us["dynamic_int8"], 2)
    row["torch_ao/dynamic_int8"] = round(us["torch_ao_dynamic"] / us["dynamic_int8"], 2)
    return row
