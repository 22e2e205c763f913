"""A device for plans without a GPU: the emulator of PTX, and streams that are as late as they may.

Work waits in its stream until somebody must see its effect, so work that relies on luck (another
stream that was quicker, memory that was not given out again yet) meets the worst case. Memory
begins as poison, ends at its last byte, and is gone when it is freed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np

import tilewright as tw
from ptx import Memory, Module, Program, Statistics, launch
from ptx.tensor_maps import of_loops, words
from tilewright.driver import compile_in
from tilewright.loops.ir import TensorMap
from tilewright.runtime.cuda.cupy_arrays import CupyArrays
from tilewright.runtime.cuda.device import MAP_WORDS, Library, LibraryStep, Step
from tilewright.runtime.cuda.kernel import CompiledKernel
from tilewright.runtime.cuda.port import Port
from tilewright.runtime.cuda.workshop import cuda_workshop

Array = np.ndarray[Any, Any]
OWN_STREAM = 1000
NANOSECOND = 1e-9  # what an emulated instruction counts as


class Blocked(Exception):
    """A stream that waits for one that waits."""


class DeviceFault(Exception):
    """Something that a GPU would answer with wrong numbers or a crash."""


@lru_cache(512)
def program(ptx: str) -> Program:
    return Module(ptx).kernel()


def _nothing() -> None:
    """Work that has been done."""


class EmulatedMemory:
    """Freed with the last reference."""

    def __init__(self, address: int) -> None:
        self.address = address


@dataclass
class Mark:
    """A place in a stream: behind this many pieces of work."""

    stream: int
    count: int


@dataclass
class _Queue:
    work: list[Callable[[], object]] = field(default_factory=list)
    done: int = 0
    is_busy: bool = False  # it may be waiting for another stream

    @property
    def can_go_on(self) -> bool:
        return not self.is_busy and self.done < len(self.work)

    def step(self) -> None:
        """Does the next piece of work."""
        if self.is_busy:
            raise Blocked("streams wait for each other")
        self.is_busy = True
        try:
            self.work[self.done]()
        finally:
            self.is_busy = False
        self.work[self.done] = _nothing
        self.done += 1


class EmulatedDevice:
    """Implements `Device`.

    Streams that nobody waits for stand still or, if `mixed`, take turns with the one that works.
    """

    name = "emulator"
    multiprocessors = 1
    architecture, driver = "sm_90a", "none"

    def __init__(self, index: int = 0, mixed: bool = False) -> None:
        self.index, self.mixed = index, mixed
        self.memory = Memory()
        self.statistics = Statistics()
        self.allocations: dict[int, int] = {}  # bytes by address
        self.started: list[int] = []  # kernels of each start
        self.updates = self.launched = 0
        self.library: Library | None = None
        self._queues: dict[int, _Queue] = {}
        self._local = threading.local()
        self._lock = threading.RLock()

    # -- streams

    @property
    def stream(self) -> int:
        return getattr(self._local, "stream", OWN_STREAM)

    @contextmanager
    def on(self, stream: int) -> Iterator[None]:
        before = self.stream
        assert stream, "the number 0 is ambiguous"
        self._local.stream = stream
        try:
            yield
        finally:
            self._local.stream = before

    def _queue(self, stream: int) -> _Queue:
        return self._queues.setdefault(stream, _Queue())

    def later(self, work: Callable[[], object]) -> None:
        with self._lock:
            self._queue(self.stream).work.append(work)

    def mark(self) -> Mark:
        with self._lock:
            return Mark(self.stream, len(self._queue(self.stream).work))

    def wait(self, mark: Mark) -> None:
        self.later(lambda: self.reach(mark))

    def reach(self, mark: Mark) -> None:
        """Does the work before a mark."""
        with self._lock:
            queue = self._queue(mark.stream)
            while queue.done < mark.count:
                queue.step()
                others = self._queues.values() if self.mixed else ()
                for other in [q for q in others if q is not queue]:
                    if other.can_go_on:
                        with suppress(Blocked):
                            other.step()

    def is_reached(self, mark: Mark) -> bool:
        return self._queue(mark.stream).done >= mark.count

    def finish(self, mark: Mark | None = None) -> None:
        self.reach(mark or self.mark())

    def finish_all(self) -> None:
        for stream in list(self._queues):
            with self.on(stream):
                self.finish()

    # -- memory

    def allocate(self, nbytes: int) -> EmulatedMemory:
        assert nbytes > 0
        with self._lock:
            address = self.memory.empty(nbytes)
            self.allocations[address] = nbytes
        made = EmulatedMemory(address)
        weakref.finalize(made, self._free, address, self.stream).atexit = False
        return made

    def _free(self, address: int, stream: int) -> None:
        """As a pool does: work of the stream it was for may still use it, nobody else may."""
        with self._lock:
            self.reach(Mark(stream, len(self._queue(stream).work)))
            del self.allocations[address]
            self.memory.free(address)

    def device_of(self, address: int) -> int | None:
        return self.index if self.memory.holds(address) else None

    def write(self, address: int, array: Array) -> None:
        data = np.array(array, order="C")
        self.later(lambda: self.memory.write(address, data))

    def read(self, address: int, array: Array) -> None:
        with self._lock:
            self.finish()
            if not self.memory.is_written(address, array.nbytes):
                raise DeviceFault(f"nobody wrote all of the {array.nbytes} bytes at {address:#x}")
            array[...] = self.memory.get(address, array.shape, array.dtype)

    def move(self, to: int, source: int, nbytes: int) -> None:
        def work() -> None:
            self.memory.write(to, self.memory.get(source, (nbytes,), np.uint8))

        if nbytes:
            self.later(work)

    def clear(self, address: int, nbytes: int) -> None:
        self.write(address, np.zeros(nbytes, np.uint8))

    # -- kernels

    def tensor_map(self, tensor: TensorMap, address: int) -> Array:
        return words(of_loops(tensor, address))

    def load(self, kernel: CompiledKernel) -> CompiledKernel:
        return kernel

    def launches(self, steps: Sequence[Step | LibraryStep]) -> EmulatedLaunches:
        return EmulatedLaunches(self, steps)

    def launch(self, step: Step | LibraryStep, parameters: Sequence[int | bytes]) -> int:
        """The instructions that all threads execute; those of a library are not counted."""
        if isinstance(step, LibraryStep):
            assert self.library is not None
            self.library.gemm(step.gemm, [int(v) for v in parameters], self.stream)
            return 1
        with self._lock:
            self.launched += 1
            self.statistics = launch(
                *(program(step.function.ptx), self.memory, step.blocks, step.threads),
                *(parameters, step.shared_bytes),
            )
        return self.statistics.thread_instructions


def values_of(step: Step) -> list[int | bytes]:
    """The parameters as they are now; those of more than a word as bytes."""
    plain = len(step.parameters) - step.maps * MAP_WORDS
    maps = step.parameters[plain:].reshape(-1, MAP_WORDS)
    return [*map(int, step.parameters[:plain]), *(m.tobytes() for m in maps)]


class EmulatedLaunches:
    """Like a graph: parameters count as they were at the last update."""

    def __init__(self, device: EmulatedDevice, steps: Sequence[Step | LibraryStep]) -> None:
        self.how = f"by the emulator, {len(steps)} kernels"
        self._device, self._steps = device, list(steps)
        self._parameters = [self._now(s) for s in steps]

    @staticmethod
    def _now(step: Step | LibraryStep) -> list[int | bytes]:
        if isinstance(step, LibraryStep):
            return [int(v) for v in step.parameters]
        return values_of(step)

    def update(self, changed: Sequence[int]) -> None:
        self._device.updates += len(changed)
        for k in changed:
            self._parameters[k] = self._now(self._steps[k])

    def start(self) -> None:
        self._device.started.append(len(self._steps))
        for step, parameters in zip(self._steps, self._parameters, strict=True):
            self._device.later(partial(self._device.launch, step, parameters))

    def timed(self) -> list[float]:
        self._device.finish()
        pairs = zip(self._steps, self._parameters, strict=True)
        return [NANOSECOND * self._device.launch(s, p) for s, p in pairs]


def compile_for(
    device: EmulatedDevice,
    model: Any,
    options: tw.Options | None = None,
    cupy: CupyArrays | None = None,
    tune: float = 0.0,
) -> tw.CompiledModel:
    """As `tw.compile(model, target="cuda")`, for this device."""
    settings = options or tw.Options.from_environment()
    return compile_in(cuda_workshop(settings, Port(device, cupy), tune=tune), model)
