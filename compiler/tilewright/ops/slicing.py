"""Parts of tensors, and tensors made of parts: Slice, Split, Concat.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod

from tilewright.loops.ir import Block, Expr, For, LoopKind, Operand, Stmt, Store, Var, index_const
from tilewright.ops.common import fail, normalize_axis, select, view
from tilewright.ops.registry import op
from tilewright.ops.tensor import NestOutput, Tensor, compute, fresh_axis, known_ints, nest

SELECT_LIMIT = 4  # operands that Concat chooses between; more are copied one after the other
SMALL = 64  # elements of a result that is chosen from any number of operands


@op("Slice")
def slice_(
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first, last = known_ints(starts), known_ints(ends)
    dims = known_ints(axes) if axes is not None else list(range(len(first)))
    strides = known_ints(steps) if steps is not None else [1] * len(first)
    if not len(first) == len(last) == len(dims) == len(strides) or 0 in strides:
        raise fail(f"starts {first}, ends {last}, axes {dims} and steps {strides} do not fit")
    ranges = [range(n) for n in x.shape]
    for a, b, d, s in zip(first, last, dims, strides, strict=True):
        axis = normalize_axis(d, x.rank)
        ranges[axis] = _range(a, b, s, x.shape[axis])
    return _moved(x, ranges)


def _range(start: int, end: int, step: int, extent: int) -> range:
    """The indices that a slice takes; unlike Python's, it starts at the first element if it would
    start before it going down.
    """
    a, b = (v + extent if v < 0 else v for v in (start, end))
    if step > 0:
        return range(min(max(a, 0), extent), min(max(b, 0), extent), step)
    return range(min(max(a, 0), extent - 1), min(max(b, -1), extent - 1), step)


def _moved(x: Tensor, ranges: Sequence[range]) -> Tensor:
    """The elements of x at these indices."""
    shape = tuple(map(len, ranges))
    if all(r == range(n) for r, n in zip(ranges, x.shape, strict=True)):
        return x
    if not prod(shape):
        return compute(shape, lambda *i: 0, dtype=x.dtype)
    return view(x, shape, lambda *i: [_step(v, r) for v, r in zip(i, ranges, strict=True)])


def _step(i: Expr, r: range) -> Expr:
    if len(r) == 1:
        return index_const(r.start)
    scaled: Expr = i if r.step == 1 else i * r.step
    return scaled if r.start == 0 else scaled + r.start


def window(x: Tensor, axis: int, start: int, length: int) -> Tensor:
    """`length` elements of an axis, from `start` on."""
    ranges = [range(n) for n in x.shape]
    ranges[axis] = range(start, start + length)
    return _moved(x, ranges)


@op("Split")
def split(
    x: Tensor,
    sizes: Tensor | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    at = normalize_axis(axis, x.rank)
    n = x.shape[at]
    if sizes is not None:
        lengths = known_ints(sizes)
    else:
        count = num_outputs or outputs
        step = -(-n // count)
        lengths = [min(step, n - k * step) for k in range(count)]
    if sum(lengths) != n or min(lengths, default=0) < 0 or len(lengths) < outputs:
        raise fail(f"{n} elements cannot be split into {outputs} parts of {lengths}")
    starts = accumulate(lengths, initial=0)
    return tuple(window(x, at, a, s) for a, s in zip(starts, lengths))


@op("Concat")
def concat(*parts: Tensor, axis: int) -> Tensor:
    if not parts or parts[0].rank == 0:
        raise fail("Concat needs operands of rank 1 or more")
    at = normalize_axis(axis, parts[0].rank)
    other = [(p.dtype, *p.shape[:at], -1, *p.shape[at + 1 :]) for p in parts]
    if len(set(other)) != 1:
        raise fail(f"shapes {[p.shape for p in parts]} cannot be joined along axis {at}")
    kept = [p for p in parts if p.shape[at]]
    if len(kept) <= 1:
        return kept[0] if kept else parts[0]
    starts = list(accumulate((p.shape[at] for p in kept), initial=0))
    shape = (*kept[0].shape[:at], starts[-1], *kept[0].shape[at + 1 :])
    if len(kept) <= SELECT_LIMIT or prod(shape) <= SMALL:
        return _choose(kept, starts, shape, at)
    return nest([(shape, kept[0].dtype)], lambda out: _copy_all(kept, starts, out, at))[0]


def _choose(
    parts: Sequence[Tensor], starts: Sequence[int], shape: Sequence[int], axis: int
) -> Tensor:
    """Each element from the operand that its index falls into."""

    def element(*i: Expr) -> Operand:
        def read(k: int) -> Expr:
            return parts[k][[v - starts[k] if d == axis and k else v for d, v in enumerate(i)]]

        value = read(len(parts) - 1)
        for k in range(len(parts) - 2, -1, -1):
            value = select(i[axis] < starts[k + 1], read(k), value)
        return value

    return compute(shape, element)


def _copy_all(parts: Sequence[Tensor], starts: Sequence[int], out: NestOutput, axis: int) -> Stmt:
    """A copy of one operand after the other, in tasks along another dimension than the last."""
    shared = [k for k in range(out.rank - 1) if k != axis and out.shape[k] > 1]
    index = [Var(fresh_axis()) for _ in out.shape]
    task = max(shared, key=lambda k: out.shape[k], default=None)
    copies = [
        _copy(p, out, index, axis, start, task) for p, start in zip(parts, starts, strict=False)
    ]
    whole = Block(tuple(copies))
    if task is None:
        return whole
    return For(index[task].name, index_const(out.shape[task]), whole, LoopKind.PARALLEL)


def _copy(
    part: Tensor, out: NestOutput, index: Sequence[Var], axis: int, start: int, task: int | None
) -> Stmt:
    """Loops over all dimensions but `task`, which has its loop around all copies."""
    place = [v + start if k == axis and start else v for k, v in enumerate(index)]
    statement: Stmt = Store(out, tuple(place), part[index])
    for k in reversed(range(part.rank)):
        if k != task:
            statement = For(index[k].name, index_const(part.shape[k]), statement)
    return statement
