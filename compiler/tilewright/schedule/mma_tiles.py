"""Sums of products on tensor cores: blocks of threads, warps, and copies that run ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from tilewright.errors import ScheduleError
from tilewright.loops.affine import simplify_index, simplify_loads
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Apply,
    Barrier,
    Block,
    Buffer,
    Commit,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Load,
    LoopKind,
    Mma,
    Node,
    Select,
    Space,
    Stmt,
    Store,
    Var,
    Wait,
    index_const,
    rewrite,
    substitute,
    variables,
)
from tilewright.loops.locate import axis_ranges
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify_threads import WARP
from tilewright.schedule.block_tiles import (
    Product,
    baked_loop,
    find_product,
    memory_step,
    over_blocks,
)
from tilewright.schedule.cooperate import THREAD, unflattened
from tilewright.schedule.mma_results import PAIR, StagedResults
from tilewright.schedule.mma_sides import Side, multiplies, side_of
from tilewright.schedule.vectors import VECTOR_BYTES, by_vectors, is_adjacent

ROWS, COLUMNS = 16, 8  # of one instruction's sums
DEPTH_BYTES = 32  # of a row that one instruction multiplies
MIN_ASYNC_BYTES = 4
COMPARISONS = (ScalarOp.LT, ScalarOp.LE, ScalarOp.GT, ScalarOp.GE, ScalarOp.EQ, ScalarOp.NE)


@dataclass(frozen=True)
class MmaTile:
    """Compute `rows` x `columns` results in a block, `height` x `width` of them in a warp.

    Both factors go through shared memory, `depth` steps of the sum at a time, copied while the
    `stages` - 1 steps before are multiplied. Halves, and float32 that is rounded to TF32, are
    summed in float32, bytes in int32.
    """

    rows: int
    columns: int
    depth: int
    height: int
    width: int
    stages: int = 3

    @property
    def warps(self) -> int:
        """The warps of a block."""
        return self.rows * self.columns // (self.height * self.width)

    @property
    def threads(self) -> int:
        """The threads of a block."""
        return self.warps * WARP

    def __call__(self, kernel: Kernel) -> Kernel:
        product = find_product(kernel)
        if product is None:
            raise ScheduleError(f"{self}: the kernel is no sum of products")
        if prod(n for _, n in product.depth) <= self.depth:
            raise ScheduleError(f"{self}: the sum is too short to copy ahead")
        if not product.rows or not product.columns:
            raise ScheduleError(f"{self}: the results are no rows and columns")
        sides = tuple(side_of(f, product) for f in (product.a, product.b))
        for s in sides:
            if s is None or self.depth * s.dtype.itemsize % DEPTH_BYTES:
                raise ScheduleError(f"{self}: the factors are no halves or bytes as they lie")
        left, right = sides
        assert left is not None and right is not None
        if not multiplies(left.dtype, right.dtype, product.total.dtype):
            raise ScheduleError(f"{self}: no tensor core multiplies {left.dtype} by {right.dtype}")
        return MmaTiling(self, kernel, product, (left, right)).run()


@dataclass
class MmaTiling:
    how: MmaTile
    kernel: Kernel
    product: Product
    sides: tuple[Side, Side]

    def run(self) -> Kernel:
        body = self.bound(self.block())
        ranges = axis_ranges(body)

        def rule(n: Node) -> Node | None:
            if isinstance(n, (Store, Accumulate)):
                index = tuple(simplify_index(i, ranges) for i in n.index)
                return replace(n, index=index, value=simplify_loads(n.value, ranges))
            return None

        return replace(self.kernel, body=rewrite(body, rule))  # type: ignore[arg-type]

    @cached_property
    def sizes(self) -> tuple[int, int, int]:
        p = self.product
        return tuple(prod(n for _, n in axes) for axes in (p.rows, p.columns, p.depth))  # type: ignore[return-value]

    @cached_property
    def sums(self) -> Buffer:
        how = self.how
        shape = (how.threads, how.height // ROWS, how.width // COLUMNS, PAIR, PAIR)
        return replace(self.product.total, shape=shape, space=Space.THREAD)

    @cached_property
    def staged(self) -> tuple[Buffer, Buffer]:
        """Both factors, [stage, line, depth] or [stage, depth, line]. The rows of a matrix begin
        in different banks."""
        how, found = self.how, []
        for name, lines, s in zip("ab", (how.rows, how.columns), self.sides, strict=True):
            shape = (lines, how.depth + s.pad) if s.depth_last else (how.depth, lines + s.pad)
            found.append(Buffer(name, s.dtype, (how.stages, *shape), space=Space.SHARED))
        return found[0], found[1]

    # -- the block

    @cached_property
    def blocks(self) -> list[tuple[str, int]]:
        rows, columns, _ = self.sizes
        return [
            *self.product.batch,
            ("block_row", -(-rows // self.how.rows)),
            ("block_column", -(-columns // self.how.columns)),
        ]

    def bound(self, body: Stmt) -> Stmt:
        *_, (_, rows), (_, columns) = self.blocks
        return over_blocks(body, self.product.batch, rows, columns)

    def block(self) -> Stmt:
        ahead = self.how.stages - 1
        steps = -(-self.sizes[2] // self.how.depth)
        later = Var("step") + ahead
        copy = self.by_threads(If(later < steps, self.copies(later % self.how.stages, later)))
        step = Block(
            (
                Wait(ahead - 1),
                Barrier(),
                copy,
                Commit(),
                self.by_threads(self.multiply(Var("step") % self.how.stages)),
            )
        )
        first = self.copies(Var("first"), Var("first"))
        if ahead > steps:
            first = If(Var("first") < steps, first)
        sums = (
            self.by_threads(self.each(Store(self.sums, self.place, self.zero))),
            For("first", index_const(ahead), Block((self.by_threads(first), Commit()))),
            For("step", index_const(steps), step),
        )
        a, b = self.staged
        if not self.results.is_of_use:
            finish = self.by_threads(self.finish())
            return Alloc(a, Alloc(b, Alloc(self.sums, Block((*sums, finish)))))
        multiplied = Alloc(a, Alloc(b, Block(sums)))
        results = self.results.statement(self.by_threads)  # in the memory of the factors
        return Alloc(self.sums, Block((multiplied, Wait(0), Barrier(), results)))

    def by_threads(self, s: Stmt) -> For:
        return For(THREAD, index_const(self.how.threads), s, LoopKind.THREAD)

    @property
    def zero(self) -> Const:
        dtype = self.product.total.dtype
        return Const(0.0 if dtype.is_float else 0, dtype)

    @property
    def place(self) -> tuple[Expr, ...]:
        return Var(THREAD), Var("i"), Var("j"), Var("h"), Var("v")

    def each(self, s: Stmt) -> Stmt:
        """For every sum of a thread."""
        for axis, n in reversed(list(zip("ijhv", self.sums.shape[1:], strict=True))):
            s = baked_loop(axis, n, s)
        return s

    # -- the factors

    def copies(self, stage: Expr, step: Expr) -> Stmt:
        return Block((self.copy(0, stage, step), self.copy(1, stage, step)))

    def copy(self, side: int, stage: Expr, step: Expr) -> Stmt:
        """By as many bytes at once as lie side by side."""
        itemsize = self.sides[side].dtype.itemsize
        count = VECTOR_BYTES // itemsize
        while count * itemsize >= MIN_ASYNC_BYTES:
            found = self.copy_by(side, count, stage, step, LoopKind.ASYNC)
            if found is not None:
                return found
            count //= 2
        single = self.copy_by(side, 1, stage, step, LoopKind.SERIAL)
        assert single is not None
        return single

    def copy_by(
        self, side: int, count: int, stage: Expr, step: Expr, kind: LoopKind
    ) -> Stmt | None:
        """Each thread copies its share of a factor, `count` neighbours at once; None where they
        are not side by side."""
        how, s, p = self.how, self.sides[side], self.product
        lines, total = (how.rows, how.columns)[side], self.sizes[side]
        share, v = f"share{side}", Var("v")
        vector: Expr = Var(share) * how.threads + Var(THREAD)
        per = (how.depth if s.depth_last else lines) // count
        major, minor = vector // per, vector % per
        block = Var(("block_row", "block_column")[side])
        at, deep = Position(block, lines, total), Position(step, how.depth, self.sizes[2])
        along, across = (deep, at) if s.depth_last else (at, deep)
        if along.total % count:
            return None
        env = {
            **unflattened(list((p.rows, p.columns)[side]), at.of(along is at, major, minor, count)),
            **unflattened(self.depth_axes(s), deep.of(along is deep, major, minor, count)),
        }
        ranges = self.ranges(share, lines * how.depth // count, count)
        conditions = [*along.inside(minor, count), *across.inside(major, 1)]
        if s.inside is not None:
            moved = _simplified(substitute(s.inside, env), ranges)  # type: ignore[arg-type]
            if count > 1 and "v" in variables(moved):
                return None
            conditions.append(moved)
        element: Load = simplify_loads(substitute(s.element, env), ranges)  # type: ignore[assignment,arg-type]
        value: Expr = element
        for c in reversed(conditions):
            value = Select(c, value, Const(0.0 if s.dtype.is_float else 0, s.dtype))
        place: tuple[Expr, ...] = (stage, major, minor * count + v)
        loop = For("v", index_const(count), Store(self.staged[side], place, value), kind, True)
        if count > 1 and not is_adjacent(element.buffer, element.index, loop, ranges):
            return None
        single = count == 1 and kind is not LoopKind.ASYNC
        copy = substitute(loop.body, {"v": index_const(0)}) if single else loop
        if lines * how.depth // count % how.threads:
            copy = If(vector < lines * how.depth // count, copy)  # type: ignore[arg-type]
        return baked_loop(share, -(-lines * how.depth // (count * how.threads)), copy)  # type: ignore[arg-type]

    def depth_axes(self, s: Side) -> list[tuple[str, int]]:
        """The axes of the sum, last the one along which the images lie, if they do."""
        axes = list(self.product.depth)
        first = self.sides[0].element
        axes.sort(key=lambda axis: memory_step(first, axis[0]) == 1)
        return axes

    def ranges(self, share: str, vectors: int, count: int) -> dict[str, tuple[float, float]]:
        extents = {
            **dict(self.blocks),
            THREAD: self.how.threads,
            share: -(-vectors // self.how.threads),
            "v": count,
            "first": self.how.stages - 1,
            "step": -(-self.sizes[2] // self.how.depth),
        }
        return {axis: (0.0, n - 1.0) for axis, n in extents.items()}

    # -- the sums

    @property
    def warp(self) -> tuple[Expr, Expr]:
        """The row and the column of a thread's warp among those of the block."""
        across = self.how.columns // self.how.width
        warp = Var(THREAD) // WARP
        return warp // across, warp % across

    def multiply(self, stage: Expr) -> Stmt:
        """One step of the sum, by as much of it as an instruction takes."""
        how, lane = self.how, Var(THREAD) % WARP
        each = DEPTH_BYTES // self.sides[0].dtype.itemsize
        row = self.warp[0] * how.height + Var("i") * ROWS + Var("h") * (ROWS // 2) + lane // 4
        column = self.warp[1] * how.width + Var("j") * COLUMNS + lane % 4 * PAIR + Var("v")
        k, d = Var("k") * each, Var("d")
        factors = [
            s.factor(self.staged_element(side, stage, line, k + d))
            for side, (s, line) in enumerate(zip(self.sides, (row, column), strict=True))
        ]
        step = Accumulate(self.sums, self.place, ScalarOp.ADD, factors[0] * factors[1])
        meaning = self.each(baked_loop("d", each, step))
        left, right = (
            self.staged_element(side, stage, line, k)
            for side, line in enumerate((self.warp[0] * how.height, self.warp[1] * how.width))
        )
        last = (self.sides[0].depth_last, self.sides[1].depth_last)
        return baked_loop("k", how.depth // each, Mma(self.sums, left, right, last, meaning))

    def staged_element(self, side: int, stage: Expr, line: Expr, k: Expr) -> Load:
        place = (line, k) if self.sides[side].depth_last else (k, line)
        return Load(self.staged[side], (stage, *place))

    # -- the results

    @cached_property
    def results(self) -> StagedResults:
        """The block's results, if they go by way of shared memory."""
        how = self.how
        return StagedResults(
            self.product, how.rows, how.columns, how.threads, self.blocks, self.put
        )

    def put(self, place: Callable[[Expr, Expr], tuple[Expr, ...]], target: Buffer) -> Stmt:
        """A thread's sums to where they belong, by pairs."""
        lane, how = Var(THREAD) % WARP, self.how
        row = self.warp[0] * how.height + Var("i") * ROWS + Var("h") * (ROWS // 2) + lane // 4
        pair = self.warp[1] * (how.width // PAIR) + Var("j") * (COLUMNS // PAIR) + lane % 4
        copy = Store(target, place(row, pair), Load(self.sums, self.place))
        put: Stmt = For("v", index_const(PAIR), copy, LoopKind.VECTOR, baked=True)
        for axis, n in reversed(list(zip("ijh", self.sums.shape[1:4], strict=True))):
            put = baked_loop(axis, n, put)
        return put

    def finish(self) -> Stmt:
        """What becomes of the sums, by pairs where they lie side by side."""
        rows, columns, _ = self.sizes
        how, p, lane = self.how, self.product, Var(THREAD) % WARP
        line = self.warp[0] * how.height + Var("i") * ROWS + Var("h") * (ROWS // 2) + lane // 4
        row = Var("block_row") * how.rows + line
        pairs = self.warp[1] * (how.width // PAIR) + Var("j") * (COLUMNS // PAIR) + lane % 4
        pair = Var("block_column") * (how.columns // PAIR) + pairs
        env = {
            **unflattened(list(p.rows), row),
            **unflattened(list(p.columns), pair * PAIR + Var("v")),
        }

        def rule(n: Node) -> Node | None:
            return (
                Load(self.sums, self.place) if isinstance(n, Load) and n.buffer is p.total else None
            )

        done: list[Stmt] = []
        for s in p.stores:
            moved: Stmt = rewrite(substitute(s, env), rule)  # type: ignore[assignment]
            done.append(self.paired(moved, pair, columns))
        body: Stmt = done[0] if len(done) == 1 else Block(tuple(done))
        body = baked_loop("j", how.width // COLUMNS, body)
        if rows % how.rows:
            body = If(row < rows, body)
        return baked_loop("i", how.height // ROWS, baked_loop("h", PAIR, body))

    def paired(self, s: Stmt, pair: Expr, columns: int) -> Stmt:
        """A store of two results side by side."""
        ragged = columns % self.how.columns != 0
        loop = For("v", index_const(PAIR), s, baked=True)
        if columns % PAIR:
            return replace(loop, body=If(pair * PAIR + Var("v") < columns, s))
        extents = {**dict(self.blocks), **dict(zip("ijhv", self.sums.shape[1:], strict=True))}
        extents[THREAD] = self.how.threads
        whole = by_vectors(loop, {axis: (0.0, n - 1.0) for axis, n in extents.items()})
        return If(pair < columns // PAIR, whole) if ragged else whole


@dataclass(frozen=True)
class Position:
    """Where a block's elements are among `total`: from `block` * `size` on."""

    block: Expr
    size: int
    total: int

    def of(self, is_along: bool, major: Expr, minor: Expr, count: int) -> Expr:
        if not is_along:
            return self.block * self.size + major
        return (self.block * (self.size // count) + minor) * count + Var("v")

    def inside(self, group: Expr, count: int) -> list[Expr]:
        """The condition that a group of `count` is one of the elements, if it may not be."""
        if self.total % self.size == 0:
            return []
        return [self.block * (self.size // count) + group < self.total // count]


def _simplified(condition: Expr, ranges: dict[str, tuple[float, float]]) -> Expr:
    """With what it compares in canonical form."""

    def rule(n: Node) -> Node | None:
        if isinstance(n, Apply) and n.op in COMPARISONS:
            return replace(n, args=tuple(simplify_index(a, ranges) for a in n.args))
        return None

    return rewrite(simplify_loads(condition, ranges), rule)  # type: ignore[return-value]
