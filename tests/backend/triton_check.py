"""Compare the Triton kernels with NumPy: under the interpreter on a CPU, or on a GPU. Run by test_triton.py.

usage: triton_check.py DEVICE [FORMAT ...]
"""

from __future__ import annotations

import sys

import numpy as np
import torch

import qlab
from qlab.backend import torch_ops, triton_ops
from qlab.number.codec import Rules, code_dtype
from qlab.number.formats import FORMATS
from qlab.number.rounding import ROUNDINGS


def inputs(fmt, dtype, every):
    half = np.arange(0, 65536, every, dtype=np.uint16).view(np.float16)
    brain = (np.arange(0, 65536, every, dtype=np.uint32) << 16).view(np.float32)
    hard = np.random.default_rng(0).integers(0, 2**32, 4096, dtype=np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        x = torch.from_numpy(np.concatenate([half.astype(np.float32), brain, hard])).to(dtype)
    return x if fmt.nan_code is not None else x[~x.isnan()]


def same(a, b):
    a, b = a.double().cpu(), b.double().cpu()
    return bool((((a == b) & (a.signbit() == b.signbit())) | (a.isnan() & b.isnan())).all())


def main(device: str, names: list[str]) -> None:
    checked = 0
    for name in names:
        fmt = FORMATS[name]
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            x = inputs(fmt, dtype, 1 if device == "cuda" else 61)
            for rounding in ROUNDINGS if dtype is torch.float32 or device == "cuda" else ("nearest_even",):
                for overflow in ("ieee", "saturate"):
                    how = Rules(rounding, overflow, "raise", None, 2**63 + 7 if rounding == "stochastic" else None)
                    options = {"rounding": rounding, "overflow": overflow, "rng": how.rng}
                    assert triton_ops.is_made_for(x, fmt, how)
                    codes = qlab.encode(x, fmt, **options)
                    kind = torch_ops._TORCH[code_dtype(fmt)]
                    on_device = x.to(device)
                    result = triton_ops.convert(on_device, fmt, how, kind, to_codes=True)
                    assert torch.equal(result.cpu(), codes), (name, dtype, rounding, overflow)
                    values = qlab.cast(x, fmt, **options)
                    result = triton_ops.convert(on_device, fmt, how, values.dtype, to_codes=False)
                    assert same(result, values), (name, dtype, rounding, overflow)
                    checked += 2
            noise = torch.from_numpy(np.random.default_rng(1).integers(0, 256, x.shape, dtype=np.uint8))
            how = Rules("stochastic", "ieee", "raise", noise)
            result = triton_ops.convert(x.to(device), fmt, how, torch.float32, to_codes=False)
            assert same(result, qlab.cast(x, fmt, rounding="stochastic", noise=noise)), (name, dtype, "noise")
        codes = torch.arange(1 << min(fmt.bits, 16)).to(torch_ops._TORCH[code_dtype(fmt)])
        assert same(triton_ops.decode(codes.to(device), fmt, torch.float32), qlab.decode(codes, fmt)), name
        checked += 1
    print(f"{checked} comparisons of {len(names)} formats on {device}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
