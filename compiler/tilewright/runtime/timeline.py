"""When the steps and tasks of one call ran, and where."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class TaskTrace:
    """A task: the thread as `threading.get_ident` calls it; nanoseconds of `monotonic_ns`."""

    thread: int
    start: int
    end: int


@dataclass(frozen=True)
class StepTrace:
    """A kernel of a plan, from the end of the one before to the end of its last task."""

    start: int
    end: int
    tasks: tuple[TaskTrace, ...] = ()


@runtime_checkable
class Traced(Protocol):
    """A Runner that can say when each task of its kernels ran."""

    def traced(self, arrays: Sequence[Any]) -> tuple[list[Any], list[StepTrace]]:
        """The outputs of a run, and what its kernels did."""


@dataclass(frozen=True)
class Slice:
    """Something that took time in a call: nanoseconds from the call's begin.

    `track` is CALL for the call itself, its host steps and kernels, which lie within each other;
    from THREADS on it is the thread that ran a task, the caller's first. `step` is the index of
    the step, -1 for what is none.
    """

    track: int
    name: str
    kind: str  # call, host, kernel or task
    start: int
    end: int
    step: int = -1
    task: int = 0


CALL, THREADS = 0, 1


@dataclass(frozen=True)
class Event:
    """A step of a run: which one, nanoseconds of `monotonic_ns`, and the tasks of a kernel."""

    key: Hashable
    start: int
    end: int
    tasks: tuple[TaskTrace, ...] | None = None  # None for a host step


def consecutive(start: int, seconds: Sequence[float]) -> list[StepTrace]:
    """Steps one after the other, of which only the lengths are known."""
    found = []
    for taken in seconds:
        end = start + round(taken * 1e9)
        found.append(StepTrace(start, end))
        start = end
    return found


def timeline(
    begin: int,
    end: int,
    events: Sequence[Event],
    steps: Mapping[Any, int],
    names: Sequence[str],
    caller: int,
) -> tuple[Slice, ...]:
    """The slices of a call from `begin` to `end` with these events, in order of their begin.

    `steps` are the indices of the events' keys, and `names` belong to those.
    """
    end = max([end, *(e.end for e in events)])  # work on a GPU is laid out from its start
    tracks = {caller: THREADS}
    found = [Slice(CALL, "call", "call", 0, end - begin)]
    for e in events:
        step = steps[e.key]
        kind = "host" if e.tasks is None else "kernel"
        found.append(Slice(CALL, names[step], kind, e.start - begin, e.end - begin, step))
        found += _tasks(e, begin, step, names[step], tracks)
    return tuple(sorted(found, key=lambda s: (s.start, s.track, -s.end)))


def _tasks(e: Event, begin: int, step: int, name: str, tracks: dict[int, int]) -> Iterator[Slice]:
    for k, t in enumerate(e.tasks or ()):
        track = tracks.setdefault(t.thread, THREADS + len(tracks))
        yield Slice(track, name, "task", t.start - begin, t.end - begin, step, k)
