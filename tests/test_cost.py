"""The cost of a loop nest: what its loops do, counted while the interpreter runs them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given

from interpreted import SMALL
from strategies import Program, programs
from test_lowering import lowered_kernels
from tilewright.dtypes import DType
from tilewright.loops import interpret as interpreter
from tilewright.loops.ir import (
    Accumulate,
    Buffer,
    Const,
    Expr,
    For,
    Kernel,
    Load,
    Select,
    Space,
    Stmt,
    Store,
    Var,
    apply,
    children,
    index_const,
    walk,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.schedule.cost import UNBOUNDED_EXTENT, WEIGHTS, cost, footprint_bytes, operations
from tilewright.schedule.heuristics import choose_schedule

ROW, COLUMN, DEPTH = Var("i"), Var("j"), Var("k")
X = Buffer("x", DType.F32, (5, 7))
W = Buffer("w", DType.F32, (7, 3))
Y = Buffer("y", DType.F32, (5, 3))


def nest(body: Stmt, *loops: tuple[str, int | Expr]) -> Stmt:
    for axis, extent in reversed(loops):
        body = For(axis, index_const(extent) if isinstance(extent, int) else extent, body)
    return body


def kernel(body: Stmt, *params: Buffer) -> Kernel:
    return Kernel("k", params, body, frozenset({params[-1].name}))


class Touched:
    """An array that remembers which of its elements were read and written."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.read: set[tuple[int, ...]] = set()
        self.written: set[tuple[int, ...]] = set()

    def __getitem__(self, index: Any) -> Any:
        self.read.add(index)
        return self.array[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.written.add(index)
        self.array[index] = value

    def __getattr__(self, name: str) -> Any:
        return getattr(self.array, name)


def executed(s: Stmt, axes: dict[str, int]) -> float:
    """Operations of a statement, iteration by iteration; conditions count as true."""
    match s:
        case For(axis=axis, extent=extent, body=body):
            value: Any = interpreter._value(extent, axes, {})  # extents read no buffers here
            return sum(executed(body, {**axes, axis: k}) for k in range(int(value)))
        case Store(value=value):
            return operations(value)
        case Accumulate(value=value):
            return operations(value) + 1
    return sum(executed(c, axes) for c in children(s) if isinstance(c, Stmt))


def has_constant_extents(k: Kernel) -> bool:
    return all(isinstance(n.extent, Const) for n in walk(k.body) if isinstance(n, For))


@given(programs(max_steps=3))
def test_operations_are_those_of_the_iterations(program: Program) -> None:
    for n in lowered_kernels(program, SMALL.lanes):
        for k in (n.kernel, choose_schedule(n, SMALL)):
            want = executed(k.body, {})
            if has_constant_extents(k):
                event("constant extents")
                assert cost(k).flops == want
            else:
                assert cost(k).flops >= want


@given(programs(max_steps=3))
def test_bytes_hold_what_is_touched_and_no_more_than_there_is(program: Program) -> None:
    for n in lowered_kernels(program, SMALL.lanes):
        k = choose_schedule(n, SMALL)
        arrays: dict[str, Any] = {}
        for b in k.params:
            shape = (1,) if math.prod(b.shape) == 0 else b.shape
            arrays[b.name] = Touched(np.ones(shape, b.dtype.numpy))
        interpreter.interpret(k, arrays)
        spent = cost(k)
        size = {b.name: b.dtype.itemsize for b in k.params}
        read = sum(len(arrays[name].read) * size[name] for name in arrays)
        written = sum(len(arrays[name].written) * size[name] for name in arrays)
        everything = sum(map(footprint_bytes, k.params))
        if all(b.strides is None for b in k.params):
            assert read <= spent.read and written <= spent.written
        assert spent.read <= everything and spent.written <= everything


def test_a_product_is_two_operations_for_each_multiplication() -> None:
    inner = Accumulate(
        Y, (ROW, COLUMN), ScalarOp.ADD, Load(X, (ROW, DEPTH)) * Load(W, (DEPTH, COLUMN))
    )
    found = cost(kernel(nest(inner, ("i", 5), ("j", 3), ("k", 7)), X, W, Y))
    assert found.flops == 2 * 5 * 3 * 7
    assert (found.read, found.written) == (4 * (35 + 21 + 15), 4 * 15)  # the sums are read, too
    assert found.bytes == found.read + found.written


def test_of_a_table_only_as_much_counts_as_is_read() -> None:
    table = Buffer("table", DType.F32, (1000, 8))
    rows = Buffer("rows", DType.I64, (3,))
    out = Buffer("out", DType.F32, (3, 8))
    row = apply(ScalarOp.CHECK, Load(rows, (ROW,)), index_const(1000))
    body = nest(Store(out, (ROW, COLUMN), Load(table, (row, COLUMN))), ("i", 3), ("j", 8))
    found = cost(kernel(body, table, rows, out))
    assert (found.flops, found.read, found.written) == (0, 4 * 24 + 8 * 3, 4 * 24)


def test_local_buffers_move_nothing() -> None:
    local = Buffer("t", DType.F32, (3,), space=Space.LOCAL)
    body = nest(Store(local, (COLUMN,), Load(local, (COLUMN,)) + Load(local, (COLUMN,))), ("j", 3))
    assert cost(Kernel("k", (Y,), body)).bytes == 0


def test_repeated_elements_and_gaps_are_no_traffic() -> None:
    assert footprint_bytes(Buffer("b", DType.F32, (9, 4), (0, 1))) == 16
    assert footprint_bytes(Buffer("b", DType.F64, (9, 4), (100, 1))) == 8 * 36
    assert footprint_bytes(Buffer("b", DType.F32, (0, 4))) == 0


def test_functions_are_weighted_and_index_arithmetic_is_free() -> None:
    x = Load(X, (ROW + COLUMN * 2, COLUMN))
    assert operations(apply(ScalarOp.EXP, x)) == WEIGHTS[ScalarOp.EXP] > 1
    assert operations(x) == 0
    assert operations(x + x) == 1
    shared = x * 2.0
    assert operations(shared + shared) == 2
    padded = Select((ROW < 3) & (COLUMN < 2), x, Const(0.0, DType.F32))
    assert operations(padded * x) == 1
    assert operations(Select(x < 0.0, x * x + 1.0, x)) == 3  # the comparison and the dearer side


def test_extents_are_taken_at_their_upper_ends() -> None:
    body = Store(Y, (index_const(0), index_const(0)), Load(Y, (ROW, COLUMN)) * 2.0)
    rest = apply(ScalarOp.MIN, index_const(4), index_const(10) - ROW * 4)
    assert cost(kernel(nest(body, ("i", 3), ("j", rest)), Y)).flops == 12
    data = Load(Buffer("n", DType.I64, ()), ())
    assert cost(kernel(nest(body, ("i", data)), Y)).flops == UNBOUNDED_EXTENT


@pytest.mark.parametrize("op", [op for op in ScalarOp if op.rule == "same"])
def test_no_function_has_a_negative_weight(op: ScalarOp) -> None:
    assert WEIGHTS.get(op, 1) >= 0
