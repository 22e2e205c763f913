"""ONNX models to graphs: the one way in, and suspicious of everything it reads."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    checker,
)

from tilewright.errors import ModelError
from tilewright.graph.inline import Keep, expand_function_nodes, inline_model_functions, keep_all
from tilewright.graph.ir import Array, Attribute, Dim, Graph, Kind, Node, ValueInfo
from tilewright.graph.order import sort_nodes
from tilewright.graph.payload import Payloads
from tilewright.graph.tensors import element_type
from tilewright.graph.upgrade import OPSET, normalise_domains, upgrade
from tilewright.graph.wire import Lifted, lift_bytes, lift_file

Source = str | os.PathLike[str] | bytes | ModelProto


def import_model(source: Source, keep: Keep = keep_all) -> Graph:
    """The graph of a model given as a path, as bytes or as a message, in terms of opset `OPSET`.

    Functions of the model are inlined, and so is ONNX's own definition of every operator for which
    `keep(domain, op_type)` is False. Raises ModelError for whatever is wrong with the model, and
    UnsupportedError for what is right but beyond this compiler. The message is left unchanged.
    """
    try:
        return _import(source, keep)
    except (UnicodeDecodeError, DecodeError, EncodeError) as error:
        raise ModelError(f"the model is damaged: {error}") from None


def _import(source: Source, keep: Keep) -> Graph:
    model, payloads = _read(source)
    overridable = model.ir_version >= 4
    sort_nodes(model)
    payloads.take(model)
    _check(model)
    payloads.mark()
    normalise_domains(model)
    model = upgrade(inline_model_functions(model))
    model = expand_function_nodes(model, keep)
    versions = {o.domain: o.version for o in model.opset_import}
    return _Importer(payloads, versions, overridable).graph(model.graph)


def _read(source: Source) -> tuple[ModelProto, Payloads]:
    """A message that may be changed, and where to find the data that is not inside it."""
    if isinstance(source, ModelProto):
        model = ModelProto()
        model.CopyFrom(source)
        return model, Payloads(Lifted(b""), None)
    if isinstance(source, bytes):
        lifted = lift_bytes(source)
        return _parse(lifted, "the bytes given"), Payloads(lifted, None)
    path = Path(source)
    lifted = lift_file(path)
    return _parse(lifted, repr(str(path))), Payloads(lifted, path.parent)


def _parse(lifted: Lifted, what: str) -> ModelProto:
    model = ModelProto()
    try:
        model.ParseFromString(lifted.message)
    except (DecodeError, ValueError, RecursionError):
        raise ModelError(f"{what}: not an ONNX model, or a damaged one") from None
    if not model.HasField("graph"):
        raise ModelError(f"{what}: not an ONNX model (it has no graph)")
    return model


def _check(model: ModelProto) -> None:
    """Ask ONNX's checker, but let types of results and shapes be missing, as other runtimes do."""
    untyped = [v for v in model.graph.output if not v.HasField("type")]
    for value in untyped:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    tensors = [v.type.tensor_type for v in (*model.graph.input, *model.graph.output)]
    shapeless = [t for t in tensors if t.elem_type and not t.HasField("shape")]
    for tensor in shapeless:
        tensor.shape.SetInParent()
    try:
        checker.check_model(model, skip_opset_compatibility_check=True)
    except (checker.ValidationError, RuntimeError, ValueError) as error:
        raise ModelError(f"the model is not valid ONNX: {str(error).strip()}") from None
    for tensor in shapeless:
        tensor.ClearField("shape")
    for value in untyped:
        value.ClearField("type")


@dataclass
class _Importer:
    """Turns the graphs of one checked model into ours."""

    payloads: Payloads
    versions: dict[str, int]
    overridable: bool

    def graph(self, proto: GraphProto) -> Graph:
        constants = {t.name: self.payloads.array(t) for t in proto.initializer}
        inputs = tuple(value_info(i) for i in proto.input)
        defaults: dict[str, Array] = {}
        if self.overridable:
            defaults = {i.name: constants.pop(i.name) for i in inputs if i.name in constants}
        nodes = []
        for node in proto.node:
            if node.op_type == "Constant" and node.domain == "":
                constants[node.output[0]] = self._constant(node)
            else:
                nodes.append(self._node(node))
        graph = Graph(
            name=proto.name,
            inputs=tuple(i for i in inputs if i.name not in constants),
            outputs=tuple(value_info(o) for o in proto.output),
            constants=constants,
            nodes=tuple(nodes),
            opset=self.versions.get("", OPSET),
            defaults=defaults,
            domains={d: v for d, v in self.versions.items() if d},
        )
        _check_names(graph)
        return graph

    def _node(self, proto: NodeProto) -> Node:
        return Node(
            name=proto.name,
            op_type=proto.op_type,
            domain=proto.domain,
            inputs=tuple(proto.input),
            outputs=tuple(proto.output),
            attributes={a.name: self._attribute(a, proto) for a in proto.attribute},
        )

    def _constant(self, proto: NodeProto) -> Array:
        if len(proto.attribute) != 1:
            raise ModelError(f"node {proto.name!r} (Constant) must have exactly one value")
        attribute = proto.attribute[0]
        value = self._attribute(attribute, proto)
        if isinstance(value, np.ndarray):
            return value
        dtype = _CONSTANT_TYPES.get(attribute.name)
        if dtype is None:
            raise ModelError(f"node {proto.name!r} (Constant) has no attribute {attribute.name!r}")
        array = np.array(value, dtype)
        array.flags.writeable = False
        return array

    def _attribute(self, a: AttributeProto, node: NodeProto) -> Attribute:
        kind = AttributeProto
        match a.type:
            case kind.INT:
                return int(a.i)
            case kind.FLOAT:
                return float(a.f)
            case kind.STRING:
                return _text(a.s)
            case kind.TENSOR:
                return self.payloads.array(a.t)
            case kind.GRAPH:
                return self.graph(a.g)
            case kind.TYPE_PROTO:
                return type_info("", a.tp)
            case kind.INTS:
                return tuple(a.ints)
            case kind.FLOATS:
                return tuple(a.floats)
            case kind.STRINGS:
                return tuple(_text(s) for s in a.strings)
            case kind.TENSORS:
                return tuple(self.payloads.array(t) for t in a.tensors)
            case kind.GRAPHS:
                return tuple(self.graph(g) for g in a.graphs)
            case kind.TYPE_PROTOS:
                return tuple(type_info("", t) for t in a.type_protos)
        raise ModelError(f"node {node.name!r} ({node.op_type}): attribute {a.name!r} has no type")


_CONSTANT_TYPES: dict[str, Any] = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_string": object,
    "value_strings": object,
}


def value_info(proto: ValueInfoProto) -> ValueInfo:
    """What the model declares about an input or an output."""
    return type_info(proto.name, proto.type)


def type_info(name: str, proto: TypeProto) -> ValueInfo:
    """A declared type; of a container, its kind and the type of the tensors inside."""
    kind: Kind = "tensor"
    inner = proto
    while (which := inner.WhichOneof("value")) in _CONTAINERS:
        kind = kind if kind != "tensor" else _CONTAINERS[which]
        inner = (
            inner.map_type.value_type if which == "map_type" else getattr(inner, which).elem_type
        )
    if which == "sparse_tensor_type":
        kind = "sparse"
    if which not in ("tensor_type", "sparse_tensor_type"):
        return ValueInfo(name, None, None, kind)
    tensor = inner.tensor_type if which == "tensor_type" else inner.sparse_tensor_type
    dtype = element_type(tensor.elem_type, f"value {name!r}") if tensor.elem_type else None
    shape = _dims(tensor.shape.dim) if tensor.HasField("shape") else None
    return ValueInfo(name, dtype, shape, kind)


_CONTAINERS: dict[str | None, Kind] = {
    "sequence_type": "sequence",
    "optional_type": "optional",
    "map_type": "map",
}


def _dims(dims: Iterable[Any]) -> tuple[Dim, ...]:
    return tuple(_dim(d) for d in dims)


def _dim(proto: Any) -> Dim:
    """A negative extent and a question mark are what some exporters write for an unknown one."""
    if proto.HasField("dim_value"):
        return int(proto.dim_value) if proto.dim_value >= 0 else None
    return None if proto.dim_param in ("", "?") else str(proto.dim_param)


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def _check_names(graph: Graph) -> None:
    """Every value has one definition."""
    seen = set(graph.constants) | {i.name for i in graph.inputs}
    for node in graph.nodes:
        for name in node.outputs:
            if name in seen:
                raise ModelError(f"node {node.label} defines {name!r}, which is defined already")
            if name:
                seen.add(name)
