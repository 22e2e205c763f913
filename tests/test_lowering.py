"""Fusion, lowering and schedules keep the meaning of a program: kernels by the interpreter against
whole arrays."""

from __future__ import annotations

import numpy as np
from hypothesis import event, given
from hypothesis import strategies as st

from interpreted import SMALL, run_lowered
from strategies import Program, programs
from tilewright.dtypes import DType
from tilewright.errors import ScheduleError
from tilewright.fusion.groups import form_groups
from tilewright.fusion.inline import inline
from tilewright.fusion.legalize import legalize
from tilewright.fusion.lower import Lowered, lower
from tilewright.fusion.pack import pack_operands
from tilewright.fusion.weights import PackedWeights
from tilewright.loops.ir import For, Kernel, walk
from tilewright.loops.verify import verify
from tilewright.ops.common import elementwise
from tilewright.ops.contraction import matmul
from tilewright.ops.evaluate import evaluate
from tilewright.ops.softmax import softmax
from tilewright.ops.tensor import Compute, Tensor, placeholder, sources
from tilewright.schedule.directives import Block, Directive, Merge, Swap, schedule
from tilewright.schedule.heuristics import choose_schedule


def lowered_kernels(program: Program, lanes: dict[int, int]) -> list[Lowered]:
    whole = pack_operands(inline(program.inputs, legalize(program.outputs)), lanes, PackedWeights())
    kernels = [lower(g, whole) for g in form_groups(whole)]
    for n in kernels:
        verify(n.kernel)
    return kernels


def run(kernels: list[tuple[Lowered, Kernel]], program: Program) -> list[np.ndarray]:
    arrays = dict(program.arrays)
    for n, kernel in kernels:
        run_lowered(n, kernel, arrays)
    return [arrays[t.name] for t in program.outputs]


def check(kernels: list[tuple[Lowered, Kernel]], program: Program) -> None:
    for got, t in zip(run(kernels, program), program.outputs, strict=True):
        want = evaluate(t, program.arrays)
        np.testing.assert_allclose(
            got, want, rtol=2e-4, atol=2e-4 * max(1.0, float(np.abs(want).max(initial=0)))
        )


@given(programs(max_steps=4))
def test_lowering_preserves_meaning(program: Program) -> None:
    kernels = lowered_kernels(program, SMALL.lanes)
    event(f"{len(kernels)} kernels")
    check([(n, n.kernel) for n in kernels], program)


@given(programs(max_steps=4))
def test_heuristic_schedules_preserve_meaning(program: Program) -> None:
    kernels = [
        (n, verify(choose_schedule(n, SMALL))) for n in lowered_kernels(program, SMALL.lanes)
    ]
    for _, k in kernels:
        for d in k.schedule:
            event(f"chosen {type(d).__name__}")
    check(kernels, program)


@given(programs(max_steps=3), st.data())
def test_any_accepted_directive_preserves_meaning(program: Program, data: st.DataObject) -> None:
    kernels = []
    for n in lowered_kernels(program, SMALL.lanes):
        kernel = n.kernel
        for _ in range(data.draw(st.integers(0, 3))):
            axes = [s.axis for s in walk(kernel.body) if isinstance(s, For)]
            if not axes:
                break
            one, other = data.draw(st.sampled_from(axes)), data.draw(st.sampled_from(axes))
            directive: Directive = data.draw(
                st.one_of(
                    st.just(Merge(one, other)),
                    st.just(Swap(one, other)),
                    st.builds(Block, st.just(one), st.integers(2, 4), st.booleans()),
                )
            )
            try:
                kernel = schedule(kernel, (directive,))
                event(f"accepted {type(directive).__name__}")
            except ScheduleError:
                event(f"refused {type(directive).__name__}")
        kernels.append((n, kernel))
    check(kernels, program)


def test_a_sum_that_is_in_memory_anyway_is_read_not_computed_again() -> None:
    """Each block of a residual network adds to what the one before left in memory."""
    x = placeholder((40, 64), DType.F32, "x")
    w = placeholder((64, 64), DType.F32, "w")
    total: Tensor = x
    for _ in range(4):
        branch = softmax(matmul(total, w))
        total = elementwise(lambda a, b: a + b, total, branch)
    program = inline([x, w], [total])
    adds = [t for t in program.order if isinstance(t, Compute) and t.reduction is None]
    assert max(len(sources(t)) for t in adds) <= 3
    assert any("in memory anyway" in str(d) for d in program.decisions)
