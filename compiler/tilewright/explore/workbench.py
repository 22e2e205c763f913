"""A place to schedule one kernel by hand: directives in; loops, source, machine code, time out."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from tilewright.codegen.emit import Emitted, emit
from tilewright.errors import InputError
from tilewright.fusion.groups import form_groups
from tilewright.fusion.inline import inline
from tilewright.fusion.legalize import legalize
from tilewright.fusion.lower import Lowered, lower
from tilewright.fusion.pack import pack_operands
from tilewright.fusion.results import copy_results
from tilewright.fusion.settle import settle
from tilewright.fusion.weights import PackedWeights, aligned
from tilewright.loops.interpret import poisoned
from tilewright.loops.ir import Kernel
from tilewright.loops.show import show
from tilewright.ops.evaluate import evaluate
from tilewright.ops.tensor import Constant, Placeholder, Tensor
from tilewright.options import Options
from tilewright.runtime.cache import KernelCache
from tilewright.runtime.ceilings import Ceilings, ceilings_for
from tilewright.runtime.objects import kernel_assembly, kernel_ir
from tilewright.runtime.plan import tile_limits
from tilewright.schedule.cost import Cost, cost
from tilewright.schedule.directives import Directive, schedule
from tilewright.schedule.heuristics import choose_schedule

WARM_UP, FEWEST, MOST = 2, 5, 200
SECONDS = 0.3


@dataclass(frozen=True)
class Trial:
    """A kernel under one schedule, measured on one core: the median `seconds` of a run, the
    `error` against the expression on whole arrays (as a share of its largest magnitude)."""

    directives: tuple[Directive, ...]
    kernel: Kernel = field(repr=False)
    source: str = field(repr=False)
    seconds: float
    error: float
    cost: Cost
    limits: Ceilings = field(repr=False)

    @property
    def loops(self) -> str:
        """The loop nest."""
        return show(self.kernel)

    @property
    def llvm(self) -> str:
        """LLVM's IR after its optimisations."""
        return kernel_ir(self.source)

    @property
    def assembly(self) -> str:
        """The machine code, as an assembler takes it."""
        return kernel_assembly(self.source)

    @property
    def gflops(self) -> float:
        """Operations in a second, in billions."""
        return self.cost.flops / self.seconds / 1e9

    @property
    def share(self) -> float:
        """Of the multiply-adds that one core can do."""
        return self.cost.flops / self.seconds / self.limits.flops_core

    def __str__(self) -> str:
        return (
            f"{self.seconds * 1e3:9.3f} ms  {self.gflops:7.1f} GFLOP/s  {self.share:6.1%} of peak"
            f"  error {self.error:.0e}"
        )


class Workbench:
    """One tensor expression that is one kernel, and what schedules make of it.

    Placeholders get random elements, or those of `arrays` by name. With `pack`, constant factors
    of products lie in panels, as models have them.
    """

    def __init__(
        self,
        output: Tensor,
        inputs: Sequence[Placeholder],
        *,
        pack: bool = False,
        arrays: dict[str, np.ndarray] | None = None,
        options: Options | None = None,
    ) -> None:
        self.options = replace(options or Options.from_environment(), threads=1)
        self._cache = KernelCache(self.options)
        self._output, self._inputs, self._packed = output, list(inputs), pack
        weights = PackedWeights()
        program = copy_results(inline(inputs, legalize([output])))
        if pack:
            program = pack_operands(program, tile_limits().lanes, weights)
        self._settled = settle(program, weights)
        found = [lower(g, program) for g in form_groups(program)]
        if len(found) != 1:
            parts = ", ".join(n.group.label for n in found)
            raise InputError(f"the expression is {len(found)} kernels ({parts}), not one")
        self.lowered: Lowered = found[0]
        rng = np.random.default_rng(0)
        self._arrays = {x.name: (arrays or {}).get(x.name, _random(rng, x)) for x in self._inputs}

    @property
    def kernel(self) -> Kernel:
        """The kernel as lowered: plain loops, in the order of the results."""
        return self.lowered.kernel

    @property
    def loops(self) -> str:
        """Its text."""
        return show(self.kernel)

    @property
    def limits(self) -> Ceilings:
        """What this machine can do, measured once."""
        return ceilings_for(self.options)

    def run(self, *directives: Directive) -> Trial:
        """The kernel under these directives, run and compared. ScheduleError for what is illegal,
        with the reason."""
        return self._trial(schedule(self.kernel, directives), directives)

    def chosen(self) -> Trial:
        """The kernel as the compiler's own heuristics schedule it, with factors in panels."""
        if not self._packed and self.lowered.group.contraction is not None:
            given = {x.name: self._arrays[x.name] for x in self._inputs}
            how = {"pack": True, "arrays": given, "options": self.options}
            return Workbench(self._output, self._inputs, **how).chosen()  # type: ignore[arg-type]
        kernel = choose_schedule(self.lowered, tile_limits())
        return self._trial(kernel, kernel.schedule)  # type: ignore[arg-type]

    def _trial(self, kernel: Kernel, directives: tuple[Directive, ...]) -> Trial:
        emitted = emit(kernel)
        call, result = self._bind(kernel, emitted)
        call()
        error = self._error(result)
        return Trial(
            directives,
            kernel,
            emitted.text,
            _median_seconds(call),
            error,
            cost(kernel),
            self.limits,
        )

    def _bind(self, kernel: Kernel, emitted: Emitted) -> tuple[Callable[[], None], np.ndarray]:
        """A call of the machine code on buffers of its own, and the buffer that it writes."""
        (address,) = self._cache.load([emitted.text])
        errors = np.zeros(1, np.int64)
        held, result = [errors], errors
        for b, t in zip(kernel.params, self.lowered.tensors, strict=True):
            held.append(self._buffer(t))
            if b.name in kernel.outputs:
                result = held[-1]
        words = [a.ctypes.data for a in held] + list(emitted.numbers)
        table = np.array([*words, emitted.iterations or 0], np.int64)  # one task has all of them
        function = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(address)
        place = table.ctypes.data

        def call(_held: Any = (held, table)) -> None:
            function(0, place)

        return call, result

    def _buffer(self, t: Tensor) -> np.ndarray:
        t = self._settled.get(t.name, t)
        if isinstance(t, Constant):
            return t.value if t.strides is not None else aligned(t.value)
        if t.name in self._arrays:
            return aligned(self._arrays[t.name])
        return aligned(poisoned(t.shape, t.dtype))

    @cached_property
    def _wanted(self) -> np.ndarray:
        return np.asarray(evaluate(self._output, dict(self._arrays)))

    def _error(self, got: np.ndarray) -> float:
        scale = float(np.abs(self._wanted).max(initial=0)) or 1.0
        difference = np.abs(got.astype(np.float64) - self._wanted)
        return float(np.nan_to_num(difference, nan=np.inf).max(initial=0)) / scale


def _random(rng: np.random.Generator, x: Placeholder) -> np.ndarray:
    if x.dtype.is_float:
        return rng.standard_normal(x.shape).astype(x.dtype.numpy)
    return rng.integers(0, 2, x.shape).astype(x.dtype.numpy)


def _median_seconds(call: Callable[[], None]) -> float:
    times: list[float] = []
    for _ in range(WARM_UP):
        call()
    end = time.perf_counter() + SECONDS
    while len(times) < FEWEST or (len(times) < MOST and time.perf_counter() < end):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
