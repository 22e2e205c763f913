"""What the machine can do at most, measured by small kernels of our own and kept on disk.

Multiply-adds in registers, reading of a buffer that no cache holds, and steps that do nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tilewright.options import Options
from tilewright.runtime.cache import KernelCache, environment_fields
from tilewright.runtime.pool import Executor
from tilewright.runtime.store import StoredObject
from tilewright_kernels.cpu import machine

VERSION = "2"  # of the way to measure
KIND = "ceilings"

VECTORS = 2  # of a tile that keeps the multipliers busy
STREAMS = 8  # vectors that are read at once
PEAK_STEPS = 4096  # of the inner loop, in one task
TASKS_PER_THREAD = 8
REPEATS = 12
STREAM_REPEATS = 12
BUFFER_BYTES = 128 << 20  # several times a large cache
CACHED_BYTES = (16 << 10, 256 << 10, 4 << 20)  # of a thread, in each level of usual caches
CACHED_TOTAL = 8 << 20  # bytes read from a cache in one measurement, by a thread
EMPTY_STEPS = 256

CPU_INFO = Path("/proc/cpuinfo")

IMPORTS = """\
from tilewright_kernels.cpu.matmul import matmul_rows
from tilewright_kernels.cpu.pointers import f32, integer, offset
from tilewright_kernels.cpu.tile import load, store
"""

PEAK = (
    IMPORTS
    + """

def kernel(task, args):
    place = offset(f32(args, 0), task * {size})
    acc = load({rows}, {vectors}, place, {width})
    acc = matmul_rows(acc, place, 0, 0, place, 0, integer(args, 1))
    store(acc, place, {width})
"""
)

STREAM = (
    IMPORTS
    + """

def kernel(task, args):
    place = offset(f32(args, 0), task * {width})
    steps = integer(args, 2)
    source = offset(f32(args, 1), task * steps * {width})
    acc = load(1, {vectors}, place, {width})
    acc = matmul_rows(acc, place, 0, 0, source, {width}, steps)
    store(acc, place, {width})
"""
)

EMPTY = """\
def kernel(task, args):
    pass
"""


@dataclass(frozen=True)
class Ceilings:
    """Float32 operations and bytes in a second, of one core and of all threads; seconds of a step.

    `step` is what a kernel of one task costs without its work, `region` one with tasks for all.
    `levels` are (bytes, bytes in a second of all threads) of buffers that caches hold.
    """

    cpu: str
    threads: int
    flops_core: float
    flops: float
    bandwidth_core: float
    bandwidth: float
    step: float
    region: float
    levels: tuple[tuple[int, float], ...] = ()

    def bandwidth_for(self, nbytes: float) -> float:
        """Bytes in a second, if so many lie in the fastest level that holds them."""
        fitting = (rate for size, rate in self.levels if nbytes <= size)
        return next(fitting, self.bandwidth)

    def seconds(self, flops: float, nbytes: float) -> float:
        """What a kernel takes at least."""
        return max(flops / self.flops, nbytes / self.bandwidth_for(nbytes))

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.threads} threads: {self.flops / 1e9:,.0f} GFLOP/s "
            f"({self.flops_core / 1e9:,.0f} on one core), {self.bandwidth / 1e9:,.1f} GB/s "
            f"({self.bandwidth_core / 1e9:,.1f}), a step {self.step * 1e9:,.0f} ns, "
            f"a parallel one {self.region * 1e9:,.0f} ns"
        )


_measured: dict[str, Ceilings] = {}


def ceilings(executor: Executor, cache: KernelCache) -> Ceilings:
    """Those of this machine for the executor's threads: known, kept on disk, or measured now."""
    key = _key(executor.threads)
    if key not in _measured:
        found = _kept(cache, key)
        if found is None:
            found = measure(executor, cache)
            data = json.dumps(asdict(found)).encode()
            cache.store.put(key, StoredObject(data, KIND))
        _measured[key] = found
    return _measured[key]


def known_ceilings(options: Options) -> Ceilings | None:
    """Those for plans with these options, unless they have yet to be measured."""
    cache = KernelCache(options)
    key = _key(Executor(options.threads, cache).threads)
    return _measured.get(key) or _kept(cache, key)


def ceilings_for(options: Options) -> Ceilings:
    """Those for plans that are made with these options."""
    cache = KernelCache(options)
    return ceilings(Executor(options.threads, cache), cache)


def measure(executor: Executor, cache: KernelCache) -> Ceilings:
    """Measures, in a good half of a second."""
    alone = Executor(1, cache)
    both = [alone] if executor.threads == 1 else [alone, executor]
    flops = [_peak(e, cache) for e in both]
    source = np.ones(BUFFER_BYTES // 4, np.float32)
    bandwidths = [_stream(e, cache, source) for e in both]
    step, region = _steps(executor, cache, 1), _steps(executor, cache, executor.threads)
    rates = (flops[0], flops[-1], bandwidths[0], bandwidths[-1])
    levels = tuple(_level(executor, cache, source, n) for n in CACHED_BYTES)
    return Ceilings(cpu_name(), executor.threads, *rates, step, region, levels)


def cpu_name() -> str:
    """The processor's name as the system states it, else LLVM's."""
    with suppress(OSError):
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return machine.machine().name


def _key(threads: int) -> str:
    fields = environment_fields()
    named = {name: fields[name] for name in ("cpu", "features", "platform")}
    named |= {"kind": KIND, "version": VERSION, "name": cpu_name(), "threads": str(threads)}
    return json.dumps(named, sort_keys=True)


def _kept(cache: KernelCache, key: str) -> Ceilings | None:
    item = cache.store.get(key)
    if item is None or item.symbol != KIND:
        return None
    fields = json.loads(item.data)
    levels = tuple((size, rate) for size, rate in fields.pop("levels"))
    return Ceilings(**fields, levels=levels)


def _peak(executor: Executor, cache: KernelCache) -> float:
    """Float32 operations in a second of multiply-adds whose operands stay in registers."""
    rows, width = machine.tile_rows(VECTORS), VECTORS * machine.lanes(32)
    size = rows * width
    text = PEAK.format(rows=rows, vectors=VECTORS, width=width, size=size)
    tasks = executor.threads * TASKS_PER_THREAD
    memory = np.zeros(tasks * size, np.float32)
    run = _region(executor, cache, text, tasks, [memory.ctypes.data, PEAK_STEPS])
    return 2.0 * tasks * size * PEAK_STEPS / _least(run, REPEATS)


def _stream(executor: Executor, cache: KernelCache, source: np.ndarray) -> float:
    """Bytes in a second that are read from a buffer larger than caches."""
    width = STREAMS * machine.lanes(32)
    text = STREAM.format(vectors=STREAMS, width=width)
    tasks = executor.threads * TASKS_PER_THREAD
    steps = source.size // (tasks * width)
    memory = np.zeros(tasks * width, np.float32)
    values = [memory.ctypes.data, source.ctypes.data, steps]
    run = _region(executor, cache, text, tasks, values)
    return tasks * steps * width * source.itemsize / _least(run, STREAM_REPEATS)


def _level(
    executor: Executor, cache: KernelCache, source: np.ndarray, size: int
) -> tuple[int, float]:
    """Bytes that lie in a cache, and those in a second that all threads read of their own."""
    width = STREAMS * machine.lanes(32)
    text = STREAM.format(vectors=STREAMS, width=width)
    tasks, rounds = executor.threads, CACHED_TOTAL // size
    memory = np.zeros(tasks * width, np.float32)
    steps = size // (width * source.itemsize)
    values = [memory.ctypes.data, source.ctypes.data, steps]
    run = _region(executor, cache, text, tasks, values, rounds)
    moved = tasks * rounds * steps * width * source.itemsize
    return tasks * size, moved / _least(run, STREAM_REPEATS)


def _steps(executor: Executor, cache: KernelCache, tasks: int) -> float:
    """Seconds of one step without work among many."""
    run = _region(executor, cache, EMPTY, tasks, [0], EMPTY_STEPS)
    return _least(run, REPEATS) / EMPTY_STEPS


def _region(
    executor: Executor,
    cache: KernelCache,
    text: str,
    tasks: int,
    values: list[int],
    steps: int = 1,
) -> Callable[[], None]:
    """A plan of equal steps, ready to run; the caller keeps the arrays that `values` point to."""
    (address,) = cache.load([text])
    arguments = np.array(values, np.int64)
    table = np.array([(address, tasks, arguments.ctypes.data)] * steps, np.int64)
    call = executor.prepare(table.ctypes.data, steps, steps - 1 if tasks > 1 else -1)

    def run(kept: tuple[np.ndarray, ...] = (arguments, table)) -> None:
        call()

    return run


def _least(run: Callable[[], None], repeats: int) -> float:
    """Seconds of the fastest run, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
