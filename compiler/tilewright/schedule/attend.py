"""Which schedule an attention gets on a GPU."""

from __future__ import annotations

from math import prod

from tilewright.fusion.decide import Pick, by_cost_model
from tilewright.loops.verify_threads import WARP
from tilewright.schedule.alternatives import vary
from tilewright.schedule.attention import GROUP, RowAttention, find_attention
from tilewright.schedule.attention_keys import AttentionKeys
from tilewright.schedule.attention_mma import AttentionMma
from tilewright.schedule.attention_tiles import AttentionTile
from tilewright.schedule.builder import Builder
from tilewright.schedule.panels import in_parts

FEW_ROWS = 4  # that are not worth a tile: each has a block of its own
TEAM_THREADS = (512, 256, 128, 64)
TOGETHER = 4  # keys that a team reads at a time
PROCESSORS = 132  # that take blocks at the same time
ROWS = (64, 32, 16)
KEYS = (64, 32, 16)
WIDTHS = (16, 8)  # threads to a row
SHARED_BYTES = 100 << 10  # of a block, so that two fit a multiprocessor
MEASURED = 6  # tiles among which measurements choose
REGISTERS = 104  # for the scores and sums of a thread
MMA_ROWS = ((128, 32), (128, 16), (64, 32), (64, 16), (32, 16), (16, 16))  # of a block, a warp
MMA_SUMS = 160  # scores and sums of a thread, of its 255 registers
MMA_SCORES = 64  # the scores among them
MASKED_SCORES = 32  # where masks need registers as well
MMA_RATE = 1024  # products in a cycle
SHARED_RATE = 128  # bytes of shared memory in a cycle
LANES = 128  # that do a step in a cycle
SCORE_STEPS = 5  # of a score, as far as products do not hide them
TILE_START = 40  # cycles until a tile is under way
OTHER_REGISTERS = 90
ALL_REGISTERS, ALL_SHARED = 1 << 16, 164 << 10  # of a multiprocessor
PARTS = 4  # of a multiprocessor, each with a warp at a time
ENOUGH_WARPS = 8  # that hide what each waits for
ALONE = 1.25  # the time of what has fewer
PRODUCT = 0.25  # cycles of a warp's products
READ = 3.0  # cycles of a warp's read of a group from shared memory


def attend(builder: Builder, pick: Pick = by_cost_model) -> bool:
    """The schedule that suits the attention of a kernel, if it is one."""
    found = find_attention(builder.kernel)
    if found is None:
        return False
    if found.row[1] <= FEW_ROWS:
        return builder.attempt(choose_teams(found))
    if found.half is not None and builder.attempt_if_shown(choose_mma(found)):
        return True
    before, tile = builder.kernel, choose_tile(found)
    if not builder.attempt(tile):
        return False
    vary(builder, before, "attention", tile, _candidates(found)[:MEASURED], pick)
    return True


def choose_teams(a: RowAttention) -> AttentionKeys:
    """Teams whose threads have a group of a key each; as many threads as there is work for."""
    groups = -(-max(a.depth[1], a.column[1]) // GROUP)
    width = next((w for w in (1, 2, 4, 8, 16) if w >= groups), WARP)
    threads = next((t for t in TEAM_THREADS if a.keys[2] >= t // width * TOGETHER), WARP)
    return AttentionKeys(width, threads, TOGETHER if threads > WARP else 1)


def choose_tile(a: RowAttention) -> AttentionTile:
    """The tile whose blocks are done first."""
    return _candidates(a)[0]


def _candidates(a: RowAttention) -> list[AttentionTile]:
    """Tiles that fit a multiprocessor, the promising first; at least one."""
    tiles = [AttentionTile(r, k, w) for r in ROWS for k in KEYS for w in WIDTHS]
    tiles = [t for t in tiles if t.rows % t.teams == 0]
    fitting = [t for t in tiles if _fits(t, a)]
    return sorted(fitting or tiles[-1:], key=lambda t: _cycles(t, a))


def _fits(t: AttentionTile, a: RowAttention) -> bool:
    depth, columns = a.depth[1], a.column[1]
    return t.shared_bytes(depth, columns) <= SHARED_BYTES and t.sums(columns) <= REGISTERS


def choose_mma(a: RowAttention) -> AttentionMma:
    """The tile on tensor cores whose blocks are done first."""
    tiles = [AttentionMma(r, h, k) for r, h in MMA_ROWS for k in KEYS]
    fitting = [t for t in tiles if _fits_mma(t, a)]
    return min(fitting or tiles[-1:], key=lambda t: (_mma_cycles(t, a), -a.row[1] % t.rows))


def _fits_mma(t: AttentionMma, a: RowAttention) -> bool:
    depth, columns = a.depth[1], a.column[1]
    shared, sums = t.shared_bytes(depth, columns), t.sums(columns)
    scores = MASKED_SCORES if a.is_masked else MMA_SCORES
    return shared <= SHARED_BYTES and sums <= MMA_SUMS and t.scores <= scores


def _mma_cycles(t: AttentionMma, a: RowAttention) -> float:
    """Of the multiprocessor that has most blocks, whose four parts have a warp each at a time."""
    depth, columns = in_parts(a.depth[1]), in_parts(a.column[1])
    products = t.height * t.keys * (depth + columns) / MMA_RATE
    reads = 2 * ((t.height + t.keys) * depth + t.keys * columns) / SHARED_RATE
    steps = t.height * (t.keys * SCORE_STEPS + columns) / LANES
    tile = max(products, reads) + steps + TILE_START
    blocks = -(-a.row[1] // t.rows) * prod(n for _, n in a.batch)
    warps = -(-blocks // PROCESSORS) * t.threads // WARP
    registers = (t.sums(a.column[1]) + OTHER_REGISTERS) * t.threads
    together = min(ALL_SHARED // t.shared_bytes(depth, columns), ALL_REGISTERS // registers)
    alone = warps > together * t.threads // WARP < ENOUGH_WARPS
    tiles = -(-a.keys[2] // t.keys)
    return -(-warps // PARTS) * PARTS * tiles * tile * (ALONE if alone else 1.0)


def _cycles(t: AttentionTile, a: RowAttention) -> float:
    """Of the multiprocessor that has most blocks."""
    blocks = -(-a.row[1] // t.rows) * prod(n for _, n in a.batch)
    keys = -(-a.keys[2] // t.keys) * t.keys
    groups, per_thread = t.groups(a.column[1]), t.keys // t.width
    scores = max(PRODUCT, READ * (1 / per_thread + 1 / t.height) / 4) * a.depth[1]
    sums = max(PRODUCT, READ * (1 / (4 * groups) + 1 / t.height) / 4) * groups * t.width * 4
    return -(-blocks // PROCESSORS) * t.rows * keys * (scores + sums)
