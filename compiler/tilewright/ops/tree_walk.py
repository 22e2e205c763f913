"""The loops that lead the rows of a matrix through the trees of a forest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Block,
    Buffer,
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
    apply,
    as_expr,
    index_const,
    substitute,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, minimum
from tilewright.ops.tensor import (
    Constant,
    Tensor,
    columns,
    compute,
    constant,
    fresh_axis,
    indices,
    nest,
)
from tilewright.ops.tree_tables import Forest

LANES = 16  # walks side by side: their loads do not wait for each other
ENOUGH_TASKS = 8
PART = 24  # groups of trees that are worth a task of their own
STEPS = 3  # between two looks whether all walks have ended
LOCAL_BYTES = 192 << 10


def walk_type(x: Tensor) -> DType:
    """The type that features and thresholds are compared in."""
    return DType.F64 if x.dtype is DType.F64 else DType.F32


class Walk:
    """The loops that lead a few rows through a few trees at a time.

    Each lane is one row in one tree. It moves from record to record and stays at its leaf, so a
    step has no branch that could be mispredicted; after some steps all lanes are looked at.
    """

    def __init__(
        self, x: Tensor, forest: Forest, targets: int, monoid: ScalarOp, start: float
    ) -> None:
        self.x, self.targets, self.monoid = x, targets, monoid
        self.start, self.dtype = start, walk_type(x)
        if targets * self.dtype.itemsize > LOCAL_BYTES:
            raise UnsupportedError(f"{targets} targets are too many for a task's scratch")
        self.rows = self._row_count(max(targets, len(forest.features)))
        self.trees = LANES // self.rows
        self.groups = -(-x.shape[0] // self.rows)
        groups_of_trees = -(-len(forest.roots) // self.trees)
        self.parts = max(1, min(ENOUGH_TASKS // self.groups, groups_of_trees // PART))
        self.group, self.part = Var(fresh_axis("group")), Var(fresh_axis("part"))
        self.first = minimum(self.group * self.rows, x.shape[0] - self.rows)
        self._read_tables(forest)
        self.at = self._scratch("at", DType.I64, (LANES,), (0, self.records - 1))
        self.record = self._scratch("record", DType.I64, (), (0, self.records - 1))
        self.next = self._scratch("next", DType.I64, (), (0, self.records - 1))
        self.moved = self._scratch("moved", DType.I64, ())
        self.sums = self._scratch("acc", self.dtype, (self.rows, targets))
        self.values, self.fill = self._values(forest)

    def result(self, dtype: DType) -> Tensor:
        """[row, target]: the sums (or the least, or greatest) over all trees."""
        shape = (self.x.shape[0], self.targets)
        if self.parts == 1:
            return nest([(shape, dtype)], self._body, "TreeEnsemble")[0]
        parts = nest([((self.parts, *shape), self.dtype)], self._body, "TreeEnsemble")[0]
        total = compute(
            shape, lambda n, t, p: parts[p, n, t], reduce=self.monoid, over=[self.parts]
        )
        return compute(shape, lambda *i: cast(dtype, total[i]))

    def _body(self, y: Tensor) -> Stmt:
        """All rows, in groups that are tasks; the last group may begin within the one before.
        Where these are few, tasks also share the trees.
        """
        shape = (self.rows, self.targets)
        start = as_expr(self.start, self.dtype)
        begin = _loops(shape, lambda *i: Store(self.sums, i, start))

        def finish(r: Expr, t: Expr) -> Stmt:
            place = (self.first + r, t) if self.parts == 1 else (self.part, self.first + r, t)
            return Store(y, place, cast(y.dtype, Load(self.sums, (r, t))))

        tree, count = Var(fresh_axis("tree")), self.roots.shape[0] // self.parts
        trees = For(tree.name, index_const(count), self._trees(self.part * count + tree))
        body: Stmt = Block((*self.fill, begin, trees, _loops(shape, finish)))
        for b in (self.values, self.sums, self.moved, self.next, self.record, self.at):
            body = Alloc(b, body) if b.space is Space.LOCAL else body
        body = For(self.group.name, index_const(self.groups), body, LoopKind.PARALLEL)
        if self.parts == 1:
            return substitute(body, {self.part.name: index_const(0)})  # type: ignore[return-value]
        return For(self.part.name, index_const(self.parts), body, LoopKind.PARALLEL)

    def _row_count(self, width: int) -> int:
        """A power of two, so that few kernels serve all numbers of rows."""
        fitting = LOCAL_BYTES // (width * self.dtype.itemsize)
        most = max(1, min(LANES, self.x.shape[0], fitting))
        return 1 << (most.bit_length() - 1)

    def _scratch(
        self,
        name: str,
        dtype: DType,
        shape: tuple[int, ...],
        values: tuple[int, int] | None = None,
    ) -> Buffer:
        return Buffer(fresh_axis(name), dtype, shape, space=Space.LOCAL, values=values)

    def _read_tables(self, forest: Forest) -> None:
        self.records = len(forest.child)
        self.threshold, self.column, self.child = columns(
            forest.threshold, forest.column * np.int32(self.rows), forest.child
        )
        self.leaf: Constant | None = None
        self.weights, self.leaf_targets = constant(forest.weights), indices(forest.targets)
        if forest.weights.shape[1] == 1:
            self.weights, self.leaf_targets = columns(
                forest.weights[forest.leaf, 0], forest.targets[forest.leaf, 0]
            )
        else:
            self.leaf = indices(forest.leaf)
        count = -(-len(forest.roots) // (self.trees * self.parts)) * self.parts
        roots = np.full(count * self.trees, self.records - 2, np.int32)  # the leaf that is none
        roots[: len(forest.roots)] = forest.roots
        depth = np.zeros(len(roots), np.int32)
        depth[: len(forest.depth)] = forest.depth
        rounds = -(-depth.reshape(count, -1).max(axis=1) // np.int32(STEPS))
        self.roots, self.rounds = indices(roots.reshape(count, -1)), indices(rounds)

    def _values(self, forest: Forest) -> tuple[Buffer, tuple[Stmt, ...]]:
        """What the rows are tested on, and the statements that fill it: the rows of one column lie
        side by side. In memory that all tasks share where there is too much for scratch.
        """
        rows, count = self.rows, len(forest.features)
        features = indices(forest.features)
        signs = constant(np.where(forest.negated, -1, 1).astype(self.dtype.numpy))

        def value(first: Expr, r: Expr, k: Expr) -> Expr:
            v = cast(self.dtype, self.x[first + r, cast(DType.I64, features[k])])
            return v * signs[k] if forest.negated.any() else v

        if rows * count * self.dtype.itemsize > LOCAL_BYTES:
            return compute((self.x.shape[0], count), lambda n, k: value(n, index_const(0), k)), ()
        buffer = self._scratch("values", self.dtype, (max(rows * count, 1),))

        def store(k: Expr, r: Expr) -> Stmt:
            return Store(buffer, (k * rows + r,), value(self.first, r, k))

        return buffer, (_loops((count, rows), store),) if count else ()

    def _lanes(self, body: Callable[[Expr, Expr, Expr], Stmt]) -> Stmt:
        """`body` for each lane: its number, tree and row."""
        if self.rows == 1:
            return self._written_out(lambda lane: body(lane, lane, index_const(0)))
        return self._written_out(lambda lane: body(lane, lane // self.rows, lane % self.rows))

    def _written_out(self, body: Callable[[Expr], Stmt]) -> Stmt:
        lane = Var(fresh_axis("lane"))
        count = index_const(self.trees * self.rows)
        return For(lane.name, count, body(lane), LoopKind.UNROLLED, baked=True)

    def _trees(self, tree: Expr) -> Stmt:
        """From the roots to the leaves of a few trees."""

        def begin(lane: Expr, t: Expr, r: Expr) -> Stmt:
            return Store(self.at, (lane,), cast(DType.I64, self.roots[tree, t]))

        step = [self._lanes(lambda lane, t, r: Block(self._step(lane, r)))]
        last = self._lanes(lambda lane, t, r: Block((*self._step(lane, r), self._note())))
        still = Store(self.moved, (), index_const(0))
        moving = Store(self.moved, (), index_const(1))
        turn = If(Load(self.moved, ()).ne(0), Block((still, *step * (STEPS - 1), last)))
        rounds = cast(DType.I64, self.rounds[tree])
        return Block(
            (
                self._lanes(begin),
                moving,
                For(fresh_axis("round"), rounds, turn),
                self._lanes(lambda lane, t, r: self._add_leaf(lane, r)),
            )
        )

    def _step(self, lane: Expr, r: Expr) -> tuple[Stmt, ...]:
        """A lane moves on from `record` to `next`."""
        record = Load(self.record, ())
        column = cast(DType.I64, self.column[record])
        if self.values.space is Space.LOCAL:
            value = Load(self.values, (column + r,))
        else:
            value = Load(self.values, (self.first, column))
        passes = apply(ScalarOp.LE, value, self.threshold[record])
        side = Select(passes, index_const(1), index_const(0))
        return (
            Store(self.record, (), Load(self.at, (lane,))),
            Store(self.next, (), cast(DType.I64, self.child[record]) + side),
            Store(self.at, (lane,), Load(self.next, ())),
        )

    def _note(self) -> Stmt:
        """Notes whether the lane moved."""
        change = apply(ScalarOp.BITXOR, Load(self.record, ()), Load(self.next, ()))
        return Store(self.moved, (), apply(ScalarOp.BITOR, Load(self.moved, ()), change))

    def _add_leaf(self, lane: Expr, r: Expr) -> Stmt:
        """What the leaf of a lane adds to the sums of its row."""
        record = Load(self.record, ())
        found = Store(self.record, (), Load(self.at, (lane,)))
        if self.leaf is None:
            weight, target = self.weights[record], self.leaf_targets[record]
            return Block((found, self._add(r, weight, target)))
        leaf = cast(DType.I64, self.leaf[record])

        def entry(e: Expr) -> Stmt:
            return self._add(r, self.weights[leaf, e], self.leaf_targets[leaf, e])

        return Block((found, _loops(self.weights.shape[1:], entry)))

    def _add(self, r: Expr, weight: Expr, target: Expr) -> Stmt:
        which: Expr = cast(DType.I64, target) if self.targets > 1 else index_const(0)
        return Accumulate(self.sums, (r, which), self.monoid, weight)


def _loops(extents: Sequence[int], body: Callable[..., Stmt]) -> Stmt:
    """Loops over the extents, the last one innermost; none for a single iteration."""
    axes = [fresh_axis() for _ in extents]
    made = body(*(index_const(0) if n == 1 else Var(a) for a, n in zip(axes, extents, strict=True)))
    for axis, n in zip(reversed(axes), reversed(extents), strict=True):
        made = made if n == 1 else For(axis, index_const(n), made)
    return made
