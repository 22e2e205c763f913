"""If, Loop and Scan: inlined where the condition is known, run by the host otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, parser
from onnx.reference import ReferenceEvaluator

import tilewright as tw

EVALUATED = tw.Options(interpret=True)
HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'

IF = """g (float[n] x, float[n] u, bool c) => (float[m] y) {
  w = Neg(u)
  y = If(c) <
    then_branch = t () => (float[n] a) { a = Add(x, w) },
    else_branch = e () => (float[m] b) { k = Constant<value_ints = [0]>() b = ReduceSum(x, k) }
  >
}"""

# The condition costs more than may be computed twice.
LATE_IF = """g (float[n,n] x, float[n,n] v) => (float[n,n] y) {
  p = MatMul(x, x)
  q = MatMul(p, x)
  s = ReduceSum<keepdims = 0>(q)
  z = Constant<value_float = 0.0>()
  c = Greater(s, z)
  y = If(c) <
    then_branch = t () => (float[n,n] a) { a = Add(x, q) },
    else_branch = e () => (float[n,n] b) { b = Sub(v, x) }
  >
}"""

# Here it also has nodes behind it, which would be compiled for either branch.
EARLY_IF = LATE_IF.replace("y = If(c)", "r = If(c)").removesuffix("}") + "  y = Neg(r)\n}"

LOOP = """g (int64 n, float[2] x, float[2] step) => (float[2] last, float[k,2] all) {
  double = Add(step, step)
  yes = Constant<value = bool {1}>()
  last, all = Loop(n, yes, x) <body = b (int64 i, bool go, float[2] v)
                              => (bool g2, float[2] v2, float[2] o) {
    g2 = Identity(go)
    f = Cast<to = 1>(i)
    d = Mul(double, f)
    v2 = Add(v, d)
    o = Neg(v2)
  }>
}"""

WHILE = """g (float x, float limit) => (float y, float[k] seen) {
  c = Less(x, limit)
  y, seen = Loop( , c, x) <body = b (int64 i, bool go, float v) => (bool g2, float v2, float v3) {
    v2 = Add(v, v)
    g2 = Less(v2, limit)
    v3 = Identity(v2)
  }>
}"""

GROWING = """g (int64 n, float[k] x) => (float[m] y) {
  yes = Constant<value = bool {1}>()
  y = Loop(n, yes, x) <body = b (int64 i, bool go, float[k] v) => (bool g2, float[m] v2) {
    g2 = Identity(go)
    v2 = Concat<axis = 0>(v, v)
  }>
}"""

SCAN = """g (float[2] start, float[t,2] x, float[t,2] z) => (float[2] last, float[2,t] rows) {
  last, rows = Scan<num_scan_inputs = 2, scan_output_axes = [1], scan_output_directions = [1],
                    scan_input_directions = [0, 1], body = b (float[2] s, float[2] a, float[2] e)
                    => (float[2] s2, float[2] o) {
    p = Mul(a, e)
    s2 = Add(s, p)
    o = Identity(s2)
  }>(start, x, z)
}"""

NESTED = """g (int64 n, float[2] x, bool c) => (float[2] y) {
  yes = Constant<value = bool {1}>()
  y = Loop(n, yes, x) <body = b (int64 i, bool go, float[2] v) => (bool g2, float[2] v2) {
    g2 = Identity(go)
    v2 = If(c) <
      then_branch = t () => (float[2] a) {
        one = Constant<value_int = 1>()
        a = Loop(one, yes, v) <body = inner (int64 j, bool h, float[2] u)
                               => (bool h2, float[2] u2) {
          h2 = Identity(h)
          u2 = Add(u, x)
        }>
      },
      else_branch = e () => (float[2] b2) { b2 = Neg(v) }
    >
  }>
}"""


def model_of(text: str) -> ModelProto:
    return parser.parse_model(HEADER + text)


def check(text: str, *several: Mapping[str, Any]) -> tw.CompiledModel:
    """One compiled model agrees with ONNX's reference on all feeds, the second time too."""
    reference = ReferenceEvaluator(model_of(text))
    model = tw.compile(model_of(text), options=EVALUATED)
    for feeds in (*several, *several):
        expected = reference.run(None, dict(feeds))
        for want, got in zip(expected, model.run(feeds).values(), strict=True):
            assert got.shape == want.shape
            assert got.dtype == want.dtype
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    return model


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.fixture
def square() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)


def test_if_on_an_input_is_inlined() -> None:
    feeds = [{"x": floats(1, 2), "u": floats(3, 4), "c": np.array(c)} for c in (True, False)]
    model = check(IF, *feeds)
    assert not any(s.then.startswith("control") for s in model.explain().stages)


@pytest.mark.parametrize(("text", "on_host"), [(LATE_IF, False), (EARLY_IF, True)])
def test_if_on_a_computed_value_agrees(square: np.ndarray, text: str, on_host: bool) -> None:
    """One that ends the graph is left to the host no more than one on an input."""
    model = check(text, {"x": square, "v": -square}, {"x": -square, "v": square})
    assert any(s.then.startswith("control") for s in model.explain().stages) is on_host


def test_if_with_a_condition_of_two_elements_is_refused() -> None:
    text = IF.replace("bool c", "bool[2] c")
    model = tw.compile(model_of(text), options=EVALUATED)
    with pytest.raises(tw.OperatorError, match="condition has 2 elements"):
        model.run({"x": floats(1), "u": floats(1), "c": np.array([True, False])})


def test_loop_with_a_trip_count() -> None:
    x, step = floats(1, 2), floats(10, 20)
    model = check(LOOP, *({"n": np.array(n), "x": x, "step": step} for n in (1, 3)))
    outputs = model.run({"n": np.array(0), "x": x, "step": step})
    np.testing.assert_array_equal(outputs["last"], x)
    assert not np.shares_memory(outputs["last"], x)
    assert outputs["all"].shape == (0, 2)


def test_loop_with_a_condition() -> None:
    model = tw.compile(model_of(WHILE), options=EVALUATED)
    for _ in range(2):
        outputs = model.run({"x": 1, "limit": 30})
        assert outputs["y"] == 32
        np.testing.assert_array_equal(outputs["seen"], [2, 4, 8, 16, 32])
        assert model.run({"x": 5, "limit": 5})["seen"].shape == (0,)


def test_loop_without_a_condition_runs_all_trips() -> None:
    text = GROWING.replace("Loop(n, yes, x)", "Loop(n, , x)")
    model = tw.compile(model_of(text), options=EVALUATED)
    assert model.run({"n": 3, "x": floats(1)})["y"].shape == (8,)


def test_loop_whose_state_grows() -> None:
    x = floats(1, 2)
    model = check(GROWING, {"n": np.array(1), "x": x}, {"n": np.array(4), "x": x})
    assert model.run({"n": np.array(5), "x": x})["y"].shape == (64,)


def test_scan_with_directions_and_axes() -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    model = tw.compile(model_of(SCAN), options=EVALUATED)
    outputs = model.run({"start": floats(0, 1), "x": x, "z": x + 1})
    sums = floats(0, 1) + np.cumsum(x * (x + 1)[::-1], 0)
    np.testing.assert_allclose(outputs["last"], sums[-1])
    np.testing.assert_allclose(outputs["rows"], sums[::-1].T)


def test_nested_control_flow_sees_values_around_it() -> None:
    feeds = [{"n": np.array(3), "x": floats(1, -2), "c": np.array(c)} for c in (True, False)]
    check(NESTED, *feeds)


def test_branches_may_capture_different_values(square: np.ndarray) -> None:
    """A branch that runs on its own gets what the other one captures too, and ignores it."""
    model = check(EARLY_IF, {"x": square, "v": square})
    assert model.run({"x": -square, "v": square})["y"].shape == (64, 64)


def test_scan_inputs_of_different_lengths_are_refused() -> None:
    model = tw.compile(model_of(SCAN.replace("float[t,2] z", "float[s,2] z")), options=EVALUATED)
    x = np.zeros((3, 2), np.float32)
    with pytest.raises(tw.ExecutionError, match="lengths"):
        model.run({"start": floats(0, 1), "x": x, "z": x[:2]})
