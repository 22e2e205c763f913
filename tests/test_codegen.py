"""Generated kernels against whole-array evaluation: random programs, every element type, and
golden sources."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import Program, programs, random_array
from tilewright.dtypes import DType
from tilewright.errors import ExecutionError
from tilewright.loops.ir import apply
from tilewright.loops.scalars import ScalarOp
from tilewright.ops import common
from tilewright.ops.evaluate import evaluate
from tilewright.ops.tensor import Tensor, compute, placeholder
from tilewright.options import Options
from tilewright.runtime.cache import default_cache
from tilewright.runtime.plan import Plan, build_plan

NATIVE = [d for d in DType if d.is_native]


def plan_of(inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], threads: int = 2) -> Plan:
    return build_plan(inputs, outputs, Options(threads=threads), default_cache())  # type: ignore[arg-type]


def check(program: Program, tolerance: float = 2e-4) -> None:
    plan = plan_of(program.inputs, program.outputs)
    for got, t in zip(
        plan.run([program.arrays[i.name] for i in program.inputs]), program.outputs, strict=True
    ):
        want = evaluate(t, program.arrays)
        assert got.shape == want.shape and got.dtype == want.dtype
        scale = max(1.0, float(np.abs(want).max(initial=0)))
        np.testing.assert_allclose(
            got.astype(np.float64), want, rtol=tolerance, atol=tolerance * scale
        )


@pytest.mark.avx2
@given(programs())
@settings(max_examples=25)
def test_random_programs(program: Program) -> None:
    check(program)


@given(programs(dtype=DType.F64, max_steps=3))
@settings(max_examples=10)
def test_random_programs_in_double(program: Program) -> None:
    check(program)


@given(programs(dtype=DType.F16, max_steps=2))
@settings(max_examples=8)
def test_random_programs_in_half(program: Program) -> None:
    check(program, 0.02)


ARITHMETIC = (ScalarOp.ADD, ScalarOp.SUB, ScalarOp.MUL, ScalarOp.MAX, ScalarOp.MIN)


@pytest.mark.parametrize("dtype", [d for d in NATIVE if d is not DType.BOOL], ids=lambda d: d.name)
def test_arithmetic_of_every_type(dtype: DType) -> None:
    x, y = (placeholder((3, 37), dtype) for _ in range(2))
    made = tuple(common.elementwise(lambda a, b, op=op: apply(op, a, b), x, y) for op in ARITHMETIC)
    negative = common.elementwise(lambda a: apply(ScalarOp.ABS, -a) + 3, x)
    compared = common.elementwise(lambda a, b: common.select(a < b, a, b + 1), x, y)
    arrays = {
        t.name: random_array(k, t.shape, dtype) * np.array(7).astype(dtype.numpy)
        for k, t in enumerate((x, y))
    }
    check(Program((x, y), (*made, negative, compared), arrays), 0.01 if dtype.bits == 16 else 1e-5)


@pytest.mark.parametrize("source", NATIVE, ids=lambda d: d.name)
def test_casts_between_all_types(source: DType) -> None:
    x = placeholder((5, 9), source)
    outputs = tuple(
        compute(x.shape, lambda i, j, t=t: common.cast(t, x[i, j]))
        for t in NATIVE
        if t is not source
    )
    values = random_array(3, x.shape, source)
    if source.is_float:
        values = (np.abs(values) * 40).astype(source.numpy)
    check(Program((x,), outputs, {x.name: values}), 0.01)


def test_integers_wrap() -> None:
    x = placeholder((4,), DType.U8)
    y = common.elementwise(lambda a: common.select((a + 250) > 100, (a + 250) * 3, a), x)
    values = np.array([0, 5, 6, 255], np.uint8)
    check(Program((x,), (y,), {x.name: values}))


def _gather(n: int) -> tuple[Tensor, Tensor, Tensor]:
    x, i = placeholder((n, 6), DType.F32), placeholder((4,), DType.I64)
    return x, i, compute((4, 6), lambda k, j: x[common.checked_index(i[k], n), j])


def test_an_index_from_data_is_checked() -> None:
    x, i, y = _gather(5)
    plan = plan_of((x, i), (y,))
    values = random_array(0, (5, 6))
    got = plan.run([values, np.array([0, -1, 4, -5])])[0]
    np.testing.assert_array_equal(got, values[[0, -1, 4, -5]])
    for bad in (5, -6, 2**40, -(2**62)):
        with pytest.raises(ExecutionError, match="out of range"):
            plan.run([values, np.array([0, 1, bad, 2])])
    np.testing.assert_array_equal(plan.run([values, np.array([1, 1, 1, 1])])[0], values[[1] * 4])


@pytest.mark.parametrize("dtype", [DType.I32, DType.I64, DType.U8, DType.I8], ids=lambda d: d.name)
@pytest.mark.parametrize("op", [ScalarOp.DIV, ScalarOp.MOD, ScalarOp.REM], ids=lambda o: o.name)
def test_integer_division_is_checked(dtype: DType, op: ScalarOp) -> None:
    x, y = placeholder((4,), dtype), placeholder((4,), dtype)
    plan = plan_of((x, y), (common.elementwise(lambda a, b: apply(op, a, b), x, y),))
    a = np.array([7, 9, 100, 3], dtype.numpy)
    b = np.array([2, 4, 7, 5], dtype.numpy)
    np.testing.assert_array_equal(plan.run([a, b])[0], op.meaning(a, b))
    with pytest.raises(ExecutionError, match="divided by zero"):
        plan.run([a, np.array([2, 0, 7, 5], dtype.numpy)])


def test_infinities_and_nans_survive() -> None:
    x = placeholder((8,), DType.F32)
    inf, nan = np.float32(np.inf), np.float32(np.nan)
    top = common.elementwise(lambda a, m: a - m, x, common.reduce(ScalarOp.MAX, x, [0], True))
    clipped = common.elementwise(lambda a: common.maximum(a, 0), x)
    plan = plan_of((x,), (top, clipped))
    with np.errstate(invalid="ignore"):
        for values in ([inf, 1, -inf, 0, 2, 3, 4, 5], [nan, 1, 2, 3, 4, 5, 6, 7], [-inf] * 8):
            array = np.array(values, np.float32)
            first, second = plan.run([array])
            np.testing.assert_array_equal(first, array - array.max())
            np.testing.assert_array_equal(second, np.maximum(array, 0))


@given(st.integers(1, 40), st.integers(1, 70), st.integers(2, 50))
@settings(max_examples=20)
def test_matmul_of_any_size(m: int, n: int, k: int) -> None:
    a, b = placeholder((m, k), DType.F32), placeholder((k, n), DType.F32)
    y = compute((m, n), lambda i, j, r: a[i, r] * b[r, j], reduce=ScalarOp.ADD, over=[k])
    check(Program((a, b), (y,), {a.name: random_array(1, (m, k)), b.name: random_array(2, (k, n))}))


def _dense(m: int, k: int, n: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    x, w, b = (
        placeholder((m, k), DType.F32),
        placeholder((k, n), DType.F32),
        placeholder((n,), DType.F32),
    )
    y = compute((m, n), lambda i, j, r: x[i, r] * w[r, j], reduce=ScalarOp.ADD, over=[k])
    return (x, w, b), (common.elementwise(lambda v, c: common.maximum(v + c, 0), y, b),)


def _softmax() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    x = placeholder((50, 60), DType.F32)
    top = common.reduce(ScalarOp.MAX, x, [1], True)
    e = common.elementwise(lambda a, b: apply(ScalarOp.EXP, a - b), x, top)
    return (x,), (
        common.elementwise(lambda a, b: a / b, e, common.reduce(ScalarOp.ADD, e, [1], True)),
    )


def test_softmax_is_one_kernel() -> None:
    assert len(plan_of(*_softmax()).kernels) == 1


def test_a_new_outer_extent_is_the_same_kernel() -> None:
    first, second = (plan_of(*_dense(m, 40, 30)) for m in (28, 42))
    assert [k.source for k in first.kernels] == [k.source for k in second.kernels]


def test_kernel_sources_have_no_names_from_outside() -> None:
    x = placeholder((3,), DType.F32, name="import os; evil")
    y = common.elementwise(lambda v: v + 1, x)
    plan = plan_of((x,), (y,))
    assert "evil" not in plan.kernels[0].source
    assert plan.run([np.zeros(3, np.float32)])[0].tolist() == [1, 1, 1]
