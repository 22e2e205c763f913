"""A model of float32 as the same model of float16 or bfloat16: weights, constants, inputs, outputs.

What ONNX wants in float32 whatever the model's type (the scales of Resize, parameters of quantised
operators) stays so. Weights that are too large for float16 become its largest numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

KINDS = {
    "f16": (TensorProto.FLOAT16, np.dtype(np.float16)),
    "bf16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}
# The largest numbers: 2 - 2^-10 and 2 - 2^-7, times the largest power of two.
LARGEST = {"f16": 65504.0, "bf16": (2 - 2.0**-7) * 2.0**127}
# Operands by operator that are float32 in a model of halves too.
SINGLES = {"Resize": (1, 2), "Upsample": (1,)}
QUANTISED = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
}
TYPED = {"Cast": "to"}  # attributes that name the result's type; elsewhere it is `dtype`
FLOATS = {"value_float": False, "value_floats": True}


def to_halves(model: ModelProto, kind: str) -> ModelProto:
    """A converted copy. ValueError for a quantised model."""
    made = ModelProto()
    made.CopyFrom(model)
    nodes = [n for g in (made.graph, *made.functions) for n in _nodes(g)]
    if found := sorted({n.op_type for n in nodes} & QUANTISED):
        raise ValueError(f"a quantised model stays as it is: it has {', '.join(found)}")
    singles = {
        n.input[k]
        for n in nodes
        for k in SINGLES.get(n.op_type, ())
        if k < len(n.input) and n.input[k]
    }
    for node in nodes:
        _convert_node(node, kind, singles)
    for graph in (made.graph, *(g for n in nodes for g in _graphs(n))):
        _convert_graph(graph, kind, singles)
    return made


def _nodes(owner: Any) -> Iterable[NodeProto]:
    for node in owner.node:
        yield node
        for graph in _graphs(node):
            yield from _nodes(graph)


def _graphs(node: NodeProto) -> list[GraphProto]:
    held = [[a.g] if a.type == AttributeProto.GRAPH else a.graphs for a in node.attribute]
    return [graph for graphs in held for graph in graphs]


def _convert_graph(graph: GraphProto, kind: str, singles: set[str]) -> None:
    for tensor in graph.initializer:
        if tensor.name not in singles:
            _convert_tensor(tensor, kind)
    for value in (*graph.input, *graph.output, *graph.value_info):
        held = value.type.tensor_type
        if held.elem_type == TensorProto.FLOAT and value.name not in singles:
            held.elem_type = KINDS[kind][0]


def _convert_node(node: NodeProto, kind: str, singles: set[str]) -> None:
    if any(name in singles for name in node.output):
        return
    typed = TYPED.get(node.op_type, "dtype")
    for a in node.attribute:
        if a.name == typed and a.type == AttributeProto.INT and a.i == TensorProto.FLOAT:
            a.i = KINDS[kind][0]
        elif a.type == AttributeProto.TENSOR:
            _convert_tensor(a.t, kind)
        elif node.op_type == "Constant" and a.name in FLOATS:
            values = np.array(list(a.floats) if FLOATS[a.name] else a.f, np.float32)
            a.CopyFrom(AttributeProto(name="value", type=AttributeProto.TENSOR))
            a.t.CopyFrom(_tensor(values, kind))
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(AttributeProto(name="value", type=AttributeProto.TENSOR))
        node.attribute[0].t.CopyFrom(_tensor(np.zeros(1, np.float32), kind))


def _convert_tensor(tensor: TensorProto, kind: str) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        name = tensor.name
        tensor.CopyFrom(_tensor(numpy_helper.to_array(tensor), kind))
        tensor.name = name


def _tensor(values: np.ndarray[Any, Any], kind: str) -> TensorProto:
    code, dtype = KINDS[kind]
    largest = LARGEST[kind]
    values = np.where(np.isfinite(values), np.clip(values, -largest, largest), values)
    data = np.ascontiguousarray(values.astype(dtype)).tobytes()
    return TensorProto(data_type=code, dims=values.shape, raw_data=data)
