"""Compiles all kernels of models ahead of the first call, for a GPU also where there is none.

Stages of a model whose shapes depend on data are reached by evaluating the stages before them on
the host, for random inputs: what other data would need is not compiled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tilewright.driver import compile_in, planner
from tilewright.errors import ExecutionError
from tilewright.explore.compare import Request
from tilewright.explore.feeds import feeds_of
from tilewright.explore.screen import Screen
from tilewright.fusion.weights import PackedWeights
from tilewright.ops.tensor import Placeholder, Tensor
from tilewright.options import Options
from tilewright.runtime.cache import KernelCache
from tilewright.runtime.cuda.cache import CudaKernelCache
from tilewright.runtime.cuda.constants import DeviceConstants
from tilewright.runtime.cuda.offline import OfflineDevice
from tilewright.runtime.cuda.plan import CudaPlan
from tilewright.runtime.cuda.port import Port
from tilewright.runtime.cuda.toolchain import TO_COMPILE, find_toolchain
from tilewright.runtime.model import CompiledModel
from tilewright.runtime.segments import Evaluation
from tilewright.runtime.session import Workshop

CPU = "cpu"
TENSOR_CORES = "mma.sync"


@dataclass(frozen=True)
class Machine:
    """What the machine code of a model takes; bytes of all its distinct kernels together.

    Spilled bytes are those of stores and loads; local bytes are arrays of a thread as well.
    """

    registers: int
    spill_bytes: int
    local_bytes: int
    spilling: int
    tensor_cores: int


@dataclass(frozen=True)
class Compiled:
    """One model for one architecture, or the reason why it could not be compiled.

    `steps` are the kernels of one run, `distinct` of them differ. `compiled` were not in the cache,
    those that lay constants out once among them.
    Stages after the first were reached with random data; `unplanned` says why planning ended early.
    """

    model: str
    case: str
    architecture: str
    reason: str = ""
    stages: int = 0
    steps: int = 0
    distinct: int = 0
    compiled: int = 0
    seconds: float = 0.0
    unplanned: str = ""
    hosted: tuple[str, ...] = field(default=())
    machine: Machine | None = None

    @property
    def name(self) -> str:
        return f"{self.model} {self.case}".strip()


class OfflineRunner:
    """The plan of a stage on a GPU that is not here; the host evaluates what later stages need."""

    def __init__(
        self, plan: CudaPlan, inputs: Sequence[Placeholder], outputs: Sequence[Tensor]
    ) -> None:
        self.kernels, self.decisions, self.nbytes = plan.kernels, plan.decisions, plan.nbytes
        self._evaluation = Evaluation(inputs, outputs)

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """The outputs by the tensor expressions, on the host."""
        return self._evaluation.run(arrays)


def offline_workshop(
    options: Options, architecture: str, cache: CudaKernelCache | None = None
) -> Workshop:
    """Makes the plans that a machine with such a GPU would make; kernels go to the same folder."""
    device = OfflineDevice(architecture)
    kernels, weights = cache or CudaKernelCache(options), PackedWeights()
    port, constants = Port(device), DeviceConstants(device)

    def build(inputs: Sequence[Placeholder], outputs: Sequence[Tensor]) -> OfflineRunner:
        plan = CudaPlan(inputs, outputs, port, kernels, weights, constants)
        return OfflineRunner(plan, inputs, outputs)

    return Workshop(options, build)


def compile_case(request: Request, case: str, architecture: str, options: Options) -> Compiled:
    """All kernels of a model, in the cache; `architecture` may be the processor here."""
    made = Compiled(Path(request.model).stem, case, architecture)
    start = time.perf_counter()
    try:
        shop, count = _workshop(architecture, options)
        model = compile_in(shop, request.model)
        unplanned = _plan(model, feeds_of(model, request))
    except Exception as error:  # whatever it is, it must not cost the other models
        return replace(made, reason=f"{type(error).__name__}: {error}")
    made = replace(made, seconds=time.perf_counter() - start, unplanned=unplanned)
    return _with_kernels(replace(made, compiled=count()), model, shop)


def _workshop(architecture: str, options: Options) -> tuple[Workshop, Callable[[], int]]:
    """Plans for the target, and how many kernels it had to compile."""
    if architecture == CPU:
        return _cpu_workshop(options)
    cache = CudaKernelCache(options)
    return offline_workshop(options, architecture, cache), lambda: cache.stats().compiled


def _cpu_workshop(options: Options) -> tuple[Workshop, Callable[[], int]]:
    cache = KernelCache(options)
    return Workshop(options, planner(options, cache=cache)), lambda: cache.stats().compiled


def _plan(model: CompiledModel, feeds: dict[str, Any]) -> str:
    """Plans all that these inputs lead to; why not all, if the random data was refused."""
    try:
        model.warmup(feeds)
    except ExecutionError as error:
        return str(error)
    return ""


def _with_kernels(made: Compiled, model: CompiledModel, shop: Workshop) -> Compiled:
    stages, kernels = model.explain().stages, model.kernels
    on_gpu = made.architecture != CPU
    return replace(
        made,
        stages=len(stages),
        steps=len(kernels),
        distinct=len({k.compiled.entry if on_gpu else k.source for k in kernels}),
        hosted=tuple(dict.fromkeys(shop.hosted)),
        machine=_machine(kernels) if on_gpu else None,
    )


def _machine(kernels: Sequence[Any]) -> Machine:
    """What the assembler said of each distinct kernel."""
    distinct = list({k.compiled.entry: k.compiled for k in kernels}.values())
    usage = [c.usage for c in distinct]
    return Machine(
        registers=max((u.registers for u in usage), default=0),
        spill_bytes=sum(u.spill_bytes for u in usage),
        local_bytes=sum(u.local_bytes for u in usage),
        spilling=sum(u.spill_bytes > 0 for u in usage),
        tensor_cores=sum(TENSOR_CORES in c.ptx for c in distinct),
    )


def run(
    wanted: Sequence[tuple[Request, str]],
    architectures: Sequence[str],
    options: Options,
    begin: Callable[[str], None],
    done: Callable[[Compiled], None],
) -> list[Compiled]:
    """Every model for every architecture; one that fails is a row with the reason."""
    rows = []
    for request, case in wanted:
        for architecture in architectures:
            begin(f"{Path(request.model).stem} {case} for {architecture}")
            rows.append(compile_case(request, case, architecture, options))
            done(rows[-1])
    return rows


# -- tables


def line(row: Compiled) -> str:
    """What is told as soon as it is known."""
    what = f"{row.name} for {row.architecture}"
    if row.reason:
        return f"FAILED {what}: {row.reason}"
    end = f"; the rest is not planned: {row.unplanned}" if row.unplanned else ""
    return f"{what}: {row.distinct} kernels, {row.compiled} new, {row.seconds:.1f} s{end}"


def show(rows: Sequence[Compiled], screen: Screen) -> None:
    """One table for all, then what was not planned, what needs data, and what failed.

    Spilled and local memory are bytes; mma counts the kernels that use tensor cores.
    """
    screen.heading("Kernels compiled")
    columns = ["model", "for", "stages", "steps", "kernels", "new", "s"]
    columns += ["regs", "spilled", "local", "mma"]
    screen.table(columns, [_cells(row) for row in rows if not row.reason])
    for row in rows:
        _notes(row, screen)


def _cells(row: Compiled) -> list[str]:
    counts = [row.stages, row.steps, row.distinct, row.compiled]
    found = row.machine
    machine = ["", "", "", ""]
    if found is not None:
        numbers = found.registers, found.spill_bytes, found.local_bytes, found.tensor_cores
        machine = list(map(str, numbers))
    return [row.name, row.architecture, *map(str, counts), f"{row.seconds:.1f}", *machine]


def _notes(row: Compiled, screen: Screen) -> None:
    what = f"{row.name} for {row.architecture}"
    if row.reason or row.unplanned:
        screen.line(line(row))
    if row.stages > 1:
        screen.line(f"{what}: {row.stages} stages, those that random data led to; other data may")
        screen.line("  need other kernels, which are compiled when it comes")
    if row.hosted:
        screen.line(f"{what}: the host computes {', '.join(row.hosted)}")


def as_data(rows: Sequence[Compiled]) -> dict[str, Any]:
    """As JSON has it, with the versions that the figures depend on."""
    parts = {p.name: p.version for p in map(find_toolchain().part, TO_COMPILE)}
    return {"toolchain": parts, "rows": [asdict(row) for row in rows]}
