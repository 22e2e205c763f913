"""Sums of products with a short side, as a few rows times a matrix: each element of the long
factor is read once, for all results that it takes part in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from tilewright.errors import ScheduleError
from tilewright.loops.affine import simplify_index, simplify_loads
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
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
    Space,
    Stmt,
    Store,
    Var,
    dtype_of,
    index_const,
    rewrite,
    substitute,
    walk,
)
from tilewright.loops.locate import axis_ranges
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify_threads import WARP
from tilewright.ops.common import minimum
from tilewright.schedule.block_tiles import Product, baked_loop, find_product, memory_step
from tilewright.schedule.cooperate import THREAD, unflattened
from tilewright.schedule.vectors import VECTOR_BYTES, by_vectors

MAX_SHORT = 16  # results of the short side: a thread has a sum for each
MIN_LONG = 128  # results of the long side that make enough threads
MIN_DEPTH = 16
MAX_LANES = 8
SUM_BYTES = 4
TURN = 8  # threads that access shared memory by vectors at the same time
LINE_BYTES = 64  # of the long factor that lie side by side and are read at the same time, at least
SHARED_BYTES = 64 << 10  # of the sums that meet: several blocks fit into a multiprocessor
BLOCK, STEP, SHARE, SHORT, OTHER, LANE = "block", "step", "share", "s", "other", "lane"
P, Q = "p", "q"  # of a thread's elements of the long factor: along the results, along the sum
Axes = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class ThinTile:
    """Compute the results of `lines` elements of the long side and of all of the short one in a
    block.

    A thread multiplies `height` x `width` elements of the long factor at a time: along the results
    and along the sum, whichever lies side by side in memory by vectors. The sums of the `depth`
    threads that share a result meet in shared memory, where one thread adds them up in order.
    """

    lines: int
    depth: int
    height: int
    width: int

    @property
    def threads(self) -> int:
        """The threads of a block."""
        return self.lines // self.height * self.depth

    def __call__(self, kernel: Kernel) -> Kernel:
        product = find_product(kernel)
        if product is None:
            raise ScheduleError(f"{self}: the kernel is no sum of products")
        sides = thin_sides(product)
        if sides.short > MAX_SHORT or sides.long < 2:
            raise ScheduleError(f"{self}: {sides.short} by {sides.long} results have no short side")
        depth = prod(n for _, n in product.depth)
        vector = (sides.long, self.height) if sides.lies_across else (depth, self.width)
        if self.lines % self.height or vector[0] % vector[1] or depth % self.width:
            raise ScheduleError(f"{self}: {sides.long} by {depth} elements are no whole groups")
        return _ThinTiling(self, kernel, product, sides).run()


@dataclass(frozen=True)
class Sides:
    """Of a product: both factors with their axes, and how many results they have."""

    few: Expr
    many: Expr
    short_axes: Axes
    long_axes: Axes
    lies_across: bool  # neighbours in memory are neighbours in the results, not in the sum

    @property
    def short(self) -> int:
        return prod(n for _, n in self.short_axes)

    @property
    def long(self) -> int:
        return prod(n for _, n in self.long_axes)

    @property
    def lies_side_by_side(self) -> bool:
        """Whether the long factor's elements do, along the results or along the sum."""
        along = not self.lies_across
        return along or any(memory_step(self.many, a) == 1 for a, _ in self.long_axes)

    @property
    def itemsize(self) -> int:
        """Of the long factor's elements in memory, the widest of them."""
        loads = (n for n in walk(self.many) if isinstance(n, Load))
        return max((n.buffer.dtype.itemsize for n in loads), default=1)


def thin_sides(product: Product) -> Sides:
    """The sides of a product by their length."""
    rows, columns = (prod(n for _, n in axes) for axes in (product.rows, product.columns))
    few, many = (product.a, product.rows), (product.b, product.columns)
    if rows > columns:
        few, many = many, few
    along = any(memory_step(many[0], name) == 1 for name, _ in product.depth)
    return Sides(few[0], many[0], few[1], many[1], not along)


@dataclass
class _ThinTiling:
    how: ThinTile
    kernel: Kernel
    product: Product
    sides: Sides

    def run(self) -> Kernel:
        body: Stmt = self.block()
        for axis, n in reversed(self.blocks):
            body = For(axis, index_const(n), body, LoopKind.BLOCK)
        ranges = axis_ranges(body)

        def rule(n: Node) -> Node | None:
            if not isinstance(n, (Store, Accumulate)):
                return None
            index = tuple(simplify_index(i, ranges) for i in n.index)
            return replace(n, index=index, value=simplify_loads(n.value, ranges))

        return replace(self.kernel, body=rewrite(body, rule))  # type: ignore[arg-type]

    @cached_property
    def blocks(self) -> list[tuple[str, int]]:
        return [*self.product.batch, (BLOCK, -(-self.sides.long // self.how.lines))]

    @property
    def depth(self) -> int:
        return prod(n for _, n in self.product.depth)

    @property
    def steps(self) -> int:
        return -(-self.depth // (self.how.depth * self.how.width))

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        how = self.how
        sizes = {THREAD: how.threads, STEP: self.steps, SHORT: self.sides.short}
        sizes |= {P: how.height, Q: how.width, **dict(self.blocks)}
        return {axis: (0.0, n - 1.0) for axis, n in sizes.items()}

    @cached_property
    def sums(self) -> Buffer:
        shape = (self.how.threads, self.sides.short, self.how.height)
        return replace(self.product.total, shape=shape, space=Space.THREAD)

    # -- where threads are

    @property
    def groups(self) -> int:
        """Of a block's lines, those that a thread has being one."""
        return self.how.lines // self.how.height

    @property
    def group(self) -> Expr:
        """A thread's group of lines: neighbours have what lies side by side."""
        if self.sides.lies_across:
            return Var(THREAD) % self.groups
        return Var(THREAD) // self.how.depth

    @property
    def place(self) -> Expr:
        """A thread's place among those that share its results."""
        if self.sides.lies_across:
            return Var(THREAD) // self.groups
        return Var(THREAD) % self.how.depth

    @property
    def line(self) -> Expr:
        """Of the long side; again the last one beyond it, where lines are no vectors."""
        at = (Var(BLOCK) * self.groups + self.group) * self.how.height + Var(P)
        is_ragged = self.sides.long % self.how.lines and not self.sides.lies_across
        return minimum(at, self.sides.long - 1) if is_ragged else at

    @property
    def deep(self) -> Expr:
        return (Var(STEP) * self.how.depth + self.place) * self.how.width + Var(Q)

    # -- the block

    def block(self) -> Stmt:
        zero = Const(0.0 if self.sums.dtype.is_float else 0, self.sums.dtype)
        clear = self.each(Store(self.sums, self.own, zero))
        steps = For(STEP, index_const(self.steps), self.guarded(self.multiply()))
        own = Block((clear, steps, self.meet()))
        parts = (self.by_threads(own), Barrier(), self.by_threads(self.finish()))
        return Alloc(self.met, Alloc(self.sums, Block(parts)))

    def by_threads(self, s: Stmt) -> For:
        return For(THREAD, index_const(self.how.threads), s, LoopKind.THREAD)

    def each(self, s: Stmt) -> Stmt:
        """For every sum of a thread."""
        return baked_loop(SHORT, self.sides.short, baked_loop(P, self.how.height, s))

    @property
    def own(self) -> tuple[Expr, ...]:
        return Var(THREAD), Var(SHORT), Var(P)

    def guarded(self, s: Stmt) -> Stmt:
        """Only where there are elements."""
        how = self.how
        if self.depth % (how.depth * how.width):
            s = If(Var(STEP) * how.depth + self.place < self.depth // how.width, s)
        if self.sides.long % how.lines and self.sides.lies_across:
            s = If(Var(BLOCK) * self.groups + self.group < self.sides.long // how.height, s)
        return s

    # -- the sums

    def multiply(self) -> Stmt:
        """One step: elements of the long factor in registers, then by each line of the other."""
        how, sides = self.how, self.sides
        many = Buffer("many", dtype_of(sides.many), (how.height, how.width), space=Space.LOCAL)
        few = Buffer("few", dtype_of(sides.few), (how.width,), space=Space.LOCAL)
        env = {
            **unflattened(list(self.product.depth), self.deep),
            **unflattened(list(sides.long_axes), self.line),
            **unflattened(list(sides.short_axes), Var(SHORT)),
        }
        element, factor = (self.moved(e, env) for e in (sides.many, sides.few))
        axes = ((Q, how.width), (P, how.height))
        outer, inner = axes if sides.lies_across else axes[::-1]
        read = self.vectors(*inner, Store(many, (Var(P), Var(Q)), element))
        if inner[1] > 1 and isinstance(read, For):
            raise ScheduleError(f"{how}: the long factor is read by no vectors")
        other = self.vectors(Q, how.width, Store(few, (Var(Q),), factor))
        product = Load(few, (Var(Q),)) * Load(many, (Var(P), Var(Q)))
        add = Accumulate(self.sums, self.own, ScalarOp.ADD, product)
        added = baked_loop(P, how.height, baked_loop(Q, how.width, add))
        line = baked_loop(SHORT, sides.short, Alloc(few, Block((other, added))))
        return Alloc(many, Block((baked_loop(*outer, read), line)))

    def moved(self, e: Expr, env: dict[str, Expr]) -> Expr:
        return simplify_loads(substitute(e, env), self.ranges)  # type: ignore[arg-type]

    def vectors(self, axis: str, count: int, s: Store) -> Stmt:
        """A loop over neighbours, that reads them at once where they are."""
        if count == 1:
            return baked_loop(axis, 1, s)
        loop = For(axis, index_const(count), s, baked=True)
        return by_vectors(loop, self.ranges)

    # -- where they meet

    @cached_property
    def met(self) -> Buffer:
        """[place, result], or [result, place] where neighbouring threads share results: so that
        they use different banks."""
        results, dtype = self.sides.short * self.how.lines, self.sums.dtype
        shape = (results, self.how.depth + 1)
        if self.sides.lies_across:
            shape = (self.how.depth, self.pitch(results))
        return Buffer("met", dtype, shape, space=Space.SHARED)

    def pitch(self, results: int) -> int:
        """The elements from one place's to the next one's: threads that write at the same time
        have banks of their own, if they may."""
        vector = VECTOR_BYTES // self.sums.dtype.itemsize
        for pad in range(0, TURN * vector, vector):
            starts = (
                t // self.groups * (results + pad) + t % self.groups * self.how.height
                for t in range(TURN)
            )
            if len({n // vector % TURN for n in starts}) == TURN:
                return results + pad
        return results

    def meet(self) -> Stmt:
        """A thread's sums to where its results meet, by vectors where they lie side by side."""
        height, vector = self.how.height, VECTOR_BYTES // self.sums.dtype.itemsize
        if not self.sides.lies_across or height % vector:
            vector = 1
        own: Expr = Var(P) * vector + Var(LANE) if vector > 1 else Var(P)
        at = self.at(self.result(Var(SHORT), self.group * height + own), self.place)
        copy: Stmt = Store(self.met, at, Load(self.sums, (Var(THREAD), Var(SHORT), own)))
        if vector > 1:
            copy = For(LANE, index_const(vector), copy, LoopKind.VECTOR, baked=True)
        copies = baked_loop(P, height // vector, copy)
        return baked_loop(SHORT, self.sides.short, copies)

    def at(self, result: Expr, place: Expr) -> tuple[Expr, ...]:
        return (place, result) if self.sides.lies_across else (result, place)

    @property
    def short_first(self) -> bool:
        """Whether results of one line of the short side are numbered one after the other."""
        return self.sides.lies_across or self.sides.short_axes == self.product.rows

    def result(self, short: Expr, line: Expr) -> Expr:
        """The number of a result in its block, neighbours in memory one after the other."""
        if self.short_first:
            return short * self.how.lines + line
        return line * self.sides.short + short

    def finish(self) -> Stmt:
        """What becomes of the sums: a thread has the same result of all that share it."""
        how, sides, p = self.how, self.sides, self.product
        count = sides.short * how.lines
        number: Expr = Var(THREAD)
        if count > how.threads:
            number = Var(SHARE) * how.threads + number
        major, minor = how.lines, sides.short
        short, line = number // major, number % major
        if not self.short_first:
            short, line = number % minor, number // minor
        line = Var(BLOCK) * how.lines + line
        total = Buffer("total", p.total.dtype, (), space=Space.LOCAL)
        first = Store(total, (), Load(self.met, self.at(number, index_const(0))))
        rest = Accumulate(total, (), ScalarOp.ADD, Load(self.met, self.at(number, Var(OTHER) + 1)))
        others = For(OTHER, index_const(how.depth - 1), rest, baked=True)
        env = {**unflattened(list(sides.short_axes), short)}
        env |= unflattened(list(sides.long_axes), line)

        def rule(n: Node) -> Node | None:
            return Load(total, ()) if isinstance(n, Load) and n.buffer is p.total else None

        stores: list[Stmt] = [rewrite(substitute(s, env), rule) for s in p.stores]  # type: ignore[misc]
        done: Stmt = Alloc(total, Block((first, others, *stores)))
        if how.depth == 1:
            done = Alloc(total, Block((first, *stores)))
        if sides.long % how.lines:
            done = If(line < sides.long, done)
        if count % how.threads:
            done = If(number < count, done)
        return baked_loop(SHARE, -(-count // how.threads), done)


def thin_tiles(product: Product, blocks: int) -> Iterator[ThinTile]:
    """The tiles to try for a product, by the widest vectors first; at least so many blocks where
    there may be."""
    sides, depth = thin_sides(product), prod(n for _, n in product.depth)
    batch = prod(n for _, n in product.batch)
    if sides.short > MAX_SHORT or sides.long * batch < MIN_LONG or depth < MIN_DEPTH:
        return
    if len(product.depth) > 1 or not sides.lies_side_by_side:
        return
    lanes = min(VECTOR_BYTES // sides.itemsize, MAX_LANES)
    while lanes:
        if (sides.long if sides.lies_across else depth) % lanes == 0:
            yield (_across if sides.lies_across else _along)(sides, depth, lanes, batch, blocks)
        lanes //= 2


def _across(sides: Sides, depth: int, lanes: int, batch: int, blocks: int) -> ThinTile:
    """Lines of memory as long as leaves blocks enough; many threads share each."""
    width = _dividing(4, depth)
    lines = [n for n in (32, 16, 8, 4, 2, 1) if n * lanes * sides.itemsize >= LINE_BYTES]
    enough = (n for n in lines if 2 * batch * -(-sides.long // (n * lanes)) >= blocks)
    beside = next(enough, lines[-1])

    def fits(place: int) -> bool:
        room = place * (sides.short * beside * lanes) * SUM_BYTES
        return place * width <= depth and room <= SHARED_BYTES

    places = (n for n in (512 // beside, 256 // beside, 128 // beside, 64 // beside) if fits(n))
    return ThinTile(beside * lanes, next(places, max(1, WARP // beside)), lanes, width)


def _along(sides: Sides, depth: int, lanes: int, batch: int, blocks: int) -> ThinTile:
    """A warp for as many results as leave blocks enough, or part of one where sums are short."""
    place = next(n for n in (32, 16, 8, 4, 2, 1) if n * lanes <= depth or n == 1)
    threads = 256 if batch * sides.long * place >= blocks * 256 else 128
    heights = [n for n in (4, 2, 1) if n * sides.short * threads * SUM_BYTES <= SHARED_BYTES]
    enough = (n for n in heights if batch * sides.long * place >= blocks * threads * n)
    height = next(enough, 1)
    return ThinTile(threads // place * height, place, height, lanes)


def _dividing(most: int, n: int) -> int:
    """The largest power of two up to `most` that divides n."""
    while n % most:
        most //= 2
    return most
