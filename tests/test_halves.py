"""Where values become halves: in casts back and forth, in what only moves, at the end."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper

import tilewright

# In float16, 2048 + 1 is 2048; in float32 it is not.
BIG = np.full((2, 3), 2048.0, np.float32)
ONE = np.ones((2, 3), np.float32)


def run(nodes: list[NodeProto], dtype: int = TensorProto.FLOAT16) -> np.ndarray:
    """`big` and `one` are float32; the result of the nodes is `y`."""
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (2, 3)) for n in ("big", "one")]
    half = [
        helper.make_node("Cast", [n], [n[0]], to=int(TensorProto.FLOAT16)) for n in ("big", "one")
    ]
    output = helper.make_tensor_value_info("y", dtype, None)
    graph = helper.make_graph([*half, *nodes], "g", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return np.asarray(tilewright.compile(model)(big=BIG, one=ONE))


def cast(source: str, target: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], to=to)


def test_operators_that_compute_hand_on_float32() -> None:
    """(b + o) - b is 1, not 0."""
    y = run(
        [helper.make_node("Add", ["b", "o"], ["s"]), helper.make_node("Sub", ["s", "b"], ["y"])]
    )
    np.testing.assert_array_equal(y, ONE.astype(np.float16))


def test_what_moves_is_rounded() -> None:
    y = run(
        [
            helper.make_node("Add", ["b", "o"], ["s"]),
            helper.make_node("Transpose", ["s"], ["t"], perm=[1, 0]),
            helper.make_node("Transpose", ["b"], ["u"], perm=[1, 0]),
            helper.make_node("Sub", ["t", "u"], ["y"]),
        ]
    )
    np.testing.assert_array_equal(y, np.zeros((3, 2), np.float16))


def test_casts_back_and_forth_round() -> None:
    y = run(
        [
            helper.make_node("Add", ["big", "one"], ["s"]),
            cast("s", "h", TensorProto.FLOAT16),
            cast("h", "f", TensorProto.FLOAT),
            helper.make_node("Sub", ["f", "big"], ["y"]),
        ],
        TensorProto.FLOAT,
    )
    np.testing.assert_array_equal(y, np.zeros((2, 3), np.float32))


def test_outputs_are_rounded() -> None:
    y = run([helper.make_node("Add", ["b", "o"], ["y"])])
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, BIG.astype(np.float16))


def test_float64_is_rounded_once() -> None:
    """In float32 the value is the middle of two halves, whose even one is 1."""
    x = helper.make_tensor_value_info("x", TensorProto.DOUBLE, (1,))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, (1,))
    graph = helper.make_graph([cast("x", "y", TensorProto.FLOAT16)], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    values = np.array([1 + 2.0**-11 + 2.0**-40])
    result = np.asarray(tilewright.compile(model)(x=values))
    np.testing.assert_array_equal(result, values.astype(np.float16))
