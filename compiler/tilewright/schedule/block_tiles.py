"""Sums of products, tile by tile: a block of threads computes a rectangle of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from tilewright.errors import ScheduleError
from tilewright.loops.affine import simplify_loads
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Apply,
    Barrier,
    Block,
    Buffer,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Load,
    LoopKind,
    Node,
    Select,
    Space,
    Stmt,
    Store,
    Var,
    dtype_of,
    index_const,
    rewrite,
    substitute,
    variables,
    walk,
)
from tilewright.loops.locate import axis_ranges, offset, outer_loops
from tilewright.loops.scalars import ScalarOp
from tilewright.schedule.cooperate import THREAD, unflattened
from tilewright.schedule.vectors import VECTOR_BYTES, by_vectors

GROUP = 4  # results that lie side by side in one thread
PAD = 4  # elements between the rows of a staged operand, so that they begin in different banks
MANY_BLOCKS = 396  # that do not all run at about the same time
MOST_TOGETHER = 8  # rows of blocks

Axes = list[tuple[str, int]]


@dataclass(frozen=True)
class BlockTile:
    """Compute `rows` x `columns` results in a block, `height` x `width` of them in a thread.

    Both factors go through shared memory, `depth` steps of the sum at a time.
    """

    rows: int
    columns: int
    depth: int
    height: int
    width: int

    @property
    def threads(self) -> int:
        """The threads of a block."""
        return self.rows * self.columns // (self.height * self.width)

    def __call__(self, kernel: Kernel) -> Kernel:
        product = find_product(kernel)
        if product is None:
            raise ScheduleError(f"{self}: the kernel is no sum of products")
        if self.height % GROUP or self.width % GROUP:
            raise ScheduleError(f"{self}: the results of a thread are no whole groups")
        return _Tiling(self, kernel, product).run()


@dataclass(frozen=True)
class Product:
    """sum over `depth` of a * b, in the axes of the kernel's outer loops: those that `a` alone
    follows, those that `b` alone follows, and the rest."""

    a: Expr
    b: Expr
    rows: tuple[tuple[str, int], ...]
    columns: tuple[tuple[str, int], ...]
    batch: tuple[tuple[str, int], ...]
    depth: tuple[tuple[str, int], ...]
    total: Buffer
    stores: tuple[Stmt, ...]


def find_product(kernel: Kernel) -> Product | None:
    """The sum of products that a kernel computes, if it is nothing else."""
    loops = outer_loops(kernel.body)
    inner = loops[-1].body if loops else kernel.body
    match inner:
        case Alloc(buffer=total, body=Block(stmts=(Store(buffer=first), For() as nest, *stores))):
            pass
        case _:
            return None
    chain = outer_loops(nest)
    match chain[-1].body:
        case Accumulate(op=ScalarOp.ADD, value=Apply(op=ScalarOp.MUL, args=(x, y)), buffer=b):
            pass
        case _:
            return None
    if first is not total or b is not total or not all(isinstance(s, Store) for s in stores):
        return None
    if not all(isinstance(n.extent, Const) for n in (*loops, *chain)):
        return None
    of_x, of_y = variables(x), variables(y)
    sizes = [(n.axis, int(n.extent.value)) for n in loops]  # type: ignore[union-attr]
    only_x = tuple(s for s in sizes if s[0] in of_x - of_y)
    only_y = tuple(s for s in sizes if s[0] in of_y - of_x)
    batch = tuple(s for s in sizes if s not in only_x and s not in only_y)
    depth = tuple((n.axis, int(n.extent.value)) for n in chain)  # type: ignore[union-attr]
    a, b_, rows, columns = x, y, only_x, only_y
    if sizes and only_x and sizes[-1] in only_x:  # the innermost axis of the results is a column
        a, b_, rows, columns = y, x, only_y, only_x
    return Product(a, b_, rows, columns, batch, depth, total, tuple(stores))


@dataclass
class _Tiling:
    how: BlockTile
    kernel: Kernel
    product: Product

    def run(self) -> Kernel:
        body = self.bound(self.block())
        ranges = axis_ranges(body)

        def rule(n: Node) -> Node | None:
            if isinstance(n, (Store, Accumulate)):
                value = simplify_loads(n.value, ranges)
                return n if value is n.value else replace(n, value=value)
            return None

        return replace(self.kernel, body=rewrite(body, rule))  # type: ignore[arg-type]

    @cached_property
    def sizes(self) -> tuple[int, int, int]:
        p = self.product
        return tuple(prod(n for _, n in axes) for axes in (p.rows, p.columns, p.depth))  # type: ignore[return-value]

    @cached_property
    def sums(self) -> Buffer:
        shape = (self.how.threads, self.how.height, self.how.width)
        return replace(self.product.total, shape=shape, space=Space.THREAD)

    @cached_property
    def staged(self) -> tuple[Buffer, Buffer]:
        """Both factors as [depth, rows] and [depth, columns]."""
        how, dtype = self.how, dtype_of(self.product.a)
        shapes = (how.depth, how.rows + PAD), (how.depth, how.columns + PAD)
        a, b = (Buffer(n, dtype, s, space=Space.SHARED) for n, s in zip(("a", "b"), shapes))
        return a, b

    # -- the block

    def bound(self, body: Stmt) -> Stmt:
        (rows, columns, _), how = self.sizes, self.how
        blocks = -(-rows // how.rows), -(-columns // how.columns)
        return over_blocks(body, self.product.batch, *blocks)

    def block(self) -> Stmt:
        steps = -(-self.sizes[2] // self.how.depth)
        a, b = self.staged
        step = Block(
            (
                self.by_threads(Block((self.stage(a, 0), self.stage(b, 1)))),
                Barrier(),
                self.by_threads(self.multiply()),
                Barrier(),
            )
        )
        whole = Block(
            (
                self.by_threads(self.each(Store(self.sums, self.place, self.zero))),
                For("step", index_const(steps), step),
                self.by_threads(self.finish()),
            )
        )
        return Alloc(a, Alloc(b, Alloc(self.sums, whole)))

    def by_threads(self, s: Stmt) -> For:
        return For(THREAD, index_const(self.how.threads), s, LoopKind.THREAD)

    @property
    def zero(self) -> Const:
        dtype = self.product.total.dtype
        return Const(0.0 if dtype.is_float else 0, dtype)

    @property
    def place(self) -> tuple[Expr, ...]:
        return Var(THREAD), Var("i"), Var("j")

    def each(self, s: Stmt) -> Stmt:
        """For every result of a thread."""
        return baked_loop("i", self.how.height, baked_loop("j", self.how.width, s))

    # -- the factors

    def stage(self, target: Buffer, side: int) -> Stmt:
        """Each thread copies its share of a factor, neighbours what lies side by side."""
        how, p = self.how, self.product
        factor, axes = (p.a, p.rows) if side == 0 else (p.b, p.columns)
        extent = how.rows if side == 0 else how.columns
        block = Var("block_row" if side == 0 else "block_column")
        share = f"share{side}"
        element: Expr = Var(share) * how.threads + Var(THREAD)
        along_depth = self.lies_along_depth(factor)
        k = element % how.depth if along_depth else element // extent
        line = element // how.depth if along_depth else element % extent
        at, deep = block * extent + line, Var("step") * how.depth + k
        env = {**unflattened(list(axes), at), **unflattened(list(p.depth), deep)}
        value: Expr = substitute(factor, env)  # type: ignore[assignment]
        value = self.guarded(
            value, [(at, self.sizes[side], extent), (deep, self.sizes[2], how.depth)]
        )
        copy: Stmt = Store(target, (k, line), value)
        count = extent * how.depth
        if count % how.threads:
            copy = If(element < count, copy)
        return baked_loop(share, -(-count // how.threads), copy)

    def lies_along_depth(self, factor: Expr) -> bool:
        """Whether neighbours in memory are neighbours in the sum, not in the results."""
        return any(memory_step(factor, name) == 1 for name, _ in self.product.depth)

    def guarded(self, value: Expr, limits: Sequence[tuple[Expr, int, int]]) -> Expr:
        """The value, or zero beyond the operand."""
        inside = [at < n for at, n, block in limits if n % block]
        if not inside:
            return value
        condition: Expr = inside[0]
        for c in inside[1:]:
            condition = Apply(ScalarOp.AND, (condition, c))
        dtype = dtype_of(value)
        return Select(condition, value, Const(0.0 if dtype.is_float else 0, dtype))

    # -- the sums

    @property
    def thread_row(self) -> Expr:
        return Var(THREAD) // (self.how.columns // self.how.width)

    @property
    def thread_column(self) -> Expr:
        return Var(THREAD) % (self.how.columns // self.how.width)

    def line(self, i: Expr) -> Expr:
        """The row of the block that is a thread's i-th."""
        return self.thread_row * self.how.height + i

    def group(self, g: Expr) -> Expr:
        """The group of columns of the block that is a thread's g-th: they lie apart, so that
        threads read side by side."""
        return g * (self.how.columns // self.how.width) + self.thread_column

    def multiply(self) -> Stmt:
        how, (a, b) = self.how, self.staged
        left = Buffer("left", a.dtype, (how.height,), space=Space.LOCAL)
        right = Buffer("right", b.dtype, (how.width,), space=Space.LOCAL)
        k, lanes = Var("k"), min(GROUP, VECTOR_BYTES // a.dtype.itemsize)
        part = Var("h") * lanes + Var("v")
        of_a = Load(a, (k, self.line(Var("g") * GROUP + part)))
        of_b = Load(b, (k, self.group(Var("g")) * GROUP + part))
        i, j = Var("i"), Var("j")
        product = Load(left, (i,)) * Load(right, (j,))
        body = Block(
            (
                _groups(how.height, lanes, Store(left, (Var("g") * GROUP + part,), of_a)),
                _groups(how.width, lanes, Store(right, (Var("g") * GROUP + part,), of_b)),
                self.each(Accumulate(self.sums, self.place, ScalarOp.ADD, product)),
            )
        )
        return baked_loop("k", how.depth, Alloc(left, Alloc(right, body)))

    # -- the results

    def finish(self) -> Stmt:
        """What becomes of the sums, by vectors where they lie side by side."""
        rows, columns, _ = self.sizes
        how, p = self.how, self.product
        row = Var("block_row") * how.rows + self.line(Var("i"))
        group = Var("block_column") * (how.columns // GROUP) + self.group(Var("g"))
        column = group * GROUP + Var("v")
        env = {**unflattened(list(p.rows), row), **unflattened(list(p.columns), column)}
        at = (Var(THREAD), Var("i"), Var("g") * GROUP + Var("v"))

        def rule(n: Node) -> Node | None:
            return Load(self.sums, at) if isinstance(n, Load) and n.buffer is p.total else None

        done: list[Stmt] = []
        for s in p.stores:
            moved: Stmt = rewrite(substitute(s, env), rule)  # type: ignore[assignment]
            done.append(self.grouped(moved, group, columns))
        body: Stmt = done[0] if len(done) == 1 else Block(tuple(done))
        body = baked_loop("g", how.width // GROUP, body)
        if rows % how.rows:
            body = If(row < rows, body)
        return baked_loop("i", how.height, body)

    def grouped(self, s: Stmt, group: Expr, columns: int) -> Stmt:
        """A store of a group of results side by side."""
        ragged = columns % self.how.columns != 0
        loop = For("v", index_const(GROUP), s, baked=True)
        if columns % GROUP:
            return replace(loop, body=If(group * GROUP + Var("v") < columns, s) if ragged else s)
        whole = by_vectors(loop, self.ranges)
        return If(group < columns // GROUP, whole) if ragged else whole

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        how = self.how
        sizes = {THREAD: how.threads, "i": how.height, "g": how.width // GROUP, "v": GROUP}
        rows, columns, _ = self.sizes
        blocks = {"block_row": -(-rows // how.rows), "block_column": -(-columns // how.columns)}
        every = {**dict(self.product.batch), **sizes, **blocks}
        return {a: (0.0, n - 1.0) for a, n in every.items()}


def over_blocks(body: Stmt, batch: Sequence[tuple[str, int]], rows: int, columns: int) -> Stmt:
    """The body for each block of results. Where they are many, those that run at the same time are
    of some rows and some columns, and share factors in the cache, instead of all of a few rows."""
    along, across = ("block_row", rows), ("block_column", columns)
    count = rows_together(rows) if rows * columns > MANY_BLOCKS else 0
    axes = [*batch, across, along] if count else [*batch, along, across]
    for axis, n in reversed(axes):
        body = For(axis, index_const(n), body, LoopKind.BLOCK, together=count * (axis == along[0]))
    return body


def rows_together(rows: int) -> int:
    """How many rows of blocks walk all columns together: a divisor of them; 0 for no such."""
    found = (n for n in range(MOST_TOGETHER, 1, -1) if rows % n == 0)
    return next((n for n in found if n == rows or 2 * n >= MOST_TOGETHER), 0)


def baked_loop(axis: str, count: int, body: Stmt) -> Stmt:
    """A loop of a fixed extent that is printed as such; none for a single iteration."""
    if count == 1:
        return substitute(body, {axis: index_const(0)})  # type: ignore[return-value]
    return For(axis, index_const(count), body, baked=True)


def _groups(count: int, lanes: int, copy: Stmt) -> Stmt:
    """A copy of that many elements in groups, and of each group by vectors of so many lanes."""
    vector = For("v", index_const(lanes), copy, LoopKind.VECTOR, baked=True)
    return baked_loop("g", count // GROUP, baked_loop("h", GROUP // lanes, vector))


def memory_step(factor: Expr, axis: str) -> int:
    """The least distance in memory that a step of the axis makes in what the factor loads."""
    loads = (n for n in walk(factor) if isinstance(n, Load))
    found = [abs(offset(n.buffer, n.index, {}).coefficient(axis)) for n in loads]
    return min((c for c in found if c), default=0)
