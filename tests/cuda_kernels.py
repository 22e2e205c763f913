"""Kernels of a plan on a GPU without a plan: lowered, scheduled, compiled and run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuda_harness import program
from ptx import Memory, Statistics, launch
from tilewright.codegen.cuda import Launch, emit_cuda
from tilewright.dtypes import DType
from tilewright.fusion.byte_lines import sums_of_bytes
from tilewright.fusion.grid_sums import split_for_grid
from tilewright.fusion.groups import form_groups
from tilewright.fusion.hoist import hoist
from tilewright.fusion.inline import inline
from tilewright.fusion.laid_constants import lay_constants
from tilewright.fusion.legalize import legalize
from tilewright.fusion.lower import Lowered, lower
from tilewright.fusion.results import copy_results
from tilewright.fusion.settle import settle
from tilewright.fusion.weights import PackedWeights
from tilewright.loops.interpret import interpret, poisoned
from tilewright.loops.ir import Kernel, strides_of
from tilewright.loops.verify import verify
from tilewright.ops.tensor import Constant, Placeholder, Tensor, footprint
from tilewright.runtime.cuda.kernel import CompiledKernel, KernelSource
from tilewright.schedule.cuda import choose_cuda_schedule
from tilewright.schedule.directives import Directive, schedule

Array = np.ndarray[Any, Any]


def lowered(
    inputs: Sequence[Placeholder], outputs: Sequence[Tensor]
) -> tuple[list[Lowered], dict[str, Constant]]:
    """The kernels of some outputs as a plan on a GPU has them, and what is known by then."""
    weights = PackedWeights()
    legal = sums_of_bytes(legalize(outputs), weights)
    kept = [t for t in legal if not isinstance(t, (Placeholder, Constant))]
    whole = hoist(split_for_grid(copy_results(inline(inputs, kept))), of_constants=True)
    whole = lay_constants(whole)
    settled = settle(whole, weights)
    return [lower(g, whole) for g in form_groups(whole, side_by_side=True)], settled


def value_of(t: Tensor, arrays: dict[str, Array]) -> Array:
    return t.value if isinstance(t, Constant) else arrays[t.name]


def interpreted(n: Lowered, kernel: Kernel, arrays: dict[str, Array]) -> dict[str, Array]:
    """What the loops of a kernel write, by the names of its tensors."""
    env, made = {}, {}
    for b, t in zip(kernel.params, n.tensors, strict=True):
        if b.name in kernel.outputs:
            made[t.name] = env[b.name] = poisoned(t.shape, t.dtype)
        else:
            env[b.name] = value_of(t, arrays)
    interpret(kernel, env)
    return made


@dataclass(frozen=True)
class Run:
    """A kernel that the emulator ran: what it wrote, what was executed, which of the tensors lies
    where in memory."""

    kernel: Kernel
    launch: Launch
    compiled: CompiledKernel
    written: dict[str, Array]
    statistics: Statistics
    places: dict[str, int]

    def share(self, buffer: str) -> float:
        """Of the sectors that are asked for in a buffer, those that are needed."""
        assert self.statistics.traffic is not None
        return self.statistics.traffic.of_global[self.places[buffer]].share


def compiled(e: Launch, architecture: str = "sm_90a") -> CompiledKernel:
    from tilewright.runtime.cuda.compiling import compile_kernel

    checks = bool(e.checks)
    source = KernelSource(e.text, e.pointers, len(e.numbers), e.threads, architecture, checks)
    return compile_kernel(source, "kernel")


def emulated(n: Lowered, arrays: dict[str, Array], directives: Sequence[Directive] = ()) -> Run:
    """The kernel, scheduled by these directives or by those chosen, as machine instructions."""
    kernel = schedule(n.kernel, directives) if directives else verify(choose_cuda_schedule(n))
    e = emit_cuda(kernel)
    made = compiled(e)
    memory, places = Memory(), {}
    for b, t in zip(kernel.params, n.tensors, strict=True):
        if b.name in kernel.outputs:
            places[b.name] = memory.empty(footprint(t) * t.dtype.itemsize)
        else:
            places[b.name] = memory.put(in_memory(t, value_of(t, arrays)))
    parameters = [*(places[b.name] for b in kernel.params), *e.numbers]
    if e.checks:
        parameters.append(memory.put(np.zeros(1, np.int64)))
    grid = (e.blocks, e.threads, parameters, e.shared_bytes)
    statistics = launch(program(made.ptx), memory, *grid, traffic=True)
    written = {
        t.name: laid_out(t, memory.get(places[b.name], footprint(t), _numpy(t.dtype)))
        for b, t in zip(kernel.params, n.tensors, strict=True)
        if b.name in kernel.outputs
    }
    return Run(kernel, e, made, written, statistics, places)


def in_memory(t: Tensor, value: Array) -> Array:
    """The elements from the tensor's first to its last, as kernels address them."""
    flat = np.zeros(footprint(t), _numpy(t.dtype))
    laid_out(t, flat)[...] = value
    return flat


def laid_out(t: Tensor, flat: Array) -> Array:
    """The tensor whose memory this is."""
    steps = tuple(s * flat.itemsize for s in strides_of(t))
    return np.lib.stride_tricks.as_strided(flat, t.shape, steps)


def _numpy(dtype: DType) -> Any:
    return np.uint8 if dtype is DType.BOOL else dtype.numpy
