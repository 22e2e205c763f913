"""Which directives a kernel gets on a GPU when nobody says otherwise."""

from __future__ import annotations

from math import prod

from tilewright.dtypes import DType
from tilewright.fusion.lower import Lowered
from tilewright.loops.ir import Accumulate, For, Kernel, Load, walk
from tilewright.loops.locate import axis_ranges, offset, outer_loops
from tilewright.loops.verify_threads import WARP
from tilewright.schedule.attend import attend
from tilewright.schedule.block_tiles import BlockTile, find_product
from tilewright.schedule.builder import Builder
from tilewright.schedule.cooperate import Cooperate
from tilewright.schedule.directives import Block
from tilewright.schedule.task_blocks import TaskBlocks, widest_nest
from tilewright.schedule.vectors import Vectorize, lanes_for

BLOCKS = 256  # about two to a multiprocessor: fewer leave parts of the machine idle
TILES = (
    BlockTile(128, 128, 16, 8, 8),
    BlockTile(128, 64, 16, 8, 4),
    BlockTile(64, 64, 16, 4, 4),
    BlockTile(32, 64, 16, 4, 4),
    BlockTile(16, 64, 16, 4, 4),
)
"""From the one that reads memory least to the one that makes most blocks."""
MIN_COLUMNS = 16
MIN_ROWS = 8
MIN_DEPTH = 8
STEPS = 8  # elements of a row that a thread should have at most, as far as there are threads
ROW_THREADS = (128, 256, 512, 1024)
TEAM_THREADS = 256
TASK_THREADS = (32, 64, 128, 256, 512, 1024)
MOST_TASKS = 4096  # more of them keep all threads busy one by one
MIN_ROW = 32  # elements below which a thread does a row alone


def choose_cuda_schedule(lowered: Lowered) -> Kernel:
    """The kernel with a schedule that suits its kind."""
    builder = Builder(lowered.kernel)
    if lowered.group.nest is not None:
        if not attend(builder):
            _share_tasks(builder)
        return builder.kernel
    sums = any(isinstance(n, Accumulate) for n in walk(lowered.kernel.body))
    if not sums:
        _map(builder)
    elif not _multiply(builder) and not _cooperate(builder):
        builder.bind(builder.axes)
    return builder.kernel


def _share_tasks(builder: Builder) -> None:
    """Few tasks of much work are blocks of threads."""
    tasks = prod(builder.extent(a) for a in builder.axes)
    widest = widest_nest(builder.kernel)
    if widest < WARP or tasks > MOST_TASKS:
        return
    threads = next((t for t in TASK_THREADS if t >= widest), TASK_THREADS[-1])
    builder.attempt(TaskBlocks(threads))


def _multiply(builder: Builder) -> bool:
    product = find_product(builder.kernel)
    if product is None:
        return False
    rows, columns, depth, batch = (
        prod(n for _, n in axes)
        for axes in (product.rows, product.columns, product.depth, product.batch)
    )
    if columns < MIN_COLUMNS or rows < MIN_ROWS or depth < MIN_DEPTH:
        return False
    tile = next((t for t in TILES if _blocks(t, rows, columns) * batch >= BLOCKS), TILES[-1])
    fitting = [t for t in TILES if t.rows < 2 * rows and t.columns < 2 * columns]
    if tile not in fitting and fitting:
        tile = fitting[0]
    return builder.attempt(tile)


def _blocks(t: BlockTile, rows: int, columns: int) -> int:
    return -(-rows // t.rows) * -(-columns // t.columns)


def _cooperate(builder: Builder) -> bool:
    """Threads share rows whose elements lie side by side."""
    length = _row_length(builder.kernel)
    if length < MIN_ROW or not _lies_along_rows(builder.kernel):
        return False
    lanes = _lanes(builder.kernel)
    for vector in (lanes, 1) if lanes > 1 else (1,):
        if length <= WARP * vector * STEPS:
            width = next((w for w in (8, 16) if length <= w * vector), WARP)
            if builder.attempt(Cooperate(TEAM_THREADS, width, vector)):
                return True
        enough = (t for t in ROW_THREADS if t * vector * STEPS >= length)
        threads = next(enough, ROW_THREADS[-1])
        if builder.attempt(Cooperate(threads, threads, vector)):
            return True
    return False


def _row_length(kernel: Kernel) -> int:
    """Elements that the longest sum of a row has."""
    outer = {n.axis for n in outer_loops(kernel.body)}
    ranges = axis_ranges(kernel.body)
    longest = 1
    for n in walk(kernel.body):
        if isinstance(n, For) and n.axis not in outer:
            chain = outer_loops(n)
            if isinstance(chain[-1].body, Accumulate):
                longest = max(longest, int(prod(ranges[c.axis][1] + 1 for c in chain)))
    return longest


def _lies_along_rows(kernel: Kernel) -> bool:
    """Whether the summed elements of the largest operand lie side by side."""
    ranges = axis_ranges(kernel.body)
    outer = {n.axis for n in outer_loops(kernel.body)}
    sums = (n for n in walk(kernel.body) if isinstance(n, Accumulate))
    loads = [n for s in sums for n in walk(s.value) if isinstance(n, Load)]
    if not loads:
        return False
    main = max(loads, key=lambda n: prod(n.buffer.shape))
    form = offset(main.buffer, main.index, ranges)
    return any(form.coefficient(a) == 1 for a in ranges if a not in outer)


def _lanes(kernel: Kernel) -> int:
    return lanes_for(max(_bits(b.dtype) for b in kernel.params))


def _bits(dtype: DType) -> int:
    return max(dtype.bits, 8)


def _map(builder: Builder) -> None:
    builder.merge_all()
    axes = builder.axes
    if axes:
        _by_vectors(builder, axes[-1])
    builder.bind(builder.axes)


def _by_vectors(builder: Builder, axis: str) -> None:
    before, lanes = builder.kernel, _lanes(builder.kernel)
    if builder.extent(axis) % lanes or lanes < 2 or not builder.attempt(Block(axis, lanes)):
        return
    if not builder.attempt(Vectorize(f"{axis}_i")):
        builder.kernel = before
