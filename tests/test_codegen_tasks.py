"""Kernels called task by task, however their loops are cut, and in memory with margins.

A plan cuts only large kernels into tasks; here small ones are, so that every way of cutting is met.
"""

from __future__ import annotations

import ctypes
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import tilewright
from graph_samples import model_of
from strategies import Program, programs, random_array
from tilewright.codegen.emit import Emitted, emit
from tilewright.dtypes import DType
from tilewright.errors import ExecutionError
from tilewright.fusion.groups import form_groups
from tilewright.fusion.inline import inline
from tilewright.fusion.legalize import legalize
from tilewright.fusion.lower import Lowered, lower
from tilewright.fusion.pack import pack_operands
from tilewright.fusion.weights import PackedWeights
from tilewright.loops.ir import Apply, Expr
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify import verify
from tilewright.ops import common
from tilewright.ops.evaluate import evaluate
from tilewright.ops.tensor import Constant, Tensor, compute, placeholder
from tilewright.options import Options
from tilewright.runtime.cache import default_cache
from tilewright.runtime.plan import Plan, build_plan, tile_limits
from tilewright.schedule.heuristics import choose_schedule

MARGIN = 4096  # bytes around every tensor
FILL = 0xA5
ALIGNMENT = 64


class Room:
    """Memory for one tensor; `intact` says whether nothing was written around it."""

    def __init__(self, nbytes: int) -> None:
        self._raw = np.full(nbytes + 2 * MARGIN + ALIGNMENT, FILL, np.uint8)
        start = MARGIN + -self._raw.ctypes.data % ALIGNMENT
        self.bytes = self._raw[start : start + nbytes]
        self._around = (self._raw[:start], self._raw[start + nbytes :])

    @property
    def intact(self) -> bool:
        return all((part == FILL).all() for part in self._around)


def contents(t: Tensor, program: Program) -> np.ndarray | None:
    if isinstance(t, Constant):
        return t.value
    return program.arrays.get(t.name)


def room_for(t: Tensor, program: Program) -> Room:
    room = Room(max(t.size, 1) * t.dtype.itemsize)
    given = contents(t, program)
    if given is not None and given.size:
        in_memory = given.ravel(order="K" if t.strides is not None else "C")
        room.bytes[:] = in_memory.view(np.uint8)
    return room


def kernels_of(program: Program) -> list[tuple[Lowered, Emitted]]:
    limits = tile_limits()
    whole = inline(program.inputs, legalize(program.outputs))
    whole = pack_operands(whole, limits.lanes, PackedWeights())
    lowered = [lower(g, whole) for g in form_groups(whole)]
    return [(n, emit(verify(choose_schedule(n, limits)))) for n in lowered]


def call(address: int, e: Emitted, pointers: list[int], shuffle: random.Random) -> None:
    """All tasks of a kernel, in any order, and one more that has nothing to do."""
    iterations = e.iterations or 1
    chunk = shuffle.randint(1, iterations)
    errors = np.zeros(1, np.int64)
    table = np.array([errors.ctypes.data, *pointers, *e.numbers, chunk], np.int64)
    function = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(address)
    tasks = list(range(-(-iterations // chunk) + 1 if e.iterations else 1))
    shuffle.shuffle(tasks)
    for task in tasks:
        function(task, table.ctypes.data)
    assert not errors.any()


def check(program: Program, seed: int = 0) -> None:
    kernels, shuffle = kernels_of(program), random.Random(seed)
    addresses = default_cache().load([e.text for _, e in kernels])
    rooms: dict[str, Room] = {}
    for (n, e), address in zip(kernels, addresses, strict=True):
        for t in n.tensors:
            if t.name not in rooms:
                rooms[t.name] = room_for(t, program)
        pointers = [rooms[t.name].bytes.ctypes.data for t in n.tensors]
        call(address, e, pointers, shuffle)
    assert all(r.intact for r in rooms.values()), "written outside of a tensor"
    for t in program.outputs:
        want = evaluate(t, program.arrays)
        got = rooms[t.name].bytes.view(t.dtype.numpy).reshape(t.shape)
        scale = max(1.0, float(np.abs(want).max(initial=0)))
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4 * scale)


@given(programs(max_steps=4), st.integers(0, 99))
@settings(max_examples=25)
def test_random_programs(program: Program, seed: int) -> None:
    check(program, seed)


def program_of(function: object, *shapes: tuple[int, ...], dtype: DType = DType.F32) -> Program:
    inputs = tuple(placeholder(s, dtype) for s in shapes)
    arrays = {t.name: random_array(k, t.shape, dtype) for k, t in enumerate(inputs)}
    assert callable(function)
    return Program(inputs, (function(*inputs),), arrays)


def reversed_axes(x: Tensor) -> Tensor:
    return compute(x.shape[::-1], lambda *i: x[i[::-1]] + 1)


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_tasks_over_several_axes(rank: int) -> None:
    """No two axes can be merged, so that a task is found from the index of each."""
    for seed in range(4):
        check(program_of(reversed_axes, (2, 3, 5, 4, 7)[:rank]), seed)


@pytest.mark.parametrize("shape", [(23, 19, 37), (5, 8, 64)])
def test_tasks_of_tiles(shape: tuple[int, int, int]) -> None:
    rows, depth, columns = shape

    def product(a: Tensor, b: Tensor) -> Tensor:
        return compute(
            (rows, columns), lambda i, j, k: a[i, k] * b[k, j], reduce=ScalarOp.ADD, over=[depth]
        )

    for seed in range(3):
        check(program_of(product, (rows, depth), (depth, columns)), seed)


@pytest.mark.parametrize("extent", [64, 65, 150])
def test_tasks_of_blocks_that_overlap(extent: int) -> None:
    for seed in range(3):
        check(
            program_of(lambda x: common.reduce(ScalarOp.ADD, x, [1], False), (3, 9, extent)), seed
        )


# -- what random programs do not contain


def test_one_producer_read_at_two_places() -> None:
    def mirrored(x: Tensor) -> Tensor:
        y = common.elementwise(lambda v: v + 1, x)
        return compute(x.shape, lambda i: y[i] - 2 * y[6 - i])

    check(program_of(mirrored, (7,)))


def test_one_axis_with_two_strides() -> None:
    check(program_of(lambda x: compute((4,), lambda i: x[i * 2] - x[i * 5 + 1]), (17,)))


def test_one_axis_of_two_buffers() -> None:
    check(program_of(lambda x, y: compute((4,), lambda i: x[i * 2] - y[i * 3]), (7,), (10,)))


def square_product(a: Tensor, b: Tensor) -> Tensor:
    n = a.shape[0]
    return compute((n, n), lambda i, j, k: a[i, k] * b[k, j], reduce=ScalarOp.ADD, over=[n])


def test_a_product_read_at_other_places_than_its_own() -> None:
    def turned(a: Tensor, b: Tensor) -> Tensor:
        s = square_product(a, b)
        return compute(s.shape, lambda i, j: s[j, i] - 2 * s[i, 12 - j])

    check(program_of(turned, (13, 13), (13, 13)))


def test_a_product_that_is_an_output_too() -> None:
    a, b = placeholder((13, 13), DType.F32), placeholder((13, 13), DType.F32)
    s = square_product(a, b)
    arrays = {t.name: random_array(k, t.shape) for k, t in enumerate((a, b))}
    check(Program((a, b), (s, common.elementwise(lambda v: v + 1, s)), arrays))


@pytest.mark.parametrize("fill", [0, 1])
def test_a_product_with_a_padded_operand(fill: int) -> None:
    """Only where the padding is zero may a tile leave it out."""

    def padded(a: Tensor, w: Tensor) -> Tensor:
        def element(i: Expr, j: Expr, k: Expr) -> Expr:
            at = i + k - 1
            inside = (at >= 0) & (at < a.shape[0])
            return common.select(inside, a[at], fill) * w[k, j]

        return compute((20, 33), element, reduce=ScalarOp.ADD, over=[3])

    check(program_of(padded, (20,), (3, 33)))


def test_sums_read_by_the_kernel_between() -> None:
    """The quotients need all sums first, so they cannot share the rows of the sums' kernel."""

    def shares(x: Tensor) -> Tensor:
        sums = common.reduce(ScalarOp.ADD, x, [1], True)
        greatest = common.reduce(ScalarOp.MAX, sums, [0], True)
        return common.elementwise(lambda v, s, g: v - s * g, x, sums, greatest)

    check(program_of(shares, (300, 120)))  # too many elements for one task


def test_some_of_the_sums_are_read() -> None:
    """All sums are wanted, but the differences are those of five rows."""
    x = placeholder((9, 7), DType.F32)
    sums = common.reduce(ScalarOp.ADD, x, [1], False)
    first = compute((5, 7), lambda i, j: sums[i] - x[i, j])
    check(Program((x,), (sums, first), {x.name: random_array(0, x.shape)}))


def test_the_sums_of_other_rows_are_read() -> None:
    def shifted(x: Tensor) -> Tensor:
        sums = common.reduce(ScalarOp.ADD, x, [1], False)
        return compute((9, 7), lambda i, j: sums[8 - i] - sums[i] * x[i, j])

    check(program_of(shifted, (9, 7)))


def plan_of(program: Program) -> Plan:
    return build_plan(program.inputs, program.outputs, Options(threads=1), default_cache())


def far_away(x: Tensor, at: Tensor) -> Tensor:
    """x[at], where that is inside, and else 0"""

    def element(i: Expr) -> Expr:
        inside = (at[i] >= 0) & (at[i] < x.shape[0])
        return common.select(inside, x[at[i]], 0)

    return compute(at.shape, element)


def test_a_load_is_not_evaluated_where_its_guard_fails() -> None:
    x, at = placeholder((6,), DType.F32), placeholder((5,), DType.I64)
    where, values = np.array([0, 1 << 44, 5, -(1 << 44), 6]), random_array(0, (6,))
    program = Program((x, at), (far_away(x, at),), {x.name: values, at.name: where})
    (source,) = (k.source for k in plan_of(program).kernels)
    assert "select(" not in source  # which evaluates both sides
    check(program)


@pytest.mark.parametrize("op", [ScalarOp.DIV, ScalarOp.MOD, ScalarOp.REM], ids=lambda o: o.name)
def test_a_division_is_not_checked_where_its_guard_fails(op: ScalarOp) -> None:
    y = compute((4, 3), lambda i, j: common.select(j > 0, Apply(op, (i, j)), -1))
    rows, columns = np.arange(4)[:, None], np.arange(3)[None]
    want = np.where(columns > 0, op.meaning(rows, np.maximum(columns, 1)), -1)
    np.testing.assert_array_equal(plan_of(Program((), (y,), {})).run([])[0], want)


def test_the_message_of_a_check_names_the_node_that_was_inlined() -> None:
    inputs = {"x": random_array(0, (6, 2)), "at": np.array([0, 1, 6, 2, 3])}
    nodes = [
        helper.make_node("Gather", ["x", "at"], ["picked"], name="pick"),
        helper.make_node("Neg", ["picked"], ["y"], name="negate"),
    ]
    model = tilewright.compile(model_of(nodes, inputs, ["y"]))
    with pytest.raises(ExecutionError, match=r"in .*pick.*: an index is out of range"):
        model(**inputs)
    assert len(model.kernels) == 1
