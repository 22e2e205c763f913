"""Products of matrices in shared memory by warpgroups: wgmma.

The layouts are those of the PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate
Instructions": fragments of the sums, and matrices of swizzled rows behind a descriptor. Sums are
there at once, but whoever touches them before they were waited for is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from ptx.bulk import bulk_of
from ptx.errors import InactiveLanes, Misaligned, NotWaitedFor, Unfenced, Unsupported
from ptx.frame import LANES, Frame, Mask, Step, builds, parts
from ptx.matrices import DECODE
from ptx.memory import Array, Use
from ptx.moves import reporter
from ptx.syntax import Address, Instruction, Integer, Negation, Operand, Register, Several

WARPS = 4
GROUP = WARPS * LANES
ROWS = 64
CHUNK = 16  # bytes that a swizzle moves as a whole
HALVES = CHUNK // 2
SWIZZLED_128 = 1


@dataclass
class Product:
    """What a warpgroup's product still reads and writes."""

    reads: Array  # addresses of chunks
    sums: frozenset[str]


@dataclass
class Group:
    """The state of one warpgroup; each of its threads does the same."""

    open: list[Product] = field(default_factory=list)
    closed: list[list[Product]] = field(default_factory=list)
    fenced: bool = False  # its registers are known to hardware

    def under_way(self) -> list[Product]:
        return [p for group in (*self.closed, self.open) for p in group]


class Warpgroups:
    """Of a batch of blocks."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.groups: dict[int, Group] = {}  # by the first thread
        self.sums = frozenset[str]()

    def group(self, first: int) -> Group:
        return self.groups.setdefault(first, Group())

    def touch(self, i: Instruction, names: frozenset[str], mask: Mask, writes: bool) -> None:
        """Threads use registers that products have: not while one is under way."""
        active = np.broadcast_to(mask, self.frame.shape.total)
        for first, group in self.groups.items():
            if not active[first : first + GROUP].any():
                continue
            for product in group.under_way():
                if product.sums & names:
                    name = min(product.sums & names)
                    text = f"{name} is used while a product adds to it"
                    self.frame.fault(NotWaitedFor, i, first, text)
            group.fenced &= not writes

    def check_unread(self, i: Instruction, offsets: Array, thread: int) -> None:
        """Nobody overwrites what a product under way reads."""
        start = self.frame.spaces.shared_start
        for first, group in self.groups.items():
            for product in group.under_way():
                if np.isin(product.reads + start[first], offsets).any():
                    text = "it overwrites what a product under way reads"
                    self.frame.fault(NotWaitedFor, i, thread, text)


def warpgroups_of(frame: Frame) -> Warpgroups:
    if frame.warpgroups is None:
        frame.warpgroups = Warpgroups(frame)
    assert isinstance(frame.warpgroups, Warpgroups)
    return frame.warpgroups


def registers(operand: Operand) -> frozenset[str]:
    """The names of all registers of an operand."""
    match operand:
        case Register(name):
            return frozenset([name])
        case Several(items):
            return frozenset().union(*map(registers, items))
        case Negation(predicate):
            return registers(predicate)
        case Address(base, _, box):
            return registers(base) | (registers(box) if box else frozenset())
    return frozenset()


def guarded(frame: Frame, i: Instruction, step: Step, sums: frozenset[str]) -> Step:
    """The step of another instruction; where it uses sums, not while products are under way."""
    names = frozenset().union(*map(registers, i.operands)) & sums
    if not names or i.name == "wgmma":
        return step
    writes = bool(registers(i.operands[0]) & sums)

    def checked(mask: Mask) -> None:
        warpgroups_of(frame).touch(i, names, mask, writes)
        step(mask)

    return checked


def whole_groups(frame: Frame, i: Instruction, mask: Mask) -> list[int]:
    """The first threads of the active warpgroups, all of whose threads must be there."""
    frame.whole_warps(i, mask)
    row = frame.shape.row
    active = np.broadcast_to(mask, frame.shape.total)
    found = []
    for first in range(0, frame.shape.total, LANES):
        if not active[first] or first % row % GROUP:
            continue
        members = active[first : first + GROUP]
        if first % row + GROUP > row or not members.all():
            lost = first + int(members.argmin())
            frame.fault(InactiveLanes, i, lost, "this thread's warpgroup is not whole")
        found.append(first)
    return found


@builds("wgmma")
def build(frame: Frame, i: Instruction) -> Step:
    if i.modifiers[0] == "mma_async":
        return multiply(frame, i)
    if i.modifiers[0] == "fence":
        return fence(frame, i)
    if i.modifiers[0] == "commit_group":
        return commit(frame, i)
    if i.modifiers[0] == "wait_group":
        return wait(frame, i)
    raise Unsupported(f"{i}")


def fence(frame: Frame, i: Instruction) -> Step:
    def step(mask: Mask) -> None:
        for first in whole_groups(frame, i, mask):
            warpgroups_of(frame).group(first).fenced = True

    return step


def commit(frame: Frame, i: Instruction) -> Step:
    def step(mask: Mask) -> None:
        for first in whole_groups(frame, i, mask):
            group = warpgroups_of(frame).group(first)
            group.closed.append(group.open)
            group.open = []

    return step


def wait(frame: Frame, i: Instruction) -> Step:
    assert isinstance(i.operands[0], Integer)
    pending = i.operands[0].value
    report, spaces = reporter(frame, i), frame.spaces

    def step(mask: Mask) -> None:
        for first in whole_groups(frame, i, mask):
            group = warpgroups_of(frame).group(first)
            while len(group.closed) > pending:
                for product in group.closed.pop(0):
                    who = np.repeat(np.arange(first, first + GROUP, LANES), len(product.reads))
                    chunks = np.tile(product.reads, WARPS)
                    for piece in spaces.pieces("shared", chunks, who, CHUNK, report):
                        spaces.use(piece, Use.READ, CHUNK, report)

    return step


@dataclass(frozen=True)
class Descriptor:
    """Where a matrix is, in bytes, and the distances between its parts."""

    start: int
    leading: int
    stride: int

    def chunks(self, lines: int, is_transposed: bool) -> Array:
        """[line or group of 8 lines, chunk]: addresses of what 16 elements of the sum need.

        K-major: 8 lines of 128 bytes repeat after `stride`, a line's elements lie side by side.
        MN-major: 64 lines lie side by side and repeat after `leading`; 8 elements of the sum, 128
        bytes apart, repeat after `stride`.
        """
        if is_transposed:
            group, k = np.arange(lines // HALVES)[:, None], np.arange(16)
            place = group // 8 * self.leading + group % 8 * CHUNK
            place = place + k // 8 * self.stride + k % 8 * 128
        else:
            line, half = np.arange(lines)[:, None], np.arange(2)
            place = line // 8 * self.stride + line % 8 * 128 + half * CHUNK
        address = self.start + place
        return address ^ (address >> 7 & 7) << 4


def described(frame: Frame, i: Instruction, words: Array, first: int) -> Descriptor:
    """The fields of a descriptor, which all threads of a warpgroup give alike."""
    mine = words[first : first + GROUP]
    if (mine != mine[0]).any():
        frame.fault(Unsupported, i, first, "threads of a warpgroup give different descriptors")
    word = int(mine[0])

    def encoded(at: int) -> int:
        return (word >> at & 0x3FFF) << 4

    if word >> 62 != SWIZZLED_128 or word >> 49 & 7:
        raise Unsupported(f"{i}: a descriptor {word:#x}")
    found = Descriptor(encoded(0), encoded(16), encoded(32))
    if found.stride % 1024:
        frame.fault(Misaligned, i, first, f"eight rows repeat after {found.stride} bytes")
    return found


def multiply(frame: Frame, i: Instruction) -> Step:
    """D += A B, or D = A B, of 64 rows; A and B are in shared memory."""
    shape = next(re.fullmatch(r"m64n(\d+)k16", m) for m in i.modifiers if m.startswith("m64"))
    kinds = i.modifiers[-3:]
    if shape is None or kinds not in (("f32", "f16", "f16"), ("f32", "bf16", "bf16")):
        raise Unsupported(f"{i}")
    columns = int(shape[1])
    sums, left, right, adds, *rest = i.operands
    scale_a, scale_b, a_turned, b_turned = (o.value for o in rest if isinstance(o, Integer))
    if (scale_a, scale_b) != (1, 1) or columns % 8 or len(parts(sums)) != columns // 2:
        raise Unsupported(f"{i}")
    targets = [frame.target(o, "f32") for o in parts(sums)]
    total = frame.shape.total
    a, b = (np.broadcast_to(frame.source(o, "u64"), total) for o in (left, right))
    add, decode, names = frame.predicate(adds), DECODE[kinds[1]], registers(sums)

    def matrix(word: Array, first: int, lines: int, turned: bool) -> tuple[Array, Array]:
        """[line, element of the sum], and the addresses of chunks."""
        chunks = described(frame, i, word, first).chunks(lines, turned).reshape(-1)
        values = read(frame, i, chunks, first)
        found = decode(values.view(np.uint32)).astype(np.float64)
        if turned:
            found = found.reshape(lines // HALVES, 16, HALVES).transpose(0, 2, 1)
        return found.reshape(lines, 16), chunks

    def step(mask: Mask) -> None:
        for first in whole_groups(frame, i, mask):
            group = warpgroups_of(frame).group(first)
            if not group.fenced:
                text = "no wgmma.fence since registers were written"
                frame.fault(Unfenced, i, first, text)
            x, of_x = matrix(a, first, ROWS, bool(a_turned))
            w, of_w = matrix(b, first, columns, bool(b_turned))
            adding = np.broadcast_to(add(), total)[first : first + GROUP]
            spread(targets, x @ w.T, first, adding)
            group.open.append(Product(np.concatenate([of_x, of_w]), names))

    return step


def spread(targets: list[Array], product: Array, first: int, adds: Array) -> None:
    """To the fragments: 8 columns to each four registers, two of them 8 rows further down."""
    thread = np.arange(GROUP)
    for k, target in enumerate(targets):
        row = thread // LANES * 16 + thread % LANES // 4 + 8 * (k // 2 % 2)
        column = k // 4 * 8 + thread % 4 * 2 + k % 2
        part = product[row, column]
        old = target[first : first + GROUP]
        target[first : first + GROUP] = np.where(adds, old + part, part).astype(np.float32)


def read(frame: Frame, i: Instruction, chunks: Array, first: int) -> Array:
    """The bytes of chunks, which must have arrived for all warps."""
    spaces, report = frame.spaces, reporter(frame, i)
    who = np.full(len(chunks), first)
    (piece,) = spaces.pieces("shared", chunks, who, CHUNK, report)
    spaces.need(piece, CHUNK, report)
    for thread in range(first, first + GROUP, LANES):
        bulk_of(frame).check_seen(i, piece.offsets, thread)
    return np.ascontiguousarray(piece.region.read(piece.offsets, 8, 2))
