"""Maps that read along another axis than they write along: tile by tile through shared memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tilewright.dtypes import DType
from tilewright.errors import ScheduleError
from tilewright.loops.affine import Range, simplify_index, simplify_loads
from tilewright.loops.facts import Facts, learn, unproven
from tilewright.loops.ir import (
    Alloc,
    Barrier,
    Block,
    Buffer,
    Cast,
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
    index_const,
    rewrite,
    substitute,
    variables,
    walk,
)
from tilewright.loops.locate import always_read, axis_ranges, offset, outer_loops
from tilewright.schedule.cooperate import THREAD
from tilewright.schedule.vectors import by_vectors, is_adjacent

BANKS = 32  # of shared memory
BANK_BYTES = 4
SHARED_BYTES = 48 << 10
LANE, SHARE = "lane", "share"


@dataclass(frozen=True)
class Transpose:
    """Read along `along` what the kernel writes along another axis, and turn it in shared memory.

    A block of `threads` copies a tile of `rows` elements along the written axis and `columns`
    along the other one, then computes its results. Each access is of `lanes` neighbours.
    """

    along: str
    rows: int
    columns: int
    threads: int
    lanes: int = 1

    def __call__(self, kernel: Kernel) -> Kernel:
        loops = outer_loops(kernel.body)
        fixed = all(isinstance(n.extent, Const) for n in loops)
        if len(loops) < 2 or not fixed or not isinstance(loops[-1].body, Store):
            raise ScheduleError(f"{self}: no loops of fixed extents around one store")
        if self.along not in [n.axis for n in loops[:-1]]:
            raise ScheduleError(f"{self}: nothing is read along that axis alone")
        return replace(kernel, body=_Turning(self, loops, loops[-1].body).body())


def read_along(store: Store, ranges: Mapping[str, Range], written: str) -> dict[str, list[Load]]:
    """The loads that step through memory along another axis than the written one, by that axis."""
    found: dict[str, list[Load]] = {}
    for n in always_read(store.value):
        form = offset(n.buffer, n.index, ranges)
        beside = [a for a in ranges if a != written and form.coefficient(a) == 1]
        turned = written in variables(n) and form.coefficient(written) != 1
        inner = any(isinstance(m, Load) for i in n.index for m in walk(i))
        if len(beside) == 1 and turned and not inner and n not in found.get(beside[0], []):
            found.setdefault(beside[0], []).append(n)
    return found


def _held(dtype: DType) -> DType:
    """As what elements are kept in a tile: in whole banks."""
    return DType.I32 if dtype.itemsize < BANK_BYTES and not dtype.is_float else dtype.compute


def _cast(dtype: DType, e: Load) -> Expr:
    return e if e.buffer.dtype is dtype else Cast(dtype, e)


class _Turning:
    def __init__(self, how: Transpose, loops: list[For], store: Store) -> None:
        self.how, self.loops, self.store = how, loops, store
        self.written = loops[-1].axis
        self.extents = {n.axis: int(n.extent.value) for n in loops}  # type: ignore[union-attr]
        ranges = {a: (0.0, n - 1.0) for a, n in self.extents.items()}
        self.loads = read_along(store, ranges, self.written).get(how.along, [])
        line = how.columns | 1  # so that the elements of a column are in different banks
        self.tiles = {
            n: Buffer(f"tile{k}", _held(n.buffer.dtype), (how.rows, line), space=Space.SHARED)
            for k, n in enumerate(self.loads)
        }
        room = sum(b.dtype.itemsize * how.rows * line for b in self.tiles.values())
        widest = max((b.dtype.itemsize for b in self.tiles.values()), default=BANK_BYTES)
        self.banks = BANKS * BANK_BYTES // widest
        if not self.loads or room > SHARED_BYTES:
            raise ScheduleError(f"{how}: {len(self.loads)} operands are turned in {room:,} bytes")
        self.sizes = {a: n for a, n in self.extents.items() if a not in (how.along, self.written)}
        self.sizes |= {"row_block": self.blocks(self.written, how.rows)}
        self.sizes |= {"column_block": self.blocks(how.along, how.columns)}

    def blocks(self, axis: str, size: int) -> int:
        return -(-self.extents[axis] // size)

    def body(self) -> Stmt:
        reads = Block(tuple(self.read(n, b) for n, b in self.tiles.items()))
        parts = (self.by_threads(reads), Barrier(), self.by_threads(self.write()))
        body: Stmt = Block(parts)
        for b in self.tiles.values():
            body = Alloc(b, body)
        for axis, n in reversed(self.sizes.items()):
            body = For(axis, index_const(n), body, LoopKind.BLOCK)
        ranges = axis_ranges(body)

        def rule(n: Node) -> Node | None:
            if not isinstance(n, Store):
                return None
            index = tuple(simplify_index(i, ranges) for i in n.index)
            return replace(n, index=index, value=simplify_loads(n.value, ranges))

        return rewrite(body, rule)  # type: ignore[return-value]

    def by_threads(self, s: Stmt) -> For:
        return For(THREAD, index_const(self.how.threads), s, LoopKind.THREAD)

    # -- the elements of a tile, in an order

    def read(self, load: Load, tile: Buffer) -> Stmt:
        """Neighbouring threads read what lies side by side, each all of its elements before it
        puts any into the tile."""
        how, lanes = self.how, self.lanes(self.how.along, load)
        row, column = self.share(how.columns, how.rows, lanes, "r")
        at: Load = self.placed(load, row, column)  # type: ignore[assignment]
        count = self.count(how.columns, how.rows, lanes)
        shape = (count, lanes)
        own = Buffer(f"{tile.name}_own", load.buffer.dtype, shape, space=Space.LOCAL)
        place = (
            Var(f"{SHARE}_r") if count > 1 else index_const(0),
            Var(f"{LANE}_r") if lanes > 1 else index_const(0),
        )
        put = _cast(tile.dtype, Load(own, place))
        steps = (Store(own, place, at), Store(tile, (row, column), put))
        done = (self.shares(s, row, column, lanes, "r") for s in steps)
        return Alloc(own, Block(tuple(done)))

    def write(self) -> Stmt:
        lanes = self.lanes(self.written, self.store)
        column, row = self.share(self.how.rows, self.how.columns, lanes, "w")

        def rule(n: Node) -> Node | None:
            if not isinstance(n, Load) or n not in self.tiles:
                return None
            return _cast(n.buffer.dtype, Load(self.tiles[n], (row, column)))

        s: Stmt = rewrite(self.store, rule)  # type: ignore[assignment]
        return self.shares(self.placed(s, row, column), row, column, lanes, "w")  # type: ignore[arg-type]

    def lanes(self, axis: str, access: Load | Store) -> int:
        """Neighbours that a thread takes along an axis."""
        lanes = self.how.lanes
        if not self.is_square or self.extents[axis] % lanes or self.banks % lanes:
            return 1
        loop = For(LANE, index_const(lanes), access)  # type: ignore[arg-type]
        start: dict[str, Expr] = {axis: Var("group") * lanes + Var(LANE)}
        index = tuple(substitute(i, start) for i in access.index)
        groups = self.extents[axis] // lanes
        ranges = {a: (0.0, n - 1.0) for a, n in self.extents.items()}
        ranges |= {"group": (0.0, groups - 1.0), LANE: (0.0, lanes - 1.0)}
        return lanes if is_adjacent(access.buffer, index, loop, ranges) else 1  # type: ignore[arg-type]

    @property
    def is_square(self) -> bool:
        """Whether a warp can have one bank's worth of neighbours in each of some lines."""
        return self.how.rows == self.how.columns and self.how.rows % self.banks == 0

    def tile_extent(self, axis: str) -> int:
        return self.how.columns if axis == self.how.along else self.how.rows

    def share(self, fast: int, slow: int, lanes: int, name: str) -> tuple[Expr, Expr]:
        """A thread's place along the slow and the fast side of a tile. A warp has one bank's worth
        of elements along the fast side, and as many lines as that takes."""
        position: Expr = Var(THREAD)
        if self.count(fast, slow, lanes) > 1:
            position = Var(f"{SHARE}_{name}") * self.how.threads + position
        chunk = self.banks // lanes if self.is_square else fast
        group, rest = position % chunk, position // chunk
        if fast > chunk * lanes:
            group, rest = rest // slow * chunk + group, rest % slow
        elif fast * slow // lanes % self.how.threads:
            rest = rest % slow  # no tile reaches into the next one
        return rest, group * lanes + Var(f"{LANE}_{name}") if lanes > 1 else group

    def count(self, fast: int, slow: int, lanes: int) -> int:
        return -(-(fast * slow // lanes) // self.how.threads)

    def shares(self, s: Store, row: Expr, column: Expr, lanes: int, name: str) -> Stmt:
        """A store for each of a thread's elements of a tile."""
        how, lane, share = self.how, f"{LANE}_{name}", f"{SHARE}_{name}"
        fast, slow = (how.columns, how.rows) if name == "r" else (how.rows, how.columns)
        count = self.count(fast, slow, lanes)
        sizes = {**self.sizes, THREAD: how.threads, lane: lanes, share: count}
        ranges = {a: (0.0, n - 1.0) for a, n in sizes.items()}
        body: Stmt = self.simplified(s, ranges)
        first: dict[str, Expr] = {lane: index_const(0)}
        if lanes > 1:
            body = by_vectors(For(lane, index_const(lanes), body, baked=True), ranges)
            row, column = (substitute(e, first) for e in (row, column))  # type: ignore[assignment]
        inside = self.inside(row, column, lanes, name == "r", ranges)
        if fast * slow // lanes % how.threads:
            place = Var(share) * how.threads + Var(THREAD) if count > 1 else Var(THREAD)
            inside = [place < fast * slow // lanes, *inside]
        one: Store = substitute(self.simplified(s, ranges), first)  # type: ignore[assignment]
        facts: Facts = {}
        for c in inside:
            facts = learn(c, ranges, facts)
        for c in reversed([*inside, *unproven(one, ranges, facts)]):
            body = If(c, body)
        return For(share, index_const(count), body, baked=True) if count > 1 else body

    def inside(
        self, row: Expr, column: Expr, lanes: int, is_read: bool, ranges: Mapping[str, Range]
    ) -> list[Expr]:
        """What holds of the places of a tile that are there, which come by vectors."""
        how, found = self.how, list[Expr]()
        places = (self.written, "row_block", row), (how.along, "column_block", column)
        for axis, block, e in places:
            size, extent = self.tile_extent(axis), self.extents[axis]
            step = lanes if (axis == how.along) is is_read else 1
            if extent % size:
                at = simplify_index((Var(block) * size + e) // step, ranges)
                found.append(at < extent // step)
        return found

    def simplified(self, s: Store, ranges: Mapping[str, Range]) -> Store:
        index = tuple(simplify_index(i, ranges) for i in s.index)
        return replace(s, index=index, value=simplify_loads(s.value, ranges))

    def placed(self, n: Load | Store, row: Expr, column: Expr) -> Node:
        """A load or the store where an element of the tile belongs."""
        how = self.how
        env: dict[str, Expr] = {
            self.written: Var("row_block") * how.rows + row,
            how.along: Var("column_block") * how.columns + column,
        }
        return substitute(n, env)
