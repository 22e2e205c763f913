"""Puts nodes in an order in which values are computed before they are read, as exporters should."""

from __future__ import annotations

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from tilewright.errors import ModelError
from tilewright.graph.payload import graphs_of


def sort_nodes(model: ModelProto) -> None:
    """Every graph of the model lists producers before consumers; sorted graphs are untouched."""
    for graph in graphs_of(model):
        reads = [_reads(node) for node in graph.node]
        if not _is_sorted(graph, reads):
            _sort(graph, reads)


def _is_sorted(graph: GraphProto, reads: list[set[str]]) -> bool:
    pending = {name for node in graph.node for name in node.output if name}
    for node, needed in zip(graph.node, reads, strict=True):
        if needed & pending:
            return False
        pending.difference_update(node.output)
    return True


def _sort(graph: GraphProto, reads: list[set[str]]) -> None:
    """Kahn's algorithm in rounds, stable: nodes that are ready keep the order they had."""
    waiting = list(zip(graph.node, reads, strict=True))
    pending = {name for node in graph.node for name in node.output if name}
    done: list[NodeProto] = []
    while waiting:
        later = []
        for node, needed in waiting:
            if needed & pending:
                later.append((node, needed))
            else:
                pending.difference_update(node.output)
                done.append(node)
        if len(later) == len(waiting):
            raise ModelError(f"the nodes of graph {graph.name!r} need each other's outputs")
        waiting = later
    copies = [_copy(node) for node in done]
    del graph.node[:]
    graph.node.extend(copies)


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _reads(node: NodeProto) -> set[str]:
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            names |= _captured(attribute.g)
        for graph in attribute.graphs:
            names |= _captured(graph)
    return names


def _captured(graph: GraphProto) -> set[str]:
    own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    own.update(name for node in graph.node for name in node.output)
    read = {o.name for o in graph.output}
    for node in graph.node:
        read |= _reads(node)
    return read - own
