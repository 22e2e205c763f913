"""Kernels on a GPU that memory limits: every schedule means what the plain loops mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import prod
from typing import Any
from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_harness import needs_compiler
from cuda_kernels import Run, emulated, interpreted, lowered
from strategies import Program, programs, random_array
from tilewright.dtypes import DType
from tilewright.fusion import grid_sums
from tilewright.fusion.lower import Lowered
from tilewright.loops.interpret import run_statement
from tilewright.loops.ir import (
    Apply,
    Buffer,
    Expr,
    Kernel,
    Select,
    Store,
    Var,
    apply,
    as_expr,
    index_const,
    substitute,
    variables,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify import verify
from tilewright.ops import common
from tilewright.ops.scatter import scatter_elements, scatter_nd
from tilewright.ops.slicing import concat
from tilewright.ops.tensor import Placeholder, Tensor, compute, placeholder
from tilewright.schedule import cuda
from tilewright.schedule.cuda import choose_cuda_schedule
from tilewright.schedule.uniform import uniform

Array = np.ndarray[Any, Any]


@contextmanager
def small_machine() -> Iterator[None]:
    """As if few threads and short rows kept the machine busy, so that small shapes are treated as
    large ones."""
    small: dict[str, Any] = {"SPREAD": 4, "MANY": 1 << 12, "SHORT": 3, "WAVE": 16, "SIDE": 8}
    small |= {"MIN_SIDE": 2, "MIN_TILE": 4, "MIN_ROW": 6, "STEPS": 2, "TEAM_STEPS": 2}
    small |= {"TEAM_THREADS": 64, "ROW_THREADS": (32, 64)}
    parts: dict[str, Any] = {"PART": 8, "ENOUGH": 16, "LINE": 4, "WHOLE": 2, "BLOCKS": 16}
    with patch.multiple(cuda, **small), patch.multiple(grid_sums, **parts):
        yield


def same(n: Lowered, kernel: Kernel, arrays: dict[str, Array]) -> None:
    """The scheduled kernel gives what the plain loops give; their results are added."""
    plain, ours = interpreted(n, n.kernel, arrays), interpreted(n, kernel, arrays)
    for name, wanted in plain.items():
        np.testing.assert_allclose(ours[name], wanted, rtol=2e-5, atol=2e-5, err_msg=str(kernel))
    arrays.update(plain)


def agree(inputs: Sequence[Placeholder], outputs: Sequence[Tensor]) -> list[Kernel]:
    """The scheduled kernels, each of which gives what its plain loops give."""
    kernels, settled = lowered(inputs, outputs)
    arrays = {t.name: random_array(k, t.shape, t.dtype) for k, t in enumerate(inputs)} | GIVEN
    arrays |= {name: c.value for name, c in settled.items()}
    made = [verify(choose_cuda_schedule(n)) for n in kernels]
    for n, kernel in zip(kernels, made, strict=True):
        same(n, kernel, arrays)
    return made


@settings(max_examples=25)
@given(programs(4), st.booleans())
def test_random_programs(program: Program, small: bool) -> None:
    with small_machine() if small else nullcontext():
        agree(program.inputs, program.outputs)


TYPES = st.sampled_from([DType.F32, DType.F16, DType.U8, DType.F64])
EXTENT = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 24, 31, 33, 40])


@st.composite
def family(draw: st.DrawFn) -> tuple[list[Placeholder], Tensor]:
    """A kernel of a kind that memory limits, of any shape."""
    shape = tuple(draw(st.lists(EXTENT, min_size=2, max_size=3)))
    while prod(shape) > 1500:
        shape = shape[1:]
    kind = draw(st.sampled_from(KINDS))
    floats = kind in (softmax, normalised, summed)
    x = placeholder(shape, DType.F32 if floats else draw(TYPES))
    return kind(draw, x)


def mapped(draw: st.DrawFn, x: Placeholder) -> tuple[list[Placeholder], Tensor]:
    """With an operand that is repeated along some axes."""
    y = placeholder([n if draw(st.booleans()) else 1 for n in x.shape], x.dtype)
    return [x, y], common.elementwise(lambda a, b: a + b, x, y)


def turned(draw: st.DrawFn, x: Placeholder) -> tuple[list[Placeholder], Tensor]:
    """With another order of dimensions, and an operand in the new one."""
    order = draw(st.permutations(range(x.rank)))
    shape = [x.shape[k] for k in order]
    t = common.view(x, shape, lambda *i: [i[order.index(k)] for k in range(x.rank)])
    if draw(st.booleans()):
        return [x], t
    y = placeholder(shape, x.dtype)
    return [x, y], common.elementwise(lambda a, b: a + b, t, y)


def joined(draw: st.DrawFn, x: Placeholder) -> tuple[list[Placeholder], Tensor]:
    """With another tensor, along an axis."""
    axis = draw(st.integers(0, x.rank - 1))
    count = draw(EXTENT)
    y = placeholder([count if k == axis else n for k, n in enumerate(x.shape)], x.dtype)
    return [x, y], concat(x, y, axis=axis)


def cut(draw: st.DrawFn, x: Placeholder) -> tuple[list[Placeholder], Tensor]:
    """From somewhere on, at some distance, with a border around it."""
    first = [draw(st.integers(0, n - 1)) for n in x.shape]
    steps = [draw(st.sampled_from([1, 1, 2])) for n in x.shape]
    shape = [-(-(n - a) // s) for n, a, s in zip(x.shape, first, steps, strict=True)]
    t = common.view(
        x, shape, lambda *i: [v * s + a for v, a, s in zip(i, first, steps, strict=True)]
    )
    border = draw(st.integers(0, 4))

    def element(*i: Expr) -> Expr:
        at = i[-1] - border
        inside = common.inside(at, shape[-1])
        return common.select(inside, t[(*i[:-1], at)], as_expr(1, x.dtype))

    return [x], compute((*shape[:-1], shape[-1] + 2 * border), element)


def chosen(draw: st.DrawFn, x: Placeholder) -> tuple[list[Placeholder], Tensor]:
    """From two tensors by a third."""
    y, which = placeholder(x.shape, x.dtype), placeholder(x.shape, DType.BOOL)
    return [x, y, which], common.elementwise(lambda c, a, b: Select(c, a, b), which, x, y)


def gathered(draw: st.DrawFn, x: Placeholder) -> tuple[list[Placeholder], Tensor]:
    """Rows, or elements of rows, by their numbers."""
    axis, count = draw(st.integers(0, x.rank - 1)), draw(EXTENT)
    numbers = np.random.default_rng(count).integers(0, x.shape[axis], count)
    at = placeholder((count,), DType.I64)
    GIVEN[at.name] = numbers
    shape = [count if k == axis else n for k, n in enumerate(x.shape)]

    def element(*i: Expr) -> Expr:
        row = common.checked_index(at[i[axis]], x.shape[axis])
        return x[[row if k == axis else v for k, v in enumerate(i)]]

    return [x, at], compute(shape, element)


def scattered(draw: st.DrawFn, x: Placeholder) -> tuple[list[Placeholder], Tensor]:
    """With updates of elements, or of whole slices, some of them twice."""
    depth, count = draw(st.integers(1, x.rank)), draw(st.integers(1, 40))
    rng = np.random.default_rng(count)
    rows = [rng.integers(0, n, count) for n in x.shape[:depth]]
    at = placeholder((count, depth), DType.I64)
    GIVEN[at.name] = np.stack(rows, axis=1)
    updates = placeholder((count, *x.shape[depth:]), x.dtype)
    how = draw(st.sampled_from(["none", "add"]))
    return [x, at, updates], scatter_nd(x, at, updates, reduction=how)


def scattered_along(draw: st.DrawFn, x: Placeholder) -> tuple[list[Placeholder], Tensor]:
    axis = draw(st.integers(0, x.rank - 1))
    count = draw(st.integers(1, 9))
    shape = [count if k == axis else n for k, n in enumerate(x.shape)]
    at, updates = placeholder(shape, DType.I64), placeholder(shape, x.dtype)
    GIVEN[at.name] = np.random.default_rng(count).integers(0, x.shape[axis], shape)
    return [x, at, updates], scatter_elements(x, at, updates, axis=axis)


def joined_many(draw: st.DrawFn, x: Placeholder) -> tuple[list[Placeholder], Tensor]:
    axis = draw(st.integers(0, x.rank - 1))
    parts = [placeholder(x.shape, x.dtype) for _ in range(draw(st.integers(2, 12)))]
    return [x, *parts], concat(x, *parts, axis=axis)


def summed(draw: st.DrawFn, x: Placeholder) -> tuple[list[Placeholder], Tensor]:
    axes = draw(st.lists(st.integers(0, x.rank - 1), min_size=1, unique=True))
    op = draw(st.sampled_from([ScalarOp.ADD, ScalarOp.MAX]))
    return [x], common.reduce(op, x, axes, False)


def softmax(draw: st.DrawFn, x: Placeholder) -> tuple[list[Placeholder], Tensor]:
    axis = draw(st.integers(0, x.rank - 1))
    top = common.reduce(ScalarOp.MAX, x, [axis], True)
    e = common.elementwise(lambda a, b: apply(ScalarOp.EXP, a - b), x, top)
    total = common.reduce(ScalarOp.ADD, e, [axis], True)
    return [x], common.elementwise(lambda a, b: a / b, e, total)


def normalised(draw: st.DrawFn, x: Placeholder) -> tuple[list[Placeholder], Tensor]:
    axes = draw(st.sampled_from([[x.rank - 1], [0], list(range(1, x.rank))]))
    n = prod(x.shape[k] for k in axes)

    def mean(t: Tensor) -> Tensor:
        return common.elementwise(lambda s: s / n, common.reduce(ScalarOp.ADD, t, axes, True))

    apart = common.elementwise(lambda a, b: a - b, x, mean(x))
    spread = mean(common.elementwise(lambda a: a * a, apart))
    scale = placeholder(x.shape[-1:], x.dtype)
    value = common.elementwise(lambda a, v: a / apply(ScalarOp.SQRT, v + 0.01), apart, spread)
    return [x, scale], common.elementwise(lambda a, s: a * s, value, scale)


KINDS = (
    *(mapped, turned, joined, cut, chosen, gathered, summed, softmax, normalised),
    *(scattered, scattered_along, joined_many),
)
GIVEN: dict[str, Array] = {}


@settings(max_examples=150)
@given(family(), st.booleans())
def test_families(drawn: tuple[list[Placeholder], Tensor], small: bool) -> None:
    inputs, result = drawn
    with small_machine() if small else nullcontext():
        agree(inputs, [result])


def agrees(inputs: Sequence[Placeholder], *outputs: Tensor) -> list[Run]:
    """The kernels as the emulator ran them; what they write is what their plain loops write."""
    kernels, settled = lowered(inputs, outputs)
    arrays = {t.name: random_array(k, t.shape, t.dtype) for k, t in enumerate(inputs)} | GIVEN
    arrays |= {name: c.value for name, c in settled.items()}
    runs = []
    for n in kernels:
        runs.append(emulated(n, arrays))
        plain = interpreted(n, n.kernel, arrays)
        for name, wanted in plain.items():
            found = runs[-1].written[name]
            np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)
        arrays.update(plain)
    return runs


@needs_compiler
@settings(max_examples=20)
@given(family(), st.booleans())
def test_machine_code_of_families(drawn: tuple[list[Placeholder], Tensor], small: bool) -> None:
    inputs, result = drawn
    with small_machine() if small else nullcontext():
        agrees(inputs, result)


@settings(max_examples=300)
@given(
    st.lists(st.integers(-9, 9), min_size=4, max_size=4),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([ScalarOp.LT, ScalarOp.LE, ScalarOp.GT, ScalarOp.GE]),
    st.sampled_from(["", "not", "and", "or"]),
    st.booleans(),
)
def test_uniform_conditions(
    numbers: list[int], lanes: int, op: ScalarOp, how: str, whole: bool
) -> None:
    """Such a condition is the same for all lanes, and what it was; in whole vectors there is
    one."""
    a, b, c, d = numbers
    group, lane = Var("group"), Var("lane")
    step = lanes if whole else 1
    start = (group * a + b) * step + lane * (1 if whole else c)
    limit = d * step if op in (ScalarOp.LT, ScalarOp.GE) else d * step - 1
    condition: Expr = Apply(op, (start, index_const(limit)))
    other = Apply(ScalarOp.LT, (group, index_const(d)))
    if how == "not":
        condition = Apply(ScalarOp.NOT, (condition,))
    elif how:
        condition = Apply(ScalarOp.AND if how == "and" else ScalarOp.OR, (other, condition))
    ranges = {"group": (0.0, 9.0), "lane": (0.0, lanes - 1.0)}
    found = uniform(condition, "lane", lanes, ranges)
    assert found is not None or not whole
    if found is None:
        return
    assert "lane" not in variables(found)
    for g in range(10):
        for v in range(lanes):
            at: dict[str, Expr] = {"group": index_const(g), "lane": index_const(v)}
            assert value(substitute(found, at)) == value(substitute(condition, at))


def value(e: Any) -> bool:
    """Of an expression of constants."""
    out = np.zeros(1, np.bool_)
    run_statement(Store(Buffer("out", DType.BOOL, (1,)), (index_const(0),), e), {}, {"out": out})
    return bool(out[0])
