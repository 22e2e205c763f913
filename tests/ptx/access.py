"""Accesses to the spaces of memory, each checked byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

from ptx.errors import (
    GlobalRace,
    Misaligned,
    NotWaitedFor,
    OutOfBounds,
    PtxError,
    SharedRace,
    Uninitialised,
)
from ptx.memory import GLOBAL_BASE, MISSING, PENDING, Allocation, Array, Memory, Region, Use
from ptx.traffic import LANES, Traffic

SHARED_WINDOW = 0x1000_0000_0000
LOCAL_WINDOW = 0x2000_0000_0000
WINDOW = 0x1000_0000_0000
WARP_BITS = 6
Report = Callable[[type[PtxError], int, str], NoReturn]
ALL = slice(None)


@dataclass(frozen=True)
class Piece:
    """The accesses that fall into one region: `rows` of them, by these threads."""

    region: Region
    offsets: Array
    threads: Any
    rows: Any
    users: Array


class Spaces:
    """Global, shared and local memory as the threads of a batch see it."""

    def __init__(
        self, memory: Memory, blocks: int, row: int, shared_bytes: int, local_bytes: int
    ) -> None:
        self.memory = memory
        self.every = np.arange(blocks * row)
        self.block = self.every // row
        self.warp = self.every % row // LANES
        self.shared_bytes, self.local_bytes = shared_bytes, local_bytes
        self.shared_stride = -(-shared_bytes // 16) * 16
        self.local_stride = -(-local_bytes // 16) * 16
        self.shared = Region(blocks * self.shared_stride, WARP_BITS)
        self.local = Region(blocks * row * self.local_stride, 0)
        self.shared_start = self.block * self.shared_stride
        self.local_start = self.every * self.local_stride
        self.epoch = np.zeros(blocks, np.int64)
        self.global_users = self.block.astype(np.int64)
        self.shared_users = self.warp.astype(np.int64)
        self.last: Allocation | None = None
        self.copying = False  # whether asynchronous copies are under way
        self.traffic: Traffic | None = None  # where what warps ask for is counted

    def begin(self, first_block: int) -> None:
        """A batch whose first block has this number."""
        self.copying = False
        self.shared.forget()
        self.local.forget()
        self.global_users = first_block + self.block
        self.pass_barrier(np.ones_like(self.epoch))

    def pass_barrier(self, blocks: Array) -> None:
        """What blocks did before is ordered before what they do now."""
        self.epoch += blocks
        self.shared_users = (self.epoch[self.block] << WARP_BITS) | self.warp

    # Where accesses fall.

    def pieces(
        self, space: str, addresses: Array, threads: Any, size: int, report: Report
    ) -> Iterator[Piece]:
        """The accesses by region, within bounds and aligned."""
        wrong = addresses & (size - 1)
        if wrong.any():
            self._report(report, Misaligned, wrong != 0, addresses, threads, size, space)
        if space == "global":
            yield from self._global(addresses, threads, ALL, size, report)
        elif space == "shared":
            yield self._own(self.shared, addresses, threads, ALL, size, report)
        elif space == "local":
            yield self._own(self.local, addresses, threads, ALL, size, report)
        else:
            yield from self._generic(addresses, threads, size, report)

    def _report(
        self,
        report: Report,
        kind: type[PtxError],
        wrong: Array,
        addresses: Array,
        threads: Any,
        size: int,
        space: str,
        text: str = "",
    ) -> NoReturn:
        at = int(np.broadcast_to(wrong, addresses.shape).argmax())
        thread = int(self.every[threads][at])
        what = f"{size} bytes of {space} memory at {int(addresses[at]):#x}"
        report(kind, thread, f"{what}{': ' if text else ''}{text}")

    def _global(
        self, addresses: Array, threads: Any, rows: Any, size: int, report: Report
    ) -> Iterator[Piece]:
        low, high = int(addresses.min()), int(addresses.max()) + size
        found = self.last
        if found is None or not found.address <= low < found.address + found.size:
            found = self.memory.holding(low)
            self.last = found
        end = found.address + found.size if found else 0
        if found is None or low >= end:
            self._report(report, OutOfBounds, addresses == low, addresses, threads, size, "global")
        offsets = addresses - found.address
        users = self.global_users[threads]
        if high <= end:
            if self.traffic:
                warps = self.every[threads] // LANES
                self.traffic.note_global(found.address, addresses, warps, size)
            yield Piece(found, offsets, threads, rows, users)
            return
        inside = addresses < end
        if (addresses[inside] + size > end).any():
            wrong = inside & (addresses + size > end)
            self._report(report, OutOfBounds, wrong, addresses, threads, size, "global")
        here, there = np.flatnonzero(inside), np.flatnonzero(~inside)
        who = self.every[threads]
        index = np.arange(len(addresses)) if isinstance(rows, slice) else rows
        if self.traffic:
            self.traffic.note_global(found.address, addresses[here], who[here] // LANES, size)
        yield Piece(found, offsets[here], who[here], index[here], users[here])
        yield from self._global(addresses[there], who[there], index[there], size, report)

    def _own(
        self, region: Region, addresses: Array, threads: Any, rows: Any, size: int, report: Report
    ) -> Piece:
        """Shared or local memory: every block, or thread, has its own."""
        is_shared = region is self.shared
        limit = self.shared_bytes if is_shared else self.local_bytes
        wrong = (addresses < 0) | (addresses > limit - size)
        if wrong.any():
            space = "shared" if is_shared else "local"
            text = f"there are {limit} bytes"
            self._report(report, OutOfBounds, wrong, addresses, threads, size, space, text)
        if is_shared and self.traffic:
            self.traffic.note_shared(addresses, self.every[threads], size)
        starts = self.shared_start if is_shared else self.local_start
        return Piece(region, addresses + starts[threads], threads, rows, self.shared_users[threads])

    def _generic(
        self, addresses: Array, threads: Any, size: int, report: Report
    ) -> Iterator[Piece]:
        who, rows = self.every[threads], np.arange(len(addresses))
        window = np.where(addresses >= GLOBAL_BASE, 0, addresses // WINDOW)
        for number, region in ((1, self.shared), (2, self.local)):
            chosen = np.flatnonzero(window == number)
            if chosen.size:
                inner = addresses[chosen] - number * WINDOW
                yield self._own(region, inner, who[chosen], rows[chosen], size, report)
        chosen = np.flatnonzero((window != 1) & (window != 2))
        if chosen.size:
            yield from self._global(addresses[chosen], who[chosen], rows[chosen], size, report)

    # What is done there.

    def use(self, piece: Piece, use: Use, size: int, report: Report) -> None:
        """Note an access, unless another one is not ordered with it."""
        region = piece.region
        if region.users is None:
            return
        clash = region.users.record(use, piece.offsets, size, piece.users)
        if clash is None:
            return
        at = int(clash.argmax())
        thread, place = int(self.every[piece.threads][at]), int(piece.offsets[at])
        if isinstance(region, Allocation):
            text = f"another block used {size} bytes at {region.address + place:#x}"
            report(GlobalRace, thread, f"{use.value} of global memory: {text} in this launch")
        place -= int(self.shared_start[thread])
        text = f"another warp used {size} bytes at {place:#x} and no barrier came since"
        report(SharedRace, thread, f"{use.value} of shared memory: {text}")

    def need(self, piece: Piece, size: int, report: Report) -> None:
        """What is read must have been written."""
        missing = piece.region.unknown(piece.offsets, size)
        if missing is None:
            return
        at = int(missing.argmax())
        offset, thread = int(piece.offsets[at]), int(self.every[piece.threads][at])
        pending = piece.region.is_pending(offset, size)
        flags = piece.region.known[offset : offset + size]
        byte = offset + int((flags == (PENDING if pending else MISSING)).argmax())
        text = f"{size} bytes read, {self.place_name(piece.region, byte, thread)} "
        if pending:
            report(NotWaitedFor, thread, text + "is being copied")
        report(Uninitialised, thread, text + "was never written")

    def place_name(self, region: Region, offset: int, thread: int) -> str:
        if isinstance(region, Allocation):
            return f"byte {region.address + offset:#x} of global memory"
        if region is self.shared:
            return f"byte {offset - int(self.shared_start[thread]):#x} of shared memory"
        return f"byte {offset - int(self.local_start[thread]):#x} of local memory"

    def read(
        self,
        space: str,
        addresses: Array,
        threads: Any,
        word: int,
        count: int,
        report: Report,
        needed: tuple[int, ...] | None = None,
    ) -> Array:
        """[access, component] of `count` words each, of which only the `needed` ones matter."""
        size = word * count
        result: Array | None = None
        for piece in self.pieces(space, addresses, threads, size, report):
            for part, length in components(piece, word, count, needed):
                self.need(part, length, report)
                self.use(part, Use.READ, length, report)
            values = piece.region.read(piece.offsets, word, count)
            if piece.rows is ALL or len(values) == len(addresses):
                return values
            if result is None:
                result = np.zeros((len(addresses), count), values.dtype)
            result[piece.rows] = values
        assert result is not None
        return result

    def write(
        self, space: str, addresses: Array, threads: Any, word: int, values: Array, report: Report
    ) -> None:
        """`values` [access, component] are words."""
        size = word * values.shape[1]
        for piece in self.pieces(space, addresses, threads, size, report):
            self.settled(piece, size, report)
            self.use(piece, Use.WRITE, size, report)
            piece.region.write(piece.offsets, word, values[piece.rows])

    def settled(self, piece: Piece, size: int, report: Report) -> None:
        """No asynchronous copy to this place is under way."""
        if piece.region is not self.shared or not self.copying:
            return
        for at, offset in enumerate(piece.offsets):
            if piece.region.is_pending(int(offset), size):
                thread = int(self.every[piece.threads][at])
                place = self.place_name(piece.region, int(offset), thread)
                report(NotWaitedFor, thread, f"{place} is overwritten while it is being copied")


def components(
    piece: Piece, word: int, count: int, needed: tuple[int, ...] | None
) -> list[tuple[Piece, int]]:
    """What is read of a vector, with the bytes of each part."""
    if needed is None:
        return [(piece, word * count)]
    return [(replace(piece, offsets=piece.offsets + k * word), word) for k in needed]
