"""Specialisation and sessions: stages, folding, values as keys, host steps, fallbacks."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, parser
from onnx.reference import ReferenceEvaluator

import tilewright as tw
from tilewright.graph.specialize import PROBE_LIMIT
from tilewright.runtime.segments import value_key

EVALUATED = tw.Options(interpret=True)
HEADER = '<ir_version: 10, opset_import: ["" : 21, "ai.onnx.ml" : 3]>\n'

ADD = "g (float[n,4] x, float[4] w) => (float[n,4] y) { y = Add(x, w) }"
RESHAPED = """g (float[n,4] x, int64[k] shape) => (float[] y) {
  z = Neg(x)
  y = Reshape(z, shape)
}"""
COUNTED = """g (float[n] x) => (float[m,k] y, int64[1] count) {
  i = NonZero(x)
  f = Cast<to = 1>(i)
  y = Exp(f)
  s = Shape(i)
  one = Constant<value_ints = [1]>()
  zero = Constant<value_ints = [0]>()
  two = Constant<value_ints = [2]>()
  count = Slice(s, one, two, zero)
}"""


def model_of(text: str) -> ModelProto:
    return parser.parse_model(HEADER + text)


def compiled(text: str) -> tw.CompiledModel:
    return tw.compile(model_of(text), options=EVALUATED)


def check(text: str, feeds: Mapping[str, Any]) -> tw.CompiledModel:
    """Runs twice, and both runs agree with ONNX's reference."""
    expected = ReferenceEvaluator(model_of(text)).run(None, dict(feeds))
    model = compiled(text)
    for _ in range(2):
        for want, got in zip(expected, model.run(feeds).values(), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6)
            assert np.asarray(want).dtype == got.dtype
    return model


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 2


def endings(model: tw.CompiledModel) -> list[str]:
    return [s.then for s in model.explain().stages]


def test_each_shape_is_specialised_once() -> None:
    model = compiled(ADD)
    w = np.ones(4, np.float32)
    for rows in (2, 3, 2, 3):
        np.testing.assert_array_equal(
            model.run({"x": ramp(rows, 4), "w": w})["y"], ramp(rows, 4) + 1
        )
    assert model.cache_info().signatures == 2


def test_a_value_that_decides_a_shape_joins_the_signature() -> None:
    model = check(RESHAPED, {"x": ramp(3, 4), "shape": np.array([2, 6])})
    before = model.cache_info().stages
    y = model.run({"x": ramp(3, 4), "shape": np.array([-1, 12])})["y"]
    np.testing.assert_array_equal(y, -ramp(1, 12))
    assert model.cache_info().stages > before
    assert model.cache_info().signatures == 1


def test_shape_arithmetic_vanishes() -> None:
    text = """g (float[n,4] x) => (float[] y) {
      s = Shape(x)
      back = Constant<value_ints = [-1]>()
      zero = Constant<value_ints = [0]>()
      one = Constant<value_ints = [1]>()
      n = Slice(s, zero, one, zero)
      t = Concat<axis = 0>(n, back, one)
      y = Reshape(x, t)
    }"""
    model = check(text, {"x": ramp(3, 4)})
    assert endings(model) == ["done"]


def test_host_steps_lie_between_stages() -> None:
    model = check(COUNTED, {"x": np.array([0, 3, 0, 1, 2], np.float32)})
    assert any("NonZero" in e for e in endings(model))
    assert model.run({"x": np.zeros(3, np.float32)})["y"].shape == (1, 0)


def test_outputs_belong_to_the_caller() -> None:
    text = """g (float[n] x) => (float[n] a, float[n] b, float[2] c, float[2] d, float[n] e) {
      a = Identity(x)
      b = Identity(x)
      c = Constant<value_floats = [1.0, 2.0]>()
      d = Identity(c)
      s = Constant<value_ints = [-1]>()
      e = Reshape(x, s)
    }"""
    model = compiled(text)
    x = ramp(3)
    for _ in range(2):
        outputs = list(model.run({"x": x}).values())
        for k, output in enumerate(outputs):
            others = [x, *outputs[:k], *outputs[k + 1 :]]
            assert not any(np.shares_memory(output, o) for o in others)
            output.fill(99)
        np.testing.assert_array_equal(x, ramp(3))
    np.testing.assert_array_equal(model.run({"x": x})["c"], [1, 2])


def test_equal_nodes_are_computed_once() -> None:
    text = """g (float[n,4] x, float[4] w) => (float[n,4] y) {
      a = Add(x, w)
      b = Add(x, w)
      y = Mul(a, b)
    }"""
    model = check(text, {"x": ramp(2, 4), "w": ramp(4)})
    assert model.explain().stages[-1].nodes <= 2


def test_random_nodes_are_neither_folded_nor_shared() -> None:
    text = """g (float[n] x) => (float[8] a, float[8] b) {
      a = RandomNormal<shape = [8]>()
      b = RandomNormal<shape = [8]>()
    }"""
    model = compiled(text)
    first = model.run({"x": ramp(1)})
    second = model.run({"x": ramp(1)})
    drawn = [*first.values(), *second.values()]
    assert len({a.tobytes() for a in drawn}) == 4


def test_strings_pass_through_and_are_handled_on_the_host() -> None:
    text = """g (string[n] x, float[m] f) => (string[n] y, string[k] z, float[m] g) {
      y = Identity(x)
      z = StringConcat(x, x)
      g = Neg(f)
    }"""
    model = compiled(text)
    x = np.array(["a", "bc"], dtype=object)
    outputs = model.run({"x": x, "f": ramp(3)})
    assert outputs["y"].tolist() == ["a", "bc"]
    assert outputs["z"].tolist() == ["aa", "bcbc"]
    np.testing.assert_array_equal(outputs["g"], -ramp(3))


def test_sequences_travel_between_host_steps() -> None:
    text = """g (float[n] x, int64 i) => (float[m] y, seq(float[n]) s) {
      a = Neg(x)
      s = SequenceConstruct(x, a)
      e = SequenceAt(s, i)
      y = Add(e, x)
    }"""
    model = compiled(text)
    x = ramp(3)
    outputs = model.run({"x": x, "i": np.array(1)})
    np.testing.assert_array_equal(outputs["y"], np.zeros(3))
    np.testing.assert_array_equal(outputs["s"], [x, -x])
    assert not any(np.shares_memory(item, x) for item in outputs["s"])


def test_a_node_that_does_not_fit_is_named() -> None:
    model = compiled("g (float[n] x, float[m] w) => (float[k] why) { why = MatMul(x, w) }")
    with pytest.raises(tw.OperatorError, match=r"'why' \(MatMul\).*F32\[2\], F32\[3\]"):
        model.run({"x": ramp(2), "w": ramp(3)})


def test_a_large_value_needed_late_cuts_the_stage() -> None:
    """The product is too much work to be done twice, so the rest starts from its result."""
    side = int(PROBE_LIMIT ** (1 / 3)) + 2
    text = f"""g (float[{side},{side}] x) => (float[] y) {{
      p = MatMul(x, x)
      zero = Constant<value_ints = [0]>()
      one = Constant<value_ints = [1]>()
      row = Slice(p, zero, one, zero)
      cell = Slice(row, zero, one, one)
      i = Cast<to = 7>(cell)
      n = Reshape(i, one)
      s = Shape(x)
      t = Concat<axis = 0>(n, s)
      y = Expand(x, t)
    }}"""
    x = np.zeros((side, side), np.float32)
    x[0, 0] = 2
    model = check(text, {"x": x})
    assert model.run({"x": x})["y"].shape == (4, side, side)
    assert len(endings(model)) > 1


def test_least_recently_used_signatures_are_dropped() -> None:
    limit = 40 << 10
    model = tw.compile(model_of(ADD), options=tw.Options(interpret=True, plan_bytes=limit))
    w = np.ones(4, np.float32)
    for rows in (*range(1, 20), 1, 19):
        x = ramp(rows, 4)
        np.testing.assert_array_equal(model.run({"x": x, "w": w})["y"], x + 1)
        assert model.cache_info().nbytes <= limit
    assert 0 < model.cache_info().signatures < 19
    assert model.cache_info().dropped > 0


def test_threads_share_a_model() -> None:
    model = compiled(COUNTED)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        try:
            for _ in range(10):
                x = generator.integers(0, 2, generator.integers(1, 5)).astype(np.float32)
                count = model.run({"x": x})["count"]
                assert count.tolist() == [np.count_nonzero(x)]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.array([1, 2]), np.array([2, 1])),
        (np.array([1, 2]), np.array([[1, 2]])),
        (np.array([1, 2]), np.array([1, 2], np.uint64)),
        (np.zeros(5000), np.ones(5000)),
        (np.array(["a"], object), np.array(["b"], object)),
    ],
)
def test_value_keys_tell_values_apart(a: np.ndarray, b: np.ndarray) -> None:
    assert value_key(a) == value_key(a.copy())
    assert value_key(a) != value_key(b)
