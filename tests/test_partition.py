"""Loops cut where their conditions change: the same elements, chosen once for each part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from tilewright.dtypes import DType
from tilewright.errors import ScheduleError
from tilewright.loops.interpret import interpret, poisoned
from tilewright.loops.ir import (
    Apply,
    Buffer,
    Expr,
    For,
    Kernel,
    Load,
    Select,
    Store,
    Var,
    index_const,
    walk,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.schedule.directives import schedule
from tilewright.schedule.partition import Partition

ROWS = 3
CONDITIONS = st.sampled_from((ScalarOp.LT, ScalarOp.LE, ScalarOp.GT, ScalarOp.GE, ScalarOp.EQ))


def copy_of(value: Expr, sources: list[Buffer], columns: int) -> Kernel:
    out = Buffer("out", DType.F32, (ROWS, columns))
    store = Store(out, (Var("i"), Var("j")), value)
    body = For("i", index_const(ROWS), For("j", index_const(columns), store))
    return Kernel("copy", (*sources, out), body, frozenset(("out",)))


@given(st.data())
def test_choices_by_the_axis_are_made_once(data: st.DataObject) -> None:
    columns = data.draw(st.integers(2, 12))
    count = data.draw(st.integers(1, 3))
    sources = [Buffer(f"x{k}", DType.F32, (ROWS, columns)) for k in range(count + 1)]
    loads = [Load(b, (Var("i"), Var("j"))) for b in sources]
    value: Expr = loads[-1]
    for load in loads[:-1]:
        op, at = data.draw(CONDITIONS), data.draw(st.integers(-2, columns + 2))
        turned = data.draw(st.booleans())
        position: Expr = index_const(columns) - Var("j") if turned else Var("j") + 1
        value = Select(Apply(op, (position, index_const(at))), load, value)
    kernel = copy_of(value, sources, columns)
    try:
        parts = schedule(kernel, (Partition("j"),))
    except ScheduleError:
        event("refused")
        return
    event("cut")
    assert not any(isinstance(n, Select) for n in walk(parts.body))
    rng = np.random.default_rng(0)
    arrays = {b.name: rng.random(b.shape).astype(np.float32) for b in sources}
    results = []
    for k in (kernel, parts):
        out = poisoned((ROWS, columns), DType.F32)
        interpret(k, {**arrays, "out": out})
        results.append(out)
    whole, cut = results
    np.testing.assert_array_equal(whole, cut)


def test_choices_by_something_else_stay() -> None:
    x, y = (Buffer(n, DType.F32, (ROWS, 8)) for n in "xy")
    here = (Var("i"), Var("j"))
    by_row = Select(Apply(ScalarOp.LT, (Var("i"), index_const(1))), Load(x, here), Load(y, here))
    kernel = copy_of(by_row, [x, y], 8)
    with pytest.raises(ScheduleError, match="1 parts"):
        schedule(kernel, (Partition("j"),))
