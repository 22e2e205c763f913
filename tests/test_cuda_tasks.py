"""Hand-written nests whose tasks are blocks of threads: recurrences, and loops that must not be
shared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_harness import ARCHITECTURES, compiled, execute, needs_compiler, needs_sass
from interpreted import Array, Model, run_lowered
from tilewright.codegen.cuda import emit_cuda
from tilewright.dtypes import DType
from tilewright.errors import ScheduleError, VerifyError
from tilewright.fusion.groups import form_groups
from tilewright.fusion.inline import inline
from tilewright.fusion.lower import Lowered, lower
from tilewright.loops.interpret import interpret, poisoned
from tilewright.loops.ir import (
    Accumulate,
    Apply,
    Block,
    Buffer,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Load,
    LoopKind,
    Stmt,
    Store,
    Var,
    index_const,
    walk,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify import verify
from tilewright.ops.recurrent import gru, lstm, rnn
from tilewright.ops.tensor import Tensor
from tilewright.runtime.cuda.kernel import KernelSource
from tilewright.schedule.cuda import choose_cuda_schedule
from tilewright.schedule.directives import schedule
from tilewright.schedule.task_blocks import TaskBlocks, widest_nest

KINDS: dict[str, tuple[int, Any]] = {"LSTM": (4, lstm), "GRU": (3, gru), "RNN": (1, rnn)}


def network(
    kind: str, steps: int, batch: int, hidden: int, direction: str, lengths: bool, **more: Any
) -> tuple[Model, list[Tensor]]:
    gates, function = KINDS[kind]
    directions = 2 if direction == "bidirectional" else 1
    rng, model = np.random.default_rng([steps, batch, hidden]), Model()

    def normal(*shape: int) -> Tensor:
        return model.given(rng.standard_normal(shape).astype(np.float32) * np.float32(0.5))

    width = gates * hidden
    x, w = normal(steps, batch, 3), normal(directions, width, 3)
    r, b = normal(directions, width, hidden), normal(directions, 2 * width)
    counts = rng.integers(0, steps + 1, batch).astype(np.int32)
    given_ = model.given(counts) if lengths else None
    return model, list(function(x, w, r, b, given_, direction=direction, **more))


def lowered(model: Model, results: list[Tensor]) -> list[Lowered]:
    program = inline(model.inputs, results)
    return [lower(g, program) for g in form_groups(program)]


def plain(model: Model, parts: list[Lowered]) -> dict[str, Array]:
    arrays = dict(model.arrays)
    for n in parts:
        run_lowered(n, n.kernel, arrays)
    return arrays


def same(got: dict[str, Array], want: dict[str, Array], results: list[Tensor]) -> None:
    for t in results:
        np.testing.assert_allclose(got[t.name], want[t.name], rtol=1e-5, atol=1e-5)


networks = st.tuples(
    st.sampled_from(sorted(KINDS)),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 9),
    st.sampled_from(["forward", "reverse", "bidirectional"]),
    st.booleans(),
)


@settings(max_examples=10, deadline=None)
@given(networks, st.booleans(), st.sampled_from([32, 64]))
def test_recurrences(what: tuple[Any, ...], after: bool, threads: int) -> None:
    more: dict[str, Any] = {"linear_before_reset": 1} if after and what[0] == "GRU" else {}
    model, results = network(*what, **more)
    parts, arrays = lowered(model, results), dict(model.arrays)
    for n in parts:
        is_nest = n.group.nest is not None and widest_nest(n.kernel) > 1
        kernel = schedule(n.kernel, [TaskBlocks(threads)]) if is_nest else n.kernel
        run_lowered(n, verify(kernel), arrays)
    same(arrays, plain(model, parts), results)


@needs_compiler
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_machine_code(kind: str) -> None:
    model, results = network(kind, 4, 3, 20, "bidirectional", True)
    parts, arrays = lowered(model, results), dict(model.arrays)
    for n in parts:
        kernel = choose_cuda_schedule(n)
        if n.group.nest is not None:
            assert isinstance(kernel.schedule[0], TaskBlocks)
        e = emit_cuda(kernel)
        for t in n.tensors:
            arrays.setdefault(t.name, poisoned(t.shape, t.dtype))
        source = KernelSource(e.text, e.pointers, len(e.numbers), e.threads, "sm_80", False)
        held = [arrays[t.name] for t in n.tensors]
        found = execute(source, held, e.numbers, e.blocks, e.shared_bytes)
        arrays.update({t.name: a for t, a in zip(n.tensors, found, strict=True)})
    same(arrays, plain(model, parts), results)


@needs_sass
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_registers(kind: str, architecture: str) -> None:
    model, results = network(kind, 128, 1, 256, "bidirectional", False)
    (n,) = (n for n in lowered(model, results) if n.group.nest is not None)
    e = emit_cuda(choose_cuda_schedule(n))
    source = KernelSource(e.text, e.pointers, len(e.numbers), e.threads, architecture, False)
    usage = compiled(source).usage
    assert e.threads >= 512 and usage.registers * e.threads <= 1 << 16
    assert usage.spill_bytes == 0 and usage.local_bytes == 0


# -- nests of one line

SIZE = 40
X = Buffer("x", DType.F32, (SIZE,))
INDEX = Buffer("i", DType.I64, (SIZE,), values=(0, SIZE - 1))
Y = Buffer("y", DType.F32, (2 * SIZE + 1,))


def line(body: Stmt) -> Kernel:
    zero = For("z", index_const(2 * SIZE + 1), Store(Y, (Var("z"),), Const(0.0, DType.F32)))
    loop = For("j", index_const(SIZE), body)
    return Kernel("line", (X, INDEX, Y), Block((zero, loop)), frozenset({"y"}))


def ran(kernel: Kernel) -> Array:
    rng = np.random.default_rng(1)
    arrays: dict[str, Array] = {
        "x": rng.standard_normal(SIZE).astype(np.float32),
        "i": rng.integers(0, SIZE, SIZE),
        "y": poisoned(Y.shape, Y.dtype),
    }
    interpret(kernel, arrays)
    return arrays["y"]


j = Var("j")
x: Expr = Load(X, (j,))
LINES: dict[str, tuple[Stmt, int]] = {  # and how many threads may share them
    "own": (Store(Y, (j,), x), SIZE),
    "stride": (Store(Y, (j * 2,), x), SIZE),
    "own sum": (Accumulate(Y, (j + 3,), ScalarOp.ADD, x), SIZE),
    "one": (Accumulate(Y, (index_const(1),), ScalarOp.ADD, x), 1),
    "scan": (Store(Y, (j + 1,), Load(Y, (j,)) + x), 1),
    "data": (Store(Y, (Load(INDEX, (j,)),), x), 2 * SIZE + 1),  # each thread has its elements
    "data sum": (
        For("k", index_const(3), Accumulate(Y, (Load(INDEX, (j,)) * 2,), ScalarOp.ADD, x)),
        2 * SIZE + 1,
    ),
    "data read": (Store(Y, (Load(INDEX, (j,)),), Load(Y, (j,)) + x), 1),
    "halves": (Store(Y, (j // 2,), x), 1),
    "chosen": (If(x > 0, Store(Y, (j,), x)), SIZE),
    "inner": (For("k", index_const(2), Store(Y, (j * 2 + Var("k"),), x)), 2 * SIZE),
    # the inner loop is shared, one turn of the outer one after the other
    "overlap": (For("k", index_const(3), Accumulate(Y, (j + Var("k"),), ScalarOp.ADD, x)), 3),
    "reach": (For("k", index_const(3), Store(Y, (j * 2 + Var("k"),), x)), 3),
    "other order": (
        For("k", index_const(2), Accumulate(Y, (j,), ScalarOp.ADD, Load(X, (Var("k"),)))),
        SIZE,
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_only_independent_iterations_are_shared(name: str) -> None:
    body, shared = LINES[name]
    kernel = line(body)
    assert isinstance(kernel.body, Block)
    assert widest_nest(Kernel("line", kernel.params, kernel.body.stmts[1])) == shared
    made = schedule(kernel, [TaskBlocks(32)])
    np.testing.assert_array_equal(ran(made), ran(kernel))
    alone = [n for n in walk(made.body) if isinstance(n, If) and _is_first(n.condition)]
    assert bool(alone) == (shared == 1)


def _is_first(e: Expr) -> bool:
    return isinstance(e, Apply) and e.op is ScalarOp.EQ and isinstance(e.args[1], Const)


def test_what_follows_waits() -> None:
    kernel = schedule(line(Store(Y, (j,), Load(Y, (j + SIZE,)) + x)), [TaskBlocks(32)])
    assert isinstance(kernel.body, Block)
    first, _, *rest = kernel.body.stmts
    broken = Kernel("line", kernel.params, Block((first, *rest)), kernel.outputs)
    with pytest.raises(VerifyError, match="without a barrier"):
        verify(broken)


def test_nothing_to_share() -> None:
    whole = For("j", index_const(SIZE), LINES["one"][0])
    start = Store(Y, (index_const(1),), Const(0.0, DType.F32))
    kernel = Kernel("one", (X, Y), Block((start, whole)), frozenset({"y"}))
    with pytest.raises(ScheduleError, match="nothing in a task"):
        schedule(kernel, [TaskBlocks(32)])
    assert all(n.kind is LoopKind.SERIAL for n in walk(kernel.body) if isinstance(n, For))
