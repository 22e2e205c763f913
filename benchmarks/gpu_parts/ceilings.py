"""What the device can do at most: multiply-adds, copies, tensor cores, launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from gpu_parts.machine import NOW, query
from gpu_parts.part import Figures, Setting
from gpu_parts.timing import OURS, host_seconds, in_turns
from tilewright.dtypes import DType
from tilewright.runtime.cuda.ceilings import EMPTY
from tilewright.runtime.cuda.device import DeviceMemory, Launches, Step
from tilewright.runtime.cuda.kernel import KernelSource

if TYPE_CHECKING:
    from gpu_parts.bench import Array, Bench

THREADS, BLOCKS_EACH = 256, 4
TILE = 4  # fragments of each side: as many products are independent, squared
WORDS = {"left": 4 * TILE, "right": 2 * TILE}  # of a thread's fragments
SUMS = 4 * TILE * TILE
STEPS = 2048
KERNELS = 256  # of a graph


@dataclass(frozen=True)
class Tensor:
    """An instruction of tensor cores: what its words hold, and how many elements each."""

    suffix: str
    packed: int
    sums: DType
    elements: np.dtype[np.generic]


TENSORS = {
    "f16": Tensor("f16", 2, DType.F32, np.dtype(np.float16)),
    "bf16": Tensor("bf16", 2, DType.F32, np.dtype(ml_dtypes.bfloat16)),
    "tf32": Tensor("tf32", 1, DType.F32, np.dtype(np.float32)),
    "int8": Tensor("i8_i8", 4, DType.I32, np.dtype(np.int8)),
}


def text_of(tensor: Tensor) -> str:
    """A kernel of products of fragments that stay in registers."""
    sums = "stack_f32" if tensor.sums is DType.F32 else "stack_i32"
    call = f"mma_{tensor.suffix}"
    return f"""\
from tilewright_kernels.cuda.mma import {call}
from tilewright_kernels.cuda.pointers import {sums}, stack_u32
from tilewright_kernels.cuda.threads import block, thread


def kernel(p0, p1, n0):
    i = block() * {THREADS} + thread()
    a = stack_u32({WORDS["left"]})
    b = stack_u32({WORDS["right"]})
    c = {sums}({SUMS})
    for k in range({WORDS["left"]}):
        a[k] = p0[thread() * {sum(WORDS.values())} + k]
    for k in range({WORDS["right"]}):
        b[k] = p0[thread() * {sum(WORDS.values())} + {WORDS["left"]} + k]
    for k in range({SUMS}):
        c[k] = p1[i]
    for step in range(n0):
        for m in range({TILE}):
            for n in range({TILE}):
                {call}(c, (m * {TILE} + n) * 4, a, m * 4, b, n * 2)
    total = c[0]
    for k in range(1, {SUMS}):
        total += c[k]
    p1[i] = total
"""


def source_of(tensor: Tensor, architecture: str) -> KernelSource:
    return KernelSource(text_of(tensor), (DType.U32, tensor.sums), 1, THREADS, architecture)


def fragments(tensor: Tensor) -> Array:
    """Words of every thread of a block: small numbers, for zeros make a GPU faster than it is."""
    count = THREADS * sum(WORDS.values()) * tensor.packed
    numbers = np.random.default_rng(0).standard_normal(count) * 3
    return numbers.astype(tensor.elements).view(np.uint32)


class Peak:
    """The kernel of one instruction, ready to be started."""

    def __init__(self, bench: Bench, tensor: Tensor) -> None:
        device = bench.device
        blocks = max(1, device.multiprocessors * bench.setting.size(BLOCKS_EACH, 1))
        steps = bench.setting.size(STEPS, 1)
        words = fragments(tensor)
        self._memory: list[DeviceMemory] = [device.allocate(words.nbytes)]
        self._memory.append(device.allocate(4 * blocks * THREADS))
        device.write(self._memory[0].address, words)
        device.clear(self._memory[1].address, 4 * blocks * THREADS)
        parameters = (*(m.address for m in self._memory), steps)
        self.source = source_of(tensor, device.architecture)
        self.launches = launches(bench, self.source, blocks, parameters)
        products = blocks * THREADS // 32 * steps * TILE * TILE
        self.operations = 2.0 * products * 16 * 8 * 8 * tensor.packed


def launches(
    bench: Bench, source: KernelSource, blocks: int, parameters: Sequence[int], count: int = 1
) -> Launches:
    function = bench.device.load(bench.cache.load([source])[0])
    step = Step(function, blocks, source.threads, 0, np.array(parameters, np.int64))
    return bench.device.launches([step] * count)


def _tensor(name: str, bench: Bench) -> Figures:
    peak = Peak(bench, TENSORS[name])
    times = in_turns(bench.clock, {OURS: peak.launches.start}, bench.setting)
    rate = peak.operations / times.seconds[OURS]
    return {"rate": rate, "device": query(NOW)}  # its clock while it is hot


def _float32(bench: Bench) -> Figures:
    return {"rate": bench.ceilings.flops, "device": query(NOW)}


def _copy(bench: Bench) -> Figures:
    return {
        "rate": bench.copy_bandwidth,
        "kernel": bench.ceilings.bandwidth,
        "driver": bench.driver_bandwidth,
        "bytes": bench.effort.buffer_bytes,
    }


def _launch(bench: Bench) -> Figures:
    """Seconds of a kernel that does nothing: on its own, and as one of many in a graph."""
    memory = bench.device.allocate(1)
    source = KernelSource(EMPTY, (DType.F32,), 0, 32, bench.device.architecture)
    count = bench.setting.size(KERNELS, 1)
    one = launches(bench, source, 1, (memory.address,))
    many = launches(bench, source, 1, (memory.address,), max(2, count))
    times = in_turns(bench.clock, {OURS: one.start, "graph": many.start}, bench.setting)
    return {
        "launch": times.seconds[OURS],
        "launch_host": host_seconds(bench.device, one.start, count),
        "graph_kernel": times.seconds["graph"] / max(2, count),
        "graph_host": host_seconds(bench.device, many.start, 8),
        "how": many.how,
    }


CASES: dict[str, Callable[[Bench], Figures]] = {
    "copy": _copy,
    "float32": _float32,
    **{f"tensor {name}": partial(_tensor, name) for name in TENSORS},
    "launch": _launch,
}


def cases(setting: Setting) -> list[str]:
    return list(CASES)


def run(bench: Bench, case: str) -> Figures:
    return CASES[case](bench)
