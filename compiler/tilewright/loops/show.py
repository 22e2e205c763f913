"""Loop nests as text for people."""

from __future__ import annotations

from typing import assert_never

from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Apply,
    Arrived,
    Barrier,
    Block,
    Box,
    Buffer,
    Cast,
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
    Select,
    Settle,
    Stages,
    Stmt,
    Store,
    Tile,
    Var,
    Wait,
    Wgmma,
    strides_of,
)
from tilewright.loops.scalars import ScalarOp

SYMBOLS = {
    ScalarOp.ADD: "+",
    ScalarOp.SUB: "-",
    ScalarOp.MUL: "*",
    ScalarOp.DIV: "/",
    ScalarOp.FLOORDIV: "//",
    ScalarOp.MOD: "%",
    ScalarOp.LT: "<",
    ScalarOp.LE: "<=",
    ScalarOp.GT: ">",
    ScalarOp.GE: ">=",
    ScalarOp.EQ: "==",
    ScalarOp.NE: "!=",
    ScalarOp.AND: "and",
    ScalarOp.OR: "or",
}


def show(kernel: Kernel) -> str:
    """The kernel as indented text, its buffers first."""
    head = [f"{'out' if b.name in kernel.outputs else 'in ':3} {_buffer(b)}" for b in kernel.params]
    return "\n".join([*head, *_statement(kernel.body)])


def _buffer(b: Buffer) -> str:
    strides = "" if b.strides is None else f" strides {strides_of(b)}"
    return f"{b.name}: {b.dtype.name.lower()}[{', '.join(map(str, b.shape))}]{strides}"


def _statement(s: Stmt) -> list[str]:
    match s:
        case For(axis=axis, extent=extent, body=body, kind=kind):
            word = "for" if kind is LoopKind.SERIAL else kind.value
            order = f", {s.together} together" if s.together else ""
            return [f"{word} {axis} in {show_expr(extent)}{order}:", *_indent(_statement(body))]
        case If(condition=c, body=body):
            return [f"if {show_expr(c)}:", *_indent(_statement(body))]
        case Block(stmts=stmts):
            return [line for t in stmts for line in _statement(t)]
        case Alloc(buffer=b, body=body):
            return [f"{b.space.value} {_buffer(b)}", *_statement(body)]
        case Store(buffer=b, index=index, value=value):
            return [f"{b.name}{_at(index)} = {show_expr(value)}"]
        case Accumulate(buffer=b, index=index, op=op, value=value):
            return [f"{b.name}{_at(index)} {op.name.lower()}= {show_expr(value)}"]
        case Tile(acc=acc, rows=rows, columns=columns, depth=depth, meaning=meaning):
            axes = " ".join(filter(None, (rows, columns)))
            return [
                f"tile {acc.name} over {axes}, summing {' '.join(depth)}:",
                *_indent(_statement(meaning)),
            ]
        case Barrier():
            return ["barrier"]
        case Combine(buffer=b, op=op, width=width):
            return [f"combine {b.name} by {op.name.lower()} over {width} threads"]
        case Commit():
            return ["commit copies"]
        case Wait(pending=pending):
            return [f"wait for copies, {pending} groups aside"]
        case Mma(sums=sums, meaning=meaning):
            return [f"mma {sums.name}:", *_indent(_statement(meaning))]
        case Stages(stages=stages):
            return [f"barriers of {stages} stages"]
        case Fetch(step=step, stages=stages, boxes=boxes):
            inner = [line for box in boxes for line in _statement(box)]
            return [f"fetch {show_expr(step)} of {stages} stages:", *_indent(inner)]
        case Box(target=b, at=at, tensor=tensor, meaning=meaning):
            head = f"box {tensor.buffer.name} at{_at(at)} to {b.name}:"
            return [head, *_indent(_statement(meaning))]
        case Arrived(step=step, stages=stages):
            return [f"wait for {show_expr(step)} of {stages} stages"]
        case Wgmma(sums=sums, meaning=meaning):
            return [f"wgmma {sums.name}:", *_indent(_statement(meaning))]
        case Settle(sums=sums, pending=pending):
            return [f"wait for {sums.name}, {pending} products aside"]
        case _:
            assert_never(s)


def _at(index: tuple[Expr, ...]) -> str:
    return f"[{', '.join(map(show_expr, index))}]"


def show_expr(e: Expr) -> str:
    """An expression as text."""
    match e:
        case Const(value=value):
            return f"{value:g}" if isinstance(value, float) else str(value)
        case Var(name=name):
            return name
        case Load(buffer=b, index=index):
            return f"{b.name}{_at(index)}"
        case Cast(dtype=dtype, arg=arg):
            return f"{dtype.name.lower()}({show_expr(arg)})"
        case Select(condition=c, then=then, otherwise=otherwise):
            return f"({show_expr(then)} if {show_expr(c)} else {show_expr(otherwise)})"
        case Apply(op=op, args=args) if op in SYMBOLS:
            return f"({show_expr(args[0])} {SYMBOLS[op]} {show_expr(args[1])})"
        case Apply(op=op, args=args):
            return f"{op.name.lower()}({', '.join(map(show_expr, args))})"
        case _:
            assert_never(e)


def _indent(lines: list[str]) -> list[str]:
    return ["    " + line for line in lines]
