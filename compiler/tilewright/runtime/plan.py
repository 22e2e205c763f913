"""A plan: everything that one signature needs, as a table of native calls that one call walks.

Building it takes tensor expressions through fusion, lowering, scheduling and code generation;
running it fills in
the addresses of inputs and outputs and calls the executor once. Several threads may run one plan:
each run takes an
instance (arena and argument tables) of its own and gives it back.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np

from tilewright.codegen.emit import Emitted, emit
from tilewright.errors import ExecutionError
from tilewright.fusion.decide import Pick, Point, Reason
from tilewright.fusion.extremes import split_extremes
from tilewright.fusion.gates import quotients_before_quantisation
from tilewright.fusion.groups import form_groups
from tilewright.fusion.hoist import hoist
from tilewright.fusion.inline import inline, label
from tilewright.fusion.legalize import legalize
from tilewright.fusion.lower import Lowered, lower
from tilewright.fusion.pack import pack_operands
from tilewright.fusion.restructure import Means, restructure
from tilewright.fusion.results import copy_results
from tilewright.fusion.settle import settle
from tilewright.fusion.sums import split_sums
from tilewright.fusion.weights import PackedWeights, aligned
from tilewright.loops.affine import Range, interval
from tilewright.loops.ir import (
    Accumulate,
    Expr,
    For,
    Kernel,
    Load,
    Stmt,
    Store,
    Tile,
    children,
)
from tilewright.loops.show import show
from tilewright.loops.structure import structure
from tilewright.loops.verify import verify
from tilewright.ops.tensor import Constant, Placeholder, Tensor
from tilewright.options import Options
from tilewright.runtime.arena import arena
from tilewright.runtime.cache import KernelCache
from tilewright.runtime.dump import publish
from tilewright.runtime.edits import Editable, Site
from tilewright.runtime.levels import CpuLevels
from tilewright.runtime.naming import checked_nodes, identifier
from tilewright.runtime.pool import Executor, texts_to_load
from tilewright.runtime.results import Results, computed
from tilewright.runtime.revisions import GENERATED, Made, Revisions, as_generated
from tilewright.runtime.stopwatch import Stopwatch, TaskStopwatch
from tilewright.runtime.stories import Story, story
from tilewright.runtime.table import Instance, Place, Source, Step, Table
from tilewright.runtime.timeline import StepTrace
from tilewright.schedule.choices import Choices
from tilewright.schedule.cost import Cost, cost
from tilewright.schedule.heuristics import TileLimits, choose_schedule, schedule_key
from tilewright_kernels.cpu import machine

TASK_NANOSECONDS = 2_000  # work that is worth a task of its own: ten times what a region costs
BRIEF_NANOSECONDS = 40_000  # of tasks that are not worth waking helpers, which may take as long
NANOSECONDS_PER_NODE = 0.025  # of an expression in plain loops, once
NANOSECONDS_PER_PRODUCT = 0.005  # and node, on register tiles
NANOSECONDS_PER_BYTE = 0.0025  # and node, that tiles load for each of their rows
TASKS_PER_THREAD = 4

T = TypeVar("T")


def _no_story() -> Story:
    return Story((), "")


@dataclass(frozen=True)
class PlannedKernel(CpuLevels, Editable):
    """One kernel of a plan. Every level of it can be asked for, and `edits.Editable` says how it
    is changed: then all fields change at once."""

    name: str
    graph: str  # the operators it computes
    loops: str  # the scheduled loop nest
    schedule: tuple[str, ...]
    source: str
    tasks: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    kernel: Kernel = field(repr=False, compare=False)
    lowered: Kernel = field(repr=False, compare=False)
    tensors: tuple[str, ...] = field(repr=False, compare=False)  # what the parameters stand for
    nodes: tuple[str, ...] = ()  # of the model, that it computes
    story: Callable[[], Story] = field(repr=False, compare=False, default=_no_story)
    origin: str = GENERATED
    site: Site | None = field(default=None, repr=False, compare=False)

    @cached_property
    def cost(self) -> Cost:
        """Operations and bytes of one run."""
        return cost(self.kernel)


def tile_limits() -> TileLimits:
    """What fits the registers of the machine."""
    return TileLimits(
        {v: machine.tile_rows(v) for v in (1, 2)}, {bits: machine.lanes(bits) for bits in (32, 64)}
    )


class Plan:
    """The compiled form of some outputs as functions of some inputs, for fixed shapes."""

    def __init__(
        self,
        inputs: Sequence[Placeholder],
        outputs: Sequence[Tensor],
        options: Options,
        cache: KernelCache,
        weights: PackedWeights,
        choices: Choices,
        revisions: Revisions,
    ) -> None:
        self.cache, self.choices, self._revisions = cache, choices, revisions
        legal = legalize(quotients_before_quantisation(outputs))
        means = Means(tile_limits().lanes, weights, choices.pick, machine.multiplies_bytes())
        legal = restructure(legal, means)
        program = inline(inputs, [t for t in legal if not isinstance(t, (Placeholder, Constant))])
        program = hoist(split_sums(copy_results(program)))
        program = split_extremes(program, tile_limits().lanes)
        program = pack_operands(program, tile_limits().lanes, weights, choices.pick)
        self._settled = settle(program, weights)
        lowered = [lower(g, program) for g in form_groups(program) if _has_work(g.outputs)]
        self.made = revisions.all_made(_generate(lowered, choices.pick))
        addresses = cache.load([m.text for m in self.made] + texts_to_load())[: len(lowered)]
        self.executor = Executor(options.threads, cache)
        self._nodes = [checked_nodes(n, program.checked) for n in lowered]
        self.table = self.tabled(self._lay_out(inputs, legal, lowered, addresses))
        self.kernels = [self._describe(k, n, self.made[k]) for k, n in enumerate(lowered)]
        weights.give_up_sources()
        self.decisions: tuple[Reason, ...] = (
            *program.decisions,
            *choices.notes,
            *revisions.notes(),
        )
        publish(self.kernels, options)
        self._results = Results(inputs, legal)
        self.fresh = self._results.make
        revisions.add(self)

    # -- building

    def _lay_out(
        self,
        inputs: Sequence[Placeholder],
        outputs: Sequence[Tensor],
        lowered: Sequence[Lowered],
        addresses: Sequence[int],
    ) -> list[Step]:
        """The kernels' parameters have their places, and those in the arena their offsets."""
        self.inputs = tuple(inputs)
        self.results = tuple(t.name for t in outputs)
        self._constants: dict[str, np.ndarray] = {}
        input_at = {t.name: k for k, t in enumerate(inputs)}
        output_at = computed(outputs)
        fixed = {*self._settled, *input_at, *output_at}
        self.offsets, self.arena_bytes = arena(lowered, fixed)

        def place(t: Tensor) -> Place:
            t = self._settled.get(t.name, t)
            if isinstance(t, Constant):
                return Source.FIXED, self._constant(t)
            if t.name in input_at:
                return Source.INPUT, input_at[t.name]
            if t.name in output_at:
                return Source.OUTPUT, output_at[t.name]
            return Source.ARENA, self.offsets[t.name]

        return [
            self._step(m, address, tuple(map(place, n.tensors)))
            for n, m, address in zip(lowered, self.made, addresses, strict=True)
        ]

    def _step(self, m: Made, address: int, places: tuple[Place, ...]) -> Step:
        """A kernel with its parameters, cut into tasks."""
        tasks, chunk = self.cut(m.kernel, m.emitted)
        checks = bool(m.emitted.checks)
        return Step(address, places, m.emitted.numbers, tasks, chunk, checks, work(m.kernel))

    def tabled(self, steps: Iterable[Step], kind: type[Table] = Table) -> Table:
        """The table of a plan of these kernels."""
        return kind(steps, self.arena_bytes, self.executor, BRIEF_NANOSECONDS)

    def change(self, made: Mapping[int, Made], addresses: Mapping[int, int]) -> None:
        """Runs that begin from now on have these kernels in those places."""
        steps = list(self.table.steps)
        for k, m in made.items():
            steps[k] = self._step(m, addresses[k], steps[k].places)
        self.table = self.tabled(steps)
        for k, m in made.items():
            self.made[k] = m
            old = self.kernels[k]
            tasks = steps[k].tasks
            old.become(replace(old, **_levels(m), tasks=tasks))

    def _constant(self, t: Constant) -> int:
        if t.name not in self._constants:
            value = t.value
            in_order = value.flags.c_contiguous and value.ctypes.data % 64 == 0
            whole = in_order or t.strides is not None  # laid out on purpose
            self._constants[t.name] = value if whole else aligned(value)
        return int(self._constants[t.name].ctypes.data)

    def cut(self, kernel: Kernel, e: Emitted) -> tuple[int, int]:
        """How many tasks a kernel is cut into, and the iterations of each."""
        if e.iterations is None:
            return 1, 0
        threads = self.executor.threads
        most = threads * TASKS_PER_THREAD if threads > 1 else 1
        wanted = min(int(work(kernel) / TASK_NANOSECONDS), most, e.iterations)
        if wanted > threads:
            wanted -= wanted % threads  # else the last task leaves the other threads idle
        if threads > 1:
            point = _tasks_point(kernel, threads, max(1, wanted), e.iterations)
            wanted = self.choices.pick(point)
        chunk = -(-e.iterations // max(1, wanted))
        return -(-e.iterations // chunk), chunk

    def _describe(self, k: int, n: Lowered, m: Made) -> PlannedKernel:
        written = m.kernel.outputs
        names = {b.name: label(t) for b, t in zip(n.kernel.params, n.tensors, strict=True)}
        return PlannedKernel(
            name=f"k{k}_{identifier(n.group.label)}",
            graph=n.group.label,
            tasks=self.table.steps[k].tasks,
            reads=tuple(v for b, v in names.items() if b not in written),
            writes=tuple(v for b, v in names.items() if b in written),
            lowered=m.meaning,
            tensors=tuple(t.name for t in n.tensors),
            nodes=n.group.nodes,
            story=partial(_story, n, m.text, self.cache, self.choices),  # does not keep the plan
            site=Site(weakref.ref(self), k, self._revisions, m.usual[1].text),
            **_levels(m),
        )

    # -- running

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs, fresh and in C order, for inputs in the plan's order, C-contiguous."""
        results, table = self._results.make(), self.table
        if table.steps:
            instance = table.take()
            try:
                table.bind(instance, arrays, results)
                instance.run()
                if table.checks:
                    self._check(table, instance)
            finally:
                table.free.append(instance)
        return self._results.complete(results, arrays)

    def _check(self, table: Table, instance: Instance) -> None:
        if instance.errors.tobytes() == table.no_errors:
            return
        k = int(np.flatnonzero(instance.errors)[0])
        instance.errors[:] = 0
        where = " or ".join(self._nodes[k]) or self.kernels[k].graph
        raise ExecutionError(
            f"in {where}: an index is out of range or an integer is divided by zero"
        )

    def timed(self, arrays: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[float]]:
        """The outputs of a run, and the seconds that each kernel took in it."""
        return self._watched(arrays, Stopwatch)

    def traced(self, arrays: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[StepTrace]]:
        """The outputs of a run, and when each task of each kernel ran in it."""
        return self._watched(arrays, TaskStopwatch)

    def _watched(
        self, arrays: Sequence[np.ndarray], watch: Callable[..., Callable[[], list[T]]]
    ) -> tuple[list[np.ndarray], list[T]]:
        table = self.table
        if not table.steps:
            return self.run(arrays), []
        results, instance = self._results.make(), table.take()
        try:
            table.bind(instance, arrays, results)
            found = watch(self.executor, self.cache, instance.rows, table.is_brief)()
            self._check(table, instance)
        finally:
            table.free.append(instance)
        return self._results.complete(results, arrays), found

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the plan holds: an arena per thread that ran it at the same time,
        tables, and spare memory of results."""
        return self.table.nbytes + self._results.nbytes


def _tasks_point(kernel: Kernel, threads: int, wanted: int, iterations: int) -> Point:
    """How many tasks there are."""
    more = {n * threads for n in (1, 2, 4, 8) if n * threads <= iterations}
    options = (*sorted(more | {1, wanted}),)
    operations = work(kernel) / NANOSECONDS_PER_PRODUCT
    return Point("tasks", lambda: structure(kernel), options, wanted, operations)


def _story(n: Lowered, text: str, cache: KernelCache, choices: Choices) -> Story:
    """How a kernel was scheduled, and where its code came from."""
    pick = Choices(choices.known).pick
    return story(
        lambda journal: choose_schedule(n, tile_limits(), pick, journal),
        cache.origins.get(text, ""),
        cache.key_fields(text),
        cache.store,
    )


def _levels(m: Made) -> dict[str, Any]:
    """Fields of a kernel's description that change with it."""
    return {
        "loops": show(m.kernel),
        "schedule": tuple(map(str, m.kernel.schedule)),
        "source": m.text,
        "kernel": m.kernel,
        "origin": m.origin,
    }


def _generate(lowered: Sequence[Lowered], pick: Pick) -> list[Made]:
    """Scheduled kernels and their sources; kernels of one structure are generated once."""
    limits = tile_limits()
    made: dict[Hashable, Made] = {}
    keys = [schedule_key(n) for n in lowered]
    for key, n in zip(keys, lowered, strict=True):
        if key not in made:
            kernel = verify(choose_schedule(n, limits, pick))
            made[key] = as_generated(n.kernel, kernel, emit(kernel))
    return [made[key] for key in keys]


def build_plan(
    inputs: Sequence[Placeholder],
    outputs: Sequence[Tensor],
    options: Options,
    cache: KernelCache,
    weights: PackedWeights | None = None,
    choices: Choices | None = None,
    revisions: Revisions | None = None,
) -> Plan:
    """The plan that computes `outputs` from `inputs`; packed weights are shared through
    `weights`, `choices` decide between ways, and `revisions` are what users have changed."""
    weights, choices = weights or PackedWeights(), choices or Choices()
    revisions = revisions or Revisions(options, cache)
    return Plan(inputs, outputs, options, cache, weights, choices, revisions)


def work(kernel: Kernel) -> float:
    """Rough nanoseconds that a kernel takes on one thread."""
    return _work(kernel.body, {})


def _work(s: Stmt, ranges: dict[str, Range]) -> float:
    match s:
        case For(axis=axis, extent=extent, body=body):
            count = interval(extent, ranges)[1]
            count = count if math.isfinite(count) else 16.0
            return count * _work(body, {**ranges, axis: (0.0, max(count - 1, 0.0))})
        case Tile(acc=acc, rows=rows, meaning=meaning):
            products = _work(meaning, ranges) / NANOSECONDS_PER_NODE
            height = acc.shape[0] if rows else 1
            loaded = acc.dtype.itemsize * NANOSECONDS_PER_BYTE / height
            return products * max(NANOSECONDS_PER_PRODUCT, loaded)
        case Store(value=value) | Accumulate(value=value):
            return NANOSECONDS_PER_NODE * _operations(value)
    return sum(_work(c, ranges) for c in children(s) if isinstance(c, Stmt))


def _operations(e: Expr) -> int:
    """Loads and arithmetic of an expression, indices aside."""
    if isinstance(e, Load):
        return 1
    return 1 + sum(_operations(c) for c in children(e) if isinstance(c, Expr))


def _has_work(outputs: Sequence[Tensor]) -> bool:
    return any(t.size for t in outputs)
