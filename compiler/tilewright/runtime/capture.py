"""What a kernel of a plan reads in a run of the plan, and how long it takes on that."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from threading import get_ident
from typing import TYPE_CHECKING

import numpy as np

from tilewright.errors import InputError
from tilewright.loops.ir import Kernel
from tilewright.ops.tensor import Placeholder
from tilewright.runtime.stopwatch import Stopwatch
from tilewright.runtime.table import Instance, Source, Table
from tilewright.runtime.trial import Arrays, Code, Memory, footprint, kept_as, poison
from tilewright.runtime.verdict import Times

if TYPE_CHECKING:
    from tilewright.runtime.plan import Plan

ROUNDS, SECONDS = 15, 1.0  # of timing
FEW_ROUNDS = 3
BELOW = 2  # random integers are less: they may be indices


def given_arrays(
    plan: Plan,
    run: Callable[[Mapping[str, object]], object],
    feeds: Mapping[str, object],
    lock: AbstractContextManager[object],
) -> list[np.ndarray]:
    """What the plan reads in a run of the model on the feeds; `lock` is for changes of plans.

    InputError if the run does not lead through the plan.
    """
    seen: list[list[np.ndarray]] = []
    mine = get_ident()

    class Listening(Table):
        def bind(
            self,
            instance: Instance,
            arrays: Sequence[np.ndarray],
            results: Sequence[np.ndarray],
        ) -> None:
            if get_ident() == mine and not seen:
                seen.append([a.copy() for a in arrays])
            super().bind(instance, arrays, results)

    with lock:
        usual = plan.table
        plan.table = listening = plan.tabled(usual.steps, Listening)
    try:
        run(feeds)
    finally:
        with lock:
            if plan.table is listening:
                plan.table = usual
    if not seen:
        kinds = ", ".join(f"{t.dtype.numpy}{list(t.shape)}" for t in plan.inputs)
        raise InputError(f"these feeds do not lead to this kernel: it is in a plan for ({kinds})")
    return seen[0]


def random_arrays(inputs: Sequence[Placeholder], zeros: bool = False) -> list[np.ndarray]:
    """Inputs for a plan. Integers are small, because they may be indices."""
    random = np.random.default_rng(0)
    found = []
    for t in inputs:
        if zeros or t.dtype.kind not in "fiub":
            found.append(np.zeros(t.shape, t.dtype.numpy))
        elif t.dtype.is_float:
            found.append(random.standard_normal(t.shape).astype(t.dtype.numpy))
        else:
            found.append(random.integers(0, BELOW, t.shape).astype(t.dtype.numpy))
    return found


def captured(plan: Plan, k: int, kernel: Kernel, arrays: Sequence[np.ndarray]) -> Arrays | None:
    """What kernel k of a plan reads in a run on these arrays; None if one before it finds bad
    data."""
    table, results = plan.table, plan.fresh()
    instance = table.instance(k)
    table.bind(instance, arrays, results)
    if k:
        instance.run()
    if instance.errors.any():
        return None
    found = {}
    for b, address in zip(kernel.params, table.pointers(instance, k), strict=True):
        if b.name not in kernel.outputs:
            dtype = kept_as(b.dtype)
            raw = ctypes.string_at(address, footprint(b) * dtype.itemsize)
            found[b.name] = np.frombuffer(raw, np.uint8).view(dtype)
    return found


def loose_parameters(plan: Plan, k: int, kernel: Kernel) -> frozenset[str]:
    """Parameters that are arrays of callers: no better aligned than their elements."""
    places = plan.table.steps[k].places
    callers = (Source.INPUT, Source.OUTPUT)
    return frozenset(
        b.name for b, (source, _) in zip(kernel.params, places, strict=True) if source in callers
    )


def timed(
    plan: Plan, kernel: Kernel, codes: Sequence[tuple[Code, int, int]], contents: Arrays
) -> list[Times]:
    """The times of kernels with their tasks and chunks, in turns, on the same contents."""
    clocks = [_clock(plan, kernel, *code, contents) for code in codes]
    seconds: list[list[float]] = [[] for _ in codes]
    for clock in clocks:
        clock()  # warms up
    end = time.perf_counter() + SECONDS
    while len(seconds[0]) < FEW_ROUNDS or (len(seconds[0]) < ROUNDS and time.perf_counter() < end):
        for clock, kept in zip(clocks, seconds, strict=True):
            kept.append(clock())
    return [Times.of(s) for s in seconds]


def _clock(
    plan: Plan, kernel: Kernel, code: Code, tasks: int, chunk: int, contents: Arrays
) -> Callable[[], float]:
    outputs = {b.name: poison(b) for b in kernel.params if b.name in kernel.outputs}
    random = np.random.default_rng(0)
    memory = Memory(kernel.params, {**contents, **outputs}, frozenset(), random)
    errors = np.zeros(1, np.int64)
    pointers = [memory.arrays[b.name].ctypes.data for b in kernel.params]
    table = np.array([errors.ctypes.data, *pointers, *code.numbers, chunk], np.int64)
    rows = np.array([(code.address, tasks, table.ctypes.data)], np.int64)
    watch = Stopwatch(plan.executor, plan.cache, rows)

    def clock() -> float:
        assert memory is not None and table is not None and errors is not None  # kept for the call
        return watch()[0]

    return clock


def good_capture(
    plan: Plan, k: int, kernel: Kernel, arrays: Sequence[np.ndarray] | None
) -> Arrays | None:
    """What the kernel reads on these arrays, else on random ones, else on zeros; None if even
    those are bad data."""
    if arrays is not None:
        return captured(plan, k, kernel, arrays)
    for zeros in (False, True):
        found = captured(plan, k, kernel, random_arrays(plan.inputs, zeros))
        if found is not None:
            return found
    return None
