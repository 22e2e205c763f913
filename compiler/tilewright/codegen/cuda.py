"""Loop nests to Numba source for CUDA: one function that every thread runs.

What a kernel says of blocks and threads is printed as it stands. A kernel that says nothing runs
one iteration of its parallel loops in each thread. Buffers are pointers, numbers are parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tilewright.codegen.emit import Emitter, stored_kind
from tilewright.codegen.mma import print_async, print_mma
from tilewright.codegen.quotients import FUNCTIONS, MOST, by_magic, divided
from tilewright.codegen.spelling import SUFFIX, module_of
from tilewright.codegen.tiles import indent
from tilewright.codegen.wgmma import (
    print_arrived,
    print_fetch,
    print_settle,
    print_stages,
    print_wgmma,
)
from tilewright.dtypes import DType
from tilewright.loops.ir import (
    Alloc,
    Arrived,
    Barrier,
    Block,
    Buffer,
    Combine,
    Commit,
    Const,
    Expr,
    Fetch,
    For,
    Kernel,
    Load,
    LoopKind,
    Mma,
    Settle,
    Space,
    Stages,
    Stmt,
    Store,
    TensorMap,
    Tile,
    Wait,
    Wgmma,
    index_const,
    substitute,
    walk,
)
from tilewright.loops.locate import axis_ranges, offset
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify_threads import WARP, between_barriers, has_threads, threads_of

LIBRARY = "tilewright_kernels.cuda"
HALVES = ("f16", "bf16")
RANKS = range(2, 6)  # axes of tensors that hardware copies boxes of
THREADS = 256  # of a block, where the kernel does not say
ALIGNMENT = 16  # bytes of the widest access
COMBINED = {
    ScalarOp.ADD: "add",
    ScalarOp.MUL: "multiply",
    ScalarOp.MAX: "maximum",
    ScalarOp.MIN: "minimum",
}
PRODUCTS = ("f16", "bf16", "tf32", "i8_i8", "u8_u8", "u8_i8", "i8_u8")
_MODULES = {
    **dict.fromkeys(("block", "thread", "sync"), "threads"),
    **dict.fromkeys((f"{t}_{v}" for t in ("warp", "block") for v in COMBINED.values()), "reduce"),
    **dict.fromkeys((f"shared_{t}" for t in SUFFIX.values()), "pointers"),
    **dict.fromkeys((f"load_matrix4{t}" for t in ("", "_transposed")), "mma"),
    **dict.fromkeys((f"mma_{t}" for t in PRODUCTS), "mma"),
    **dict.fromkeys(("parts_down", "parts_across", "lane_across", "load_words4"), "mma"),
    "word_to_tf32": "halves",
    **dict.fromkeys((f"pack_{t}" for t in HALVES), "halves"),
    **dict.fromkeys((f"wgmma_{t}" for t in (*HALVES, "commit", "fence", "wait")), "wgmma"),
    **dict.fromkeys((f"barrier_{v}" for v in ("init", "expect", "wait")), "bulk"),
    **dict.fromkeys(("barriers_ready", *(f"copy_box{n}" for n in RANKS)), "bulk"),
    **dict.fromkeys(("copy_vector", "copy_async", "copy_async_filled"), "memory"),
    **dict.fromkeys(("async_commit", "async_wait"), "memory"),
    **dict.fromkeys(FUNCTIONS, "quotients"),
    **dict.fromkeys((f"{v}_vector_{t}" for v in ("load", "store") for t in HALVES), "memory"),
}


@dataclass(frozen=True)
class Map:
    """A parameter that describes a tensor to the hardware: that of the `pointer`-th parameter."""

    pointer: int
    tensor: TensorMap


@dataclass(frozen=True)
class Launch:
    """A printed kernel and how it is launched: `pointers` and then `numbers` are its parameters,
    after them a pointer to an error code if it makes `checks`, and `maps`."""

    text: str
    pointers: tuple[DType, ...]
    numbers: tuple[int, ...]
    blocks: int
    threads: int
    shared_bytes: int
    checks: int
    maps: tuple[Map, ...] = ()


def emit_cuda(kernel: Kernel) -> Launch:
    """The source of a kernel and the numbers of its launch."""
    return _CudaEmitter(kernel).launch()


class _CudaEmitter(Emitter):
    alone = False
    blocks = 1
    shared = 0  # bytes of shared memory in use
    most_shared = 0
    once = True  # not within a loop, but for those over blocks

    def launch(self) -> Launch:
        self.ranges = axis_ranges(self.kernel.body)
        self.maps: list[Map] = []
        self.threads = threads_of(self.kernel) if has_threads(self.kernel) else THREADS
        body = self._blocks(self.kernel.body)
        params = [f"p{k}" for k in range(len(self.kernel.params))]
        params += [f"n{k}" for k in range(len(self.numbers))]
        if self.checks:
            params.append("errors")
        params += [f"m{k}" for k in range(len(self.maps))]
        lines = [*self._imports(), "", "", f"def kernel({', '.join(params)}):", *indent(body)]
        return Launch(
            "\n".join(lines) + "\n",
            tuple(b.dtype for b in self.kernel.params),
            tuple(self.numbers),
            self.blocks,
            self.threads,
            self.most_shared,
            self.checks,
            tuple(self.maps),
        )

    def module(self, name: str) -> str:
        found = _MODULES.get(name)
        return f"{LIBRARY}.{found}" if found else module_of(name, LIBRARY)

    # -- blocks and threads

    def _blocks(self, s: Stmt) -> list[str]:
        kind = LoopKind.BLOCK if has_threads(self.kernel) else LoopKind.PARALLEL
        loops: list[For] = []
        while isinstance(s, For) and s.kind is kind:
            loops.append(s)
            s = s.body
        extents = [int(n.extent.value) for n in loops if isinstance(n.extent, Const)]
        assert len(extents) == len(loops), "parallel loops have fixed extents"
        count = math.prod(extents)
        if kind is LoopKind.BLOCK:
            self.blocks = count
            position = self._together_position if loops and loops[-1].together else self._position
            lines = position(loops, extents, f"{self.use('block')}()")
            return [*lines, *self._statement(s)]
        self.blocks = max(1, -(-count // THREADS))
        here = f"t = {self.use('block')}() * {THREADS} + {self.use('thread')}()"
        lines = self._position(loops, extents, "t")
        inner = [*lines, *self._statement(s)]
        return [here, f"if t < {self.number(count)}:", *indent(inner)]

    def _together_position(self, loops: list[For], extents: list[int], source: str) -> list[str]:
        """The same where some iterations of the innermost loop come before those around it go on:
        they are a divisor of its extent."""
        (*before, around, inner), count = loops, loops[-1].together
        assert extents[-1] % count == 0, "iterations come together in whole groups"
        group, part = (replace(inner, axis=f"{inner.axis} {name}") for name in ("group", "part"))
        sizes = [*extents[:-2], extents[-1] // count, extents[-2], count]
        lines = self._position([*before, group, around, part], sizes, source)
        first, rest = self.axis(group.axis), self.axis(part.axis)
        return [*lines, f"{self.axis(inner.axis)} = {first} * {self.number(count)} + {rest}"]

    def _position(self, loops: list[For], extents: list[int], source: str) -> list[str]:
        """The axes of nested loops, from the number of an iteration."""
        names = [self.axis(n.axis) for n in loops]
        if len(names) < 2:
            return [f"{name} = {source}" for name in names]
        lines = [f"rest = {source}"]
        for name, n in zip(names[:0:-1], extents[:0:-1], strict=True):
            if math.prod(extents) > MOST:
                size = self.number(n)
                lines += [f"{name} = rest % {size}", f"rest = rest // {size}"]
                continue
            both = (ScalarOp.MOD, ScalarOp.FLOORDIV)
            part, rest = (by_magic(op, "rest", n, self.use, self.number) for op in both)
            lines += [f"{name} = {part}", f"rest = {rest}"]
        return [*lines, f"{names[0]} = rest"]

    def _atom(self, e: Expr) -> str:
        made = divided(e, self._index, self.ranges, self.use, self.number)
        return super()._atom(e) if made is None else made

    def _loop(self, s: For) -> list[str]:
        if s.kind is LoopKind.THREAD:
            known = s.axis in self.axes
            name = self.axis(s.axis)
            start = [] if known else [f"{name} = {self.use('thread')}()"]
            return [*start, *self._statement(s.body)]
        if s.kind is LoopKind.VECTOR:
            return [self._copy(s)]
        if s.kind is LoopKind.ASYNC:
            return [print_async(self, s)]
        if s.kind is LoopKind.UNROLLED and isinstance(s.extent, Const) and _has_registers(s):
            places = map(index_const, range(int(s.extent.value)))
            each = (substitute(s.body, {s.axis: k}) for k in places)
            return [line for body in each for line in self._statement(body)]  # type: ignore[arg-type]
        once, self.once = self.once, False
        lines = super()._loop(replace(s, kind=LoopKind.SERIAL))  # NVVM unrolls as it sees fit
        self.once = once
        return lines

    def extent(self, s: For, extent: Expr) -> str:
        """The assembler keeps sums of products that go on in place only if the loop around them
        certainly runs."""
        if isinstance(extent, Const) and any(isinstance(n, Wgmma) for n in walk(s)):
            return f"({self.number(int(extent.value) - 1)} & {MOST}) + 1"
        return super().extent(s, extent)

    def _statement(self, s: Stmt) -> list[str]:
        match s:
            case Barrier():
                return [f"{self.use('sync')}()"]
            case Combine():
                return [self._combine(s)]
            case Commit():
                return [f"{self.use('async_commit')}()"]
            case Wait(pending=pending):
                return [f"{self.use('async_wait')}({pending})"]
            case Mma():
                return print_mma(self, s)
            case Block(stmts=stmts) if self.once:
                return self._after_each_other(stmts)
            case Stages(stages=stages):
                return print_stages(self, self._share(DType.U64, stages), stages)
            case Fetch():
                return print_fetch(self, s)
            case Arrived():
                return [print_arrived(self, s)]
            case Wgmma():
                return print_wgmma(self, s)
            case Settle():
                return [print_settle(self, s)]
        return super()._statement(s)

    def map_of(self, tensor: TensorMap) -> str:
        """The name of the parameter that describes a tensor."""
        pointer = [b.name for b in self.kernel.params].index(tensor.buffer.name)
        found = Map(pointer, tensor)
        if found not in self.maps:
            self.maps.append(found)
        return f"m{self.maps.index(found)}"

    def _after_each_other(self, stmts: tuple[Stmt, ...]) -> list[str]:
        """What has ended before a barrier leaves its shared memory to what follows."""
        start, lines = self.shared, list[str]()
        for part in between_barriers(stmts):
            lines += [line for s in part for line in self._statement(s)]
            if part and isinstance(part[-1], Barrier):
                self.shared = start
        return lines

    def _combine(self, s: Combine) -> str:
        name, verb = self.locals[s.buffer.name], COMBINED[s.op]
        if s.width <= WARP:
            return f"{name} = {self.use(f'warp_{verb}')}({name}, {s.width})"
        scratch = self._share(s.buffer.dtype, s.width // WARP)
        return f"{name} = {self.use(f'block_{verb}')}({name}, {scratch}, 0, {s.width})"

    def _share(self, dtype: DType, count: int) -> str:
        """Shared memory of its own for some elements, as text."""
        found = f"{self.use(f'shared_{SUFFIX[dtype]}')}({self.shared})"
        self.shared += -(-count * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        self.most_shared = max(self.most_shared, self.shared)
        return found

    def _tile(self, s: Tile) -> list[str]:
        return self._statement(s.meaning)

    # -- buffers

    def _allocate(self, s: Alloc) -> list[str]:
        b = s.buffer
        name = self.locals.setdefault(b.name, f"a{len(self.locals)}")
        shape = b.shape[1:] if b.space is Space.THREAD else b.shape
        size = max(1, math.prod(shape))
        if b.space is Space.SHARED:
            return [f"{name} = {self._share(b.dtype, size)}", *self._statement(s.body)]
        lines = self._statement(s.body)
        if shape:
            lines.insert(0, f"{name} = {self.use(f'stack_{stored_kind(b.dtype)}')}({size})")
        return lines

    def memory(self, b: Buffer) -> tuple[str, str | None]:
        found = self.locals.get(b.name)
        return super().memory(b) if found is None else (found, None)

    def _of_thread(self, b: Buffer, index: tuple[Expr, ...]) -> tuple[Buffer, tuple[Expr, ...]]:
        """A thread's own part of a buffer as a local one."""
        if b.space is Space.THREAD:
            return replace(b, shape=b.shape[1:], space=Space.LOCAL), index[1:]
        return b, index

    def _load(self, b: Buffer, index: tuple[Expr, ...]) -> str:
        if b.space is Space.SHARED:
            b = replace(b, space=Space.GLOBAL)  # halves and booleans lie as they do there
        return super()._load(*self._of_thread(b, index))

    def _store(self, b: Buffer, index: tuple[Expr, ...], value: str) -> str:
        if b.space is Space.SHARED:
            b = replace(b, space=Space.GLOBAL)
        return super()._store(*self._of_thread(b, index), value)

    def _copy(self, s: For) -> str:
        """A vector from one buffer to another, one of which may be of halves in memory."""
        assert isinstance(s.body, Store) and isinstance(s.body.value, Load)
        target, source = s.body, s.body.value
        assert isinstance(s.extent, Const)
        count = int(s.extent.value)
        places = [self.start(x.buffer, x.index, s.axis) for x in (target, source)]
        function, dtype = "copy_vector", target.buffer.dtype
        spaces = {target.buffer.space, source.buffer.space}
        if dtype.compute is not dtype and not spaces <= {Space.GLOBAL, Space.SHARED}:
            verb = "load" if target.buffer.space in (Space.LOCAL, Space.THREAD) else "store"
            function = f"{verb}_vector_{SUFFIX[dtype]}"
        (to, at), (of, there) = places
        return f"{self.use(function)}({to}, {at}, {of}, {there}, {count})"

    def start(self, b: Buffer, index: tuple[Expr, ...], axis: str | None = None) -> tuple[str, str]:
        """The pointer and the offset of an element; of a vector's first one along `axis`."""
        b, index = self._of_thread(b, index)
        name, owner = self.memory(b)
        form = offset(b, index, self.ranges)
        return name, self.linear(form.without(axis) if axis else form, owner)


def _has_registers(s: Stmt) -> bool:
    """Whether it uses registers of a thread by an index."""
    return any(isinstance(n, Load) and n.buffer.space is Space.THREAD for n in walk(s))
