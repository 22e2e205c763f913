"""Which real tensors share a kernel: reductions with the maps that complete them, and everything
that works row by row.

Legality (`may_join` returns the reason it may not), gain and application are apart; the reasons
are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from tilewright.fusion.contraction import Contraction
from tilewright.fusion.decide import Refusal
from tilewright.fusion.inline import Program, label, nodes_of, reads_in_place
from tilewright.fusion.sums import lies_across
from tilewright.fusion.winograd import WinogradCompute
from tilewright.loops.ir import Load, Var, strides_of, walk
from tilewright.ops.tensor import Compute, Nest, NestOutput, Tensor, sources

MAX_SERIAL_WORK = 1 << 15  # elements that one task may take on so that kernels can be fused
MAX_ACROSS = 64  # elements of a row that lie apart and still stay in the first-level cache
MIN_ROWS = 4  # fewer rows are too few tasks
MANY_ROWS = 512  # for which a GPU has blocks of threads
LONG_ROW = 1 << 16  # elements of a row that several blocks of threads should share


@dataclass(eq=False)
class Group:
    """Tensors computed by one kernel, in order. `rows` names, for each member, its axes that are
    the group's rows."""

    members: list[Compute]
    rows: dict[str, tuple[str, ...]] = field(default_factory=dict)
    contraction: Contraction | None = None
    nest: Nest | None = None

    @property
    def winograd(self) -> WinogradCompute | None:
        """The Winograd convolution that it computes, if it is one."""
        first = self.members[0] if self.members else None
        return first if isinstance(first, WinogradCompute) else None

    @property
    def outputs(self) -> Sequence[Tensor]:
        return self.nest.outputs if self.nest else self.members

    @property
    def nodes(self) -> tuple[str, ...]:
        """The model's nodes inside, in order."""
        if self.nest:
            return (self.nest.node,) if self.nest.node else ()
        return tuple(dict.fromkeys(n for m in self.members for n in m.nodes))

    @property
    def label(self) -> str:
        """The operators inside, in order."""
        if self.nest:
            return self.nest.op or "Nest"
        return (
            "+".join(dict.fromkeys(o for m in self.members for o in m.op.split("+") if o)) or "Map"
        )


def form_groups(program: Program, side_by_side: bool = False) -> list[Group]:
    """Groups in an order in which they can run. `side_by_side`: a machine on which what runs at
    the same time should lie side by side in memory."""
    return _Grouper(program, side_by_side).run()


class _Grouper:
    def __init__(self, program: Program, side_by_side: bool) -> None:
        self.program, self.side_by_side = program, side_by_side
        self.output_names = {t.name for t in program.outputs}
        self.group_of: dict[str, Group] = {}
        self.groups: list[Group] = []
        self.before: dict[int, set[int]] = {}  # groups that must run before a group, transitively

    def run(self) -> list[Group]:
        for t in self.program.order:
            if isinstance(t, NestOutput):
                self._add_nest(t)
            elif isinstance(t, Compute):
                self._add(t)
        return self._sorted()

    def _add_nest(self, t: NestOutput) -> None:
        whole = t.nest[0]
        found = next((g for g in self.groups if g.nest is whole), None)
        if found is None:
            self._place(Group([], nest=whole), t)
        else:
            self.group_of[t.name] = found

    def _add(self, t: Compute) -> None:
        candidates = {
            id(g): g for s in sources(t) if (g := self.group_of.get(s.name)) and not g.nest
        }
        latest_first = list(candidates.values())[::-1]
        for g in sorted(latest_first, key=lambda g: not self._on_tiles(g)):
            rows, why = self._may_join(t, g)
            if why is None:
                g.members.append(t)
                g.rows[t.name] = rows
                self._place(g, t)
                return
            self.program.decisions.append(
                Refusal(
                    label(t), "does not share a kernel with", g.label, why, nodes_of(t), g.nodes
                )
            )
        self._place(_alone(t, self.program.contractions.get(t.name)), t)

    def _on_tiles(self, g: Group) -> bool:
        return self.program.on_tiles(g.members[0])

    def _place(self, g: Group, t: Tensor) -> None:
        if g not in self.groups:
            self.groups.append(g)
            self.before[id(g)] = set()
        self.group_of[t.name] = g
        for s in sources(t):
            other = self.group_of.get(s.name)
            if other is not None and other is not g:
                gained = {id(other)} | self.before[id(other)]
                for later in self.groups:
                    if later is g or id(g) in self.before[id(later)]:
                        self.before[id(later)] |= gained

    def _may_join(self, t: Compute, g: Group) -> tuple[tuple[str, ...], str | None]:
        """The axes of t that are the rows of g, or why it may not join."""
        others = [o for s in sources(t) if (o := self.group_of.get(s.name)) and o is not g]
        if any(id(g) in self.before[id(o)] for o in others):
            return (), "another kernel would have to run between them"
        if self.program.on_tiles(t):
            return (), "a matmul or convolution starts a kernel of its own"
        if not g.nest and self.program.on_tiles(g.members[0]):
            return self._may_complete(t, g)
        if not any(m.reduction for m in g.members):
            return (), "the producer has no rows to share"
        rows = self._align(t, g)
        if rows is None:
            return (), "it reads the producer across rows"
        if t.reduction is not None and {
            a for a, n in zip(t.axes, t.shape, strict=True) if n > 1
        } != set(rows):
            return (), "it reduces over other axes"
        if self._goes_over_memory_anew(t, g, rows):
            return (), "its rows lie across memory, and each would go over all of it"
        if self.side_by_side and _turns(t, g, rows):
            return (), "the elements of its rows lie apart, while those of the sums do not"
        if self.side_by_side and _has_long_rows(t, rows):
            return (), "its rows are too few and too long for a block of threads each"
        count = int(
            np.prod([n for a, n in zip(t.axes, t.shape, strict=True) if a in rows], dtype=np.int64)
        )
        if count < MIN_ROWS and _work(t) > MAX_SERIAL_WORK:
            return (), f"{count} rows are too few tasks for {_work(t)} elements"
        return rows, None

    def _goes_over_memory_anew(self, t: Compute, g: Group, rows: tuple[str, ...]) -> bool:
        """Whether t has more than its row to do where the elements of a row are far apart."""
        inner = [n for a, n in zip(t.axes, t.shape, strict=True) if a not in rows]
        if t.reduction is None and all(n == 1 for n in inner):
            return False
        first = next(m for m in g.members if m.reduction)
        assert first.reduction is not None
        summed = prod(extent for _, extent in first.reduction.axes)
        return summed > MAX_ACROSS and lies_across(first)

    def _may_complete(self, t: Compute, g: Group) -> tuple[tuple[str, ...], str | None]:
        """A contraction takes one more map: the one that reads it in place and is its only
        reader."""
        root = g.members[0]
        if len(g.members) > 1 or t.reduction is not None:
            return (), "the matmul or convolution already has its epilogue"
        if root.name in self.output_names or len(self.program.consumers[root.name]) > 1:
            return (), "the result of the matmul or convolution is needed elsewhere too"
        if not reads_in_place(t, root):
            return (), "it reads the matmul or convolution at other places than its own"
        return t.axes, None

    def _align(self, t: Compute, g: Group) -> tuple[str, ...] | None:
        """The axes of t along which it walks the rows of g, if every read of g's members agrees on
        them."""
        found: tuple[str, ...] | None = None
        extents = dict(zip(t.axes, t.shape, strict=True))
        for n in walk(t.body):
            if not isinstance(n, Load) or self.group_of.get(n.buffer.name) is not g:
                continue
            member = next(m for m in g.members if m.name == n.buffer.name)
            sizes = dict(zip(member.axes, member.shape, strict=True))
            here = []
            for axis in g.rows[member.name]:
                at = n.index[member.axes.index(axis)]
                if not isinstance(at, Var) or extents.get(at.name) != sizes[axis]:
                    return None
                here.append(at.name)
            if len(set(here)) < len(here) or (found is not None and tuple(here) != found):
                return None
            found = tuple(here)
        return found

    def _sorted(self) -> list[Group]:
        return sorted(self.groups, key=lambda g: len(self.before[id(g)]))


def _has_long_rows(t: Compute, rows: tuple[str, ...]) -> bool:
    """Whether blocks of threads, each with a row, would leave most of a GPU idle for long."""
    sizes = dict(zip(t.axes, t.shape, strict=True))
    count = prod(n for a, n in sizes.items() if a in rows)
    return count < MANY_ROWS and t.size >= count * LONG_ROW


def _turns(t: Compute, g: Group, rows: tuple[str, ...]) -> bool:
    """Whether the elements of a row of t lie apart, and either are many or follow sums that go
    along memory."""
    first = next(m for m in g.members if m.reduction)
    sizes = zip(t.axes, t.shape, strides_of(t), strict=True)
    found = [(step, axis, n) for axis, n, step in sizes if n > 1]
    inner = [n for _, axis, n in found if axis not in rows]
    if not inner or min(found)[1] not in rows:
        return False
    return prod(inner) > MAX_ACROSS or not lies_across(first)


def _alone(t: Compute, contraction: Contraction | None) -> Group:
    if contraction is not None or isinstance(t, WinogradCompute):
        return Group([t], {t.name: t.axes}, contraction)
    rows = tuple(a for a, n in zip(t.axes, t.shape, strict=True) if n > 1) if t.reduction else ()
    return Group([t], {t.name: rows})


def _work(t: Compute) -> int:
    inner = int(np.prod([n for _, n in t.reduction.axes], dtype=np.int64)) if t.reduction else 1
    return t.size * inner
