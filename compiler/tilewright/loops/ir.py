"""The loop IR: the whole grammar on one page.

    expr   = Const | Var | Load(buffer, index) | Apply(op, args) | Cast(dtype, arg) | Select(cond,
    then, otherwise)
    stmt   = Store | Accumulate | For | If | Block | Alloc | Tile | Barrier | Combine
           | Commit | Wait | Mma | Stages | Fetch | Box | Arrived | Wgmma | Settle
    kernel = Kernel(name, params, body)

Nodes are frozen: a pass returns a new tree, or the *same* tree when nothing changed. Indices are
int64
expressions, one to a dimension of the buffer. Select evaluates only the chosen side, so it may
guard a load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeVar, Union

from tilewright.dtypes import DType
from tilewright.loops.buffers import Buffer as Buffer
from tilewright.loops.buffers import Space as Space
from tilewright.loops.buffers import TensorMap as TensorMap
from tilewright.loops.buffers import strides_of as strides_of
from tilewright.loops.scalars import CHECKS, ScalarOp

Scalar = float | int | bool
Operand = Union["Expr", float, int, bool]


class LoopKind(Enum):
    """How the iterations of a loop run: one after the other (written out or not), as tasks, as
    blocks of threads, as the threads of a block, as one access to adjacent elements, or as one
    that goes on while the thread does other things."""

    SERIAL = "serial"
    UNROLLED = "unrolled"
    PARALLEL = "parallel"
    BLOCK = "block"
    THREAD = "thread"
    VECTOR = "vector"
    ASYNC = "async"


class Arithmetic:
    """Python's operators on expressions; a plain number takes the type of the other side."""

    __slots__ = ()

    def __add__(self, other: Operand) -> Apply:
        return apply(ScalarOp.ADD, self, other)

    def __radd__(self, other: Operand) -> Apply:
        return apply(ScalarOp.ADD, other, self)

    def __sub__(self, other: Operand) -> Apply:
        return apply(ScalarOp.SUB, self, other)

    def __rsub__(self, other: Operand) -> Apply:
        return apply(ScalarOp.SUB, other, self)

    def __mul__(self, other: Operand) -> Apply:
        return apply(ScalarOp.MUL, self, other)

    def __rmul__(self, other: Operand) -> Apply:
        return apply(ScalarOp.MUL, other, self)

    def __truediv__(self, other: Operand) -> Apply:
        return apply(ScalarOp.DIV, self, other)

    def __rtruediv__(self, other: Operand) -> Apply:
        return apply(ScalarOp.DIV, other, self)

    def __floordiv__(self, other: Operand) -> Apply:
        return apply(ScalarOp.FLOORDIV, self, other)

    def __mod__(self, other: Operand) -> Apply:
        return apply(ScalarOp.MOD, self, other)

    def __neg__(self) -> Apply:
        return apply(ScalarOp.NEG, self)

    def __lt__(self, other: Operand) -> Apply:
        return apply(ScalarOp.LT, self, other)

    def __le__(self, other: Operand) -> Apply:
        return apply(ScalarOp.LE, self, other)

    def __gt__(self, other: Operand) -> Apply:
        return apply(ScalarOp.GT, self, other)

    def __ge__(self, other: Operand) -> Apply:
        return apply(ScalarOp.GE, self, other)

    def __and__(self, other: Operand) -> Apply:
        return apply(ScalarOp.AND, self, other)

    def __or__(self, other: Operand) -> Apply:
        return apply(ScalarOp.OR, self, other)

    def __invert__(self) -> Apply:
        return apply(ScalarOp.NOT, self)

    def eq(self, other: Operand) -> Apply:
        return apply(ScalarOp.EQ, self, other)

    def ne(self, other: Operand) -> Apply:
        return apply(ScalarOp.NE, self, other)


@dataclass(frozen=True, slots=True)
class Const(Arithmetic):
    value: Scalar
    dtype: DType


@dataclass(frozen=True, slots=True)
class Var(Arithmetic):
    name: str


@dataclass(frozen=True, slots=True)
class Load(Arithmetic):
    buffer: Buffer
    index: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Apply(Arithmetic):
    op: ScalarOp
    args: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Cast(Arithmetic):
    dtype: DType
    arg: Expr


@dataclass(frozen=True, slots=True)
class Select(Arithmetic):
    condition: Expr
    then: Expr
    otherwise: Expr


Expr = Const | Var | Load | Apply | Cast | Select


@dataclass(frozen=True, slots=True)
class Store:
    buffer: Buffer
    index: tuple[Expr, ...]
    value: Expr


@dataclass(frozen=True, slots=True)
class Accumulate:
    """buffer[index] = op(buffer[index], value), op a monoid."""

    buffer: Buffer
    index: tuple[Expr, ...]
    op: ScalarOp
    value: Expr


@dataclass(frozen=True, slots=True)
class For:
    """Runs body for axis = 0 .. extent-1. `extent` may depend on outer axes.

    `together` of a parallel loop: how many of its iterations come before the parallel loop around
    it advances, 0 for all. An order for caches; the iterations are independent anyway.
    """

    axis: str
    extent: Expr
    body: Stmt
    kind: LoopKind = LoopKind.SERIAL
    baked: bool = False  # the extent is printed as a literal, not lifted to a parameter
    together: int = 0


@dataclass(frozen=True, slots=True)
class If:
    condition: Expr
    body: Stmt


@dataclass(frozen=True, slots=True)
class Block:
    stmts: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Alloc:
    """A local buffer, uninitialised, for the time of body."""

    buffer: Buffer
    body: Stmt


@dataclass(frozen=True, slots=True)
class Tile:
    """Fills `acc` ([rows, columns], local) with a sum of products on register tiles.

    The meaning is `meaning`: plain loops. `rows` and `columns` are the axes of the tile, `depth`
    those that are
    summed over, outermost first; the last one is the inner loop of the micro-kernel.
    """

    acc: Buffer
    rows: str
    columns: str
    depth: tuple[str, ...]
    meaning: Stmt


@dataclass(frozen=True, slots=True)
class Barrier:
    """Every thread of the block has done what stands before when any goes on."""


@dataclass(frozen=True, slots=True)
class Combine:
    """Each of `width` neighbouring threads gets op over what all of them hold in `buffer`, a
    buffer of one element to a thread."""

    buffer: Buffer
    op: ScalarOp
    width: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Each thread's asynchronous copies since the last one are a group."""


@dataclass(frozen=True, slots=True)
class Wait:
    """All but the last `pending` groups of this thread's copies are done."""

    pending: int


@dataclass(frozen=True, slots=True)
class Mma:
    """Adds products of two tiles to a warp's sums, on tensor cores.

    `sums` is [thread, i, j, h, v]: 16 rows to an i, 8 columns to a j, a thread's two rows and two
    columns of them. `left` and `right` are the tiles' first elements, `depth_last` says of each
    whether its elements of one product lie side by side. Both are in shared memory, or `left` is
    what another product summed, in the registers of the warp: then it is rounded to the type of
    `right`, and each four lanes that share its rows read each other's elements. The meaning is
    `meaning`: plain loops.
    """

    sums: Buffer
    left: Load
    right: Load
    depth_last: tuple[bool, bool]
    meaning: Stmt


@dataclass(frozen=True, slots=True)
class Stages:
    """Each of `stages` places in shared memory has a barrier, at which copies to it arrive."""

    stages: int


@dataclass(frozen=True, slots=True)
class Box:
    """Copies a box of a tensor, beginning at `at`, to `target` in shared memory; zeros beyond the
    tensor. The meaning is `meaning`: plain loops."""

    target: Buffer
    place: tuple[Expr, ...]
    tensor: TensorMap
    at: tuple[Expr, ...]
    meaning: Stmt


@dataclass(frozen=True, slots=True)
class Fetch:
    """One thread starts the copies that fill stage `step` % `stages` for the `step`-th step."""

    step: Expr
    stages: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Arrived:
    """What was fetched for the `step`-th step is there."""

    step: Expr
    stages: int


@dataclass(frozen=True, slots=True)
class Wgmma:
    """Starts adding products of two tiles in shared memory to the sums of warpgroups: as Mma, of
    `depth` elements of each line, while the threads go on."""

    sums: Buffer
    left: Load
    right: Load
    depth_last: tuple[bool, bool]
    depth: int
    meaning: Stmt


@dataclass(frozen=True, slots=True)
class Settle:
    """All but the last `pending` Wgmma of each warpgroup are done."""

    sums: Buffer
    pending: int


Ahead = Stages | Fetch | Box | Arrived | Wgmma | Settle  # of hardware that works by itself
Together = Barrier | Combine | Commit | Wait | Mma | Ahead  # of the threads of a block or a warp
Stmt = Store | Accumulate | For | If | Block | Alloc | Tile | Together


@dataclass(frozen=True)
class Kernel:
    """One loop nest. `params` are its global buffers, inputs first; `checks` name what a CHECK or
    DIV may report."""

    name: str
    params: tuple[Buffer, ...]
    body: Stmt
    outputs: frozenset[str] = field(default_factory=frozenset)
    schedule: tuple[object, ...] = ()


Node = Expr | Stmt
ANY = (
    *(Const, Var, Load, Apply, Cast, Select),
    *(Store, Accumulate, For, If, Block, Alloc, Tile, Barrier, Combine, Commit, Wait, Mma),
    *(Stages, Fetch, Box, Arrived, Wgmma, Settle),
)
N = TypeVar("N", bound=Node)


def dtype_of(e: Expr) -> DType:
    """The element type of an expression."""
    match e:
        case Const(dtype=d) | Cast(dtype=d):
            return d
        case Var():
            return DType.I64
        case Load(buffer=b):
            return b.dtype
        case Apply(op=op, args=args):
            return DType.BOOL if op.rule == "bool" else dtype_of(args[0])
        case Select(then=t):
            return dtype_of(t)


def apply(op: ScalarOp, *args: object) -> Apply:
    """op(args), with plain numbers given the type of the expression beside them."""
    typed = next(a for a in args if isinstance(a, (Const, Var, Load, Apply, Cast, Select)))
    dtype = dtype_of(typed)
    return Apply(op, tuple(as_expr(a, dtype) for a in args))


def as_expr(value: object, dtype: DType) -> Expr:
    """`value` as an expression: itself, or a constant of the given type."""
    if isinstance(value, (Const, Var, Load, Apply, Cast, Select)):
        return value
    if not isinstance(value, (bool, int, float)):
        raise TypeError(f"{value!r} is not a scalar expression")
    if dtype is DType.BOOL:
        return Const(bool(value), dtype)
    return Const(float(value) if dtype.is_float else int(value), dtype)


def index_const(value: int) -> Const:
    """An int64 constant."""
    return Const(int(value), DType.I64)


def children(node: Node) -> tuple[Node, ...]:
    """The nodes directly below, in order of evaluation."""
    found: list[Node] = []
    for name in _CHILD_FIELDS[type(node)]:
        below = getattr(node, name)
        found += below if isinstance(below, tuple) else (below,)
    return tuple(found)


def walk(node: Node) -> Iterator[Node]:
    """The node and all below it, outermost first."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        below = children(node)
        if below:
            waiting.extend(reversed(below))


def rewrite(node: Node, rule: Callable[[Node], Node | None]) -> Node:
    """Bottom-up: rebuild what is below, then offer the node to `rule`; None keeps it. Shared nodes
    stay shared."""
    memo: dict[int, Node] = {}
    kept: list[Node] = []  # ids stay valid while the nodes live

    def visit(n: Node) -> Node:
        done = memo.get(id(n))
        if done is None:
            rebuilt = map_children(n, visit)
            changed = rule(rebuilt)
            done = memo[id(n)] = rebuilt if changed is None else changed
            kept.append(n)
        return done

    return visit(node)


def map_children(node: Node, f: Callable[[Node], Node]) -> Node:
    """The node with f applied to each child; the same node if nothing changed."""
    changes: dict[str, object] = {}
    for name in _CHILD_FIELDS[type(node)]:
        old = getattr(node, name)
        if isinstance(old, tuple):
            new = tuple(f(c) for c in old)
            if any(a is not b for a, b in zip(new, old, strict=True)):
                changes[name] = new
        else:
            child = f(old)
            if child is not old:
                changes[name] = child
    return replace(node, **changes) if changes else node  # type: ignore[arg-type]


_CHILD_FIELDS: dict[type, tuple[str, ...]] = {
    **dict.fromkeys((Const, Var, Barrier, Combine, Commit, Wait, Stages, Settle), ()),
    Load: ("index",),
    Apply: ("args",),
    Cast: ("arg",),
    Select: ("condition", "then", "otherwise"),
    Store: ("index", "value"),
    Accumulate: ("index", "value"),
    For: ("extent", "body"),
    If: ("condition", "body"),
    Block: ("stmts",),
    Alloc: ("body",),
    Tile: ("meaning",),
    **dict.fromkeys((Mma, Wgmma), ("left", "right", "meaning")),
    Fetch: ("step", "boxes"),
    Box: ("place", "at", "meaning"),
    Arrived: ("step",),
}


def substitute(node: Node, env: dict[str, Expr]) -> Node:
    """The node with axes replaced by expressions."""
    return rewrite(node, lambda n: env.get(n.name) if isinstance(n, Var) else None)


def variables(node: Node) -> frozenset[str]:
    """The names of all axes read in the node."""
    return frozenset(n.name for n in walk(node) if isinstance(n, Var))


def makes_checks(e: Expr) -> bool:
    """Whether evaluating the expression may report bad data."""
    return any(isinstance(n, Apply) and n.op in CHECKS and dtype_of(n).is_integer for n in walk(e))
