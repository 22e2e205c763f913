"""Applies local rules to a graph, nested graphs included, until none applies."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tilewright.graph.ir import Array, Attribute, Graph, Node

MAX_SWEEPS = 50
"""More sweeps than any model needs; rules that undo each other would go on for ever."""


@dataclass
class SimplifyLog:
    """What was done, as (rule, node), and why foldable nodes were left alone, as node -> reason."""

    applied: list[tuple[str, str]] = field(default_factory=list)
    unfolded: dict[str, str] = field(default_factory=dict)
    tried: set[tuple[str, ...]] = field(default_factory=set)


@dataclass(frozen=True)
class Replacement:
    """What takes the place of one node: other nodes, constants, and values that exist already."""

    nodes: tuple[Node, ...] = ()
    constants: Mapping[str, Array] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)


class View:
    """What rules may ask about the graph around a node; kept up to date during a sweep."""

    def __init__(self, graph: Graph, outer: View | None, log: SimplifyLog) -> None:
        self.graph, self.outer, self.log = graph, outer, log
        self.constants: dict[str, Array] = dict(graph.constants)
        self.producers: dict[str, Node] = {}
        self.uses: Counter[str] = graph.use_counts()
        self.outputs = {o.name for o in graph.outputs}
        self.computed = {name for node in graph.nodes for name in node.outputs}
        self._own = set(graph.defined_names())
        self.inner = inner_names(graph)
        self._names = self._own | self.inner

    def constant(self, name: str) -> Array | None:
        """The value of a constant of this graph or one around it."""
        if name in self.constants:
            return self.constants[name]
        if self.outer is None or name in self._own:
            return None
        return self.outer.constant(name)

    def producer(self, name: str, *op_types: str) -> Node | None:
        """The node of this graph that computes a value, if it is one of ONNX's `op_types`."""
        node = self.producers.get(name)
        return node if node and node.op_type in op_types and not node.domain else None

    def only_use(self, name: str) -> bool:
        """Whether nothing but the node in question reads the value."""
        return self.uses[name] == 1

    def fresh(self, hint: str) -> str:
        """A name that no value in sight has."""
        name, number = hint, 0
        while self._taken(name):
            number += 1
            name = f"{hint}_{number}"
        self._names.add(name)
        return name

    def _taken(self, name: str) -> bool:
        return name in self._names or (self.outer is not None and self.outer._taken(name))


Rule = Callable[[Node, View], Replacement | None]


def rewrite(graph: Graph, rules: Sequence[Rule], log: SimplifyLog) -> Graph:
    """The graph after one sweep of the rules over its nodes; the same object if none applied."""
    return _Sweep(graph, rules, View(graph, None, log)).run()


class _Sweep:
    """One pass over the nodes of one graph."""

    def __init__(self, graph: Graph, rules: Sequence[Rule], view: View) -> None:
        self.graph, self.rules, self.view = graph, rules, view
        self.names: dict[str, str] = {}
        self.nodes: list[Node] = []
        self.changed = False

    def run(self) -> Graph:
        for node in self.graph.nodes:
            self._visit(renamed_node(node, self.names) if self.names else node)
        if not self.changed:
            return self.graph
        return dataclasses.replace(
            self.graph,
            nodes=tuple(renamed_node(n, self.names, outputs=True) for n in self.nodes),
            constants=self.view.constants,
        )

    def _visit(self, node: Node) -> None:
        node = self._nested(node)
        for rule in self.rules:
            found = rule(node, self.view)
            if found is not None and self._apply(node, found):
                self.view.log.applied.append((rule.__name__.replace("_", " "), node.label))
                self.changed = True
                return
        self._emit(node)

    def _nested(self, node: Node) -> Node:
        """The node with its nested graphs swept."""
        changed: dict[str, Attribute] = {}
        for key, value in node.attributes.items():
            if isinstance(value, Graph):
                view = View(value, self.view, self.view.log)
                swept = _Sweep(value, self.rules, view).run()
                if swept is not value:
                    changed[key] = swept
        if not changed:
            return node
        self.changed = True
        return dataclasses.replace(node, attributes={**node.attributes, **changed})

    def _emit(self, node: Node) -> None:
        self.nodes.append(node)
        self.view.producers.update((name, node) for name in node.outputs if name)

    def _apply(self, node: Node, found: Replacement) -> bool:
        """Put the replacement in; False if an alias is impossible."""
        if not all(self._alias_possible(old, new) for old, new in found.aliases.items()):
            return False
        view = self.view
        view.constants.update(found.constants)
        view.uses.subtract(node.reads)
        for new_node in found.nodes:
            view.uses.update(n for n in new_node.inputs if n)
            view.computed.update(new_node.outputs)
            self._emit(new_node)
        for old, new in found.aliases.items():
            self._alias(old, new)
        return True

    def _alias_possible(self, old: str, new: str) -> bool:
        """A graph output can only stand for a value that a node computes and no other output is.

        The name that stays must not mean something else in a nested graph.
        """
        view, new = self.view, self.names.get(new, new)
        if old in view.outputs:
            return new in view.computed and new not in view.outputs and old not in view.inner
        return new not in view.inner

    def _alias(self, old: str, new: str) -> None:
        new = self.names.get(new, new)
        keep, drop = (old, new) if old in self.view.outputs else (new, old)
        self.view.uses[keep] += self.view.uses.pop(drop, 0)
        if drop in self.view.producers:
            self.view.producers[keep] = self.view.producers[drop]
        self.names = {k: keep if v == drop else v for k, v in self.names.items()}
        self.names[drop] = keep


def inner_names(graph: Graph) -> set[str]:
    """The names that nested graphs, at any depth, define."""
    names: set[str] = set()
    for node in graph.nodes:
        for inner in node.subgraphs():
            names |= inner.defined_names() | inner_names(inner)
    return names


def renamed_node(node: Node, names: Mapping[str, str], outputs: bool = False) -> Node:
    """The node, reading `names[n]` wherever it read `n`; `outputs`: also writing it."""
    made = tuple(names.get(n, n) for n in node.outputs) if outputs else node.outputs
    if made == node.outputs and not any(name in names for name in node.reads):
        return node
    return dataclasses.replace(
        node,
        inputs=tuple(names.get(n, n) for n in node.inputs),
        outputs=made,
        attributes={k: renamed_attribute(v, names) for k, v in node.attributes.items()},
    )


def renamed_attribute(value: Attribute, names: Mapping[str, str]) -> Attribute:
    """The attribute, reading other values where it is a graph that captures renamed ones."""
    if isinstance(value, Graph):
        return renamed_captures(value, names)
    if isinstance(value, tuple):
        return tuple(renamed_captures(g, names) for g in value if isinstance(g, Graph)) or value
    return value


def renamed_captures(graph: Graph, names: Mapping[str, str]) -> Graph:
    """The graph, reading `names[n]` from around it wherever it read `n`."""
    names = {old: new for old, new in names.items() if old in graph.free_names()}
    if not names:
        return graph
    outputs = tuple(dataclasses.replace(o, name=names.get(o.name, o.name)) for o in graph.outputs)
    nodes = tuple(renamed_node(node, names) for node in graph.nodes)
    return dataclasses.replace(graph, outputs=outputs, nodes=nodes)
