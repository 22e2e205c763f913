"""LSTM, GRU and RNN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Unpack

from tilewright.loops.ir import (
    Block,
    Buffer,
    Expr,
    For,
    Load,
    Stmt,
    Store,
    Var,
    index_const,
)
from tilewright.ops.common import cast
from tilewright.ops.panels import elements, padded
from tilewright.ops.recurrence import (
    Recurrence,
    RecurrentAttributes,
    Row,
    Task,
    allocated,
    load_state,
    parallel_tasks,
    recurrence,
    require,
    store_state,
    while_valid,
)
from tilewright.ops.registry import op
from tilewright.ops.state_products import PlainProduct, Scratch, StateProduct, multiply
from tilewright.ops.tensor import Tensor, compute, fresh_axis, nest

Step = Callable[[Task, Expr, Tensor, Sequence[Buffer]], list[Stmt]]
"""The statements of a step: of a task, at a time, with the whole result and the buffers."""


@op("RNN")
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    layout: int = 0,
    **attributes: Unpack[RecurrentAttributes],
) -> tuple[Tensor, ...]:
    """H = f(X Wi + H Ri + bias), step by step. https://onnx.ai/onnx/operators/onnx__RNN.html"""
    rec = recurrence(
        *(x, w, r, b, sequence_lens, initial_h),
        gates=1,
        defaults=["Tanh"],
        layout=layout,
        **attributes,
    )

    product = PlainProduct(rec)

    def step(task: Task, t: Expr, y: Tensor, buffers: Sequence[Buffer]) -> list[Stmt]:
        h, *scratch = buffers

        def update(row: Row, j: Expr) -> Stmt:
            return _emit(row, j, h, y, row.function(0, product.gate(row, j, scratch)))

        return [*product.statements(task, t, h, scratch), _each_valid(task, t, y, update)]

    return _run(rec, "RNN", [initial_h], product.scratch(), step)


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
    input_forget: int = 0,
    layout: int = 0,
    **attributes: Unpack[RecurrentAttributes],
) -> tuple[Tensor, ...]:
    """Long short-term memory: gates i, o, f and the candidate c, with peepholes from the cell.

    https://onnx.ai/onnx/operators/onnx__LSTM.html
    """
    rec = recurrence(
        *(x, w, r, b, sequence_lens, initial_h),
        gates=4,
        defaults=["Sigmoid", "Tanh", "Tanh"],
        layout=layout,
        **attributes,
    )
    return run_lstm(rec, initial_h, initial_c, p, bool(input_forget), PlainProduct(rec))


def run_lstm(
    rec: Recurrence,
    initial_h: Tensor | None,
    initial_c: Tensor | None,
    p: Tensor | None,
    coupled: bool,
    product: StateProduct,
) -> tuple[Tensor, ...]:
    """The steps of an LSTM, in which the state's part of the gates is computed by `product`."""
    require("P", p, (rec.directions, 3 * rec.hidden))
    require("initial_c", initial_c, rec.shapes[1])
    hidden = rec.hidden

    def step(task: Task, t: Expr, y: Tensor, buffers: Sequence[Buffer]) -> list[Stmt]:
        h, c, *scratch = buffers

        def gate(row: Row, j: Expr, k: int, peephole: int | None) -> Expr:
            value = product.gate(row, j + k * hidden if k else j, scratch)
            if p is None or peephole is None:
                return value
            weight = cast(rec.dtype, p[row.direction, j + peephole * hidden])
            return value + weight * Load(c, (row.local, j))

        def cell(row: Row, j: Expr) -> Stmt:
            i = row.function(0, gate(row, j, 0, 0))
            forget = 1 - i if coupled else row.function(0, gate(row, j, 2, 2))
            candidate = row.function(1, gate(row, j, 3, None))
            at = (row.local, j)
            return Store(c, at, forget * Load(c, at) + i * candidate)

        def output(row: Row, j: Expr) -> Stmt:
            value = row.function(0, gate(row, j, 1, 1)) * row.function(2, Load(c, (row.local, j)))
            return _emit(row, j, h, y, value)

        return [*product.statements(task, t, h, scratch), _each_valid(task, t, y, cell, output)]

    return _run(rec, "LSTM", [initial_h, initial_c], product.scratch(), step)


@op("GRU")
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    layout: int = 0,
    linear_before_reset: int = 0,
    **attributes: Unpack[RecurrentAttributes],
) -> tuple[Tensor, ...]:
    """Gated recurrent units: update gate z, reset gate r and the candidate h.

    https://onnx.ai/onnx/operators/onnx__GRU.html
    """
    rec = recurrence(
        *(x, w, r, b, sequence_lens, initial_h),
        gates=3,
        defaults=["Sigmoid", "Tanh"],
        layout=layout,
        add_recurrent_bias=2 * r.shape[-1] if linear_before_reset else None,
        **attributes,
    )
    if linear_before_reset:
        return _run(rec, "GRU", [initial_h], PlainProduct(rec).scratch(), _reset_after)
    counts = {"gates": 2 * rec.hidden, "candidate": rec.hidden, "reset": rec.hidden}
    scratch = {name: (padded(n, rec.dtype), rec.dtype) for name, n in counts.items()}
    return _run(rec, "GRU", [initial_h], scratch, _reset_before)


def _reset_before(task: Task, t: Expr, y: Tensor, buffers: Sequence[Buffer]) -> list[Stmt]:
    """A step of GRU whose reset gate scales the state before the recurrent product."""
    (h, gates, candidate, reset), hidden = buffers, task.rec.hidden

    def scaled(row: Row, j: Expr) -> Stmt:
        gate = row.function(0, _gate(row, j + hidden, gates))
        return Store(reset, (row.local, j), gate * Load(h, (row.local, j)))

    def update(row: Row, j: Expr) -> Stmt:
        value = row.product(j + 2 * hidden) + Load(candidate, (row.local, j))
        return _gru_cell(row, j, gates, h, y, value)

    return [
        multiply(task, gates, h, 0, 2 * hidden),
        task.each(t, hidden, scaled),
        multiply(task, candidate, reset, 2 * hidden, hidden),
        _each_valid(task, t, y, update),
    ]


def _reset_after(task: Task, t: Expr, y: Tensor, buffers: Sequence[Buffer]) -> list[Stmt]:
    """A step of GRU whose reset gate scales the recurrent product, its bias included."""
    (h, gates), rec, hidden = buffers, task.rec, task.rec.hidden

    def update(row: Row, j: Expr) -> Stmt:
        gate = row.function(0, _gate(row, j + hidden, gates))
        recurrent: Expr = Load(gates, (row.local, j + 2 * hidden))
        if rec.bias is not None:
            recurrent = recurrent + cast(rec.dtype, rec.bias[row.direction, j + 5 * hidden])
        value = row.product(j + 2 * hidden) + gate * recurrent
        return _gru_cell(row, j, gates, h, y, value)

    return [multiply(task, gates, h, 0, 3 * hidden), _each_valid(task, t, y, update)]


def _gru_cell(row: Row, j: Expr, gates: Buffer, h: Buffer, y: Tensor, candidate: Expr) -> Stmt:
    """One element of the state: between the candidate and the old one, as the update gate says."""
    z = row.function(0, _gate(row, j, gates))
    new = (1 - z) * row.function(1, candidate) + z * Load(h, (row.local, j))
    return _emit(row, j, h, y, new)


def _gate(row: Row, j: Expr, gates: Buffer) -> Expr:
    """The input of gate element j: the input's part and the state's."""
    return row.product(j) + Load(gates, (row.local, j))


def _emit(row: Row, j: Expr, h: Buffer, y: Tensor, value: Expr) -> Stmt:
    """The new state, also in the result."""
    state = (row.local, j)
    return Block(
        (Store(h, state, value), Store(y, row.result_index(j), cast(y.dtype, Load(h, state))))
    )


def _each_valid(task: Task, t: Expr, y: Tensor, *updates: Callable[[Row, Expr], Stmt]) -> Stmt:
    """The updates of all state elements of the rows that have this step, one after the other.

    Each is a loop of its own: a chain of two functions in one loop leaves the processor waiting.
    """
    hidden = task.rec.hidden

    def every(row: Row) -> Stmt:
        def loop(update: Callable[[Row, Expr], Stmt]) -> Stmt:
            return elements(hidden, lambda j: update(row, j))

        return while_valid(row, y, Block(tuple(map(loop, updates))))

    return task.each_row(t, every)


def _run(
    rec: Recurrence,
    name: str,
    initial: Sequence[Tensor | None],
    scratch: Scratch,
    step: Step,
) -> tuple[Tensor, ...]:
    """The results of all steps. A step gets the states, h first, then the scratch buffers."""
    states = dict.fromkeys(("h", "c")[: len(initial)], (rec.hidden, rec.dtype))
    widths = {**states, **scratch}
    row_bytes = sum(width * dtype.itemsize for width, dtype in widths.values())

    def run(task: Task, y: Tensor, finals: Sequence[Tensor]) -> Stmt:
        buffers = [task.buffer(name, *what) for name, what in widths.items()]
        states, t = buffers[: len(initial)], Var(fresh_axis("t"))
        before = [load_state(task, *pair) for pair in zip(states, initial, strict=True)]
        steps = For(t.name, index_const(rec.steps), Block(tuple(step(task, t, y, buffers))))
        after = [store_state(task, *pair) for pair in zip(states, finals, strict=True)]
        return allocated(buffers, Block((*before, steps, *after)))

    def body(y: Tensor, *finals: Tensor) -> Stmt:
        return parallel_tasks(rec, row_bytes, lambda task: run(task, y, finals))

    return _results(rec, name, initial, body)


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
