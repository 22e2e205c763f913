"""Says how each node of a model would be run, before anything is compiled."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache

from onnx import helper

from tilewright.errors import UnsupportedError
from tilewright.graph.apply import kind_of
from tilewright.graph.ir import Graph, Node


@dataclass(frozen=True)
class NodeSupport:
    """One node: `how` is compiled, host, control (If, Loop, Scan), reference or unknown."""

    node: str
    op_type: str
    domain: str
    how: str


@dataclass(frozen=True)
class SupportReport:
    """How the nodes of a model are run, nested graphs included.

    A compiled node still runs on the reference where its operands ask for it (float8, text ...);
    `CompiledModel.explain()` says so once the model has seen inputs.
    """

    nodes: tuple[NodeSupport, ...]

    @property
    def compiled(self) -> tuple[NodeSupport, ...]:
        """Nodes that become part of kernels."""
        return self._with("compiled")

    @property
    def host(self) -> tuple[NodeSupport, ...]:
        """Nodes with an implementation of their own on the host, control flow included."""
        return self._with("host") + self._with("control")

    @property
    def fallback(self) -> tuple[NodeSupport, ...]:
        """Nodes that ONNX's reference implementation runs: right, but slow."""
        return self._with("reference")

    @property
    def unknown(self) -> tuple[NodeSupport, ...]:
        """Nodes that nothing here can run."""
        return self._with("unknown")

    def _with(self, how: str) -> tuple[NodeSupport, ...]:
        return tuple(n for n in self.nodes if n.how == how)

    def raise_for_unknown(self) -> None:
        """UnsupportedError that names every operator nothing here can run."""
        if self.unknown:
            raise UnsupportedError(f"there is no implementation of {_counted(self.unknown)}")

    def to_json(self) -> str:
        """The nodes as a JSON list."""
        return json.dumps([asdict(n) for n in self.nodes])

    def __str__(self) -> str:
        titles = {
            "compiled": "compiled",
            "host": "on the host",
            "control": "control flow on the host",
            "reference": "by ONNX's reference (slow)",
            "unknown": "not supported",
        }
        lines = [f"{len(self.nodes)} nodes"]
        for how, title in titles.items():
            if found := self._with(how):
                lines.append(f"  {len(found):5d} {title}: {_counted(found)}")
        return "\n".join(lines)


def support_report(graph: Graph) -> SupportReport:
    """The report on a graph as imported."""
    return SupportReport(tuple(_support(n, graph) for n in all_nodes(graph)))


def _support(node: Node, graph: Graph) -> NodeSupport:
    how: str = kind_of(node)
    if how == "reference" and not _has_reference(node, graph):
        how = "unknown"
    return NodeSupport(node.label, node.op_type, node.domain, how)


def _has_reference(node: Node, graph: Graph) -> bool:
    return _reference_knows(
        node.domain, node.op_type, tuple({"": graph.opset, **graph.domains}.items())
    )


@cache
def _reference_knows(domain: str, op_type: str, versions: tuple[tuple[str, int], ...]) -> bool:
    proto = helper.make_graph([helper.make_node(op_type, [], ["y"], domain=domain)], "g", [], [])
    imports = [helper.make_opsetid(d, version) for d, version in versions]
    from onnx.reference import ReferenceEvaluator  # rarely needed, and slow to import

    try:
        ReferenceEvaluator(helper.make_model(proto, opset_imports=imports))
    except NotImplementedError:
        return False
    except (RuntimeError, TypeError, ValueError):  # known, but nothing without its attributes
        return True
    return True


def all_nodes(graph: Graph) -> Iterator[Node]:
    """The nodes of a graph, each before those of the graphs inside of it."""
    for node in graph.nodes:
        yield node
        for inner in node.subgraphs():
            yield from all_nodes(inner)


def _counted(nodes: tuple[NodeSupport, ...]) -> str:
    """Operators by frequency."""
    counts = Counter(f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in nodes)
    return ", ".join(f"{op} x{c}" if c > 1 else op for op, c in counts.most_common())
