"""Compare the kernels for schemes with NumPy: under the interpreter on a CPU, or on a GPU. Run by test_triton.py.

usage: triton_blocks_check.py DEVICE [SCHEME ...]
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import qlab
from qlab.backend import triton_blocks
from qlab.tensor.qtensor import QTensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def bits(x):
    x = x.detach().cpu().contiguous()
    return x.view({2: torch.int16, 4: torch.int32}[x.element_size()]) if x.is_floating_point() else x


def compare(found, expected, what):
    assert torch.equal(found.payload.cpu(), expected.payload), (*what, "codes")
    assert (found.shape, found.dtype, found.nbytes) == (expected.shape, expected.dtype, expected.nbytes), what
    if isinstance(expected.scale, QTensor):
        compare(found.scale, expected.scale, (*what, "scale"))
        assert found.scale.offset == expected.scale.offset, what
    else:
        assert torch.equal(bits(found.scale), bits(expected.scale)), (*what, "scale")


def inputs(scheme, dtype):
    """Rows of normals of many magnitudes, zeros of both signs, ties, and values just under and at a power of two."""
    size = getattr(scheme.blocks, "size", 32)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 3, 2 * size)).astype(np.float32))
    x[1] *= 2.0 ** torch.arange(-12, 12).repeat_interleave(size // 4 + 1)[: 2 * size]
    x[2, 0] = 0
    x[2, 1] = -0.0
    x[3] = torch.round(x[3] * 4) / 4
    x[3, :, 0] = 7  # so that many are ties
    x[4, :, 0] = torch.tensor([4.0, np.nextafter(np.float32(4), np.float32(0)), -6.0])
    x[5, 1, 0] = 1
    edges = getattr(scheme.format, "boundaries", None)
    if edges is not None:  # at a scale of 1
        x[5, 1] = 0
        x[5, 1, :: size] = 1
        x[5, 1, 1 : len(edges) + 1] = torch.from_numpy(np.nextafter(np.float32(edges[:, 0]), np.float32(2)))
    if dtype is torch.float32 and not isinstance(scheme.scale.stored, qlab.Scheme) and "/" not in str(scheme):
        x[5, 0] *= 2.0**-135  # subnormal scales
        x[4, 2] *= 2.0**-126
        x[4, 2] *= 2.0**-22  # of which a seventh is lost
        x[5, 2] *= 2.0**120
    return x.to(dtype)


def main(device: str, names: list[str]) -> None:
    checked = 0
    for name in names:
        scheme = qlab.get_scheme(name)
        for dtype in DTYPES:
            x = inputs(scheme, dtype)
            assert triton_blocks.is_made_for(tuple(x.shape), dtype, scheme), name
            expected = qlab.quantize(x, scheme)
            found = triton_blocks.quantize(x.to(device), scheme)
            compare(found, expected, (name, dtype))
            for target in DTYPES:
                values = triton_blocks.dequantize(found, target)
                assert values.dtype is target
                assert torch.equal(bits(values), bits(expected.dequantize(dtype=target))), (name, dtype, target)
                checked += 1
        for wrong in (float("nan"), -float("inf")):
            x[1, 2, 3] = wrong
            with pytest.raises(ValueError, match=r"1 infinities or NaN \(the first at index \(1, 2, 3\)\)"):
                triton_blocks.quantize(x.to(device), scheme)
    for name, shape, dtype in (
        ("nf4", (3, 5), torch.float32), ("int4_b32", (64, 48), torch.float32), ("int8-b128", (2, 128), torch.float64),
        ("int4-b32-asym", (4, 64), torch.float32), ("int4-b8", (4, 64), torch.float32), ("int8", (64,), torch.float32),
        ("mxint8", (4, 64), torch.float32), ("int4-b32-mse", (4, 64), torch.float32), ("int5-b32", (4, 64), torch.float32),
        ("int8-row", (4, 48), torch.float32), ("int8-row-asym", (4, 64), torch.float32),
    ):  # fmt: skip
        assert not triton_blocks.is_made_for(shape, dtype, qlab.get_scheme(name)), name
    print(f"{checked} comparisons of {len(names)} schemes on {device}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
