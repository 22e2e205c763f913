"""Half-precision values, computed on and kept as float32 between kernels.

Operators that compute hand float32 to each other, as ONNX Runtime has it on processors without half
arithmetic. float16 and bfloat16 appear where a value is no more than a value: at the inputs,
constants and outputs of the model, in what only moves (Concat, Transpose), and between two casts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tilewright.dtypes import DType
from tilewright.fusion.inline import topological
from tilewright.loops.ir import (
    Cast,
    Const,
    Expr,
    Load,
    Node,
    Select,
    dtype_of,
    map_children,
    walk,
)
from tilewright.ops.tensor import Compute, Tensor, compute


def legalize(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Equal outputs, in which no Compute but those of half outputs is stored in a half type."""
    order = topological(outputs)
    if not any(is_half(t.dtype) for t in order):
        return list(outputs)
    widening = _Widening(_read_by_casts(order))
    for t in order:
        widening.add(t)
    return [_narrow(t, widening.done[t.name]) for t in outputs]


def is_half(dtype: DType) -> bool:
    return dtype.compute is not dtype


def _read_by_casts(order: Sequence[Tensor]) -> frozenset[str]:
    """What a Cast of the model reads: rounded if another Cast of it made it a half."""
    casts = (t.body for t in order if isinstance(t, Compute) and t.op == "Cast")
    return frozenset(n.buffer.name for body in casts for n in walk(body) if isinstance(n, Load))


@dataclass
class _Widening:
    """The tensors in float32, and which of them hold nothing that a half could not."""

    cast_again: frozenset[str]
    done: dict[str, Tensor] = field(default_factory=dict)
    rounded: set[str] = field(default_factory=set)

    def add(self, t: Tensor) -> None:
        if not isinstance(t, Compute):
            self.done[t.name] = t
            self.rounded.add(t.name)
            return
        body: Expr = self._wide(t.body, {}, [])  # type: ignore[assignment]
        if is_half(t.dtype) and (self._moves(t) or self._is_kept_cast(t)):
            self.rounded.add(t.name)
            if not self._is_rounded(t.body):
                body = _rounded(body, t.dtype)
        self.done[t.name] = replace(t, body=body, dtype=dtype_of(body))

    def _is_kept_cast(self, t: Compute) -> bool:
        return t.op == "Cast" and t.name in self.cast_again

    def _moves(self, t: Compute) -> bool:
        """Whether the elements are elements of other tensors, or constants."""
        return t.reduction is None and _only_chooses(t.body)

    def _is_rounded(self, body: Expr) -> bool:
        loads = (n for n in walk(body) if isinstance(n, Load) and is_half(n.buffer.dtype))
        return _only_chooses(body) and all(n.buffer.name in self.rounded for n in loads)

    def _wide(self, n: Node, memo: dict[int, Node], kept: list[Node]) -> Node:
        """The node in float32; `kept` keeps the ids in the memo alive."""
        if id(n) not in memo:
            memo[id(n)] = self._rewritten(n, memo, kept)
            kept.append(n)
        return memo[id(n)]

    def _rewritten(self, n: Node, memo: dict[int, Node], kept: list[Node]) -> Node:
        match n:
            case Cast(dtype=DType.F32, arg=Cast(dtype=half, arg=arg)) if is_half(half):
                return _rounded(self._wide(arg, memo, kept), half)  # type: ignore[arg-type]
        inner = map_children(n, lambda child: self._wide(child, memo, kept))
        match inner:
            case Load(buffer=b, index=index):
                source = self.done.get(b.name, b)
                load = Load(source, index)
                return Cast(DType.F32, load) if is_half(source.dtype) else load
            case Const(value=value, dtype=dtype) if is_half(dtype):
                return Const(value, DType.F32)
            case Cast(dtype=dtype, arg=arg) if is_half(dtype) and dtype_of(arg) is DType.F64:
                return _rounded(arg, dtype)  # from float64 at once: float32 would round twice
            case Cast(dtype=dtype, arg=arg) if is_half(dtype) or dtype is DType.F32:
                return arg if dtype_of(arg) is DType.F32 else Cast(DType.F32, arg)
        return inner


def _only_chooses(e: Expr) -> bool:
    match e:
        case Load() | Const():
            return True
        case Select(then=then, otherwise=otherwise):
            return _only_chooses(then) and _only_chooses(otherwise)
    return False


def _rounded(e: Expr, dtype: DType) -> Expr:
    return Cast(DType.F32, Cast(dtype, e))


def _narrow(old: Tensor, new: Tensor) -> Tensor:
    """The output in the type the model promises."""
    if new.dtype is old.dtype:
        return new

    def element(*i: Expr) -> Expr:
        return Cast(old.dtype, new[i])

    return replace(compute(old.shape, element), op="Cast")
