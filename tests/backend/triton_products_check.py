"""Compare products with packed weights with float64: under the interpreter on a CPU, or on a GPU. Run by test_triton.py.

usage: triton_products_check.py DEVICE [SCHEME ...]; DEVICE sm_90 compiles the kernel for that processor and runs nothing
"""

from __future__ import annotations

import sys

import torch
from torch.nn import functional

import qlab
from qlab.backend import triton_products
from qlab.backend.triton_products import MOST_ROWS, Product
from qlab.model.layers import QuantizedLinear
from qlab.model.packed import Packed

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((7, 104), (3, 100), (5, 1100), (3, 128), (6, 40))  # words; bytes; two strides along a row; NF4's; less than a block


def packed_weight(name, shape, device):
    """Rows of many magnitudes, some of one sign, with zeros of both signs."""
    w = torch.randn(shape, generator=torch.Generator().manual_seed(len(name))) * 2.0 ** torch.arange(shape[0])[:, None]
    w[1] = w[1].abs() + 3
    w[2, 3:70] = -0.0
    return Packed(qlab.quantize(w, name)).to(device)


def check_values(product, values, what):
    """Rows that pick one weight each give it to the last bit: of the first columns, of the last, of some between."""
    size, between = product.n_in, torch.randperm(product.n_in, generator=torch.Generator().manual_seed(0))
    for dtype, columns in zip(DTYPES, (between[:8], torch.arange(size)[:4], torch.arange(size)[-4:]), strict=True):
        for kind in {dtype, torch.float32}:
            picks = functional.one_hot(columns, size).to(values.device, kind)
            assert torch.equal(product(picks, None), values.to(kind)[:, columns].t()), (*what, kind)


def check_sums(product, values, rows, dtype, what):
    x = torch.randn(rows, product.n_in, generator=torch.Generator().manual_seed(rows)).to(dtype).to(values.device)
    bias = None if rows % 2 == 0 else torch.randn(product.n_out).to(dtype).to(values.device)
    found = product(x.reshape(1, rows, -1), bias)
    assert (found.dtype, found.shape) == (dtype, (1, rows, product.n_out)), what
    wide = None if bias is None else bias.double()
    expected = functional.linear(x.double(), values.double(), wide)
    size = functional.linear(x.double().abs(), values.double().abs(), None if wide is None else wide.abs())
    bound = (product.n_in + 2) * 2.0**-24 * size
    if dtype is not torch.float32:  # rounded once more
        bound += torch.finfo(dtype).eps / 2 * (expected.abs() + bound) + torch.finfo(dtype).smallest_normal
    assert bool(((found[0].double() - expected).abs() <= bound).all()), (*what, rows, dtype)
    assert torch.equal(found, product(x.reshape(1, rows, -1), bias)), what


def check_scheme(name, device):
    checked = 0
    for number, shape in enumerate(SHAPES):
        weight = packed_weight(name, shape, device)
        if not triton_products.is_made_for(weight.shape, weight.dtype, weight.scheme):
            continue
        four = number % 2 == 0  # outputs for a program, and a shorter stride along a row; else one
        triton_products.PROGRAMS, triton_products.COLUMNS = (1, 1024) if four else (1024, 4096)
        product, values = Product(weight.qtensor()), weight.dequantize(torch.float32)
        assert (product.constants["OUT"] > 1) is four
        check_values(product, values, (name, shape))
        for rows in ((1, 4), (2, 16), (3, 5), (7, 8), (1, 15))[number]:
            check_sums(product, values, rows, DTYPES[(number + rows) % 3], (name, shape))
            checked += 1
    assert checked, name
    return checked


def check_layer(device):
    """The layer takes the kernel for a few rows, and what it did before for everything else."""
    torch.manual_seed(0)
    weight, x = qlab.quantize(torch.randn(6, 64), "nf4"), torch.randn(2, 3, 64, device=device)
    layer = QuantizedLinear(weight, torch.randn(6), input_scale=torch.rand(64)).to(device)
    assert layer._ready_product(x.cpu()) is None
    if device == "cpu":
        layer.kernel = Product(layer.weight.qtensor())
        QuantizedLinear._ready_product = lambda self, x: self.kernel if self.kernel.takes(x) else None
    for dtype in DTYPES:
        few = x.to(dtype)
        prepared, bias = few * layer.input_scale.to(dtype), layer.bias.to(dtype)
        assert torch.equal(layer(few), layer.kernel(prepared, bias)), dtype
        plain = functional.linear(prepared.float(), layer.weights(), bias.float())
        assert torch.allclose(layer(few).float(), plain, rtol=2e-2, atol=2e-2), dtype
        many = few.repeat(3, 1, 1)  # 18 rows
        assert torch.equal(layer(many), functional.linear(many * layer.input_scale.to(dtype), layer.weights(dtype), bias))
    leaf = x.clone().requires_grad_()
    layer(leaf).sum().backward()
    assert torch.allclose(leaf.grad, (layer.weights().sum(0) * layer.input_scale).expand_as(x), rtol=1e-4, atol=1e-4)


def check_refusals(device):
    product = Product(packed_weight("int4-b32", (5, 64), device).qtensor())
    x = torch.ones(2, 64, device=device)
    assert all(product.takes(y) for y in (x, x[0], x.half(), x.bfloat16().reshape(1, 2, 64), x.clone().requires_grad_().detach()))
    for dtype, most in MOST_ROWS.items():
        assert product.takes(x[:1].to(dtype).expand(most, 64))
        assert not product.takes(x[:1].to(dtype).expand(most + 1, 64))
    assert not any(product.takes(y) for y in (x.double(), x.int(), x[:, :62], x[:0], x.clone().requires_grad_()))
    with torch.autocast(device, torch.bfloat16):
        assert not product.takes(x)
    seen = []
    torch.vmap(lambda row: seen.append(product.takes(row)) or row)(x)
    assert seen == [False]
    for name in ("int4-channel", "uint4-channel-min"):  # what is more than a half float holds saturates there
        large = Product(packed_weight(name, (5, 64), device).qtensor())
        assert large.takes(x.half())
        w = torch.full((5, 64), 60000.0).index_fill(1, torch.tensor(0), 0)
        large = Product(Packed(qlab.quantize(w, name)).to(device).qtensor())
        assert large.takes(x)
        assert large.takes(x.bfloat16())
        assert not large.takes(x.half())
    for name, shape in (
        ("int8", (4, 64)), ("int4", (4, 63)), ("int4-b3", (4, 64)), ("int4-b2x2", (4, 64)), ("int4-axis1", (4, 64)),
        ("nf4", (4, 96)), ("q4_0", (4, 64)), ("int4-center", (4, 64)), ("kmeans4", (4, 64)), ("int4", (4, 2, 64)),
    ):  # fmt: skip
        assert not triton_products.is_made_for(shape, torch.float32, qlab.get_scheme(name)), (name, shape)
    assert not triton_products.is_made_for((4, 64), torch.float64, qlab.get_scheme("int4"))


def compile_for(capability, name):
    """Compile for a GPU that need not be there: the interpreter takes more than the compiler. Return how many kernels."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {torch.float32: "*fp32", torch.float16: "*fp16", torch.int16: "*i16", torch.uint8: "*u8", torch.int32: "*i32"}
    for kind, rows, size in (("*fp16", 1, 4096), ("*i16", 4, 1024), ("*fp32", 2, 100)):
        product = Product(packed_weight(name, (8, size), "cpu").qtensor())
        constants = product.constants | {"OUT": 4, "HAS_BIAS": True, "ROWS": rows}
        options = {key: constants.pop(key) for key in ("num_warps", "enable_fp_fusion")}
        pointers = {"payload_ptr": kinds[product.payload.dtype], "table_ptr": "*fp32"}
        pointers |= {f"{n}_ptr": kinds[triton_products._as_bits(getattr(product, n)).dtype] for n in ("scale", "zero")}
        pointers |= dict.fromkeys(("x_ptr", "bias_ptr", "y_ptr"), kind)
        numbers = {"n_rows": rows, "n_scales": product.scales_of_a_row}
        constants |= {n: 1 for n, value in numbers.items() if value == 1}  # as Triton takes them
        names = triton_products._product_kernel.arg_names
        signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in names}
        source = ASTSource(triton_products._product_kernel, signature, constexprs=constants)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert made.asm["cubin"]
    return 3


def main(device: str, names: list[str]) -> None:
    if device.startswith("sm_"):
        count = sum(compile_for(int(device[3:]), name) for name in names)
        print(f"{count} kernels of {len(names)} schemes for {device}")
        return
    check_refusals(device)
    checked = sum(check_scheme(name, device) for name in names)
    check_layer(device)
    print(f"{checked} products of {len(names)} schemes on {device}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
