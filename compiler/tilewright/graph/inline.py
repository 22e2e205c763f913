"""Replaces calls of functions by their bodies: those of the model, and those that ONNX defines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TypeProto,
    helper,
    inliner,
    shape_inference,
)

from tilewright.errors import ModelError
from tilewright.graph.payload import all_nodes, graphs_of

Keep = Callable[[str, str], bool]
"""Whether the operator `(domain, op_type)` is wanted as it is; ONNX's own domain is ""."""

_MAX_ROUNDS = 16


def keep_all(domain: str, op_type: str) -> bool:
    """Every operator is wanted as it is."""
    return True


def inline_model_functions(model: ModelProto) -> ModelProto:
    """The model without functions of its own: every call is replaced by the body."""
    if not model.functions:
        return model
    try:
        return inliner.inline_local_functions(model, convert_version=True)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"the model's functions cannot be inlined: {error}") from None


def expand_function_nodes(model: ModelProto, keep: Keep) -> ModelProto:
    """The model in which operators that are not wanted are replaced by ONNX's definition of them.

    Holds for what the definitions use in turn. An operator without a definition stays, and so does
    one whose definition depends on types that cannot be inferred.
    """
    versions = {o.domain: o.version for o in model.opset_import}
    for _ in range(_MAX_ROUNDS):
        schemas = _expandable(model, versions, keep)
        if not schemas:
            break
        model = shape_inference.infer_shapes(model)
        expander = _Expander(schemas, versions, _names(model))
        expander.graph(model.graph, {})
        if not expander.changed:
            break
    return model


def _expandable(
    model: ModelProto, versions: Mapping[str, int], keep: Keep
) -> dict[tuple[str, str], Any]:
    """The schemas of unwanted operators that have a definition."""
    found: dict[tuple[str, str], Any] = {}
    for domain, op_type in {(n.domain, n.op_type) for n in all_nodes(model)}:
        version = versions.get(domain, 0)
        if keep(domain, op_type) or not onnx.defs.has(op_type, version, domain):
            continue
        schema: Any = onnx.defs.get_schema(op_type, version, domain)
        if schema.has_function or schema.has_context_dependent_function:
            found[domain, op_type] = schema
    return found


def _names(model: ModelProto) -> set[str]:
    names = {name for node in all_nodes(model) for name in (*node.input, *node.output)}
    for graph in graphs_of(model):
        names.update(v.name for v in (*graph.input, *graph.output, *graph.initializer))
    return names


@dataclass
class _Expander:
    """One round of expansion over a model whose types are inferred."""

    schemas: Mapping[tuple[str, str], Any]
    versions: Mapping[str, int]
    used: set[str]
    changed: bool = False

    def graph(self, graph: GraphProto, outer: Mapping[str, TypeProto]) -> None:
        """Expand in place; `outer` are the types of the values around."""
        types = {**outer, **_types(graph)}
        nodes: list[NodeProto] = []
        for node in graph.node:
            nodes += self._expanded(node, types)
        copies = [_copy(node) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)

    def _expanded(self, node: NodeProto, types: Mapping[str, TypeProto]) -> list[NodeProto]:
        schema = self.schemas.get((node.domain, node.op_type))
        function = None if schema is None else self._function(schema, node, types)
        if function is None:
            for graph in _graphs(node):
                self.graph(graph, types)
            return [node]
        self.changed = True
        return self._body(schema, function, node)

    def _function(
        self, schema: Any, node: NodeProto, types: Mapping[str, TypeProto]
    ) -> FunctionProto | None:
        version = self.versions[node.domain]
        if schema.has_function:
            found = schema.get_function_with_opset_version(version)
        elif any(name and name not in types for name in node.input):
            return None
        else:
            given = [types.get(name, TypeProto()).SerializeToString() for name in node.input]
            found = schema.get_context_dependent_function_with_opset_version(
                version, node.SerializeToString(), given
            )
        function = FunctionProto.FromString(found) if isinstance(found, bytes) else found
        return function if function and function.node else None

    def _body(self, schema: Any, function: FunctionProto, node: NodeProto) -> list[NodeProto]:
        defaults = {k: a.default_value for k, a in schema.attributes.items()}
        attributes = {k: a for k, a in defaults.items() if a.type != AttributeProto.UNDEFINED}
        attributes.update((a.name, a) for a in function.attribute_proto)
        attributes.update((a.name, a) for a in node.attribute)
        actual = dict.fromkeys(function.input, "")
        actual.update(zip(function.input, node.input, strict=False))
        actual.update((f, a) for f, a in zip(function.output, node.output, strict=False) if a)
        prefix = node.name or node.op_type
        return self._instantiate(function.node, actual, attributes, prefix)

    def _instantiate(
        self,
        nodes: Iterable[NodeProto],
        actual: dict[str, str],
        attributes: Mapping[str, AttributeProto],
        prefix: str,
    ) -> list[NodeProto]:
        """Copies of the nodes with actual names for formal ones, fresh ones for all others."""
        copies = []
        for node in nodes:
            copy = _copy(node)
            copy.name = f"{prefix}/{node.name or node.op_type}"
            copy.input[:] = [actual.get(name, name) for name in node.input]
            copy.output[:] = [self._name(name, actual, prefix) for name in node.output]
            _bind(copy, attributes)
            for graph in _graphs(copy):
                self._rename_graph(graph, dict(actual), attributes, prefix)
            copies.append(copy)
        return copies

    def _rename_graph(
        self,
        graph: GraphProto,
        actual: dict[str, str],
        attributes: Mapping[str, AttributeProto],
        prefix: str,
    ) -> None:
        for value in (*graph.input, *graph.initializer):
            actual.pop(value.name, None)
            value.name = self._name(value.name, actual, prefix)
        nodes = self._instantiate(graph.node, actual, attributes, prefix)
        del graph.node[:]
        graph.node.extend(nodes)
        for output in graph.output:
            output.name = actual.get(output.name, output.name)
        del graph.value_info[:]

    def _name(self, name: str, actual: dict[str, str], prefix: str) -> str:
        """The actual name of a formal one that is defined here."""
        if name and not actual.get(name):
            fresh, number = f"{prefix}/{name}", 0
            while fresh in self.used:
                number += 1
                fresh = f"{prefix}/{name}_{number}"
            self.used.add(fresh)
            actual[name] = fresh
        return actual[name] if name else ""


def _bind(node: NodeProto, attributes: Mapping[str, AttributeProto]) -> None:
    """Attributes that refer to one of the function get its value, or go if it has none."""
    bound = []
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            value = attributes.get(attribute.ref_attr_name)
            if value is None:
                continue
            name = attribute.name
            attribute = AttributeProto()
            attribute.CopyFrom(value)
            attribute.name = name
        bound.append(attribute)
    bound = [_copy_attribute(a) for a in bound]
    del node.attribute[:]
    node.attribute.extend(bound)


def _types(graph: GraphProto) -> dict[str, TypeProto]:
    types = {v.name: v.type for v in (*graph.input, *graph.value_info, *graph.output)}
    for tensor in graph.initializer:
        types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    return types


def _graphs(node: NodeProto) -> Iterable[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _copy_attribute(attribute: AttributeProto) -> AttributeProto:
    copy = AttributeProto()
    copy.CopyFrom(attribute)
    return copy
