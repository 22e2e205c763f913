"""Whole models to kernel sources, as a reader would review them: nothing is compiled or run.

A text has the operators, directives and lifted numbers of a kernel, then its source. It is that of
a processor the test names, so it is the same on every host. `make golden` accepts new texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper, parser

import tilewright
from tilewright.codegen.emit import emit
from tilewright.options import Options
from tilewright.runtime.cache import CacheStats
from tilewright.runtime.plan import PlannedKernel
from tilewright.runtime.store import Store
from tilewright_kernels.cpu.machine import machine

Check = Callable[[str], None]
Target = Callable[..., None]

PROCESSORS = {"avx512": "skylake-avx512", "avx2": "haswell"}
SUMMED_AXIS = re.compile(r"\br\d+_")  # numbered through the whole process
HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'


class Nowhere:
    """In place of the kernel cache and of the executor: compiles nothing, runs nothing."""

    threads = 2
    store = Store(None, 0)

    def __init__(self, *unused: object) -> None:
        pass

    def load(self, texts: Sequence[str]) -> list[int]:
        return [0] * len(texts)

    def stats(self) -> CacheStats:
        return CacheStats()


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """Makes kernels be written for a processor other than this one."""
    monkeypatch.setattr("tilewright.driver.KernelCache", Nowhere)
    monkeypatch.setattr("tilewright.runtime.plan.Executor", Nowhere)

    def choose(name: str, features: str = "") -> None:
        monkeypatch.setenv("NUMBA_CPU_NAME", PROCESSORS[name])
        monkeypatch.setenv("NUMBA_CPU_FEATURES", features)
        machine.cache_clear()

    yield choose
    machine.cache_clear()


@dataclass(frozen=True)
class Case:
    """A model: `weights` are the shapes of its constants."""

    graph: str
    inputs: dict[str, tuple[int, ...]]
    weights: dict[str, tuple[int, ...]]

    def model(self) -> ModelProto:
        model = parser.parse_model(HEADER + self.graph)
        for k, (name, shape) in enumerate(self.weights.items()):
            values = np.random.default_rng(k).standard_normal(shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(values, name))
        return model


def sources(case: Case) -> str:
    model = tilewright.compile(case.model(), options=Options(threads=Nowhere.threads))
    model.warmup(case.inputs)
    return "\n\n".join(map(described, model.kernels))


def described(kernel: PlannedKernel) -> str:
    numbers = ", ".join(map(str, emit(kernel.kernel).numbers))
    directives = [f"#   {SUMMED_AXIS.sub('r', line)}" for line in kernel.schedule]
    head = [f"# {kernel.graph}, scheduled by", *directives, f"# with the numbers {numbers}"]
    return "\n".join([*head, kernel.source])


ANYWHERE = {
    "elementwise_chain": Case(
        """g (float[n,m] x, float[m] b) => (float[n,m] y) {
          a = Add(x, b)
          y = Relu(a)
        }""",
        {"x": (5, 7), "b": (7,)},
        {},
    ),
    "row_softmax": Case(
        "g (float[n,m] x) => (float[n,m] y) { y = Softmax<axis = -1>(x) }", {"x": (6, 33)}, {}
    ),
    "layer_norm": Case(
        """g (float[n,m] x) => (float[n,m] y) {
          axes = Constant<value_ints = [-1]>()
          epsilon = Constant<value_float = 0.00001>()
          mean = ReduceMean(x, axes)
          centred = Sub(x, mean)
          squares = Mul(centred, centred)
          variance = ReduceMean(squares, axes)
          shifted = Add(variance, epsilon)
          deviation = Sqrt(shifted)
          normal = Div(centred, deviation)
          scaled = Mul(normal, w)
          y = Add(scaled, b)
        }""",
        {"x": (6, 24)},
        {"w": (24,), "b": (24,)},
    ),
    "gather": Case(
        "g (float[n,m] x, int64[k] i) => (float[k,m] y) { y = Gather(x, i) }",
        {"x": (9, 5), "i": (4,)},
        {},
    ),
    "transposed_copy": Case(
        "g (float[a,b,c] x) => (float[c,a,b] y) { y = Transpose<perm = [2, 0, 1]>(x) }",
        {"x": (4, 5, 6)},
        {},
    ),
}

TILES = {
    "inner_reduction": Case(
        """g (float[n,k,m] x) => (float[n,m] y) {
          axes = Constant<value_ints = [1]>()
          s = ReduceSum<keepdims = 0>(x, axes)
          y = Tanh(s)
        }""",
        {"x": (3, 20, 150)},
        {},
    ),
    "depthwise": Case(
        """g (float[n,3,h,w] x) => (float[n,40,h,w] z) {
          y = Conv<pads = [1, 1, 1, 1]>(x, first)
          z = Conv<pads = [1, 1, 1, 1], group = 40>(y, weights)
        }""",
        {"x": (1, 3, 9, 30)},
        {"first": (40, 3, 3, 3), "weights": (40, 1, 3, 3)},
    ),
    "winograd": Case(
        """g (float[n,64,h,w] x) => (float[n,64,h,w] y) {
          c = Conv<pads = [1, 1, 1, 1]>(x, weights, b)
          y = Relu(c)
        }""",
        {"x": (1, 64, 30, 30)},
        {"weights": (64, 64, 3, 3), "b": (64,)},
    ),
    "dense": Case(
        """g (float[n,40] x) => (float[n,m] y) {
          s = MatMul(x, w)
          a = Add(s, b)
          y = Relu(a)
        }""",
        {"x": (50, 40)},
        {"w": (40, 48), "b": (48,)},
    ),
    "convolution": Case(
        """g (float[1,3,h,w] x) => (float[1,f,h,w] y) {
          s = Conv<pads = [1, 1, 1, 1]>(x, w, b)
          y = Relu(s)
        }""",
        {"x": (1, 3, 12, 12)},
        {"w": (32, 3, 3, 3), "b": (32,)},
    ),
}

BYTES = Case(
    """g (float[n,38] x) => (float[n,m] y) {
      q, scale, zero = DynamicQuantizeLinear(x)
      bytes = Cast<to = 3>(w)
      sums = MatMulInteger(q, bytes, zero)
      exact = Cast<to = 1>(sums)
      scaled = Mul(exact, scale)
      y = Relu(scaled)
    }""",
    {"x": (50, 38)},
    {"w": (38, 48)},
)


@pytest.mark.parametrize("name", ANYWHERE)
def test_source_for_any_processor(name: str, target: Target, golden: Check) -> None:
    texts = []
    for processor in PROCESSORS:
        target(processor)
        texts.append(sources(ANYWHERE[name]))
    assert texts[0] == texts[1]
    golden(texts[0])


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("name", TILES)
def test_source_of_tiles(name: str, processor: str, target: Target, golden: Check) -> None:
    target(processor)
    golden(sources(TILES[name]))


@pytest.mark.parametrize("features", ["+avx512vnni", ""])
def test_source_of_bytes(features: str, target: Target, golden: Check) -> None:
    """On tiles of bytes where the processor has products of them, else on tiles of floats."""
    target("avx512", features)
    golden(sources(BYTES))
