"""Evaluates nodes whose operands are all constants, with ONNX's reference implementation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TypeProto, helper, shape_inference

from tilewright.dtypes import DType, from_numpy, from_onnx
from tilewright.errors import ExecutionError
from tilewright.graph.export import node_proto, tensor_proto
from tilewright.graph.ir import Array, Graph, Node
from tilewright.graph.reference import run_reference
from tilewright.graph.rewrite import Replacement, View

RANDOM = frozenset(
    ("", op)
    for op in (
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
    )
)
"""Operators that may give another result every time."""

LARGEST = 64 << 20
"""No folded value has more bytes."""

ALWAYS_BELOW = 64 << 10
"""Values of at most this many bytes are folded however much they grow."""

GROWTH = 16
"""Larger values may have at most this many times the bytes of their operands."""

_KEPT = {"DequantizeLinear": "weights stay quantised until fusion has seen them"}

_SLOW = frozenset(
    "Conv ConvTranspose ConvInteger QLinearConv DeformConv MaxPool AveragePool LpPool MaxUnpool "
    "GRU LSTM RNN Resize Upsample GridSample RoiAlign MaxRoiPool STFT DFT Col2Im "
    "NonMaxSuppression Attention".split()
)
"""Operators whose reference implementation takes long."""

_READ_BELOW = 1 << 10
"""Operands of at most this many bytes may decide the shape of a result."""


def constant_folding(node: Node, view: View) -> Replacement | None:
    """A node whose operands are all constants is a constant."""
    found = [(name, view.constant(name)) for name in node.inputs if name]
    values = {name: value for name, value in found if value is not None}
    if len(values) != len(dict(found)) or node.outputs in view.log.tried:
        return None
    refusal = _refusal(node, values)
    folded = refusal or _evaluate(node, values, view.graph)
    if isinstance(folded, str):
        view.log.tried.add(node.outputs)
        view.log.unfolded[node.label] = folded
        return None
    return Replacement(constants=folded)


def _refusal(node: Node, values: Mapping[str, Array]) -> str:
    """Why the node is not even tried; "" if it is."""
    if node.domain or (node.domain, node.op_type) in RANDOM:
        return "its result is not determined by ONNX's own definition"
    if any(True for _ in node.subgraphs()):
        return "it runs nested graphs"
    if node.op_type in _SLOW:
        return "evaluating it during compilation takes too long"
    if node.op_type in ("Div", "Mod") and _divides_integers_by_zero(node, values):
        return "it divides an integer by zero"
    return _KEPT.get(node.op_type, "")


def _divides_integers_by_zero(node: Node, values: Mapping[str, Array]) -> bool:
    divisor = values[node.inputs[1]]
    return divisor.dtype.kind in "iu" and not divisor.all()


def _evaluate(node: Node, values: Mapping[str, Array], graph: Graph) -> dict[str, Array] | str:
    """The values of the outputs, or why there are none; sizes are known before memory is taken."""
    try:
        types = _result_types(node, values, graph)
    except Exception as error:
        return f"shape inference fails: {error}"
    expected = [types.get(name) for name in node.outputs if name]
    if any(e is None for e in expected):
        return "the size of its result is not known beforehand"
    size = sum(math.prod(shape) * dtype.itemsize for dtype, shape in filter(None, expected))
    operands = sum(v.nbytes for v in values.values())
    if size > LARGEST or size > max(ALWAYS_BELOW, GROWTH * operands):
        return f"its result has {size} bytes, too many to keep"
    try:
        with np.errstate(all="ignore"):
            inputs = [values.get(name) for name in node.inputs]
            results = run_reference(node, graph.opset, inputs, graph.domains)
    except ExecutionError as error:
        return str(error)
    return _checked(node, results, types)


def _checked(
    node: Node, results: list[Any], types: Mapping[str, tuple[DType, tuple[int, ...]] | None]
) -> dict[str, Array] | str:
    """The results by name, if each is an array of the type and shape that ONNX infers."""
    made: dict[str, Array] = {}
    for name, result in zip(node.outputs, results, strict=True):
        if not name:
            continue
        if not isinstance(result, np.ndarray):
            return "its result is not a tensor"
        if (from_numpy(result.dtype), result.shape) != types[name]:
            return "the reference implementation contradicts shape inference"
        made[name] = np.array(result, from_numpy(result.dtype).numpy, order="C")
        made[name].flags.writeable = False
    return made


def _result_types(
    node: Node, values: Mapping[str, Array], graph: Graph
) -> dict[str, tuple[DType, tuple[int, ...]] | None]:
    """Type and shape of each result as far as ONNX infers them from the operands."""
    schema = onnx.defs.get_schema(node.op_type, graph.opset, node.domain)
    found = shape_inference.infer_node_outputs(
        schema,
        node_proto(node),
        {
            k: helper.make_tensor_type_proto(from_numpy(v.dtype).onnx, v.shape)
            for k, v in values.items()
        },
        {k: tensor_proto(v, k) for k, v in values.items() if v.nbytes <= _READ_BELOW},
        opset_imports=[helper.make_opsetid("", graph.opset)],
    )
    return {name: _known(proto) for name, proto in found.items()}


def _known(proto: TypeProto) -> tuple[DType, tuple[int, ...]] | None:
    tensor = proto.tensor_type
    if not (tensor.elem_type and tensor.HasField("shape")):
        return None
    if not all(d.HasField("dim_value") for d in tensor.shape.dim):
        return None
    return from_onnx(tensor.elem_type), tuple(d.dim_value for d in tensor.shape.dim)
