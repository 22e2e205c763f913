"""What a GPU can do at most, measured by small kernels of our own when a profile asks for it.

Multiply-adds in registers, copies of a buffer that no cache holds, and kernels that do nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.dtypes import DType
from tilewright.runtime.ceilings import Ceilings
from tilewright.runtime.cuda.cache import CudaKernelCache
from tilewright.runtime.cuda.device import Device, Launches, Step
from tilewright.runtime.cuda.kernel import KernelSource

THREADS = 256
BLOCKS_EACH = 8  # for each multiprocessor
CHAINS = 8  # multiply-adds of a thread that do not wait for each other
VECTOR = 4  # elements of 16 bytes
REPEATS = 10

HEAD = "from tilewright_kernels.cuda.threads import block, thread\n"
PEAK = (
    "from tilewright_kernels.cuda.accumulate import add_product_f32\n"
    + HEAD
    + f"\n\ndef kernel(p0, n0):\n    i = block() * {THREADS} + thread()\n    x = p0[i]\n"
    + "".join(f"    a{k} = x + x\n" for k in range(CHAINS))
    + "    for step in range(n0):\n"
    + "".join(f"        a{k} = add_product_f32(a{k}, x, x)\n" for k in range(CHAINS))
    + f"    p0[i] = {' + '.join(f'a{k}' for k in range(CHAINS))}\n"
)
COPY = f"""\
from tilewright_kernels.cuda.memory import copy_vector
{HEAD}

def kernel(p0, p1, n0, n1):
    for i in range(block() * {THREADS} + thread(), n0, n1):
        copy_vector(p1, {VECTOR} * i, p0, {VECTOR} * i, {VECTOR})
"""
EMPTY = "def kernel(p0):\n    pass\n"


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    steps: int = 8192  # of multiply-adds
    buffer_bytes: int = 512 << 20
    kernels: int = 256  # that do nothing


ENOUGH = Effort()


@dataclass(frozen=True)
class GpuCeilings(Ceilings):
    """`threads` are multiprocessors, a `step` is a kernel among many, started as plans start it."""

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.threads} multiprocessors: {self.flops / 1e9:,.0f} GFLOP/s in "
            f"float32, {self.bandwidth / 1e9:,.1f} GB/s, a kernel {self.step * 1e9:,.0f} ns"
        )


class DeviceCeilings:
    """Those of one device, measured once."""

    def __init__(self, device: Device, cache: CudaKernelCache, effort: Effort = ENOUGH) -> None:
        self._device, self._cache, self._effort = device, cache, effort
        self._found: Ceilings | None = None
        self._lock = threading.Lock()

    @property
    def known(self) -> Ceilings | None:
        """If they have been measured."""
        return self._found

    def __call__(self) -> Ceilings:
        with self._lock:
            if self._found is None:
                self._found = self._measure()
            return self._found

    def _measure(self) -> Ceilings:
        device = self._device
        flops, bandwidth, step = self._peak(), self._copy(), self._step()
        count = device.multiprocessors
        return GpuCeilings(
            device.name, count, flops / count, flops, bandwidth / count, bandwidth, step, step
        )

    def _peak(self) -> float:
        """Float32 operations in a second of multiply-adds whose operands stay in registers."""
        blocks, steps = self._device.multiprocessors * BLOCKS_EACH, self._effort.steps
        memory = self._device.allocate(blocks * THREADS * 4)
        self._device.clear(memory.address, blocks * THREADS * 4)
        run = self._launches(PEAK, 1, blocks, (memory.address, steps))
        return 2.0 * CHAINS * steps * blocks * THREADS / _least(run)

    def _copy(self) -> float:
        """Bytes read and written in a second by a copy of a large buffer."""
        blocks, size = self._device.multiprocessors * BLOCKS_EACH, self._effort.buffer_bytes
        source, target = self._device.allocate(size), self._device.allocate(size)
        self._device.clear(source.address, size)
        words = (source.address, target.address, size // (4 * VECTOR), blocks * THREADS)
        run = self._launches(COPY, 2, blocks, words)
        return 2.0 * size / _least(run)

    def _step(self) -> float:
        """Seconds of one kernel without work among many, from the start of all to their end."""
        memory, count = self._device.allocate(1), self._effort.kernels
        run = self._launches(EMPTY, 1, 1, (memory.address,), count)
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            run.start()
            self._device.finish()
            times.append(time.perf_counter() - start)
        return min(times) / count

    def _launches(
        self, text: str, pointers: int, blocks: int, words: Sequence[int], count: int = 1
    ) -> Launches:
        source = KernelSource(
            text,
            (DType.F32,) * pointers,
            len(words) - pointers,
            THREADS,
            self._device.architecture,
        )
        function = self._device.load(self._cache.load([source])[0])
        step = Step(function, blocks, THREADS, 0, np.array(words, np.int64))
        return self._device.launches([step] * count)


def _least(run: Launches) -> float:
    """Seconds of the fastest run, after one to warm up."""
    run.timed()
    return min(sum(run.timed()) for _ in range(REPEATS))
