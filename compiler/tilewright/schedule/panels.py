"""Lines of an operand as halves in shared memory, copied while other things are done where they lie
in memory as they are multiplied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tilewright.dtypes import DType
from tilewright.loops.affine import Range, simplify_loads
from tilewright.loops.ir import (
    Alloc,
    Apply,
    Block,
    Buffer,
    Cast,
    Const,
    Expr,
    For,
    If,
    Load,
    LoopKind,
    Select,
    Space,
    Stmt,
    Store,
    Var,
    dtype_of,
    index_const,
)
from tilewright.loops.locate import offset
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import minimum
from tilewright.schedule.attention import baked, load_of, reading, registers
from tilewright.schedule.cooperate import THREAD
from tilewright.schedule.staging import WITHIN, Element
from tilewright.schedule.vectors import VECTOR_BYTES, is_adjacent

PART = 16  # elements that a matrix instruction takes of a line
MIN_ASYNC_BYTES = 4
TURN = 8  # threads whose vectors are written at the same time

Ranges = Mapping[str, Range]


def in_parts(n: int) -> int:
    """The next multiple of what a matrix instruction takes."""
    return -(-n // PART) * PART


@dataclass(frozen=True)
class Panel:
    """`lines` lines of an operand from line `first` on, each of `valid` elements and zeros up to
    whole parts. Lines beyond `total` are zeros. `element` is the operand as float32."""

    name: str
    half: DType
    stages: int
    lines: int
    total: int
    valid: int
    element: Element

    @property
    def length(self) -> int:
        return in_parts(self.valid)

    @property
    def buffer(self) -> Buffer:
        """[stage, line, place]; lines begin in different banks."""
        pitch = self.length + VECTOR_BYTES // self.half.itemsize
        shape = (self.stages, self.lines, pitch)
        return Buffer(self.name, self.half, shape, space=Space.SHARED)

    def copy(self, stage: Expr, first: Expr, limited: bool, threads: int, ranges: Ranges) -> Stmt:
        """What one thread copies. With `limited` the first line may lie beyond all."""
        place = _Place(first, limited or self.total % self.lines != 0, threads)
        counts = [n for n in (8, 4, 2) if self.valid % n == 0]
        for how in (_ahead, _by_vectors):
            for count in counts:
                found = how(self, count, stage, place, ranges)
                if found is not None:
                    return self._shared_out(found, count, threads)
        return self._shared_out(self._single(stage, place, ranges), 1, threads)

    @property
    def share(self) -> str:
        return f"{self.name}_share"

    def part(self, threads: int) -> Expr:
        """The number of a thread's part among all."""
        return Var(self.share) * threads + Var(THREAD)

    def ranges(self, ranges: Ranges, count: int, threads: int) -> dict[str, Range]:
        shares = -(-self.lines * self.length // (count * threads))
        return {**ranges, self.share: (0.0, shares - 1.0), WITHIN: (0.0, count - 1.0)}

    def _shared_out(self, copy: Stmt, count: int, threads: int) -> Stmt:
        parts = self.lines * self.length // count
        if parts % threads:
            copy = If(self.part(threads) < parts, copy)
        return baked(self.share, -(-parts // threads), copy)

    def _single(self, stage: Expr, place: _Place, ranges: Ranges) -> Stmt:
        """One element at a time, neighbours what lies side by side in memory."""
        at: Expr = self.part(place.threads)
        load = load_of(self.element(Var("line"), Var("place")))
        sizes = {"line": (0.0, self.lines - 1.0), "place": (0.0, self.length - 1.0)}
        form = offset(load.buffer, load.index, {**ranges, **sizes})
        if form.coefficient("place") != 1 and form.coefficient("line") == 1:
            line, k = at % self.lines, at // self.lines
        else:
            line, k = at // self.length, at % self.length
        return self._element(stage, line, k, place)

    def _element(self, stage: Expr, line: Expr, k: Expr, place: _Place) -> Store:
        inside = k if self.valid == self.length else minimum(k, self.valid - 1)
        value = self.element(place.line(self, line), inside)
        conditions = place.conditions(self, line, k, self.valid)
        return Store(
            self.buffer, (stage, line, k), _guarded(_as_half(value, self.half), conditions)
        )


@dataclass(frozen=True)
class _Place:
    """Where the lines of a block are among all: from `first` on, maybe beyond the last."""

    first: Expr
    limited: bool
    threads: int

    def line(self, p: Panel, within: Expr) -> Expr:
        line = self.first + within
        return minimum(line, p.total - 1) if self.limited else line

    def conditions(self, p: Panel, within: Expr, group: Expr, groups: int) -> list[Expr]:
        """Under which there is such a line and a group in it."""
        found: list[Expr] = []
        if self.limited:
            found.append(self.first + within < p.total)
        if p.valid != p.length:
            found.append(group < groups)
        return found

    def vectors(self, p: Panel, count: int, held: bool) -> tuple[Expr, Expr, Expr, list[Expr]]:
        """A thread's line and group of `count`, the operand there, and when it exists; one that
        does wherever it is read, if that shall `held`."""
        line, group = _shared(p.part(self.threads), p.length // count)
        if not held:
            value = p.element(self.first + line, group * count + Var(WITHIN))
        else:
            inside = group if p.valid == p.length else minimum(group, p.valid // count - 1)
            value = p.element(self.line(p, line), inside * count + Var(WITHIN))
        return line, group, value, self.conditions(p, line, group, p.valid // count)


def _shared(at: Expr, per: int) -> tuple[Expr, Expr]:
    """The line and the group in it, one of `per`, of a thread. Eight neighbours, which write at the
    same time, have all banks: the groups of a line, or if eight do not divide them one of each of
    eight lines."""
    if per % TURN == 0:
        return at // per, at % per
    return at // (per * TURN) * TURN + at % TURN, at // TURN % per


def _ahead(p: Panel, count: int, stage: Expr, place: _Place, ranges: Ranges) -> Stmt | None:
    """As it lies, by copies that nobody waits for yet."""
    if count * p.half.itemsize < MIN_ASYNC_BYTES:
        return None
    line, group, value, conditions = place.vectors(p, count, held=False)
    source = _as_half(simplify_loads(value, p.ranges(ranges, count, place.threads)), p.half)
    if not isinstance(source, Load):
        return None
    to = (stage, line, group * count + Var(WITHIN))
    store = Store(p.buffer, to, _guarded(source, conditions))
    loop = For(WITHIN, index_const(count), store, LoopKind.ASYNC, baked=True)
    near = is_adjacent(source.buffer, source.index, loop, p.ranges(ranges, count, place.threads))
    return loop if near else None


def _by_vectors(p: Panel, count: int, stage: Expr, place: _Place, ranges: Ranges) -> Stmt | None:
    """Computed and rounded in registers, between a vector that is read and one that is written."""
    known = p.ranges(ranges, count, place.threads)
    line, group, value, conditions = place.vectors(p, count, held=True)
    value = simplify_loads(value, known)
    source = load_of(value)
    if count * source.buffer.dtype.itemsize > VECTOR_BYTES:
        return None
    held = registers("held", count, dtype=source.buffer.dtype)
    made = registers("made", count, dtype=p.half)
    here = (Var(WITHIN),)
    read = For(WITHIN, index_const(count), Store(held, here, source), LoopKind.VECTOR, baked=True)
    if not is_adjacent(source.buffer, source.index, read, known):
        return None
    taken = _as_half(reading(value, source, Load(held, here)), p.half)
    compute = replace(
        read, body=Store(made, here, _guarded(taken, conditions)), kind=LoopKind.SERIAL
    )
    to = (stage, line, group * count + Var(WITHIN))
    write = replace(read, body=Store(p.buffer, to, Load(made, here)))
    return Alloc(held, Alloc(made, Block((read, compute, write))))


def _as_half(value: Expr, half: DType) -> Expr:
    """The value rounded; a half that was only widened as it is."""
    match value:
        case Cast(dtype=DType.F32, arg=Load(buffer=b) as load) if b.dtype is half:
            return load
    return Cast(half, value)


def _guarded(value: Expr, conditions: Sequence[Expr]) -> Expr:
    """The value, or zero where a condition does not hold."""
    if not conditions:
        return value
    both: Expr = conditions[0]
    for c in conditions[1:]:
        both = Apply(ScalarOp.AND, (both, c))
    return Select(both, value, Const(0.0, dtype_of(value)))
