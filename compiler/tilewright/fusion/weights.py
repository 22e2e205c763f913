"""Constants in the form that kernels read: packed or transformed once, and shared by all plans of
a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
from tilewright.ops.tensor import Compute, Constant, Elements, sources

Again = Callable[[], np.ndarray]
PackKey = tuple[tuple[int, ...], tuple[int, ...], str]


class PackedWeights:
    """Packed constants by what they were packed from and how; shared by all plans of a model."""

    def __init__(self) -> None:
        # Sources stay alive with their copies, so that their identities stay theirs.
        self._packed: dict[PackKey, tuple[list[Elements], np.ndarray]] = {}
        self._reversible: dict[int, tuple[Elements, Again | None]] = {}

    def get(self, packed: Compute) -> np.ndarray:
        """The elements of `packed`, a map of one constant."""
        copy = self.derived(packed, "", lambda: _materialize(packed))
        found = _Packing.of(packed)
        if found is not None and found.is_reversible:
            self.instead_of(found.source.elements, lambda: lambda: found.unpacked(copy))
        return copy

    def derived(self, t: Compute, how: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What `make` makes of `t`, a map of constants, in a way that `how` tells from others."""
        parts = [s.elements for s in sources(t) if isinstance(s, Constant)]
        key = (tuple(map(id, parts)), t.shape, how + _signature(t))
        if key not in self._packed:
            self._packed[key] = (parts, make())
        return self._packed[key][1]

    def instead_of(self, source: Elements, way_back: Callable[[], Again | None]) -> None:
        """Holds the elements no longer, if there is a way back to them; the first one found
        stays."""
        if id(source) not in self._reversible:
            self._reversible[id(source)] = source, way_back()
        again = self._reversible[id(source)][1]
        if again is not None:
            source.give_up(again)  # at once: there may be no room for all

    def give_up_sources(self) -> None:
        """Constants that were packed, and unpacked since, are not held beside their copies."""
        for source, again in self._reversible.values():
            if again is not None:
                source.give_up(again)

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
    found = _Packing.of(packed)
    if found is None:
        return aligned(evaluate(packed))
    out = aligned_zeros(packed.shape, packed.dtype.numpy)
    flat = np.ascontiguousarray(found.source.value).reshape(-1)
    for panels, part in found.parts(out, flat):
        panels[...] = part
    return out


@dataclass(frozen=True)
class _Packing:
    """A map of one constant to panels: element by element with fixed strides, zeros after the last
    column."""

    packed: Compute
    source: Constant
    form: Linear  # where an element comes from
    panel_axis: int
    columns: int

    @staticmethod
    def of(packed: Compute) -> _Packing | None:
        loads = _loads(packed.body)
        single = len(loads) == 1 and packed.reduction is None
        if not single or not isinstance(source := loads[0].buffer, Constant):
            return None
        form = offset(source, loads[0].index, ranges_of(packed))
        tail = _tail_only(packed)
        if form.nonlinear_axes() or tail is None:
            return None
        return _Packing(packed, source, form, *tail)

    def parts(self, out: np.ndarray, flat: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Parts of the packed array, each beside the same elements of the source."""
        width, start = self.packed.shape[-1], self.form.constant
        whole, rest = divmod(self.columns, width)
        full = [slice(None)] * self.packed.rank
        full[self.panel_axis] = slice(0, whole)
        last = [slice(None)] * self.packed.rank
        last[self.panel_axis], last[-1] = slice(whole, whole + 1), slice(0, rest)
        beyond = whole * self.form.coefficient(self.packed.axes[self.panel_axis])
        strides = [self.form.coefficient(a) * flat.itemsize for a in self.packed.axes]
        for panels, first in ((out[tuple(full)], start), (out[tuple(last)], start + beyond)):
            if panels.size:
                shape = panels.shape
                yield panels, np.lib.stride_tricks.as_strided(flat[first:], shape, strides)

    @property
    def is_reversible(self) -> bool:
        """Whether every element of the source is in the panels, once and as it is."""
        body = self.packed.body
        kept = isinstance(body.then if isinstance(body, Select) else body, Load)
        if not kept or self.source.strides is not None:
            return False
        axes = list(zip(self.packed.axes, self.packed.shape, strict=True))
        steps = {a: (self.form.coefficient(a), n) for a, n in axes}
        panel, lane = self.packed.axes[self.panel_axis], self.packed.axes[-1]
        if panel != lane:
            step, several = steps.pop(panel)
            if several > 1 and step != steps[lane][0] * self.packed.shape[-1]:
                return False
            steps[lane] = (steps[lane][0], self.columns)
        reached = 1
        for step, extent in sorted(steps.values()):
            if extent > 1 and step != reached:
                return False
            reached *= extent
        return reached == self.source.size and self.form.constant == 0

    def unpacked(self, copy: np.ndarray) -> np.ndarray:
        """The source's elements from their copy in panels."""
        flat = aligned_zeros((self.source.size,), copy.dtype)
        for panels, part in self.parts(copy, flat):
            part[...] = panels
        flat.flags.writeable = False
        return flat.reshape(self.source.shape)


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
    return packed.rank - 1, width * width  # without a guard every axis stands for itself


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
