"""Small models, compiled, against ONNX's reference: for this processor and for lesser ones.

Sizes are odd on purpose: they meet every edge of tiles and vectors, whatever the vector length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

import tilewright
from tilewright.runtime.objects import kernel_assembly
from tilewright_kernels.cpu import machine

pytestmark = pytest.mark.avx2

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
AVX512_BYTES = 64

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A model's text without its signature: `y` is computed from inputs and constant weights."""

    body: str
    inputs: Mapping[str, Shape]
    weights: Mapping[str, Shape] = field(default_factory=dict)
    dtype: str = "float"

    @property
    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        for k, (name, shape) in enumerate({**self.inputs, **self.weights}.items()):
            values = np.random.default_rng(k).uniform(-1, 1, shape)
            yield name, values.astype(np.float64 if self.dtype == "double" else np.float32)

    def model(self) -> ModelProto:
        declared = (f"{self.dtype}{list(s)} {n}" for n, s in self.inputs.items())
        text = f"g ({', '.join(declared)}) => ({self.dtype}[] y) {{ {self.body} }}"
        model = parser.parse_model(HEADER + text)
        made = (numpy_helper.from_array(a, n) for n, a in self.arrays if n in self.weights)
        model.graph.initializer.extend(made)
        return model

    def feeds(self) -> dict[str, np.ndarray]:
        return {n: a for n, a in self.arrays if n in self.inputs}


def check(case: Case) -> tilewright.CompiledModel:
    model, feeds = case.model(), case.feeds()
    (want,) = ReferenceEvaluator(model).run(None, dict(feeds))
    compiled = tilewright.compile(model)
    got = compiled(**feeds)
    assert isinstance(want, np.ndarray)
    assert got.shape == want.shape and got.dtype == want.dtype
    tolerance = 1e-12 if case.dtype == "double" else 2e-5
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
    return compiled


DENSE = "s = MatMul(x, w) t = Add(s, b) y = Relu(t)"


@pytest.mark.parametrize(
    ("rows", "depth", "columns"),
    [(1, 37, 50), (5, 19, 15), (7, 13, 17), (13, 3, 33), (29, 31, 1), (27, 40, 65)],
)
def test_dense(rows: int, depth: int, columns: int) -> None:
    check(Case(DENSE, {"x": (rows, depth)}, {"w": (depth, columns), "b": (columns,)}))


@pytest.mark.parametrize("size", [(9, 11, 7), (14, 5, 47)])
def test_matmul_in_double(size: tuple[int, int, int]) -> None:
    rows, depth, columns = size
    inputs = {"x": (rows, depth), "w": (depth, columns)}
    check(Case("y = MatMul(x, w)", inputs, dtype="double"))


@pytest.mark.parametrize(("a", "b"), [((3, 9, 10), (3, 10, 21)), ((2, 1, 9, 5), (3, 5, 35))])
def test_matmul_of_batches(a: Shape, b: Shape) -> None:
    check(Case("y = MatMul(x, w)", {"x": a, "w": b}))


GEMM = "s = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(x, w, b)"
WITH_BIAS = {"w": (37, 23), "b": (37,)}


def test_gemm_with_gelu_is_one_kernel() -> None:
    compiled = check(Case(f"{GEMM} y = Gelu(s)", {"x": (11, 23)}, WITH_BIAS))
    assert len(compiled.kernels) == 1


def test_gemm_with_approximate_gelu_is_one_kernel() -> None:
    """Its operand is named five times, and computed once."""
    body = f'{GEMM} y = Gelu<approximate = "tanh">(s)'
    assert len(check(Case(body, {"x": (11, 23)}, WITH_BIAS)).kernels) == 1


def test_gemm_of_transposed_operands() -> None:
    inputs = {"x": (19, 10), "w": (27, 19), "b": (10, 1)}
    check(Case("y = Gemm<transA = 1, transB = 1>(x, w, b)", inputs))


CONVOLUTIONS = {
    "padded": ("pads = [1, 1, 1, 1]", (1, 3, 9, 11), (18, 3, 3, 3)),
    "strided": ("strides = [2, 2], pads = [1, 0, 2, 1]", (2, 5, 11, 13), (17, 5, 3, 3)),
    "dilated": ("dilations = [2, 3]", (1, 4, 10, 15), (9, 4, 3, 3)),
    "pointwise": ("kernel_shape = [1, 1]", (2, 13, 5, 7), (35, 13, 1, 1)),
    "grouped": ("group = 2, pads = [1, 1, 1, 1]", (1, 6, 7, 9), (16, 3, 3, 3)),
    "depthwise": ("group = 21, pads = [1, 1, 1, 1]", (1, 21, 9, 9), (21, 1, 3, 3)),
    "depthwise, strided": ("group = 19, strides = [2, 2]", (1, 19, 11, 9), (19, 1, 3, 3)),
    "of one dimension": ("pads = [2, 2]", (2, 7, 31), (18, 7, 5)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str) -> None:
    attributes, image, filters = CONVOLUTIONS[name]
    body = f"s = Conv<{attributes}>(x, w, b) y = Relu(s)"
    check(Case(body, {"x": image}, {"w": filters, "b": filters[:1]}))


@pytest.mark.parametrize(
    ("shape", "axis"), [((5, 1), -1), ((4, 67), -1), ((3, 21, 35), 1), ((65,), 0)]
)
def test_softmax(shape: Shape, axis: int) -> None:
    check(Case(f"y = Softmax<axis = {axis}>(x)", {"x": shape}))


@pytest.mark.parametrize("shape", [(3, 7, 41), (90, 5)])
def test_layer_normalization(shape: Shape) -> None:
    weights = {"w": shape[-1:], "b": shape[-1:]}
    check(Case("y = LayerNormalization(x, w, b)", {"x": shape}, weights))


def test_attention() -> None:
    body = """k = Transpose<perm = [0, 1, 3, 2]>(x)
              s = MatMul(x, k)
              p = Softmax<axis = -1>(s)
              y = MatMul(p, x)"""
    check(Case(body, {"x": (1, 2, 17, 9)}))


@pytest.mark.skipif(machine.vector_bytes() >= AVX512_BYTES, reason="kernels are for AVX-512")
def test_kernels_use_no_wider_vectors() -> None:
    compiled = check(Case(DENSE, {"x": (24, 32)}, {"w": (32, 64), "b": (64,)}))
    for kernel in compiled.kernels:
        assert "zmm" not in kernel_assembly(kernel.source)
