"""Attention of halves on tensor cores: warps own rows, keys and values are copied ahead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import e, log2

from tilewright.dtypes import DType
from tilewright.errors import ScheduleError
from tilewright.loops.ir import (
    Apply,
    Barrier,
    Block,
    Buffer,
    Cast,
    Combine,
    Commit,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Load,
    Mma,
    Space,
    Stmt,
    Store,
    Var,
    Wait,
    index_const,
    substitute,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify_threads import QUAD, WARP
from tilewright.schedule.attention import (
    LOWEST,
    ZERO,
    baked,
    find_attention,
    finite,
    written_out,
)
from tilewright.schedule.attention_threads import ThreadProgram
from tilewright.schedule.cooperate import THREAD
from tilewright.schedule.mma_results import PAIR
from tilewright.schedule.mma_tiles import COLUMNS, ROWS
from tilewright.schedule.panels import PART, Panel, in_parts
from tilewright.schedule.staging import WITHIN
from tilewright.schedule.vectors import by_vectors

LOG2_E = Const(log2(e), DType.F32)


@dataclass(frozen=True)
class AttentionMma:
    """`rows` rows of an attention in a block, `height` of them in a warp, `keys` keys at a time.

    Queries, keys and values go through shared memory as halves, keys and values copied while the
    `stages` - 1 tiles before are multiplied. Scores, weights and sums stay in the registers of a
    warp. Both products are summed in float32. Weights are powers of two of at most 0, summed in
    float32 and then rounded to the half type, as factors; what they are a share of is known last.
    """

    rows: int
    height: int
    keys: int
    stages: int = 2

    def __call__(self, kernel: Kernel) -> Kernel:
        attention = find_attention(kernel)
        if attention is None:
            raise ScheduleError(f"{self}: the kernel is no attention")
        if attention.half is None:
            raise ScheduleError(f"{self}: the weights are no halves")
        if self.rows % self.height or self.height % ROWS or self.keys % PART or self.stages < 2:
            raise ScheduleError(f"{self}: warps have no whole matrices")
        return _Tiling(attention, self.threads, self, attention.half).run(kernel)

    @property
    def threads(self) -> int:
        """The threads of a block."""
        return self.rows // self.height * WARP

    def shared_bytes(self, depth: int, columns: int) -> int:
        """What a block takes."""
        line, values = in_parts(depth) + COLUMNS, in_parts(columns) + COLUMNS
        return 2 * (self.rows * line + self.stages * self.keys * (line + values))

    @property
    def scores(self) -> int:
        """Scores in the registers of a thread."""
        return self.height * self.keys // WARP

    def sums(self, columns: int) -> int:
        """Scores and sums in the registers of a thread."""
        return self.scores + self.height * in_parts(columns) // WARP


@dataclass
class _Tiling(ThreadProgram):
    how: AttentionMma
    half: DType

    # -- what it keeps

    @cached_property
    def high(self) -> int:
        """Matrices of rows of a warp."""
        return self.how.height // ROWS

    @cached_property
    def wide(self) -> dict[str, int]:
        """Matrices of columns of the scores and of the sums."""
        columns = in_parts(self.of.column[1])
        return {"score": self.how.keys // COLUMNS, "sums": columns // COLUMNS}

    def registers(self) -> Mapping[str, tuple[int, ...]]:
        matrices = {n: (self.high, wide, PAIR, PAIR) for n, wide in self.wide.items()}
        lines = dict.fromkeys(("top", "total", "scale"), (self.high, PAIR))
        return {**matrices, **lines, "all": ()}

    @cached_property
    def limit(self) -> Buffer:
        """How many tiles the rows of a block need, where that is not all of them."""
        name, shape = "needed", (self.threads,)
        return Buffer(name, DType.I64, shape, space=Space.THREAD, values=(0, self.tiles))

    @cached_property
    def tiles(self) -> int:
        return -(-self.of.keys[2] // self.how.keys)

    @cached_property
    def steps(self) -> Expr:
        last = Var("block_row") * self.how.rows + (self.how.rows - 1)
        return self.of.steps(last, self.how.keys)

    @property
    def is_limited(self) -> bool:
        return not isinstance(self.steps, Const)

    # -- where things are

    @property
    def lane(self) -> Expr:
        return Var(THREAD) % WARP

    def line(self, i: Expr, h: Expr) -> Expr:
        """The row of the block that is a thread's."""
        warp = Var(THREAD) // WARP
        return warp * self.how.height + i * ROWS + h * (ROWS // 2) + self.lane // QUAD

    def row(self, i: Expr, h: Expr) -> Expr:
        return Var("block_row") * self.how.rows + self.line(i, h)

    def pair(self, j: Expr) -> Expr:
        """The pair of columns of a matrix that is a thread's."""
        return j * (COLUMNS // PAIR) + self.lane % QUAD

    def column(self, j: Expr, v: Expr) -> Expr:
        return self.pair(j) * PAIR + v

    def key(self, j: Expr, v: Expr) -> Expr:
        return Var("tile") * self.how.keys + self.column(j, v)

    # -- the block

    def run(self, kernel: Kernel) -> Kernel:
        ahead = self.how.stages - 1
        later = Var("tile") + ahead
        tiles = Load(self.limit, (Var(THREAD),)) if self.is_limited else index_const(self.tiles)
        copies = self.copy_keys(later % self.how.stages, later)
        begun = [self.by_threads(If(later < tiles, copies))] if self.tiles > ahead else []
        stage = Var("tile") % self.how.stages
        step = Block(
            (
                Wait(ahead - 1),
                Barrier(),
                *begun,
                Commit(),
                self.by_threads(Block((self.multiply(stage), self.score()))),
                *self.greatest(),
                self.by_threads(self.weigh()),
                self.by_threads(self.sum_values(stage)),
            )
        )
        body: Stmt = Block(
            (
                *self.start(tiles),
                For("tile", self.steps, step),
                *self.whole_totals(),
                self.by_threads(self.finish()),
            )
        )
        shared = [p.buffer for p in (self.query, self.keys, self.values)]
        shared += [self.limit] if self.is_limited else []
        return self.bound(kernel, body, shared, self.blocks)

    def start(self, tiles: Expr) -> list[Stmt]:
        """Copies begin, registers are cleared."""
        first = Var("block_row") * self.how.rows
        limited = self.of.row[1] % self.how.rows != 0
        query = self.query.copy(index_const(0), first, limited, self.threads, self.ranges)
        begun: list[Stmt] = [self.cleared(), query]
        if self.is_limited:
            begun.insert(0, Store(self.limit, (Var(THREAD),), self.steps))
        found: list[Stmt] = []
        for k in range(min(self.how.stages - 1, self.tiles)):
            copies = self.copy_keys(index_const(k), index_const(k))
            begun.append(If(index_const(k) < tiles, copies) if k and self.is_limited else copies)
            found += [self.by_threads(Block(tuple(begun))), Commit()]
            begun = []
        return [*found, *[Commit()] * (self.how.stages - 1 - self.tiles)]

    @cached_property
    def blocks(self) -> list[tuple[str, int]]:
        return [*self.of.batch, ("block_row", -(-self.of.row[1] // self.how.rows))]

    @cached_property
    def ranges(self) -> dict[str, tuple[float, float]]:
        sizes = {
            **dict(self.blocks),
            THREAD: self.threads,
            "tile": self.tiles,
            WITHIN: PAIR,
            "i": self.high,
            "j": max(self.wide.values()),
            "h": PAIR,
        }
        return {a: (0.0, n - 1.0) for a, n in sizes.items()}

    # -- operands

    @cached_property
    def query(self) -> Panel:
        of = self.of

        def element(row: Expr, k: Expr) -> Expr:
            return substitute(of.query, {of.row[0]: row, of.depth[0]: k})  # type: ignore[return-value]

        return Panel("query", self.half, 1, self.how.rows, of.row[1], of.depth[1], element)

    @cached_property
    def keys(self) -> Panel:
        of = self.of

        def element(key: Expr, k: Expr) -> Expr:
            return substitute(of.key, {of.keys[0]: key, of.depth[0]: k})  # type: ignore[return-value]

        how = self.how
        return Panel("key", self.half, how.stages, how.keys, of.keys[2], of.depth[1], element)

    @cached_property
    def values(self) -> Panel:
        of = self.of

        def element(key: Expr, c: Expr) -> Expr:
            return substitute(of.value, {of.keys[1]: key, of.column[0]: c})  # type: ignore[return-value]

        how = self.how
        return Panel("value", self.half, how.stages, how.keys, of.keys[2], of.column[1], element)

    def copy_keys(self, stage: Expr, tile: Expr) -> Stmt:
        """Keys and values of a tile."""
        first = tile * self.how.keys
        limited = self.is_limited or self.of.keys[2] % self.how.keys != 0
        parts = (self.keys, self.values)
        return Block(tuple(p.copy(stage, first, limited, self.threads, self.ranges) for p in parts))

    # -- the steps of a thread

    def each(self, name: str, s: Stmt) -> Stmt:
        """For every score or sum of a thread."""
        extents = (self.high, self.wide[name], PAIR, PAIR)
        for axis, n in reversed(list(zip("ijhv", extents, strict=True))):
            s = baked(axis, n, s)
        return s

    @property
    def place(self) -> tuple[Expr, ...]:
        return Var("i"), Var("j"), Var("h"), Var("v")

    def cleared(self) -> Stmt:
        i, h = Var("i"), Var("h")
        none = Block((self.put("top", i, h, value=LOWEST), self.put("total", i, h, value=ZERO)))
        sums = self.each("sums", self.put("sums", *self.place, value=ZERO))
        return Block((baked("i", self.high, baked("h", PAIR, none)), sums))

    def multiply(self, stage: Expr) -> Stmt:
        """Products of a warp's rows and the keys, a part of their elements at a time."""
        i, j, h, v = self.place
        first, k = Var("k") * PART, Var("k") * PART + Var("d")
        query = Load(self.query.buffer, (index_const(0), self.line(i, h), k))
        key = Load(self.keys.buffer, (stage, self.column(j, v), k))
        product = Cast(DType.F32, query) * Cast(DType.F32, key)
        step = baked("d", PART, self.add("score", *self.place, value=product))
        warp = Var(THREAD) // WARP * self.how.height
        left = Load(self.query.buffer, (index_const(0), warp, first))
        right = Load(self.keys.buffer, (stage, index_const(0), first))
        mma = Mma(self.own["score"], left, right, (True, True), self.each("score", step))
        zero = self.each("score", self.put("score", *self.place, value=ZERO))
        return Block((zero, baked("k", self.keys.length // PART, mma)))

    def score(self) -> Stmt:
        """What the model makes of the products."""
        i, j, h, v = self.place
        whole = self.of.keys[2] % self.how.keys == 0
        key = self.key(j, v)
        value = self.of.scored(self.at("score", *self.place), self.row(i, h), key, whole)
        return self.each("score", self.put("score", *self.place, value=value))

    def each_line(self, body: Stmt) -> list[Stmt]:
        """For every row of a thread, one after the other."""
        lines = Block(tuple(written_out("h", PAIR, body)))
        return written_out("i", self.high, lines)

    def greatest(self) -> list[Stmt]:
        """The greatest score of each row so far, and what that makes of the sums before."""
        i, h = Var("i"), Var("h")
        step = baked("j", self.wide["score"], baked("v", PAIR, self._higher()))
        first = Block((self.put("all", value=self.at("top", i, h)), step))
        scale = power(self.at("top", i, h) - finite(self.at("all")))
        then = Block(
            (self.put("scale", i, h, value=scale), self.put("top", i, h, value=self.at("all")))
        )
        combined = Combine(self.own["all"], ScalarOp.MAX, QUAD)
        return self.each_line(Block((self.by_threads(first), combined, self.by_threads(then))))

    def _higher(self) -> Stmt:
        return self.highest("all", self.at("score", *self.place))

    def weigh(self) -> Stmt:
        """Weights of the tile; sums and totals are scaled to the new greatest score."""
        i, h = Var("i"), Var("h")
        weight = power(self.at("score", *self.place) - finite(self.at("top", i, h)))
        each = Block(
            (
                self.put("score", *self.place, value=weight),
                self.add("total", i, h, value=self.at("score", *self.place)),
            )
        )
        scale = self.at("scale", i, h)
        total = self.put("total", i, h, value=self.at("total", i, h) * scale)
        scaled = self.put("sums", *self.place, value=self.at("sums", *self.place) * scale)
        return Block(
            (
                baked("i", self.high, baked("h", PAIR, total)),
                self.each("sums", scaled),
                self.each("score", each),
            )
        )

    def sum_values(self, stage: Expr) -> Stmt:
        """Values of the tile by their weights, a part of the keys at a time."""
        parts = (self._sum_part(stage, k) for k in range(self.how.keys // PART))
        return Block(tuple(parts))

    def _sum_part(self, stage: Expr, k: int) -> Stmt:
        """A lane has pairs of the weights of its rows, as an instruction wants a left factor."""
        i, j, h, v = self.place
        d, first = Var("d"), k * (PART // COLUMNS)
        holder = Var(THREAD) // QUAD * QUAD + d % COLUMNS // PAIR
        at = (holder, i, first + d // COLUMNS, h, d % PAIR)
        weight = Cast(self.half, Load(self.own["score"], at))
        value = Load(self.values.buffer, (stage, k * PART + d, self.column(j, v)))
        product = Cast(DType.F32, weight) * Cast(DType.F32, value)
        step = baked("d", PART, self.add("sums", *self.place, value=product))
        zero = index_const(0)
        left = Load(self.own["score"], (Var(THREAD), zero, index_const(first), zero, zero))
        right = Load(self.values.buffer, (stage, index_const(k * PART), zero))
        return Mma(self.own["sums"], left, right, (True, False), self.each("sums", step))

    # -- the results

    def whole_totals(self) -> list[Stmt]:
        i, h = Var("i"), Var("h")
        parts = (
            self.by_threads(self.put("all", value=self.at("total", i, h))),
            Combine(self.own["all"], ScalarOp.ADD, QUAD),
            self.by_threads(
                Block(
                    (
                        self.put("total", i, h, value=self.at("all")),
                        self.put(
                            "scale", i, h, value=Apply(ScalarOp.RECIPROCAL, (self.at("all"),))
                        ),
                    )
                )
            ),
        )
        return self.each_line(Block(parts))

    def finish(self) -> Stmt:
        i, j, h, v = self.place
        row, columns = self.row(i, h), self.of.column[1]
        total, inverse = self.at("total", i, h), self.at("scale", i, h)
        share = self.of.share(self.at("sums", *self.place), total, row, inverse)
        store = self.of.stored(row, self.column(j, v), share)
        body = baked("j", self.wide["sums"], self.paired(store, self.pair(j), columns))
        if self.of.row[1] % self.how.rows:
            body = If(row < self.of.row[1], body)
        return baked("i", self.high, baked("h", PAIR, body))

    def paired(self, s: Store, pair: Expr, columns: int) -> Stmt:
        """A store of two results side by side."""
        loop = For(WITHIN, index_const(PAIR), s, baked=True)
        if columns % PAIR:
            return replace(loop, body=If(pair * PAIR + Var(WITHIN) < columns, s))
        whole = by_vectors(loop, self.ranges)
        return If(pair < columns // PAIR, whole) if columns % COLUMNS or columns % PART else whole


def power(x: Expr) -> Expr:
    """e^x, as a power of two."""
    return Apply(ScalarOp.EXP2, (x * LOG2_E,))
