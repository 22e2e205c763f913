"""Small models and random graphs for the tests of the graph stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tilewright.dtypes import from_numpy
from tilewright.graph.export import to_model
from tilewright.graph.ir import Array, Attribute, Graph, Node, ValueInfo
from tilewright.graph.upgrade import OPSET


def model_of(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    constants: Mapping[str, Array] | None = None,
    opset: int = OPSET,
    ir_version: int = 10,
) -> ModelProto:
    """A model; the arrays tell the types of the inputs."""
    graph = helper.make_graph(
        nodes,
        "model",
        [
            helper.make_tensor_value_info(name, from_numpy(a.dtype).onnx, a.shape)
            for name, a in inputs.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(a, name) for name, a in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def evaluate(graph: Graph, feeds: Mapping[str, Array]) -> list[Any]:
    """The graph's outputs by ONNX's reference implementation."""
    return list(ReferenceEvaluator(to_model(graph)).run(None, dict(feeds)))


def info(name: str, array: Array) -> ValueInfo:
    return ValueInfo(name, from_numpy(array.dtype), array.shape)


@dataclass
class Builder:
    """Grows a graph whose values all have known shapes, so that every step is legal."""

    draw: Any
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)

    def pick(self, *ranks: int) -> str | None:
        names = [n for n, s in self.shapes.items() if not ranks or len(s) in ranks]
        return self.draw(st.sampled_from(names)) if names else None

    def array(self, *shape: int) -> str:
        seed = self.draw(st.integers(0, 3))
        value = np.random.default_rng(seed).uniform(0.5, 2, shape).astype(np.float32)
        return self.constant(value)

    def constant(self, value: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def add(
        self,
        op_type: str,
        inputs: Sequence[str],
        shape: tuple[int, ...],
        **attributes: Attribute,
    ) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(Node(f"n{name}", op_type, "", tuple(inputs), (name,), attributes))
        self.shapes[name] = shape
        return name


def _unary(b: Builder) -> None:
    x = b.pick()
    assert x is not None
    b.add(b.draw(st.sampled_from(["Identity", "Neg", "Dropout", "Abs"])), (x,), b.shapes[x])


def _transpose(b: Builder) -> None:
    x = b.pick()
    assert x is not None
    shape = b.shapes[x]
    for _ in range(b.draw(st.integers(1, 3))):
        if b.draw(st.integers(0, 3)) == 0:
            shape = shape[::-1]
            x = b.add("Transpose", (x,), shape)
            continue
        perm = tuple(b.draw(st.permutations(range(len(shape)))))
        shape = tuple(shape[i] for i in perm)
        x = b.add("Transpose", (x,), shape, perm=perm)


def _cast(b: Builder) -> None:
    x = b.pick()
    assert x is not None
    codes = st.sampled_from([TensorProto.FLOAT, TensorProto.DOUBLE])
    y = b.add("Cast", (x,), b.shapes[x], to=int(b.draw(codes)))
    z = b.add("Cast", (y,), b.shapes[x], to=int(TensorProto.FLOAT))
    del b.shapes[y]
    assert z in b.shapes


def _reshape(b: Builder) -> None:
    x = b.pick(3, 4)
    if x is None:
        return
    shape = b.shapes[x]
    flat = (shape[0], -1) if b.draw(st.booleans()) else (0, -1)
    target = b.constant(np.array(flat, np.int64))
    b.add("Reshape", (x, target), (shape[0], int(np.prod(shape[1:]))))
    back = b.constant(np.array(shape, np.int64))
    y = list(b.shapes)[-1]
    b.add("Reshape", (y, back), shape)


def _convolution(b: Builder) -> None:
    x = b.pick(4)
    if x is None:
        return
    n, c, h, w = b.shapes[x]
    filters = b.draw(st.sampled_from([2, 6]))
    inputs = [x, b.array(filters, c, 1, 1)]
    op_type = b.draw(st.sampled_from(["Conv", "ConvTranspose"]))
    if op_type == "ConvTranspose":
        inputs[1] = b.array(c, filters, 1, 1)
    if b.draw(st.booleans()):
        inputs.append(b.array(filters))
    y = b.add(op_type, inputs, (n, filters, h, w))
    for _ in range(b.draw(st.integers(0, 2))):
        y = _per_channel(b, y)


def _per_channel(b: Builder, x: str) -> str:
    shape = b.shapes[x]
    if b.draw(st.booleans()):
        vectors = [b.array(shape[1]) for _ in range(4)]
        return b.add("BatchNormalization", (x, *vectors), shape)
    ones = (1,) * (len(shape) - 2)
    forms = [(shape[1], *ones), (1, shape[1], *ones), (1,), (), (shape[-1],), (1, *shape[1:])]
    operands = [x, b.array(*b.draw(st.sampled_from(forms)))]
    if b.draw(st.booleans()):
        operands.reverse()
    return b.add(b.draw(st.sampled_from(["Add", "Mul", "Sub", "Div"])), operands, shape)


def _gemm(b: Builder) -> None:
    x = b.pick(2)
    if x is None:
        return
    m, k = b.shapes[x]
    n = b.draw(st.sampled_from([3, 5]))
    transposed = b.draw(st.booleans())
    inputs = [x, b.array(n, k) if transposed else b.array(k, n)]
    forms: list[tuple[int, ...]] = [(n,), (m, n), (m, 1), (1,), ()]
    if b.draw(st.booleans()):
        inputs.append(b.array(*b.draw(st.sampled_from(forms))))
    y = b.add("Gemm", inputs, (m, n), transB=int(transposed), alpha=0.5, beta=1.5)
    if b.draw(st.booleans()):
        b.add("BatchNormalization", (y, *(b.array(n) for _ in range(4))), (m, n))


def _of_constants(b: Builder) -> None:
    x = b.pick()
    assert x is not None
    left, right = b.array(1), b.array(1)
    y = b.add("Mul", (left, right), (1,))
    del b.shapes[y]
    b.add("Add", (x, y), b.shapes[x])


def _branch(b: Builder) -> None:
    x = b.pick()
    assert x is not None
    shape = b.shapes[x]
    graphs = []
    for op_type in ("Neg", b.draw(st.sampled_from(["Identity", "Abs"]))):
        first = Node("", op_type, "", (x,), ("inside",))
        second = Node("", "Identity", "", ("inside",), ("result",))
        nodes = (first, second)
        result = (ValueInfo("result", from_numpy(np.float32), shape),)
        graphs.append(Graph("branch", (), result, {}, nodes, OPSET))
    condition = b.constant(np.array(b.draw(st.booleans())))
    b.add("If", (condition,), shape, then_branch=graphs[0], else_branch=graphs[1])


_STEPS = (
    _unary,
    _transpose,
    _cast,
    _reshape,
    _convolution,
    _convolution,
    _gemm,
    _of_constants,
    _branch,
)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """A random graph with the inputs `x` of rank 4 and `y` of rank 2, all extents distinct."""
    b = Builder(draw, {"x": (2, 3, 4, 5), "y": (7, 6)})
    for step in (_unary, *draw(st.lists(st.sampled_from(_STEPS), min_size=1, max_size=7))):
        step(b)
    made = [n for n in b.shapes if n not in ("x", "y")]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    return Graph(
        "random",
        tuple(ValueInfo(n, from_numpy(np.float32), s) for n, s in feeds_shapes().items()),
        tuple(ValueInfo(n, from_numpy(np.float32), b.shapes[n]) for n in outputs),
        b.constants,
        tuple(b.nodes),
        OPSET,
    )


def feeds_shapes() -> dict[str, tuple[int, ...]]:
    return {"x": (2, 3, 4, 5), "y": (7, 6)}


def feeds() -> dict[str, Array]:
    rng = np.random.default_rng(7)
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in feeds_shapes().items()}
