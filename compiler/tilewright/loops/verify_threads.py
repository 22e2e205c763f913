"""What must hold of a kernel whose loops are blocks of threads, besides what holds of any kernel.

* loops over blocks are outermost, each with a fixed extent, and no task is a loop beside them;
* all loops over threads have one fixed extent, and stand inside no other loop over threads;
* barriers and combinations stand outside of the loops over threads, so that all threads meet there;
* an element of a thread's own registers is used by that thread alone, or read by a matrix product
  of the four lanes that share its rows, in a later loop than it is written;
* what one thread writes, another reads or writes only after a barrier;
* what is copied asynchronously is read only after a wait and then a barrier;
* the lanes of a warp come to its matrix products together;
* what hardware does by itself is waited for (`verify_ahead`);
* what outlives the block is written by threads, and no two write one element;
* shared memory that is used again after its buffers have ended has no copies on their way to it;
* the shared memory of a block fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import NoReturn

from tilewright.errors import VerifyError
from tilewright.loops.affine import Range, Ranges, linear, simplify_index
from tilewright.loops.copies import Copies
from tilewright.loops.facts import Facts, learn, linear_bounds
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Apply,
    Arrived,
    Barrier,
    Block,
    Box,
    Buffer,
    Combine,
    Commit,
    Const,
    Expr,
    Fetch,
    For,
    If,
    Kernel,
    Load,
    LoopKind,
    Mma,
    Node,
    Settle,
    Space,
    Stages,
    Stmt,
    Store,
    Tile,
    Var,
    Wait,
    Wgmma,
    children,
    rewrite,
    substitute,
    variables,
    walk,
)
from tilewright.loops.locate import axis_ranges, offset
from tilewright.loops.scalars import MONOIDS, ScalarOp
from tilewright.loops.verify_ahead import Event, Phase, Places, UnderWay, note_ahead

WARP = 32
QUAD = 4  # lanes that share the rows of a matrix in registers
MAX_THREADS = 1024
OTHER_THREADS = (LoopKind.PARALLEL, LoopKind.BLOCK, LoopKind.THREAD)
MAX_SHARED_BYTES = 227 << 10

INNER = "axis "  # begins the names of axes inside of a loop over threads


def has_threads(kernel: Kernel) -> bool:
    """Whether the kernel says what its blocks and threads do."""
    kinds = (LoopKind.BLOCK, LoopKind.THREAD)
    return any(isinstance(n, For) and n.kind in kinds for n in walk(kernel.body))


def threads_of(kernel: Kernel) -> int:
    """The threads of a block."""
    loops = (n for n in walk(kernel.body) if isinstance(n, For) and n.kind is LoopKind.THREAD)
    first = next(loops, None)
    return int(first.extent.value) if first and isinstance(first.extent, Const) else 1


def shared_bytes(kernel: Kernel) -> int:
    """The shared memory of a block."""
    return _room(kernel.body, True)


def _room(s: Stmt, once: bool) -> int:
    """The shared memory of a statement. What has ended lies before the barriers of a block that
    runs `once`: after them its memory is used again."""
    match s:
        case Alloc(buffer=b, body=body):
            own = b.dtype.itemsize * prod(b.shape) if b.space is Space.SHARED else 0
            return own + _room(body, once)
        case For(kind=kind, body=body):
            return _room(body, once and kind is LoopKind.BLOCK)
        case If(body=body):
            return _room(body, once)
        case Block(stmts=stmts):
            parts = between_barriers(stmts) if once else [list(stmts)]
            return max(sum(_room(t, once) for t in part) for part in parts)
    return 0


def between_barriers(stmts: Sequence[Stmt]) -> list[list[Stmt]]:
    """Statements up to each barrier among them, which it ends, and those after the last one."""
    parts: list[list[Stmt]] = [[]]
    for s in stmts:
        parts[-1].append(s)
        if isinstance(s, Barrier):
            parts.append([])
    return parts


def verify_threads(kernel: Kernel) -> None:
    """Raises VerifyError where one of the rules is broken."""
    _Checker(kernel).run()


class _Checker:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.threads = threads_of(kernel)

    def fail(self, why: str) -> NoReturn:
        raise VerifyError(f"{self.kernel.name}: {why}")

    def run(self) -> None:
        if self.threads % WARP or self.threads > MAX_THREADS:
            self.fail(f"{self.threads} threads in a block")
        if (used := shared_bytes(self.kernel)) > MAX_SHARED_BYTES:
            self.fail(f"{used:,} bytes of shared memory; a block has {MAX_SHARED_BYTES:,}")
        self.structure(self.kernel.body, outermost=True)
        self.races()

    # -- which loop may stand where

    def structure(self, s: Stmt, outermost: bool) -> None:
        match s:
            case For(kind=LoopKind.BLOCK, body=body):
                if not outermost or not isinstance(s.extent, Const):
                    self.fail(f"loop {s.axis} over blocks is not outermost or not fixed")
                self.structure(body, True)
            case For(kind=LoopKind.PARALLEL):
                self.fail(f"loop {s.axis} over tasks in a kernel of threads")
            case For(kind=LoopKind.THREAD):
                if s.extent != Const(self.threads, s.extent.dtype):  # type: ignore[union-attr]
                    self.fail(f"loop {s.axis} is not over all {self.threads} threads")
                self.inside(s)
            case For(body=body) | If(body=body) | Alloc(body=body):
                self.structure(body, False)
            case Block(stmts=stmts):
                self.reused(stmts)
                for t in stmts:
                    self.structure(t, False)
            case Combine(buffer=b, op=op, width=width):
                if b.space is not Space.THREAD or b.shape != (self.threads,) or op not in MONOIDS:
                    self.fail(f"{b.name} cannot be combined by {op.name}")
                if width < 1 or self.threads % width or (width < WARP and WARP % width):
                    self.fail(f"{width} threads of {self.threads} are combined")
            case Store(buffer=b) | Accumulate(buffer=b):
                if b.space is not Space.LOCAL:
                    self.fail(f"{b.name} is written outside of the threads")
            case Fetch() | Box() | Wgmma():
                self.fail("copies and products are started outside of the threads")
            case Tile() | Barrier() | Commit() | Wait() | Mma() | Stages() | Arrived() | Settle():
                pass

    def reused(self, stmts: Sequence[Stmt]) -> None:
        """Whether nothing is on its way to shared memory that others use after a barrier."""
        under_way = False
        for s in stmts:
            below = list(walk(s))
            if isinstance(s, Wait) and s.pending == 0:
                under_way = False
            if under_way and any(isinstance(n, Alloc) and _is_shared(n) for n in below):
                self.fail("memory is used again before copies to it are waited for")
            under_way = under_way or any(
                isinstance(n, Alloc) and _is_shared(n) and any(map(_is_async, walk(n)))
                for n in below
            )

    def inside(self, loop: For) -> None:
        """The body of a loop over threads."""
        for n in walk(loop.body):
            if isinstance(n, (Barrier, Combine, Commit, Wait, Stages, Arrived, Settle)):
                self.fail("some threads might not come to a place where all must meet")
            if isinstance(n, If) and any(isinstance(m, (Mma, Wgmma)) for m in walk(n)):
                self.fail("some lanes of a warp might not come to its matrix product")
            if isinstance(n, For) and n.kind in OTHER_THREADS:
                self.fail(f"loop {n.axis} over {n.kind.value}s inside of the threads")
        self.registers(loop.body, loop, None)
        self.apart(loop.body, loop.axis, frozenset())

    def registers(self, s: Node, loop: For, lent: Buffer | None) -> None:
        """Whether threads use their own registers, or read those that a matrix product lends."""
        match s:
            case Mma(left=left, meaning=meaning) if left.buffer.space is Space.THREAD:
                self.lends(left.buffer, loop)
                self.registers(left, loop, None)
                self.registers(meaning, loop, left.buffer)
                return
            case Load(buffer=b) if b == lent:
                if not _of_quad(s.index[0], loop):
                    self.fail(f"{b.name} of a lane with other rows is used")
            case Load(buffer=b) | Store(buffer=b) | Accumulate(buffer=b):
                if b.space is Space.THREAD and s.index[0] != Var(loop.axis):
                    self.fail(f"{b.name} of another thread is used")
        for c in children(s):
            self.registers(c, loop, lent)

    def lends(self, b: Buffer, loop: For) -> None:
        """Whether all lanes have their elements before the loop."""
        writes = (n for n in walk(loop) if isinstance(n, (Store, Accumulate)))
        if any(n.buffer == b for n in writes):
            self.fail(f"{b.name} of other lanes is read where it is written")

    def apart(self, s: Stmt, thread: str, local: frozenset[str]) -> None:
        """Whether no two threads write one element of a buffer that they share."""
        match s:
            case If(condition=c, body=body):
                if not _chooses_one(c, thread):
                    self.apart(body, thread, local)
            case Alloc(buffer=b, body=body):
                self.apart(body, thread, local | {b.name})
            case For(body=body):
                self.apart(body, thread, local)
            case Block(stmts=stmts):
                for t in stmts:
                    self.apart(t, thread, local)
            case Store(buffer=b, index=index) | Accumulate(buffer=b, index=index):
                if b.space is Space.LOCAL and b.name not in local:
                    self.fail(f"{b.name} is not of one thread")
                if b.space is not Space.LOCAL and not any(thread in variables(i) for i in index):
                    self.fail(f"all threads write one element of {b.name}")
            case _:
                pass

    # -- what needs a barrier in between

    def races(self) -> None:
        seen: list[Phase] = []
        copies = Copies()
        ahead = UnderWay(_apart)
        for phase in _phases(self.kernel.body, axis_ranges(self.kernel.body)):
            if why := ahead.see(phase):
                self.fail(why)
            if isinstance(phase, Barrier):
                seen = []
            if not isinstance(phase, Phase):
                if not isinstance(phase, (Arrived, Settle)):
                    copies.meet(phase)
                continue
            if (early := copies.touch(phase.reads, phase.copied)) is not None:
                self.fail(f"{early} is read before copies to it are waited for")
            for before in (*seen, *([] if phase.of_one else [phase])):
                self.compare(before, phase)
            seen.append(phase)

    def compare(self, before: Phase, after: Phase) -> None:
        for name, places in before.writes.items():
            arrives = name in before.fetched  # what is read of it was waited for: `verify_ahead`
            for touched in (after.writes,) if arrives else (after.reads, after.writes):
                if name in touched and not _apart(places, touched[name]):
                    self.fail(f"{name} is used again without a barrier")
        for name, places in before.reads.items():
            if name in after.writes and not _apart(places, after.writes[name]):
                self.fail(f"{name} is overwritten without a barrier")


def _of_quad(index: Expr, loop: For) -> bool:
    """Whether the index is that of a thread among the four neighbours that share rows."""
    ranges = {**axis_ranges(loop), loop.axis: (0.0, float(loop.extent.value) - 1)}  # type: ignore[union-attr]
    first = Var(loop.axis) // QUAD * QUAD
    low, high = linear_bounds(linear(index - first, ranges), ranges, {})
    return low >= 0 and high < QUAD


def _chooses_one(condition: Expr, thread: str) -> bool:
    """Whether at most one thread of those that share an element goes on."""
    return any(
        isinstance(n, Apply) and n.op is ScalarOp.EQ and thread in variables(n)
        for n in walk(condition)
    )


def _apart(a: Places, b: Places) -> bool:
    """Whether all accesses of a thread are to its own element, or to different parts of the
    buffer."""
    return all(p == q or any(map(_differ, p, q)) or _separate(a[p], b[q]) for p, q in product(a, b))


def _separate(a: tuple[Range, ...], b: tuple[Range, ...]) -> bool:
    """Whether an index of both has no value in common."""
    return any(x[1] < y[0] or y[1] < x[0] for x, y in zip(a, b, strict=True))


def _around(a: Range, b: Range) -> Range:
    return min(a[0], b[0]), max(a[1], b[1])


def _differ(x: Expr, y: Expr) -> bool:
    """Whether x - y is a constant that is not 0, the same for all threads; of remainders, no
    multiple of the divisor."""
    if any(name.startswith(INNER) for e in (x, y) for name in variables(e)):
        return False
    for e in (x, y):
        if isinstance(e, Apply) and e.op is ScalarOp.MOD and isinstance(e.args[1], Const):
            distance = linear(_dividend(x, e.args[1]) - _dividend(y, e.args[1]), {})
            return not distance.terms and distance.constant % int(e.args[1].value) != 0
    distance = linear(x - y, {})
    return not distance.terms and distance.constant != 0


def _dividend(e: Expr, divisor: Const) -> Expr:
    """What e is the remainder of; e itself if it is none."""
    is_remainder = isinstance(e, Apply) and e.op is ScalarOp.MOD and e.args[1] == divisor
    return e.args[0] if is_remainder else e  # type: ignore[union-attr]


def _phases(s: Stmt, ranges: Ranges) -> Iterator[Event]:
    """What happens in order; a loop's body twice, because its end meets its beginning, unless it
    has none but the first iteration."""
    match s:
        case Barrier() | Commit() | Wait() | Arrived() | Settle():
            yield s
        case For(kind=LoopKind.THREAD):
            yield _phase(s, ranges)
        case For(axis=axis, kind=LoopKind.SERIAL | LoopKind.UNROLLED, body=body):
            yield from _phases(body, ranges)
            if isinstance(s.extent, Const) and s.extent.value <= 1:
                return
            if any(map(_is_ahead, walk(body))):  # their stages tell iterations apart
                body = substitute(body, {axis: Var(axis) + 1})  # type: ignore[assignment]
            yield from _phases(body, ranges)
        case For(body=body) | If(body=body) | Alloc(body=body):
            yield from _phases(body, ranges)
        case Block(stmts=stmts):
            for t in stmts:
                yield from _phases(t, ranges)


def _phase(loop: For, ranges: Ranges) -> Phase:
    phase = Phase(of_one=_is_of_one(loop))
    for n in walk(loop):
        if _is_async(n):
            target = n.body.buffer  # type: ignore[union-attr]
            phase.copied[target.name] = target.shape[0]  # type: ignore[union-attr]
    note_ahead(phase, loop)
    names = _Names()
    for n, facts in _accesses(loop, ranges, {}, names):
        kind = phase.reads if isinstance(n, Load) else phase.writes
        place = tuple(names.plain(simplify_index(i, ranges)) for i in n.index)
        forms = *(linear(i, ranges) for i in n.index), offset(n.buffer, n.index, ranges)
        spans = tuple(linear_bounds(f, ranges, facts) for f in forms)
        places = kind.setdefault(n.buffer.name, {})
        places[place] = tuple(map(_around, places.get(place, spans), spans))
    return phase


def _accesses(
    s: Node, ranges: Ranges, facts: Facts, names: _Names
) -> Iterator[tuple[Load | Store | Accumulate, Facts]]:
    """What is read and written in common memory, with what the guards around it say."""
    if isinstance(s, For):
        names.number(s.axis)
    if isinstance(s, (Load, Store, Accumulate)) and _is_common(s.buffer):
        yield s, facts
    if isinstance(s, If):
        yield from _accesses(s.condition, ranges, facts, names)
        yield from _accesses(s.body, ranges, learn(s.condition, ranges, facts), names)
        return
    for c in children(s):
        yield from _accesses(c, ranges, facts, names)


def _is_of_one(loop: For) -> bool:
    """Whether all but one of the threads do nothing."""
    match loop.body:
        case If(condition=Apply(op=ScalarOp.EQ, args=(Var(name=name), Const()))):
            return name == loop.axis
    return False


def _is_ahead(n: Node) -> bool:
    return _is_async(n) or isinstance(n, Fetch)


def _is_async(n: Node) -> bool:
    return isinstance(n, For) and n.kind is LoopKind.ASYNC


def _is_shared(n: Alloc) -> bool:
    return n.buffer.space is Space.SHARED


def _is_common(b: Buffer) -> bool:
    return b.space in (Space.SHARED, Space.GLOBAL)


class _Names:
    """Axes by the order in which their loops begin, so that equal loops have equal places."""

    def __init__(self) -> None:
        self.known: dict[str, Expr] = {}
        self.loops = 0

    def number(self, axis: str) -> None:
        self.known[axis] = Var(f"{INNER}{self.loops}")
        self.loops += 1

    def plain(self, e: Expr) -> Expr:
        def rule(n: Node) -> Node | None:
            return self.known.get(n.name) if isinstance(n, Var) else None

        return rewrite(e, rule)  # type: ignore[return-value]
