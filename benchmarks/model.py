"""Quantized layers and a step of quantization-aware training beside float32 and torch.ao, on one thread: microseconds.

And what each method of post-training quantization takes for a layer, beside rounding to nearest.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import qlab
from benchmarks.timing import progress, side_by_side

SIZES = ((256, 64), (384, 64), (512, 64), (768, 64), (1024, 64), (2048, 64), (4096, 64), (1024, 1), (4096, 1))
"""Width of the square weight, and rows of the input."""
CONVOLUTIONS = (
    (8, 64, 28, 64, 3, 1), (8, 64, 56, 64, 3, 1), (8, 64, 28, 128, 1, 1), (8, 64, 28, 64, 3, 64), (64, 16, 8, 32, 3, 1),
)  # fmt: skip
"""Images, channels, their width, channels out, width of the kernel, groups."""


def run(sizes: tuple[tuple[int, int], ...] = SIZES) -> list[dict[str, object]]:
    """Return a row for each size: times of a call, and how many times as fast as float32 the integer products are."""
    with _one_thread():
        return [_one_size(*size) for size in sizes]


def convolutions(sizes: tuple[tuple[int, ...], ...] = CONVOLUTIONS) -> list[dict[str, object]]:
    """Return a row for each size: times of a call of static int8, which `torch.ao` is given quantized stubs around."""
    with _one_thread():
        return [_one_convolution(*size) for size in sizes]


def training(batches: tuple[int, ...] = (64, 256)) -> list[dict[str, object]]:
    """Return a row for each batch: times of a training step (forward, backward, update) of a small network of convolutions."""
    with _one_thread(gradients=True):
        return [_one_step(batch) for batch in batches]


def methods(width: int = 512, rows: int = 512) -> list[dict[str, object]]:
    """Return a row for each method: time to quantize a linear layer to 4 bits, its calibration with it, and the error left."""
    with _one_thread():
        return _each_method(width, rows)


@contextmanager
def _one_thread(*, gradients: bool = False) -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    qlab.set_num_threads(1)
    try:
        with torch.set_grad_enabled(gradients), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.ao.quantization is deprecated
            yield
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


def _each_method(width: int, rows: int) -> list[dict[str, object]]:
    import torch
    from torch import nn

    progress(f"methods: {width}")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width)).eval()
    x = torch.randn(rows, width) @ torch.randn(width, width) / width**0.5  # channels that depend on one another
    want = model(x)

    def made(method: str) -> nn.Module:
        return qlab.quantize_model(model, qlab.Recipe("int4-b32", method=method), [x], show=False)

    each = {method: (lambda m=method: made(m)) for method in ("rtn", "gptq", "awq", "hqq", "adaround")}
    us = {method: ns / 1000 for method, ns in side_by_side(each, elements=1, repeats=3).items()}
    errors = {method: float((made(method)(x) - want).norm() / want.norm()) for method in each}
    return [
        {"width": width, "rows": rows, "method": method, "us": round(us[method]), "us/rtn": round(us[method] / us["rtn"], 1)}
        | {"error": round(errors[method], 4)}
        for method in each
    ]


def _one_convolution(images: int, channels: int, width: int, out: int, kernel: int, groups: int) -> dict[str, object]:
    import torch
    from torch import nn
    from torch.ao import quantization

    progress(f"convolutions: {channels} x {width} x {width}")
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, groups=groups)
    model, x = nn.Sequential(conv).eval(), torch.randn(images, channels, width, width)
    made = {"float32": model, "static_int8": qlab.quantize_model(model, "tflite_full_integer", [x], show=False)}
    theirs = nn.Sequential(quantization.QuantStub(), copy.deepcopy(conv), quantization.DeQuantStub()).eval()
    theirs.qconfig = quantization.get_default_qconfig("x86")  # type: ignore[assignment]
    quantization.prepare(theirs, inplace=True)(x)
    made["torch_ao"] = quantization.convert(theirs)
    ns = side_by_side({name: (lambda m=m: m(x)) for name, m in made.items()}, elements=1)
    row: dict[str, object] = {"images": images, "channels": channels, "width": width, "out": out}
    row |= {"kernel": kernel, "groups": groups}
    row |= {name: round(ns[name] / 1000, 1) for name in made}
    row["float32/static_int8"] = round(ns["float32"] / ns["static_int8"], 2)
    return row | {"torch_ao/static_int8": round(ns["torch_ao"] / ns["static_int8"], 2)}


def _one_step(batch: int) -> dict[str, object]:
    import torch
    from torch import nn
    from torch.ao import quantization

    progress(f"training: {batch}")
    torch.manual_seed(0)

    def network(*around: nn.Module) -> nn.Sequential:
        first, second = (
            nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()) for i, o in ((1, 16), (16, 32))
        )
        return nn.Sequential(*around[:1], first, second, nn.Flatten(), nn.Linear(32 * 64, 10), *around[1:])

    theirs = network(quantization.QuantStub(), quantization.DeQuantStub()).train()
    theirs.qconfig = quantization.get_default_qat_qconfig("x86")  # type: ignore[assignment]
    theirs = quantization.fuse_modules_qat(theirs, [[f"{i}.{part}" for part in range(3)] for i in (1, 2)])
    recipe = qlab.Recipe("int8-channel", qlab.Activations("int8-asym", "static"))
    made = {
        "float32": network().train(),
        "qat": qlab.prepare_qat(network(), recipe).train(),
        "qat_lsq": qlab.prepare_qat(network(), recipe, steps="lsq").train(),
        "torch_ao_qat": quantization.prepare_qat(theirs),
    }
    x, y = torch.randn(batch, 1, 8, 8), torch.randint(10, (batch,))

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    each = {}
    for name, model in made.items():
        model(x)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        each[name] = lambda m=model, o=optimizer: step(m, o)
    ns = side_by_side(each, elements=1)
    row: dict[str, object] = {"batch": batch, **{name: round(ns[name] / 1000, 1) for name in made}}
    return row | {f"{name}/torch_ao_qat": round(ns[name] / ns["torch_ao_qat"], 2) for name in ("qat", "qat_lsq")}
