"""The loops of a Winograd convolution: blocks of tiles are transformed, multiplied and transformed
back in scratch; the last step stores the results, completed by the group's other members.

Every step is a small product on register tiles: V = B' d B, M = sum of V * U, Y = A' M A.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from tilewright.dtypes import DType
from tilewright.fusion.winograd import ROWS, SCRATCH_BYTES, Winograd, in_run
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Block,
    Buffer,
    Const,
    Expr,
    For,
    Load,
    LoopKind,
    Space,
    Stmt,
    Store,
    Tile,
    Var,
    index_const,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import minimum

Finish = Callable[[Expr, Expr, Expr, Expr, Expr], Stmt]  # result, n, channel, row, column
Element = Callable[[Expr, Expr, Expr], tuple[Expr, Expr]]  # row, column, depth: the two factors
Put = Callable[[Expr, Expr, Expr], Stmt]  # row, column, result
WIDE = 4  # vectors of a transform's tile


@dataclass(frozen=True)
class Blocking:
    """How many tiles make a block, of how many rows are the products, and how the panels of
    results are shared out."""

    tiles: int
    rows: int
    splits: int


def blocking(w: Winograd) -> Blocking:
    """Blocks whose transformed tiles stay in the second level of the cache."""
    fitting = max(1, SCRATCH_BYTES // (4 * w.alpha * w.alpha * w.inputs))
    most = max(min(fitting, w.tiles), min(ROWS, w.tiles))
    blocks = -(-w.tiles // most)
    tiles = -(-w.tiles // blocks)
    parts = -(-tiles // ROWS)
    splits = 1 if blocks >= 4 or w.panels % 2 else 2
    return Blocking(tiles, -(-tiles // parts), splits)


def winograd_loops(w: Winograd, batch: int, extents: tuple[int, int], finish: Finish) -> Stmt:
    """The loop nest, its outer loops parallel; `finish` stores one result."""
    return _Loops(w, blocking(w), batch, extents, finish).nest()


@dataclass(frozen=True)
class _Loops:
    w: Winograd
    by: Blocking
    batch: int
    extents: tuple[int, int]
    finish: Finish

    def nest(self) -> Stmt:
        w, by = self.w, self.by
        v = _local("v", w.alpha * w.alpha, by.tiles, w.inputs)
        block, share = Var("block"), Var("share")
        panels = w.panels // by.splits
        body: Stmt = Block(
            (
                _for("t", by.tiles, self._transform(v, self._tile(block, Var("t")))),
                _for("panel", panels, self._panel(v, block, share * panels + Var("panel"))),
            )
        )
        body = Alloc(v, body)
        for axis, extent in (
            ("share", by.splits),
            ("block", -(-w.tiles // by.tiles)),
            ("batch", self.batch),
        ):
            body = For(axis, index_const(extent), body, LoopKind.PARALLEL)
        return body

    def _tile(self, block: Expr, t: Expr) -> Expr:
        """The number of a tile in its image; the last block overlaps the one before."""
        last = self.w.tiles - self.by.tiles
        return minimum(block * self.by.tiles, last) + t

    def _transform(self, v: Buffer, tile: Expr) -> Stmt:
        """V of one tile: B' d into a strip, then B' of each of its lines' pixels."""
        w = self.w
        strip = _local("strip", w.alpha, w.alpha * w.inputs)
        line, run = tile // w.columns * w.m, tile % w.columns * (w.m * w.inputs)
        b, t = w.b, Var("t")

        def down(p: Expr, c: Expr, i: Expr) -> tuple[Expr, Expr]:
            return b_at(p, i), in_run(w.image, Var("batch"), line + i, run + c)

        def along(q: Expr, c: Expr, j: Expr) -> tuple[Expr, Expr]:
            return b_at(q, j), Load(strip, (Var("p"), j * w.inputs + c))

        def b_at(p: Expr, i: Expr) -> Expr:
            return Load(b, (p, i))

        first = self._columns(
            "down",
            w.alpha,
            w.alpha * w.inputs,
            w.alpha,
            down,
            lambda p, c, value: Store(strip, (p, c), value),
        )
        second = self._columns(
            "along",
            w.alpha,
            w.inputs,
            w.alpha,
            along,
            lambda q, c, value: Store(v, (Var("p") * w.alpha + q, t, c), value),
        )
        return Alloc(strip, Block((first, _for("p", w.alpha, second))))

    def _panel(self, v: Buffer, block: Expr, panel: Expr) -> Stmt:
        """All results of the block in one panel of channels."""
        w, by = self.w, self.by
        products = _local("products", by.tiles, w.alpha, w.alpha * w.width)
        p, q, part = Var("p"), Var("q"), Var("part")
        first = minimum(part * by.rows, by.tiles - by.rows)

        def product(r: Expr, c: Expr, k: Expr) -> tuple[Expr, Expr]:
            at = p * w.alpha + q
            return Load(v, (at, first + r, k)), Load(w.weights, (panel, at, k, c))

        step = self._tile_of(
            "product",
            by.rows,
            w.width,
            w.inputs,
            product,
            lambda r, c, value: Store(products, (first + r, p, q * w.width + c), value),
        )
        parts = _for("part", -(-by.tiles // by.rows), step)
        multiply = _for("p", w.alpha, _for("q", w.alpha, parts))
        back = _for("t", by.tiles, self._back(products, self._tile(block, Var("t")), panel))
        return Alloc(products, Block((multiply, back)))

    def _back(self, products: Buffer, tile: Expr, panel: Expr) -> Stmt:
        """The results of one tile, as far as they lie inside."""
        w = self.w
        lines = _local("lines", w.m, w.alpha * w.width)
        t, p = Var("t"), Var("p")

        def up(r: Expr, c: Expr, k: Expr) -> tuple[Expr, Expr]:
            return Load(w.a, (r, k)), Load(products, (t, k, c))

        def across(r: Expr, c: Expr, k: Expr) -> tuple[Expr, Expr]:
            return Load(w.a, (r, k)), Load(lines, (p, k * w.width + c))

        row, column = tile // w.columns * w.m, tile % w.columns * w.m
        height, width = (
            minimum(index_const(w.m), n - at) if n % w.m else index_const(w.m)
            for n, at in zip(self.extents, (row, column), strict=True)
        )
        channels = (
            minimum(index_const(w.width), w.outputs - panel * w.width)
            if w.outputs % w.width
            else index_const(w.width)
        )

        def store(r: Expr, c: Expr, value: Expr) -> Stmt:
            return self.finish(value, Var("batch"), panel * w.width + c, row + p, column + r)

        first = self._columns(
            "up",
            w.m,
            w.alpha * w.width,
            w.alpha,
            up,
            lambda r, c, value: Store(lines, (r, c), value),
        )
        second = self._tile_of("across", w.m, w.width, w.alpha, across, store, (width, channels))
        return Alloc(lines, Block((first, For("p", height, second))))

    def _columns(
        self,
        name: str,
        rows: int,
        columns: int,
        depth: int,
        element: Element,
        store: Put,
    ) -> Stmt:
        """Products over all columns, in tiles of some vectors; the last tile overlaps."""
        width = next(v for v in (WIDE, 2, 1) if v * self.w.lanes <= columns) * self.w.lanes
        part = Var(f"{name}_part")
        first = minimum(part * width, columns - width)
        whole = self._tile_of(
            name,
            rows,
            width,
            depth,
            lambda r, c, k: element(r, first + c, k),
            lambda r, c, value: store(r, first + c, value),
        )
        return _for(part.name, -(-columns // width), whole)

    def _tile_of(
        self,
        name: str,
        rows: int,
        width: int,
        depth: int,
        element: Element,
        store: Put,
        stored: tuple[Expr, Expr] | None = None,
    ) -> Stmt:
        """acc[r, c] = sum over k of the two factors, and what becomes of it."""
        acc = _local(f"{name}_acc", rows, width)
        r, c, k = (Var(f"{name}_{x}") for x in ("row", "column", "depth"))
        left, right = element(r, c, k)
        zero = Store(acc, (r, c), Const(0.0, DType.F32))
        step = Accumulate(acc, (r, c), ScalarOp.ADD, left * right)
        inner = _for(r.name, rows, _for(c.name, width, step))
        meaning = Block(
            (
                _for(r.name, rows, _for(c.name, width, zero)),
                For(k.name, index_const(depth), inner, baked=depth == self.w.alpha),
            )
        )
        tile = Tile(acc, r.name, c.name, (k.name,), meaning)
        high, wide = stored or (index_const(rows), index_const(width))
        done = For(c.name, wide, store(r, c, Load(acc, (r, c))), baked=True)
        return Alloc(acc, Block((tile, For(r.name, high, done, baked=True))))


def _for(axis: str, extent: int, body: Stmt) -> Stmt:
    return For(axis, index_const(extent), body, baked=True)


def _local(name: str, *shape: int) -> Buffer:
    assert prod(shape) < 1 << 24, "blocking() bounds the scratch"
    return Buffer(name, DType.F32, tuple(shape), space=Space.LOCAL)
