"""Directives refuse what would change a kernel's meaning, and say why."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest

from tilewright.codegen.emit import emit
from tilewright.dtypes import DType
from tilewright.errors import ScheduleError
from tilewright.loops.interpret import interpret
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Buffer,
    Cast,
    Const,
    Expr,
    For,
    Kernel,
    Load,
    LoopKind,
    Space,
    Stmt,
    Store,
    Var,
    index_const,
)
from tilewright.loops.ir import Block as Sequence
from tilewright.loops.scalars import ScalarOp
from tilewright.runtime.cache import default_cache
from tilewright.schedule.directives import (
    Bind,
    Block,
    Directive,
    Merge,
    Swap,
    Tensorize,
    Together,
    schedule,
)

ROWS, COLUMNS = 6, 4
X = Buffer("x", DType.F32, (ROWS, COLUMNS))
TURNED = Buffer("t", DType.F32, (COLUMNS, ROWS))
Z = Buffer("z", DType.F32, (ROWS,))
Y = Buffer("y", DType.F32, (ROWS, COLUMNS))
WIDE = Buffer("w", DType.F32, (ROWS * COLUMNS,))
RIGHT = Buffer("b", DType.F32, (COLUMNS, COLUMNS))
ROW, COLUMN = Var("i"), Var("j")


def kernel(body: Stmt) -> Kernel:
    params = (X, TURNED, Z, Y, WIDE, RIGHT)
    return Kernel("k", params, body, frozenset((Z.name, Y.name, WIDE.name)))


def loop(axis: str, extent: int | Expr, body: Stmt, kind: LoopKind = LoopKind.SERIAL) -> For:
    return For(axis, index_const(extent) if isinstance(extent, int) else extent, body, kind)


def nest(body: Stmt) -> Kernel:
    return kernel(loop("i", ROWS, loop("j", COLUMNS, body)))


ELEMENT = Load(X, (ROW, COLUMN))
COPY = nest(Store(Y, (ROW, COLUMN), ELEMENT))
TRANSPOSE = nest(Store(Y, (ROW, COLUMN), Load(TURNED, (COLUMN, ROW))))
SUM = nest(Accumulate(Z, (ROW,), ScalarOp.ADD, ELEMENT))
TRIANGLE = kernel(loop("i", COLUMNS, loop("j", ROW, Store(Y, (ROW, COLUMN), ELEMENT))))

SUMS = Buffer("sums", DType.F32, (), space=Space.LOCAL)
STEP = Load(X, (ROW, Var("k"))) * Load(RIGHT, (Var("k"), COLUMN))
PRODUCT = nest(
    Alloc(
        SUMS,
        Sequence(
            (
                Store(SUMS, (), Const(0.0, DType.F32)),
                loop("k", COLUMNS, Accumulate(SUMS, (), ScalarOp.ADD, STEP)),
                Store(Y, (ROW, COLUMN), Load(SUMS, ())),
            )
        ),
    )
)

LINE = Buffer("line", DType.F32, (1 << 13,), space=Space.LOCAL)
LINES = kernel(
    loop(
        "i",
        128,
        Alloc(LINE, loop("j", 1 << 13, Store(LINE, (COLUMN,), Load(Z, (index_const(0),))))),
        LoopKind.PARALLEL,
    )
)

REFUSED: dict[str, tuple[Kernel, Directive, str]] = {
    "blocks of a sum": (SUM, Block("j", 3), "parallel axis j writes z without indexing by it"),
    "blocks of a sum that overlap": (
        SUM,
        Block("j", 3, overlap=True),
        "parallel axis j writes z without indexing by it",
    ),
    "overlapping blocks of sums in memory": (
        SUM,
        Block("i", 4, overlap=True),
        "elements would be accumulated twice",
    ),
    "scratch of many rows": (LINES, Block("i", 128), "4,194,304 bytes of scratch"),
    "tasks by a quotient": (
        nest(Store(Y, (ROW // 2, COLUMN), ELEMENT)),
        Bind("i"),
        "parallel axis i writes elements of y twice",
    ),
    "tasks that reach into each other": (
        nest(Store(WIDE, (ROW + COLUMN,), ELEMENT)),
        Bind("i"),
        "parallel axis i writes elements of w twice",
    ),
    "blocks of one": (COPY, Block("i", 1), "the extent is 6"),
    "whole blocks of more than there is": (COPY, Block("i", 7, overlap=True), "the extent is 6"),
    "blocks of a loop around one of its length": (TRIANGLE, Block("i", 2), "depends on i"),
    "exchange of a sum": (SUM, Swap("i", "j"), "parallel axis j writes z without indexing by it"),
    "exchange of loops in the wrong order": (COPY, Swap("j", "i"), "not directly nested"),
    "exchange with an extent that depends": (TRIANGLE, Swap("i", "j"), "not directly nested"),
    "merge across a gap": (TRANSPOSE, Merge("i", "j"), "t is not contiguous across the two"),
    "merge in the wrong order": (COPY, Merge("j", "i"), "not directly nested"),
    "merge with an extent that depends": (TRIANGLE, Merge("i", "j"), "extent of j is not fixed"),
    "tasks of a sum": (SUM, Bind("j"), "parallel axis j writes z without indexing by it"),
    "tasks inside": (COPY, Bind("j"), "nothing but parallel loops around it"),
    "together without a parallel loop": (COPY, Together("j", 2), "no parallel loop"),
    "no such loop": (COPY, Bind("k"), "k has no loop over k"),
    "tiles that read a column too many": (
        schedule(PRODUCT, (Block("j", 3),)),
        Tensorize("j_i"),
        "the last block of columns is not whole",
    ),
    "tiles of a copy": (COPY, Tensorize("j", "i"), "0 blocked reductions"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_the_meaning_is_refused(name: str) -> None:
    before, directive, why = REFUSED[name]
    with pytest.raises(ScheduleError, match=re.escape(why)):
        schedule(before, (directive,))


ACCEPTED: dict[str, tuple[Kernel, tuple[Directive, ...]]] = {
    "blocks": (COPY, (Block("i", 4),)),
    "blocks of a block": (COPY, (Block("i", 4, overlap=True), Block("j", 3))),
    "sums": (SUM, (Block("i", 4), Bind("i"))),
    "merge": (COPY, (Merge("i", "j"), Bind("i"))),
    "tiles": (PRODUCT, (Block("j", 3, overlap=True), Tensorize("j_i"))),
    "exchange": (TRANSPOSE, (Swap("i", "j"), Bind("j"), Bind("i"))),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_directives_are_kept_with_the_kernel(name: str) -> None:
    before, directives = ACCEPTED[name]
    after = schedule(before, directives)
    assert after.schedule == directives and before.schedule == ()


def test_tasks_may_write_side_by_side() -> None:
    """One index in steps as wide as the inner loop, and a quotient beside its remainder."""
    flat = nest(Store(WIDE, (ROW * COLUMNS + COLUMN,), ELEMENT))
    split = nest(Store(Y, ((ROW * COLUMNS + COLUMN) // 4, (ROW * COLUMNS + COLUMN) % 4), ELEMENT))
    for k in (flat, split):
        assert schedule(k, (Bind("i"),)).schedule


@pytest.mark.parametrize(("rows", "columns", "count"), [(7, 3, 2), (8, 5, 4), (9, 2, 8), (5, 4, 3)])
def test_iterations_together_are_the_same_iterations(rows: int, columns: int, count: int) -> None:
    z = Buffer("p0", DType.F32, (2, columns, rows))
    index = (Var("o"), Var("c"), Var("r"))
    body: Stmt = Store(z, index, Cast(DType.F32, (Var("o") * 100 + Var("c") * 10) + Var("r")))
    for axis, extent in (("r", rows), ("c", columns), ("o", 2)):
        body = For(axis, index_const(extent), body, LoopKind.PARALLEL)
    kernel = schedule(Kernel("k", (z,), body, frozenset({"p0"})), (Together("r", count),))
    emitted = emit(kernel)
    address = default_cache().load([emitted.text])[0]
    want = np.full(z.shape, np.nan, np.float32)
    interpret(kernel, {"p0": want})
    for chunk in (1, 3, 2 * columns * rows):
        got = np.full((2, columns, rows), np.nan, np.float32)
        numbers = [0, got.ctypes.data, *emitted.numbers, chunk]
        table = np.array(numbers, np.int64)
        call = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(address)
        for task in range(-(-2 * columns * rows // chunk)):
            call(task, table.ctypes.data)
        np.testing.assert_array_equal(got, want)
