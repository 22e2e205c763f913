"""An attention as it is defined, row by row: what schedules for blocks of threads start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tilewright.dtypes import DType
from tilewright.fusion.attention_limits import limits
from tilewright.fusion.attention_loops import Attention, Form
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Apply,
    Block,
    Buffer,
    Cast,
    Const,
    Expr,
    For,
    Load,
    LoopKind,
    Node,
    Select,
    Space,
    Stmt,
    Store,
    Var,
    dtype_of,
    index_const,
    rewrite,
    substitute,
    variables,
    walk,
)
from tilewright.loops.locate import MAX_SCRATCH_BYTES, main_load
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.tensor import Compute, Constant, NestOutput

MAX_SIZE = 256  # elements of a key or a value, so that a block's share fits its registers
KEYS = ("key0", "key1", "key2")  # the loops over the keys, one after the other
FLOATS = (DType.F32, DType.F16, DType.BF16)


def by_rows(halves: Mapping[str, DType] | None = None) -> Form:
    """Scores of one row, their softmax, and the sums of values.

    `halves` are the values that the model computes in a half type, by name: where products and
    weights are such, the weights are rounded before they are multiplied.
    """
    types = halves or {}
    return Form(_fits, lambda a, result: _loops(a, result, types), maps=True)


def _fits(a: Attention) -> bool:
    row, column, (key, keys), (depth, size) = a.row, a.column, a.keys, a.depth
    if min(a.shape) == 0 or keys == 0 or max(size, a.extent(column)) > MAX_SIZE:
        return False
    loads = [main_load(x) for x in (a.query, a.key, a.value)]
    if any(x is None or x.buffer.dtype not in FLOATS for x in loads):
        return False
    if 8 * keys > MAX_SCRATCH_BYTES:
        return False
    one_use = not {key, column} & variables(a.query) and not {row, column} & variables(a.key)
    return one_use and not {depth, row} & variables(a.value) and _is_known(a.weight, key)


def _is_known(weight: tuple[str, Expr], key: str) -> bool:
    """Whether the weights are the softmax itself, or zero where that is NaN or where something says
    so for a whole row: then they can be scaled when the sum of the row is known."""
    match _unrounded(weight[1]):
        case Load():
            return True
        case Select(condition=condition, then=zero, otherwise=Load() as share) if _is_zero(zero):
            if condition == Apply(ScalarOp.ISNAN, (share,)):
                return True
            names = {n.buffer.name for n in walk(condition) if isinstance(n, Load)}
            return key not in variables(condition) and weight[0] not in names
    return False


def _is_zero(e: Expr) -> bool:
    match e:
        case Const(value=value):
            return value == 0
        case Load(buffer=Constant() as b):
            return not b.value.any()
        case Load(buffer=Compute(reduction=None, body=body)) | Cast(arg=body):
            return _is_zero(body)
    return False


def _unrounded(e: Expr) -> Expr:
    """What is rounded to a half, e itself if it is not; with a zero as such."""
    match e:
        case Cast(dtype=DType.F32, arg=Cast(dtype=DType.F16 | DType.BF16, arg=arg)):
            return _unrounded(arg)
        case Select(then=zero) if _is_zero(zero):
            return replace(e, then=Const(0.0, dtype_of(zero)))
    return e


def _loops(a: Attention, result: NestOutput, halves: Mapping[str, DType]) -> Stmt:
    types = {halves.get(a.score[0]), halves.get(a.factor)}
    half = types.pop() if len(types) == 1 else None
    known = limits(a)
    count: Expr = index_const(a.keys[1]) if known is None else known[Var(a.row)]
    scores, top, total = _local("scores", a.keys[1]), _local("top"), _local("total")
    parts = Block(
        (
            Store(top, (), Const(float("-inf"), DType.F32)),
            _scores(a, count, scores, top),
            Store(total, (), Const(0.0, DType.F32)),
            _powers(count, scores, top, total),
            _sums(a, count, scores, total, result, half),
        )
    )
    body: Stmt = Alloc(scores, Alloc(top, Alloc(total, parts)))
    for axis in reversed([*a.batch, a.row]):
        body = For(axis, index_const(a.extent(axis)), body, LoopKind.PARALLEL)
    return body


def _scores(a: Attention, count: Expr, scores: Buffer, top: Buffer) -> Stmt:
    """Each score, as the model changes it, and the greatest one."""
    product, (depth, size) = _local("product"), a.depth
    at: dict[str, Expr] = {a.keys[0]: Var(KEYS[0])}
    step = Accumulate(product, (), ScalarOp.ADD, _factor(a.query, at) * _factor(a.key, at))
    score = _completed(a.score, Load(product, ()), at)
    place = (Var(KEYS[0]),)
    body = Block(
        (
            Store(product, (), Const(0.0, DType.F32)),
            For(depth, index_const(size), step),
            Store(scores, place, score),
            Accumulate(top, (), ScalarOp.MAX, Load(scores, place)),
        )
    )
    return For(KEYS[0], count, Alloc(product, body))


def _powers(count: Expr, scores: Buffer, top: Buffer, total: Buffer) -> Stmt:
    place = (Var(KEYS[1]),)
    power = Apply(ScalarOp.EXP, (Load(scores, place) - Load(top, ()),))
    steps = (
        Store(scores, place, power),
        Accumulate(total, (), ScalarOp.ADD, Load(scores, place)),
    )
    return For(KEYS[1], count, Block(steps))


def _sums(
    a: Attention,
    count: Expr,
    scores: Buffer,
    total: Buffer,
    result: NestOutput,
    half: DType | None,
) -> Stmt:
    acc = _local("sum")
    at: dict[str, Expr] = {a.keys[0]: Var(KEYS[2])}
    share = Load(scores, (Var(KEYS[2]),)) / Load(total, ())
    weight = _completed((a.weight[0], _unrounded(a.weight[1])), share, at)
    if half is not None:
        weight = Cast(DType.F32, Cast(half, weight))
    step = Accumulate(acc, (), ScalarOp.ADD, weight * _factor(a.value, at))
    body = Block(
        (
            Store(acc, (), Const(0.0, DType.F32)),
            For(KEYS[2], count, step),
            Store(result, tuple(Var(x) for x in a.axes), Load(acc, ())),
        )
    )
    return For(a.column, index_const(a.extent(a.column)), Alloc(acc, body))


def _factor(operand: Expr, at: dict[str, Expr]) -> Expr:
    """An operand as float32."""
    moved: Expr = substitute(operand, at)  # type: ignore[assignment]
    return moved if dtype_of(moved) is DType.F32 else Cast(DType.F32, moved)


def _completed(change: tuple[str, Expr], value: Expr, at: dict[str, Expr]) -> Expr:
    """What the model makes of a value."""
    name, e = change

    def rule(n: Node) -> Node | None:
        return value if isinstance(n, Load) and n.buffer.name == name else None

    return rewrite(substitute(e, at), rule)  # type: ignore[arg-type,return-value]


def _local(name: str, *shape: int) -> Buffer:
    return Buffer(name, DType.F32, tuple(shape), space=Space.LOCAL)
