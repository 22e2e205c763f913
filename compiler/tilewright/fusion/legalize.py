"""Half-precision values, computed on and kept as float32 between kernels.

float16 and bfloat16 appear where the model shows them: at its inputs, constants and outputs, and
in casts, which
round. In between, results keep the precision they were computed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tilewright.dtypes import DType
from tilewright.fusion.inline import topological
from tilewright.loops.ir import Cast, Const, Expr, Load, Node, dtype_of, map_children
from tilewright.ops.tensor import Compute, Tensor, compute


def legalize(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Equal outputs, in which no Compute but those of half outputs is stored in a half type."""
    order = topological(outputs)
    if not any(is_half(t.dtype) for t in order):
        return list(outputs)
    done: dict[str, Tensor] = {}
    for t in order:
        done[t.name] = _widen(t, done) if isinstance(t, Compute) else t
    return [_narrow(t, done[t.name]) for t in outputs]


def is_half(dtype: DType) -> bool:
    return dtype.compute is not dtype


def _widen(t: Compute, done: dict[str, Tensor]) -> Compute:
    memo: dict[int, Node] = {}
    kept: list[Node] = []

    def visit(n: Node) -> Node:
        if id(n) not in memo:
            memo[id(n)] = _wide(map_children(n, visit), done)
            kept.append(n)
        return memo[id(n)]

    body = visit(t.body)
    return replace(t, body=body, dtype=dtype_of(body))  # type: ignore[arg-type]


def _wide(n: Node, done: dict[str, Tensor]) -> Node:
    match n:
        case Load(buffer=b, index=index):
            source = done.get(b.name, b)
            load = Load(source, index)
            return Cast(DType.F32, load) if is_half(source.dtype) else load
        case Const(value=value, dtype=dtype) if is_half(dtype):
            return Const(value, DType.F32)
        case Cast(dtype=dtype, arg=arg) if is_half(dtype):
            return Cast(DType.F32, Cast(dtype, arg))
        case Cast(dtype=DType.F32, arg=arg) if dtype_of(arg) is DType.F32:
            return arg
    return n


def _narrow(old: Tensor, new: Tensor) -> Tensor:
    """The output in the type the model promises."""
    if new.dtype is old.dtype:
        return new

    def element(*i: Expr) -> Expr:
        return Cast(old.dtype, new[i])

    return replace(compute(old.shape, element), op="Cast")
