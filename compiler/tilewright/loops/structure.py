"""What a kernel is when its names are left out."""

from __future__ import annotations

from collections.abc import Hashable

from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Apply,
    Arrived,
    Block,
    Box,
    Buffer,
    Cast,
    Combine,
    Const,
    Fetch,
    For,
    Kernel,
    Load,
    Mma,
    Node,
    Settle,
    Stages,
    Store,
    Tile,
    Var,
    Wait,
    Wgmma,
    walk,
)


def structure(kernel: Kernel) -> tuple[Hashable, ...]:
    """Equal for two kernels exactly if they differ in nothing but names.

    Nodes stand in order of evaluation, each with what tells how many follow below it; axes and
    buffers are numbered as they appear.
    """
    numbers: dict[str, int] = {}
    params = tuple(_buffer(b, numbers) for b in kernel.params)
    outputs = tuple(sorted(numbers[name] for name in kernel.outputs))
    return (params, outputs, *(_token(n, numbers) for n in walk(kernel.body)))


def _buffer(b: Buffer, numbers: dict[str, int]) -> Hashable:
    number = numbers.setdefault(b.name, len(numbers))
    return number, b.dtype, b.shape, b.strides, b.space, b.values


def _token(n: Node, numbers: dict[str, int]) -> Hashable:
    kind = type(n).__name__
    match n:
        case Const(value=value, dtype=dtype):
            return kind, repr(value), dtype  # 1, 1.0 and True are equal, as are 0.0 and -0.0
        case Var(name=name):
            return kind, numbers.setdefault(name, len(numbers))
        case Apply(op=op, args=args):
            return kind, op, len(args)
        case Cast(dtype=dtype):
            return kind, dtype
        case Load(buffer=b) | Store(buffer=b) | Alloc(buffer=b):
            return kind, _buffer(b, numbers)
        case Accumulate(buffer=b, op=op):
            return kind, op, _buffer(b, numbers)
        case Combine(buffer=b, op=op, width=width):
            return kind, op, width, _buffer(b, numbers)
        case For(axis=axis, kind=how, baked=baked, together=together):
            return kind, numbers.setdefault(axis, len(numbers)), how, baked, together
        case Block(stmts=stmts):
            return kind, len(stmts)
        case Tile(acc=acc, rows=rows, columns=columns):
            return kind, _buffer(acc, numbers), numbers.get(rows), numbers.get(columns)
        case Wait(pending=pending):
            return kind, pending
        case Mma(sums=sums, depth_last=depth_last) | Wgmma(sums=sums, depth_last=depth_last):
            return kind, _buffer(sums, numbers), depth_last
        case Stages(stages=stages) | Arrived(stages=stages):
            return kind, stages
        case Fetch(stages=stages, boxes=boxes):
            return kind, stages, len(boxes)
        case Box(target=target, tensor=t):
            source = t.offset, t.extents, t.strides, t.box
            return kind, _buffer(target, numbers), _buffer(t.buffer, numbers), source
        case Settle(sums=sums, pending=pending):
            return kind, _buffer(sums, numbers), pending
    return kind
