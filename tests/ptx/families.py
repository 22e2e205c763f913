"""Every family of instructions, so that their builders are known."""

from __future__ import annotations

from ptx import bits, conversions, copies, floats, integers, lanes, matrices, moves, predicates

LOADED = (bits, conversions, copies, floats, integers, lanes, matrices, moves, predicates)
