"""Which schedule an attention gets on a GPU."""

from __future__ import annotations

from math import prod

from tilewright.schedule.attention import RowAttention, find_attention
from tilewright.schedule.attention_tiles import AttentionTile
from tilewright.schedule.builder import Builder

BLOCKS = 256  # about two to a multiprocessor: fewer leave parts of the machine idle
SIZES = ((64, 64), (64, 32), (32, 64), (32, 32), (16, 32), (16, 16))  # rows and keys of a tile
WIDTHS = (16, 8)  # threads to a row
SHARED_BYTES = 100 << 10  # of a block, so that two fit a multiprocessor
REGISTERS = 104  # for the scores and sums of a thread


def attend(builder: Builder) -> bool:
    """The schedule that suits the attention of a kernel, if it is one."""
    found = find_attention(builder.kernel)
    return found is not None and builder.attempt(choose_tile(found))


def choose_tile(a: RowAttention) -> AttentionTile:
    """The largest tile that leaves enough blocks, or the one that makes most of them."""
    fitting = [t for s in SIZES for t in [_tile(a, *s)] if _fits(t, a)] or [_tile(a, *SIZES[-1])]
    rows = a.row[1]
    useful = [t for t in fitting if t.rows < 2 * rows] or fitting[-1:]
    return next((t for t in useful if _blocks(t, a) >= BLOCKS), useful[-1])


def _tile(a: RowAttention, rows: int, keys: int) -> AttentionTile:
    """With the width that wastes fewest columns."""
    tiles = [AttentionTile(rows, keys, w) for w in WIDTHS if rows % (128 // w) == 0]
    return min(tiles, key=lambda t: t.groups(a.column[1]) * t.width)


def _fits(t: AttentionTile, a: RowAttention) -> bool:
    depth, columns = a.depth[1], a.column[1]
    return t.shared_bytes(depth, columns) <= SHARED_BYTES and t.sums(columns) <= REGISTERS


def _blocks(t: AttentionTile, a: RowAttention) -> int:
    return -(-a.row[1] // t.rows) * prod(n for _, n in a.batch)
