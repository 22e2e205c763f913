"""Graphs back to ONNX messages, for the reference implementation and for reproducers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from tilewright.graph.ir import Array, Attribute, Graph, Node, ValueInfo

IR_VERSION = 13
"""The version of the file format that exported models declare."""


def to_model(graph: Graph) -> ModelProto:
    """A model of its own with the graph's meaning."""
    versions = {"": graph.opset, **graph.domains}
    imports = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    return helper.make_model(to_proto(graph), opset_imports=imports, ir_version=IR_VERSION)


def to_proto(graph: Graph) -> GraphProto:
    """The graph as a message; constants and defaults become initializers."""
    proto = GraphProto(name=graph.name or "graph")
    proto.input.extend(value_proto(i) for i in graph.inputs)
    proto.output.extend(value_proto(o) for o in graph.outputs)
    for name, value in {**graph.constants, **graph.defaults}.items():
        proto.initializer.append(tensor_proto(value, name))
    proto.node.extend(node_proto(node) for node in graph.nodes)
    return proto


def node_proto(node: Node) -> NodeProto:
    """The node as a message, its nested graphs included."""
    proto = NodeProto(name=node.name, op_type=node.op_type, domain=node.domain)
    proto.input.extend(node.inputs)
    proto.output.extend(node.outputs)
    proto.attribute.extend(attribute_proto(k, v) for k, v in node.attributes.items())
    return proto


def attribute_proto(name: str, value: Attribute) -> AttributeProto:
    """The attribute as a message; an empty list is written as one of integers."""
    several = isinstance(value, tuple)
    items = value if isinstance(value, tuple) else (value,)
    kind, one, many, convert = _row(items[0] if items else 0)
    proto = AttributeProto(name=name, type=AttributeProto.AttributeType.Value(kind + "S" * several))
    if several:
        getattr(proto, many).extend(convert(item) for item in items)
    elif kind in ("INT", "FLOAT", "STRING"):
        setattr(proto, one, convert(value))
    else:
        getattr(proto, one).CopyFrom(convert(value))
    return proto


def tensor_proto(value: Array, name: str = "") -> TensorProto:
    """The array as a message."""
    if value.dtype != object:
        return numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
    proto = TensorProto(name=name, data_type=TensorProto.STRING, dims=value.shape)
    proto.string_data.extend(_bytes(text) for text in value.reshape(-1))
    return proto


def value_proto(info: ValueInfo) -> ValueInfoProto:
    """The declaration as a message."""
    proto = ValueInfoProto(name=info.name)
    if info.dtype is not None:
        proto.type.CopyFrom(type_proto(info))
    return proto


def type_proto(info: ValueInfo) -> TypeProto:
    """The type as a message; a container is one of plain tensors."""
    code = info.dtype.onnx if info.dtype else TensorProto.UNDEFINED
    if info.kind == "sparse":
        return helper.make_sparse_tensor_type_proto(code, info.shape)
    tensor = helper.make_tensor_type_proto(code, info.shape)
    match info.kind:
        case "sequence":
            return helper.make_sequence_type_proto(tensor)
        case "optional":
            return helper.make_optional_type_proto(tensor)
        case "map":
            return helper.make_map_type_proto(TensorProto.INT64, tensor)
    return tensor


def _bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8") if isinstance(text, str) else text


_Row = tuple[str, str, str, Callable[[Any], Any]]

_ROWS: tuple[tuple[type | tuple[type, ...], _Row], ...] = (
    (int, ("INT", "i", "ints", int)),
    (float, ("FLOAT", "f", "floats", float)),
    ((str, bytes), ("STRING", "s", "strings", _bytes)),
    (np.ndarray, ("TENSOR", "t", "tensors", tensor_proto)),
    (Graph, ("GRAPH", "g", "graphs", to_proto)),
    (ValueInfo, ("TYPE_PROTO", "tp", "type_protos", type_proto)),
)


def _row(item: Any) -> _Row:
    """The attribute's kind, its two fields, and what turns a value into the field's content."""
    return next(row for types, row in _ROWS if isinstance(item, types))
