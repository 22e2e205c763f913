"""Small questions about loop nests that passes share."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from tilewright.loops.affine import Linear, Range, interval, linear
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Buffer,
    Expr,
    For,
    Kernel,
    Load,
    Node,
    Select,
    Stmt,
    Store,
    children,
    index_const,
    strides_of,
    walk,
)

MAX_SCRATCH_BYTES = 2 << 20  # of one task, on the stack of whichever thread runs it


def axis_ranges(node: Node) -> dict[str, Range]:
    """The range of every loop axis below the node: the widest, where several loops share it."""
    ranges: dict[str, Range] = {}
    for n in walk(node):
        if isinstance(n, For):
            before = ranges.get(n.axis, (0.0, 0.0))[1]
            ranges[n.axis] = (0.0, max(interval(n.extent, ranges)[1] - 1, before))
    return ranges


def offset(buffer: Buffer, index: tuple[Expr, ...], ranges: Mapping[str, Range]) -> Linear:
    """The element offset of an access as a linear form."""
    total: Expr = index_const(0)
    for i, s, n in zip(index, strides_of(buffer), buffer.shape, strict=True):
        if n != 1:
            total = total + i * s
    return linear(total, ranges)


def accesses(node: Node) -> list[Load | Store | Accumulate]:
    """Every load, store and accumulate below the node."""
    return [n for n in walk(node) if isinstance(n, (Load, Store, Accumulate))]


def always_read(node: Node) -> list[Load]:
    """Loads below the node that happen whatever the elements are: those in no choice."""
    if isinstance(node, Load):
        return [node]
    below = (node.condition,) if isinstance(node, Select) else children(node)
    return [found for c in below for found in always_read(c)]


def find_loop(kernel: Kernel, axis: str) -> For | None:
    """The loop over `axis`, if there is one."""
    return next((n for n in walk(kernel.body) if isinstance(n, For) and n.axis == axis), None)


def outer_loops(body: Stmt) -> list[For]:
    """The perfectly nested loops a body starts with, outermost first."""
    found: list[For] = []
    while isinstance(body, For):
        found.append(body)
        body = body.body
    return found


def allocations(node: Node) -> list[Buffer]:
    """The local buffers below the node."""
    return [n.buffer for n in walk(node) if isinstance(n, Alloc)]


def scratch_bytes(node: Node) -> int:
    """Memory on a task's stack for all local buffers below the node."""
    return sum(b.dtype.itemsize * prod(b.shape) for b in allocations(node))


def main_load(node: Node) -> Load | None:
    """The only load from a buffer of more than one element, if there is just one."""
    found = [n for n in walk(node) if isinstance(n, Load) and prod(n.buffer.shape) > 1]
    return found[0] if len(found) == 1 else None
