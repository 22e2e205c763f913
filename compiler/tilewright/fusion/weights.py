"""Constants in the form that kernels read: packed or transformed once, and shared by all plans of
a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tilewright.fusion.contraction import ranges_of
from tilewright.loops.affine import Linear, linear
from tilewright.loops.ir import (
    Apply,
    Buffer,
    Cast,
    Const,
    Expr,
    Load,
    Select,
    Var,
    rewrite,
    substitute,
)
from tilewright.loops.locate import offset
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.show import show_expr
from tilewright.ops.evaluate import evaluate
from tilewright.ops.tensor import Compute, Constant, sources

PackKey = tuple[tuple[int, ...], tuple[int, ...], str]


class PackedWeights:
    """Packed constants by what they were packed from and how; shared by all plans of a model."""

    def __init__(self) -> None:
        # Sources stay alive with their copies, so that their identities stay theirs.
        self._packed: dict[PackKey, tuple[list[np.ndarray], np.ndarray]] = {}

    def get(self, packed: Compute) -> np.ndarray:
        """The elements of `packed`, a map of one constant."""
        return self.derived(packed, "", lambda: _materialize(packed))

    def derived(self, t: Compute, how: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What `make` makes of `t`, a map of constants, in a way that `how` tells from others."""
        parts = [s.value for s in sources(t) if isinstance(s, Constant)]
        key = (tuple(map(id, parts)), t.shape, how + _signature(t))
        if key not in self._packed:
            self._packed[key] = (parts, make())
        return self._packed[key][1]

    @property
    def nbytes(self) -> int:
        return sum(copy.nbytes for _, copy in self._packed.values())


def _signature(packed: Compute) -> str:
    """How a map reads its constants, in canonical names."""
    env: dict[str, Expr] = {a: Var(f"p{k}") for k, a in enumerate(packed.axes)}
    order = {s.name: k for k, s in enumerate(sources(packed))}

    def rule(n: object) -> Load | None:
        if isinstance(n, Load):
            c = n.buffer
            return Load(Buffer(f"c{order[c.name]}", c.dtype, c.shape, c.strides), n.index)
        return None

    reduced = packed.reduction.axes if packed.reduction else ()
    env |= {a: Var(f"r{k}") for k, (a, _) in enumerate(reduced)}
    body = show_expr(rewrite(substitute(packed.body, env), rule))  # type: ignore[arg-type]
    how = f"{packed.reduction.op} {[n for _, n in reduced]} " if packed.reduction else ""
    return f"{packed.dtype} {how}{body}"


def _loads(e: Expr) -> list[Load]:
    match e:
        case Load():
            return [e]
        case Select(then=then):
            return _loads(then)
        case Cast(arg=arg):
            return _loads(arg)
    return []


def _materialize(packed: Compute) -> np.ndarray:
    """The packed array: by strided copies where the panels are that regular, element by element
    otherwise.
    """
    loads = _loads(packed.body)
    single = len(loads) == 1 and packed.reduction is None
    if not single or not isinstance(source := loads[0].buffer, Constant):
        return aligned(evaluate(packed))
    form = offset(source, loads[0].index, ranges_of(packed))
    tail = _tail_only(packed)
    if form.nonlinear_axes() or tail is None:
        return aligned(evaluate(packed))
    out = aligned_zeros(packed.shape, packed.dtype.numpy)
    flat = np.ascontiguousarray(source.value).reshape(-1)
    panel_axis, columns = tail
    width, whole = packed.shape[-1], columns // packed.shape[-1]
    full = [slice(None)] * packed.rank
    full[panel_axis] = slice(0, whole)
    _copy(out[tuple(full)], flat, form, packed, 0)
    if columns % width:
        last = [slice(None)] * packed.rank
        last[panel_axis], last[-1] = slice(whole, whole + 1), slice(0, columns % width)
        _copy(
            out[tuple(last)], flat, form, packed, whole * form.coefficient(packed.axes[panel_axis])
        )
    return out


def _tail_only(packed: Compute) -> tuple[int, int] | None:
    """The panel axis and number of columns, if nothing but the tail of the last panel is
    guarded."""
    width, lane = packed.shape[-1], packed.axes[-1]
    match packed.body:
        case Select(condition=Apply(op=ScalarOp.LT, args=(left, Const(value=columns)))):
            form = linear(left, {})
            for k, a in enumerate(packed.axes[:-1]):
                if dict(form.terms) == {Var(a): width, Var(lane): 1} and not form.constant:
                    return k, int(columns)
            return None
        case Select():
            return None
    return 0, packed.shape[0] * width


def _copy(out: np.ndarray, flat: np.ndarray, form: Linear, packed: Compute, shift: int) -> None:
    start = form.constant + shift
    strides = [form.coefficient(a) * flat.itemsize for a in packed.axes]
    if out.size:
        view = np.lib.stride_tricks.as_strided(flat[start:], out.shape, strides, writeable=False)
        out[...] = view


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:  # type: ignore[type-arg]
    """Zeros that start on a cache line."""
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.zeros(count + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count].view(dtype).reshape(shape)


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts on a cache line."""
    out = aligned_zeros(array.shape, array.dtype)
    out[...] = array
    return out
