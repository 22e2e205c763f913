"""Asynchronous copies from global to shared memory.

A copy reads at once but writes when its thread has waited for it: until then its target is pending.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ptx.access import Piece
from ptx.bulk import copy_boxes
from ptx.errors import Misaligned, OutOfBounds, Unsupported
from ptx.frame import Frame, Mask, Step, builds
from ptx.memory import PENDING, THERE, Array, Use
from ptx.moves import chosen, reporter
from ptx.syntax import Instruction, Integer


@dataclass
class Copy:
    """Copies of some threads: where to, the bytes, and each thread's number of the group."""

    instruction: Instruction
    threads: Array
    groups: Array
    offsets: Array
    values: Array


class Copies:
    """Of a batch of blocks: what is under way, and how many groups each thread has closed."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.under_way: list[Copy] = []
        self.closed = np.zeros(frame.shape.total, np.int64)

    def start(self, copy: Copy) -> None:
        spaces = self.frame.spaces
        size = copy.values.shape[1]
        spaces.shared.mark(copy.offsets, size, PENDING)
        spaces.copying = True
        self.under_way.append(copy)

    def finish(self, mask: Mask, before: Callable[[Array], Array]) -> None:
        """Let the copies of active threads land whose group is less than `before` says."""
        left = []
        for copy in self.under_way:
            active = np.broadcast_to(mask, self.frame.shape.total)[copy.threads]
            done = active & (copy.groups < before(self.closed)[copy.threads])
            if done.any():
                self.land(copy, done)
            if not done.all():
                rest = ~done
                parts = (copy.threads, copy.groups, copy.offsets, copy.values)
                left.append(Copy(copy.instruction, *(part[rest] for part in parts)))
        self.under_way = left
        self.frame.spaces.copying = bool(left)

    def land(self, copy: Copy, done: Array) -> None:
        spaces, threads = self.frame.spaces, copy.threads[done]
        offsets, values = copy.offsets[done], copy.values[done]
        users = spaces.shared_users[threads]
        size = values.shape[1]
        piece = Piece(spaces.shared, offsets, threads, slice(None), users)
        spaces.use(piece, Use.WRITE, size, reporter(self.frame, copy.instruction))
        spaces.shared.write(offsets, min(size, 8), values.view(f"u{min(size, 8)}"))
        spaces.shared.mark(offsets, size, THERE)


def copies_of(frame: Frame) -> Copies:
    if frame.copies is None:
        frame.copies = Copies(frame)
    assert isinstance(frame.copies, Copies)
    return frame.copies


@builds("cp")
def asynchronous(frame: Frame, i: Instruction) -> Step:
    if i.has("bulk"):
        return copy_boxes(frame, i)
    if i.modifiers[0] != "async" or i.has("mbarrier"):
        raise Unsupported(f"{i}")
    if i.has("commit_group"):
        return commit(frame)
    if i.has("wait_group") or i.has("wait_all"):
        return wait(frame, i)
    return copy(frame, i)


def commit(frame: Frame) -> Step:
    def step(mask: Mask) -> None:
        copies_of(frame).closed += mask

    return step


def wait(frame: Frame, i: Instruction) -> Step:
    """For all but the last groups; wait_all also for what no group has."""
    count = 0
    if i.has("wait_group"):
        assert isinstance(i.operands[0], Integer)
        count = i.operands[0].value
    last = 1 if i.has("wait_all") else -count
    return lambda mask: copies_of(frame).finish(mask, lambda closed: closed + last)


def copy(frame: Frame, i: Instruction) -> Step:
    """`[to], [from], bytes` and how many of them are read, the rest being zeros."""
    to, source = frame.address(i.operands[0]), frame.address(i.operands[1])
    assert isinstance(i.operands[2], Integer)
    size = i.operands[2].value
    if size not in ((16,) if i.has("cg") else (4, 8, 16)) or len(i.operands) > 4:
        raise Unsupported(f"{i}")
    read = frame.source(i.operands[3] if len(i.operands) > 3 else Integer(size), "u32")
    lengths = np.broadcast_to(read, frame.shape.total)
    report, spaces = reporter(frame, i), frame.spaces

    def step(mask: Mask) -> None:
        threads = chosen(mask)
        who, wanted = spaces.every[threads], lengths[threads].astype(np.int64)
        if (wanted > size).any():
            index = int((wanted > size).argmax())
            text = f"{wanted[index]} bytes read for a copy of {size}"
            report(OutOfBounds, int(who[index]), text)
        values = read_bytes(frame, i, source()[threads], who, wanted, size)
        for piece in spaces.pieces("shared", to()[threads], threads, size, report):
            spaces.settled(piece, size, report)
            spaces.use(piece, Use.WRITE, size, report)
            groups = copies_of(frame).closed[threads].copy()
            copies_of(frame).start(Copy(i, who, groups, piece.offsets, values))

    return step


def read_bytes(
    frame: Frame, i: Instruction, addresses: Array, who: Array, wanted: Array, size: int
) -> Array:
    """[copy, byte]; of a copy that reads nothing not even the address matters."""
    values = np.zeros((len(addresses), size), np.uint8)
    report, word = reporter(frame, i), min(size, 8)
    wrong = (wanted > 0) & (addresses & (size - 1) != 0)
    if wrong.any():
        index = int(wrong.argmax())
        report(Misaligned, int(who[index]), f"{size} bytes at {int(addresses[index]):#x}")
    whole = np.flatnonzero(wanted == size)
    if whole.size:
        found = frame.spaces.read(
            "global", addresses[whole], who[whole], word, size // word, report
        )
        values[whole] = np.ascontiguousarray(found).view(np.uint8).reshape(-1, size)
    for k in range(size):
        partial = np.flatnonzero((wanted < size) & (wanted > k))
        if partial.size:
            places = addresses[partial]
            found = frame.spaces.read("global", places + k, who[partial], 1, 1, report)
            values[partial, k] = found[:, 0]
    return values
