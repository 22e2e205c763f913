"""The time of each step of a plan, from one native call: steps between them read the clock."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tilewright.runtime.cache import KernelCache
from tilewright.runtime.pool import Executor
from tilewright.runtime.store import digest

STEP_WORDS = 3  # kernel address, number of tasks, address of the arguments


class Stopwatch:
    """A plan's table with a reading of the clock before, between and after its steps."""

    def __init__(
        self, executor: Executor, cache: KernelCache, table: np.ndarray, brief: bool = False
    ) -> None:
        (stamp,) = cache.load([_text()])
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


def _text() -> str:
    version = digest(Path(__file__).with_name("clock.py").read_text(encoding="utf-8"))
    return f"from tilewright.runtime.clock import stamp as kernel  # {version}\n"
