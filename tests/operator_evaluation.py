"""One operator at a time: evaluated, verified, and by ONNX's reference."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import tilewright.driver  # noqa: F401  (registers the operators)
from strategies import random_array, shapes
from tilewright.dtypes import DType, from_numpy
from tilewright.fusion.groups import form_groups
from tilewright.fusion.inline import inline
from tilewright.fusion.legalize import legalize
from tilewright.fusion.lower import lower
from tilewright.loops.verify import verify
from tilewright.ops.evaluate import evaluate
from tilewright.ops.registry import find
from tilewright.ops.tensor import (
    Constant,
    NeedsValue,
    Placeholder,
    Tensor,
    constant,
    placeholder,
)

Array = np.ndarray
FEW = settings(max_examples=20, deadline=None)
DTYPES = (DType.F32, DType.F64, DType.F16, DType.I64, DType.U8, DType.BOOL)


def expression(name: str, *arrays: Array | None, **attributes: Any) -> Any:
    """What the operator makes of placeholders, or of constants where it needs the elements."""
    definition = find("", name)
    assert definition is not None, name
    operands: list[Tensor | None] = [
        None if a is None else placeholder(a.shape, from_numpy(a.dtype), f"x{k}")
        for k, a in enumerate(arrays)
    ]
    while True:
        try:
            return definition(*operands, **attributes)
        except NeedsValue as need:
            k = next(k for k, t in enumerate(operands) if t is need.tensor)
            operands[k] = constant(arrays[k])


def results(name: str, *arrays: Array | None, **attributes: Any) -> list[Array]:
    """The operator's results by whole-array evaluation, once their loops are known to be sound."""
    made = expression(name, *arrays, **attributes)
    tensors = [made] if isinstance(made, Tensor) else list(made)
    require_sound(tensors)
    env = {f"x{k}": a for k, a in enumerate(arrays) if a is not None}
    return [evaluate(t, env) for t in tensors]


def require_sound(tensors: list[Tensor]) -> None:
    """VerifyError unless every index is provably inside and parallel iterations are independent."""
    stored = [t for t in tensors if not isinstance(t, (Placeholder, Constant))]
    program = inline([], legalize(stored))
    for group in form_groups(program):
        verify(lower(group, program).kernel)


def run(name: str, *arrays: Array | None, **attributes: Any) -> Array:
    (only,) = results(name, *arrays, **attributes)
    return only


def reference(name: str, *arrays: Array | None, **attributes: Any) -> Array:
    """ONNX's own definition on the same operands."""
    feeds = {f"x{k}": a for k, a in enumerate(arrays) if a is not None}
    names = [f"x{k}" if a is not None else "" for k, a in enumerate(arrays)]
    node = helper.make_node(name, names, ["y"], **attributes)
    infos = [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in (*feeds, "y")]
    graph = helper.make_graph([node], "g", infos[:-1], infos[-1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
    made: Any = ReferenceEvaluator(model).run(None, feeds)
    return np.asarray(made[0])


def same(actual: Array, wanted: Array) -> None:
    assert actual.shape == wanted.shape and actual.dtype == wanted.dtype
    np.testing.assert_array_equal(actual, wanted)


def i64(*values: int) -> Array:
    return np.array(values, np.int64)


def numbered(*shape: int) -> Array:
    """Elements that all differ."""
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


@st.composite
def arrays(draw: st.DrawFn, min_rank: int = 1) -> Array:
    """An array of rank up to 5, of any type that kernels compute on."""
    shape = draw(shapes(min_rank))
    return random_array(draw(st.integers(0, 9)), shape, draw(st.sampled_from(DTYPES)))
