"""Attention by tiles: a block of threads takes some rows, and the keys go by, some at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from tilewright.dtypes import DType
from tilewright.errors import ScheduleError
from tilewright.loops.ir import (
    Alloc,
    Barrier,
    Block,
    Buffer,
    Combine,
    Expr,
    For,
    If,
    Kernel,
    Load,
    Space,
    Stmt,
    Store,
    Var,
    index_const,
    substitute,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.schedule.attention import (
    GROUP,
    LOWEST,
    ZERO,
    baked,
    find_attention,
    finite,
    power,
    registers,
    written_out,
)
from tilewright.schedule.attention_threads import ThreadProgram
from tilewright.schedule.cooperate import THREAD
from tilewright.schedule.staging import WITHIN, Rectangle, vector
from tilewright.schedule.vectors import by_vectors


@dataclass(frozen=True)
class AttentionTile:
    """`rows` rows of an attention in a block, `keys` keys at a time, `width` threads to a row.

    Queries, keys, values and weights go through shared memory. Scores and sums stay in registers;
    when a greater score comes, what was summed before is scaled to it.
    """

    rows: int
    keys: int
    width: int
    threads: int = 128

    def __call__(self, kernel: Kernel) -> Kernel:
        attention = find_attention(kernel)
        if attention is None:
            raise ScheduleError(f"{self}: the kernel is no attention")
        if self.rows % self.teams or self.keys % self.width or self.keys % GROUP:
            raise ScheduleError(f"{self}: threads have no equal shares")
        return _Tiling(attention, self.threads, self).run(kernel)

    @property
    def teams(self) -> int:
        """Rows of which threads work on one at a time."""
        return self.threads // self.width

    @property
    def height(self) -> int:
        """Rows of a thread."""
        return self.rows // self.teams

    def groups(self, columns: int) -> int:
        """Groups of columns of a thread."""
        return -(-columns // (self.width * GROUP))

    def shared_bytes(self, depth: int, columns: int) -> int:
        """What a block takes."""
        values = self.groups(columns) * self.width * GROUP
        line = padded(depth)
        weights = self.keys + self.width
        return 4 * ((self.rows + self.keys) * line + self.keys * values + self.rows * weights)

    def sums(self, columns: int) -> int:
        """Scores and sums in the registers of a thread."""
        return self.height * (self.keys // self.width + self.groups(columns) * GROUP)


def padded(depth: int) -> int:
    """The length of a line in shared memory: an odd number of groups, so that neighbouring lines
    begin in different banks."""
    return (-(-depth // GROUP) | 1) * GROUP


@dataclass
class _Tiling(ThreadProgram):
    how: AttentionTile

    # -- what it keeps

    @cached_property
    def length(self) -> int:
        """Elements of a query or key, in whole groups."""
        return -(-self.of.depth[1] // GROUP) * GROUP

    @cached_property
    def groups(self) -> int:
        return self.how.groups(self.of.column[1])

    @cached_property
    def per_thread(self) -> int:
        """Keys of a thread."""
        return self.how.keys // self.how.width

    @cached_property
    def shared(self) -> dict[str, Buffer]:
        how, line = self.how, padded(self.of.depth[1])
        shapes = {
            "query": (how.rows, line),
            "key": (how.keys, line),
            "value": (how.keys, self.groups * how.width * GROUP),
            "weight": (how.rows, how.keys + how.width),
        }
        return {n: Buffer(n, DType.F32, s, space=Space.SHARED) for n, s in shapes.items()}

    def registers(self) -> Mapping[str, tuple[int, ...]]:
        how = self.how
        return {
            "score": (how.height, self.per_thread),
            "sums": (how.height, self.groups * GROUP),
            **dict.fromkeys(("top", "total", "scale"), (how.height,)),
            "all": (),
        }

    # -- where things are

    def line(self, i: Expr) -> Expr:
        """The row of the block that is a thread's i-th: neighbours have neighbouring ones."""
        return i * self.how.teams + Var(THREAD) // self.how.width

    def row(self, i: Expr) -> Expr:
        return Var("block_row") * self.how.rows + self.line(i)

    @property
    def lane(self) -> Expr:
        return Var(THREAD) % self.how.width

    def column_key(self, n: Expr) -> Expr:
        """The key of the tile that is a thread's n-th."""
        return n * self.how.width + self.lane

    def key(self, within: Expr) -> Expr:
        return Var("tile") * self.how.keys + within

    def group(self, g: Expr) -> Expr:
        return g * self.how.width + self.lane

    @cached_property
    def tiles(self) -> int:
        return -(-self.of.keys[2] // self.how.keys)

    # -- the block

    def run(self, kernel: Kernel) -> Kernel:
        start = Block((self.stage_queries(), *self.cleared()))
        step = Block(
            (
                self.by_threads(self.stage_keys()),
                Barrier(),
                self.by_threads(Block((self.multiply(), self.score()))),
                *self.greatest(),
                self.by_threads(self.weigh()),
                Barrier(),
                self.by_threads(self.sum_values()),
                Barrier(),
            )
        )
        last = Var("block_row") * self.how.rows + (self.how.rows - 1)
        body: Stmt = Block(
            (
                self.by_threads(start),
                For("tile", self.of.steps(last, self.how.keys), step),
                *self.whole_totals(),
                self.by_threads(self.finish()),
            )
        )
        blocks = [*self.of.batch, ("block_row", -(-self.of.row[1] // self.how.rows))]
        return self.bound(kernel, body, list(self.shared.values()), blocks)

    @cached_property
    def ranges(self) -> dict[str, tuple[float, float]]:
        how = self.how
        sizes = {
            **dict(self.of.batch),
            THREAD: how.threads,
            "tile": self.tiles,
            "block_row": -(-self.of.row[1] // how.rows),
            WITHIN: GROUP,
            "i": how.height,
            "g": self.groups,
            **{f"{n}_share": how.rows * how.keys * GROUP for n in ("query", "key", "value")},
        }
        return {a: (0.0, n - 1.0) for a, n in sizes.items()}

    # -- operands

    def stage_queries(self) -> Stmt:
        of = self.of

        def element(line: Expr, k: Expr) -> Expr:
            row = Var("block_row") * self.how.rows + line
            env = {of.row[0]: self._row_at(row), of.depth[0]: k}
            return substitute(of.query, env)  # type: ignore[return-value]

        rectangle = Rectangle("query", self.how.rows, self.length, of.depth[1], element)
        return rectangle.statement(self.shared["query"], self.how.threads, self.ranges)

    def _row_at(self, row: Expr) -> Expr:
        """A row that exists."""
        whole = self.of.row[1] % self.how.rows == 0
        return row if whole else self.of.place(row, index_const(0))[self.of.row[0]]

    def _key_at(self, key: Expr) -> Expr:
        whole = self.of.keys[2] % self.how.keys == 0
        return key if whole else self.of.place(index_const(0), key)[self.of.keys[0]]

    def stage_keys(self) -> Stmt:
        of, how = self.of, self.how
        columns = self.groups * how.width * GROUP

        def key(line: Expr, k: Expr) -> Expr:
            env = {of.keys[0]: self._key_at(self.key(line)), of.depth[0]: k}
            return substitute(of.key, env)  # type: ignore[return-value]

        def value(line: Expr, c: Expr) -> Expr:
            env = {of.keys[1]: self._key_at(self.key(line)), of.column[0]: c}
            return substitute(of.value, env)  # type: ignore[return-value]

        parts = (
            (Rectangle("key", how.keys, self.length, of.depth[1], key), "key"),
            (Rectangle("value", how.keys, columns, of.column[1], value), "value"),
        )
        return Block(tuple(r.statement(self.shared[n], how.threads, self.ranges) for r, n in parts))

    # -- the steps of a thread

    def cleared(self) -> list[Stmt]:
        i, c = Var("i"), Var("c")
        none = Block((self.put("top", i, value=LOWEST), self.put("total", i, value=ZERO)))
        sums = baked("c", self.groups * GROUP, self.put("sums", i, c, value=ZERO))
        return [baked("i", self.how.height, Block((none, sums)))]

    def multiply(self) -> Stmt:
        """Products of a thread's rows and keys, a group of their elements at a time."""
        i, n, v = Var("i"), Var("n"), Var(WITHIN)
        left, right = registers("left", GROUP), registers("right", self.per_thread * GROUP)
        place = Var("d") * GROUP + v
        of_key = Load(self.shared["key"], (self.column_key(n), place))
        of_query = Load(self.shared["query"], (self.line(i), place))
        step = self.add("score", i, n, value=Load(left, (v,)) * Load(right, (n * GROUP + v,)))
        each = baked("n", self.per_thread, baked(WITHIN, GROUP, step))
        rows = Block((vector("i_", 1, Store(left, (v,), of_query)), each))
        body = Block(
            (
                vector("n", self.per_thread, Store(right, (n * GROUP + v,), of_key)),
                baked("i", self.how.height, Alloc(left, rows)),
            )
        )
        zero = self.each_score(self.put("score", i, n, value=ZERO))
        return Block((zero, baked("d", self.length // GROUP, Alloc(right, body))))

    def each_score(self, s: Stmt) -> Stmt:
        return baked("i", self.how.height, baked("n", self.per_thread, s))

    def score(self) -> Stmt:
        """What the model makes of the products."""
        i, n = Var("i"), Var("n")
        key = self.key(self.column_key(n))
        whole = self.of.keys[2] % self.how.keys == 0
        value = self.of.scored(self.at("score", i, n), self.row(i), key, whole)
        return self.each_score(self.put("score", i, n, value=value))

    def greatest(self) -> list[Stmt]:
        """The greatest score of each row so far, and what that makes of the sums before."""
        i, n = Var("i"), Var("n")
        step = self.highest("all", self.at("score", i, n))
        first = Block((self.put("all", value=self.at("top", i)), baked("n", self.per_thread, step)))
        scale = power(self.at("top", i) - finite(self.at("all")))
        then = Block((self.put("scale", i, value=scale), self.put("top", i, value=self.at("all"))))
        combined = Combine(self.own["all"], ScalarOp.MAX, self.how.width)
        parts = (self.by_threads(first), combined, self.by_threads(then))
        return written_out("i", self.how.height, Block(parts))

    def weigh(self) -> Stmt:
        """Weights of the tile; sums and totals are scaled to the new greatest score."""
        i, n, c = Var("i"), Var("n"), Var("c")
        weight = power(self.at("score", i, n) - finite(self.at("top", i)))
        place = (self.line(i), self.column_key(n))
        each = Block(
            (
                self.put("score", i, n, value=weight),
                self.add("total", i, value=self.at("score", i, n)),
                Store(self.shared["weight"], place, self.at("score", i, n)),
            )
        )
        scale = self.at("scale", i)
        scaled = self.put("sums", i, c, value=self.at("sums", i, c) * scale)
        body = Block(
            (
                self.put("total", i, value=self.at("total", i) * scale),
                baked("c", self.groups * GROUP, scaled),
                baked("n", self.per_thread, each),
            )
        )
        return baked("i", self.how.height, body)

    def sum_values(self) -> Stmt:
        """Values of the tile by their weights, a group of keys at a time."""
        i, g, v, u = Var("i"), Var("g"), Var(WITHIN), Var("u")
        size = self.groups * GROUP
        left, right = registers("left", GROUP), registers("right", GROUP * size)
        first = Var("k") * GROUP
        of_value = Load(self.shared["value"], (first + u, self.group(g) * GROUP + v))
        of_weight = Load(self.shared["weight"], (self.line(i), first + v))
        at = g * GROUP + v
        product = Load(left, (u,)) * Load(right, (u * size + at,))
        step = self.add("sums", i, at, value=product)
        inner = baked("u", GROUP, baked("g", self.groups, baked(WITHIN, GROUP, step)))
        rows = Block((vector("i_", 1, Store(left, (v,), of_weight)), inner))
        values = vector("g", self.groups, Store(right, (u * size + at,), of_value))
        body = Block((baked("u", GROUP, values), baked("i", self.how.height, Alloc(left, rows))))
        return baked("k", self.how.keys // GROUP, Alloc(right, body))

    # -- the results

    def whole_totals(self) -> list[Stmt]:
        i = Var("i")
        parts = (
            self.by_threads(self.put("all", value=self.at("total", i))),
            Combine(self.own["all"], ScalarOp.ADD, self.how.width),
            self.by_threads(self.put("total", i, value=self.at("all"))),
        )
        return written_out("i", self.how.height, Block(parts))

    def finish(self) -> Stmt:
        i, g, v = Var("i"), Var("g"), Var(WITHIN)
        row, columns = self.row(i), self.of.column[1]
        column = self.group(g) * GROUP + v
        value = self.of.share(self.at("sums", i, g * GROUP + v), self.at("total", i), row)
        body = self.grouped(self.of.stored(row, column, value), self.group(g), columns)
        body = baked("g", self.groups, body)
        if self.of.row[1] % self.how.rows:
            body = If(row < self.of.row[1], body)
        return baked("i", self.how.height, body)

    def grouped(self, s: Store, group: Expr, columns: int) -> Stmt:
        """A store of a group of results side by side."""
        ragged = columns % (self.how.width * GROUP) != 0
        loop = For(WITHIN, index_const(GROUP), s, baked=True)
        if columns % GROUP:
            return replace(loop, body=If(group * GROUP + Var(WITHIN) < columns, s))
        whole = by_vectors(loop, self.ranges)
        return If(group < columns // GROUP, whole) if ragged else whole
