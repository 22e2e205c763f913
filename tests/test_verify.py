"""The verifier of loop nests: sound kernels pass, and each planted defect is named."""

from __future__ import annotations

import pytest

from tilewright.dtypes import DType
from tilewright.errors import VerifyError
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Apply,
    Block,
    Buffer,
    Cast,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Load,
    LoopKind,
    Select,
    Space,
    Stmt,
    Store,
    Tile,
    Var,
    index_const,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify import shared_writes, verify

N, M = 8, 5
X = Buffer("x", DType.F32, (N, M))
V = Buffer("v", DType.F32, (N,))
HALVES = Buffer("h", DType.F16, (N,))
COUNTS = Buffer("c", DType.I64, (N,))
SMALL_COUNTS = Buffer("s", DType.I32, (N,))
MASK = Buffer("m", DType.BOOL, (N,))
Y = Buffer("y", DType.F32, (N, M))
Z = Buffer("z", DType.F32, (N,))
SCRATCH = Buffer("scratch", DType.F32, (M,), space=Space.LOCAL)
TOTAL = Buffer("total", DType.F32, (), space=Space.LOCAL)

ROW, COL = Var("i"), Var("j")
ZERO, ONE = Const(0.0, DType.F32), Const(1.0, DType.F32)


def kernel(body: Stmt) -> Kernel:
    params = (X, V, HALVES, COUNTS, SMALL_COUNTS, MASK, Y, Z)
    return Kernel("k", params, body, frozenset((Y.name, Z.name)))


def loop(axis: str, extent: int | Expr, *body: Stmt, kind: LoopKind = LoopKind.SERIAL) -> For:
    count = index_const(extent) if isinstance(extent, int) else extent
    return For(axis, count, body[0] if len(body) == 1 else Block(body), kind)


def parallel(axis: str, extent: int, *body: Stmt) -> For:
    return loop(axis, extent, *body, kind=LoopKind.PARALLEL)


def at(buffer: Buffer, *index: Expr) -> Load:
    return Load(buffer, index)


def write(value: Expr, index: Expr = ROW) -> Store:
    return Store(Z, (index,), value)


def smaller(a: Expr, b: Expr) -> Apply:
    return Apply(ScalarOp.MIN, (a, b))


def row_sum(*start: Stmt) -> Stmt:
    """total = sum of x[i, :]; z[i] = total"""
    add = Accumulate(TOTAL, (), ScalarOp.ADD, at(X, ROW, COL))
    return Alloc(TOTAL, Block((*start, loop("j", M, add), write(at(TOTAL)))))


BLOCK = 3
REST = smaller(index_const(BLOCK), N - ROW * BLOCK)
OVERLAPPING = smaller(ROW * BLOCK, index_const(N - BLOCK)) + COL
MEANING = Block(
    (
        loop("j", M, Store(SCRATCH, (COL,), ZERO)),
        loop("r", N, loop("j", M, Accumulate(SCRATCH, (COL,), ScalarOp.ADD, at(X, Var("r"), COL)))),
    )
)
SUMS = Tile(SCRATCH, "", "j", ("r",), MEANING)

SOUND: dict[str, Stmt] = {
    "map": parallel("i", N, loop("j", M, Store(Y, (ROW, COL), at(X, ROW, COL) + 1))),
    "row sum": parallel("i", N, row_sum(Store(TOTAL, (), ZERO))),
    "tile": Alloc(SCRATCH, Block((SUMS, loop("j", M, Store(Z, (COL,), at(SCRATCH, COL)))))),
    "last block shorter": parallel("i", 3, loop("j", REST, write(ONE, ROW * BLOCK + COL))),
    "last block moved back": parallel("i", 3, loop("j", BLOCK, write(ONE, OVERLAPPING))),
    "merged axes": parallel("i", N * M, Store(Y, (ROW // M, ROW % M), at(X, ROW // M, ROW % M))),
    "index from data, checked": loop(
        "i", N, write(at(V, Apply(ScalarOp.CHECK, (at(COUNTS, ROW), index_const(N)))))
    ),
    "guarded statement": loop("i", N + 2, If((ROW >= 1) & (ROW < N + 1), write(ONE, ROW - 1))),
    "guarded load": loop("i", N, write(Select(ROW >= 1, at(V, ROW - 1), ZERO))),
    "negated guard": loop("i", N, write(Select(ROW < 1, ZERO, at(V, ROW - 1)))),
    "loop that never runs": loop("i", 0, write(at(V, index_const(100)))),
    "side that never runs": loop("i", N, write(Select(ROW < 0, at(V, ROW - 100), ZERO))),
    "guards that exclude each other": loop(
        "i", N, If(ROW < 2, write(Select(ROW >= 3, at(V, index_const(100)), ZERO)))
    ),
    "one parallel iteration": parallel("i", 1, Store(Z, (index_const(0),), ONE)),
    "same axis twice in a row": Block((loop("i", N, write(ONE)), loop("i", N, write(ZERO)))),
    "same local twice in a row": Block(
        tuple(Alloc(TOTAL, Block((Store(TOTAL, (), ZERO),))) for _ in range(2))
    ),
    "cast": loop("i", N, write(Cast(DType.F32, at(HALVES, ROW)))),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_kernel_passes(name: str) -> None:
    whole = kernel(SOUND[name])
    assert verify(whole) is whole


SCOPES: dict[str, tuple[Stmt, str]] = {
    "axis bound twice": (
        loop("i", N, loop("i", N, write(ONE))),
        "k > for i: axis i shadows an outer axis",
    ),
    "axis free in a value": (
        loop("i", N, write(at(X, ROW, COL))),
        "k > for i > write z > read x: axis j is used outside its loop",
    ),
    "axis after its loop": (
        Block((loop("i", N, write(ONE)), write(ONE))),
        "k > write z: axis i is used outside its loop",
    ),
    "axis in its own extent": (
        loop("i", ROW, write(ONE)),
        "k: axis i is used outside its loop",
    ),
    "local defined twice": (
        Alloc(TOTAL, Alloc(TOTAL, Store(TOTAL, (), ZERO))),
        "k: local buffer total is defined twice",
    ),
    "local that hides a parameter": (
        Alloc(Buffer("x", DType.F32, (), space=Space.LOCAL), Block(())),
        "local buffer x is defined twice",
    ),
    "allocation that is not local": (
        Alloc(Buffer("other", DType.F32, (M,)), Block(())),
        "local buffer other is defined twice or not local",
    ),
    "local after its allocation": (
        Block((Alloc(TOTAL, Store(TOTAL, (), ZERO)), Store(TOTAL, (), ZERO))),
        "k > write total: the buffer is not in scope",
    ),
    "read of a buffer from nowhere": (
        loop("i", N, write(at(Buffer("w", DType.F32, (N,)), ROW))),
        "k > for i > write z > read w: the buffer is not in scope",
    ),
    "parameter with another shape": (
        loop("i", N, write(at(Buffer("v", DType.F32, (N, 1)), ROW, index_const(0)))),
        "read v: the buffer is not in scope",
    ),
    "tile without its buffer": (SUMS, "k: the tile's buffer scratch is not in scope"),
    "input written to": (
        loop("i", N, Store(V, (ROW,), ONE)),
        "k > for i > write v: an input is written to",
    ),
    "input accumulated into": (
        loop("i", N, Accumulate(V, (ROW,), ScalarOp.ADD, ONE)),
        "an input is written to",
    ),
}

INDICES: dict[str, tuple[Stmt, str]] = {
    "too few indices": (loop("i", N, write(at(X, ROW))), "read x: 1 indices for rank 2"),
    "too many indices": (loop("i", N, Store(Z, (ROW, ROW), ONE)), "write z: 2 indices for rank 1"),
    "index into a scalar": (
        Alloc(TOTAL, loop("i", N, Store(TOTAL, (ROW,), ONE))),
        "write total: 1 indices for rank 0",
    ),
    "index of another type": (
        loop("i", N, write(at(V, at(SMALL_COUNTS, ROW)))),
        "read v: an index is not int64",
    ),
    "one past the end": (loop("i", N + 1, write(ONE)), r"spans \[0, 8\], the extent is 8"),
    "one before the start": (
        loop("i", N, write(at(V, ROW - 1))),
        r"read v: index .* spans \[-1, 6\], the extent is 8",
    ),
    "swapped indices": (
        loop("i", N, loop("j", M, Store(Y, (COL, ROW), ZERO))),
        r"spans \[0, 7\], the extent is 5",
    ),
    "index from data, not checked": (
        loop("i", N, write(at(V, at(COUNTS, ROW)))),
        r"spans \[-inf, inf\], the extent is 8",
    ),
    "index from data, checked against too much": (
        loop("i", N, write(at(V, Apply(ScalarOp.CHECK, (at(COUNTS, ROW), index_const(N + 1)))))),
        r"spans \[0, 8\], the extent is 8",
    ),
    "guard that is too weak": (
        loop("i", N + 2, If((ROW >= 1) & (ROW <= N + 1), write(ONE, ROW - 1))),
        r"k > for i > if > write z: index .* spans \[0, 8\]",
    ),
    "guard of the other side": (
        loop("i", N, write(Select(ROW >= 1, ZERO, at(V, ROW - 1)))),
        r"spans \[-1, -1\]",
    ),
    "guard that says nothing": (
        loop("i", N, If(at(MASK, ROW), write(ONE, ROW + 1))),
        r"spans \[1, 8\]",
    ),
    "shorter last block forgotten": (
        loop("i", 3, loop("j", BLOCK, write(ONE, ROW * BLOCK + COL))),
        r"spans \[0, 8\], the extent is 8",
    ),
    "last block moved back too little": (
        loop(
            "i",
            3,
            loop("j", BLOCK, write(ONE, smaller(ROW * BLOCK, index_const(N - BLOCK + 1)) + COL)),
        ),
        r"spans \[0, 8\]",
    ),
    "index of an index": (
        loop("i", N, write(at(V, Apply(ScalarOp.CHECK, (at(COUNTS, ROW + 1), index_const(N)))))),
        r"read v > read c: index .* spans \[1, 8\]",
    ),
    "inside a tile": (
        Alloc(SCRATCH, Tile(SCRATCH, "", "j", ("r",), loop("j", N, Store(SCRATCH, (COL,), ZERO)))),
        r"k > tile > for j > write scratch: index .* spans \[0, 7\], the extent is 5",
    ),
    "inside a cast": (
        loop("i", N, write(Cast(DType.F32, at(HALVES, ROW + 1)))),
        r"read h: index .* spans \[1, 8\]",
    ),
    "in the extent of a loop": (
        loop("i", N, loop("j", at(COUNTS, ROW + 1), write(ONE))),
        r"read c: index .* spans \[1, 8\]",
    ),
}

TYPES: dict[str, tuple[Stmt, str]] = {
    "operands of two types": (
        loop("i", N, write(Apply(ScalarOp.ADD, (at(V, ROW), at(HALVES, ROW))))),
        r"ADD of \[.*F(32|16).*, .*F(32|16).*\] and 2 operands",
    ),
    "index in arithmetic of floats": (
        loop("i", N, write(Apply(ScalarOp.MUL, (at(V, ROW), ROW)))),
        "MUL of .*I64",
    ),
    "an operand too few": (
        loop("i", N, write(Apply(ScalarOp.SUB, (ONE,)))),
        r"SUB of \['F32'\] and 1 operands",
    ),
    "an operand too many": (
        loop("i", N, write(Apply(ScalarOp.NEG, (ONE, ONE)))),
        r"NEG of \['F32'\] and 2 operands",
    ),
    "no operand": (loop("i", N, write(Apply(ScalarOp.ISNAN, ()))), r"ISNAN of \[\] and 0 operands"),
    "another type stored": (
        loop("i", N, write(at(HALVES, ROW))),
        "k > for i > write z: F16 is stored to a buffer of F32",
    ),
    "a truth value stored": (
        loop("i", N, write(at(V, ROW) < 0)),
        "BOOL is stored to a buffer of F32",
    ),
    "another type accumulated": (
        loop("i", N, Accumulate(Z, (ROW,), ScalarOp.ADD, at(HALVES, ROW))),
        "F16 is stored to a buffer of F32",
    ),
    "sides of two types": (
        loop("i", N, write(Select(at(MASK, ROW), at(V, ROW), at(HALVES, ROW)))),
        "the sides of a select are F32 and F16",
    ),
    "number as the condition of an if": (
        loop("i", N, If(at(COUNTS, ROW), write(ONE))),
        "k > for i: a condition is not boolean",
    ),
    "number as the condition of a select": (
        loop("i", N, write(Select(at(V, ROW), ONE, ZERO))),
        "k > for i > write z: a condition is not boolean",
    ),
    "no monoid": (
        loop("i", N, Accumulate(Z, (ROW,), ScalarOp.SUB, ONE)),
        "SUB is no reduction",
    ),
}

OVERLAPPING_SUM = Accumulate(Z, (OVERLAPPING,), ScalarOp.ADD, ONE)

TASKS: dict[str, tuple[Stmt, str]] = {
    "one element for all tasks": (
        parallel("i", N, Store(Z, (index_const(0),), at(V, ROW))),
        "k: parallel axis i writes z without indexing by it",
    ),
    "one sum for all tasks": (
        parallel("i", N, loop("j", M, Accumulate(Z, (COL,), ScalarOp.ADD, at(X, ROW, COL)))),
        "parallel axis i writes z without indexing by it",
    ),
    "scratch outside the tasks": (
        Alloc(TOTAL, parallel("i", N, Store(TOTAL, (), ZERO), write(at(TOTAL)))),
        "k: parallel axis i writes total without indexing by it",
    ),
    "one element for two tasks": (
        parallel("i", 2, Store(Z, (index_const(0),), at(V, ROW))),
        "parallel axis i writes z without indexing by it",
    ),
    "second of two parallel loops": (
        parallel("i", N, parallel("j", M, write(at(X, ROW, COL)))),
        "k > for i: parallel axis j writes z without indexing by it",
    ),
    "sums of blocks that overlap": (
        parallel("i", 3, loop("j", BLOCK, OVERLAPPING_SUM)),
        "k: parallel axis i accumulates into shared elements of z",
    ),
    "inside a tile": (
        Alloc(SCRATCH, Tile(SCRATCH, "", "j", ("r",), parallel("r", N, MEANING.stmts[0]))),
        "k > tile: parallel axis r writes scratch without indexing by it",
    ),
}

HUGE = Buffer("huge", DType.F32, (1 << 20,), space=Space.LOCAL)
MEMORY: dict[str, tuple[Stmt, str]] = {
    "a task's stack": (
        parallel("i", N, Alloc(HUGE, loop("j", 1 << 20, Store(HUGE, (COL,), ONE)))),
        "k: 4,194,304 bytes of scratch; a task has 2,097,152",
    ),
}

DEFECTS = {
    f"{kind}: {name}": case
    for kind, cases in {
        "scope": SCOPES,
        "index": INDICES,
        "type": TYPES,
        "tasks": TASKS,
        "memory": MEMORY,
    }.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_named(name: str) -> None:
    body, why = DEFECTS[name]
    with pytest.raises(VerifyError, match=why):
        verify(kernel(body))


def test_tasks_may_write_what_they_allocate() -> None:
    inside = parallel("i", N, row_sum(Store(TOTAL, (), ZERO)))
    assert shared_writes(inside) is None


def test_the_message_begins_with_the_kernel() -> None:
    with pytest.raises(VerifyError, match=r"^mine > "):
        verify(Kernel("mine", (Z,), write(ONE), frozenset((Z.name,))))


PLACES = Buffer("places", DType.I32, (N,), values=(0, M - 1))
PLACE = Buffer("place", DType.I64, (), space=Space.LOCAL, values=(0, M - 1))


def looked_up(stored: Expr) -> Kernel:
    """An index in scratch, stored as given and read to find an element."""
    body = Block((Store(PLACE, (), stored), write(at(X, ROW, at(PLACE)))))
    params = (X, PLACES, Z)
    return Kernel("k", params, loop("i", N, Alloc(PLACE, body)), frozenset((Z.name,)))


def test_elements_within_limits_are_indices() -> None:
    verify(looked_up(Cast(DType.I64, at(PLACES, ROW))))
    found = Cast(DType.I64, at(PLACES, ROW))
    verify(looked_up(smaller(found + 1, index_const(M - 1))))


def test_limits_are_kept() -> None:
    with pytest.raises(VerifyError, match=r"holds values in \(0, 4\), stored is \[1, 5\]"):
        verify(looked_up(Cast(DType.I64, at(PLACES, ROW)) + 1))
    with pytest.raises(VerifyError, match="holds values in"):
        verify(looked_up(Var("i")))  # up to 7
    add = Accumulate(PLACE, (), ScalarOp.ADD, index_const(0))
    with pytest.raises(VerifyError, match="holds values in"):
        verify(kernel(loop("i", N, Alloc(PLACE, add))))
