"""The loops of an attention: scores of some rows against all keys, softmax, sums of values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tilewright.dtypes import DType
from tilewright.loops.affine import Range
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Apply,
    Block,
    Buffer,
    Const,
    Expr,
    For,
    Load,
    LoopKind,
    Node,
    Space,
    Stmt,
    Store,
    Tile,
    Var,
    dtype_of,
    index_const,
    rewrite,
    substitute,
    variables,
)
from tilewright.loops.locate import offset
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import minimum, select
from tilewright.ops.tensor import Compute, NestOutput, compute

Factors = Callable[[Expr, Expr, Expr], Expr]  # row, column, depth: the product of both
Put = Callable[[Expr, Expr, Expr], Stmt]  # row, column, result
ROWS = 14  # of a task at most
PANEL = 2  # vectors in a panel of keys, and in a block of values
SCRATCH_BYTES = 512 << 10  # scores of one task
SCORE, WEIGHT = "score", "weight"  # axes over the keys


@dataclass(frozen=True)
class Attention:
    """sum over keys of weight * value, weight being a softmax of scores; all in the axes of the
    result.

    `score` and `weight` say what becomes of an element of the product and of the softmax, which
    they read under the name that goes with them.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    free: tuple[str, str]
    keys: tuple[str, int]
    depth: tuple[str, int]
    query: Expr
    key: Expr
    value: Expr
    score: tuple[str, Expr]
    weight: tuple[str, Expr]
    factor: str  # the name of the weights as they are multiplied

    @property
    def row(self) -> str:
        return self.free[0]

    @property
    def column(self) -> str:
        """The axis of the result that only the values follow."""
        return self.free[1]

    @property
    def batch(self) -> list[str]:
        return [a for a in self.axes if a not in self.free]

    def extent(self, axis: str) -> int:
        return self.shape[self.axes.index(axis)]

    @property
    def ranges(self) -> dict[str, Range]:
        sizes = [*zip(self.axes, self.shape, strict=True), self.keys, self.depth]
        return {a: (0.0, float(n - 1)) for a, n in sizes}

    def panels(self, lanes: int) -> int:
        return -(-self.keys[1] // (PANEL * lanes))

    def rows(self, lanes: int) -> int:
        """Rows of a task: as many as the registers hold, and whose scores fit the scratch."""
        fitting = SCRATCH_BYTES // (4 * self.panels(lanes) * PANEL * lanes)
        most, n = max(1, min(ROWS, fitting)), self.extent(self.row)
        return -(-n // -(-n // most))

    def fits(self, lanes: int) -> bool:
        """Whether register tiles can step through the operands, and the scratch holds a row."""
        row, column, (key, keys), (depth, _) = self.row, self.column, self.keys, self.depth
        if 4 * self.panels(lanes) * PANEL * lanes > SCRATCH_BYTES or min(self.shape) == 0:
            return False
        if self.extent(column) < lanes or keys == 0 or row not in variables(self.query):
            return False
        query, value = self.query, self.value
        if not isinstance(query, Load) or not isinstance(value, Load):
            return False
        if any(dtype_of(x) is not DType.F32 for x in (query, self.key, value)):
            return False
        q = offset(query.buffer, query.index, self.ranges)
        v = offset(value.buffer, value.index, self.ranges)
        even = not {row, depth} & q.nonlinear_axes() and not {key, column} & v.nonlinear_axes()
        one_use = not {key, column} & variables(self.query) and not {depth, row} & variables(
            self.value
        )
        return even and one_use and v.coefficient(column) == 1


@dataclass(frozen=True)
class Form:
    """What a target makes of an attention: which ones it takes, the loops that fill a result, and
    whether operands may be cheap `maps` of what is in memory."""

    fits: Callable[[Attention], bool]
    loops: Callable[[Attention, NestOutput], Stmt]
    maps: bool = False


def by_vectors(lanes: int) -> Form:
    """Rows of scores in scratch, their outer loops parallel, on register tiles."""

    def loops(a: Attention, result: NestOutput) -> Stmt:
        return _Loops(a, result, lanes, _packed_keys(a, lanes)).nest()

    return Form(lambda a: a.fits(lanes), loops)


def _packed_keys(a: Attention, lanes: int) -> Compute:
    """The keys as [batch..., panel, depth, lane], zero beyond the last."""
    width, (key, keys), (depth, size) = PANEL * lanes, a.keys, a.depth
    batch = [x for x in a.batch if x in variables(a.key)]

    def element(*i: Expr) -> Expr:
        column = i[-3] * width + i[-1]
        env = {**dict(zip(batch, i, strict=False)), key: column, depth: i[-2]}
        loaded: Expr = substitute(a.key, env)  # type: ignore[assignment]
        return loaded if keys % width == 0 else select(column < keys, loaded, 0)

    shape = (*(a.extent(x) for x in batch), a.panels(lanes), size, width)
    return replace(compute(shape, element), op="Pack")


@dataclass(frozen=True)
class _Loops:
    a: Attention
    result: NestOutput
    lanes: int
    packed: Compute

    def nest(self) -> Stmt:
        a, rows = self.a, self.a.rows(self.lanes)
        scores = _local("scores", rows, a.panels(self.lanes) * PANEL * self.lanes)
        sums = _local("sums", rows)
        body: Stmt = Block(
            (
                self._scores(scores),
                _for("r", rows, self._softmax(scores, sums)),
                self._values(scores, sums),
            )
        )
        body = Alloc(scores, Alloc(sums, body))
        blocks = -(-a.extent(a.row) // rows)
        body = For("block", index_const(blocks), body, LoopKind.PARALLEL)
        for axis in reversed(a.batch):
            body = For(axis, index_const(a.extent(axis)), body, LoopKind.PARALLEL)
        return body

    def _row(self, r: Expr) -> Expr:
        """The row of the result; the last block overlaps the one before."""
        rows = self.a.rows(self.lanes)
        return minimum(Var("block") * rows, self.a.extent(self.a.row) - rows) + r

    def _scores(self, scores: Buffer) -> Stmt:
        a, width = self.a, PANEL * self.lanes
        batch = tuple(Var(x) for x in a.batch if x in variables(a.key))

        def factors(r: Expr, c: Expr, k: Expr) -> Expr:
            query: Expr = substitute(a.query, {a.row: self._row(r), a.depth[0]: k})  # type: ignore[assignment]
            return query * Load(self.packed, (*batch, Var("panel"), k, c))

        def store(r: Expr, c: Expr, value: Expr) -> Stmt:
            return Store(scores, (r, Var("panel") * width + c), value)

        tile = _tile("product", a.rows(self.lanes), width, a.depth[1], factors, store)
        return _for("panel", a.panels(self.lanes), tile, baked=False)

    def _softmax(self, scores: Buffer, sums: Buffer) -> Stmt:
        """Scores as the model has them, their exponentials, and the sum of these."""
        a, r, keys = self.a, Var("r"), index_const(self.a.keys[1])
        top, total = _local("top"), _local("total")
        place = (r, Var(SCORE))
        here = self._completed(a.score, Load(scores, place), SCORE)
        first = Block((Store(scores, place, here), Accumulate(top, (), ScalarOp.MAX, here)))
        power = Apply(ScalarOp.EXP, (Load(scores, place) - Load(top, ()),))
        second = Block(
            (Store(scores, place, power), Accumulate(total, (), ScalarOp.ADD, Load(scores, place)))
        )
        steps: list[Stmt] = [
            Store(top, (), Const(float("-inf"), DType.F32)),
            For(SCORE, keys, first),
            Store(total, (), Const(0.0, DType.F32)),
            For(SCORE, keys, second),
            Store(sums, (r,), Load(total, ())),
        ]
        if not self._is_plain:
            share = Load(scores, (r, Var(WEIGHT))) / Load(total, ())
            weight = self._completed(a.weight, share, WEIGHT)
            steps.append(For(WEIGHT, keys, Store(scores, (r, Var(WEIGHT)), weight)))
        return Alloc(top, Alloc(total, Block(tuple(steps))))

    @property
    def _is_plain(self) -> bool:
        """Whether the weights are what the softmax gives."""
        return isinstance(self.a.weight[1], Load)

    def _completed(self, change: tuple[str, Expr], value: Expr, keys: str) -> Expr:
        name, e = change

        def rule(n: Node) -> Node | None:
            return value if isinstance(n, Load) and n.buffer.name == name else None

        env: dict[str, Expr] = {self.a.row: self._row(Var("r")), self.a.keys[0]: Var(keys)}
        return rewrite(substitute(e, env), rule)  # type: ignore[arg-type,return-value]

    def _values(self, scores: Buffer, sums: Buffer) -> Stmt:
        a = self.a
        size = a.extent(a.column)
        width = min(PANEL, size // self.lanes) * self.lanes
        first = minimum(Var("part") * width, size - width)

        def factors(r: Expr, c: Expr, k: Expr) -> Expr:
            value: Expr = substitute(a.value, {a.column: first + c, a.keys[0]: k})  # type: ignore[assignment]
            return Load(scores, (r, k)) * value

        def store(r: Expr, c: Expr, value: Expr) -> Stmt:
            env = {a.row: self._row(r), a.column: first + c}
            index = tuple(env.get(x, Var(x)) for x in a.axes)
            share = value / Load(sums, (r,)) if self._is_plain else value
            return Store(self.result, index, share)

        tile = _tile("sum", a.rows(self.lanes), width, a.keys[1], factors, store)
        return _for("part", -(-size // width), tile, baked=False)


def _tile(name: str, rows: int, width: int, depth: int, factors: Factors, put: Put) -> Stmt:
    """acc[r, c] = sum over k of the factors' product, and what becomes of it."""
    acc = _local(f"{name}_acc", rows, width)
    r, c, k = (Var(f"{name}_{x}") for x in ("row", "column", "depth"))
    zero = Store(acc, (r, c), Const(0.0, DType.F32))
    step = Accumulate(acc, (r, c), ScalarOp.ADD, factors(r, c, k))

    def around(s: Stmt) -> Stmt:
        return _for(r.name, rows, _for(c.name, width, s))

    meaning = Block((around(zero), For(k.name, index_const(depth), around(step))))
    tile = Tile(acc, r.name, c.name, (k.name,), meaning)
    return Alloc(acc, Block((tile, around(put(r, c, Load(acc, (r, c)))))))


def _for(axis: str, extent: int, body: Stmt, baked: bool = True) -> Stmt:
    return For(axis, index_const(extent), body, baked=baked)


def _local(name: str, *shape: int) -> Buffer:
    return Buffer(name, DType.F32, tuple(shape), space=Space.LOCAL)
