"""Specialises a graph for one signature: operators meet operands of known shape, constants fold.

What comes out is a tree of stages (graph.stages): one stage for most models, more where a run has
to tell what only data can.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tilewright.errors import ExecutionError, OperatorError, UnsupportedError
from tilewright.graph.apply import (
    apply_expression,
    cone,
    host_function,
    identity_key,
    is_control,
    is_random,
    kind_of,
    points,
)
from tilewright.graph.ir import Array, Graph, Node, kept
from tilewright.graph.stages import (
    Cut,
    Finish,
    Frame,
    HostStep,
    HostValue,
    NeedValue,
    Output,
    Ref,
    Scope,
    Stage,
    State,
    Value,
    arrive,
    content,
    fresh_name,
    is_held,
    is_known,
    literal,
    ref,
)
from tilewright.ops import registry
from tilewright.ops.tensor import Constant, NeedsValue, Placeholder, Tensor, constant, placeholder

FOLD_LIMIT = 1 << 20  # elements of a constant result that no operand is as large as
PROBE_LIMIT = 1 << 16  # points that may be computed twice so that a stage need not be cut

Materialize = Callable[[Sequence[Tensor]], list[Array]]


class Specializer:
    """Specialises one graph, for any number of signatures; what depends on no input is kept.

    `outer` are values around the graph that are known and `captured` names those that a run brings.
    `materialize` computes constant tensors. Not thread-safe.
    """

    def __init__(
        self,
        graph: Graph,
        materialize: Materialize,
        outer: Mapping[str, Value] | None = None,
        captured: Sequence[str] = (),
    ) -> None:
        self.graph = graph
        self.materialize = materialize
        self.scope = Scope(graph)
        # Another branch of the same node may be the one that reads a captured name.
        inputs = (self.scope.find(i.name) for i in graph.inputs)
        self.inputs = (*inputs, *map(self.scope.slots.get, captured))
        # By id: known values that do not depend on the signature.
        self.permanent: dict[int, Value] = {}
        self.known: dict[int, Value] = {}  # by slot
        self.folded: dict[Hashable, tuple[Value | None, ...]] = {}
        self._scopes: set[Scope] = set()
        self.enter(self.scope)
        for name, value in (outer or {}).items():
            if name in self.scope.slots:
                self._keep(self.scope.slots[name], value)

    def enter(self, scope: Scope) -> None:
        """Makes the constants of a scope known."""
        if scope not in self._scopes:
            self._scopes.add(scope)
            for name, value in kept(scope.graph.constants).tensors.items():
                self._keep(scope.slots[name], value)

    def _keep(self, slot: int, value: Value) -> None:
        self.known[slot] = value
        self.permanent[id(value)] = value

    def start(self, arguments: Sequence[Any]) -> tuple[State, list[str | None]]:
        """The state in which the inputs are like the arguments, and what a run calls them."""
        frame = Frame(self.scope, 0)
        state, names = arrive(State((frame,), {}, {}), self.inputs, arguments)
        return replace(state, borrowed=frozenset(n for n in names if n)), names

    def stage(self, state: State) -> Stage:
        """The stage that begins at the state."""
        return _Walk(self, state).run()


class _HostNeeded(Exception):
    """The current node must run on the host; `reason` says why, if that is a surprise."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class _Position:
    """A frame while it is walked."""

    scope: Scope
    index: int
    results: tuple[tuple[str, int], ...]


class _Walk:
    """One walk from a state to the next cut."""

    def __init__(self, owner: Specializer, state: State) -> None:
        self.owner = owner
        self.state = state
        self.env = dict(state.env)
        self.frames = [_Position(f.scope, f.index, f.results) for f in state.frames]
        self.memo: dict[Hashable, tuple[tuple[Value | None, ...], tuple[Value | None, ...]]] = {}
        self.labels: dict[Tensor, str] = {}

    def run(self) -> Stage:
        while len(self.frames) > 1 or self._has_node():
            if self._has_node():
                position = self.frames[-1]
                node = position.scope.nodes[position.index]
                position.index += 1
                cut = self._apply(node, position.scope)
                if cut is not None:
                    return cut
            else:
                done = self.frames.pop()
                for name, slot in done.results:
                    self._bind(slot, self._value(done.scope, name))
        return self._finish()

    def _has_node(self) -> bool:
        position = self.frames[-1]
        return position.index < len(position.scope.nodes)

    def _at_end(self) -> bool:
        """Whether the current node is the last one."""
        return all(p.index == len(p.scope.nodes) for p in self.frames)

    # --- one node

    def _apply(self, node: Node, scope: Scope) -> Stage | None:
        operands = tuple(self._value(scope, name) if name else None for name in node.inputs)
        try:
            if is_control(node):
                self._control(node, scope, operands)
            else:
                self._bind_all(node, scope, self._results(node, scope, operands))
        except NeedsValue as need:
            return self._need(node, scope, operands, need.tensor)
        except _HostNeeded as step:
            return self._host(node, scope, operands, step)
        return None

    def _results(
        self, node: Node, scope: Scope, operands: tuple[Value | None, ...]
    ) -> tuple[Value | None, ...]:
        """The results of a node: by its expression or, if all is known, by the host."""
        key = identity_key(node, operands)
        found = self.owner.folded.get(key) or self.memo.get(key, (None,))[0]
        if found is not None:
            return found
        results = self._expression(node, operands)
        if not is_random(node):
            if all(map(is_known, (*operands, *results))) and all(
                o is None or id(o) in self.owner.permanent for o in operands
            ):
                self.owner.folded[key] = results
                self.owner.permanent.update((id(r), r) for r in results if r is not None)
            self.memo[key] = (results, operands)
        return results

    def _expression(
        self, node: Node, operands: tuple[Value | None, ...]
    ) -> tuple[Value | None, ...]:
        definition = registry.find(node.domain, node.op_type)
        if definition is None or any(isinstance(o, HostValue) for o in operands):
            return self._on_host(node, operands, "")
        tensors = [o for o in operands if isinstance(o, Tensor)]
        try:
            results = apply_expression(node, definition, operands)
        except UnsupportedError as error:
            return self._on_host(node, operands, str(error))
        for r in results:
            if r is None or isinstance(r, Constant) or r in tensors:
                continue
            foreign = next((t.dtype for t in (*tensors, r) if not t.dtype.is_native), None)
            if foreign is not None:
                return self._on_host(node, operands, f"kernels do not compute on {foreign.name}")
            self.labels[r] = node.label
        return self._folded(node, tensors, results)

    def _folded(
        self, node: Node, operands: list[Tensor], results: tuple[Tensor | None, ...]
    ) -> tuple[Tensor | None, ...]:
        """The results as constants, if they are known and not much larger than their operands."""
        made = [r for r in results if r is not None and not isinstance(r, Constant)]
        limit = max((FOLD_LIMIT, *(o.size for o in operands)))
        if not made or is_random(node) or not all(isinstance(o, Constant) for o in operands):
            return results
        if any(r.size > limit for r in made):
            return results
        try:
            values = dict(zip(made, self.owner.materialize(made), strict=True))
        except ExecutionError:
            return results  # bad data is an error only when the node really runs
        return tuple(constant(values[r], r.dtype) if r in values else r for r in results)

    def _on_host(
        self, node: Node, operands: tuple[Value | None, ...], reason: str
    ) -> tuple[Value | None, ...]:
        """The results of a host operator if its operands are known; _HostNeeded if they are not."""
        if is_random(node) or not all(map(is_known, operands)):
            raise _HostNeeded(reason)
        function = host_function(node, self.owner.graph)
        return tuple(literal(v) for v in function([content(o) for o in operands]))

    # --- control flow

    def _control(self, node: Node, scope: Scope, operands: tuple[Value | None, ...]) -> None:
        """Walks into a branch whose condition is known or cheap to know; all else is the host's.

        Cheap is also one behind which nothing is left that would be compiled for either branch.
        """
        condition = operands[0] if operands else None
        if node.op_type != "If" or not isinstance(condition, Tensor):
            raise _HostNeeded("")
        if not isinstance(condition, Constant):
            if not self._at_end() and points((condition,), PROBE_LIMIT) > PROBE_LIMIT:
                raise _HostNeeded("")
            raise NeedsValue(condition)
        if condition.size != 1:
            raise OperatorError(
                f"node {node.label}: the condition has {condition.size} elements, not one"
            )
        branch = scope.branch(node, "then_branch" if condition.value.item() else "else_branch")
        self.owner.enter(branch)
        names = (o.name for o in branch.graph.outputs)
        results = tuple((n, scope.find(o)) for n, o in zip(names, node.outputs, strict=True) if o)
        self.frames.append(_Position(branch, 0, results))

    # --- values

    def _value(self, scope: Scope, name: str) -> Value:
        slot = scope.find(name)
        found = self.env.get(slot) or self.owner.known.get(slot)
        if found is None:
            raise OperatorError(f"the value {name!r} is read before it is computed")
        return found

    def _bind(self, slot: int, value: Value) -> None:
        self.env[slot] = self.state.pins.get(slot, value)

    def _bind_all(self, node: Node, scope: Scope, results: Sequence[Value | None]) -> None:
        for position, name in enumerate(node.outputs):
            if name:
                value = results[position] if position < len(results) else None
                if value is None:
                    raise OperatorError(f"node {node.label} does not produce its output {position}")
                self._bind(scope.find(name), value)

    # --- cuts

    def _need(
        self, node: Node, scope: Scope, operands: tuple[Value | None, ...], tensor: Tensor
    ) -> Stage:
        """A cut before the node, because it needs the elements of one of its operands."""
        wanted = _operand_behind(tensor, operands)
        if wanted is None:
            raise OperatorError(
                f"node {node.label} needs the elements of a value that is none of its operands"
            )
        position = next(k for k, o in enumerate(operands) if o is wanted)
        reason = f"node {node.label} needs the elements of its operand {position}"
        if isinstance(wanted, Placeholder):
            return Stage((), (), (), NeedValue(wanted.name, reason), self.state, {})
        if points((wanted,), PROBE_LIMIT) <= PROBE_LIMIT:
            name = fresh_name()
            cut = NeedValue(name, reason, scope.find(node.inputs[position]))
            return self._stage((wanted,), (name,), cut, self.state)
        self.frames[-1].index -= 1
        rest, outputs, names = self._rest((wanted,))
        return self._stage(outputs, names, NeedValue(names[outputs.index(wanted)], reason), rest)

    def _host(
        self, node: Node, scope: Scope, operands: tuple[Value | None, ...], step: _HostNeeded
    ) -> Stage:
        """A cut after the node, which the host runs between this stage and the next."""
        inner = {n for g in node.subgraphs() for n in g.free_names()}
        captured = {n: self._value(scope, n) for n in sorted(inner)}
        slots = tuple(scope.find(n) if n else None for n in node.outputs)
        rest, outputs, names = self._rest((*operands, *captured.values()))
        held = dict(zip(outputs, names, strict=True))
        known = {n: v for n, v in captured.items() if is_known(v)}
        brought = {n: _where(v, held) for n, v in captured.items() if n not in known}
        kind = kind_of(node)
        cut = HostStep(
            node,
            "reference" if kind == "compiled" else kind,
            _host_reason(node, step.reason, operands),
            tuple(_where(o, held) for o in operands),
            {n: w for n, w in brought.items() if isinstance(w, str)},
            known,
            slots,
        )
        return self._stage(outputs, names, cut, rest)

    def _finish(self) -> Stage:
        values = [self._value(self.owner.scope, o.name) for o in self.owner.graph.outputs]
        computed = list(
            dict.fromkeys(v for v in values if isinstance(v, Tensor) and not is_held(v))
        )
        names = tuple(fresh_name() for _ in computed)
        held = dict(zip(computed, names, strict=True))
        seen = set[str]()
        outputs = []
        for value in values:
            where = _where(value, held)
            own = isinstance(where, str) and where not in seen | self.state.borrowed
            seen.update([where] if isinstance(where, str) else ())
            outputs.append(Output(where, not own))
        return self._stage(
            tuple(computed), names, Finish(tuple(outputs)), replace(self.state, frames=(), env={})
        )

    def _rest(
        self, wanted: Iterable[Value | None]
    ) -> tuple[State, tuple[Tensor, ...], tuple[str, ...]]:
        """The state here, and the tensors to compute for it and for `wanted`, with their names."""
        frames = tuple(Frame(p.scope, p.index, p.results) for p in self.frames)
        outputs = {self.owner.scope.find(o.name) for o in self.owner.graph.outputs}
        read = outputs.union(*(f.reads() for f in frames))
        live = {s: v for s, v in self.env.items() if s in read}
        needed = (v for v in (*live.values(), *wanted) if isinstance(v, Tensor) and not is_held(v))
        computed = tuple(dict.fromkeys(needed))
        names = tuple(fresh_name() for _ in computed)
        held = dict(zip(computed, names, strict=True))
        symbols = {t: placeholder(t.shape, t.dtype, n) for t, n in held.items()}
        env = {s: symbols.get(v, v) if isinstance(v, Tensor) else v for s, v in live.items()}
        pins = {s: c for s, c in self.state.pins.items() if s not in self.env}
        return State(frames, env, pins, self.state.borrowed), computed, names

    def _stage(
        self,
        outputs: tuple[Tensor, ...],
        names: tuple[str, ...],
        cut: Cut,
        rest: State,
    ) -> Stage:
        inputs = tuple(
            dict.fromkeys(
                v
                for v in self.state.env.values()
                if isinstance(v, Placeholder) and v.dtype.is_native
            )
        )
        return Stage(inputs, outputs, names, cut, rest, self.labels)


def _where(value: Value | None, held: Mapping[Tensor, str]) -> Ref:
    """Where a run finds the value after a stage that computes `held`."""
    return held[value] if isinstance(value, Tensor) and value in held else ref(value)


def _operand_behind(tensor: Tensor, operands: Sequence[Value | None]) -> Tensor | None:
    """The tensor itself if it is an operand, else one whose elements decide about it."""
    unknown = [o for o in operands if isinstance(o, Tensor) and not isinstance(o, Constant)]
    return next((t for t in cone((tensor,)) if any(t is o for o in unknown)), None)


def _host_reason(node: Node, reason: str, operands: Sequence[Value | None]) -> str:
    """Why a node does not run compiled; empty where nobody would expect it to."""
    if reason or kind_of(node) != "reference":
        return reason
    return "there is no definition of this operator here"
