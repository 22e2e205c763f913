"""Models between DequantizeLinear and QuantizeLinear: the integers of ONNX Runtime, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import tilewright
from tilewright.graph.onnx_import import import_model
from tilewright.graph.rewrite import SimplifyLog
from tilewright.graph.rules import simplify

ort = pytest.importorskip("onnxruntime")

Zero = np.uint8 | np.int8
X_SCALE, Y_SCALE = np.float32(0.031), np.float32(0.17)


def quantized_model(
    nodes: list[NodeProto], shape: tuple[int, ...], constants: dict[str, Any], zero: Zero
) -> ModelProto:
    """x of bytes, dequantised to `d`; `nodes` make `r` of it, which is quantised to bytes y."""
    byte = TensorProto.UINT8 if zero.dtype == np.uint8 else TensorProto.INT8
    chain = [
        helper.make_node("DequantizeLinear", ["x", "xs", "zero"], ["d"]),
        *nodes,
        helper.make_node("QuantizeLinear", ["r", "ys", "zero"], ["y"]),
    ]
    scales = {"xs": X_SCALE, "ys": Y_SCALE, "zero": zero}
    graph = helper.make_graph(
        chain,
        "g",
        [helper.make_tensor_value_info("x", byte, shape)],
        [helper.make_tensor_value_info("y", byte, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in {**scales, **constants}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def weights(rng: np.random.Generator, shape: tuple[int, ...], axis: int | None) -> dict[str, Any]:
    """Integer weights with their scales; along an axis if one is given."""
    extent = () if axis is None else (shape[axis],)
    return {
        "w": rng.integers(-127, 128, shape).astype(np.int8),
        "ws": rng.uniform(0.001, 0.01, extent).astype(np.float32),
        "wz": np.zeros(extent, np.int8),
    }


def bias(rng: np.random.Generator, scales: np.ndarray, channels: int) -> dict[str, Any]:
    return {
        "b": rng.integers(-2000, 2000, channels).astype(np.int32),
        "bs": (X_SCALE * scales).astype(np.float32),
        "bz": np.zeros(scales.shape, np.int32),
    }


def dequantized(name: str, axis: int | None) -> NodeProto:
    inputs, output = [name, name + "s", name + "z"], ["d" + name]
    return helper.make_node("DequantizeLinear", inputs, output, axis=axis or 0)


def agree(model: ModelProto, shape: tuple[int, ...], zero: Zero, rule: str) -> None:
    """The same bytes as ONNX Runtime, by way of the rule."""
    rng, limits = np.random.default_rng(1), np.iinfo(zero.dtype)
    x = rng.integers(limits.min, limits.max + 1, shape).astype(zero.dtype)
    log = SimplifyLog()
    simplify(import_model(model), log)
    assert rule in {name for name, _ in log.applied}
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    np.testing.assert_array_equal(
        tilewright.compile(model).run({"x": x})["y"], session.run(None, {"x": x})[0]
    )


ZEROS = (np.uint8(0), np.uint8(131), np.int8(-7))


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(ZEROS), st.integers(1, 40), st.integers(1, 70), st.sampled_from([None, 1]))
def test_matmul(zero: Zero, rows: int, columns: int, axis: int | None) -> None:
    rng = np.random.default_rng(2)
    constants = weights(rng, (48, columns), axis)
    nodes = [dequantized("w", axis), helper.make_node("MatMul", ["d", "dw"], ["r"])]
    shape = (2, rows, 48)
    model = quantized_model(nodes, shape, constants, zero)
    agree(model, shape, zero, "quantized matmul")


@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("relu", [False, True])
def test_conv(zero: Zero, axis: int | None, relu: bool) -> None:
    rng = np.random.default_rng(3)
    constants = weights(rng, (6, 4, 3, 3), axis)
    constants |= bias(rng, constants["ws"], 6)
    conv = helper.make_node("Conv", ["d", "dw", "db"], ["c" if relu else "r"], pads=[1, 1, 1, 1])
    nodes = [dequantized("w", axis), dequantized("b", axis), conv]
    if relu:
        nodes.append(helper.make_node("Relu", ["c"], ["r"]))
        zero = zero.dtype.type(np.iinfo(zero.dtype).min)
    shape = (1, 4, 9, 7)
    model = quantized_model(nodes, shape, constants, zero)
    agree(model, shape, zero, "quantized conv")


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int) -> None:
    rng, zero = np.random.default_rng(4), np.uint8(120)
    constants = weights(rng, (10, 33) if transposed else (33, 10), 1 - transposed)
    constants |= bias(rng, constants["ws"], 10)
    gemm = helper.make_node("Gemm", ["d", "dw", "db"], ["r"], transB=transposed)
    nodes = [dequantized("w", 1 - transposed), dequantized("b", 0), gemm]
    model = quantized_model(nodes, (5, 33), constants, zero)
    agree(model, (5, 33), zero, "quantized gemm")


@pytest.mark.parametrize("zero", [np.uint8(0), np.int8(-128)])
def test_softmax(zero: Zero) -> None:
    model = quantized_model([helper.make_node("Softmax", ["d"], ["r"])], (3, 5, 50), {}, zero)
    for initializer in model.graph.initializer:
        if initializer.name == "ys":
            initializer.CopyFrom(numpy_helper.from_array(np.array(1 / 300, np.float32), "ys"))
    agree(model, (3, 5, 50), zero, "quantized softmax")


def test_a_bias_of_another_scale_stays_a_float() -> None:
    rng = np.random.default_rng(5)
    constants = weights(rng, (6, 4, 3, 3), None)
    constants |= bias(rng, constants["ws"] * 2, 6)
    nodes = [dequantized("w", None), dequantized("b", None)]
    nodes.append(helper.make_node("Conv", ["d", "dw", "db"], ["r"]))
    log = SimplifyLog()
    simplify(import_model(quantized_model(nodes, (1, 4, 9, 7), constants, np.uint8(0))), log)
    assert "quantized conv" not in {name for name, _ in log.applied}


def test_large_sums_are_exact() -> None:
    """4000 products of 255 * 127 need more than 24 bits."""
    x = np.full((1, 4000), 255, np.uint8)
    w = np.full((4000, 1), 127, np.int8)
    x[0, 0] = 254
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, (1, 1))],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    want = x.astype(np.int64) @ w.astype(np.int64)
    np.testing.assert_array_equal(tilewright.compile(model)(x), want)
