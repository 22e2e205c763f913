"""Sums of products with few results and many steps, for machines of many blocks of threads: into
how many parts their sums are taken.

That depends on extents alone, so results repeat to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tilewright.fusion.legalize import is_half
from tilewright.fusion.sums import steps_of
from tilewright.fusion.winograd import WinogradCompute
from tilewright.loops.ir import Apply, Load, variables, walk
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.tensor import Compute

PROCESSORS = 132  # of a large machine; fewer blocks than half of them are too few
WANTED = 2 * PROCESSORS  # blocks
TILE = 64  # results along a side of what a block computes
MIN_ROWS, MIN_COLUMNS = 8, 16  # fewer are computed by all threads of a block, line by line
LINES = (32, 8)  # of the long side that a block has then: of results side by side, of others
PART = 256  # steps of a sum on tiles that take about as long as another kernel takes to start
THIN_PART = 2048  # the same of a sum that waits for memory
LEAST = {True: 4, False: 2}  # parts, of halves on tensor cores and of others
WHOLE = 32  # steps that are taken at once: a part has a multiple of them if it may


@dataclass(frozen=True)
class Cut:
    """An axis that is taken in parts of equal length, the last of which may be shorter."""

    axis: str
    extent: int
    count: int
    length: int


@dataclass(frozen=True)
class GridProduct:
    """A sum of products by the numbers of its results: those that one factor alone follows, those
    that the other one alone follows, and those that both do. What is summed may lie side by side,
    and be of halves."""

    rows: int
    columns: int
    batch: int
    depth: tuple[tuple[str, int], ...]
    lies_along: bool
    of_halves: bool

    @property
    def is_thin(self) -> bool:
        """Whether one side is too short for tiles."""
        return self.rows < MIN_ROWS or self.columns < MIN_COLUMNS

    @property
    def blocks(self) -> int:
        """The blocks that compute it at once, about."""
        if self.is_thin:
            return self.batch * -(-max(self.rows, self.columns) // LINES[self.lies_along])
        return self.batch * -(-self.rows // TILE) * -(-self.columns // TILE)

    @property
    def steps(self) -> int:
        """Of one result."""
        return prod(n for _, n in self.depth)


def product_of(t: Compute) -> GridProduct | None:
    """t as a sum of products, if it is one that may be rounded in another order."""
    if t.reduction is None or t.reduction.op is not ScalarOp.ADD or isinstance(t, WinogradCompute):
        return None
    match t.body:
        case Apply(op=ScalarOp.MUL, args=(x, y)):
            of_x, of_y = variables(x), variables(y)
        case _:
            return None
    loads = [[n for n in walk(e) if isinstance(n, Load)] for e in (x, y)]
    if t.exact or not t.size or not all(loads):
        return None
    sizes = dict(zip(t.axes, t.shape, strict=True))
    rows, columns = (prod(sizes[a] for a in t.axes if a in s) for s in (of_x - of_y, of_y - of_x))
    depth = tuple((a, n) for a, n in t.reduction.axes if a in of_x & of_y)
    if rows * columns == 1 or len(depth) < len(t.reduction.axes):
        return None
    steps, batch = steps_of(t), t.size // (rows * columns)
    along = any(steps.get(a) == 1 for a, _ in depth)
    halves = all(any(is_half(n.buffer.dtype) for n in found) for found in loads)
    return GridProduct(rows, columns, batch, depth, along, halves)


def product_cuts(product: GridProduct) -> tuple[list[Cut], str]:
    """The summed axis whose parts become blocks, with how often it is cut; and why, or why not
    although blocks are few. The bytes of all parts together are those of a few hundred tiles."""
    blocks, steps = product.blocks, product.steps
    part = THIN_PART if product.is_thin else PART
    wanted = min(WANTED // blocks, steps // part)
    if blocks > PROCESSORS // 2 or wanted < LEAST[product.of_halves]:
        return [], ""
    here = f"has {blocks} blocks of results and a sum of {steps:,} products:"
    axis, extent = max(product.depth, key=lambda x: x[1])
    whole = WHOLE if extent % WHOLE == 0 else 1
    count = next(
        (n for n in range(wanted, LEAST[product.of_halves] - 1, -1) if extent % (n * whole) == 0), 0
    )
    if not count:
        return [], f"{here} it is not summed in parts, there are no equal ones of its {extent:,}"
    cut = Cut(axis, extent, count, extent // count)
    return [cut], f"{here} {count} parts are summed first"
