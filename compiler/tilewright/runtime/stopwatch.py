"""The time of each step of a plan, from one native call: steps between them read the clock."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tilewright.runtime.cache import KernelCache
from tilewright.runtime.layout import RECORD_WORDS
from tilewright.runtime.pool import Executor
from tilewright.runtime.store import digest
from tilewright.runtime.timeline import StepTrace, TaskTrace

STEP_WORDS = 3  # kernel address, number of tasks, address of the arguments
FILES = ("clock.py", "native.py", "layout.py")
BILLION = 1_000_000_000


class Stopwatch:
    """A plan's table with a reading of the clock before, between and after its steps."""

    def __init__(
        self, executor: Executor, cache: KernelCache, table: np.ndarray, brief: bool = False
    ) -> None:
        (stamp,) = cache.load([_text("stamp")])
        steps = len(table)
        self._kept = table  # its argument tables are read by the call
        self._times = np.zeros((steps + 1, 2), np.int64)
        self._table = np.empty((2 * steps + 1, STEP_WORDS), np.int64)
        self._table[1::2] = table
        self._table[0::2, 0], self._table[0::2, 1] = stamp, 1
        self._table[0::2, 2] = [row.ctypes.data for row in self._times]
        parallel = np.flatnonzero(self._table[:, 1] > 1)
        last = int(parallel[-1]) if len(parallel) else -1
        self._call = executor.prepare(self._table.ctypes.data, len(self._table), last, brief)

    def __call__(self) -> list[float]:
        """Runs the plan; the seconds of each step."""
        self._call()
        seconds, nanoseconds = np.diff(self._times, axis=0).T
        return [float(s) + float(n) * 1e-9 for s, n in zip(seconds, nanoseconds, strict=True)]


class TaskStopwatch:
    """The same with each task in a kernel that records when it ran and in which thread."""

    def __init__(
        self, executor: Executor, cache: KernelCache, table: np.ndarray, brief: bool = False
    ) -> None:
        (watched,) = cache.load([_text("watched")])
        self._plain, self._counts = table, [int(n) for n in table[:, 1]]
        self._records = np.zeros((sum(self._counts), RECORD_WORDS), np.int64)
        starts = np.cumsum([0, *self._counts[:-1]]) * self._records.strides[0]
        self._blocks = np.empty((len(table), STEP_WORDS), np.int64)
        self._blocks[:, 0], self._blocks[:, 1] = table[:, 0], table[:, 2]
        self._blocks[:, 2] = self._records.ctypes.data + starts
        steps = np.empty_like(table)
        steps[:, 0], steps[:, 1] = watched, table[:, 1]
        steps[:, 2] = [row.ctypes.data for row in self._blocks]
        self._watch = Stopwatch(executor, cache, steps, brief)

    def __call__(self) -> list[StepTrace]:
        """Runs the plan; what each step did and when."""
        self._watch()
        times, records = _nanoseconds(self._watch._times), self._records
        starts, ends = _nanoseconds(records[:, 0:2]), _nanoseconds(records[:, 2:4])
        tasks = map(TaskTrace, map(int, records[:, 4]), starts, ends)
        return [
            StepTrace(times[k], times[k + 1], tuple(next(tasks) for _ in range(count)))
            for k, count in enumerate(self._counts)
        ]


def _nanoseconds(times: np.ndarray) -> list[int]:
    """Of timespecs, on the clock of `time.monotonic_ns`."""
    return [int(n) for n in times[:, 0] * BILLION + times[:, 1]]


def _text(function: str) -> str:
    here = Path(__file__)
    version = digest("".join(here.with_name(n).read_text(encoding="utf-8") for n in FILES))
    return f"from tilewright.runtime.clock import {function} as kernel  # {version}\n"
