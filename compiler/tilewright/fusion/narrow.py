"""Halves between kernels: what a model computes in float16 or bfloat16 is stored so.

Kernels compute in float32. What one kernel hands to another is rounded; what a kernel keeps to
itself is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tilewright.dtypes import DType
from tilewright.fusion.inline import topological
from tilewright.fusion.legalize import is_half
from tilewright.fusion.lower import Lowered
from tilewright.loops.ir import (
    Accumulate,
    Buffer,
    Cast,
    Expr,
    Kernel,
    Load,
    Node,
    Store,
    dtype_of,
    rewrite,
    walk,
)
from tilewright.ops.tensor import Compute, Tensor, sources


def computed_halves(outputs: Sequence[Tensor]) -> dict[str, DType]:
    """The half types of all values that the model computes, by name."""
    computed = (t for t in topological(outputs) if isinstance(t, Compute))
    return {t.name: t.dtype for t in computed if is_half(t.dtype)}


def half_values(outputs: Sequence[Tensor]) -> dict[str, DType]:
    """The half types of what nodes hand to each other, by name. What a node has for itself, such
    as the sums of a norm, is none of it."""
    found: dict[str, DType] = {}
    for t in topological(outputs):
        if isinstance(t, Compute):
            for s in sources(t):
                if isinstance(s, Compute) and is_half(s.dtype) and s.node != t.node:
                    found[s.name] = s.dtype
    return found


def narrowed(lowered: Sequence[Lowered], halves: Mapping[str, DType]) -> list[Lowered]:
    """The kernels with those values stored as halves, as far as they are not summed in place."""
    summed = {name for n in lowered for name in _summed(n)}
    types = {name: d for name, d in halves.items() if name not in summed}
    return [_narrow(n, types) for n in lowered]


def _summed(n: Lowered) -> set[str]:
    names = {b.name: t.name for b, t in zip(n.kernel.params, n.tensors, strict=True)}
    targets = (s.buffer.name for s in walk(n.kernel.body) if isinstance(s, Accumulate))
    return {names[b] for b in targets if b in names}


def _narrow(n: Lowered, types: Mapping[str, DType]) -> Lowered:
    changed = {
        b.name: replace(b, dtype=types[t.name])
        for b, t in zip(n.kernel.params, n.tensors, strict=True)
        if t.name in types and b.dtype is DType.F32
    }
    if not changed:
        return n
    params = tuple(changed.get(b.name, b) for b in n.kernel.params)
    tensors = tuple(
        replace(t, dtype=b.dtype) if b.name in changed else t
        for b, t in zip(params, n.tensors, strict=True)
    )
    return replace(n, kernel=_stored(n.kernel, params, changed), tensors=tensors)


def _stored(kernel: Kernel, params: tuple[Buffer, ...], changed: Mapping[str, Buffer]) -> Kernel:
    def rule(n: Node) -> Node | None:
        match n:
            case Load(buffer=b, index=index) if b.name in changed:
                return Cast(DType.F32, Load(changed[b.name], index))
            case Store(buffer=b, index=index, value=value) if b.name in changed:
                return Store(changed[b.name], index, _rounded(value, changed[b.name].dtype))
        return None

    body = rewrite(kernel.body, rule)
    return replace(kernel, params=params, body=body)  # type: ignore[arg-type]


def _rounded(value: Expr, half: DType) -> Expr:
    """The value as a half: itself if it was one."""
    match value:
        case Cast(dtype=DType.F32, arg=arg) if dtype_of(arg) is half:
            return arg
    return Cast(half, value)
