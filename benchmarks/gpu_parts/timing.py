"""Times of calls on a device: side by side, in turns, so that a drifting clock hurts all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gpu_parts.part import Setting
from tilewright.runtime.cuda.device import Device

Call = Callable[[], object]
OURS, KERNELS = "tilewright", "kernels"  # whole calls, and what of them the device does
MOST_CALLS = 2000  # in a turn
MILLI = 1e-3


class Clock(Protocol):
    """Seconds of a call on the device, one of `count` that are put into its stream in a row."""

    def __call__(self, call: Call, count: int) -> float: ...


class EventClock:
    """By two events in the device's stream."""

    def __init__(self, device: Device) -> None:
        # Here alone: the bindings of the driver are imported only if there is one.
        from cuda.bindings import driver

        from tilewright.runtime.cuda.launches import call

        self._device, self._driver, self._call = device, driver, call
        self._events = [call(driver.cuEventCreate, 0) for _ in range(2)]

    def __call__(self, call: Call, count: int) -> float:
        first, last = self._events
        with self._device.on(self._device.stream):
            self._record(first)
            for _ in range(count):
                call()
            self._record(last)
            self._call(self._driver.cuEventSynchronize, last)
        return MILLI * float(self._call(self._driver.cuEventElapsedTime, first, last)) / count

    def _record(self, event: Any) -> None:
        self._call(self._driver.cuEventRecord, event, self._device.stream)


class HostClock:
    """By the host's clock, until the device has nothing to do."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def __call__(self, call: Call, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        self._device.finish()
        return (time.perf_counter() - start) / count


@dataclass(frozen=True)
class Times:
    """Median seconds of each side, and how often ours is as fast as each other one: the median of
    the turns' ratios."""

    seconds: Mapping[str, float]
    ratios: Mapping[str, float]

    def as_figures(self) -> dict[str, Any]:
        return {"seconds": dict(self.seconds), "ratios": dict(self.ratios)}


def in_turns(clock: Clock, calls: Mapping[str, Call], setting: Setting) -> Times:
    """The times of calls, each warmed up."""
    counts = {name: _count(clock, call, setting.seconds) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(setting.turns):
        for name, call in calls.items():
            taken[name].append(clock(call, counts[name]))
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    ratios = {
        name: statistics.median(other / ours for ours, other in zip(taken[OURS], times))
        for name, times in taken.items()
        if name != OURS and OURS in taken
    }
    return Times(seconds, ratios)


def _count(clock: Clock, call: Call, seconds: float) -> int:
    """Calls that fill a turn, judged by a few after two that warm up."""
    clock(call, 2)
    once = max(clock(call, 3), 1e-7)
    return max(1, min(MOST_CALLS, round(seconds / once)))


def host_seconds(device: Device, call: Call, count: int) -> float:
    """Seconds of the host for a call that it does not wait for: the median of short rows."""
    times = []
    for _ in range(5):
        device.finish()
        start = time.perf_counter()
        for _ in range(count):
            call()
        times.append((time.perf_counter() - start) / count)
    device.finish()
    return statistics.median(times)
