"""What a model copies between the host's memory and a device's, and why: for `explain()`."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass

TO_DEVICE = "to the device"
TO_HOST = "to the host"
WITHIN = "within the device"


@dataclass(frozen=True)
class Crossing:
    """One value that is copied: where to, its bytes, why, and how often that happened so far."""

    direction: str
    value: str
    nbytes: int
    reason: str
    times: int

    def __str__(self) -> str:
        times = "once" if self.times == 1 else f"{self.times} times"
        return f"{self.direction}: {self.value}, {self.nbytes:,} bytes, {times}: {self.reason}"


class Crossings:
    """Counts copies; threads may share it."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, int, str]] = Counter()
        self._lock = threading.Lock()

    def add(self, direction: str, value: str, nbytes: int, reason: str) -> None:
        """Counts a copy."""
        with self._lock:
            self._counts[direction, value, nbytes, reason] += 1

    def seen(self) -> tuple[Crossing, ...]:
        """In the order in which they came first."""
        with self._lock:
            return tuple(Crossing(*key, times) for key, times in self._counts.items())
