"""Tuning: other ways to make the hottest kernels, measured in the plan, and winners kept on disk.

A candidate is a whole plan that differs at one point of decision. It runs in turns with the best
one so far, on the arrays of a real call; what counts is the time of the kernels that differ.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from tilewright.errors import CompileError, DeviceError
from tilewright.fusion.decide import Reason
from tilewright.loops.structure import structure
from tilewright.runtime.progress import Progress, default_progress
from tilewright.runtime.store import Store, StoredObject
from tilewright.runtime.timeline import StepTrace
from tilewright.schedule.choices import Choices, Decision

VERSION = "2"  # of the points and their options
KIND = "choices"
GAIN = 1.03  # a candidate must be faster by this factor
HOPELESS = 0.85  # one that seems as slow as this after a few rounds is given up
FEW_ROUNDS, ROUNDS = 3, 15
ORDER = (  # the form first, then its details; a library competes with the best kernel of ours
    *("winograd", "panel", "height", "together", "tasks"),
    *("tile", "attention", "row", "elements", "library"),
)
SKIPPED = (CompileError, DeviceError, MemoryError)  # what rules out a candidate, and nothing else
TICKS = 100


class Tunable(Protocol):
    """A plan that can be made in other ways and timed. `offsets` say where intermediate results lie
    in its memory of `arena_bytes`, `results` what outputs are called in it."""

    choices: Choices
    offsets: dict[str, int]
    arena_bytes: int
    results: tuple[str, ...]

    @property
    def kernels(self) -> Sequence[Any]:
        """In order of execution, each with its `tasks` and the `kernel` as loops."""

    @property
    def decisions(self) -> Sequence[Reason]:
        """Why it is as it is."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it holds."""

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """The outputs."""

    def timed(self, arrays: Sequence[Any]) -> tuple[list[Any], list[float]]:
        """The outputs, and the seconds of each kernel."""


class Traceable(Tunable, Protocol):
    """One that can also tell when each task ran."""

    def traced(self, arrays: Sequence[Any]) -> tuple[list[Any], list[StepTrace]]:
        """The outputs, and when each task of each kernel ran."""


P = TypeVar("P", bound=Tunable)
T = TypeVar("T", bound=Traceable)


class KeptChoices:
    """Winners that were measured in some surroundings, kept on disk.

    The `surroundings` name all but the kernel that decides which way is faster: the processor and
    the threads, or the device; and the version of the library. What cannot be read counts as
    nothing.
    """

    def __init__(self, store: Store, surroundings: Mapping[str, object]) -> None:
        self._store = store
        fields = {**surroundings, "kind": KIND, "version": VERSION}
        self._key = json.dumps(fields, sort_keys=True)
        self.known = self._read()

    def add(self, winners: Mapping[str, int]) -> None:
        """Keeps more, beside those that other processes have kept meanwhile."""
        self.known = {**self.known, **self._read(), **winners}
        self._store.put(self._key, StoredObject(json.dumps(self.known).encode(), KIND))

    def _read(self) -> dict[str, int]:
        item = self._store.get(self._key)
        if item is None or item.symbol != KIND:
            return {}
        try:
            found = json.loads(item.data)
        except ValueError:
            return {}
        pairs = found.items() if isinstance(found, dict) else ()
        return {k: v for k, v in pairs if isinstance(v, int)}


class Allowance:
    """Seconds of tuning that the stages of a model share."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds
        self.lock = threading.Lock()


class TunedRunner(Generic[P]):
    """A plan that is tuned by its first run, on the arrays of that run."""

    def __init__(
        self, make: Callable[[Choices], P], kept: KeptChoices, allowance: Allowance
    ) -> None:
        self._make, self._kept, self._allowance = make, kept, allowance
        self.plan = make(Choices(kept.known, watched=True))
        self._skipped: tuple[Reason, ...] = ()
        self.run: Callable[[Sequence[Any]], list[Any]] = self._first_run

    @property
    def kernels(self) -> Sequence[Any]:
        return self.plan.kernels

    @property
    def decisions(self) -> Sequence[Reason]:
        return (*self.plan.decisions, *self._skipped)

    @property
    def nbytes(self) -> int:
        return self.plan.nbytes

    def timed(self, arrays: Sequence[Any]) -> tuple[list[Any], list[float]]:
        """The outputs of a run, and the seconds that each kernel took in it."""
        return self.plan.timed(arrays)

    @property
    def offsets(self) -> Mapping[str, int]:
        """Where intermediate results lie in the plan's memory."""
        return self.plan.offsets

    @property
    def results(self) -> Sequence[str]:
        """The names of the outputs in the plan."""
        return self.plan.results

    @property
    def arena_bytes(self) -> int:
        """Memory for intermediate results."""
        return self.plan.arena_bytes

    def _first_run(self, arrays: Sequence[Any]) -> list[Any]:
        outputs = self.plan.run(arrays)  # raises for bad data before anything is measured
        with self._allowance.lock:
            if self.run == self._first_run and self._allowance.left > 0:
                start = time.perf_counter()
                search = Search(self._make, self._kept, arrays, self._allowance.left)
                self.plan = search.best(self.plan)
                self._skipped = tuple(search.skipped)
                self._allowance.left -= time.perf_counter() - start
            self.run = self.plan.run
        return outputs


class TunedOnHost(TunedRunner[T]):
    """The same for threads, whose tasks can be followed."""

    def traced(self, arrays: Sequence[Any]) -> tuple[list[Any], list[StepTrace]]:
        """The outputs of a run, and when each task of each kernel ran in it."""
        return self.plan.traced(arrays)


class TunedOnDevice(TunedRunner[P]):
    """The same for arrays that must be on a device."""

    def __init__(
        self, make: Callable[[Choices], P], kept: KeptChoices, allowance: Allowance
    ) -> None:
        super().__init__(make, kept, allowance)
        self.used: Sequence[bool] = self.plan.used  # type: ignore[attr-defined]


class Search(Generic[P]):
    """Looks for better ways, the largest work first, for some seconds. `skipped` says which could
    not be measured, and why."""

    def __init__(
        self,
        make: Callable[[Choices], P],
        kept: KeptChoices,
        arrays: Sequence[Any],
        seconds: float,
        progress: Progress | None = None,
    ) -> None:
        self._make, self._kept, self._arrays = make, kept, arrays
        self._seconds, self._start = seconds, time.perf_counter()
        self._progress = progress or default_progress("tuning kernels")
        self._winners: dict[str, int] = {}
        self.skipped: list[str] = []

    def best(self, plan: P) -> P:
        """The best plan found; its choices are kept."""
        seen: set[str] = set()
        while not self._is_over and (decision := _next(plan, seen)):
            seen.add(decision.key)
            plan = self._decide(decision, plan)
        self._progress(TICKS, TICKS)
        return plan

    @property
    def _is_over(self) -> bool:
        share = (time.perf_counter() - self._start) / self._seconds
        self._progress(min(int(TICKS * share), TICKS - 1), TICKS)
        return share >= 1

    def _decide(self, decision: Decision, best: P) -> P:
        """The best plan among those that differ at one point; a new winner is kept."""
        before = best
        for value in decision.point.options:
            if value == decision.value or self._is_over:
                continue
            trial = {**self._winners, decision.key: value}
            try:
                candidate = self._make(Choices(self._kept.known, trial, watched=True))
                gain = self._gain(best, candidate)
            except SKIPPED as error:
                way = f"{decision.point.kind} {decision.point.name(value)}"
                self.skipped.append(f"{way} was not measured: {error}")
                continue
            if gain >= GAIN:
                best, self._winners = candidate, trial
        if best is not before:
            self._kept.add(self._winners)
        return best

    def _gain(self, best: Tunable, candidate: Tunable) -> float:
        """How many times faster the candidate's kernels are than those in their place."""
        theirs, ours = _differing(best, candidate), _differing(candidate, best)
        if not ours:
            return 1.0
        times: list[tuple[float, float]] = []
        measure(candidate, self._arrays)  # warms up
        while len(times) < ROUNDS:
            a, b = measure(best, self._arrays), measure(candidate, self._arrays)
            times.append((sum(a[k] for k in theirs), sum(b[k] for k in ours)))
            gain = _ratio(times)
            if len(times) >= FEW_ROUNDS and (gain < HOPELESS or self._is_over):
                break
        return gain


def measure(plan: Tunable, arrays: Sequence[Any]) -> list[float]:
    """Seconds of each kernel in one run of the plan."""
    return plan.timed(arrays)[1]


def _ratio(times: Sequence[tuple[float, float]]) -> float:
    """How many times the second take less: by the medians and by the least, to be sure by both."""
    before, after = [a for a, _ in times], [b for _, b in times]
    if min(after) <= 0:
        return 1.0
    return min(statistics.median(before) / statistics.median(after), min(before) / min(after))


def _next(plan: Tunable, seen: set[str]) -> Decision | None:
    """The decision about most work that was not looked at."""
    waiting = [d for d in plan.choices.decisions if d.key not in seen]
    return max(waiting, key=lambda d: (d.point.work, -ORDER.index(d.point.kind)), default=None)


def _differing(plan: Tunable, other: Tunable) -> list[int]:
    """The kernels that the other plan has not, up to names."""
    left = Counter((k.tasks, structure(k.kernel)) for k in other.kernels)
    found = []
    for number, k in enumerate(plan.kernels):
        key = (k.tasks, structure(k.kernel))
        if left[key]:
            left[key] -= 1
        else:
            found.append(number)
    return found
