"""A plan on a GPU: the kernels of one signature, their memory, and the launches that run them."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tilewright.codegen.cuda import Launch, emit_cuda
from tilewright.errors import ExecutionError
from tilewright.fusion.attention import with_attention
from tilewright.fusion.attention_rows import by_rows
from tilewright.fusion.groups import form_groups
from tilewright.fusion.inline import inline, label
from tilewright.fusion.legalize import legalize
from tilewright.fusion.lower import Lowered, lower
from tilewright.fusion.results import copy_results
from tilewright.fusion.settle import settle
from tilewright.fusion.weights import PackedWeights
from tilewright.loops.ir import Kernel
from tilewright.loops.show import show
from tilewright.loops.structure import structure
from tilewright.loops.verify import verify
from tilewright.ops.tensor import Constant, Placeholder, Tensor
from tilewright.runtime.arena import arena
from tilewright.runtime.cuda.cache import CudaKernelCache
from tilewright.runtime.cuda.constants import DeviceConstants
from tilewright.runtime.cuda.device import Device, DeviceMemory, Step
from tilewright.runtime.cuda.kernel import CompiledKernel, KernelSource
from tilewright.runtime.naming import checked_nodes, identifier
from tilewright.runtime.results import Results, computed
from tilewright.schedule.cost import Cost, cost
from tilewright.schedule.cuda import choose_cuda_schedule

WORD = 8  # bytes of a parameter


@dataclass(frozen=True)
class PlannedLaunch:
    """One kernel of a plan on a GPU. Every level of it can be asked for."""

    name: str
    graph: str  # the operators it computes
    loops: str  # the scheduled loop nest
    schedule: tuple[str, ...]
    source: str
    blocks: int
    threads: int
    shared_bytes: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    compiled: CompiledKernel = field(repr=False, compare=False)
    kernel: Kernel = field(repr=False, compare=False)

    @property
    def tasks(self) -> int:
        """Blocks of threads."""
        return self.blocks

    @cached_property
    def cost(self) -> Cost:
        """Operations and bytes of one run."""
        return cost(self.kernel)


class CudaPlan:
    """The compiled form of some outputs as functions of some inputs, for fixed shapes, on a GPU.

    Several threads may run one plan: they take turns.
    """

    def __init__(
        self,
        inputs: Sequence[Placeholder],
        outputs: Sequence[Tensor],
        device: Device,
        cache: CudaKernelCache,
        weights: PackedWeights,
        constants: DeviceConstants,
    ) -> None:
        self._device, self._constants = device, constants
        legal = with_attention(legalize(outputs), by_rows())
        kept = [t for t in legal if not isinstance(t, (Placeholder, Constant))]
        program = copy_results(inline(inputs, kept))
        settled = settle(program, weights)
        groups = form_groups(program)
        lowered = [lower(g, program) for g in groups if any(t.size for t in g.outputs)]
        scheduled = _scheduled(lowered)
        sources = [_source(launch, device.architecture) for _, launch in scheduled]
        compiled = cache.load(sources)
        self._nodes = [checked_nodes(n, program.checked) for n in lowered]
        self._lay_out(inputs, legal, lowered, [e for _, e in scheduled], compiled, settled)
        self.kernels = [
            _describe(k, n, kernel, launch, c)
            for k, (n, (kernel, launch), c) in enumerate(
                zip(lowered, scheduled, compiled, strict=True)
            )
        ]
        self.decisions = tuple(program.decisions)
        self._results = Results(inputs, legal)
        self._lock = threading.Lock()

    # -- building

    def _lay_out(
        self,
        inputs: Sequence[Placeholder],
        outputs: Sequence[Tensor],
        lowered: Sequence[Lowered],
        launches: Sequence[Launch],
        compiled: Sequence[CompiledKernel],
        settled: Mapping[str, Constant],
    ) -> None:
        results = computed(outputs)
        fixed = {*settled, *(t.name for t in inputs)}
        offsets, self.arena_bytes = arena(lowered, fixed, lasting=results)
        device = self._device
        self._arena = device.allocate(max(self.arena_bytes, 1))
        self._inputs = [device.allocate(max(_nbytes(t), 1)) for t in inputs]
        self._errors = device.allocate(WORD * (len(lowered) + 1))
        self._output_places = [(k, offsets[name]) for name, k in results.items() if name in offsets]
        input_at = {t.name: m.address for t, m in zip(inputs, self._inputs, strict=True)}
        self._held: list[DeviceMemory] = []

        def address(t: Tensor) -> int:
            t = settled.get(t.name, t)
            if isinstance(t, Constant):
                memory = self._constants.get(t)
                self._held.append(memory)
                return memory.address
            return input_at[t.name] if t.name in input_at else self._arena.address + offsets[t.name]

        functions = {id(c): device.load(c) for c in compiled}
        self._steps: list[Step] = []
        for k, (n, e, c) in enumerate(zip(lowered, launches, compiled, strict=True)):
            words = [*map(address, n.tensors), *e.numbers]
            if e.checks:
                words.append(self._errors.address + WORD * k)
            parameters = np.array(words, np.int64)
            step = Step(functions[id(c)], e.blocks, e.threads, e.shared_bytes, parameters)
            self._steps.append(step)
        self._start = device.sequence(self._steps)
        self._checks = any(e.checks for e in launches)

    # -- running

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs, fresh and in C order, for inputs in the plan's order, C-contiguous."""
        results = self._results.make()
        if self._steps:
            with self._lock:
                self._run(arrays, results)
        return self._results.complete(results, arrays)

    def _run(self, arrays: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> None:
        device = self._device
        for memory, array in zip(self._inputs, arrays, strict=True):
            device.write(memory.address, array)
        errors = np.zeros(len(self._steps) + 1, np.int64)
        if self._checks:
            device.write(self._errors.address, errors)
        self._start()
        for k, offset in self._output_places:
            device.read(self._arena.address + offset, results[k])
        if self._checks:
            device.read(self._errors.address, errors)
            self._check(errors)

    def _check(self, errors: np.ndarray) -> None:
        failed = np.flatnonzero(errors)
        if failed.size:
            k = int(failed[0])
            where = " or ".join(self._nodes[k]) or self.kernels[k].graph
            raise ExecutionError(
                f"in {where}: an index is out of range or an integer is divided by zero"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of the device's memory that the plan holds, constants apart."""
        return self.arena_bytes + self._results.nbytes


def _scheduled(lowered: Sequence[Lowered]) -> list[tuple[Kernel, Launch]]:
    """Scheduled kernels and their sources; kernels of one structure are made once."""
    made: dict[Hashable, tuple[Kernel, Launch]] = {}
    keys = [(n.group.nest is None, structure(n.kernel)) for n in lowered]
    for key, n in zip(keys, lowered, strict=True):
        if key not in made:
            kernel = verify(choose_cuda_schedule(n))
            made[key] = kernel, emit_cuda(kernel)
    return [made[key] for key in keys]


def _source(launch: Launch, architecture: str) -> KernelSource:
    checks = bool(launch.checks)
    count = len(launch.numbers)
    return KernelSource(launch.text, launch.pointers, count, launch.threads, architecture, checks)


def _describe(
    k: int, n: Lowered, kernel: Kernel, launch: Launch, compiled: CompiledKernel
) -> PlannedLaunch:
    names = {b.name: label(t) for b, t in zip(n.kernel.params, n.tensors, strict=True)}
    return PlannedLaunch(
        name=f"k{k}_{identifier(n.group.label)}",
        graph=n.group.label,
        loops=show(kernel),
        schedule=tuple(map(str, kernel.schedule)),
        source=launch.text,
        blocks=launch.blocks,
        threads=launch.threads,
        shared_bytes=launch.shared_bytes,
        reads=tuple(v for b, v in names.items() if b not in kernel.outputs),
        writes=tuple(v for b, v in names.items() if b in kernel.outputs),
        compiled=compiled,
        kernel=kernel,
    )


def _nbytes(t: Tensor) -> int:
    return t.size * t.dtype.itemsize
