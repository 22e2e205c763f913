"""Directives as text, as users write them: `Block('row0', 14, overlap=True)`.

Such text is read, never evaluated: a call of a directive in the table, with literals as arguments.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterable
from enum import Enum
from typing import Any, get_type_hints

from tilewright.errors import ScheduleError
from tilewright.loops.ir import LoopKind
from tilewright.schedule.attention_keys import AttentionKeys
from tilewright.schedule.attention_mma import AttentionMma
from tilewright.schedule.attention_tiles import AttentionTile
from tilewright.schedule.block_tiles import BlockTile
from tilewright.schedule.columns import Columns
from tilewright.schedule.cooperate import Cooperate
from tilewright.schedule.directives import (
    Bake,
    Bind,
    Block,
    Directive,
    Merge,
    Swap,
    Tensorize,
    Together,
)
from tilewright.schedule.elements import Elements
from tilewright.schedule.mma_tiles import MmaTile
from tilewright.schedule.partition import Partition
from tilewright.schedule.read_once import ReadOnce
from tilewright.schedule.round_factors import RoundFactors
from tilewright.schedule.task_blocks import TaskBlocks
from tilewright.schedule.thin_tiles import ThinTile
from tilewright.schedule.transposed import Transpose
from tilewright.schedule.vectors import Vectorize
from tilewright.schedule.wgmma_tiles import WgmmaTile

OF_CPUS: tuple[type, ...] = (Bake, Bind, Block, Merge, Partition, Swap, Tensorize, Together)
OF_GPUS: tuple[type, ...] = (
    *(AttentionKeys, AttentionMma, AttentionTile, BlockTile, Columns, Cooperate, Elements),
    *(MmaTile, ReadOnce, RoundFactors, TaskBlocks, ThinTile, Transpose, Vectorize, WgmmaTile),
)
DIRECTIVES: dict[str, type] = {d.__name__: d for d in (*OF_CPUS, *OF_GPUS)}
TASK_LOOPS = (LoopKind.SERIAL, LoopKind.UNROLLED, LoopKind.PARALLEL)

ENUM_SHOWN = re.compile(r"<(\w+\.\w+): [^>]*>")  # how Python shows a member

Request = str | Directive | Iterable["str | Directive"]


def read_schedule(request: Request) -> tuple[Directive, ...]:
    """The directives of a request: objects, texts of one or several, or a mixture in a list.

    ScheduleError for text that is no list of directives with literals as arguments.
    """
    if isinstance(request, str):
        return _parsed(request)
    if isinstance(request, Iterable):
        return tuple(d for one in request for d in read_schedule(one))
    if type(request) not in DIRECTIVES.values():
        raise ScheduleError(f"{request!r} is not a directive: those are {', '.join(DIRECTIVES)}")
    return (request,)


def check_for_cpu(directives: Iterable[Directive]) -> None:
    """ScheduleError if some directive makes what only a GPU can run."""
    for d in directives:
        if not isinstance(d, OF_CPUS):
            raise ScheduleError(f"{d}: this is for kernels on a GPU")
        if isinstance(d, Bind) and d.kind not in TASK_LOOPS:
            raise ScheduleError(f"{d}: {d.kind.value} loops are of a GPU")


def _parsed(text: str) -> tuple[Directive, ...]:
    shown = ENUM_SHOWN.sub(r"\1", text.strip())
    try:
        lines = ast.parse(shown).body
    except (SyntaxError, ValueError) as error:
        raise ScheduleError(f"{text!r} is not a list of directives: {error}") from None
    return tuple(_directive(item) for line in lines for item in _items(line))


def _items(line: ast.stmt) -> list[ast.expr]:
    """Expressions with commas between them, in brackets or not."""
    match line:
        case ast.Expr(value=ast.List(elts=items) | ast.Tuple(elts=items)):
            return items
        case ast.Expr(value=one):
            return [one]
    raise _unknown(line)


def _unknown(node: ast.AST) -> ScheduleError:
    names = ", ".join(DIRECTIVES)
    return ScheduleError(f"{ast.unparse(node)!r} is not a directive: those are {names}")


def _directive(node: ast.expr) -> Directive:
    match node:
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in DIRECTIVES:
            kind = DIRECTIVES[name]
            fields = [f.name for f in dataclasses.fields(kind)]
            named = {k.arg: _literal(k.value) for k in keywords}
            if len(args) > len(fields) or not set(named) <= set(fields[len(args) :]):
                raise ScheduleError(f"{ast.unparse(node)}: {_usage(kind)}")
            return _built(kind, dict(zip(fields, map(_literal, args), strict=False)) | named, node)
    raise _unknown(node)


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Attribute(value=ast.Name(), attr=attr):  # a member of an enumeration
            return attr
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ScheduleError(f"{ast.unparse(node)!r} is not a literal") from None


def _built(kind: type, values: dict[Any, Any], node: ast.expr) -> Directive:
    hints = get_type_hints(kind)
    try:
        made: Directive = kind(**{n: _typed(v, hints[n]) for n, v in values.items()})
    except (TypeError, ValueError):
        raise ScheduleError(f"{ast.unparse(node)}: {_usage(kind)}") from None
    return made


def _typed(value: Any, wanted: type) -> Any:
    """The value, if it has the type of the field; a member of an enumeration by name or value."""
    if issubclass(wanted, Enum):
        found = [m for m in wanted if value in (m.name, m.value)]
        if not found:
            raise ValueError(value)
        return found[0]
    if type(value) is not wanted:
        raise TypeError(value)
    return value


def _usage(kind: type) -> str:
    """How the directive is written."""
    hints = get_type_hints(kind)
    parts = []
    for f in dataclasses.fields(kind):
        default = "" if f.default is dataclasses.MISSING else f" = {f.default!r}"
        parts.append(f"{f.name}: {hints[f.name].__name__}{default}")
    return f"{kind.__name__} takes ({', '.join(parts)})"
