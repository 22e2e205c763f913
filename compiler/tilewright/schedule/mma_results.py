"""Results of tensor cores by way of shared memory: a warp holds the sums of eight lines in pieces,
memory wants whole lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from tilewright.loops.affine import Range
from tilewright.loops.ir import (
    Alloc,
    Barrier,
    Block,
    Buffer,
    Expr,
    For,
    If,
    Load,
    LoopKind,
    Node,
    Space,
    Stmt,
    Store,
    Var,
    index_const,
    rewrite,
    substitute,
)
from tilewright.schedule.block_tiles import Product, baked_loop
from tilewright.schedule.cooperate import THREAD, unflattened
from tilewright.schedule.vectors import VECTOR_BYTES, by_vectors, is_adjacent

PAIR = 2  # sums that lie side by side in one thread
PART = 4  # sums that are one access to shared memory
SHARE = "share"


@dataclass(frozen=True)
class StagedResults:
    """A block of `rows` x `columns` sums that becomes results by vectors of 128 bits.

    `write` gives the stores of a thread's sums, for a function that says where those of a row and
    of a pair of columns belong, one of the pair being number `v`.
    """

    product: Product
    rows: int
    columns: int
    threads: int
    blocks: Sequence[tuple[str, int]]
    write: Callable[[Callable[[Expr, Expr], tuple[Expr, ...]], Buffer], Stmt]

    @cached_property
    def total(self) -> tuple[int, int]:
        """The results there are, along both sides."""
        count = {True: 1, False: 1}
        for name, n in (*self.product.rows, *self.product.columns):
            count[(name, n) in self.product.rows] *= n
        return count[True], count[False]

    @cached_property
    def group(self) -> int:
        """Results of one vector."""
        return VECTOR_BYTES // max(s.buffer.dtype.itemsize for s in self.stores)

    @cached_property
    def stores(self) -> list[Store]:
        return [s for s in self.product.stores if isinstance(s, Store)]

    @property
    def parts(self) -> int:
        return self.group // PART

    @cached_property
    def sums(self) -> Buffer:
        """[row, part of a group, sum]: threads that read the same parts of neighbouring groups use
        all banks, and so do those that write neighbouring rows."""
        shape = (self.rows, self.parts, self.columns // self.parts + PART)
        return Buffer("results", self.product.total.dtype, shape, space=Space.SHARED)

    @property
    def is_of_use(self) -> bool:
        """Whether all results are narrower than their sums, and lie side by side in vectors."""
        width = self.product.total.dtype.itemsize
        sizes = {s.buffer.dtype.itemsize for s in self.stores}
        if not sizes or len(sizes) > 1 or width != PART or max(sizes) >= width:
            return False
        if self.columns % self.group or self.total[1] % self.group:
            return False
        return all(
            is_adjacent(s.buffer, s.index, self.loop(s), self.ranges)
            for s in map(self.placed, self.stores)
        )

    def statement(self, by_threads: Callable[[Stmt], Stmt]) -> Stmt:
        """All sums into shared memory, then each thread its share of results."""

        def place(row: Expr, pair: Expr) -> tuple[Expr, ...]:
            pairs = PART // PAIR
            group, rest = pair // (pairs * self.parts), pair % (pairs * self.parts)
            return row, rest // pairs, group * PART + rest % pairs * PAIR + Var("v")

        put = self.write(place, self.sums)
        return Alloc(self.sums, Block((by_threads(put), Barrier(), by_threads(self.finish()))))

    # -- a group of results

    @property
    def element(self) -> Expr:
        return Var(SHARE) * self.threads + Var(THREAD)

    @property
    def across(self) -> int:
        """The groups of a row of the block."""
        return self.columns // self.group

    @property
    def row(self) -> Expr:
        return self.element // self.across

    @property
    def at(self) -> tuple[Expr, Expr]:
        """The row of all results, and the group of all columns."""
        group = Var("block_column") * self.across + self.element % self.across
        return Var("block_row") * self.rows + self.row, group

    @property
    def shares(self) -> int:
        return -(-self.rows * self.across // self.threads)

    @property
    def ranges(self) -> dict[str, Range]:
        sizes = {**dict(self.blocks), THREAD: self.threads, SHARE: self.shares, "v": self.group}
        return {axis: (0.0, n - 1.0) for axis, n in sizes.items()}

    def loop(self, s: Stmt) -> For:
        return For("v", index_const(self.group), s, baked=True)

    def placed(self, s: Store) -> Store:
        """The store of one result of the group, whose sum is in registers."""
        row, group = self.at
        env = {
            **unflattened(list(self.product.rows), row),
            **unflattened(list(self.product.columns), group * self.group + Var("v")),
        }

        def rule(n: Node) -> Node | None:
            is_sum = isinstance(n, Load) and n.buffer is self.product.total
            return Load(self.held, (Var("v"),)) if is_sum else None

        return rewrite(substitute(s, env), rule)  # type: ignore[return-value]

    @cached_property
    def held(self) -> Buffer:
        return Buffer("held", self.product.total.dtype, (self.group,), space=Space.LOCAL)

    def finish(self) -> Stmt:
        """What one thread does with its groups."""
        part, lane = Var("part"), Var("lane")
        place = (self.row, part, self.element % self.across * PART + lane)
        copy = Store(self.held, (part * PART + lane,), Load(self.sums, place))
        vector = For("lane", index_const(PART), copy, LoopKind.VECTOR, baked=True)
        read = baked_loop("part", self.parts, vector)
        done = [by_vectors(self.loop(self.placed(s)), self.ranges) for s in self.stores]
        body: Stmt = Alloc(self.held, Block((read, *done)))
        (row, group), (rows, columns) = self.at, self.total
        if columns % self.columns:
            body = If(group < columns // self.group, body)
        if rows % self.rows:
            body = If(row < rows, body)
        if self.rows * self.across % self.threads:
            body = If(self.element < self.rows * self.across, body)
        return baked_loop(SHARE, self.shares, body)
