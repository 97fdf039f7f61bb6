"""The CUDA kernels: under Triton's interpreter in a process of their own, and on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed here (it has no builds for this platform)")

CHECK = Path(__file__).with_name("triton_check.py")
BLOCKS_CHECK = Path(__file__).with_name("triton_blocks_check.py")
PRODUCTS_CHECK = Path(__file__).with_name("triton_products_check.py")
FORMATS = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float4_e2m1fn", "bfloat16", "float16", "tfloat32"]


SCHEMES = ["nf4", "fp4_bnb", "int8-b128", "int4_b32", "mxfp4", "mxfp8_e4m3", "nvfp4",
           "nf4_dq", "af4-b128", "int8-row", "int4-b32/f16", "int4-b32-late/f16",
           "uint8-b64", "int4-b4096-high_first", "fp4-b16/e4m3"]  # fmt: skip
PRODUCTS = ["int4-b32/f16", "nf4", "uint4-b32-asym", "mxfp4",
            "int4-b32-min/bf16", "nf4_dq", "log4", "int4-b6-high_first",
            "nvfp4", "int4-channel-asym", "kmeans4", "uint4-b32-min"]  # fmt: skip


def run(device: str, names: list[str], check: Path = CHECK, **environment: str) -> str:
    command = [sys.executable, str(check), device, *names]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("names", [FORMATS[:2], FORMATS[2:4], FORMATS[4:]], ids="+".join)
def test_under_the_interpreter(names):
    assert f"{len(names)} formats on cpu" in run("cpu", names, TRITON_INTERPRET="1")


@pytest.mark.parametrize("names", [SCHEMES[:4], SCHEMES[4:7], SCHEMES[7:]], ids="+".join)
def test_schemes_under_the_interpreter(names):
    assert f"{len(names)} schemes on cpu" in run("cpu", names, BLOCKS_CHECK, TRITON_INTERPRET="1")


@pytest.mark.parametrize("names", [PRODUCTS[:4], PRODUCTS[4:8], PRODUCTS[8:]], ids="+".join)
def test_products_under_the_interpreter(names):
    assert f"products of {len(names)} schemes on cpu" in run("cpu", names, PRODUCTS_CHECK, TRITON_INTERPRET="1")


def test_products_compile_for_a_gpu_that_is_not_here(tmp_path):
    names = ["int4-channel-asym", "mxfp4"]
    assert "6 kernels of 2 schemes for sm_90" in run("sm_90", names, PRODUCTS_CHECK, TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_products_on_a_gpu():
    assert f"products of {len(PRODUCTS)} schemes on cuda" in run("cuda", PRODUCTS, PRODUCTS_CHECK)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_schemes_on_a_gpu():
    assert f"{len(SCHEMES)} schemes on cuda" in run("cuda", SCHEMES, BLOCKS_CHECK)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_on_a_gpu():
    assert "formats on cuda" in run("cuda", [*FORMATS, "float8_e3m4", "float6_e2m3fn", "float8_e5m2fnuz"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_public_verbs_on_a_gpu():
    import qlab

    x = torch.randn(1000, 7)
    for name in ("fp8_e4m3", "bf16", "int4", "nf4", "float8_e8m0fnu", "float64"):
        rounded = qlab.cast(x.cuda(), name)
        assert rounded.is_cuda
        assert torch.equal(rounded.cpu().nan_to_num(9e9), qlab.cast(x, name).nan_to_num(9e9))
        assert torch.equal(qlab.encode(x.cuda(), name).cpu(), qlab.encode(x, name))
    noise = np.random.default_rng(0).integers(0, 256, (1000, 7), np.uint8)
    for given in (noise, torch.from_numpy(noise), torch.from_numpy(noise).cuda()):
        rounded = qlab.cast(x.cuda(), "fp8_e4m3", rounding="stochastic", noise=given)
        assert torch.equal(rounded.cpu(), qlab.cast(x, "fp8_e4m3", rounding="stochastic", noise=noise))
    with pytest.raises(ValueError, match="needs either noise"):
        qlab.cast(x.cuda(), "fp8_e4m3", rounding="stochastic")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_quantizers_on_a_gpu():
    import qlab

    x = torch.randn(48, 4096)
    for name in [*(name for name in qlab.SCHEMES if qlab.SCHEMES[name].layout is None), "int4-b32-asym", "int4-b64-mse"]:
        on_cpu, on_gpu = qlab.quantize(x, name), qlab.quantize(x.cuda(), name)
        assert on_gpu.payload.is_cuda
        assert torch.equal(on_gpu.payload.cpu(), on_cpu.payload), name
        assert torch.equal(on_gpu.dequantize().cpu(), on_cpu.dequantize()), name
        for gradient in ("pass", "clipped"):
            leaf = x.cuda().requires_grad_()
            mine = x.clone().requires_grad_()
            qlab.fake_quantize(leaf, name, gradient=gradient).sum().backward()
            qlab.fake_quantize(mine, name, gradient=gradient).sum().backward()
            assert torch.equal(leaf.grad.cpu(), mine.grad), name
