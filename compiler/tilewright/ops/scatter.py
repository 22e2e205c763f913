"""Writing at places that come from data. Every such index is checked: a bad one is an error.

The loops are written by hand: several updates may meet in one element, so they must not run at the
same time. What is independent of the updates' places runs in parallel: another dimension of
ScatterElements, the rows that ScatterND writes to if the updates are few.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from tilewright.dtypes import DType
from tilewright.loops.ir import (
    Accumulate,
    Block,
    Expr,
    For,
    If,
    LoopKind,
    Stmt,
    Store,
    Var,
    apply,
    index_const,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, checked_index, fail, inside, normalize_axis, select
from tilewright.ops.registry import op
from tilewright.ops.tensor import NestOutput, Tensor, compute, fresh_axis, nest

_REDUCTIONS = {
    "add": ScalarOp.ADD,
    "mul": ScalarOp.MUL,
    "min": ScalarOp.MIN,
    "max": ScalarOp.MAX,
}
_BOOLEAN = {
    ScalarOp.ADD: ScalarOp.OR,
    ScalarOp.MUL: ScalarOp.AND,
    ScalarOp.MIN: ScalarOp.AND,
    ScalarOp.MAX: ScalarOp.OR,
}
_ANYWHERE = 1 << 62  # the extent for an index that wraps around anyway

Place = Callable[[tuple[Expr, ...]], Stmt]


@op("ScatterElements")
def scatter_elements(
    x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """A copy of x in which element i of the updates went to i with indices[i] along `axis`."""
    at = normalize_axis(axis, x.rank)
    _require_elements(x, indices, updates, at)
    write = _writer(reduction, x.dtype)
    split = _parallel_dimension(x.shape, at)

    def body(out: NestOutput) -> Stmt:
        def update(i: tuple[Expr, ...]) -> Stmt:
            where = checked_index(indices[i], x.shape[at])
            place = tuple(where if k == at else v for k, v in enumerate(i))
            return write(out, place, updates[i])

        def copy(i: tuple[Expr, ...]) -> Stmt:
            return Store(out, i, x[i])

        if split is None:
            return Block((_loops(x.shape, copy), _loops(indices.shape, update)))
        task = Var(fresh_axis("task"))
        scatter = _loops(indices.shape, update, {split: task})
        if indices.shape[split] < x.shape[split]:
            scatter = If(task < indices.shape[split], scatter)
        whole = Block((_loops(x.shape, copy, {split: task}), scatter))
        return For(task.name, index_const(x.shape[split]), whole, LoopKind.PARALLEL)

    return nest([(x.shape, x.dtype)], body)[0] if indices.size else x


@op("Scatter")
def scatter(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0) -> Tensor:
    """The older name of ScatterElements."""
    return scatter_elements(x, indices, updates, axis=axis)


@op("ScatterND")
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """A copy of x in which slice i of the updates went to the slice x[indices[i]]."""
    depth = indices.shape[-1]
    lead = indices.shape[:-1]
    if depth > x.rank or updates.shape != (*lead, *x.shape[depth:]):
        raise fail(f"updates of shape {updates.shape} do not fit indices of {indices.shape}")
    if updates.size == 0:
        return x
    write = _writer(reduction, x.dtype)

    def place(i: tuple[Expr, ...]) -> list[Expr]:
        return [checked_index(indices[(*i, index_const(k))], x.shape[k]) for k in range(depth)]

    def body(out: NestOutput) -> Stmt:
        def update(i: tuple[Expr, ...]) -> Stmt:
            at = (*place(i[: len(lead)]), *i[len(lead) :])
            return write(out, at, updates[i])

        def copy(i: tuple[Expr, ...]) -> Stmt:
            return Store(out, i, x[i])

        if depth == 0 or prod(lead) > prod(x.shape[1:]) or x.shape[0] == 1:
            return Block((_loops(x.shape, copy), _loops(updates.shape, update)))
        task = Var(fresh_axis("task"))

        def own_update(i: tuple[Expr, ...]) -> Stmt:
            first, *others = place(i)
            rest = _loops(
                x.shape[depth:], lambda j: write(out, (task, *others, *j), updates[(*i, *j)])
            )
            return If(first.eq(task), rest)

        whole = Block((_loops(x.shape, copy, {0: task}), _loops(lead, own_update)))
        return For(task.name, index_const(x.shape[0]), whole, LoopKind.PARALLEL)

    return nest([(x.shape, x.dtype)], body)[0]


@op("TensorScatter")
def tensor_scatter(
    past: Tensor,
    update: Tensor,
    write_indices: Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Tensor:
    """A cache in which the updates of each sample stand from its write index on."""
    at = normalize_axis(axis, past.rank)
    n, count = past.shape[at], update.shape[at]
    expected = tuple(count if k == at else m for k, m in enumerate(past.shape))
    if at == 0 or update.shape != expected or count > n or mode not in ("linear", "circular"):
        raise fail(f"an update of shape {update.shape} does not fit {past.shape} ({mode})")
    if write_indices is not None and write_indices.shape != past.shape[:1]:
        raise fail(f"write indices of shape {write_indices.shape} for {past.shape[0]} samples")

    def distance(i: tuple[Expr, ...]) -> Expr:
        """How far the position is behind the sample's write index."""
        if write_indices is None:
            return i[at]
        start = cast(DType.I64, write_indices[i[0]])
        if mode == "linear":
            return i[at] - apply(ScalarOp.CHECK, start, n - count + 1)
        return (i[at] + n - apply(ScalarOp.CHECK, start, _ANYWHERE) % n) % n

    def element(*i: Expr) -> Expr:
        behind = distance(i)
        new = update[tuple(behind if k == at else v for k, v in enumerate(i))]
        return select(inside(behind, count), new, past[i])

    return compute(past.shape, element)


def _require_elements(x: Tensor, indices: Tensor, updates: Tensor, axis: int) -> None:
    fits = indices.rank == x.rank and all(
        k == axis or m <= n for k, (m, n) in enumerate(zip(indices.shape, x.shape, strict=False))
    )
    if x.rank == 0 or not fits or updates.shape != indices.shape:
        raise fail(
            f"indices of shape {indices.shape} and updates of {updates.shape} do not fit {x.shape}"
        )


def _parallel_dimension(shape: Sequence[int], axis: int) -> int | None:
    """The dimension to cut into tasks: the largest but `axis` and the last, whose elements lie
    side by side.
    """
    choices = [k for k in range(len(shape) - 1) if k != axis and shape[k] > 1]
    return max(choices, key=lambda k: shape[k], default=None)


def _writer(reduction: str, dtype: DType) -> Callable[[Tensor, Sequence[Expr], Expr], Stmt]:
    """The statement that puts an update into an element."""
    if reduction == "none":
        return lambda out, place, value: Store(out, tuple(place), value)
    if reduction not in _REDUCTIONS:
        raise fail(f"{reduction!r} is no reduction")
    chosen = _REDUCTIONS[reduction]
    combine = _BOOLEAN[chosen] if dtype is DType.BOOL else chosen
    return lambda out, place, value: Accumulate(out, tuple(place), combine, value)


def _loops(extents: Sequence[int], body: Place, fixed: dict[int, Expr] | None = None) -> Stmt:
    """Loops over an index of these extents, outermost first; `fixed` dimensions have a value."""
    given = fixed or {}
    index = tuple(given.get(k) or Var(fresh_axis()) for k in range(len(extents)))
    statement = body(index)
    for k in reversed(range(len(extents))):
        axis = index[k]
        if k not in given and isinstance(axis, Var):
            statement = For(axis.name, index_const(extents[k]), statement)
    return statement
