"""The table that one native call of a plan walks, and the memory of each run.

A table never changes. A plan whose kernels change takes another one: runs that have begun go on
with theirs, and the code of kernels is never unloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from tilewright.runtime.pool import Executor
from tilewright.runtime.pool import Plan as Call
from tilewright.runtime.results import address_of

ALIGNMENT = 64


class Source(Enum):
    """Where the memory of a kernel's parameter is: at a fixed address, in an input or an output of
    the call, or in the arena."""

    FIXED = "fixed"
    INPUT = "input"
    OUTPUT = "output"
    ARENA = "arena"


Place = tuple[Source, int]
"""With the address, the number of the input or output, or the offset in bytes."""


@dataclass(frozen=True)
class Step:
    """One kernel of a plan, ready to be called: `tasks` of `chunk` iterations each. `nanoseconds`
    are what it roughly takes on one thread."""

    address: int
    places: tuple[Place, ...]
    numbers: tuple[int, ...]
    tasks: int
    chunk: int
    checks: bool
    nanoseconds: float


@dataclass
class Instance:
    """Memory for one run at a time."""

    arena: np.ndarray
    arguments: np.ndarray
    rows: np.ndarray
    errors: np.ndarray
    call: Call
    slots: memoryview = field(init=False)  # of the arguments, written faster than the array
    run: Callable[[], None] = field(init=False)

    def __post_init__(self) -> None:
        self.slots, self.run = self.arguments.data, self.call.run


class Table:
    """Steps in order, their arguments in a row: [errors, pointers..., numbers..., chunk] of each.

    Plans whose parallel steps take less than `brief` nanoseconds in all do not wake helpers.
    """

    def __init__(
        self, steps: Iterable[Step], arena_bytes: int, executor: Executor, brief: float
    ) -> None:
        self.steps = tuple(steps)
        self.arena_bytes = arena_bytes
        self._executor = executor
        values: list[int] = []
        self._starts: list[int] = []
        places: dict[Source, dict[int, list[int]]] = {s: {} for s in Source}
        for step in self.steps:
            self._starts.append(len(values))
            for slot, (source, at) in enumerate(step.places, len(values) + 1):
                places[source].setdefault(at, []).append(slot)
            fixed = [at if source is Source.FIXED else 0 for source, at in step.places]
            values += [0, *fixed, *step.numbers, step.chunk]
        self._values = np.array(values, np.int64)
        self._inputs = list(places[Source.INPUT].items())
        self._outputs = list(places[Source.OUTPUT].items())
        self._in_arena = list(places[Source.ARENA].items())
        self._parallel = [k for k, step in enumerate(self.steps) if step.tasks > 1]
        self.is_brief = sum(self.steps[k].nanoseconds for k in self._parallel) < brief
        self.checks = any(step.checks for step in self.steps)
        self.no_errors = bytes(8 * (len(self.steps) + 1))
        self.free: list[Instance] = []

    def take(self) -> Instance:
        """An instance that no other thread runs; it goes back to `free`."""
        try:
            return self.free.pop()
        except IndexError:
            return self.instance()

    def instance(self, steps: int | None = None) -> Instance:
        """A new one, whose run ends before the step of this number, if it is given."""
        raw = np.empty(self.arena_bytes + ALIGNMENT, np.uint8)
        arena = raw[-raw.ctypes.data % ALIGNMENT :]
        arguments, errors = self._values.copy(), np.zeros(len(self.steps) + 1, np.int64)
        base = arguments.ctypes.data
        for offset, slots in self._in_arena:
            arguments[slots] = arena.ctypes.data + offset
        for k, start in enumerate(self._starts):
            arguments[start] = errors[k:].ctypes.data
        rows = np.array(
            [
                (s.address, s.tasks, base + 8 * start)
                for s, start in zip(self.steps, self._starts, strict=True)
            ],
            np.int64,
        )
        count = len(self.steps) if steps is None else steps
        last = max((k for k in self._parallel if k < count), default=-1)
        call = self._executor.prepare(rows.ctypes.data, count, last, self.is_brief)
        return Instance(arena, arguments, rows, errors, call)

    def bind(
        self, instance: Instance, arrays: Sequence[np.ndarray], results: Sequence[np.ndarray]
    ) -> None:
        """The instance's next run reads and writes these arrays."""
        slots = instance.slots
        for k, places in self._inputs:
            address = address_of(arrays[k])
            for slot in places:
                slots[slot] = address
        for k, places in self._outputs:
            address = address_of(results[k])
            for slot in places:
                slots[slot] = address

    def pointers(self, instance: Instance, k: int) -> list[int]:
        """The addresses of the parameters of step k in an instance that is bound."""
        first = self._starts[k] + 1
        return [int(a) for a in instance.arguments[first : first + len(self.steps[k].places)]]

    @property
    def nbytes(self) -> int:
        """Bytes of instances and values."""
        return (self.arena_bytes + self._values.nbytes) * max(1, len(self.free))
