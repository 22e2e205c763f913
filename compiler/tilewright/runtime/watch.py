"""Watching a model while it runs: what each step of one thread's calls takes, and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tilewright.graph.ir import Array
from tilewright.runtime.segments import Runner, Segment, Step, Timed
from tilewright.runtime.timeline import Event, Traced, consecutive


class Key(NamedTuple):
    """A step: the segment it belongs to (which is kept, so that its id stays its own), and which
    of its kernels; None is its host step."""

    segment: Segment
    kernel: int | None


@dataclass
class Spent:
    seconds: float = 0.0
    calls: int = 0


@dataclass
class Record:
    """What one thread spends in one run; what happens inside a host step is not the step's."""

    thread: int = field(default_factory=threading.get_ident)
    spent: dict[Key, Spent] = field(default_factory=dict)
    inside: list[float] = field(default_factory=lambda: [0.0])
    events: list[Event] | None = None  # of a run that is traced

    def add(self, key: Key, seconds: float) -> None:
        entry = self.spent.setdefault(key, Spent())
        entry.seconds += seconds
        entry.calls += 1

    def plan(self, segment: Segment, runner: Timed, arrays: Sequence[Array]) -> list[Array]:
        """A run of a plan."""
        start = time.perf_counter()
        if self.events is None:
            outputs, seconds = runner.timed(arrays)
        else:
            outputs, seconds = self._traced(segment, runner, arrays, self.events)
        for k, taken in enumerate(seconds):
            self.add(Key(segment, k), taken)
        self.inside[-1] += time.perf_counter() - start
        return outputs

    def _traced(
        self, segment: Segment, runner: Timed, arrays: Sequence[Array], events: list[Event]
    ) -> tuple[list[Array], list[float]]:
        """A run of a plan whose steps become events; those of a GPU one after the other."""
        start = time.monotonic_ns()
        if isinstance(runner, Traced):
            outputs, steps = runner.traced(arrays)
        else:
            outputs, seconds = runner.timed(arrays)
            steps = consecutive(start, seconds)
        events.extend(Event(Key(segment, k), s.start, s.end, s.tasks) for k, s in enumerate(steps))
        return outputs, [(s.end - s.start) * 1e-9 for s in steps]

    def host(self, key: Key, step: Callable[[Any], list[Any]], values: Any) -> list[Any]:
        """A host step, or a runner without kernels."""
        self.spent.setdefault(key, Spent())  # before the steps inside
        self.inside.append(0.0)
        start = time.monotonic_ns()
        try:
            return step(values)
        finally:
            end = time.monotonic_ns()
            taken = (end - start) * 1e-9
            if self.events is not None:
                self.events.append(Event(key, start, end))
            self.add(key, max(0.0, taken - self.inside.pop()))
            self.inside[-1] += taken


class _WatchedRunner:
    """A segment's runner that records the runs of one thread."""

    def __init__(self, segment: Segment, runner: Runner, record: Record) -> None:
        self.runner = runner
        self.kernels, self.decisions = runner.kernels, runner.decisions
        self._segment, self._record = segment, record

    @property
    def nbytes(self) -> int:
        return self.runner.nbytes

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        if threading.get_ident() != self._record.thread:
            return self.runner.run(arrays)
        if isinstance(self.runner, Timed):
            return self._record.plan(self._segment, self.runner, arrays)
        return self._record.host(Key(self._segment, 0), self.runner.run, arrays)


def _watched_step(segment: Segment, step: Step, record: Record) -> Step:
    def watched(held: dict[str, Any]) -> list[Any]:
        if threading.get_ident() != record.thread:
            return step(held)
        return record.host(Key(segment, None), step, held)

    return watched


_watching = threading.Lock()  # two profiles at a time would watch each other's watchers


@contextmanager
def watch(segments: Sequence[Segment], record: Record) -> Iterator[None]:
    """While entered, what the segments run is recorded."""
    with _watching:
        before = [(s, s.runner, s.step) for s in segments]
        try:
            for s, runner, step in before:
                if runner is not None:
                    s.runner = _WatchedRunner(s, runner, record)
                if step is not None:
                    s.step = _watched_step(s, step, record)
            yield
        finally:
            for s, runner, step in before:
                s.runner, s.step = runner, step
