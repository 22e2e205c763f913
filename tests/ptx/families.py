"""Every family of instructions, so that their builders are known."""

from __future__ import annotations

from ptx import (
    bits,
    bulk,
    conversions,
    copies,
    floats,
    integers,
    lanes,
    matrices,
    moves,
    predicates,
    warpgroups,
)

LOADED = (bits, bulk, conversions, copies, floats, integers, lanes, matrices, moves)
ALSO = (predicates, warpgroups)
