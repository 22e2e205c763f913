"""Rules about a whole graph: equal nodes are computed once, and what nobody reads not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping

import numpy as np
import onnx

from tilewright.graph.fold import RANDOM
from tilewright.graph.ir import Array, Attribute, Graph, Node
from tilewright.graph.rewrite import SimplifyLog, inner_names, renamed_node

SMALL = 1 << 10
"""Constants of at most this many bytes are compared by value."""


def prune(graph: Graph, log: SimplifyLog) -> Graph:
    """The graph without nodes, optional outputs and constants that nobody reads."""
    needed = {o.name for o in graph.outputs}
    nodes: list[Node] = []
    for node in reversed(graph.nodes):
        if not needed.intersection(node.outputs):
            log.applied.append(("unused node", node.label))
            continue
        kept = _without_unused_outputs(map_graphs(node, lambda g: prune(g, log)), needed)
        needed |= kept.reads
        nodes.append(kept)
    nodes.reverse()
    constants = {name: value for name, value in graph.constants.items() if name in needed}
    return _replaced(graph, tuple(nodes), constants)


def _without_unused_outputs(node: Node, needed: set[str]) -> Node:
    """The node without the optional outputs that are not needed."""
    if all(name in needed for name in node.outputs) or not onnx.defs.has(node.op_type, node.domain):
        return node
    schema = onnx.defs.get_schema(node.op_type, node.domain)
    optional = [
        o.option == onnx.defs.OpSchema.FormalParameterOption.Optional for o in schema.outputs
    ]
    outputs = [
        "" if place < len(optional) and optional[place] and name not in needed else name
        for place, name in enumerate(node.outputs)
    ]
    while outputs and not outputs[-1]:
        outputs.pop()
    if tuple(outputs) == node.outputs:
        return node
    return dataclasses.replace(node, outputs=tuple(outputs))


def share_equal_nodes(graph: Graph, log: SimplifyLog) -> Graph:
    """The graph in which of two nodes that compute the same, only the first one stays."""
    seen: dict[Hashable, Node] = {}
    names: dict[str, str] = {}
    nodes: list[Node] = []
    outputs, inner = {o.name for o in graph.outputs}, inner_names(graph)
    for original in graph.nodes:
        node = renamed_node(original, names)
        node = map_graphs(node, lambda g: share_equal_nodes(g, log))
        key = _key(node, graph.constants)
        twin = seen.setdefault(key, node) if key is not None else node
        if twin is node or outputs.intersection(node.outputs) or inner.intersection(twin.outputs):
            nodes.append(node)
            continue
        log.applied.append(("equal node", node.label))
        names.update(zip(node.outputs, twin.outputs, strict=True))
    return _replaced(graph, tuple(nodes), graph.constants)


def _key(node: Node, constants: Mapping[str, Array]) -> Hashable:
    """Equal for nodes that compute the same; None for those that may not be shared."""
    if (node.domain, node.op_type) in RANDOM or any(True for _ in node.subgraphs()):
        return None
    inputs = tuple(_input_key(name, constants) for name in node.inputs)
    attributes = tuple(sorted((k, _value_key(v)) for k, v in node.attributes.items()))
    present = tuple(bool(name) for name in node.outputs)
    return node.domain, node.op_type, inputs, attributes, present


def _input_key(name: str, constants: Mapping[str, Array]) -> Hashable:
    value = constants.get(name)
    if value is None or value.dtype == object or value.nbytes > SMALL:
        return name
    return _value_key(value)


def _value_key(value: Attribute) -> tuple[Hashable, ...]:
    """The value as bytes or text, so that -0.0 and 0.0 differ and NaN equals itself."""
    if isinstance(value, np.ndarray):
        return "array", str(value.dtype), value.shape, value.tobytes()
    return type(value).__name__, repr(value)


def map_graphs(node: Node, change: Callable[[Graph], Graph]) -> Node:
    """The node with its nested graphs changed; the same object if none was."""
    changed = {
        key: after
        for key, value in node.attributes.items()
        if isinstance(value, Graph) and (after := change(value)) is not value
    }
    if not changed:
        return node
    return dataclasses.replace(node, attributes={**node.attributes, **changed})


def _replaced(graph: Graph, nodes: tuple[Node, ...], constants: Mapping[str, Array]) -> Graph:
    """The graph with these nodes and constants; the same object if they are what it has."""
    same = len(nodes) == len(graph.nodes) and len(constants) == len(graph.constants)
    if same and all(a is b for a, b in zip(nodes, graph.nodes, strict=True)):
        return graph
    return dataclasses.replace(graph, nodes=nodes, constants=constants)
