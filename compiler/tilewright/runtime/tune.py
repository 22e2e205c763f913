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

from tilewright.fusion.decide import Reason
from tilewright.graph.ir import Array
from tilewright.loops.structure import structure
from tilewright.runtime.cache import KernelCache, environment_fields
from tilewright.runtime.plan import Plan, PlannedKernel
from tilewright.runtime.progress import Progress, default_progress
from tilewright.runtime.store import StoredObject
from tilewright.runtime.timeline import StepTrace
from tilewright.schedule.choices import Choices, Decision

VERSION = "1"  # of the points and their options
KIND = "choices"
GAIN = 1.03  # a candidate must be faster by this factor
HOPELESS = 0.85  # one that seems as slow as this after a few rounds is given up
FEW_ROUNDS, ROUNDS = 3, 15
ORDER = ("winograd", "panel", "height", "together", "tasks")  # the form first, then its details
TICKS = 100

Make = Callable[[Choices], Plan]


class KeptChoices:
    """Winners that were measured on this machine for some number of threads, kept on disk.

    They belong to one version of the library; what cannot be read counts as nothing.
    """

    def __init__(self, cache: KernelCache, threads: int) -> None:
        self._store = cache.store
        fields = {**environment_fields(), "kind": KIND, "version": VERSION, "threads": threads}
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


class TunedRunner:
    """A plan that is tuned by its first run, on the arrays of that run."""

    def __init__(self, make: Make, kept: KeptChoices, allowance: Allowance) -> None:
        self._make, self._kept, self._allowance = make, kept, allowance
        self.plan = make(Choices(kept.known, watched=True))
        self.run: Callable[[Sequence[Array]], list[Array]] = self._first_run

    @property
    def kernels(self) -> Sequence[PlannedKernel]:
        return self.plan.kernels

    @property
    def decisions(self) -> Sequence[Reason]:
        return self.plan.decisions

    @property
    def nbytes(self) -> int:
        return self.plan.nbytes

    def timed(self, arrays: Sequence[Array]) -> tuple[list[Array], list[float]]:
        """The outputs of a run, and the seconds that each kernel took in it."""
        return self.plan.timed(arrays)

    def traced(self, arrays: Sequence[Array]) -> tuple[list[Array], list[StepTrace]]:
        """The outputs of a run, and when each task of each kernel ran in it."""
        return self.plan.traced(arrays)

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

    def _first_run(self, arrays: Sequence[Array]) -> list[Array]:
        outputs = self.plan.run(arrays)  # raises for bad data before anything is measured
        with self._allowance.lock:
            if self.run == self._first_run and self._allowance.left > 0:
                start = time.perf_counter()
                search = Search(self._make, self._kept, arrays, self._allowance.left)
                self.plan = search.best(self.plan)
                self._allowance.left -= time.perf_counter() - start
            self.run = self.plan.run
        return outputs


class Search:
    """Looks for better ways, the largest work first, for some seconds."""

    def __init__(
        self,
        make: Make,
        kept: KeptChoices,
        arrays: Sequence[Array],
        seconds: float,
        progress: Progress | None = None,
    ) -> None:
        self._make, self._kept, self._arrays = make, kept, arrays
        self._seconds, self._start = seconds, time.perf_counter()
        self._progress = progress or default_progress("tuning kernels")
        self._winners: dict[str, int] = {}

    def best(self, plan: Plan) -> Plan:
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

    def _decide(self, decision: Decision, best: Plan) -> Plan:
        """The best plan among those that differ at one point; a new winner is kept."""
        before = best
        for value in decision.point.options:
            if value == decision.value or self._is_over:
                continue
            trial = {**self._winners, decision.key: value}
            candidate = self._make(Choices(self._kept.known, trial, watched=True))
            if self._gain(best, candidate) >= GAIN:
                best, self._winners = candidate, trial
        if best is not before:
            self._kept.add(self._winners)
        return best

    def _gain(self, best: Plan, candidate: Plan) -> float:
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


def measure(plan: Plan, arrays: Sequence[Array]) -> list[float]:
    """Seconds of each kernel in one run of the plan."""
    return plan.timed(arrays)[1]


def _ratio(times: Sequence[tuple[float, float]]) -> float:
    """How many times the second take less: by the medians and by the least, to be sure by both."""
    before, after = [a for a, _ in times], [b for _, b in times]
    if min(after) <= 0:
        return 1.0
    return min(statistics.median(before) / statistics.median(after), min(before) / min(after))


def _next(plan: Plan, seen: set[str]) -> Decision | None:
    """The decision about most work that was not looked at."""
    waiting = [d for d in plan.choices.decisions if d.key not in seen]
    return max(waiting, key=lambda d: (d.point.work, -ORDER.index(d.point.kind)), default=None)


def _differing(plan: Plan, other: Plan) -> list[int]:
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
