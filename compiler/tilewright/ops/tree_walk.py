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
)
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, maximum, minimum
from tilewright.ops.forest import Forest
from tilewright.ops.tensor import Tensor, constant, fresh_axis

ROWS = 16  # rows that walk side by side: their loads do not wait for each other
LOCAL_BYTES = 192 << 10
TESTS = (ScalarOp.LE, ScalarOp.LT, ScalarOp.GE, ScalarOp.GT, ScalarOp.EQ, ScalarOp.NE)


def walk_type(x: Tensor) -> DType:
    """The type that features and thresholds are compared in."""
    return DType.F64 if x.dtype is DType.F64 else DType.F32


class Walk:
    """The loops that lead a few rows through all trees."""

    def __init__(
        self, x: Tensor, forest: Forest, targets: int, monoid: ScalarOp, start: float
    ) -> None:
        self.x, self.targets, self.monoid = x, targets, monoid
        self.start, self.dtype = start, walk_type(x)
        self.rows = max(1, min(ROWS, x.shape[0], LOCAL_BYTES // (targets * self.dtype.itemsize)))
        if targets * self.dtype.itemsize > LOCAL_BYTES:
            raise UnsupportedError(f"{targets} targets are too many for a task's scratch")
        self.interior = forest.interior
        self.feature, self.threshold = constant(forest.feature), constant(forest.threshold)
        self.children = constant(forest.children.reshape(-1))
        self.roots, self.depth = constant(forest.roots), constant(forest.depth)
        self.same_depth = int(forest.depth[0]) if forest.depth.min() == forest.depth.max() else None
        self.leaf_targets, self.weights = constant(forest.targets), constant(forest.weights)
        modes = np.unique(forest.mode[: forest.interior])
        self.modes = [int(m) for m in modes] or [0]
        self.mode = constant(forest.mode) if len(self.modes) > 1 else None
        self.missing = constant(forest.missing) if forest.missing.any() else None

    def body(self, y: Tensor) -> Stmt:
        """All rows, in groups that are tasks."""
        group = Var(fresh_axis("group"))
        at = Buffer(fresh_axis("at"), DType.I64, (self.rows,), space=Space.LOCAL)
        acc = Buffer(fresh_axis("acc"), self.dtype, (self.rows, self.targets), space=Space.LOCAL)
        shape = (self.rows, self.targets)
        begin = _loops(shape, lambda r, t: Store(acc, (r, t), as_expr(self.start, self.dtype)))

        def finish(r: Expr, t: Expr) -> Stmt:
            value = cast(y.dtype, Load(acc, (r, t)))
            return Store(y, (self._row(group, r), t), value)

        tree = Var(fresh_axis("tree"))
        all_trees = For(
            tree.name, index_const(self.roots.shape[0]), self._tree(group, tree, at, acc)
        )
        work = Alloc(at, Alloc(acc, Block((begin, all_trees, _loops(shape, finish)))))
        groups = -(-self.x.shape[0] // self.rows)
        return For(group.name, index_const(groups), work, LoopKind.PARALLEL)

    def _row(self, group: Expr, r: Expr) -> Expr:
        """The row of the input; those beyond the end of the last group repeat the last row."""
        return minimum(group * self.rows + r, self.x.shape[0] - 1)

    def _tree(self, group: Expr, tree: Expr, at: Buffer, acc: Buffer) -> Stmt:
        """From the root to the leaves of one tree."""
        step = fresh_axis("step")
        depth: Expr = cast(DType.I64, self.depth[tree])
        if self.same_depth is not None:
            depth = index_const(self.same_depth)

        def leaf(r: Expr, entry: Expr) -> Stmt:
            number = _clamped(Load(at, (r,)) - self.interior, self.weights.shape[0])
            target: Expr = index_const(0)
            if self.targets > 1:
                target = _clamped(cast(DType.I64, self.leaf_targets[number, entry]), self.targets)
            return Accumulate(acc, (r, target), self.monoid, self.weights[number, entry])

        root = cast(DType.I64, self.roots[tree])
        return Block(
            (
                _loops((self.rows,), lambda r: Store(at, (r,), root)),
                For(step, depth, _loops((self.rows,), lambda r: self._step(group, r, at))),
                _loops((self.rows, self.weights.shape[1]), leaf),
            )
        )

    def _step(self, group: Expr, r: Expr, at: Buffer) -> Stmt:
        """One row takes one step."""
        node = _clamped(Load(at, (r,)), self.feature.shape[0])
        feature = _clamped(cast(DType.I64, self.feature[node]), self.x.shape[1])
        value = cast(self.dtype, self.x[self._row(group, r), feature])
        side = Select(self._test(node, value), index_const(1), index_const(0))
        return Store(at, (r,), cast(DType.I64, self.children[node * 2 + side]))

    def _test(self, node: Expr, value: Expr) -> Expr:
        threshold = self.threshold[node]
        test: Expr = apply(TESTS[self.modes[-1]], value, threshold)
        if self.mode is not None:
            for mode in self.modes[:-1]:
                chosen = apply(TESTS[mode], value, threshold)
                test = Select(self.mode[node].eq(mode), chosen, test)
        if self.missing is not None:
            test = test | (apply(ScalarOp.ISNAN, value) & self.missing[node])
        return test


def _loops(extents: Sequence[int], body: Callable[..., Stmt]) -> Stmt:
    """Loops over the extents, the last one innermost."""
    axes = [fresh_axis() for _ in extents]
    made = body(*map(Var, axes))
    for axis, n in zip(reversed(axes), reversed(extents), strict=True):
        made = For(axis, index_const(n), made)
    return made


def _clamped(index: Expr, extent: int) -> Expr:
    """An index that the tables' checks have shown to be inside, in a form that says so."""
    return minimum(maximum(index, 0), extent - 1)
