"""Kernels that differ in names alone have one structure; any other difference shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import tilewright
from tilewright.dtypes import DType
from tilewright.loops.ir import (
    Apply,
    Buffer,
    Const,
    Expr,
    For,
    Kernel,
    Load,
    Space,
    Store,
    Var,
    index_const,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.structure import structure


def kernel(
    names: str = "xyij", op: ScalarOp = ScalarOp.ADD, value: float | int | bool = 1.0, at: int = 1
) -> Kernel:
    """y[i, j] = x[i, j] OP value, with the names given."""
    x, y = (Buffer(n, DType.F32, (4, 5), None, Space.GLOBAL) for n in names[:2])
    i, j = tuple(names[2:])
    place = (Var(i), Var(j)) if at else (Var(i), Var(i))
    body: Expr = Apply(op, (Load(x, place), Const(value, DType.F32)))
    nest = For(i, index_const(4), For(j, index_const(5), Store(y, (Var(i), Var(j)), body)))
    return Kernel("k", (x, y), nest, frozenset((y.name,)))


def test_names_do_not_count() -> None:
    assert structure(kernel()) == structure(kernel("abcd")) == structure(kernel("yxji"))


@pytest.mark.parametrize(
    "other",
    [
        kernel(op=ScalarOp.MUL),
        kernel(value=2.0),
        kernel(value=-0.0),
        kernel(value=True),
        kernel(at=0),
        replace(kernel(), outputs=frozenset("x")),
        replace(kernel(), params=kernel().params[::-1]),
        replace(kernel(), params=tuple(replace(b, values=(0, 1)) for b in kernel().params)),
    ],
)
def test_anything_else_counts(other: Kernel) -> None:
    assert structure(other) != structure(kernel())


def test_zeros_of_both_signs_differ() -> None:
    assert structure(kernel(value=0.0)) != structure(kernel(value=-0.0))


def test_layers_of_one_structure_keep_their_own_operands() -> None:
    """Scheduled once, each run with its own weights."""
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(size=(40, 40)).astype(np.float32) for n in ("u", "v", "w")}
    nodes, last = [], "x"
    for name in weights:
        nodes.append(helper.make_node("MatMul", [last, name], ["m" + name]))
        last = "r" + name if name != "w" else "y"
        nodes.append(helper.make_node("Relu", ["m" + name], [last]))
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (9, 40)) for n in "xy"]
    made = [numpy_helper.from_array(a, n) for n, a in weights.items()]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = rng.normal(size=(9, 40)).astype(np.float32)
    want = x
    for w in weights.values():
        want = np.maximum(want @ w, 0)
    compiled = tilewright.compile(model)
    np.testing.assert_allclose(compiled(x), want, rtol=1e-4, atol=1e-4)
    assert len(compiled.kernels) == 3 and len({k.source for k in compiled.kernels}) == 1
