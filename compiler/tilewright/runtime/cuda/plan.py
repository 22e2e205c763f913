"""A plan on a GPU: the kernels of one signature, their memory, and the launches that run them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from tilewright.codegen.cuda import Launch, emit_cuda
from tilewright.errors import DeviceError, ExecutionError
from tilewright.fusion.attention import with_attention
from tilewright.fusion.attention_rows import by_rows
from tilewright.fusion.byte_lines import sums_of_bytes
from tilewright.fusion.decide import Pick, Reason
from tilewright.fusion.grid_sums import split_for_grid
from tilewright.fusion.groups import form_groups
from tilewright.fusion.hoist import hoist
from tilewright.fusion.inline import inline, label
from tilewright.fusion.laid_constants import lay_constants
from tilewright.fusion.legalize import legalize
from tilewright.fusion.lower import Lowered, lower
from tilewright.fusion.narrow import computed_halves, half_values, narrowed
from tilewright.fusion.results import copy_results
from tilewright.fusion.settle import settle
from tilewright.fusion.weights import PackedWeights
from tilewright.loops.ir import Kernel, TensorMap
from tilewright.loops.show import show
from tilewright.loops.structure import structure
from tilewright.loops.verify import verify
from tilewright.ops.tensor import Constant, Placeholder, Tensor
from tilewright.runtime.arena import arena
from tilewright.runtime.cuda.arrays import DeviceArray
from tilewright.runtime.cuda.cache import CudaKernelCache
from tilewright.runtime.cuda.constants import DeviceConstants
from tilewright.runtime.cuda.device import (
    MAP_WORDS,
    WORD,
    Device,
    DeviceMemory,
    LibraryStep,
    Step,
)
from tilewright.runtime.cuda.kernel import CompiledKernel, KernelSource, LibraryCode
from tilewright.runtime.cuda.libraries import CUBLAS, library_launch, with_library
from tilewright.runtime.cuda.port import Port
from tilewright.runtime.dump import publish
from tilewright.runtime.edits import Editable
from tilewright.runtime.levels import CudaLevels
from tilewright.runtime.naming import checked_nodes, identifier
from tilewright.runtime.overrides import refuse_overrides
from tilewright.runtime.results import computed
from tilewright.runtime.stories import Story, story
from tilewright.schedule.choices import Choices
from tilewright.schedule.cost import Cost, cost
from tilewright.schedule.cuda import choose_cuda_schedule
from tilewright.schedule.library import Gemm

TF32 = "products of float32 are of factors rounded to TF32 wherever they run on tensor cores"
FROM_LIBRARY = "a library's own"


@dataclass(frozen=True)
class PlannedLaunch(CudaLevels, Editable):
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
    compiled: CompiledKernel | LibraryCode = field(repr=False, compare=False)
    kernel: Kernel = field(repr=False, compare=False)
    lowered: Kernel = field(repr=False, compare=False)
    tensors: tuple[str, ...] = field(repr=False, compare=False)  # what the parameters stand for
    nodes: tuple[str, ...]  # of the model, that it computes
    story: Callable[[], Story] = field(repr=False, compare=False)

    @property
    def tasks(self) -> int:
        """Blocks of threads."""
        return self.blocks

    @cached_property
    def cost(self) -> Cost:
        """Operations and bytes of one run."""
        return cost(self.kernel)


class _Workspace:
    """Memory that runs of one plan share: each begins when the one before has ended."""

    def __init__(self, device: Device, arena_bytes: int, kernels: int) -> None:
        self.arena = device.allocate(max(arena_bytes, 1))
        self.errors = device.allocate(WORD * (kernels + 1))
        self.stream, self.mark = device.stream, device.mark()
        self._device = device

    def enter(self) -> None:
        """What the current stream does from now on has the memory for itself."""
        if self._device.stream != self.stream:
            self._device.wait(self.mark)

    def leave(self) -> None:
        """The current stream has no more work with it."""
        self.stream, self.mark = self._device.stream, self._device.mark()

    def release(self) -> None:
        """Before the memory goes: other streams may get it."""
        with suppress(DeviceError):
            self._device.finish(self.mark)


class CudaPlan:
    """The compiled form of some outputs as functions of some inputs, for fixed shapes, on a GPU.

    Inputs are read where they are, and results written to fresh memory: both are parameters of the
    launches, which change when an address does. Several threads may run one plan, in several
    streams: they take turns.
    """

    def __init__(
        self,
        inputs: Sequence[Placeholder],
        outputs: Sequence[Tensor],
        port: Port,
        cache: CudaKernelCache,
        weights: PackedWeights,
        constants: DeviceConstants,
        choices: Choices | None = None,
    ) -> None:
        self._port, self._device, self._constants = port, port.device, constants
        self.choices = choices or Choices()
        summed = sums_of_bytes(legalize(outputs), weights)
        legal = with_attention(summed, by_rows(computed_halves(outputs)))
        kept = [t for t in legal if not isinstance(t, (Placeholder, Constant))]
        program = hoist(split_for_grid(copy_results(inline(inputs, kept))), of_constants=True)
        program = lay_constants(program)
        settled = settle(program, weights)
        groups = form_groups(program, side_by_side=True)
        lowered = [lower(g, program) for g in groups if any(t.size for t in g.outputs)]
        fixed = {*settled, *(t.name for t in legal)}
        halves = {n: d for n, d in half_values(outputs).items() if n not in fixed}
        lowered = narrowed(lowered, halves)
        pick, tf32 = self.choices.pick, cache.options.tf32
        products, lowered = with_library(lowered, self._device.library, pick)
        scheduled = _scheduled(lowered, products, tf32, pick, self._device.architecture)
        refuse_overrides(cache.options.override, (e.text for _, _, e in scheduled))
        sources = [_source(launch, self._device.architecture) for _, _, launch in scheduled]
        ours = iter(cache.load([s for k, s in enumerate(sources) if k not in products]))
        compiled = [
            LibraryCode(CUBLAS) if k in products else next(ours) for k in range(len(sources))
        ]
        self._nodes = [checked_nodes(n, program.checked) for n in lowered]
        self._outputs = list(legal)
        self.results = tuple(t.name for t in legal)
        self._passed = {t.name: k for k, t in enumerate(inputs)}
        self._lay_out(inputs, lowered, [e for _, _, e in scheduled], compiled, settled, products)
        self.kernels = [
            _describe(k, n, *levels, c, partial(_story, n, cache, sources[k], self.choices))
            if k not in products
            else _describe(k, n, *levels, c, partial(Story, (), FROM_LIBRARY))
            for k, (n, levels, c) in enumerate(zip(lowered, scheduled, compiled, strict=True))
        ]
        publish(self.kernels, cache.options)
        how = f"kernels are started {self._launches.how}"
        told = [*self.choices.notes, *([TF32] if tf32 else []), how]
        self.decisions: tuple[Reason, ...] = (*program.decisions, *told)
        self._lock = threading.Lock()

    # -- building

    def _lay_out(
        self,
        inputs: Sequence[Placeholder],
        lowered: Sequence[Lowered],
        launches: Sequence[Launch],
        compiled: Sequence[CompiledKernel | LibraryCode],
        settled: Mapping[str, Constant],
        products: Mapping[int, Gemm],
    ) -> None:
        self._computed = computed(self._outputs)
        bound = [t.name for t in inputs] + list(self._computed)
        self.offsets, self.arena_bytes = arena(lowered, {*settled, *bound})
        device = self._device
        self._work = _Workspace(device, self.arena_bytes, len(lowered))
        weakref.finalize(self, self._work.release).atexit = False
        self._held: list[DeviceMemory] = []

        def address(t: Tensor) -> int:
            t = settled.get(t.name, t)
            if isinstance(t, Constant):
                memory = self._constants.get(t)
                self._held.append(memory)
                return memory.address
            return 0 if t.name in bound else self._work.arena.address + self.offsets[t.name]

        words: list[int] = []
        maps: list[tuple[int, int, TensorMap]] = []
        spans: list[slice] = []
        places: dict[str, list[tuple[int, int]]] = {name: [] for name in bound}
        for k, (n, e) in enumerate(zip(lowered, launches, strict=True)):
            start = len(words)
            for slot, t in enumerate(n.tensors, start):
                if t.name in places and t.name not in settled:
                    places[t.name].append((slot, k))
            words += [*map(address, n.tensors), *e.numbers]
            if e.checks:
                words.append(self._work.errors.address + WORD * k)
            for m in e.maps:
                maps.append((start + m.pointer, len(words), m.tensor))
                words += [0] * MAP_WORDS
            spans.append(slice(start, len(words)))
        self._words = np.array(words, np.int64)  # the parameters of all launches, ready to be read
        self._maps: dict[int, list[tuple[int, TensorMap]]] = {}  # by the slot of their address
        for slot, at, tensor in maps:
            self._maps.setdefault(slot, []).append((at, tensor))
        self._describe_tensors(self._maps)
        self._slots = [[slot for slot, _ in places[name]] for name in bound]
        self._users = [{k for _, k in places[name]} for name in bound]
        self.used = [bool(places[t.name]) for t in inputs]
        self._bound = [0] * len(bound)
        functions = {id(c): device.load(c) for c in compiled if isinstance(c, CompiledKernel)}
        steps = [
            LibraryStep(products[k], self._words[span])
            if k in products
            else Step(
                *(functions[id(c)], e.blocks, e.threads, e.shared_bytes),
                *(self._words[span], len(e.maps)),
            )
            for k, (e, c, span) in enumerate(zip(launches, compiled, spans, strict=True))
        ]
        self._launches = device.launches(steps)
        self._checked_bytes = WORD * len(steps) if any(e.checks for e in launches) else 0

    def _describe_tensors(self, slots: Iterable[int]) -> None:
        """What hardware is told of tensors fits the addresses in these slots."""
        for slot in slots:
            address = int(self._words[slot])
            for at, tensor in self._maps.get(slot, ()) if address else ():
                self._words[at : at + MAP_WORDS] = self._device.tensor_map(tensor, address)

    # -- running

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """The outputs, fresh and in C order, for inputs in the plan's order.

        They are ready for the current stream. Inputs that are not `used` may be on the host; so are
        outputs that are such inputs, and constants.
        """
        return self._run(arrays, self._launches.start)

    def timed(self, arrays: Sequence[Any]) -> tuple[list[Any], list[float]]:
        """The outputs of a run, and the seconds that each kernel took in it."""
        seconds: list[float] = []
        outputs = self._run(arrays, lambda: seconds.extend(self._launches.timed()))
        return outputs, seconds

    def again(self) -> None:
        """Starts the kernels once more, on the arrays of the last run, which must still be there.

        For measurements: nothing is checked, bound or made.
        """
        self._launches.start()

    def _run(self, arrays: Sequence[Any], start: Callable[[], object]) -> list[Any]:
        made = {k: self._empty(k) for k in self._computed.values()}
        if self.kernels:
            with self._lock:
                self._work.enter()
                self._bind([getattr(a, "address", 0) for a in (*arrays, *made.values())])
                self._start(start)
                for array in made.values():
                    array.mark = self._work.mark
        return [self._result(k, t, arrays, made) for k, t in enumerate(self._outputs)]

    def _start(self, start: Callable[[], object]) -> None:
        """One run on what is bound; waits for its end if data is checked."""
        errors = self._work.errors.address
        if self._checked_bytes:
            self._device.clear(errors, self._checked_bytes)
        start()
        self._work.leave()
        if self._checked_bytes:
            self._check()

    def _empty(self, k: int) -> DeviceArray:
        t = self._outputs[k]
        return self._port.empty(t.shape, t.dtype.numpy)

    def _bind(self, addresses: list[int]) -> None:
        """Makes the launches work on these inputs and outputs."""
        changed = set[int]()
        for k, (old, new) in enumerate(zip(self._bound, addresses, strict=True)):
            if old != new and self._slots[k]:
                self._words[self._slots[k]] = new
                self._describe_tensors(self._slots[k])
                changed |= self._users[k]
        if changed:
            self._launches.update(sorted(changed))
        self._bound = addresses

    def _result(
        self, k: int, t: Tensor, arrays: Sequence[Any], made: Mapping[int, DeviceArray]
    ) -> Any:
        """An output; those that are constants, inputs or other outputs are copies."""
        if k in made:
            return made[k]
        if isinstance(t, Constant):
            return t.value.copy()
        at = self._passed.get(t.name)
        return (made[self._computed[t.name]] if at is None else arrays[at]).copy()

    def _check(self) -> None:
        errors = np.zeros(len(self.kernels), np.int64)
        self._device.read(self._work.errors.address, errors)
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
        return self.arena_bytes + self._words.nbytes


def _scheduled(
    lowered: Sequence[Lowered],
    products: Mapping[int, Gemm],
    tf32: bool,
    pick: Pick,
    architecture: str,
) -> list[tuple[Kernel, Kernel, Launch]]:
    """Kernels before and after scheduling, and their sources; those of one structure are made
    once, under the names of the first. `products` are a library's, as they were lowered."""
    made: dict[Hashable, tuple[Kernel, Kernel, Launch]] = {}
    keys = [
        (n.group.nest is None, products.get(k), structure(n.kernel)) for k, n in enumerate(lowered)
    ]
    for k, (key, n) in enumerate(zip(keys, lowered, strict=True)):
        if key not in made and k in products:
            made[key] = n.kernel, verify(n.kernel), library_launch(products[k])
        elif key not in made:
            kernel = verify(choose_cuda_schedule(n, tf32, None, pick, architecture))
            made[key] = n.kernel, kernel, emit_cuda(kernel)
    return [made[key] for key in keys]


def _source(launch: Launch, architecture: str) -> KernelSource:
    checks = bool(launch.checks)
    count, maps = len(launch.numbers), len(launch.maps)
    return KernelSource(
        launch.text, launch.pointers, count, launch.threads, architecture, checks, maps
    )


def _describe(
    k: int,
    n: Lowered,
    plain: Kernel,
    kernel: Kernel,
    launch: Launch,
    compiled: CompiledKernel | LibraryCode,
    story_of: Callable[[], Story],
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
        lowered=plain,
        tensors=tuple(t.name for t in n.tensors),
        nodes=n.group.nodes,
        story=story_of,
    )


def _story(n: Lowered, cache: CudaKernelCache, source: KernelSource, choices: Choices) -> Story:
    pick = Choices(choices.known).pick
    return story(
        lambda journal: choose_cuda_schedule(
            n, cache.options.tf32, journal, pick, source.architecture
        ),
        cache.origins.get(source, ""),
        cache.key_fields(source),
        cache.store,
    )
