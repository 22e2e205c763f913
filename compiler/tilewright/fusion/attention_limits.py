"""Which keys of an attention every row leaves out, whatever the operands: as a causal mask says."""

from __future__ import annotations

import numpy as np

from tilewright.dtypes import DType
from tilewright.fusion.attention_loops import Attention
from tilewright.loops.ir import Apply, Const, Expr, Load, Select, substitute, variables, walk
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import select
from tilewright.ops.evaluate import evaluate
from tilewright.ops.tensor import Constant, compute, indices

MAX_SCORES = 1 << 24  # that are looked at
WORTH = 0.9  # of all keys at most are left, else nothing is gained
NEVER, ALWAYS = Const(False, DType.BOOL), Const(True, DType.BOOL)


def limits(a: Attention) -> Constant | None:
    """How many keys each row needs, from the first on, if that is known and much less than all.

    Rows never need fewer than those before them, nor none. A key is left out where its score is
    minus infinity for all finite operands.
    """
    rows, keys = a.extent(a.row), a.keys[1]
    if rows * keys > MAX_SCORES:
        return None
    hidden = _hidden(a.score[1], a)
    if hidden == NEVER:
        return None

    def element(row: Expr, key: Expr) -> Expr:
        return substitute(hidden, {a.row: row, a.keys[0]: key})  # type: ignore[return-value]

    seen = ~evaluate(compute((rows, keys), element))
    last = np.where(seen.any(1), keys - seen[:, ::-1].argmax(1), 1)
    needed = np.maximum.accumulate(last).astype(np.int64)
    return indices(needed) if needed.mean() < WORTH * keys else None


def _hidden(e: Expr, a: Attention) -> Expr:
    """Whether a score is minus infinity, whatever the product: false where that is not known."""
    match e:
        case Const(value=value):
            return ALWAYS if value == float("-inf") else NEVER
        case Load() if _is_known(e, a):
            return e.eq(float("-inf"))
        case Apply(op=ScalarOp.ADD, args=(x, y)):
            return _either(_hidden(x, a), _hidden(y, a))
        case Apply(op=ScalarOp.SUB, args=(x, _)):
            return _hidden(x, a)
        case Apply(op=ScalarOp.MUL, args=(x, Const(value=factor))) if 0 < factor < float("inf"):
            return _hidden(x, a)
        case Select(condition=c, then=x, otherwise=y):
            first, second = _hidden(x, a), _hidden(y, a)
            if _is_known(c, a):
                return select(c, first, second)
            return NEVER if NEVER in (first, second) else first & second
    return NEVER


def _either(x: Expr, y: Expr) -> Expr:
    return y if x == NEVER else x if y == NEVER else x | y


def _is_known(e: Expr, a: Attention) -> bool:
    """Whether it depends on nothing but constants, the row and the key."""
    loads = (n for n in walk(e) if isinstance(n, Load))
    places = variables(e) <= {a.row, a.keys[0]}
    return places and all(isinstance(n.buffer, Constant) for n in loads)
