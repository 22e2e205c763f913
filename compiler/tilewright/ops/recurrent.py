"""LSTM, GRU and RNN."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.loops.ir import (
    Block,
    Buffer,
    Expr,
    For,
    Load,
    Stmt,
    Store,
    Var,
    as_expr,
    index_const,
)
from tilewright.ops.common import cast
from tilewright.ops.recurrence import (
    Recurrence,
    Row,
    Task,
    allocated,
    elements,
    load_state,
    parallel_tasks,
    recurrence,
    require,
    store_state,
    while_valid,
)
from tilewright.ops.registry import op
from tilewright.ops.tensor import Tensor, compute, fresh_axis, nest


@op("RNN")
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """H = f(X Wi + H Ri + bias), step by step. https://onnx.ai/onnx/operators/onnx__RNN.html"""
    rec = recurrence(
        x,
        w,
        r,
        b,
        sequence_lens,
        initial_h,
        gates=1,
        defaults=["Tanh"],
        activations=activations,
        activation_alpha=activation_alpha,
        activation_beta=activation_beta,
        clip=clip,
        direction=direction,
        hidden_size=hidden_size,
        layout=layout,
    )

    def body(y: Tensor, y_h: Tensor) -> Stmt:
        def run(task: Task) -> Stmt:
            h, gates = task.buffer("h", rec.hidden), task.buffer("gates", rec.hidden)

            def update(row: Row) -> Stmt:
                def each(j: Expr) -> Stmt:
                    value = row.function(0, Load(gates, (row.local, j)))
                    return _emit(row, j, h, y, value)

                return while_valid(row, y, elements(rec.hidden, each))

            def step(t: Expr) -> list[Stmt]:
                return [*_gates(task, t, gates, h), task.each_row(t, update)]

            steps = [
                load_state(task, h, initial_h),
                _over_time(rec, step),
                store_state(task, h, y_h),
            ]
            return allocated([h, gates], Block(tuple(steps)))

        return parallel_tasks(rec, 2 * rec.hidden, run)

    return _results(rec, "RNN", [initial_h], body)


@op("LSTM")
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """Long short-term memory: gates i, o, f and the candidate c, with peepholes from the cell.

    https://onnx.ai/onnx/operators/onnx__LSTM.html
    """
    rec = recurrence(
        x,
        w,
        r,
        b,
        sequence_lens,
        initial_h,
        gates=4,
        defaults=["Sigmoid", "Tanh", "Tanh"],
        activations=activations,
        activation_alpha=activation_alpha,
        activation_beta=activation_beta,
        clip=clip,
        direction=direction,
        hidden_size=hidden_size,
        layout=layout,
    )
    require("P", p, (rec.directions, 3 * rec.hidden))
    require("initial_c", initial_c, rec.shapes[1])

    def body(y: Tensor, y_h: Tensor, y_c: Tensor) -> Stmt:
        def run(task: Task) -> Stmt:
            h, c = task.buffer("h", rec.hidden), task.buffer("c", rec.hidden)
            gates = task.buffer("gates", rec.width)

            def update(row: Row) -> Stmt:
                def each(j: Expr) -> Stmt:
                    return _lstm_cell(row, j, h, c, gates, y, p, bool(input_forget))

                return while_valid(row, y, elements(rec.hidden, each))

            def step(t: Expr) -> list[Stmt]:
                return [*_gates(task, t, gates, h), task.each_row(t, update)]

            before = [load_state(task, h, initial_h), load_state(task, c, initial_c)]
            after = [store_state(task, h, y_h), store_state(task, c, y_c)]
            return allocated([h, c, gates], Block((*before, _over_time(rec, step), *after)))

        return parallel_tasks(rec, 2 * rec.hidden + rec.width, run)

    return _results(rec, "LSTM", [initial_h, initial_c], body)


def _lstm_cell(
    row: Row,
    j: Expr,
    h: Buffer,
    c: Buffer,
    gates: Buffer,
    y: Tensor,
    p: Tensor | None,
    coupled: bool,
) -> Stmt:
    """One element of the cell: the new c, then h from it."""
    hidden = row.rec.hidden
    cell = Load(c, (row.local, j))

    def gate(k: int, peephole: int | None) -> Expr:
        value: Expr = Load(gates, (row.local, j + k * hidden if k else j))
        if p is not None and peephole is not None:
            value = value + cast(row.rec.dtype, p[row.direction, j + peephole * hidden]) * cell
        return value

    i = row.function(0, gate(0, 0))
    forget = 1 - i if coupled else row.function(0, gate(2, 2))
    new_cell = Store(c, (row.local, j), forget * cell + i * row.function(1, gate(3, None)))
    output = row.function(0, gate(1, 1)) * row.function(2, cell)
    return Block((new_cell, _emit(row, j, h, y, output)))


@op("GRU")
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Tensor, ...]:
    """Gated recurrent units: update gate z, reset gate r and the candidate h.

    https://onnx.ai/onnx/operators/onnx__GRU.html
    """
    rec = recurrence(
        x,
        w,
        r,
        b,
        sequence_lens,
        initial_h,
        gates=3,
        defaults=["Sigmoid", "Tanh"],
        activations=activations,
        activation_alpha=activation_alpha,
        activation_beta=activation_beta,
        clip=clip,
        direction=direction,
        hidden_size=hidden_size,
        layout=layout,
        add_recurrent_bias=2 * r.shape[-1] if linear_before_reset else None,
    )
    make_step = _reset_after if linear_before_reset else _reset_before

    def body(y: Tensor, y_h: Tensor) -> Stmt:
        def run(task: Task) -> Stmt:
            h, reset = task.buffer("h", rec.hidden), task.buffer("reset", rec.hidden)
            gates = task.buffer("gates", rec.width)
            over_time = _over_time(rec, lambda t: make_step(task, t, gates, h, reset, y))
            steps = [load_state(task, h, initial_h), over_time, store_state(task, h, y_h)]
            scratch = [h, gates] if linear_before_reset else [h, reset, gates]
            return allocated(scratch, Block(tuple(steps)))

        return parallel_tasks(rec, 2 * rec.hidden + rec.width, run)

    return _results(rec, "GRU", [initial_h], body)


def _reset_before(
    task: Task, t: Expr, gates: Buffer, h: Buffer, reset: Buffer, y: Tensor
) -> list[Stmt]:
    """A step of GRU whose reset gate scales the state before the recurrent product."""
    hidden = task.rec.hidden

    def scaled(row: Row, j: Expr) -> Stmt:
        gate = row.function(0, Load(gates, (row.local, j + hidden)))
        return Store(reset, (row.local, j), gate * Load(h, (row.local, j)))

    def candidate(row: Row, j: Expr) -> Expr:
        return Load(gates, (row.local, j + 2 * hidden))

    return [
        task.each(t, 3 * hidden, lambda row, j: Store(gates, (row.local, j), row.product(j))),
        *task.accumulate(gates, h, 0, 2 * hidden),
        task.each(t, hidden, scaled),
        *task.accumulate(gates, reset, 2 * hidden, hidden),
        task.each_row(t, lambda row: _gru_update(row, gates, h, y, candidate)),
    ]


def _reset_after(
    task: Task, t: Expr, gates: Buffer, h: Buffer, reset: Buffer, y: Tensor
) -> list[Stmt]:
    """A step of GRU whose reset gate scales the recurrent product, its bias included."""
    rec, hidden = task.rec, task.rec.hidden

    def start(row: Row, j: Expr) -> Stmt:
        value = as_expr(0, rec.dtype)
        if rec.bias is not None:
            value = cast(rec.dtype, rec.bias[row.direction, j + 5 * hidden])
        return Store(gates, (row.local, j + 2 * hidden), value)

    def candidate(row: Row, j: Expr) -> Expr:
        gate = row.function(0, Load(gates, (row.local, j + hidden)))
        return row.product(j + 2 * hidden) + gate * Load(gates, (row.local, j + 2 * hidden))

    return [
        task.each(t, 2 * hidden, lambda row, j: Store(gates, (row.local, j), row.product(j))),
        task.each(t, hidden, start),
        *task.accumulate(gates, h, 0, 3 * hidden),
        task.each_row(t, lambda row: _gru_update(row, gates, h, y, candidate)),
    ]


def _gru_update(
    row: Row, gates: Buffer, h: Buffer, y: Tensor, candidate: Callable[[Row, Expr], Expr]
) -> Stmt:
    """The new state of a row: between the candidate and the old state, as the update gate says."""

    def each(j: Expr) -> Stmt:
        z = row.function(0, Load(gates, (row.local, j)))
        new = (1 - z) * row.function(1, candidate(row, j)) + z * Load(h, (row.local, j))
        return _emit(row, j, h, y, new)

    return while_valid(row, y, elements(row.rec.hidden, each))


def _emit(row: Row, j: Expr, h: Buffer, y: Tensor, value: Expr) -> Stmt:
    """The new state, also in the result."""
    state = (row.local, j)
    return Block(
        (Store(h, state, value), Store(y, row.result_index(j), cast(y.dtype, Load(h, state))))
    )


def _gates(task: Task, t: Expr, gates: Buffer, h: Buffer) -> list[Stmt]:
    """All gates' inputs: the input's part plus the product of state and recurrent weights."""
    width = task.rec.width
    start = task.each(t, width, lambda row, j: Store(gates, (row.local, j), row.product(j)))
    return [start, *task.accumulate(gates, h, 0, width)]


def _over_time(rec: Recurrence, step: Callable[[Expr], list[Stmt]]) -> Stmt:
    t = Var(fresh_axis("t"))
    return For(t.name, index_const(rec.steps), Block(tuple(step(t))))


def _results(
    rec: Recurrence, name: str, initial: Sequence[Tensor | None], body: Callable[..., Stmt]
) -> tuple[Tensor, ...]:
    """The whole result and the final states; without a step these are the initial ones."""
    whole, state = rec.shapes
    dtype = rec.x.dtype
    if rec.steps == 0 or rec.batch == 0 or rec.hidden == 0:
        zero = [compute(s, lambda *i: 0, dtype=dtype) for s in (whole, *(state for _ in initial))]
        return (
            zero[0],
            *(t if t is not None else z for t, z in zip(initial, zero[1:], strict=True)),
        )
    return nest([(whole, dtype), *((state, dtype) for _ in initial)], body, name)
