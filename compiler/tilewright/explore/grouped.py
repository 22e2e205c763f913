"""The optimised graph as an ONNX model in which each kernel is a function, for viewers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnx import FunctionProto, ModelProto, NodeProto, helper

from tilewright.graph.export import IR_VERSION, node_proto, to_proto
from tilewright.graph.ir import Graph, Node

DOMAIN = "tilewright"
KEY = "tilewright.kernel"  # of a node's metadata


@dataclass
class _Part:
    """Nodes that stand together in the new graph: a kernel's, or one by itself."""

    name: str
    nodes: list[Node]
    reads: set[str]
    writes: set[str]


def grouped_model(graph: Graph, kernels: Iterable[tuple[str, Sequence[str]]]) -> ModelProto:
    """A model of the graph's meaning; nodes that share a kernel are the body of a function.

    `kernels` are names and the labels of their nodes, in order; a node of several belongs to the
    first. A kernel whose nodes would have to run before and after another's is left as single
    nodes, which name it in their metadata.
    """
    owners = _owners(graph, kernels)
    parts = _ordered(graph, owners)
    needed = {o.name for o in graph.outputs} | {n for p in parts for n in p.reads}
    proto = to_proto(graph)
    del proto.node[:]
    versions = {"": graph.opset, **graph.domains}
    imports = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    functions: list[FunctionProto] = []
    for part in parts:
        if len(part.nodes) == 1:
            (node,) = part.nodes
            proto.node.append(_single(node, owners.get(node.label, "")))
            continue
        inputs = sorted(part.reads)
        outputs = sorted(w for w in part.writes if w in needed)
        body = [node_proto(n) for n in part.nodes]
        functions.append(helper.make_function(DOMAIN, part.name, inputs, outputs, body, imports))
        proto.node.append(
            helper.make_node(part.name, inputs, outputs, name=part.name, domain=DOMAIN)
        )
    return helper.make_model(
        proto,
        functions=functions,
        opset_imports=[*imports, helper.make_opsetid(DOMAIN, 1)],
        ir_version=IR_VERSION,
    )


def _owners(graph: Graph, kernels: Iterable[tuple[str, Sequence[str]]]) -> dict[str, str]:
    """The kernel of each node's label; labels that several nodes have count for none."""
    counts = Counter(n.label for n in graph.nodes)
    owners: dict[str, str] = {}
    for name, labels in kernels:
        for label in labels:
            if counts[label] == 1:
                owners.setdefault(label, name)
    return owners


def _single(node: Node, kernel: str) -> NodeProto:
    proto = node_proto(node)
    if kernel:
        proto.metadata_props.add(key=KEY, value=kernel)
    return proto


def _ordered(graph: Graph, owners: Mapping[str, str]) -> list[_Part]:
    """The parts in an order in which they can run; kernels that have none are taken apart."""
    apart: set[str] = set()
    while True:
        parts = _parts(graph, owners, apart)
        done, stuck = _sorted(parts)
        if not stuck:
            return done
        loops = [p.name for p in stuck if len(p.nodes) > 1]
        apart.add(loops[-1])  # single nodes alone are never stuck: the graph has an order


def _parts(graph: Graph, owners: Mapping[str, str], apart: set[str]) -> list[_Part]:
    found: dict[str, list[Node]] = {}
    for k, node in enumerate(graph.nodes):
        name = owners.get(node.label, "")
        found.setdefault(name if name and name not in apart else f"#{k}", []).append(node)
    return [_part(name, nodes) for name, nodes in found.items()]


def _part(name: str, nodes: list[Node]) -> _Part:
    writes = {o for n in nodes for o in n.outputs if o}
    used = {i for n in nodes for i in n.inputs if i}
    used |= {f for n in nodes for g in n.subgraphs() for f in g.free_names()}
    return _Part(name, nodes, used - writes, writes)


def _sorted(parts: Sequence[_Part]) -> tuple[list[_Part], list[_Part]]:
    """The parts in order, and those that wait for each other."""
    maker = {w: k for k, p in enumerate(parts) for w in p.writes}
    missing = [{maker[r] for r in p.reads if r in maker} for p in parts]
    readers: list[list[int]] = [[] for _ in parts]
    for k, needs in enumerate(missing):
        for m in needs:
            readers[m].append(k)
    ready = [k for k, needs in enumerate(missing) if not needs]
    done: list[_Part] = []
    while ready:
        k = ready.pop(0)
        done.append(parts[k])
        for r in readers[k]:
            missing[r].discard(k)
            if not missing[r]:
                ready.append(r)
    names = {p.name for p in done}
    return done, [p for p in parts if p.name not in names]
