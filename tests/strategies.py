"""What property tests draw from: shapes, arrays, programs of tensor expressions, schedules. Every
feature joins here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import strategies as st

from tilewright.dtypes import DType
from tilewright.fusion.inline import topological
from tilewright.loops.ir import Expr, apply
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.show import show_expr
from tilewright.ops import common
from tilewright.ops.tensor import Compute, Placeholder, Tensor, compute, constant, placeholder

EXTENTS = (2, 3, 5, 7, 4, 6)  # drawn without repetition, so that a mixed-up axis shows


class Program:
    """A small program: its inputs, its outputs, and arrays for the inputs. (No dataclass: it
    prints as formulas.)"""

    def __init__(
        self,
        inputs: tuple[Placeholder, ...],
        outputs: tuple[Tensor, ...],
        arrays: dict[str, np.ndarray],
    ) -> None:
        self.inputs, self.outputs, self.arrays = inputs, outputs, arrays

    def __repr__(self) -> str:
        lines = [f"{t.name}{list(t.shape)} = {_formula(t)}" for t in topological(self.outputs)]
        return "\n".join(["", *lines, f"outputs {[t.name for t in self.outputs]}"])


def _formula(t: Tensor) -> str:
    if not isinstance(t, Compute):
        return type(t).__name__
    body = show_expr(t.body)
    return (
        f"{t.reduction.op.name} over {t.reduction.axes}: {body}"
        if t.reduction
        else f"{t.axes}: {body}"
    )


def shapes(min_rank: int = 1, max_rank: int = 5) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes with distinct extents; now and then a dimension of one."""
    distinct = st.permutations(EXTENTS).flatmap(
        lambda p: st.integers(min_rank, max_rank).map(lambda r: tuple(p[:r]))
    )
    return st.tuples(distinct, st.integers(0, 4)).map(
        lambda x: tuple(1 if k == x[1] - 3 else n for k, n in enumerate(x[0]))
    )


def random_array(seed: int, shape: Sequence[int], dtype: DType = DType.F32) -> np.ndarray:
    """Reproducible elements of moderate size."""
    rng = np.random.default_rng(seed)
    if dtype.is_float:
        return rng.standard_normal(tuple(shape)).astype(dtype.numpy)
    return rng.integers(0, 2 if dtype is DType.BOOL else 5, tuple(shape)).astype(dtype.numpy)


Step = Callable[[st.DrawFn, Tensor, list[Tensor]], Tensor]


def _unary(draw: st.DrawFn, t: Tensor, pool: list[Tensor]) -> Tensor:
    op = draw(
        st.sampled_from([ScalarOp.NEG, ScalarOp.ABS, ScalarOp.TANH, ScalarOp.SIGMOID, ScalarOp.EXP])
    )
    return common.elementwise(lambda v: apply(op, common.minimum(v, 3.0)), t)


def _binary(draw: st.DrawFn, t: Tensor, pool: list[Tensor]) -> Tensor:
    fitting = [u for u in pool if u.shape == t.shape] or [t]
    other = draw(st.sampled_from(fitting))
    op = draw(
        st.sampled_from([ScalarOp.ADD, ScalarOp.SUB, ScalarOp.MUL, ScalarOp.MAX, ScalarOp.MIN])
    )
    return common.elementwise(lambda a, b: apply(op, a, b), t, other)


def _broadcast(draw: st.DrawFn, t: Tensor, pool: list[Tensor]) -> Tensor:
    shape = [n if draw(st.booleans()) else 1 for n in t.shape]
    bias = constant(random_array(draw(st.integers(0, 99)), shape, t.dtype))
    return common.elementwise(lambda a, b: a + b, t, bias)


def _reduce(draw: st.DrawFn, t: Tensor, pool: list[Tensor]) -> Tensor:
    axis = draw(st.integers(0, t.rank - 1))
    op = draw(st.sampled_from([ScalarOp.ADD, ScalarOp.MAX]))
    if t.rank == 1 or draw(st.booleans()):
        return common.elementwise(lambda a, b: a - b, t, common.reduce(op, t, [axis], True))
    return common.reduce(op, t, [axis], False)


def _softmax(draw: st.DrawFn, t: Tensor, pool: list[Tensor]) -> Tensor:
    axis = draw(st.integers(0, t.rank - 1))
    top = common.reduce(ScalarOp.MAX, t, [axis], True)
    e = common.elementwise(lambda a, b: apply(ScalarOp.EXP, a - b), t, top)
    return common.elementwise(lambda a, b: a / b, e, common.reduce(ScalarOp.ADD, e, [axis], True))


def _normalize(draw: st.DrawFn, t: Tensor, pool: list[Tensor]) -> Tensor:
    axis = draw(st.integers(0, t.rank - 1))
    n = t.shape[axis]
    mean = common.elementwise(lambda s: s / n, common.reduce(ScalarOp.ADD, t, [axis], True))
    centred = common.elementwise(lambda a, b: a - b, t, mean)
    square = common.elementwise(lambda a: a * a, centred)
    variance = common.elementwise(
        lambda s: s / n, common.reduce(ScalarOp.ADD, square, [axis], True)
    )
    return common.elementwise(lambda a, v: a / apply(ScalarOp.SQRT, v + 0.01), centred, variance)


def _transpose(draw: st.DrawFn, t: Tensor, pool: list[Tensor]) -> Tensor:
    perm = draw(st.permutations(range(t.rank)))
    return common.view(
        t, [t.shape[p] for p in perm], lambda *i: [i[perm.index(k)] for k in range(t.rank)]
    )


def _reshape(draw: st.DrawFn, t: Tensor, pool: list[Tensor]) -> Tensor:
    if t.rank < 2:
        return common.reshape_to(t, (1, *t.shape))
    k = draw(st.integers(0, t.rank - 2))
    return common.reshape_to(t, (*t.shape[:k], t.shape[k] * t.shape[k + 1], *t.shape[k + 2 :]))


def _flip_or_slice(draw: st.DrawFn, t: Tensor, pool: list[Tensor]) -> Tensor:
    axis = draw(st.integers(0, t.rank - 1))
    n = t.shape[axis]
    if draw(st.booleans()):
        return common.view(
            t, t.shape, lambda *i: [n - 1 - v if k == axis else v for k, v in enumerate(i)]
        )
    shape = [max(1, n - 1) if k == axis else m for k, m in enumerate(t.shape)]
    shift = n - shape[axis]
    return common.view(
        t, shape, lambda *i: [v + shift if k == axis else v for k, v in enumerate(i)]
    )


def _pad(draw: st.DrawFn, t: Tensor, pool: list[Tensor]) -> Tensor:
    axis = draw(st.integers(0, t.rank - 1))
    before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    n = t.shape[axis]
    shape = [m + before + after if k == axis else m for k, m in enumerate(t.shape)]

    def element(*i: Expr) -> Expr:
        at = i[axis] - before
        return common.select(
            common.inside(at, n), t[[at if k == axis else v for k, v in enumerate(i)]], 0.5
        )

    return compute(shape, element)


def _matmul(draw: st.DrawFn, t: Tensor, pool: list[Tensor]) -> Tensor:
    if t.rank < 2:
        return t
    n = draw(st.sampled_from([1, 4, 9, 17, 33]))
    w = constant(random_array(draw(st.integers(0, 99)), (t.shape[-1], n), t.dtype))
    r = t.rank
    return compute(
        (*t.shape[:-1], n),
        lambda *i: t[[*i[: r - 1], i[r]]] * w[i[r], i[r - 1]],
        reduce=ScalarOp.ADD,
        over=[t.shape[-1]],
    )


def _convolution(draw: st.DrawFn, t: Tensor, pool: list[Tensor]) -> Tensor:
    x = t if t.rank == 4 else common.reshape_to(t, (1, t.shape[0], 1, t.size // t.shape[0]))
    oc, size, pad, stride = (draw(st.sampled_from(v)) for v in ([4, 9, 17], [1, 3], [0, 1], [1, 2]))
    (batch, channels, height, width), pad = x.shape, pad if size == 3 else 0
    if min(height, width) + 2 * pad < size:
        size = 1
    w = constant(random_array(draw(st.integers(0, 99)), (oc, channels, size, size), t.dtype))
    out = [(n + 2 * pad - size) // stride + 1 for n in (height, width)]

    def element(n: Expr, o: Expr, h: Expr, v: Expr, c: Expr, kh: Expr, kw: Expr) -> Expr:
        ih, iw = h * stride + kh - pad, v * stride + kw - pad
        value = x[n, c, ih, iw]
        guarded = (
            common.select(common.inside(ih, height) & common.inside(iw, width), value, 0.0)
            if pad
            else value
        )
        return guarded * w[o, c, kh, kw]

    return compute(
        (batch, oc, *out),
        element,
        reduce=ScalarOp.ADD,
        over=[channels, size, size],
        channels_last=True,
    )


STEPS: tuple[Step, ...] = (
    _unary,
    _binary,
    _broadcast,
    _reduce,
    _softmax,
    _normalize,
    _transpose,
    _reshape,
    _flip_or_slice,
    _pad,
    _matmul,
    _convolution,
)


@st.composite
def programs(draw: st.DrawFn, max_steps: int = 6, dtype: DType = DType.F32) -> Program:
    """A random program over two inputs of one shape; every value may be read again later."""
    shape = draw(shapes(1, 4))
    inputs = tuple(placeholder(shape, dtype) for _ in range(2))
    pool: list[Tensor] = list(inputs)
    t: Tensor = inputs[0]
    for _ in range(draw(st.integers(1, max_steps))):
        if t.rank == 0 or t.size > 20_000:
            break
        t = draw(st.sampled_from(STEPS))(draw, t, pool)
        pool.append(t)
    outputs: tuple[Tensor, ...] = (
        (t,) if t not in inputs else (common.elementwise(lambda v: v + 1.0, t),)
    )
    if draw(st.booleans()):
        outputs = (*outputs, *(p for p in pool[-2:-1] if p not in inputs))
    seed = draw(st.integers(0, 999))
    return Program(
        inputs,
        outputs,
        {p.name: random_array(seed + k, shape, dtype) for k, p in enumerate(inputs)},
    )
