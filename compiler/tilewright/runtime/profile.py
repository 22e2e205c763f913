"""What `CompiledModel.profile()` returns: where a call's time goes, beside what the machine can do.

A profile runs the model as a call does, with stages and host steps that are watched meanwhile.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from tilewright.graph.ir import Array
from tilewright.graph.stages import HostStep
from tilewright.runtime.ceilings import Ceilings
from tilewright.runtime.segments import Runner, Segment, Step, Timed
from tilewright.schedule.cost import Cost

RUNS = 5
ENOUGH_RUNS = 50
LONGEST_OPERATORS = 48

COLUMNS = (
    ("kernel", "computes", "calls", "time us", "share", "tasks", "MFLOP", "MB")
    + ("GFLOP/s", "GB/s", "limit us", "of FMA peak", "of bandwidth", "bound by")
)  # fmt: skip


@dataclass(frozen=True)
class StepProfile:
    """A kernel, or a host step, in one call of the model.

    `seconds`, `flops` and `bytes` are those of all `calls` together (the body of a loop has
    several). `peak` and `bandwidth` are shares of what all threads reach, the latter from the
    fastest level of memory that holds these bytes: products of bytes may exceed 1. `limit` is the
    least time of the work, `bound` what would take longest by itself.
    """

    name: str
    operators: str
    kind: str  # kernel or host
    calls: int
    seconds: float
    tasks: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    flops_rate: float = 0.0
    bytes_rate: float = 0.0
    peak: float = 0.0
    bandwidth: float = 0.0
    limit: float = 0.0
    bound: str = "host"


@dataclass(frozen=True)
class Measured:
    """What a profile found of one kernel, its share of all steps, and of what machine."""

    step: StepProfile
    share: float
    ceilings: Ceilings


@dataclass(frozen=True)
class Profile:
    """The steps of one call in order of execution; `seconds` is the whole call, as measured.

    `str()` is a table in plain text, rich prints one in colours, `to_dict()` is for programs.
    """

    model: str
    seconds: float
    runs: int
    ceilings: Ceilings
    steps: tuple[StepProfile, ...]

    @property
    def kernels(self) -> tuple[StepProfile, ...]:
        """The steps without host steps."""
        return tuple(s for s in self.steps if s.kind == "kernel")

    def __iter__(self) -> Iterator[StepProfile]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def to_dict(self) -> dict[str, Any]:
        """The whole profile in plain types."""
        return asdict(self)

    def rows(self) -> list[list[str]]:
        """The cells of the table, for COLUMNS."""
        return [_cells(s, self._total) for s in self.steps]

    @property
    def _total(self) -> float:
        return sum(s.seconds for s in self.steps)

    @property
    def summary(self) -> str:
        """Two lines: the call, and the machine."""
        flops, outside = sum(s.flops for s in self.steps), max(0.0, self.seconds - self._total)
        share = flops / self.seconds / self.ceilings.flops if self.seconds else 0.0
        return (
            f"model {self.model!r}: a call takes {self.seconds * 1e6:,.1f} us, of which "
            f"{outside * 1e6:,.1f} us outside of steps; {flops / 1e6:,.2f} MFLOP, {share:.0%} of "
            f"peak (medians of {self.runs} runs)\n{self.ceilings}"
        )

    def __str__(self) -> str:
        table = [list(COLUMNS), *self.rows()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(_aligned(k, *pair) for k, pair in enumerate(zip(row, widths, strict=True)))
            for row in table
        ]
        return "\n".join([self.summary, *(line.rstrip() for line in lines)])

    def __rich__(self) -> Any:
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=escape(self.summary), title_justify="left", box=SIMPLE_HEAD)
        for k, name in enumerate(COLUMNS):
            table.add_column(name, justify="left" if _is_text(k) else "right")
        for row in self.rows():
            table.add_row(*map(escape, row))
        return table


def _is_text(column: int) -> bool:
    return column < 2 or column == len(COLUMNS) - 1


def _aligned(column: int, cell: str, width: int) -> str:
    return cell.ljust(width) if _is_text(column) else cell.rjust(width)


def _cells(s: StepProfile, total: float) -> list[str]:
    share = s.seconds / total if total else 0.0
    shown = s.operators
    if len(shown) > LONGEST_OPERATORS:
        shown = shown[: LONGEST_OPERATORS - 3] + "..."
    first = [s.name, shown, str(s.calls), f"{s.seconds * 1e6:,.1f}", f"{share:.1%}"]
    if s.kind != "kernel":
        return [*first, *[""] * (len(COLUMNS) - len(first) - 1), s.bound]
    numbers = [f"{s.flops / 1e6:,.2f}", f"{s.bytes / 1e6:,.2f}"]
    rates = [f"{s.flops_rate / 1e9:,.1f}", f"{s.bytes_rate / 1e9:,.1f}"]
    rates.append(f"{s.limit * 1e6:,.1f}")
    return [*first, str(s.tasks), *numbers, *rates, f"{s.peak:.0%}", f"{s.bandwidth:.0%}", s.bound]


KernelSeconds = dict[int, tuple[Any, float]]
"""Seconds of kernels by their identity, and the kernels themselves, so that it stays theirs."""


class _Key(NamedTuple):
    """A step: the segment it belongs to (which is kept, so that its id stays its own), and which
    of its kernels; None is its host step."""

    segment: Segment
    kernel: int | None


@dataclass
class _Spent:
    seconds: float = 0.0
    calls: int = 0


@dataclass
class _Record:
    """What one thread spends in one run; what happens inside a host step is not the step's."""

    thread: int = field(default_factory=threading.get_ident)
    spent: dict[_Key, _Spent] = field(default_factory=dict)
    inside: list[float] = field(default_factory=lambda: [0.0])

    def add(self, key: _Key, seconds: float) -> None:
        entry = self.spent.setdefault(key, _Spent())
        entry.seconds += seconds
        entry.calls += 1

    def plan(self, segment: Segment, runner: Timed, arrays: Sequence[Array]) -> list[Array]:
        """A run of a plan."""
        start = time.perf_counter()
        outputs, seconds = runner.timed(arrays)
        for k, taken in enumerate(seconds):
            self.add(_Key(segment, k), taken)
        self.inside[-1] += time.perf_counter() - start
        return outputs

    def host(self, key: _Key, step: Callable[[Any], list[Any]], values: Any) -> list[Any]:
        """A host step, or a runner without kernels."""
        self.spent.setdefault(key, _Spent())  # before the steps inside
        self.inside.append(0.0)
        start = time.perf_counter()
        try:
            return step(values)
        finally:
            taken = time.perf_counter() - start
            self.add(key, max(0.0, taken - self.inside.pop()))
            self.inside[-1] += taken


class _WatchedRunner:
    """A segment's runner that records the runs of one thread."""

    def __init__(self, segment: Segment, runner: Runner, record: _Record) -> None:
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
        return self._record.host(_Key(self._segment, 0), self.runner.run, arrays)


def _watched_step(segment: Segment, step: Step, record: _Record) -> Step:
    def watched(held: dict[str, Any]) -> list[Any]:
        if threading.get_ident() != record.thread:
            return step(held)
        return record.host(_Key(segment, None), step, held)

    return watched


_watching = threading.Lock()  # two profiles at a time would watch each other's watchers


@contextmanager
def _watch(segments: Sequence[Segment], record: _Record) -> Iterator[None]:
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


def profile(
    model: str,
    run: Callable[[], object],
    segments: Callable[[], Sequence[Segment]],
    limits: Callable[[], Ceilings],
    seconds: float,
    measured: KernelSeconds,
) -> Profile:
    """The profile of `run`, a call of a model whose compiled stages are `segments()`.

    `measured` becomes the median seconds of one run of each kernel, by its identity.
    """
    run()  # makes what is not made yet
    ceilings = limits()
    calls: list[float] = []
    records: list[_Record] = []
    end = time.perf_counter() + seconds
    while len(records) < RUNS or (len(records) < ENOUGH_RUNS and time.perf_counter() < end):
        start = time.perf_counter()
        run()
        calls.append(time.perf_counter() - start)
        record = _Record()
        with _watch(segments(), record):
            run()
        records.append(record)
    keys = dict.fromkeys(key for r in records for key in r.spent)
    numbers = {id(s): n for n, s in enumerate(dict.fromkeys(k.segment for k in keys))}
    steps = tuple(
        _step(key, numbers[id(key.segment)] if len(numbers) > 1 else None, records, ceilings)
        for key in keys
    )
    measured.clear()
    for key, step in zip(keys, steps, strict=True):
        runner = key.segment.runner
        if key.kernel is not None and runner is not None and runner.kernels:
            kernel = runner.kernels[key.kernel]
            measured[id(kernel)] = kernel, step.seconds / max(step.calls, 1)
    return Profile(model, statistics.median(calls), len(records), ceilings, steps)


def _step(
    key: _Key, number: int | None, records: Sequence[_Record], ceilings: Ceilings
) -> StepProfile:
    """One row; its name begins with the number of its stage where there are several."""
    spent = [r.spent.get(key, _Spent()) for r in records]
    seconds = statistics.median(s.seconds for s in spent)
    calls = statistics.median_high([s.calls for s in spent])
    prefix = "" if number is None else f"s{number}."
    runner, cut = key.segment.runner, key.segment.stage.cut
    if key.kernel is None:
        assert isinstance(cut, HostStep)
        return StepProfile(f"{prefix}host", f"{cut.kind} {cut.node.label}", "host", calls, seconds)
    if runner is None or not runner.kernels:
        return StepProfile(f"{prefix}host", "evaluation", "host", calls, seconds)
    planned = runner.kernels[key.kernel]
    measured = StepProfile(
        prefix + planned.name, planned.graph, "kernel", calls, seconds, planned.tasks
    )
    return judge(measured, planned.cost, ceilings)


def judge(s: StepProfile, each: Cost, ceilings: Ceilings) -> StepProfile:
    """The measured step with what its calls cost, beside what the machine can do."""
    flops, moved = each.flops * s.calls, each.bytes * s.calls
    per_second = 1 / s.seconds if s.seconds > 0 else 0.0
    reach = ceilings.bandwidth_for(each.bytes)
    overhead = (ceilings.region if s.tasks > 1 else ceilings.step) * s.calls
    limits = {
        "compute": flops / ceilings.flops,
        "memory": moved / reach,
        "overhead": overhead,
    }
    return replace(
        s,
        flops=flops,
        bytes=moved,
        flops_rate=flops * per_second,
        bytes_rate=moved * per_second,
        peak=flops * per_second / ceilings.flops,
        bandwidth=moved * per_second / reach,
        limit=ceilings.seconds(each.flops, each.bytes) * s.calls,
        bound=max(limits, key=lambda name: limits[name]),
    )
