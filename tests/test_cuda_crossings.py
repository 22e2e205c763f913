"""Models of several parts on an emulated GPU: what stays on the device, what crosses, and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import parser

import tilewright as tw
from cuda_harness import needs_compiler
from device_arrays import Tensor
from emulated_device import EmulatedDevice, compile_for
from tilewright.runtime.crossings import TO_DEVICE, TO_HOST
from tilewright.runtime.cuda.arrays import DeviceArray

Array = np.ndarray[Any, Any]
pytestmark = needs_compiler
HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# The host finds what is not zero; `r` is needed before and after.
HOST = """g (float[a,b] x) => (float[n] y) {
  r = Relu(x)
  k = NonZero(r)
  t = Transpose<perm = [1, 0]>(k)
  g = GatherND(r, t)
  y = Exp(g)
}"""

# The elements of `s` decide about the shape.
VALUE = """g (float[a,b] x, int64[c] i) => (float[d,e] y) {
  r = Neg(x)
  one = Constant<value_ints = [1]>()
  s = Add(i, one)
  z = Reshape(r, s)
  y = Exp(z)
}"""

LOOP = """g (int64 n, float[k] x, float[k] step) => (float[k] last, float[t,k] all) {
  d = Exp(step)
  yes = Constant<value = bool {1}>()
  last, all = Loop(n, yes, x) <body = b (int64 i, bool go, float[k] v)
                              => (bool g2, float[k] v2, float[k] o) {
    g2 = Identity(go)
    v2 = Add(v, d)
    o = Neg(v2)
  }>
}"""

WHILE = """g (float[k] x) => (float[k] y) {
  yes = Constant<value = bool {1}>()
  most = Constant<value_float = 100.0>()
  y = Loop( , yes, x) <body = b (int64 i, bool go, float[k] v) => (bool g2, float[k] v2) {
    v2 = Add(v, v)
    m = ReduceMax<keepdims = 0>(v2)
    g2 = Less(m, most)
  }>
}"""

SCAN = """g (float[k] start, float[t,k] x) => (float[k] last, float[t,k] rows, float[k,t] turned) {
  e = Exp(x)
  last, rows, turned = Scan<num_scan_inputs = 1, scan_output_axes = [0, 1], body = b
                    (float[k] s, float[k] a) => (float[k] s2, float[k] o, float[k] p) {
    s2 = Add(s, a)
    o = Neg(s2)
    p = Abs(s2)
  }>(start, e)
}"""

BRANCH = """g (float[n,n] x, float[n,n] v) => (float[n,n] y) {
  p = MatMul(x, x)
  q = MatMul(p, x)
  s = ReduceSum<keepdims = 0>(q)
  z = Constant<value_float = 0.0>()
  c = Greater(s, z)
  r = If(c) <
    then_branch = t () => (float[n,n] a) { a = Add(x, q) },
    else_branch = e () => (float[n,n] b) { b = Sub(v, x) }
  >
  y = Neg(r)
}"""


def agree(text: str, *calls: dict[str, Any]) -> tuple[EmulatedDevice, tw.CompiledModel]:
    """The model on the device, after calls in which it did what the CPU does."""
    model = parser.parse_model(HEADER + text)
    device = EmulatedDevice(mixed=True)
    ours, cpu = compile_for(device, model), tw.compile(model, threads=1)
    for feeds in calls:
        wanted = cpu.run(feeds)
        for name, got in ours.run(feeds).items():
            assert got.shape == wanted[name].shape and got.dtype == wanted[name].dtype
            np.testing.assert_allclose(got, wanted[name], rtol=1e-5, atol=1e-5)
    return device, ours


def crossings(model: tw.CompiledModel) -> list[tuple[str, str, int, int]]:
    return [(c.direction, c.value, c.nbytes, c.times) for c in model.explain().crossings]


def test_a_host_step_between_kernels() -> None:
    x = normal(5, 4)
    found = int((x > 0).sum())
    _, model = agree(HOST, {"x": x}, {"x": x})
    assert crossings(model) == [
        (TO_DEVICE, "input 'x'", 80, 2),
        (TO_HOST, "value 'r'", 80, 2),
        (TO_DEVICE, "value 'k'", 16 * found, 2),
        (TO_HOST, "output 'y'", 4 * found, 2),
    ]
    text = str(model.explain())
    assert "value 'r', 80 bytes, 2 times: node 'k' (NonZero) runs on the host" in text
    assert "node 'k' (NonZero) makes it on the host" in text


def test_a_value_crosses_once() -> None:
    """Although kernels before and after a host step read it."""
    text = HOST.replace("y = Exp(g)", "m = ReduceMax<keepdims = 0>(x) y = Add(g, m)")
    _, model = agree(text, {"x": normal(5, 4)})
    assert [c[3] for c in crossings(model) if c[1] == "input 'x'"] == [1]


def test_a_value_that_decides() -> None:
    x = normal(4, 6)
    _, model = agree(VALUE, *({"x": x, "i": np.array(i)} for i in ([2, 7], [7, 2], [2, 7])))
    assert not any(c[1] == "value 'r'" for c in crossings(model))


def test_the_state_of_a_loop_stays() -> None:
    feeds = {"n": np.array(3), "x": normal(8), "step": normal(8, seed=1)}
    _, model = agree(LOOP, feeds, {**feeds, "n": np.array(0)}, {**feeds, "n": np.array(1)})
    results = {c[1] for c in crossings(model) if c[0] == TO_HOST}
    assert results == {"output 'last'", "output 'all'"}
    up = {c[1]: c[3] for c in crossings(model) if c[0] == TO_DEVICE}
    assert up == {"input 'step'": 3, "input 'v'": 2}  # what a loop begins with is its body's input


def test_the_condition_of_a_loop_crosses() -> None:
    _, model = agree(WHILE, {"x": normal(8) + 3}, {"x": normal(8) + 30})
    names = {c[1] for c in crossings(model)}
    assert names == {"input 'v'", "a condition", "output 'y'"}


def test_sequences_of_a_scan() -> None:
    """What is put together along the first axis stays on the device, the rest does not."""
    for width in (8, 3):  # rows that kernels can read in place, and others
        feeds = {"start": normal(width), "x": normal(5, width)}
        _, model = agree(SCAN, feeds, feeds)
        names = {c[1] for c in crossings(model) if c[0] == TO_HOST}
        assert names == {"value 'p'", "output 'last'", "output 'rows'"}


@pytest.mark.parametrize("sign", [1, -1])
def test_branches_take_what_is_on_the_device(sign: int) -> None:
    x = normal(64, 64) * sign
    _, model = agree(BRANCH, {"x": x, "v": -x}, {"x": -x, "v": x})
    names = {c[1] for c in crossings(model)}
    assert names <= {"input 'x'", "input 'v'", "a condition", "output 'y'"}


def test_results_of_the_host_go_to_callers_on_the_device() -> None:
    text = "g (float[a,b] x) => (float[a,b] y, int64[c,d] k) { y = Relu(x) k = NonZero(y) }"
    device = EmulatedDevice()
    model = compile_for(device, parser.parse_model(HEADER + text))
    x = normal(3, 4)
    outputs = model.run({"x": Tensor(device, x, 1)})
    assert all(isinstance(v, DeviceArray) for v in outputs.values())
    np.testing.assert_array_equal(outputs["k"].get(), np.array(np.nonzero(x > 0)))


def test_a_model_for_the_host_says_so() -> None:
    text = "g (float[a,b] x) => (int64[c,d] k) { k = NonZero(x) }"
    model = compile_for(EmulatedDevice(), parser.parse_model(HEADER + text))
    with pytest.warns(RuntimeWarning, match=r"no part of 'g' runs on the GPU.*'k' \(NonZero\)"):
        model(normal(3, 4))
    assert not crossings(model)
