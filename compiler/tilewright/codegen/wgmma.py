"""How a kernel says that hardware copies boxes of tensors, and that warpgroups multiply them."""

from __future__ import annotations

from math import prod
from typing import Protocol

from tilewright.codegen.mma import Printer as MmaPrinter
from tilewright.codegen.spelling import SUFFIX
from tilewright.loops.ir import (
    Arrived,
    Box,
    Buffer,
    Fetch,
    Settle,
    TensorMap,
    Wgmma,
    strides_of,
)

BARRIERS = "full"  # one to a stage: it is passed when the stage is full
COLUMNS = 8  # that two sums of a thread lie in


class Printer(MmaPrinter, Protocol):
    """What of an emitter is used here."""

    def map_of(self, tensor: TensorMap) -> str:
        """The parameter that describes a tensor."""


def print_stages(printer: Printer, memory: str, stages: int) -> list[str]:
    """Barriers for one arrival each, which all threads know of."""
    init, ready = printer.use("barrier_init"), printer.use("barriers_ready")
    return [
        f"{BARRIERS} = {memory}",
        f"if {printer.use('thread')}() == 0:",
        f"    for stage in range({stages}):",
        f"        {init}({BARRIERS}, stage, 1)",
        f"    {ready}()",
        f"{printer.use('sync')}()",
    ]


def print_fetch(printer: Printer, s: Fetch) -> list[str]:
    """What is to arrive, and the copies of it."""
    nbytes = sum(prod(b.tensor.box) * b.target.dtype.itemsize for b in s.boxes)
    stage = printer.expr(s.step % s.stages)
    expect = f"{printer.use('barrier_expect')}({BARRIERS}, stage, {nbytes})"
    return [f"stage = {stage}", expect, *(_copy(printer, b) for b in s.boxes)]


def _copy(printer: Printer, b: Box) -> str:
    to, at = printer.start(b.target, b.place, None)
    copy = printer.use(f"copy_box{len(b.at)}")
    place = ", ".join(map(printer.expr, b.at))
    return f"{copy}({to}, {at}, {BARRIERS}, stage, {printer.map_of(b.tensor)}, {place})"


def print_arrived(printer: Printer, s: Arrived) -> str:
    """The barrier of a stage is passed each time that it is filled, even and odd times."""
    stage, turn = (printer.expr(e) for e in (s.step % s.stages, s.step // s.stages % 2))
    return f"{printer.use('barrier_wait')}({BARRIERS}, {stage}, {turn})"


def print_wgmma(printer: Printer, s: Wgmma) -> list[str]:
    """A group of products of all elements of a step."""
    multiply = printer.use(f"wgmma_{SUFFIX[s.left.buffer.dtype]}")
    sides = [printer.start(t.buffer, t.index, None) for t in (s.left, s.right)]
    kinds = [f"{int(last)}, {_pitch(t.buffer)}" for last, t in zip(s.depth_last, (s.left, s.right))]
    places = ", ".join(f"{name}, {at}" for name, at in sides)
    sums = f"{printer.locals[s.sums.name]}, {_columns(s.sums)}"
    return [
        f"{printer.use('wgmma_fence')}()",
        f"{multiply}({sums}, {places}, {', '.join(kinds)}, {s.depth})",
        f"{printer.use('wgmma_commit')}()",
    ]


def print_settle(printer: Printer, s: Settle) -> str:
    """Nobody may touch the sums before."""
    wait, sums = printer.use("wgmma_wait"), printer.locals[s.sums.name]
    return f"{wait}({sums}, {_columns(s.sums)}, {s.pending})"


def _columns(sums: Buffer) -> int:
    """Of a warpgroup's sums, which are [thread, i, j, h, v]."""
    return sums.shape[2] * COLUMNS


def _pitch(staged: Buffer) -> int:
    """Bytes from one stretch of 64 lines to the next one, or from a line."""
    return strides_of(staged)[1] * staged.dtype.itemsize
