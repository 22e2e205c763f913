"""Schedules for blocks of threads: the same meaning by the interpreter, and kernels that break a
rule are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from interpreted import Array, Model
from tilewright.codegen.cuda import emit_cuda
from tilewright.errors import ScheduleError, VerifyError
from tilewright.fusion.groups import form_groups
from tilewright.fusion.inline import inline
from tilewright.fusion.lower import Lowered, lower
from tilewright.loops.interpret import interpret, poisoned
from tilewright.loops.ir import (
    Barrier,
    Block,
    For,
    Kernel,
    Load,
    LoopKind,
    Node,
    Stmt,
    index_const,
    rewrite,
    walk,
)
from tilewright.loops.verify import verify
from tilewright.loops.verify_threads import WARP
from tilewright.ops.contraction import gemm, matmul
from tilewright.ops.convolution import conv
from tilewright.ops.normalization import instance_normalization, layer_normalization
from tilewright.ops.softmax import softmax
from tilewright.ops.tensor import Tensor, compute
from tilewright.schedule.block_tiles import BlockTile, find_product
from tilewright.schedule.cooperate import THREAD, Cooperate
from tilewright.schedule.cuda import choose_cuda_schedule
from tilewright.schedule.directives import Directive, schedule

sizes = st.integers(1, 6)
SOME = settings(max_examples=20, deadline=None)
TILES = (BlockTile(16, 32, 4, 4, 4), BlockTile(8, 64, 8, 4, 4), BlockTile(32, 32, 4, 8, 4))


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def kernels_of(model: Model, y: Tensor) -> list[Lowered]:
    program = inline(model.inputs, [y])
    return [lower(g, program) for g in form_groups(program)]


def ran(kernel: Kernel) -> list[Array]:
    """The results of a kernel on fixed numbers."""
    arrays: dict[str, Array] = {}
    for k, b in enumerate(kernel.params):
        empty = b.name in kernel.outputs
        arrays[b.name] = poisoned(b.shape, b.dtype) if empty else numbers(*b.shape, seed=k)
    interpret(kernel, arrays)
    return [arrays[b.name] for b in kernel.params if b.name in kernel.outputs]


def check(plain: Kernel, directives: Sequence[Directive]) -> bool:
    """Whether the directives are accepted; then the results are the same but for the order."""
    try:
        changed = schedule(plain, directives)
    except ScheduleError as error:
        event(f"refused: {str(error).partition(': ')[2][-40:]}")
        return False
    for got, want in zip(ran(changed), ran(plain), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert "def kernel(" in emit_cuda(changed).text
    return True


def reduction(kind: str, rows: tuple[int, int], length: int) -> tuple[Model, Tensor]:
    model = Model()
    x = model.given(numbers(*rows, length))
    match kind:
        case "softmax":
            return model, softmax(x, axis=-1)
        case "norm":
            scale, shift = (model.given(numbers(length)) for _ in range(2))
            whole = layer_normalization(x, scale, shift, axis=-1)
            return model, whole[0] if isinstance(whole, tuple) else whole
        case "planes":
            flat = [model.given(numbers(rows[1])) for _ in range(2)]
            image = model.given(numbers(*rows, length, 3))
            return model, instance_normalization(image, *flat)
    raise AssertionError(kind)


@SOME
@given(
    st.sampled_from(["softmax", "norm", "planes"]),
    st.tuples(sizes, sizes),
    st.integers(2, 70),
    st.sampled_from([(32, 32), (64, 64), (64, 16), (64, 8), (96, 32)]),
    st.sampled_from([1, 2, 4]),
)
def test_rows_shared_by_threads(
    kind: str, rows: tuple[int, int], length: int, team: tuple[int, int], lanes: int
) -> None:
    model, y = reduction(kind, rows, length)
    done = [check(n.kernel, (Cooperate(*team, lanes),)) for n in kernels_of(model, y)]
    event(f"shared: {any(done)}")


@pytest.mark.parametrize("kind", ["softmax", "norm", "planes"])
def test_rows_of_whole_vectors_are_shared(kind: str) -> None:
    model, y = reduction(kind, (3, 5), 64)
    assert all(check(n.kernel, (Cooperate(64, 64, 4),)) for n in kernels_of(model, y))


@SOME
@given(
    st.sampled_from(["matmul", "batched", "transposed", "conv"]),
    st.integers(1, 20),
    st.integers(4, 40),
    st.integers(2, 12),
    st.sampled_from(TILES),
)
def test_tiles_of_products(kind: str, m: int, n: int, k: int, tile: BlockTile) -> None:
    model = Model()

    def given_(*shape: int) -> Tensor:
        return model.given(numbers(*shape))

    match kind:
        case "matmul":
            y = matmul(given_(2, m, k), given_(k, n))
        case "batched":
            y = matmul(given_(2, m, k), given_(2, k, n))
        case "transposed":
            y = gemm(given_(m, k), given_(n, k), given_(n), transB=1)
        case _:
            y = conv(given_(1, 4, m, k), given_(n, 4, 3, 3), pads=[1, 1, 1, 1], strides=[2, 1])
    biased = compute(y.shape, lambda *i: y[i] * 2 + 1)
    for lowered in kernels_of(model, biased):
        if find_product(lowered.kernel) is not None:
            assert check(lowered.kernel, (tile,))


@pytest.mark.parametrize("shape", [(64,), (6, 7), (5, 8, 12)])
def test_chosen_schedules_keep_the_meaning(shape: tuple[int, ...]) -> None:
    model = Model()
    x, y = (model.given(numbers(*shape, seed=k)) for k in range(2))
    for n in kernels_of(model, compute(shape, lambda *i: x[i] * y[i] + x[i])):
        for got, want in zip(ran(choose_cuda_schedule(n)), ran(n.kernel), strict=True):
            np.testing.assert_array_equal(got, want)


# -- planted faults


def shared_row() -> Kernel:
    """A kernel whose threads read what others wrote to shared memory."""
    model = Model()
    x, w = model.given(numbers(12, 8)), model.given(numbers(8, 36))
    (lowered,) = kernels_of(model, matmul(x, w))
    return schedule(lowered.kernel, (BlockTile(16, 64, 4, 4, 4),))


def changed(kernel: Kernel, rule: Any) -> Kernel:
    body = rewrite(kernel.body, rule)
    assert body is not kernel.body, "nothing was changed"
    return replace(kernel, body=body)  # type: ignore[arg-type]


def without_barriers(n: Node) -> Stmt | None:
    if isinstance(n, Block) and any(isinstance(s, Barrier) for s in n.stmts):
        return Block(tuple(s for s in n.stmts if not isinstance(s, Barrier)))
    return None


def fewer_threads(n: Node) -> Stmt | None:
    if not isinstance(n, For) or n.kind is not LoopKind.THREAD:
        return None
    multiplies = any(isinstance(m, For) and m.axis == "k" for m in walk(n))
    return None if multiplies else replace(n, extent=index_const(WARP))


def anothers_registers(n: Node) -> Node | None:
    if isinstance(n, Load) and n.buffer.space.value == "thread":
        return replace(n, index=(index_const(0), *n.index[1:]))
    return None


def barrier_inside(n: Node) -> Node | None:
    if isinstance(n, For) and n.kind is LoopKind.THREAD and n.axis == THREAD:
        return replace(n, body=Block((Barrier(), n.body)))
    return None


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (without_barriers, "without a barrier"),
        (fewer_threads, "is not over all"),
        (anothers_registers, "of another thread is used"),
        (barrier_inside, "a place where all must meet"),
    ],
)
def test_kernels_that_break_a_rule_are_refused(fault: Any, message: str) -> None:
    kernel = shared_row()
    verify(kernel)
    with pytest.raises(VerifyError, match=message):
        verify(changed(kernel, fault))
