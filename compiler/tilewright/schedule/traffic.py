"""What a kernel on a GPU asks of memory, read off its loops: how its threads lie beside each other.

Threads of a warp read and write sectors of 32 bytes together. Those that lie side by side ask for
as many as their elements fill; others for more, of which a part is of no use to them. It is
evaluated for one warp of a block in the middle, at the beginning of every loop inside of it; what
indices that come from data are, is not known, they count as zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tilewright.loops.affine import interval
from tilewright.loops.interpret import apply_scalar
from tilewright.loops.ir import (
    Accumulate,
    Apply,
    Cast,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Load,
    LoopKind,
    Node,
    Select,
    Space,
    Stmt,
    Store,
    Var,
    children,
    dtype_of,
    strides_of,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify_threads import WARP, has_threads, threads_of
from tilewright.schedule.cost import cost

SECTOR = 32  # bytes
DEFAULT_THREADS = 256  # of a block, where the kernel does not say

Array = np.ndarray[Any, Any]
Env = Mapping[str, Array]


@dataclass(frozen=True)
class Request:
    """One access of a warp to a buffer: its sectors, and those that its elements would fill."""

    buffer: str
    is_write: bool
    asked: int
    needed: int

    @property
    def share(self) -> float:
        """Of what is asked for, that which is of use to the warp."""
        return self.needed / max(self.asked, 1)


@dataclass(frozen=True)
class Traffic:
    """Of one run: the bytes that must move, the threads, and the most steps that one of them takes
    one after the other. `requests` are those of one warp."""

    bytes: float
    threads: int
    steps: int
    requests: tuple[Request, ...]

    @property
    def share(self) -> float:
        """Of all sectors that a warp asks for, those that are of use to it."""
        asked = sum(r.asked for r in self.requests)
        return sum(r.needed for r in self.requests) / asked if asked else 1.0


def traffic(kernel: Kernel) -> Traffic:
    """What a scheduled kernel asks of memory."""
    kind = LoopKind.BLOCK if has_threads(kernel) else LoopKind.PARALLEL
    loops: list[For] = []
    s = kernel.body
    while isinstance(s, For) and s.kind is kind:
        loops.append(s)
        s = s.body
    extents = [int(n.extent.value) for n in loops if isinstance(n.extent, Const)]
    count = prod(extents)
    position = np.full(WARP, count // 2)
    threads = count * threads_of(kernel)
    if kind is LoopKind.PARALLEL:
        threads, first = count, count // 2 // WARP * WARP
        position = np.minimum(first + np.arange(WARP), max(count - 1, 0))
    env: dict[str, Array] = {}
    for n, extent in zip(reversed(loops), reversed(extents), strict=True):
        env[n.axis] = position % extent
        position = position // extent
    requests = tuple(_requests(s, env, np.ones(WARP, np.bool_), 1))
    return Traffic(cost(kernel).bytes, threads, _steps(s, {}), requests)


def _steps(s: Node, ranges: dict[str, tuple[float, float]]) -> int:
    """The most iterations that one thread makes, one after the other."""
    match s:
        case For(axis=axis, extent=extent, body=body, kind=kind):
            most = interval(extent, ranges)[1]
            inner = _steps(body, {**ranges, axis: (0.0, most - 1)})
            alone = kind in (LoopKind.THREAD, LoopKind.VECTOR)
            return inner if alone else int(min(most, 1e18)) * inner
        case _ if isinstance(s, Stmt):
            return max((_steps(c, ranges) for c in children(s)), default=1)
    return 1


def _requests(s: Node, env: Env, active: Array, wide: int) -> Iterator[Request]:
    """The requests of a statement of which each active thread takes `wide` elements at a time."""
    match s:
        case For(axis=axis, body=body, kind=kind, extent=extent):
            lanes = np.arange(WARP) if kind is LoopKind.THREAD else np.zeros(WARP, np.int64)
            if kind is LoopKind.VECTOR and isinstance(extent, Const):
                wide = int(extent.value)
            yield from _requests(body, {**env, axis: lanes}, active, wide)
            return
        case If(condition=c, body=body):
            yield from _requests(c, env, active, wide)
            yield from _requests(body, env, active & _holds(c, env), wide)
            return
        case Select(condition=c, then=then, otherwise=otherwise):
            yield from _requests(c, env, active, wide)
            yield from _requests(then, env, active & _holds(c, env), wide)
            yield from _requests(otherwise, env, active & ~_holds(c, env, False), wide)
            return
        case Load() | Store() | Accumulate() if s.buffer.space is Space.GLOBAL and active.any():
            yield _request(s, env, active, wide)
    for below in children(s):
        yield from _requests(below, env, active, wide)


def _request(n: Load | Store | Accumulate, env: Env, active: Array, wide: int) -> Request:
    index = [_value(i, env) for i in n.index]
    at = sum((i * s for i, s in zip(index, strides_of(n.buffer), strict=True)), np.zeros(WARP))
    size = n.buffer.dtype.itemsize * wide
    first = np.unique(at[active].astype(np.int64)) * n.buffer.dtype.itemsize
    asked = np.unique(np.concatenate([first // SECTOR, (first + size - 1) // SECTOR]))
    needed = -(-first.size * size // SECTOR)
    return Request(n.buffer.name, not isinstance(n, Load), asked.size, needed)


def _holds(condition: Expr, env: Env, unknown: bool = True) -> Array:
    """Which threads go on; those that data decides do, or do not, as `unknown` says."""
    if _reads(condition):
        return np.full(WARP, unknown)
    return np.broadcast_to(_value(condition, env), WARP).astype(np.bool_)


def _reads(e: Expr) -> bool:
    return isinstance(e, Load) or any(_reads(c) for c in children(e) if isinstance(c, Expr))


def _value(e: Expr, env: Env) -> Array:
    match e:
        case Const(value=value, dtype=dtype):
            return np.full(WARP, value, dtype.compute.numpy)
        case Var(name=name):
            return env.get(name, np.zeros(WARP, np.int64))
        case Load(buffer=b):
            return np.zeros(WARP, b.dtype.compute.numpy)
        case Cast(dtype=dtype, arg=arg):
            return _value(arg, env).astype(dtype.compute.numpy)
        case Select(condition=c, then=then, otherwise=otherwise):
            return np.where(_value(c, env), _value(then, env), _value(otherwise, env))
        case Apply(op=ScalarOp.CHECK, args=(x, _)):
            return _value(x, env)
        case Apply(op=op, args=args):
            return np.asarray(apply_scalar(op, dtype_of(args[0]), [_value(a, env) for a in args]))
