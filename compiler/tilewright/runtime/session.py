"""Runs a graph: finds or makes the stages for a call, and goes from one to the next."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from tilewright.errors import ExecutionError
from tilewright.graph.apply import HostFunction, host_function, points
from tilewright.graph.ir import Array, Graph
from tilewright.graph.specialize import Specializer
from tilewright.graph.stages import (
    Finish,
    HostStep,
    Known,
    Output,
    Ref,
    Stage,
    State,
    Value,
    arrive,
    give_value,
)
from tilewright.ops.tensor import Placeholder, Tensor
from tilewright.options import Options
from tilewright.runtime.control import control_function
from tilewright.runtime.segments import (
    Budget,
    Evaluation,
    Runner,
    Segment,
    attach,
    signature,
    value_key,
)

EVALUATE_LIMIT = 1 << 16  # points of a constant that are computed without making a kernel

Planner = Callable[[Sequence[Placeholder], Sequence[Tensor]], Runner]


class Workshop:
    """What the sessions of one model share: options, maker of plans, memory budget and lock."""

    def __init__(self, options: Options, planner: Planner) -> None:
        self.options = options
        self.planner = planner
        self.budget = Budget(options.plan_bytes)
        self.lock = threading.RLock()
        self._sessions: WeakValueDictionary[Hashable, Session] = WeakValueDictionary()

    def session(self, graph: Graph, outer: Mapping[str, Value], captured: Sequence[str]) -> Session:
        """The session of a nested graph; the same one for the same known values around it."""
        key = (id(graph), tuple((n, id(v)) for n, v in sorted(outer.items())), tuple(captured))
        found = self._sessions.get(key)
        if found is None:
            found = self._sessions[key] = Session(graph, self, outer, captured)
        return found

    def materialize(self, tensors: Sequence[Tensor]) -> list[Array]:
        """The elements of constant tensors."""
        small = points(tensors, EVALUATE_LIMIT) <= EVALUATE_LIMIT
        runner = Evaluation((), tensors) if small else self.planner((), tensors)
        return runner.run(())

    def sessions(self) -> Iterator[Session]:
        """The sessions of nested graphs that are in use."""
        yield from list(self._sessions.values())


class Session:
    """One graph, and the stages made for it so far. `run` may be called by several threads."""

    def __init__(
        self,
        graph: Graph,
        workshop: Workshop,
        outer: Mapping[str, Value] | None = None,
        captured: Sequence[str] = (),
    ) -> None:
        self.graph = graph
        self.workshop = workshop
        self.outer = dict(outer or {})  # held, because sessions are found by the identity of these
        self.captured = tuple(captured)
        self.roots: dict[Hashable, Segment] = {}
        self._specializer: Specializer | None = None

    def run(self, values: Sequence[Any]) -> list[Any]:
        """The outputs for values of inputs and captured names; they belong to the caller.

        Arrays must be C-contiguous, aligned and in native byte order.
        """
        return self.run_from(self.enter(values), values)

    def run_from(self, segment: Segment, values: Sequence[Any]) -> list[Any]:
        """The same, from the first segment for values like these."""
        if segment.direct:
            assert segment.runner is not None
            return segment.runner.run(values)
        if segment.passes is not None:
            return [copied(values[k]) for k in segment.passes]
        held = {n: values[k] for k, n in segment.brings}
        while not isinstance(segment.stage.cut, Finish):
            arrived = self._advance(segment, held)
            following = self._next(segment, arrived)
            held = {n: held[n] for n in segment.keep} if segment.keep else {}
            segment = following
            for k, n in segment.brings:
                held[n] = arrived[k]
        self._compute(segment, held)
        if segment.returns is not None:
            return [_own(held[n]) for n in segment.returns]
        return [_result(o, held) for o in segment.stage.cut.outputs]

    def enter(self, values: Sequence[Any]) -> Segment:
        """The first segment for values like these."""
        key = signature(values)
        found = self.roots.get(key)
        if found is None:
            with self.workshop.lock:
                found = self.roots.get(key)
                if found is None:
                    made = self._make(*self.specializer.start(values))
                    found = attach(self.roots, key, made)
        found.touch()
        return found

    @property
    def specializer(self) -> Specializer:
        """Made when it is first needed."""
        if self._specializer is None:
            self._specializer = Specializer(
                self.graph, self.workshop.materialize, self.outer, self.captured
            )
        return self._specializer

    def segments(self) -> Iterator[Segment]:
        """Every segment made so far that was not dropped."""
        for root in list(self.roots.values()):
            yield from root.walk()

    def _advance(self, segment: Segment, held: dict[str, Any]) -> list[Any]:
        """Runs a segment up to its cut; what it brings."""
        self._compute(segment, held)
        if segment.step is not None:
            return segment.step(held)
        assert segment.needs is not None
        return [held[segment.needs]]

    def _compute(self, segment: Segment, held: dict[str, Any]) -> None:
        if segment.runner is not None:
            outputs = segment.runner.run([held[n] for n in segment.reads])
            for k, n in segment.computes:
                held[n] = outputs[k]

    def _next(self, segment: Segment, arrived: Sequence[Any]) -> Segment:
        """The segment that goes on with what arrived."""
        key = signature(arrived) if segment.needs is None else value_key(arrived[0])
        found = segment.children.get(key)
        if found is None:
            with self.workshop.lock:
                found = segment.children.get(key)
                if found is None:
                    found = segment.adopt(key, self._follow(segment.stage, arrived))
        found.touch()
        return found

    def _follow(self, stage: Stage, arrived: Sequence[Any]) -> Segment:
        cut = stage.cut
        if isinstance(cut, HostStep):
            return self._make(*arrive(stage.rest, cut.slots, arrived))
        return self._make(give_value(stage, arrived[0].copy()), [None])

    def _make(self, state: State, arrivals: Sequence[str | None]) -> Segment:
        """Specialises and compiles the stage that begins at the state."""
        start = time.perf_counter()
        stage = self.specializer.stage(state)
        runner = self.workshop.planner(stage.inputs, stage.outputs) if stage.outputs else None
        step = self._step(stage.cut) if isinstance(stage.cut, HostStep) else None
        made = Segment(stage, runner, step, arrivals, time.perf_counter() - start)
        self.workshop.budget.add(made)
        if self.workshop.options.debug >= 2:
            _trace(made)
        return made

    def _step(self, cut: HostStep) -> Callable[[dict[str, Any]], list[Any]]:
        """A host step as a function of the values that a call holds."""
        function = self._function(cut)
        operands = (*cut.operands, *cut.captured.values())
        wanted = len(cut.slots)

        def step(held: dict[str, Any]) -> list[Any]:
            results = function([_fetch(o, held) for o in operands])
            if len(results) < wanted:
                raise ExecutionError(
                    f"node {cut.node.label} has {len(results)} results, {wanted} are named"
                )
            return results[:wanted]

        return step

    def _function(self, cut: HostStep) -> HostFunction:
        if cut.kind != "control":
            return host_function(cut.node, self.graph)

        def body(graph: Graph) -> Callable[[Sequence[Any]], list[Any]]:
            return self.workshop.session(graph, cut.outer, tuple(cut.captured)).run

        return control_function(cut.node, len(cut.captured), body)


def _fetch(source: Ref, held: Mapping[str, Any]) -> Any:
    match source:
        case str():
            return held[source]
        case Known(content=content):
            return content
        case None:
            return None


def _result(output: Output, held: Mapping[str, Any]) -> Any:
    value = _fetch(output.source, held)
    return copied(value) if output.copy else _own(value)


def _own(value: Any) -> Any:
    """The value with no list that something else may hold."""
    return copied(value) if isinstance(value, list) else value


def copied(value: Any) -> Any:
    """The value in memory of its own."""
    if isinstance(value, list):
        return [copied(v) for v in value]
    return value.copy() if isinstance(value, np.ndarray) else value


def _trace(segment: Segment) -> None:
    nodes = len(set(segment.stage.labels.values()))
    kernels = len(segment.runner.kernels) if segment.runner else 0
    print(
        f"tilewright: a stage of {nodes} nodes in {kernels} kernels, {segment.seconds:.3f} s",
        file=sys.stderr,
    )
