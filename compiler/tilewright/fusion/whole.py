"""Sums that were stated in a float type because that holds them exactly, as the int32 numbers that
they are."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from tilewright.dtypes import DType
from tilewright.loops.ir import Apply, Cast, Expr, Load, Node, rewrite
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.tensor import Compute, Constant, Tensor, compute

LARGEST = 1 << 30  # of a bias that leaves the sum of `BOUNDED` products within 32 bits
BOUNDED = 1 << 14  # products of bytes, of at most 2^16 each


@dataclass
class WholeNumbers:
    """Tensors that are known as whole numbers, by the names of those that state them as floats.

    Other tensors read them from here, as int32 where they ask for that or for float32, which
    rounds once either way.
    """

    known: dict[str, Compute] = field(default_factory=dict)
    bounded: set[str] = field(default_factory=set)

    def taken(self, t: Tensor, made: Compute | None) -> Tensor:
        """t by way of `made`, its numbers as int32; t itself if there are none."""
        if not isinstance(t, Compute):
            return t
        if made is None:
            made = self._with_bias(t)
        elif t.reduction is not None and _products(t) <= BOUNDED:
            self.bounded.add(t.name)
        if made is None:
            return t
        self.known[t.name] = made
        return _as_float(t.name, made, t)

    def read(self, t: Tensor) -> Tensor:
        """t reading the whole numbers instead of their floats."""

        def rule(n: Node) -> Node | None:
            match n:
                case Cast(dtype=kind, arg=Load(buffer=b, index=index)) if b.name in self.known:
                    exact = Load(self.known[b.name], index)
                    if kind in (DType.I32, DType.F32):
                        return exact if kind is DType.I32 else Cast(kind, exact)
            return None

        if not isinstance(t, Compute):
            return t
        body: Expr = rewrite(t.body, rule)  # type: ignore[assignment]
        return t if body is t.body else replace(t, body=body)

    def _with_bias(self, t: Compute) -> Compute | None:
        """A sum plus a constant of int32 numbers, where that stays within 32 bits."""
        match t.body:
            case Apply(
                op=ScalarOp.ADD,
                args=(Load(buffer=b) as total, Cast(arg=Load(buffer=Constant() as bias) as added)),
            ) if t.reduction is None and b.name in self.bounded and bias.dtype is DType.I32:
                pass
            case _:
                return None
        if np.abs(bias.value.astype(np.int64)).max(initial=0) > LARGEST:
            return None
        body = Load(self.known[b.name], total.index) + added
        return replace(t, name=f"{t.name}_whole", dtype=DType.I32, body=body)


def _products(t: Compute) -> int:
    assert t.reduction is not None
    total = 1
    for _, n in t.reduction.axes:
        total *= n
    return total


def _as_float(name: str, made: Compute, old: Tensor) -> Compute:
    """Whole numbers in the type in which the sum was stated, under its name."""
    cast = compute(made.shape, lambda *i: Cast(old.dtype, made[i]))
    last = made.channels_last
    return replace(cast, name=name, channels_last=last, op=made.op, node=made.node)
