"""Attention found behind operators, as one kernel: against ONNX's reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import tilewright
from tilewright.loops.interpret import interpret, poisoned

Array = np.ndarray


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, Array],
    constants: dict[str, Array],
    opset: int = 23,
) -> ModelProto:
    values = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in inputs.items()
    ]
    result = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    initializers = [numpy_helper.from_array(a, n) for n, a in constants.items()]
    graph = helper.make_graph(nodes, "g", values, result, initializers)
    imports = [helper.make_opsetid("", 23)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def exported(mask: str, scaled_first: bool) -> list[onnx.NodeProto]:
    """Attention as torch exports it: heads by reshape and transpose, scores, softmax, values."""
    make = helper.make_node
    nodes = []
    for name, permutation in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes.append(make("Reshape", [name, f"{name}_heads"], [f"{name}_split"]))
        nodes.append(make("Transpose", [f"{name}_split"], [f"{name}_t"], perm=permutation))
    left = "q_t"
    if scaled_first:
        nodes.append(make("Mul", ["q_t", "scale"], ["q_scaled"]))
        left = "q_scaled"
    nodes.append(make("MatMul", [left, "k_t"], ["product"]))
    score = "product"
    if not scaled_first:
        nodes.append(make("Mul", [score, "scale"], ["scores"]))
        score = "scores"
    if mask == "add":
        nodes.append(make("Add", [score, "mask"], ["masked"]))
        score = "masked"
    if mask == "where":
        nodes.append(make("Where", ["keep", score, "low"], ["masked"]))
        score = "masked"
    nodes.append(make("Softmax", [score], ["weights"], axis=-1))
    weights = "weights"
    if mask == "where":
        nodes.append(make("IsNaN", [weights], ["empty"]))
        nodes.append(make("Where", ["empty", "zero", weights], ["cleaned"]))
        weights = "cleaned"
    nodes.append(make("MatMul", [weights, "v_t"], ["sums"]))
    nodes.append(make("Transpose", ["sums"], ["back"], perm=[0, 2, 1, 3]))
    return [*nodes, make("Reshape", ["back", "whole"], ["y"])]


def reference(built: ModelProto, feeds: dict[str, Array]) -> Array:
    with np.errstate(invalid="ignore"):  # rows without any key
        results: Any = ReferenceEvaluator(built).run(None, feeds)
    return np.asarray(results[0])


def check(built: ModelProto, feeds: dict[str, Array]) -> tilewright.CompiledModel:
    want = reference(built, feeds)
    compiled = tilewright.compile(built, threads=2)
    got = compiled.run(feeds)["y"]
    scale = max(1.0, float(np.abs(np.nan_to_num(want)).max()))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * scale, equal_nan=True)
    return compiled


@settings(max_examples=14, deadline=None)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    rows=st.sampled_from([1, 2, 7, 15, 33]),
    keys=st.sampled_from([1, 3, 31, 33, 129]),
    size=st.sampled_from([16, 17, 24, 40]),
    mask=st.sampled_from(["none", "add", "where"]),
    scaled_first=st.booleans(),
)
def test_as_exported(
    batch: int, heads: int, rows: int, keys: int, size: int, mask: str, scaled_first: bool
) -> None:
    feeds = {
        "q": random(batch, rows, heads * size),
        "k": random(batch, keys, heads * size, seed=1),
        "v": random(batch, keys, heads * size, seed=2),
    }
    shape = np.array([batch, -1, heads, size])
    constants: dict[str, Any] = {f"{n}_heads": shape for n in "qkv"} | {
        "scale": np.float32(size**-0.5),
        "whole": np.array([batch, rows, heads * size]),
        "zero": np.float32(0),
        "low": np.float32(-np.inf),
    }
    if mask == "add":
        feeds["mask"] = np.where(random(batch, 1, rows, keys, seed=3) > 1, -np.inf, 0).astype("f")
    if mask == "where":
        keep = random(1, 1, rows, keys, seed=3) > 0
        keep[:, :, -1] = False  # a row without any key
        feeds["keep"] = keep
    compiled = check(model(exported(mask, scaled_first), feeds, constants), feeds)
    fused = [k for k in compiled.kernels if k.graph == "Attention"]
    event(f"kernels of attention: {len(fused)}")
    if min(rows, keys) > 1:  # else it is no more than a vector
        assert len(fused) == 1
        assert not any("Softmax" in k.graph for k in compiled.kernels)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2)])
def test_the_operator(heads: int, shared: int, causal: int) -> None:
    feeds = {
        "q": random(2, heads, 19, 32),
        "k": random(2, shared, 37, 32, seed=1),
        "v": random(2, shared, 37, 24, seed=2),
    }
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], is_causal=causal)
    check(model([node], feeds, {}), feeds)


def test_weights_that_are_needed_elsewhere_are_kept() -> None:
    feeds = {"a": random(3, 20, 16), "b": random(3, 16, 24, seed=1), "v": random(3, 24, 16, seed=2)}
    make = helper.make_node
    nodes = [
        make("MatMul", ["a", "b"], ["s"]),
        make("Softmax", ["s"], ["p"], axis=-1),
        make("MatMul", ["p", "v"], ["o"]),
        make("ReduceSum", ["p"], ["total"]),
        make("Add", ["o", "total"], ["y"]),
    ]
    compiled = check(model(nodes, feeds, {}), feeds)
    assert not any(k.graph == "Attention" for k in compiled.kernels)


def test_loops_mean_the_same() -> None:
    feeds = {"a": random(2, 5, 16), "b": random(2, 16, 35, seed=1), "v": random(2, 35, 18, seed=2)}
    make = helper.make_node
    nodes = [
        make("MatMul", ["a", "b"], ["s"]),
        make("Softmax", ["s"], ["p"], axis=-1),
        make("MatMul", ["p", "v"], ["y"]),
    ]
    built = model(nodes, feeds, {})
    compiled = check(built, feeds)
    kernel = next(k.kernel for k in compiled.kernels if k.graph == "Attention")
    packed = np.zeros((2, 2, 16, 32), np.float32)
    for panel in range(2):
        part = feeds["b"][:, :, panel * 32 : panel * 32 + 32]
        packed[:, panel, :, : part.shape[-1]] = part
    by_shape = {a.shape: a for a in (feeds["a"], packed, feeds["v"])}
    if packed.shape[-1] not in {b.shape[-1] for b in kernel.params}:
        pytest.skip("panels of another width")
    arrays = {
        b.name: by_shape[b.shape] if b.shape in by_shape else poisoned(b.shape, b.dtype)
        for b in kernel.params
    }
    interpret(kernel, arrays)
    (name,) = kernel.outputs
    want = reference(built, feeds)
    np.testing.assert_allclose(arrays[name], want, rtol=0, atol=2e-5)
