"""What `CompiledModel.profile()` returns: where a call's time goes, beside what the machine can do.

A profile runs the model as a call does, with stages and host steps that are watched meanwhile.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from typing import Any

from tilewright.graph.stages import HostStep
from tilewright.runtime.ceilings import Ceilings
from tilewright.runtime.display import Displayed
from tilewright.runtime.segments import Segment
from tilewright.runtime.timeline import (
    Slice,
    timeline,
)
from tilewright.runtime.watch import Key, Record, Spent, watch
from tilewright.schedule.cost import Cost

RUNS = 5
TRACED_RUNS = 3  # of which the fastest is kept
ENOUGH_RUNS = 50
LONGEST_OPERATORS = 48

COLUMNS = (
    ("kernel", "computes", "calls", "time us", "share", "tasks", "MFLOP", "MB")
    + ("GFLOP/s", "GB/s", "limit us", "of FMA peak", "of bandwidth", "balance", "bound by")
)  # fmt: skip


@dataclass(frozen=True)
class StepProfile:
    """A kernel, or a host step, in one call of the model.

    `seconds`, `flops` and `bytes` are those of all `calls` together (the body of a loop has
    several). `peak` and `bandwidth` are shares of what all threads reach, the latter from the
    fastest level of memory that holds these bytes: products of bytes may exceed 1. `limit` is the
    least time of the work, `bound` what would take longest by itself. `busy` are the seconds that
    threads spent in tasks in the run that was traced, as many threads as could have had one.
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
    busy: tuple[float, ...] = ()

    @property
    def balance(self) -> float | None:
        """The least busy thread's share of the busiest one's time; None for a single thread."""
        return min(self.busy) / max(self.busy) if len(self.busy) > 1 and max(self.busy) else None


@dataclass(frozen=True)
class Measured:
    """What a profile found of one kernel, its share of all steps, and of what machine."""

    step: StepProfile
    share: float
    ceilings: Ceilings


@dataclass(frozen=True)
class Profile(Displayed):
    """The steps of one call in order of execution; `seconds` is the whole call, as measured, and
    `watched` the same while its kernels are timed.

    `str()` is a table in plain text, rich prints one in colours, `to_dict()` is for programs.
    `timeline` is a run in which tasks were timed as well, thread by thread, as far as the target
    tells.
    """

    model: str
    seconds: float
    runs: int
    ceilings: Ceilings
    steps: tuple[StepProfile, ...]
    watched: float = 0.0
    timeline: tuple[Slice, ...] = field(default=(), repr=False, compare=False)

    @property
    def kernels(self) -> tuple[StepProfile, ...]:
        """The steps without host steps."""
        return tuple(s for s in self.steps if s.kind == "kernel")

    def __iter__(self) -> Iterator[StepProfile]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def to_dict(self) -> dict[str, Any]:
        """The whole profile in plain types, the timeline apart: `trace` writes that."""
        return asdict(replace(self, timeline=()))

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Writes the timeline for Perfetto or Chrome's tracing: a file of trace events."""
        import_module("tilewright.explore.trace").write(self, path)

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Writes the steps in their place below the machine's limits, as SVG."""
        import_module("tilewright.explore.roofline").write(self, path)

    def rows(self) -> list[list[str]]:
        """The cells of the table, for COLUMNS."""
        return [_cells(s, self._total) for s in self.steps]

    @property
    def _total(self) -> float:
        return sum(s.seconds for s in self.steps)

    @property
    def summary(self) -> str:
        """The call, what watching it costs, and the machine, in two lines."""
        flops, outside = sum(s.flops for s in self.steps), max(0.0, self.seconds - self._total)
        share = flops / self.seconds / self.ceilings.flops if self.seconds else 0.0
        return (
            f"model {self.model!r}: a call takes {self.seconds * 1e6:,.1f} us, of which "
            f"{outside * 1e6:,.1f} us outside of steps; {flops / 1e6:,.2f} MFLOP, {share:.0%} of "
            f"peak (medians of {self.runs} runs){self._overhead}\n{self.ceilings}"
        )

    @property
    def _overhead(self) -> str:
        if not self.watched or not self.seconds:
            return ""
        more = self.watched - self.seconds
        return f"; watching adds {more * 1e6:,.1f} us, {more / self.seconds:.0%}"

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
    shares = [
        f"{s.peak:.0%}",
        f"{s.bandwidth:.0%}",
        "" if s.balance is None else f"{s.balance:.0%}",
    ]
    return [*first, str(s.tasks), *numbers, *rates, *shares, s.bound]


KernelSeconds = dict[int, tuple[Any, float]]
"""Seconds of kernels by their identity, and the kernels themselves, so that it stays theirs."""


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
    watched: list[float] = []
    records: list[Record] = []
    end = time.perf_counter() + seconds
    while len(records) < RUNS or (len(records) < ENOUGH_RUNS and time.perf_counter() < end):
        calls.append(_seconds(run))
        records.append(Record())
        with watch(segments(), records[-1]):
            watched.append(_seconds(run))
    begin, finish, traced = _trace(run, segments)
    keys = list(dict.fromkeys(key for r in records for key in r.spent))
    numbers = {id(s): n for n, s in enumerate(dict.fromkeys(k.segment for k in keys))}
    steps = [
        _step(key, numbers[id(key.segment)] if len(numbers) > 1 else None, records, ceilings)
        for key in keys
    ]
    places = {key: k for k, key in enumerate(keys)}
    events = [e for e in traced.events or () if e.key in places]
    slices = timeline(begin, finish, events, places, [s.name for s in steps], traced.thread)
    steps = [with_busy(s, k, slices, ceilings.threads) for k, s in enumerate(steps)]
    _remember(keys, steps, ceilings, measured)
    medians = statistics.median(calls), statistics.median(watched)
    return Profile(model, medians[0], len(records), ceilings, tuple(steps), medians[1], slices)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _trace(
    run: Callable[[], object], segments: Callable[[], Sequence[Segment]]
) -> tuple[int, int, Record]:
    """Begin, end and record of the fastest of some runs in which tasks are timed."""
    found = []
    for _ in range(TRACED_RUNS):
        record = Record(events=[])
        with watch(segments(), record):
            start = time.monotonic_ns()
            run()
            found.append((start, time.monotonic_ns(), record))
    return min(found, key=lambda f: f[1] - f[0])


def with_busy(s: StepProfile, step: int, slices: Sequence[Slice], threads: int) -> StepProfile:
    """The step with how busy each thread was that could have had a task."""
    if s.tasks < 2:
        return s
    spent: dict[int, float] = {}
    for x in slices:
        if x.kind == "task" and x.step == step:
            spent[x.track] = spent.get(x.track, 0.0) + (x.end - x.start) * 1e-9
    busy = [spent[track] for track in sorted(spent)]
    idle = max(0, min(threads, s.tasks) - len(busy))
    return replace(s, busy=(*busy, *[0.0] * idle)) if busy else s


def _remember(
    keys: Sequence[Key], steps: Sequence[StepProfile], ceilings: Ceilings, measured: KernelSeconds
) -> None:
    """Leaves what was found of kernels with the model and with each of them."""
    total = sum(s.seconds for s in steps)
    measured.clear()
    for key, s in zip(keys, steps, strict=True):
        if s.kind == "kernel" and key.kernel is not None and key.segment.runner is not None:
            kernel = key.segment.runner.kernels[key.kernel]
            measured[id(kernel)] = kernel, s.seconds / max(s.calls, 1)
            kernel.remember(Measured(s, s.seconds / total if total else 0.0, ceilings))


def _step(
    key: Key, number: int | None, records: Sequence[Record], ceilings: Ceilings
) -> StepProfile:
    """One row; its name begins with the number of its stage where there are several."""
    spent = [r.spent.get(key, Spent()) for r in records]
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
