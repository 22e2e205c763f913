"""Which directives a kernel gets when nobody says otherwise. Depends on structure, extents and the
machine only."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from math import prod

from tilewright.fusion.contraction import Contraction
from tilewright.fusion.decide import Pick, Point, by_cost_model
from tilewright.fusion.lower import Lowered
from tilewright.loops.ir import Accumulate, Const, For, Kernel, Load, LoopKind, Stmt, Store, walk
from tilewright.loops.locate import axis_ranges, offset
from tilewright.loops.structure import structure
from tilewright.schedule.builder import Builder
from tilewright.schedule.directives import (
    Bake,
    Block,
    Merge,
    Swap,
    Tensorize,
    Together,
)
from tilewright.schedule.journal import Journal
from tilewright.schedule.partition import Partition

WINDOW = 16  # the largest summed extent that counts as a window and is printed as a literal
BITS_PER_BYTE = 8
ROWS_BYTES = 512 << 10  # of the left operand that should stay in the second level
ALL = 0  # rows taken together: all of them
BLOCK_OVERHEAD = 0.7  # of a block of rows, in rows
SQUARE = 16  # elements of a cache line
VECTOR_BLOCK = (
    64  # elements that are accumulated side by side where the summed axis is not contiguous
)


@dataclass(frozen=True)
class TileLimits:
    """Rows that fit the registers, by number of vectors in a row; vector length by bits of an
    element."""

    rows: dict[int, int]
    lanes: dict[int, int]


def choose_schedule(
    lowered: Lowered,
    limits: TileLimits,
    pick: Pick = by_cost_model,
    journal: Journal | None = None,
) -> Kernel:
    """The kernel with a schedule that suits its kind; a journal takes down why."""
    builder = Builder(lowered.kernel, journal)
    if lowered.group.nest is not None or lowered.group.winograd is not None:
        builder.remark("its loops were written for the operator, with tasks and tiles in them")
        return lowered.kernel
    if lowered.group.contraction is not None:
        _tile(builder, lowered, lowered.group.contraction, limits, pick)
    elif any(isinstance(n, Accumulate) for n in walk(lowered.kernel.body)):
        _reduce(builder, limits)
    else:
        _map(builder)
    bake_windows(builder)
    return builder.kernel


def schedule_key(lowered: Lowered) -> Hashable:
    """Equal for two kernels that get the same schedule: all that `choose_schedule` looks at."""
    group = lowered.group
    if group.nest is not None or group.contraction is None:
        return group.nest is None, structure(lowered.kernel)
    c, main = group.contraction, group.members[0]
    places = [main.axes.index(a) if a else -1 for a in (c.rows, c.columns)]
    return (*places, main.dtype, c.panel_width, structure(lowered.kernel))


def _map(builder: Builder) -> None:
    if _transpose(builder):
        builder.remark("a transpose: lines of what is read go by, a cache line of them at a time")
        builder.bind(builder.axes[:-2])
        return
    builder.remark("a map: loops that step through memory as one become one")
    builder.merge_all()
    axes = builder.axes
    if len(axes) > 1:
        builder.attempt(Partition(axes[-1]))
    builder.bind(axes if len(axes) == 1 else axes[:-1])


def _transpose(builder: Builder) -> bool:
    """Copy line by line of what is read, a cache line's worth of lines at a time, where that is
    not how it is written."""
    found = [n for n in walk(builder.kernel.body) if isinstance(n, Load)]
    if len(found) != 1 or len(builder.axes) < 2:
        return False
    form = offset(found[0].buffer, found[0].index, axis_ranges(builder.kernel.body))
    sides = [a for a in builder.axes if form.coefficient(a) == 1]
    written = builder.axes[-1]
    if len(sides) != 1 or written in sides or builder.extent(sides[0]) < SQUARE:
        return False
    read = sides[0]
    for axis in builder.axes[builder.axes.index(read) + 1 :]:
        if not builder.attempt(Swap(read, axis)):
            return False
    return builder.attempt(Block(written, SQUARE))


def _reduce(builder: Builder, limits: TileLimits) -> None:
    builder.merge_all()
    axes = builder.axes
    if _reduce_columns(builder, limits):
        builder.remark("results lie side by side as operands do: sums are columns of a tile")
    elif axes and _prefers_vector_block(builder.kernel, axes[-1]):
        extent = builder.extent(axes[-1])
        blocks = -(-extent // VECTOR_BLOCK)
        factor = min(-(-(extent // blocks + 1) // 16) * 16 if blocks > 1 else extent, extent)
        builder.remark("results lie side by side, summed elements do not: some sums at a time")
        builder.attempt(Block(axes[-1], factor, overlap=True))
    builder.bind(builder.axes)


def _reduce_columns(builder: Builder, limits: TileLimits) -> bool:
    """Put a reduction whose results lie side by side, as its operands do, on register tiles."""
    axes, before = builder.axes, builder.kernel
    kinds = {n.buffer.dtype for n in walk(before.body) if isinstance(n, Accumulate)}
    lanes = limits.lanes.get(max((k.bits for k in kinds), default=0), 0)
    if not axes or not lanes or not _prefers_vector_block(before, axes[-1]):
        return False
    columns, rows = axes[-1], axes[-2] if len(axes) > 1 else ""
    vectors = _vectors(builder.extent(columns), lanes)
    if not vectors:
        return False
    if rows and not _block_rows(builder, rows, limits.rows[vectors]):
        rows = ""
    builder.attempt(Block(columns, vectors * lanes, overlap=True))
    if builder.attempt(Tensorize(f"{columns}_i", f"{rows}_i" if rows else "")):
        return True
    builder.kernel = before
    return False


def _vectors(columns: int, lanes: int) -> int:
    """Two vectors, or one where that computes less twice; none where there are too few columns."""
    fitting = [v for v in (2, 1) if v * lanes <= columns]
    return min(fitting, key=lambda v: -(-columns // (v * lanes)) * v, default=0)


def _block_rows(builder: Builder, rows: str, most: int) -> bool:
    return builder.attempt(Block(rows, _height(builder.extent(rows), most), overlap=True))


def _prefers_vector_block(kernel: Kernel, axis: str) -> bool:
    """Whether the results along `axis` lie side by side in the operands while the summed elements
    do not."""
    ranges = axis_ranges(kernel.body)
    inner = _innermost(kernel.body)
    loads = [
        n
        for s in walk(kernel.body)
        if isinstance(s, Accumulate)
        for n in walk(s.value)
        if isinstance(n, Load)
    ]
    if not loads:
        return False
    main = max(loads, key=lambda n: prod(n.buffer.shape))
    form = offset(main.buffer, main.index, ranges)
    return form.coefficient(axis) == 1 and not any(form.coefficient(a) == 1 for a in inner)


def _innermost(s: Stmt) -> set[str]:
    """Axes of the loops directly around accumulations."""
    return {
        n.axis
        for n in walk(s)
        if isinstance(n, For) and isinstance(n.body, Accumulate) and n.kind is LoopKind.SERIAL
    }


def _tile(
    builder: Builder, lowered: Lowered, c: Contraction, limits: TileLimits, pick: Pick
) -> None:
    positions = {a: f"row{k}" for k, a in enumerate(lowered.group.members[0].axes)}
    columns = positions[c.columns]
    rows, height = _merge_rows(builder, positions[c.rows]) if c.rows else "", 1
    width = lowered.group.members[0].dtype.bits
    panel = c.panel_width
    vectors = max(1, panel // limits.lanes[width])
    if rows:
        builder.attempt(Swap(rows, columns))
        point = _height_point(lowered, builder.extent(rows), limits.rows[vectors])
        height = pick(point)
        builder.remark(
            f"a sum of products, on register tiles: panels of {panel} columns are {vectors} vectors"
            f" wide, beside which up to {limits.rows[vectors]} rows fit the registers; {height} of"
            f" {builder.extent(rows)} rows, {_by(height, point)}"
        )
        if not builder.attempt(Block(rows, height, overlap=True)):
            rows = ""
    builder.attempt(Block(columns, panel))
    builder.attempt(
        Tensorize(f"{columns}_i", f"{rows}_i" if rows else "")
    )  # plain loops remain otherwise
    builder.bind(builder.axes)
    if rows and len(c.depth) == 1 and not c.a.guards:
        depth = dict(lowered.group.members[0].reduction.axes)[c.depth[0]]  # type: ignore[union-attr]
        _share_rows(builder, rows, height * depth * width // BITS_PER_BYTE, lowered, pick)


def _share_rows(builder: Builder, rows: str, nbytes: int, lowered: Lowered, pick: Pick) -> None:
    """Walk over all columns with as many blocks of rows as the second-level cache keeps."""
    blocks = builder.extent(rows)
    most = max(2, ROWS_BYTES // max(nbytes, 1))
    default = -(-blocks // -(-blocks // most)) if blocks > most else ALL
    others = {n for n in (2, 4, 8, 16, 32, 64) if n < blocks}
    options = (*sorted(others | {ALL, default}),)
    point = Point("together", lambda: schedule_key(lowered), options, default, _work(lowered))
    if together := pick(point):
        builder.remark(f"{together} blocks of rows at a time stay in the second-level cache")
        builder.attempt(Together(rows, together))


def _by(taken: int, point: Point) -> str:
    """What a choice was made by."""
    return "which computes the least" if taken == point.default else "as measured"


def _height_point(lowered: Lowered, extent: int, most: int) -> Point:
    """How many rows a tile has."""
    options, default = (*reversed(_heights(extent, most)),), _height(extent, most)
    return Point("height", lambda: schedule_key(lowered), options, default, _work(lowered))


def _heights(extent: int, most: int) -> range:
    """Those that suit the registers."""
    return range(min(extent, max(1, most // 2)), min(extent, most) + 1)


def _work(lowered: Lowered) -> float:
    main = lowered.group.members[0]
    summed = main.reduction.axes if main.reduction else ()
    return float(main.size * prod(n for _, n in summed))


def _merge_rows(builder: Builder, rows: str) -> str:
    """Merge the loops outside the rows into them as far as memory allows."""
    while True:
        axes = builder.axes
        k = axes.index(rows)
        if k == 0 or not builder.attempt(Merge(axes[k - 1], rows)):
            return rows
        rows = axes[k - 1]


def _height(extent: int, most: int) -> int:
    """The height of blocks that compute the least: the last one overlaps the one before it."""
    return min(_heights(extent, most), key=lambda h: (-(-extent // h) * (h + BLOCK_OVERHEAD), -h))


def bake_windows(builder: Builder) -> None:
    """Print small summed extents as literals."""
    for n in list(walk(builder.kernel.body)):
        if (
            isinstance(n, For)
            and not n.baked
            and n.kind is LoopKind.SERIAL
            and _is_small(n)
            and _sums(n)
        ):
            builder.attempt(Bake(n.axis))


def _is_small(n: For) -> bool:
    return isinstance(n.extent, Const) and int(n.extent.value) <= WINDOW


def _sums(n: For) -> bool:
    return any(isinstance(s, Accumulate) for s in walk(n.body)) and not any(
        isinstance(s, Store) for s in walk(n.body)
    )
