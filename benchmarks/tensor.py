"""quantize, dequantize and fake_quantize of 4096 x 4096 float32 beside bitsandbytes, gguf-py and torch, on one thread."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

import qlab
from benchmarks.timing import progress, side_by_side

SCHEMES = (
    "int8", "int8_channel", "int4_b32", "int4-b128-asym", "nf4", "nf4_dq", "mxfp4", "mxfp8_e4m3", "nvfp4",
    "q8_0", "q4_0", "q4_k", "q6_k",
)  # fmt: skip
SEARCHES = ("int4-b64-mse", "int4-b64-min-mse", "fp4-b32-mse")
Peers = dict[str, Callable[[], object]]


def run(rows: int = 4096, columns: int = 4096) -> list[dict[str, object]]:
    """Return a row of nanoseconds and ratios for each scheme, with the memory that quantize takes beside its result."""
    import torch

    torch.set_num_threads(1)
    qlab.set_num_threads(1)
    x = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    table = [_one_scheme(name, x) for name in SCHEMES] + [_one_scheme(name, x[: rows // 16]) for name in SEARCHES]
    table.append(_fake_quantize_with_gradient(x))
    qlab.set_num_threads(None)
    return table


def _one_scheme(name: str, x: np.ndarray) -> dict[str, object]:
    progress(f"tensor: {name}")
    stored = qlab.quantize(x, name)
    out = np.empty_like(x)
    ours: Peers = {
        "quantize": lambda: qlab.quantize(x, name), "dequantize": lambda: stored.dequantize(),
        "dequantize_out": lambda: stored.dequantize(out=out),
    }  # fmt: skip
    if qlab.get_scheme(name).layout is None:
        ours["fake_quantize"] = lambda: qlab.fake_quantize(x, name)
    peer, theirs = _peer(name, x)
    slow = name in ("q4_k", "q6_k") or "mse" in name
    ns = side_by_side(ours | theirs, elements=x.size, repeats=2 if slow else 5)
    row: dict[str, object] = {"scheme": name, "bits": round(stored.bits_per_value, 3)}
    row |= {key: round(ns[key], 2) if key in ns else "" for key in ("quantize", "dequantize", "dequantize_out", "fake_quantize")}
    row |= {"extra_MiB": _extra_memory(lambda: qlab.quantize(x, name)), "peer": peer}
    for verb in ("quantize", "dequantize"):
        there = ns.get(f"peer_{verb}")
        row[f"peer_{verb}"] = "" if there is None else round(there, 2)
        row[f"peer/{verb}"] = "" if there is None else round(there / ns[verb], 2)
    return row


def _peer(name: str, x: np.ndarray) -> tuple[str, Peers]:
    """The library that a scheme comes from, and its two verbs."""
    if name in ("nf4", "nf4_dq"):
        return _bitsandbytes(x, compressed=name == "nf4_dq")
    if name == "int8_channel":
        return _torch_per_channel(x)
    kinds = {"q8_0": "Q8_0", "q4_0": "Q4_0", "mxfp4": "MXFP4"}
    return _gguf(kinds[name], x) if name in kinds else ("", {})


def _bitsandbytes(x: np.ndarray, *, compressed: bool) -> tuple[str, Peers]:
    try:
        import bitsandbytes
        import bitsandbytes.functional as peer
        import torch
    except ImportError:
        return "", {}
    tensor = torch.from_numpy(x)
    how: dict[str, Any] = {"blocksize": 64, "quant_type": "nf4", "compress_statistics": compressed}
    codes, state = peer.quantize_4bit(tensor, **how)
    return f"bitsandbytes {bitsandbytes.__version__}", {
        "peer_quantize": lambda: peer.quantize_4bit(tensor, **how),
        "peer_dequantize": lambda: peer.dequantize_4bit(codes, state),
    }


def _gguf(kind: str, x: np.ndarray) -> tuple[str, Peers]:
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError:
        return "", {}
    to = GGMLQuantizationType[kind]
    stored = quants.quantize(x, to)
    return "gguf-py", {
        "peer_quantize": lambda: quants.quantize(x, to), "peer_dequantize": lambda: quants.dequantize(stored, to),
    }  # fmt: skip


def _torch_per_channel(x: np.ndarray) -> tuple[str, Peers]:
    import torch

    tensor, zeros = torch.from_numpy(x), torch.zeros(len(x), dtype=torch.int64)
    scale = tensor.abs().amax(1) / 127
    stored = torch.quantize_per_channel(tensor, scale, zeros, 0, torch.qint8)
    return "torch (scales given)", {
        "peer_quantize": lambda: torch.quantize_per_channel(tensor, scale, zeros, 0, torch.qint8),
        "peer_dequantize": lambda: stored.dequantize(),
    }


def _fake_quantize_with_gradient(x: np.ndarray) -> dict[str, object]:
    """int8 per channel, forward and backward, beside torch's own, which is given its scales."""
    import torch

    progress("tensor: fake_quantize with gradient")
    tensor, gradient = torch.from_numpy(x).requires_grad_(), torch.ones(x.shape)
    scale, zeros = torch.from_numpy(np.abs(x).max(1) / 127), torch.zeros(len(x), dtype=torch.int32)

    def ours() -> None:
        qlab.fake_quantize(tensor, "int8_channel").backward(gradient)
        tensor.grad = None

    def theirs() -> None:
        torch.fake_quantize_per_channel_affine(tensor, scale, zeros, 0, -128, 127).backward(gradient)
        tensor.grad = None

    ns = side_by_side({"ours": ours, "theirs": theirs}, elements=x.size, repeats=5)
    row: dict[str, object] = dict.fromkeys(
        ("scheme", "bits", "quantize", "dequantize", "dequantize_out", "fake_quantize", "extra_MiB", "peer",
         "peer_quantize", "peer/quantize", "peer_dequantize", "peer/dequantize"), "",
    )  # fmt: skip
    return row | {
        "scheme": "int8_channel, forward and backward", "fake_quantize": round(ns["ours"], 2),
        "peer": "torch.fake_quantize_per_channel_affine (scales given)", "peer_quantize": round(ns["theirs"], 2),
        "peer/quantize": round(ns["theirs"] / ns["ours"], 2),
    }  # fmt: skip


def _extra_memory(work: Callable[[], Any]) -> float:
    """MiB that are allocated at most, beside what the result keeps."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    result = work()
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del result
    return round((peak - max(after, before)) / 2**20, 1)
