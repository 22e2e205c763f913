"""What specialisation works on and leaves: scopes, values, and stages with cuts between them.

A graph is specialised for one signature from the first node on. Where the walk cannot go on without
something that only a run can tell, it is cut: what was walked so far is a Stage, and what is left a
State, from which the walk goes on when the run has brought the missing value.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from tilewright.dtypes import from_numpy
from tilewright.graph.ir import Array, Graph, Node
from tilewright.graph.remote import is_array
from tilewright.ops.tensor import Constant, Placeholder, Tensor, constant, placeholder

_names = itertools.count()
_slots = itertools.count()


class _Unknown:
    """The type of UNKNOWN."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = _Unknown()
"""Stands for the content of a value that only a run can tell."""


@dataclass(frozen=True, eq=False)
class HostValue:
    """What only the host handles: a sequence, a map, an empty optional; `name` is its key."""

    name: str
    content: Any = UNKNOWN

    @property
    def is_known(self) -> bool:
        return self.content is not UNKNOWN


Value = Tensor | HostValue


def fresh_name() -> str:
    """A key for a value during a run that nothing else uses; it never comes from the model."""
    return f"v{next(_names)}"


def is_held(value: Value) -> bool:
    """Whether a run has the value without computing anything."""
    return isinstance(value, (Placeholder, Constant, HostValue))


def is_known(value: Value | None) -> bool:
    """Whether the content is known without a run; an omitted operand is."""
    return (
        value is None
        or isinstance(value, Constant)
        or (isinstance(value, HostValue) and value.is_known)
    )


@dataclass(frozen=True)
class Known:
    """A value that is part of the stage itself."""

    content: Any


Ref = str | Known | None
"""Where a run finds a value: under a name, in the stage, or nowhere because it is omitted."""


def ref(value: Value | None) -> Ref:
    """Where a run finds the value; it must not be one that is still to be computed."""
    match value:
        case None:
            return None
        case Constant():
            return Known(value.value)
        case HostValue():
            return Known(value.content) if value.is_known else value.name
        case _:
            assert isinstance(value, Placeholder), value
            return value.name


class Scope:
    """The values that one graph gives a name to, each with a slot of its own."""

    def __init__(self, graph: Graph, parent: Scope | None = None) -> None:
        own = graph.defined_names() if parent else graph.defined_names() | graph.free_names()
        self.graph = graph
        self.parent = parent
        self.slots = {name: next(_slots) for name in sorted(own)}
        self.nodes = live_nodes(graph)
        self._branches: dict[tuple[Node, str], Scope] = {}

    def find(self, name: str) -> int:
        """The slot of a name, in this graph or the nearest one around it that defines it."""
        scope: Scope | None = self
        while scope is not None:
            if (slot := scope.slots.get(name)) is not None:
                return slot
            scope = scope.parent
        raise KeyError(name)

    def branch(self, node: Node, attribute: str) -> Scope:
        """The scope of a graph attribute of `node`: always the same, for slots outlive a walk."""
        key = (node, attribute)
        if key not in self._branches:
            graph = node.attributes[attribute]
            assert isinstance(graph, Graph)
            self._branches[key] = Scope(graph, self)
        return self._branches[key]


def live_nodes(graph: Graph) -> tuple[Node, ...]:
    """The nodes that an output depends on, in order."""
    wanted = {o.name for o in graph.outputs}
    kept = []
    for node in reversed(graph.nodes):
        if wanted.intersection(node.outputs):
            kept.append(node)
            wanted |= node.reads
    return tuple(reversed(kept))


@dataclass(frozen=True)
class Frame:
    """What is left of one graph: its nodes from `index` on; then `results` go to slots outside."""

    scope: Scope
    index: int = 0
    results: tuple[tuple[str, int], ...] = ()

    def reads(self) -> set[int]:
        """The slots of outer or earlier values that the rest of this graph may read."""
        names = {name for name, _ in self.results}
        names.update(*(node.reads for node in self.scope.nodes[self.index :]))
        return {self.scope.find(name) for name in names}


@dataclass(frozen=True)
class State:
    """Where a walk starts: frames (innermost last), values, and slots whose content is known."""

    frames: tuple[Frame, ...]
    env: Mapping[int, Value]
    pins: Mapping[int, Constant]
    borrowed: frozenset[str] = frozenset()  # values that belong to the caller

    @cached_property
    def names(self) -> frozenset[str]:
        """The keys of the values that a run must still hold here."""
        return frozenset(r for r in map(ref, self.env.values()) if isinstance(r, str))


@dataclass(frozen=True)
class Output:
    """One result of the model; it is copied unless it is the call's own."""

    source: Ref
    copy: bool


@dataclass(frozen=True)
class Finish:
    """The end of the graph."""

    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class NeedValue:
    """The elements of the value called `name` decide how to go on; `reason` says for which node."""

    name: str
    reason: str
    slot: int | None = None  # go on from the same state, this slot being known


@dataclass(frozen=True)
class HostStep:
    """A node that the host runs: where its operands are and where its results go.

    Its nested graphs read `captured` from around it, and `outer`, which is known.
    """

    node: Node
    kind: Literal["host", "reference", "control"]
    reason: str
    operands: tuple[Ref, ...]
    captured: Mapping[str, str]
    outer: Mapping[str, Value]
    slots: tuple[int | None, ...]


Cut = Finish | NeedValue | HostStep


@dataclass(frozen=True, eq=False)
class Stage:
    """A part of a model without a cut: `outputs` by `inputs`; a run calls the results `names`."""

    inputs: tuple[Placeholder, ...]
    outputs: tuple[Tensor, ...]
    names: tuple[str, ...]
    cut: Cut
    rest: State
    labels: Mapping[Tensor, str]  # the node that each tensor came from


def arrive(
    state: State, slots: Sequence[int | None], arrived: Sequence[Any]
) -> tuple[State, list[str | None]]:
    """The state with values in slots, and what a run calls them (None: not needed)."""
    env = dict(state.env)
    names: list[str | None] = []
    for slot, value in zip(slots, arrived, strict=True):
        made = symbol(value)
        name = ref(made)
        names.append(name if isinstance(name, str) and slot is not None else None)
        if slot is not None:
            env[slot] = made
    return replace(state, env=env), names


def symbol(value: Any) -> Value:
    """What specialisation sees of a value: shape and dtype of an array, or that it is none."""
    if is_array(value):
        return placeholder(value.shape, from_numpy(value.dtype), fresh_name())
    return HostValue(fresh_name(), None if value is None else UNKNOWN)


def literal(value: Any) -> Value:
    """A value whose content is known."""
    return constant(value) if isinstance(value, np.ndarray) else HostValue("", value)


def content(value: Value | None) -> Any:
    """What a known value is: an array, a list or None."""
    if isinstance(value, Constant):
        return value.value
    return value.content if isinstance(value, HostValue) else None


def give_value(stage: Stage, value: Array) -> State:
    """The state after a NeedValue cut, now that the elements are there."""
    cut, state = stage.cut, stage.rest
    assert isinstance(cut, NeedValue)
    made = constant(value)
    if cut.slot is not None:
        return replace(state, pins={**state.pins, cut.slot: made})
    env = {
        s: made if isinstance(v, Placeholder) and v.name == cut.name else v
        for s, v in state.env.items()
    }
    return replace(state, env=env)
