"""Integer schemes against ONNX Runtime: QuantizeLinear and DequantizeLinear with our scales and zero points.

Both divide by the scale in float32, round to the even integer, add the zero point, and saturate: codes and values are equal,
per tensor, along an axis, and in blocks (opset 21).
"""

from __future__ import annotations

import numpy as np
import pytest

import qlab
from qlab.tensor.blocks import PerAxis, PerBlock, PerTensor

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

INTEGERS = {name: (np.dtype(name).type, name.upper()) for name in ("int8", "uint8", "int16", "uint16")}


def quantized_by_onnx(x, scale, zero, name, **attributes):
    """Codes of QuantizeLinear, and their values by DequantizeLinear."""
    helper, types = onnx.helper, onnx.TensorProto
    kind, onnx_kind = INTEGERS[name][0], getattr(types, INTEGERS[name][1])
    zero = np.zeros_like(scale, kind) if zero is None else zero.astype(kind)
    inputs = {"x": x, "scale": np.asarray(scale, np.float32), "zero": np.asarray(zero)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"], **attributes),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["values"], **attributes),
    ]
    floats = [helper.make_tensor_value_info(n, types.FLOAT, inputs[n].shape) for n in ("x", "scale")]
    wanted = [
        helper.make_tensor_value_info("codes", onnx_kind, x.shape),
        helper.make_tensor_value_info("values", types.FLOAT, x.shape),
    ]
    graph = helper.make_graph(nodes, "g", [*floats, helper.make_tensor_value_info("zero", onnx_kind, zero.shape)], wanted)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def check(x, scheme, name, **attributes):
    qt = qlab.quantize(x, scheme)
    codes, values = quantized_by_onnx(x, qt.scale, qt.zero, name, **attributes)
    ours = qt.codes() if name.startswith("u") else qt.codes().astype(f"uint{qt.scheme.bits}").view(INTEGERS[name][0])
    assert np.array_equal(ours, codes)
    assert np.array_equal(qt.dequantize(), values)
    assert np.array_equal(qlab.fake_quantize(x, scheme), values)


def shifted(seed, shape):
    """Values whose mean and size differ from row to row, with ties of the scale's steps among them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * np.exp(rng.standard_normal((*shape[:-1], 1))) + rng.standard_normal((*shape[:-1], 1))
    return x.astype(np.float32)


CASES = [("int8", None), ("uint8", "integer"), ("int8", "integer"), ("int16", None), ("uint16", "integer")]


def scheme_of(name, zero, blocks):
    return qlab.Scheme(name, blocks, "absmax" if zero is None else "minmax", zero=zero)


@pytest.mark.parametrize("name, zero", CASES)
def test_per_tensor(name, zero):
    for seed in range(5):
        check(shifted(seed, (9, 33)), scheme_of(name, zero, PerTensor()), name)
    check(np.full((3, 5), -2.5, np.float32), scheme_of(name, zero, PerTensor()), name)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name, zero", CASES)
def test_per_channel(name, zero, axis):
    for seed in range(5):
        check(shifted(seed, (17, 24)), scheme_of(name, zero, PerAxis(axis)), name, axis=axis)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name, zero", CASES)
def test_blocks(name, zero, axis):
    for seed in range(5):
        check(shifted(seed, (8, 12, 16)), scheme_of(name, zero, PerBlock(4, axis)), name, axis=axis, block_size=4)


def test_ties_go_to_the_even_code():
    x = np.arange(-127, 128, 0.5, dtype=np.float32)  # the scale is 1
    check(x, "int8", "int8")
    x = np.arange(0, 255.5, 0.5, dtype=np.float32)
    check(x, "uint8", "uint8")
