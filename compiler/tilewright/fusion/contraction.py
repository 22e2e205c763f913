"""Recognising sums of products: matmul, convolution, attention products, whatever operator they
came from.

A contraction is a sum over products of two loads. `a` is read element by element and broadcast,
`b` by vectors
along the column axis from packed panels; rows are the output axis of the tile that only `a`
follows.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.dtypes import DType
from tilewright.loops.affine import Linear, linear
from tilewright.loops.ir import (
    Apply,
    Cast,
    Const,
    Expr,
    Load,
    Select,
    dtype_of,
    strides_of,
    variables,
)
from tilewright.loops.microtile import QUAD
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.tensor import Compute, Constant

BYTES = (DType.U8, DType.I8)  # in this order for the processor's instructions
MIN_COLUMNS = 4
MIN_PACKED_COLUMNS = 2  # of constants: most lanes idle, but plain loops would run on one
MIN_REUSE = 4  # rows that must share a panel for packing it on the way to pay
MIN_WORK = 256  # multiplications below which plain loops do as well


@dataclass(frozen=True)
class Operand:
    """A load and the conditions under which it counts; where one fails, the factor is zero."""

    load: Load
    guards: tuple[Expr, ...] = ()

    @property
    def axes(self) -> frozenset[str]:
        inner = (variables(e) for e in (*self.load.index, *self.guards))
        return frozenset().union(*inner)


@dataclass(frozen=True)
class Contraction:
    """sum over `depth` of a * b. `rows` is None where the tile has a single row."""

    a: Operand
    b: Operand
    rows: str | None
    columns: str
    depth: tuple[str, ...]

    @property
    def of_bytes(self) -> bool:
        """Whether unsigned bytes are multiplied by signed ones."""
        return self.b.load.buffer.dtype is DType.I8

    @property
    def panel_width(self) -> int:
        """The columns of a panel, once b is packed."""
        return self.b.load.buffer.shape[-2 if self.of_bytes else -1]


def find_contraction(t: Compute) -> Contraction | None:
    """The contraction that t is, if register tiles can compute it."""
    if (
        t.reduction is None
        or t.reduction.op is not ScalarOp.ADD
        or t.dtype.compute not in (DType.F32, DType.F64, DType.I32)
    ):
        return None
    match t.body:
        case Apply(op=ScalarOp.MUL, args=(x, y)):
            left, right = operand(x), operand(y)
        case _:
            return None
    if left is None or right is None:
        return None
    candidates = ((left, right), (right, left))
    if isinstance(left.load.buffer, Constant) and not isinstance(right.load.buffer, Constant):
        candidates = candidates[::-1]
    return next((c for a, b in candidates if (c := _arrange(t, a, b)) is not None), None)


def operand(e: Expr) -> Operand | None:
    """A factor as a load, possibly guarded by a Select whose other side is zero."""
    match e:
        case Load():
            return Operand(e)
        case Cast(dtype=DType.I32, arg=Load() as load) if load.buffer.dtype in (DType.U8, DType.I8):
            return Operand(load)
        case Cast(dtype=DType.F32, arg=Load() as load) if load.buffer.dtype.compute is DType.F32:
            return Operand(load)  # a half, widened as it is packed
        case Select(condition=c, then=then, otherwise=Const(value=0 | 0.0)):
            inner = operand(then)
            return inner and Operand(inner.load, (*_conjuncts(c), *inner.guards))
    return None


def _conjuncts(e: Expr) -> tuple[Expr, ...]:
    match e:
        case Apply(op=ScalarOp.AND, args=(a, b)):
            return (*_conjuncts(a), *_conjuncts(b))
    return (e,)


def _arrange(t: Compute, a: Operand, b: Operand) -> Contraction | None:
    assert t.reduction is not None
    extents = dict(zip(t.axes, t.shape, strict=True))
    columns = max(
        (x for x in t.axes if x in b.axes - a.axes), key=lambda x: extents[x], default=None
    )
    least = MIN_PACKED_COLUMNS if isinstance(b.load.buffer, Constant) else MIN_COLUMNS
    if columns is None or extents[columns] < least or not _types_fit(t, a, b):
        return None
    if t.size * _depth_size(t) < MIN_WORK or _depth_size(t) < 2:
        return None
    free = [x for x in t.axes if x in a.axes - b.axes]
    rows = max(free, key=lambda x: (extents[x] > 1, x == free[-1], extents[x]), default=None)
    if not isinstance(b.load.buffer, Constant) and (rows is None or extents[rows] < MIN_REUSE):
        return None
    depth = _depth_order(t, a)
    if depth is None or (rows and not _steps_evenly(t, a, rows)):
        return None
    if t.dtype is DType.I32 and not _in_quads(t, a, b, depth[-1]):
        return None
    return Contraction(a, b, rows if rows and extents[rows] > 1 else None, columns, depth)


def _types_fit(t: Compute, a: Operand, b: Operand) -> bool:
    if t.dtype is DType.I32:
        kinds = dtype_of(a.load), dtype_of(b.load)
        return set(kinds) <= set(BYTES) if t.lines else kinds == BYTES
    return dtype_of(a.load) is t.dtype and b.load.buffer.dtype.compute is t.dtype.compute


def _in_quads(t: Compute, a: Operand, b: Operand, innermost: str) -> bool:
    """Whether bytes can be read four at a time."""
    assert t.reduction is not None
    if dict(t.reduction.axes)[innermost] % QUAD or (a.guards and not t.lines):
        return False
    along = (a, b) if t.lines else (a,)
    return all(address(t, o.load).coefficient(innermost) == 1 for o in along)


def _depth_size(t: Compute) -> int:
    assert t.reduction is not None
    total = 1
    for _, n in t.reduction.axes:
        total *= n
    return total


def address(t: Compute, load: Load) -> Linear:
    """The element offset of a load as a linear form over the axes of t."""
    assert t.reduction is not None
    extents = [*zip(t.axes, t.shape, strict=True), *t.reduction.axes]
    ranges = {x: (0.0, float(n) - 1) for x, n in extents}
    total: Expr = Const(0, DType.I64)
    for i, s in zip(load.index, strides_of(load.buffer), strict=True):
        total = total + i * s
    return linear(total, ranges)


def _steps_evenly(t: Compute, a: Operand, rows: str) -> bool:
    return rows not in address(t, a.load).nonlinear_axes()


def _depth_order(t: Compute, a: Operand) -> tuple[str, ...] | None:
    """Summed axes, those in guards outermost, then those of one step, then by falling stride; None
    if a stride is not fixed."""
    assert t.reduction is not None
    form = address(t, a.load)
    names = [x for x, _ in t.reduction.axes]
    guarded = frozenset().union(*(variables(g) for g in a.guards)) if a.guards else frozenset()
    inner = [x for x in names if x not in guarded]
    if not inner or any(x in form.nonlinear_axes() for x in names):
        return None
    extents = dict(t.reduction.axes)
    inner.sort(key=lambda x: (extents[x] > 1, -abs(form.coefficient(x))))
    return (*[x for x in names if x in guarded], *inner)


def ranges_of(t: Compute) -> dict[str, tuple[float, float]]:
    """The range of every axis of a compute."""
    extents = list(zip(t.axes, t.shape, strict=True)) + list(
        t.reduction.axes if t.reduction else ()
    )
    return {a: (0.0, float(n) - 1) for a, n in extents}
