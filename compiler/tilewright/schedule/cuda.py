"""Which directives a kernel gets on a GPU when nobody says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TypeVar

from tilewright.dtypes import DType
from tilewright.fusion.decide import Pick, by_cost_model
from tilewright.fusion.lower import Lowered
from tilewright.loops.affine import Linear
from tilewright.loops.ir import Accumulate, For, Kernel, Load, Store, walk
from tilewright.loops.locate import allocations, axis_ranges, offset, outer_loops
from tilewright.loops.verify_threads import WARP
from tilewright.schedule.alternatives import vary
from tilewright.schedule.attend import attend
from tilewright.schedule.block_tiles import BlockTile, Product, find_product
from tilewright.schedule.builder import Builder
from tilewright.schedule.columns import Columns
from tilewright.schedule.cooperate import Cooperate
from tilewright.schedule.directives import Bake, Block
from tilewright.schedule.elements import Elements
from tilewright.schedule.heuristics import bake_windows
from tilewright.schedule.journal import Journal
from tilewright.schedule.mma_tiles import MmaTile
from tilewright.schedule.read_once import ReadOnce
from tilewright.schedule.round_factors import RoundFactors
from tilewright.schedule.task_blocks import TaskBlocks, widest_nest
from tilewright.schedule.thin_tiles import thin_tiles
from tilewright.schedule.transposed import Transpose, read_along
from tilewright.schedule.vectors import Vectorize, lanes_for
from tilewright.schedule.wgmma_tiles import best_tile, is_of_halves

LEAST = "sm_80"  # what every GPU can do that is supported
WITH_WARPGROUPS = "sm_90a"
BLOCKS = 256  # about two to a multiprocessor: fewer leave parts of the machine idle
TILES = (
    BlockTile(128, 128, 16, 8, 8),
    BlockTile(128, 64, 16, 8, 4),
    BlockTile(64, 64, 16, 4, 4),
    BlockTile(32, 64, 16, 4, 4),
    BlockTile(16, 64, 16, 4, 4),
)
"""From the one that reads memory least to the one that makes most blocks."""
MMA_TILES = (
    MmaTile(128, 128, 32, 64, 32),
    MmaTile(128, 64, 32, 32, 32),
    MmaTile(64, 64, 32, 32, 32),
    MmaTile(32, 64, 32, 16, 32),
    MmaTile(16, 64, 32, 16, 16),
)
WIDE_TILES = (
    MmaTile(128, 128, 32, 64, 64),
    MmaTile(128, 64, 32, 32, 32),
    MmaTile(64, 64, 32, 32, 32),
    MmaTile(32, 64, 32, 16, 32),
    MmaTile(16, 64, 32, 16, 16),
)
"""For bytes and TF32. The largest one has large warps: of bytes, shared memory would be read too
often otherwise, and a warp rounds to TF32 what it multiplies, once for each product."""
BYTE_DEPTHS, TF32_DEPTHS = (128, 64, 32), (32, 16)
"""The first ones are lines of 128 bytes: a quarter of a warp copies one and meets no bank twice."""
LITTLE = 8  # a sum that is longer by an eighth is not much longer
STAGES = (2, 3, 4)  # of copies ahead, as far as measurements choose
MIN_COLUMNS = 16
MIN_ROWS = 8
MIN_DEPTH = 8
STEPS = 4  # vectors of a row that a thread should have at most, as far as there are threads
TEAM_STEPS = 8  # the same where a warp has a row, or several
ROW_THREADS = (64, 128, 256, 512, 1024)
TEAM_THREADS = 256
TASK_THREADS = (32, 64, 128, 256, 512, 1024)
MOST_TASKS = 4096  # more of them keep all threads busy one by one
MIN_ROW = 32  # elements of a row that threads share even if they do not all lie side by side
SPREAD = 1 << 15  # threads that keep a machine busy: fewer take single elements
MANY = 1 << 16  # threads with a sum each that read memory fast enough without help
SHORT = 8  # elements of a sum that one thread adds up as fast as several
WAVE = 1 << 18  # threads that a machine runs at a time: more have several vectors each
IN_FLIGHT = 4  # vectors that a thread reads before it writes
ELEMENT_THREADS, ELEMENT_COUNTS = (128, 256, 512), (1, 2, 4)  # as far as measurements choose
MOST_IN_FLIGHT = 8  # the same
REGISTERS = 64  # that a thread keeps of a row
SIDE = 64  # elements along a side of a tile that is turned
MIN_SIDE = 8  # written side by side, where turning tiles pays
MIN_TILE = 1 << 10  # elements below which the first-level cache turns them


def choose_cuda_schedule(
    lowered: Lowered,
    tf32: bool = False,
    journal: Journal | None = None,
    pick: Pick = by_cost_model,
    architecture: str = LEAST,
) -> Kernel:
    """The kernel with a schedule that suits its kind and the GPUs of an architecture; `tf32` lets
    products of float32 round their factors for tensor cores. A journal takes down what was tried,
    and `pick` decides where there are several good ways."""
    builder = Builder(lowered.kernel, journal)
    if lowered.group.nest is not None:
        if not attend(builder, pick):
            _share_tasks(builder)
        return builder.kernel
    sums = any(isinstance(n, Accumulate) for n in walk(lowered.kernel.body))
    if not sums:
        _map(builder, pick)
    elif not (
        _multiply(builder, tf32, pick, architecture)
        or _cooperate(builder, pick)
        or _columns(builder)
    ):
        _by_results(builder, pick)
    return builder.kernel


def _share_tasks(builder: Builder) -> None:
    """Few tasks of much work are blocks of threads."""
    tasks = prod(builder.extent(a) for a in builder.axes)
    widest = widest_nest(builder.kernel)
    if widest >= WARP and tasks <= MOST_TASKS:
        threads = next((t for t in TASK_THREADS if t >= widest), TASK_THREADS[-1])
        builder.attempt(TaskBlocks(threads))


def _multiply(builder: Builder, tf32: bool, pick: Pick, architecture: str) -> bool:
    product = find_product(builder.kernel)
    if product is None:
        return False
    if _thin(builder, product):
        return True
    rows, columns, depth, batch = (
        prod(n for _, n in axes)
        for axes in (product.rows, product.columns, product.depth, product.batch)
    )
    if columns < MIN_COLUMNS or rows < MIN_ROWS or depth < MIN_DEPTH:
        return False
    if architecture == WITH_WARPGROUPS and is_of_halves(product):
        groups = best_tile(product)
        if groups is None:
            builder.remark("too few results for products by warpgroups")
        elif builder.attempt_if_shown(groups):
            return True
    wide = _fitting(WIDE_TILES, rows, columns, batch)
    if tf32 and _multiply_rounded(builder, _deep(wide, TF32_DEPTHS, depth)):
        return True
    of_bytes = product.total.dtype is DType.I32
    tiles = (
        _deep(wide, BYTE_DEPTHS, depth) if of_bytes else [_fitting(MMA_TILES, rows, columns, batch)]
    )
    before = builder.kernel
    mma = next((t for t in tiles if builder.attempt_if_shown(t)), None)
    if mma is not None:
        sizes = WIDE_TILES if of_bytes else MMA_TILES
        others = [replace(t, depth=mma.depth, stages=n) for t in sizes for n in STAGES]
        vary(builder, before, "tile", mma, others, pick)
        return True
    tile = _fitting(TILES, rows, columns, batch)
    if not builder.attempt(tile):
        return False
    vary(builder, before, "tile", tile, TILES, pick)
    return True


def _thin(builder: Builder, product: Product) -> bool:
    """A few rows, or columns: the other factor is read once, by vectors if it may be."""
    rows, columns = (prod(n for _, n in axes) for axes in (product.rows, product.columns))
    if rows >= MIN_ROWS and columns >= MIN_COLUMNS:
        return False
    return any(map(builder.attempt_if_shown, thin_tiles(product, BLOCKS)))


def _deep(tile: MmaTile, depths: Sequence[int], depth: int) -> list[MmaTile]:
    """The tile with its steps as deep as may be: little of the last one is beyond the sum."""
    fitting = [d for d in depths if -(-depth // d) * d * LITTLE <= depth * (LITTLE + 1)]
    return [replace(tile, depth=d) for d in dict.fromkeys((*fitting, depths[-1]))]


def _multiply_rounded(builder: Builder, tiles: Sequence[MmaTile]) -> bool:
    """Factors are rounded only where tensor cores multiply them."""
    exact = builder.kernel
    if builder.attempt(RoundFactors()) and any(map(builder.attempt_if_shown, tiles)):
        return True
    builder.kernel = exact
    return False


T = TypeVar("T", BlockTile, MmaTile)


def _fitting(tiles: Sequence[T], rows: int, columns: int, batch: int) -> T:
    """The largest tile that keeps the machine busy and is not mostly beyond the results."""

    def blocks(t: T) -> int:
        return -(-rows // t.rows) * -(-columns // t.columns) * batch

    tile = next((t for t in tiles if blocks(t) >= BLOCKS), tiles[-1])
    fitting = [t for t in tiles if t.rows < 2 * rows and t.columns < 2 * columns]
    return fitting[0] if tile not in fitting and fitting else tile


# -- sums


def _cooperate(builder: Builder, pick: Pick, anyway: bool = False) -> bool:
    """Threads share rows whose elements lie side by side, or any."""
    length = _row_length(builder.kernel)
    if not anyway and not _lies_along_rows(builder.kernel, length):
        return False
    before, lanes = builder.kernel, _lanes(builder.kernel)
    builder.attempt(ReadOnce(ROW_THREADS[-1] * TEAM_STEPS * lanes))
    rows, plain = prod(map(builder.extent, builder.axes)), builder.kernel
    for vector in (lanes, 1) if lanes > 1 else (1,):
        width = next((w for w in (1, 2, 4, 8, 16) if length <= w * vector), WARP)
        fits = length <= WARP * vector * (TEAM_STEPS if rows * WARP >= SPREAD else 1)
        if fits and builder.attempt_if_shown(Cooperate(TEAM_THREADS, width, vector)):
            return True
        steps = STEPS if rows >= BLOCKS else 1
        enough = (t for t in ROW_THREADS if t * vector * steps >= length)
        threads = next(enough, ROW_THREADS[-1])
        usual = Cooperate(threads, threads, vector)
        if builder.attempt_if_shown(usual):
            others = [Cooperate(t, t, vector) for t in ROW_THREADS if t * vector <= 2 * length]
            vary(builder, plain, "row", usual, others, pick)
            return True
    builder.kernel = before
    return False


def _row_length(kernel: Kernel) -> int:
    """Elements that the longest loops of a row have."""
    return max((prod(n for _, n in axes) for axes in _nests(kernel, Accumulate, Store)), default=1)


def _nests(kernel: Kernel, *kinds: type) -> list[list[tuple[str, int]]]:
    """The axes of the loops of a row around such statements, with their extents."""
    outer = {n.axis for n in outer_loops(kernel.body)}
    ranges = axis_ranges(kernel.body)
    found = []
    for n in walk(kernel.body):
        if isinstance(n, For) and n.axis not in outer:
            chain = outer_loops(n)
            if isinstance(chain[-1].body, kinds):
                found.append([(c.axis, int(ranges[c.axis][1]) + 1) for c in chain])
    return found


def _main_operand(kernel: Kernel) -> Linear | None:
    """Where the largest operand of the sums is read that no data chooses from."""
    sums = (n for n in walk(kernel.body) if isinstance(n, Accumulate))
    loads = [n for s in sums for n in walk(s.value) if isinstance(n, Load)]
    if not loads:
        return None
    ranges = axis_ranges(kernel.body)
    forms = [offset(n.buffer, n.index, ranges) for n in _by_size(loads)]
    stepped = (f for f in forms if any(f.coefficient(a) for a in ranges))
    return next(stepped, forms[0])


def _by_size(loads: list[Load]) -> list[Load]:
    return sorted(loads, key=lambda n: -prod(n.buffer.shape))


def _lies_along_rows(kernel: Kernel, length: int) -> bool:
    """Whether the summed elements of the largest operand lie side by side: those of a short row
    all of them."""
    form = _main_operand(kernel)
    if form is None:
        return False
    outer = {n.axis for n in outer_loops(kernel.body)}
    if length >= MIN_ROW:
        return any(form.coefficient(a) == 1 for a in axis_ranges(kernel.body) if a not in outer)
    return any(_run(form, axes) == length for axes in _nests(kernel, Accumulate))


def _run(form: Linear, axes: list[tuple[str, int]]) -> int:
    """How many elements of a sum lie side by side."""
    run = 1
    for axis, n in sorted(axes, key=lambda x: form.coefficient(x[0])):
        if form.coefficient(axis) == run:
            run *= n
    return run


def _columns(builder: Builder) -> bool:
    """Threads side by side have results side by side, lines of them share what is summed."""
    before, length = builder.kernel, _row_length(builder.kernel)
    builder.merge_all()
    lanes = _lanes_along(builder)
    if lanes and length >= SHORT:
        axis = builder.axes[-1]
        groups = builder.extent(axis) // lanes
        width = next((w for w in (1, 2, 4, 8, 16) if groups <= w), WARP)
        threads = prod(map(builder.extent, builder.axes)) // lanes
        team = TEAM_THREADS if threads >= width * BLOCKS else ROW_THREADS[-1]
        most = min(team // width, length)
        depths = [d for d in (1 << k for k in range(11)) if width * d % WARP == 0 and d <= most]
        shared = threads < MANY and depths and depths[-1] > 1
        if shared and builder.attempt_if_shown(Columns(axis, width, depths[-1], lanes)):
            return True
    builder.kernel = before
    return False


def _lanes_along(builder: Builder) -> int:
    """Results side by side that a thread may have where operands lie as results do; 0 where they
    do not."""
    form, axes = _main_operand(builder.kernel), builder.axes
    if form is None or not axes or form.coefficient(axes[-1]) != 1:
        return 0
    lanes = _lanes(builder.kernel)
    return lanes if builder.extent(axes[-1]) % lanes == 0 else 1


def _by_results(builder: Builder, pick: Pick) -> None:
    """Each thread has a result, or some that lie side by side as their operands do; threads share
    the work for them where there are too few of them."""
    rows, length = prod(map(builder.extent, builder.axes)), _row_length(builder.kernel)
    if rows * MIN_ROW < SPREAD and length >= MIN_ROW and _cooperate(builder, pick, anyway=True):
        return
    builder.merge_all()
    kept = _kept_elements(builder)
    lanes = _lanes_along(builder)
    enough = prod(map(builder.extent, builder.axes)) >= lanes * SPREAD
    if lanes > 1 and enough and kept * lanes <= REGISTERS:
        _several_results(builder, builder.axes[-1], lanes)
    if kept:
        _unroll(builder)
    bake_windows(builder)
    builder.bind(builder.axes)


def _kept_elements(builder: Builder) -> int:
    """Elements of its row that each thread keeps, where they may be registers: what is read again
    then is as well."""

    def count() -> int:
        return sum(prod(b.shape) for b in allocations(builder.kernel.body) if b.shape)

    if not 0 < count() <= REGISTERS:
        return 0
    before = builder.kernel
    builder.attempt(ReadOnce(REGISTERS))
    if count() > 2 * REGISTERS:
        builder.kernel = before
    return count()


def _unroll(builder: Builder) -> None:
    """Print the extents of short loops, so that what they index are registers."""
    outer = set(builder.axes)
    for axis, (_, last) in axis_ranges(builder.kernel.body).items():
        if axis not in outer and last < REGISTERS:
            builder.attempt(Bake(axis))


def _several_results(builder: Builder, axis: str, lanes: int) -> None:
    before = builder.kernel
    if builder.attempt(Block(axis, lanes)) and not builder.attempt(Vectorize(f"{axis}_i")):
        builder.kernel = before


def _lanes(kernel: Kernel) -> int:
    """Elements of a vector of the widest operands, those aside that only say where others lie."""
    loads = [n for n in walk(kernel.body) if isinstance(n, Load)]
    places = {m for n in loads for i in n.index for m in walk(i) if isinstance(m, Load)}
    used = {n.buffer.name for n in loads if n not in places} | set(kernel.outputs)
    return lanes_for(max(_bits(b.dtype) for b in kernel.params if b.name in used))


def _bits(dtype: DType) -> int:
    return max(dtype.bits, 8)


# -- maps


def _map(builder: Builder, pick: Pick) -> None:
    builder.merge_all()
    if not _transpose(builder) and not _elements(builder, pick):
        builder.bind(builder.axes)


def _elements(builder: Builder, pick: Pick) -> bool:
    """Threads with neighbouring vectors, several where there are many."""
    total, lanes = prod(map(builder.extent, builder.axes)), _lanes(builder.kernel)
    while lanes > 1 and total < lanes * SPREAD:
        lanes //= 2
    for n in (lanes, 1) if lanes > 1 else (1,):
        groups = total // n
        loads = len({x for x in walk(builder.kernel.body) if isinstance(x, Load)})
        count = max(1, min(IN_FLIGHT // max(loads, 1), groups // WAVE))
        threads = next((t for t in (256, 128) if groups >= t * BLOCKS), 64)
        before, usual = builder.kernel, Elements(threads, n, 1 << count.bit_length() - 1)
        if builder.attempt_if_shown(usual):
            counts = (k for k in ELEMENT_COUNTS if k * loads <= MOST_IN_FLIGHT)
            others = [Elements(t, n, k) for k in counts for t in ELEMENT_THREADS]
            vary(builder, before, "elements", usual, others, pick)
            return True
    return False


def _transpose(builder: Builder) -> bool:
    """Tiles turned in shared memory, where rows are read along another axis than written."""
    loops = outer_loops(builder.kernel.body)
    if len(loops) < 2 or not isinstance(loops[-1].body, Store):
        return False
    written = loops[-1].axis
    found = read_along(loops[-1].body, axis_ranges(builder.kernel.body), written)
    if not found:
        return False
    along = max(found, key=lambda a: max(prod(n.buffer.shape) for n in found[a]))
    w, r = builder.extent(written), builder.extent(along)
    if w < MIN_SIDE or r < 2 or w * r < MIN_TILE:
        return False
    lanes = _lanes(builder.kernel)
    for side in (SIDE, SIDE // 2):
        rows, columns = _sides(w, r, side)
        vectors = rows * columns // lanes
        threads = next((t for t in (256, 128) if vectors >= t), 64)
        if builder.attempt_if_shown(Transpose(along, rows, columns, threads, lanes)):
            return True
    return False


def _sides(rows: int, columns: int, side: int) -> tuple[int, int]:
    """A tile of side * side elements, or a longer one where the other extent is short."""
    if columns < side:
        return min(rows, _in_warps(side * side // columns)), columns
    if rows < side:
        return rows, min(columns, _in_warps(side * side // rows))
    return side, side


def _in_warps(n: int) -> int:
    """At most n lines, in whole blocks or warps of threads as far as there are so many."""
    return n // TEAM_THREADS * TEAM_THREADS or n // WARP * WARP or n
