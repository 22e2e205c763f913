"""Sums of products of halves by warpgroups, of what the hardware copies: for sm_90a alone.

One thread of a block starts copies of whole boxes of both factors, some steps ahead; barriers count
what has arrived. Four warps multiply 64 rows by all columns of the block while they go on, so that
one product runs while the next step is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from tilewright.dtypes import DType
from tilewright.errors import ScheduleError
from tilewright.loops.affine import Linear, simplify_loads
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Arrived,
    Barrier,
    Block,
    Box,
    Buffer,
    Cast,
    Const,
    Expr,
    Fetch,
    For,
    If,
    Kernel,
    Load,
    LoopKind,
    Node,
    Select,
    Settle,
    Space,
    Stages,
    Stmt,
    Store,
    TensorMap,
    Var,
    Wgmma,
    index_const,
    rewrite,
    substitute,
)
from tilewright.loops.locate import offset
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify_threads import WARP
from tilewright.schedule.block_tiles import Axes, Product, baked_loop, find_product
from tilewright.schedule.cooperate import THREAD, unflattened
from tilewright.schedule.mma_results import PAIR
from tilewright.schedule.mma_sides import HALVES, Side, side_of
from tilewright.schedule.mma_tiles import COLUMNS, MmaTile, MmaTiling
from tilewright.schedule.mma_tiles import ROWS as WARP_ROWS
from tilewright.schedule.vectors import VECTOR_BYTES

ROWS = 64  # of one instruction's sums
LINE = 64  # halves of a row of 128 bytes, as boxes lie in shared memory
MOST_COLUMNS = 256
MOST_AXES = 5  # of what the hardware copies boxes of
MOST_STRIDE = 1 << 40  # bytes
MULTIPROCESSORS = 132
LEAST_BLOCKS = 64  # fewer leave half of the machine without work, which smaller tiles do not
READING = 32  # rows or columns of results that take as long as reading one line of a factor
FEW = 8  # groups of eight columns that a loop writes results of


@dataclass(frozen=True)
class WgmmaTile:
    """Compute `rows` x `columns` results in a block, 64 rows of them in a warpgroup.

    Both factors are copied to shared memory by the hardware, 64 steps of the sum at a time,
    `stages` - 1 of them ahead. Halves are summed in float32.
    """

    rows: int
    columns: int
    stages: int = 3

    @property
    def threads(self) -> int:
        """The threads of a block."""
        return self.rows // WARP_ROWS * WARP

    def __call__(self, kernel: Kernel) -> Kernel:
        product = find_product(kernel)
        if product is None:
            raise ScheduleError(f"{self}: the kernel is no sum of products")
        if self.rows % ROWS or self.columns % COLUMNS or self.columns > MOST_COLUMNS:
            raise ScheduleError(f"{self}: no instruction has sums of this shape")
        if prod(n for _, n in product.depth) <= LINE:
            raise ScheduleError(f"{self}: the sum is too short to copy ahead")
        if not product.rows or not product.columns:
            raise ScheduleError(f"{self}: the results are no rows and columns")
        left, right = (side_of(f, product) for f in (product.a, product.b))
        if left is None or right is None or left.dtype not in HALVES:
            raise ScheduleError(f"{self}: the factors are no halves as they lie")
        if left.dtype is not right.dtype or product.total.dtype is not DType.F32:
            raise ScheduleError(f"{self}: the factors are of different types")
        product = in_steps(product)
        as_warps = MmaTile(self.rows, self.columns, LINE, WARP_ROWS, self.columns, self.stages)
        return _WgmmaTiling(as_warps, kernel, product, (left, right), self).run()


TILES = (
    (WgmmaTile(128, 256, 4), 1),
    (WgmmaTile(128, 128, 3), 2),
    (WgmmaTile(64, 128, 4), 2),
    (WgmmaTile(64, 64, 4), 3),
)
"""With the blocks that a multiprocessor has room for: their stages fill its shared memory."""


def is_of_halves(product: Product) -> bool:
    """Whether both factors are halves, and the sum is long enough for this."""
    sides = (side_of(f, product) for f in (product.a, product.b))
    return prod(n for _, n in product.depth) > LINE and all(s and s.dtype in HALVES for s in sides)


def in_steps(product: Product) -> Product:
    """The product with rows, and columns, that lie in equal steps: what cannot be taken together
    with them is of the batch, as images are of which only the pixels lie so."""
    batch = product.batch
    kept: list[tuple[tuple[str, int], ...]] = []
    for factor, axes in ((product.a, product.rows), (product.b, product.columns)):
        s = side_of(factor, product)
        while s is not None and len(axes) > 1 and not _is_one(s, axes):
            batch, axes = (*batch, axes[0]), axes[1:]
        kept.append(axes)
    return replace(product, rows=kept[0], columns=kept[1], batch=batch)


def _is_one(s: Side, axes: Sequence[tuple[str, int]]) -> bool:
    try:
        _step(offset(s.element.buffer, s.element.index, {}), axes)
    except ScheduleError:
        return False
    return True


def best_tile(product: Product) -> WgmmaTile | None:
    """The tile that should be done first; None where there are too few blocks for the machine.

    An estimate: blocks run in waves, and a block takes as long as it has results, longer by what
    it reads for each of them.
    """
    p = in_steps(product)
    rows, columns, batch = (prod(n for _, n in axes) for axes in (p.rows, p.columns, p.batch))
    found: list[tuple[float, WgmmaTile]] = []
    for t, room in TILES:
        blocks = -(-rows // t.rows) * -(-columns // t.columns) * batch
        waves = -(-blocks // (MULTIPROCESSORS * room))
        reading = 1 + READING / t.rows + READING / t.columns
        if blocks >= LEAST_BLOCKS and t.rows < 2 * rows and t.columns < 2 * columns:
            found.append((waves * room * t.rows * t.columns * reading, t))
    return min(found, key=lambda one: one[0])[1] if found else None


@dataclass
class _WgmmaTiling(MmaTiling):
    """Each warp has 16 rows of its warpgroup's sums: what becomes of them is as there."""

    asked: WgmmaTile

    # -- the factors as the hardware sees them

    @cached_property
    def views(self) -> tuple[_View, _View]:
        p = self.product
        found = []
        lines = p.rows, p.columns
        for name, axes, s in zip(("rows", "columns"), lines, self.sides, strict=True):
            try:
                found.append(_view(s, list(axes), self.depth_axes(s), list(p.batch)))
            except ScheduleError as error:
                raise ScheduleError(f"{self.asked}: the factor with the {name} {error}") from None
        for v, n in zip(found, (self.how.rows, self.how.columns), strict=True):
            if not v.depth_last and n % LINE:
                raise ScheduleError(f"{self.asked}: {n} lines are no whole rows of shared memory")
        return found[0], found[1]

    @cached_property
    def staged(self) -> tuple[Buffer, Buffer]:
        """Both factors in rows of 128 bytes: [stage, line, depth], or [stage, 64 lines, depth,
        line of them]."""
        how, found = self.how, []
        lines = how.rows, how.columns
        for name, n, s, v in zip("ab", lines, self.sides, self.views, strict=True):
            shape = (n, LINE) if v.depth_last else (n // LINE, LINE, LINE)
            found.append(Buffer(name, s.dtype, (how.stages, *shape), space=Space.SHARED))
        return found[0], found[1]

    def element(self, side: int, stage: Expr, line: Expr, k: Expr) -> tuple[Expr, ...]:
        """Where an element of a staged factor is."""
        if self.views[side].depth_last:
            return stage, line, k
        return stage, line // LINE, k, line % LINE

    # -- the block

    def block(self) -> Stmt:
        ahead, stages = self.how.stages - 1, self.how.stages
        steps = -(-self.sizes[2] // LINE)
        step, first = Var("step"), Var("first")
        start: Stmt = self.fetch(first)
        if ahead > steps:
            start = If(first < steps, start)
        each = Block(
            (
                Arrived(step, stages),
                self.by_threads(self.multiply(step % stages)),
                Settle(self.sums, 1),
                Barrier(),
                self.by_one(If(step + ahead < steps, self.fetch(step + ahead))),
            )
        )
        sums = (
            Stages(stages),
            self.by_threads(self.each(Store(self.sums, self.place, self.zero))),
            baked_loop("first", ahead, self.by_one(start)),
            For("step", index_const(steps), each),
        )
        a, b = self.staged
        if not self.results.is_of_use:
            finish = Settle(self.sums, 0), self.by_threads(self.finish())
            return Alloc(a, Alloc(b, Alloc(self.sums, Block((*sums, *finish)))))
        multiplied = Alloc(a, Alloc(b, Block(sums)))
        results = self.results.statement(self.by_threads)  # in the memory of the factors
        return Alloc(self.sums, Block((multiplied, Settle(self.sums, 0), Barrier(), results)))

    def by_one(self, s: Stmt) -> Stmt:
        return self.by_threads(If(Var(THREAD).eq(0), s))

    # -- the factors

    def fetch(self, step: Expr) -> Stmt:
        return Fetch(step, self.how.stages, (*self.boxes(0, step), *self.boxes(1, step)))

    def boxes(self, side: int, step: Expr) -> tuple[Box, ...]:
        """The copies of one factor's part of a step: whole, or 64 lines each."""
        lines = (self.how.rows, self.how.columns)[side]
        if self.views[side].depth_last:
            return (self.box(side, step, 0, lines),)
        return tuple(self.box(side, step, n, LINE) for n in range(0, lines, LINE))

    def box(self, side: int, step: Expr, first: int, count: int) -> Box:
        s, p, v = self.sides[side], self.product, self.views[side]
        size = (self.how.rows, self.how.columns)[side]
        line = Var(("block_row", "block_column")[side]) * size + first
        at, deep = line + Var("line"), step * LINE + Var("d")
        env = {
            **unflattened(list((p.rows, p.columns)[side]), at),
            **unflattened(self.depth_axes(s), deep),
        }
        ranges = self.ranges("", 1, 1) | {"line": (0.0, count - 1.0), "d": (0.0, LINE - 1.0)}
        value: Expr = simplify_loads(substitute(s.element, env), ranges)  # type: ignore[arg-type]
        zero = replace(self.zero, dtype=s.dtype)
        for position, total, whole in (
            (deep, self.sizes[2], self.sizes[2] % LINE == 0),
            (at, self.sizes[side], self.sizes[side] % size == 0),
        ):
            if not whole:
                value = Select(position < total, value, zero)
        stage = step % self.how.stages
        place = self.element(side, stage, index_const(first) + Var("line"), Var("d"))
        copy = baked_loop("d", LINE, Store(self.staged[side], place, value))
        batch = tuple(Var(axis) for axis, _ in v.batch)
        pair = (step * LINE, line) if v.depth_last else (line, step * LINE)
        box = (LINE, count) if v.depth_last else (LINE, LINE)
        tensor = replace(v.tensor, box=(*box, *(1 for _ in batch)))
        begin = self.element(side, stage, index_const(first), index_const(0))
        meaning = baked_loop("line", count, copy)
        return Box(self.staged[side], begin, tensor, (*pair, *batch), meaning)

    # -- the sums

    def multiply(self, stage: Expr) -> Stmt:
        """One step of the sum."""
        lane = Var(THREAD) % WARP
        row = self.warp[0] * WARP_ROWS + Var("h") * (WARP_ROWS // 2) + lane // 4
        column = Var("j") * COLUMNS + lane % 4 * PAIR + Var("v")
        factors = [
            Cast(s.wide, Load(self.staged[side], self.element(side, stage, line, Var("d"))))
            for side, (s, line) in enumerate(zip(self.sides, (row, column), strict=True))
        ]
        step = Accumulate(self.sums, self.place, ScalarOp.ADD, factors[0] * factors[1])
        meaning = self.each(baked_loop("d", LINE, step))
        zero = index_const(0)
        group: Expr = Var(THREAD) // (ROWS // WARP_ROWS * WARP)
        lines: tuple[Expr, Expr] = (group * ROWS if self.views[0].depth_last else group, zero)
        left, right = (
            Load(b, (stage, line, *(zero for _ in b.shape[2:])))
            for b, line in zip(self.staged, lines, strict=True)
        )
        last = (self.views[0].depth_last, self.views[1].depth_last)
        return Wgmma(self.sums, left, right, last, LINE, meaning)

    # -- the results

    def put(self, place: Callable[[Expr, Expr], tuple[Expr, ...]], target: Buffer) -> Stmt:
        return _written_out(super().put(place, target))

    def finish(self) -> Stmt:
        return _written_out(super().finish())


def _written_out(s: Stmt) -> Stmt:
    """With few columns in a loop: compilers keep sums in registers only where they write out loops
    whole, and they do not write out long ones."""

    def rule(n: Node) -> Node | None:
        match n:
            case For(axis="h"):
                return replace(n, kind=LoopKind.UNROLLED)
            case For(axis="j", extent=Const(value=count)) if count > FEW and count % FEW == 0:
                part = substitute(n.body, {"j": Var("part") * FEW + Var("j")})
                body = replace(n, extent=index_const(FEW), body=part)  # type: ignore[arg-type]
                return For("part", index_const(int(count) // FEW), body, LoopKind.UNROLLED, True)
        return None

    return rewrite(s, rule)  # type: ignore[return-value]


@dataclass(frozen=True)
class _View:
    """A factor as an array of lines and depth, and of those axes of the batch that it has."""

    tensor: TensorMap
    depth_last: bool
    batch: tuple[tuple[str, int], ...]


def _view(s: Side, lines: Axes, depth: Axes, batch: Axes) -> _View:
    """ScheduleError, with the reason, where hardware cannot copy boxes of it."""
    if s.inside is not None:
        raise ScheduleError("is padded")
    buffer = s.element.buffer
    form = offset(buffer, s.element.index, {a: (0.0, n - 1.0) for a, n in (*lines, *depth, *batch)})
    if not all(isinstance(atom, Var) for atom, _ in form.terms):
        raise ScheduleError("does not lie in steps of its axes")
    line, deep = _step(form, lines), _step(form, depth)
    if 1 not in (line, deep):
        raise ScheduleError("has no neighbours in memory along its lines or the sum")
    pairs = [(prod(n for _, n in axes), step) for axes, step in ((depth, deep), (lines, line))]
    depth_last = deep == 1
    kept = tuple((a, n) for a, n in batch if form.coefficient(a))
    every = [
        *(pairs if depth_last else reversed(pairs)),
        *((n, form.coefficient(a)) for a, n in kept),
    ]
    size = s.dtype.itemsize
    if len(every) > MOST_AXES:
        raise ScheduleError(f"has {len(every)} axes")
    strides = [step * size for _, step in every[1:]]
    if form.constant * size % VECTOR_BYTES or any(n % VECTOR_BYTES for n in strides):
        raise ScheduleError(f"has lines that do not begin at multiples of {VECTOR_BYTES} bytes")
    if not all(0 < n < MOST_STRIDE for n in strides):
        raise ScheduleError("has lines that overlap or run backwards")
    extents, steps = zip(*every, strict=True)
    tensor = TensorMap(buffer, form.constant, extents, steps, ())
    return _View(tensor, depth_last, kept)


def _step(form: Linear, axes: Sequence[tuple[str, int]]) -> int:
    """What a step along all of these axes together adds, the last one fastest."""
    real = [(a, n) for a, n in axes if n > 1]
    if not real:
        return VECTOR_BYTES  # a single line: any step will do
    step = size = form.coefficient(real[-1][0])
    for axis, n in reversed(real):
        if form.coefficient(axis) != size:
            raise ScheduleError("has axes that cannot be taken as one")
        size *= n
    return step
