"""Index maps that are known beforehand: as arithmetic where they follow a simple law, else as a
table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.loops.ir import Expr, Operand, index_const
from tilewright.ops.common import maximum, minimum
from tilewright.ops.tensor import constant


def at_position(table: np.ndarray, i: Sequence[Expr], extent: int) -> Expr:
    """table[i] of a table that is not empty, with all entries in [0, extent). There is nothing to
    read if they are all the same, or if there is one dimension and they are i * a + b, i // d or
    the lesser of i * a + b and extent - 1.
    """
    if bool((table == table.flat[0]).all()):
        return index_const(int(table.flat[0]))
    law = _arithmetic(table, i[0], extent) if table.ndim == 1 else None
    if law is not None:
        return law
    entries = constant(table.astype(np.int64))
    return minimum(maximum(entries[tuple(i)], 0), extent - 1)


def _arithmetic(table: np.ndarray, i: Expr, extent: int) -> Expr | None:
    """table[i] by arithmetic, if there is any for it; not all entries are the same."""
    numbers = np.arange(len(table))
    first = int(table[0])
    step = int(table[1]) - first
    if np.array_equal(table, first + step * numbers):
        scaled: Expr = i if step == 1 else i * step
        return scaled if first == 0 else scaled + first
    repeat = int(np.argmax(table != first))
    if first == 0 and np.array_equal(table, numbers // repeat):
        return i // repeat
    inner = step or 1
    clipped = np.clip(first + inner * numbers, 0, extent - 1)
    if np.array_equal(table, clipped):
        return minimum(i * inner + first, extent - 1)
    return None


def weighted(values: list[Expr], weights: list[Operand]) -> Expr:
    """The sum of products."""
    total: Expr | None = None
    for value, weight in zip(values, weights, strict=True):
        term = value * weight
        total = term if total is None else total + term
    assert total is not None
    return total
