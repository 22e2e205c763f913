"""Puts the bodies of functions in the place of their calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TypeProto, helper

Types = Mapping[str, TypeProto]


@dataclass(frozen=True)
class Definition:
    """The body of a function, and the attributes that a call may leave out."""

    function: FunctionProto
    defaults: Mapping[str, AttributeProto]


Define = Callable[[NodeProto, Types], Definition | None]
"""The definition of a call among values of these types; None for a node that stays."""


@dataclass
class Expander:
    """One round over a model. `used` are the names that new values may not have."""

    define: Define
    used: set[str]
    changed: bool = False

    def graph(self, graph: GraphProto, outer: Types) -> None:
        """Expand in place; `outer` are the types of the values around."""
        types = {**outer, **_types(graph)}
        nodes: list[NodeProto] = []
        for node in graph.node:
            nodes += self._expanded(node, types)
        replace_nodes(graph, nodes)

    def _expanded(self, node: NodeProto, types: Types) -> list[NodeProto]:
        definition = self.define(node, types)
        if definition is None:
            for graph in nested_graphs(node):
                self.graph(graph, types)
            return [node]
        self.changed = True
        return self._body(definition, node)

    def _body(self, definition: Definition, node: NodeProto) -> list[NodeProto]:
        function = definition.function
        attributes = dict(definition.defaults)
        attributes.update((a.name, a) for a in node.attribute)
        actual = dict.fromkeys(function.input, "")
        actual.update(zip(function.input, node.input, strict=False))
        actual.update((f, a) for f, a in zip(function.output, node.output, strict=False) if a)
        return self._instantiate(function.node, actual, attributes, node.name or node.op_type)

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
            for graph in nested_graphs(copy):
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
        replace_nodes(graph, nodes)
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


def nested_graphs(node: NodeProto) -> Iterable[GraphProto]:
    """The graphs among the attributes of a node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Let the graph have these nodes, which may be its own."""
    copies = [_copy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _types(graph: GraphProto) -> dict[str, TypeProto]:
    types = {v.name: v.type for v in (*graph.input, *graph.value_info, *graph.output)}
    for tensor in graph.initializer:
        types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    return types


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _copy_attribute(attribute: AttributeProto) -> AttributeProto:
    copy = AttributeProto()
    copy.CopyFrom(attribute)
    return copy
