"""Barriers in shared memory that count bytes, and copies of boxes that arrive at them.

A copy reads at once. Its bytes land when a thread looks at the barrier, at the last moment that is
allowed; until then they are pending. Who reads them must have looked at the barrier itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ptx.access import Piece
from ptx.errors import Deadlock, Misaligned, NotWaitedFor, OutOfBounds, Unfenced, Unsupported
from ptx.frame import Frame, Mask, Step, builds
from ptx.memory import PENDING, THERE, Array, Use
from ptx.moves import chosen, reporter
from ptx.syntax import Address, Instruction, Several
from ptx.tensor_maps import BYTES, TensorMap, decode

BARRIER_BYTES = 8
MOST_TRIES = 1000  # without anything happening
ROW_BYTES = 128
GRANULE = 16

Key = tuple[int, int]  # block and address


@dataclass
class Copy:
    """Bytes on their way to shared memory: places in the region of all blocks."""

    offsets: Array
    values: Array
    instruction: Instruction
    thread: int


@dataclass
class Barrier:
    """A barrier's state in its current phase; `passed` are the phases before it."""

    count: int
    waits_for: int
    expected: int = 0  # bytes that have not arrived; less than 0 if too many have
    passed: int = 0
    fenced: bool = False
    coming: list[Copy] = field(default_factory=list)

    def settle(self) -> None:
        if self.waits_for == 0 and self.expected == 0:
            self.passed += 1
            self.waits_for = self.count


class Bulk:
    """Of a batch of blocks: barriers, and what is known of copied bytes."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.barriers: dict[Key, Barrier] = {}
        size = frame.spaces.shared.size // GRANULE + 1
        self.origin = np.zeros(size, np.int64)  # which fill the bytes of a granule come from
        self.fills: list[tuple[Key, int]] = [((-1, -1), 0)]
        self.seen: dict[Key, Array] = {}  # phases of a barrier that each thread saw passed
        self.tries = 0

    def barrier(self, i: Instruction, thread: int, address: int) -> tuple[Key, Barrier]:
        key = int(self.frame.spaces.block[thread]), address
        found = self.barriers.get(key)
        if found is None:
            text = f"there is no barrier at {address:#x}"
            self.frame.fault(OutOfBounds, i, thread, text)
        return key, found

    def land(self, key: Key, barrier: Barrier) -> None:
        """All bytes on their way to a barrier arrive."""
        shared = self.frame.spaces.shared
        for copy in barrier.coming:
            shared.write(copy.offsets, 8, copy.values.view(np.uint64))
            shared.mark(copy.offsets, GRANULE, THERE)
            self.fills.append((key, barrier.passed + 1))
            self.origin[copy.offsets // GRANULE] = len(self.fills) - 1
            barrier.expected -= copy.values.size
            if shared.users and Use.WRITE in shared.users.last:  # the barrier orders them
                step = shared.users.granule
                for k in range(0, GRANULE, step):
                    shared.users.last[Use.WRITE][(copy.offsets + k) // step] = -1
        barrier.coming = []

    def check_seen(self, i: Instruction, offsets: Array, thread: int) -> None:
        """What hardware reads for a thread was copied, and the thread waited for it."""
        for number in np.unique(self.origin[offsets // GRANULE]):
            key, phase = self.fills[int(number)]
            if key == (-1, -1):
                text = "it reads what threads wrote, and no fence orders that"
                self.frame.fault(Unfenced, i, thread, text)
            if key not in self.seen or self.seen[key][thread] < phase:
                text = f"this thread has not waited for the barrier at {key[1]:#x}"
                self.frame.fault(NotWaitedFor, i, thread, text)

    def end(self) -> None:
        """No copy may be under way when its block has ended."""
        for (_, address), barrier in self.barriers.items():
            for copy in barrier.coming[:1]:
                text = f"its block has ended, and nobody waited at {address:#x}"
                self.frame.fault(NotWaitedFor, copy.instruction, copy.thread, text)


def bulk_of(frame: Frame) -> Bulk:
    if frame.bulk is None:
        frame.bulk = Bulk(frame)
    assert isinstance(frame.bulk, Bulk)
    return frame.bulk


@builds("mbarrier")
def barrier_step(frame: Frame, i: Instruction) -> Step:
    if i.modifiers[0] == "init":
        return initialise(frame, i)
    if i.modifiers[:2] == ("arrive", "expect_tx"):
        return expect(frame, i)
    if i.modifiers[:2] in (("try_wait", "parity"), ("test_wait", "parity")):
        return try_wait(frame, i)
    raise Unsupported(f"{i}")


def initialise(frame: Frame, i: Instruction) -> Step:
    address, report, spaces = frame.address(i.operands[0]), reporter(frame, i), frame.spaces
    count = np.broadcast_to(frame.source(i.operands[1], "u32"), frame.shape.total)

    def step(mask: Mask) -> None:
        threads = chosen(mask)
        who, places = spaces.every[threads], address()[threads]
        zeros = np.zeros((len(who), 1), np.uint64)
        spaces.write("shared", places, who, BARRIER_BYTES, zeros, report)
        for thread, place in zip(who, places, strict=True):
            n = int(count[thread])
            key = int(spaces.block[thread]), int(place)
            bulk_of(frame).barriers[key] = Barrier(n, n)

    return step


def touch(frame: Frame, i: Instruction, places: Array, who: Array) -> None:
    """Threads use barriers at the same time, but not before they are made."""
    report, spaces = reporter(frame, i), frame.spaces
    for piece in spaces.pieces("shared", places, who, BARRIER_BYTES, report):
        spaces.need(piece, BARRIER_BYTES, report)
        spaces.use(piece, Use.UPDATE, BARRIER_BYTES, report)


def expect(frame: Frame, i: Instruction) -> Step:
    address, spaces = frame.address(i.operands[1]), frame.spaces
    nbytes = np.broadcast_to(frame.source(i.operands[2], "u32"), frame.shape.total)

    def step(mask: Mask) -> None:
        threads = chosen(mask)
        who, places = spaces.every[threads], address()[threads]
        touch(frame, i, places, who)
        bulk = bulk_of(frame)
        bulk.tries = 0
        for thread, place in zip(who, places, strict=True):
            _, barrier = bulk.barrier(i, int(thread), int(place))
            if barrier.waits_for == 0:
                text = f"the barrier at {int(place):#x} has not been passed since it was last used"
                frame.fault(Deadlock, i, int(thread), text)
            barrier.expected += int(nbytes[thread])
            barrier.waits_for -= 1
            barrier.settle()

    return step


def try_wait(frame: Frame, i: Instruction) -> Step:
    target = frame.target(i.operands[0], "pred")
    address, spaces = frame.address(i.operands[1]), frame.spaces
    parity = np.broadcast_to(frame.source(i.operands[2], "u32"), frame.shape.total)

    def step(mask: Mask) -> None:
        threads = chosen(mask)
        who, places = spaces.every[threads], address()[threads]
        touch(frame, i, places, who)
        bulk = bulk_of(frame)
        bulk.tries += 1
        keys = spaces.block[who] * (1 << 20) + places
        for key in np.unique(keys):
            same = keys == key
            look(frame, i, who[same], int(places[same][0]), parity, target)

    return step


def look(
    frame: Frame, i: Instruction, who: Array, place: int, parity: Array, target: Array
) -> None:
    """Threads of one block look at one barrier."""
    bulk = bulk_of(frame)
    key, barrier = bulk.barrier(i, int(who[0]), place)
    if (parity[who] == barrier.passed % 2).any() and barrier.coming:
        bulk.land(key, barrier)
        barrier.settle()
        bulk.tries = 0
    passed = parity[who] != barrier.passed % 2
    target[who] = passed
    if passed.any():
        bulk.tries = 0
        seen = bulk.seen.setdefault(key, np.zeros(frame.shape.total, np.int64))
        seen[who[passed]] = barrier.passed
    if bulk.tries > MOST_TRIES:
        arrivals = f"{barrier.waits_for} arrivals and {barrier.expected} bytes"
        text = f"it waits at {place:#x} for {arrivals} that never come"
        frame.fault(Deadlock, i, int(who[0]), text)


@builds("fence")
def fence(frame: Frame, i: Instruction) -> Step:
    """Memory is always in order here; hardware that copies must be told of new barriers."""
    if not (i.has("mbarrier_init") or i.has("proxy")):
        return lambda mask: None

    def step(mask: Mask) -> None:
        blocks = set(frame.spaces.block[chosen(mask)].tolist())
        for (block, _), barrier in bulk_of(frame).barriers.items():
            barrier.fenced |= block in blocks

    return step


def copy_boxes(frame: Frame, i: Instruction) -> Step:
    """`[to], [map, {x, y ...}], [barrier]`."""
    needed = ("bulk", "tensor", "tile", "shared::cluster", "global", "mbarrier::complete_tx::bytes")
    place = i.operands[1]
    if not all(map(i.has, needed)) or len(i.operands) != 3 or not isinstance(place, Address):
        raise Unsupported(f"{i}")
    if not isinstance(place.box, Several):
        raise Unsupported(f"{i}: no coordinates")
    rank = next(int(m[:-1]) for m in i.modifiers if m in ("1d", "2d", "3d", "4d", "5d"))
    to, source, barrier = (frame.address(o) for o in i.operands)
    total, spaces = frame.shape.total, frame.spaces
    at = [np.broadcast_to(frame.source(o, "s32"), total) for o in place.box.items]
    if len(at) != rank:
        raise Unsupported(f"{i}: {len(at)} coordinates")

    def step(mask: Mask) -> None:
        bulk = bulk_of(frame)
        bulk.tries = 0
        for thread in spaces.every[chosen(mask)]:
            tensor = described(frame, i, int(thread), int(source()[thread]), rank)
            coordinates = [int(a[thread]) for a in at]
            target, key = int(to()[thread]), int(barrier()[thread])
            touch(frame, i, np.array([key]), np.array([thread]))
            _, found = bulk.barrier(i, int(thread), key)
            if not found.fenced:
                text = f"no fence tells hardware of the barrier at {key:#x}"
                frame.fault(Unfenced, i, int(thread), text)
            found.coming.append(start(frame, i, int(thread), tensor, coordinates, target))

    return step


def described(frame: Frame, i: Instruction, thread: int, address: int, rank: int) -> TensorMap:
    data = frame.spaces.memory.get(address, (BYTES,), np.uint8).tobytes()
    tensor = decode(data)
    if tensor is None or len(tensor.extents) != rank or tensor.swizzle != 3:
        raise Unsupported(f"{i}: {tensor}")
    return tensor


def start(
    frame: Frame, i: Instruction, thread: int, tensor: TensorMap, at: list[int], target: int
) -> Copy:
    """Reads a box; its target is pending."""
    spaces, report = frame.spaces, reporter(frame, i)
    if target % ROW_BYTES:
        report(Misaligned, thread, f"a box is copied to {target:#x}")
    values = box_bytes(frame, i, thread, tensor, at)
    place = target + np.arange(0, len(values), GRANULE)
    place ^= place // ROW_BYTES % 8 * GRANULE
    who = np.full(len(place), thread)
    (piece,) = spaces.pieces("shared", place, who, GRANULE, report)
    overwritten(frame, i, piece, thread)
    spaces.use(piece, Use.WRITE, GRANULE, report)
    spaces.shared.mark(piece.offsets, GRANULE, PENDING)
    return Copy(piece.offsets, values.reshape(-1, GRANULE), i, thread)


def overwritten(frame: Frame, i: Instruction, piece: Piece, thread: int) -> None:
    """No copy or product is still busy with these bytes."""
    known = frame.spaces.shared.known
    pending = known[piece.offsets] == PENDING
    if pending.any():
        place = frame.spaces.place_name(piece.region, int(piece.offsets[pending][0]), thread)
        frame.fault(NotWaitedFor, i, thread, f"{place} is overwritten while it is being copied")
    if frame.warpgroups is not None:
        frame.warpgroups.check_unread(i, piece.offsets, thread)


def box_bytes(frame: Frame, i: Instruction, thread: int, t: TensorMap, at: list[int]) -> Array:
    """The elements of a box, zeros beyond the tensor, neighbours side by side."""
    shape = t.box[::-1]
    index = np.indices(shape)[::-1].reshape(len(shape), -1)
    inside = np.ones(index.shape[1], np.bool_)
    address = np.full(index.shape[1], t.address, np.int64)
    for k, (n, step) in enumerate(zip(t.extents, (t.itemsize, *t.strides), strict=True)):
        place = index[k] + at[k]
        inside &= (place >= 0) & (place < n)
        address += place * step
    values = np.zeros((len(inside), t.itemsize), np.uint8)
    if inside.any():
        who = np.full(int(inside.sum()), thread)
        found = frame.spaces.read("global", address[inside], who, t.itemsize, 1, reporter(frame, i))
        values[inside] = np.ascontiguousarray(found).view(np.uint8).reshape(-1, t.itemsize)
    return values.reshape(-1)
