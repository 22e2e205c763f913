"""What LSTM, GRU and RNN share: operands in one form, and the loops over directions, batch and
time.

The input products of the whole sequence are one contraction beforehand. A task then runs the
recurrence for one direction and a few batch rows: it shares no state with other tasks, and the rows
share a pass over the recurrent weights. These are packed into panels, once if they are constants:
a step reads them from first to last, as fast as the cache that holds them can deliver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

from tilewright.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.loops.ir import (
    Alloc,
    Block,
    Buffer,
    Expr,
    For,
    If,
    Load,
    LoopKind,
    Space,
    Stmt,
    Store,
    Var,
    as_expr,
    index_const,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, fail, maximum, minimum, reshape_to, select
from tilewright.ops.gate_functions import Function, gate_functions
from tilewright.ops.panels import elements
from tilewright.ops.tensor import Compute, Tensor, compute, fresh_axis

LOCAL_BYTES = 256 << 10
ROWS = 4  # batch rows that share a pass over the recurrent weights: enough work for each load
MORE_ROWS = 8  # where the weights come from a cache that is shared and farther away
NEAR_BYTES = 512 << 10


class FunctionAttributes(TypedDict, total=False):
    """The attributes that choose activation functions, as ONNX names them."""

    activation_alpha: Sequence[float] | None
    activation_beta: Sequence[float] | None
    activations: Sequence[str] | None
    clip: float | None


class RecurrentAttributes(FunctionAttributes, total=False):
    """The attributes that all recurrent operators have."""

    direction: str
    hidden_size: int | None


@dataclass(frozen=True)
class Recurrence:
    """The operands of a recurrent operator in one form, whatever the layout and direction."""

    x: Tensor
    products: Tensor  # [time, batch, direction * width]: the input's part of each gate, with bias
    weights: Tensor  # [direction, width, hidden]
    bias: Tensor | None  # [direction, 2 * width]
    lengths: Tensor | None
    initial: Tensor | None
    functions: tuple[tuple[Function, ...], ...]  # by direction
    steps: int
    batch: int
    hidden: int
    gates: int
    directions: int
    reverse: bool  # the only direction is the reverse one
    layout: int

    @property
    def dtype(self) -> DType:
        """The type that the recurrence is computed in."""
        return self.x.dtype.compute

    @property
    def width(self) -> int:
        return self.gates * self.hidden

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of the whole result and of a final state."""
        t, b, d, h = self.steps, self.batch, self.directions, self.hidden
        return ((b, t, d, h), (b, d, h)) if self.layout else ((t, d, b, h), (d, b, h))


@dataclass(frozen=True)
class Row:
    """Where the loops stand: a direction, a row of the task and of the batch, and a step."""

    rec: Recurrence
    direction: Expr
    local: Expr
    batch: Expr
    step: Expr

    def function(self, which: int, x: Expr) -> Expr:
        """The activation function number `which` of this direction."""
        choices = [f[which](x) for f in self.rec.functions]
        return select(self.direction.eq(0), *choices) if len(choices) == 2 else choices[0]

    @property
    def length(self) -> Expr:
        """How many steps of this row are valid."""
        rec = self.rec
        if rec.lengths is None:
            return index_const(rec.steps)
        return minimum(maximum(cast(DType.I64, rec.lengths[self.batch]), 0), rec.steps)

    @property
    def time(self) -> Expr:
        """The time of this step; steps beyond the row's length have their own number in both
        directions.
        """
        rec = self.rec
        if rec.directions == 1 and not rec.reverse:
            return self.step
        back: Expr = self.length - 1 - self.step
        if rec.lengths is not None:
            back = select(self.step < self.length, maximum(back, 0), self.step)
        return back if rec.directions == 1 else select(self.direction.eq(0), self.step, back)

    def product(self, j: Expr) -> Expr:
        """The input's part of gate element j."""
        column = j if self.rec.directions == 1 else self.direction * self.rec.width + j
        return cast(self.rec.dtype, self.rec.products[self.time, self.batch, column])

    def result_index(self, j: Expr) -> tuple[Expr, ...]:
        """The element of the whole result."""
        if self.rec.layout:
            return (self.batch, self.time, self.direction, j)
        return (self.time, self.direction, self.batch, j)

    def state_index(self, j: Expr) -> tuple[Expr, ...]:
        """The element of an initial or final state."""
        return (
            (self.batch, self.direction, j) if self.rec.layout else (self.direction, self.batch, j)
        )


def recurrence(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    initial: Tensor | None,
    *,
    gates: int,
    defaults: Sequence[str],
    layout: int,
    add_recurrent_bias: int | None = None,
    products: Tensor | None = None,
    rational: bool = False,
    direction: str = "forward",
    hidden_size: int | None = None,
    **functions: Unpack[FunctionAttributes],
) -> Recurrence:
    """Checked operands, with the input products. Of the recurrent bias only the first
    `add_recurrent_bias` elements (None: all) are added to the products; `products` that are given
    are taken as they are. `rational`: see `gate_functions`.
    """
    directions = {"forward": 1, "reverse": 1, "bidirectional": 2}.get(direction)
    if directions is None or x.rank != 3 or r.rank != 3:
        raise fail(f"operands of ranks {x.rank} and {r.rank} (3 expected), direction {direction!r}")
    hidden, width = r.shape[-1], gates * r.shape[-1]
    if hidden_size not in (None, hidden):
        raise fail(f"hidden_size {hidden_size} is not that of the weights, {hidden}")
    _require_weights(w, r, b, (directions, width, x.shape[2]))
    if products is None:
        products = _with_bias(_products(x, w, layout), b, width, add_recurrent_bias)
    made = Recurrence(
        x=x,
        products=products,
        weights=r,
        bias=b,
        lengths=lengths,
        initial=initial,
        functions=_functions(defaults, directions, rational, **functions),
        steps=x.shape[1 if layout else 0],
        batch=x.shape[0 if layout else 1],
        hidden=hidden,
        gates=gates,
        directions=directions,
        reverse=direction == "reverse",
        layout=layout,
    )
    require("sequence_lens", lengths, (made.batch,))
    require("initial state", initial, made.shapes[1])
    return made


def _require_weights(w: Tensor, r: Tensor, b: Tensor | None, shape: tuple[int, int, int]) -> None:
    """An error unless W has this shape, and R and B fit it."""
    directions, width, _ = shape
    require("W", w, shape)
    require("R", r, (directions, width, r.shape[-1]))
    require("B", b, (directions, 2 * width))


def _functions(
    defaults: Sequence[str],
    directions: int,
    rational: bool,
    *,
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float | None = None,
) -> tuple[tuple[Function, ...], ...]:
    """The functions of each direction, or once those of both if they are the same."""
    share = len(defaults)
    names = list(activations or list(defaults) * directions)
    if len(names) != share * directions:
        raise fail(f"{len(names)} activations where {share * directions} are expected")
    functions = gate_functions(names, activation_alpha, activation_beta, clip, rational=rational)
    is_same = names == names[:share] * directions and not activation_alpha and not activation_beta
    groups = 1 if is_same else directions
    return tuple(tuple(functions[k * share : (k + 1) * share]) for k in range(groups))


def require(name: str, t: Tensor | None, shape: tuple[int, ...]) -> None:
    """An error unless the operand is absent or has this shape."""
    if t is not None and t.shape != shape:
        raise fail(f"{name} has shape {t.shape} where {shape} is expected")


def _products(x: Tensor, w: Tensor, layout: int) -> Compute:
    """x @ w.T for all directions side by side: [time, batch, direction * width]."""
    directions, width, depth = w.shape
    rows = (x.shape[1], x.shape[0]) if layout else (x.shape[0], x.shape[1])
    flat = w if directions == 1 else reshape_to(w, (directions * width, depth))

    def element(t: Expr, n: Expr, j: Expr, k: Expr) -> Expr:
        return (x[n, t, k] if layout else x[t, n, k]) * (
            flat[0, j, k] if directions == 1 else flat[j, k]
        )

    return compute((*rows, directions * width), element, reduce=ScalarOp.ADD, over=[depth])


def _with_bias(products: Compute, b: Tensor | None, width: int, recurrent: int | None) -> Compute:
    """The products plus the input's bias, and the first elements of the recurrent one."""
    if b is None:
        return products

    def both(column: Expr) -> Expr:
        d, j = (index_const(0), column) if b.shape[0] == 1 else (column // width, column % width)
        total = b[d, j] + b[d, j + width]
        return total if recurrent is None else select(j < recurrent, total, b[d, j])

    bias = compute((products.shape[-1],), both)
    return compute(products.shape, lambda t, n, j: products[t, n, j] + bias[j])


@dataclass(frozen=True)
class Task:
    """What one task works on: a direction and `rows` consecutive batch rows."""

    rec: Recurrence
    rows: int
    direction: Expr
    first: Expr

    def each_row(self, step: Expr, body: Callable[[Row], Stmt]) -> Stmt:
        """A loop over the task's rows; the last task may have fewer."""
        batch, local = self.rec.batch, Var(fresh_axis("row"))
        count: Expr = index_const(self.rows)
        if batch % self.rows:
            count = minimum(count, batch - self.first * self.rows)
        row = Row(self.rec, self.direction, local, self.first * self.rows + local, step)
        return For(local.name, count, body(row))

    def each(self, step: Expr, extent: int, body: Callable[[Row, Expr], Stmt]) -> Stmt:
        """A loop over the task's rows, and one over `extent` elements of each."""
        return self.each_row(step, lambda row: elements(extent, lambda j: body(row, j)))

    def buffer(self, name: str, width: int, dtype: DType) -> Buffer:
        """Scratch for all rows of the task."""
        return Buffer(fresh_axis(name), dtype, (self.rows, width), space=Space.LOCAL)


def parallel_tasks(rec: Recurrence, row_bytes: int, body: Callable[[Task], Stmt]) -> Stmt:
    """One task for each direction and group of batch rows; a row needs `row_bytes` of scratch."""
    if row_bytes > LOCAL_BYTES:
        raise UnsupportedError(
            f"a hidden state of {rec.hidden} elements is too big for a task's scratch"
        )
    is_near = rec.weights.size * rec.weights.dtype.itemsize <= NEAR_BYTES * rec.directions
    # Rows of a quantised state share its range: small batches as a whole, as in ONNX Runtime.
    few = is_near and rec.weights.dtype.is_float
    most = min(ROWS if few else MORE_ROWS, LOCAL_BYTES // row_bytes)
    groups = -(-rec.batch // most)
    rows = -(-rec.batch // groups)
    groups = -(-rec.batch // rows)
    task = Var(fresh_axis("task"))
    direction: Expr = (
        index_const(0) if rec.directions == 1 else task // groups if groups > 1 else task
    )
    first: Expr = index_const(0) if groups == 1 else task % groups if rec.directions > 1 else task
    return For(
        task.name,
        index_const(groups * rec.directions),
        body(Task(rec, rows, direction, first)),
        LoopKind.PARALLEL,
    )


def allocated(buffers: Sequence[Buffer], body: Stmt) -> Stmt:
    """The body with scratch buffers."""
    for b in reversed(buffers):
        body = Alloc(b, body)
    return body


def load_state(task: Task, state: Buffer, initial: Tensor | None) -> Stmt:
    """The state before the first step: given, or zero. Rows beyond the batch get its last row's."""
    rec, local, j = task.rec, Var(fresh_axis("row")), Var(fresh_axis("j"))
    batch: Expr = task.first * task.rows + local
    if rec.batch % task.rows:
        batch = minimum(batch, rec.batch - 1)
    value: Expr = as_expr(0, state.dtype)
    if initial is not None:
        row = Row(rec, task.direction, local, batch, index_const(0))
        value = cast(state.dtype, initial[row.state_index(j)])
    fill = For(j.name, index_const(rec.hidden), Store(state, (local, j), value))
    return For(local.name, index_const(task.rows), fill)


def store_state(task: Task, state: Buffer, final: Tensor) -> Stmt:
    """The state after the last step."""

    def body(row: Row, j: Expr) -> Stmt:
        return Store(final, row.state_index(j), cast(final.dtype, Load(state, (row.local, j))))

    return task.each(index_const(0), task.rec.hidden, body)


def while_valid(row: Row, y: Tensor, update: Stmt) -> Stmt:
    """The update, if the row's sequence has this step; otherwise zeros in the result."""
    if row.rec.lengths is None:
        return update
    zero = elements(row.rec.hidden, lambda j: Store(y, row.result_index(j), as_expr(0, y.dtype)))
    return Block((If(row.step < row.length, update), If(row.step >= row.length, zero)))
