"""Runs a graph: finds or makes the stages for a call, and goes from one to the next."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from tilewright.errors import ExecutionError
from tilewright.graph.apply import HostFunction, host_function, points
from tilewright.graph.ir import Array, Graph
from tilewright.graph.remote import RemoteArray, on_host
from tilewright.graph.specialize import Specializer
from tilewright.graph.stages import (
    Finish,
    HostStep,
    Known,
    NeedValue,
    Output,
    Ref,
    State,
    Value,
    arrive,
    give_value,
)
from tilewright.ops.tensor import Placeholder, Tensor
from tilewright.options import Options
from tilewright.runtime.cache import CacheStats
from tilewright.runtime.ceilings import Ceilings, ceilings_for, known_ceilings
from tilewright.runtime.control import control_function
from tilewright.runtime.revisions import Revisions
from tilewright.runtime.segments import (
    Budget,
    Children,
    Evaluation,
    Origin,
    Runner,
    Segment,
    attach,
    signature,
    value_key,
)

if TYPE_CHECKING:  # what runs on the CPU needs nothing of CUDA
    from tilewright.runtime.cuda.ceilings import DeviceCeilings
    from tilewright.runtime.cuda.port import Port

CONSTANT: Origin = ("a constant", "it is known when the model is specialised")
EVALUATE_LIMIT = 1 << 16  # points of a constant that are computed without making a kernel

Planner = Callable[[Sequence[Placeholder], Sequence[Tensor]], Runner]


class Workshop:
    """What the sessions of one model share: options, maker of plans, memory budget and lock.

    `port` is the way to the device that the plans run on, if they do not run on the host, and
    `ceilings` are that device's. `revisions` are what users have changed in the kernels.
    """

    def __init__(
        self,
        options: Options,
        planner: Planner,
        port: Port | None = None,
        ceilings: DeviceCeilings | None = None,
        stats: Callable[[], CacheStats] | None = None,
        revisions: Revisions | None = None,
    ) -> None:
        self.options = options
        self.revisions = revisions
        self.planner = planner
        self.port = port
        self._ceilings = ceilings
        self.stats = stats  # of the cache that the kernels come from
        self.hosted: list[str] = []  # nodes that the host computes
        self.makes_kernels = False
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
        return [on_host(v, *CONSTANT) for v in runner.run(())]

    def ceilings(self) -> Ceilings:
        """What the processor that the plans run on can do at most."""
        return self._ceilings() if self._ceilings else ceilings_for(self.options)

    def known_ceilings(self) -> Ceilings | None:
        """The same, if it has been measured."""
        return self._ceilings.known if self._ceilings else known_ceilings(self.options)

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
        self.roots = Children()
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
            return segment.runner.run(self._placed(segment, values))
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
                    names = [i.name for i in self.graph.inputs] + list(self.captured)
                    origins = [(f"input {n!r}", "the caller has it on the host") for n in names]
                    made = self._make(*self.specializer.start(values), origins, {})
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
        assert segment.needs is not None and isinstance(segment.stage.cut, NeedValue)
        name = segment.origins.get(segment.needs, ("a computed value", ""))[0]
        return [on_host(held[segment.needs], name, segment.stage.cut.reason)]

    def _placed(self, segment: Segment, values: Sequence[Any]) -> Sequence[Any]:
        """The values that a plan reads, where it can read them."""
        port = self.workshop.port
        if port is None or not segment.wanted:
            return values
        origin = segment.origins.get
        return [
            port.upload(v, *origin(n, CONSTANT)) if used and isinstance(v, np.ndarray) else v
            for n, v, used in zip(segment.reads, values, segment.wanted, strict=True)
        ]

    def _compute(self, segment: Segment, held: dict[str, Any]) -> None:
        if segment.runner is not None:
            arrays = self._placed(segment, [held[n] for n in segment.reads])
            if self.workshop.port is not None:
                held.update(zip(segment.reads, arrays, strict=True))  # they cross once
            outputs = segment.runner.run(arrays)
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
                    found = segment.adopt(key, self._follow(segment, arrived))
        found.touch()
        return found

    def _follow(self, segment: Segment, arrived: Sequence[Any]) -> Segment:
        stage, cut = segment.stage, segment.stage.cut
        known = segment.origins
        if not isinstance(cut, HostStep):
            return self._make(give_value(stage, arrived[0].copy()), [None], [("", "")], known)
        why = f"node {cut.node.label} makes it on the host"
        origins = [(f"value {n!r}", why) for n in cut.node.outputs]
        return self._make(*arrive(stage.rest, cut.slots, arrived), origins, known)

    def _make(
        self,
        state: State,
        arrivals: Sequence[str | None],
        origins: Sequence[Origin],
        known: Mapping[str, Origin],
    ) -> Segment:
        """Specialises and compiles the stage that begins at the state."""
        start = time.perf_counter()
        stage = self.specializer.stage(state)
        runner = self.workshop.planner(stage.inputs, stage.outputs) if stage.outputs else None
        step = self._step(stage.cut) if isinstance(stage.cut, HostStep) else None
        self.workshop.makes_kernels |= runner is not None and bool(runner.kernels)
        if isinstance(stage.cut, HostStep) and stage.cut.kind != "control":
            self.workshop.hosted.append(stage.cut.node.label)
        held = {n: o for n, o in known.items() if n in state.names}
        held.update((n, o) for n, o in zip(arrivals, origins, strict=False) if n is not None)
        made = Segment(stage, runner, step, arrivals, time.perf_counter() - start, held)
        self.workshop.budget.add(made)
        if self.workshop.options.debug >= 2:
            _trace(made)
        return made

    def _step(self, cut: HostStep) -> Callable[[dict[str, Any]], list[Any]]:
        """A host step as a function of the values that a call holds."""
        function = self._function(cut)
        operands = (*cut.operands, *cut.captured.values())
        names = [f"value {n!r}" for n in (*cut.node.inputs, *cut.captured)]
        wanted, why = len(cut.slots), f"node {cut.node.label} runs on the host"

        def step(held: dict[str, Any]) -> list[Any]:
            values = [_fetch(o, held) for o in operands]
            if cut.kind != "control":  # the graphs inside of one take what is on the device
                values = [on_host(v, n, why) for v, n in zip(values, names, strict=False)]
            results = function(values)
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
    return value.copy() if isinstance(value, (np.ndarray, RemoteArray)) else value


def _trace(segment: Segment) -> None:
    nodes = len(set(segment.stage.labels.values()))
    kernels = len(segment.runner.kernels) if segment.runner else 0
    print(
        f"tilewright: a stage of {nodes} nodes in {kernels} kernels, {segment.seconds:.3f} s",
        file=sys.stderr,
    )
