"""Results computed with dimensions taken apart: channels group by group, positions phase by
phase.

They lie in memory as if they were whole. The maps after them are taken apart in the same way, so
that they read the results at their own places, and complete them where they are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tilewright.fusion.inline import channels_last_strides, reads_in_place
from tilewright.loops.ir import Apply, Const, Expr, Load, Node, Var, rewrite, substitute
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.tensor import Compute, Tensor, compute, sources


@dataclass(frozen=True)
class Split:
    """Every dimension as (outer, inner) with `factors` inner elements; all outer ones come first,
    then the inner ones of dimensions whose factor is more than one."""

    factors: tuple[int, ...]

    @property
    def apart(self) -> list[int]:
        """The dimensions that are taken apart."""
        return [k for k, f in enumerate(self.factors) if f > 1]

    def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
        """The extents of what has the shape `whole`."""
        outer = [n // f for n, f in zip(whole, self.factors, strict=True)]
        return (*outer, *(self.factors[k] for k in self.apart))

    def place(self, whole: Sequence[Expr]) -> tuple[Expr, ...]:
        """Where an element is."""
        outer = [i // f if f > 1 else i for i, f in zip(whole, self.factors, strict=True)]
        return (*outer, *(whole[k] % self.factors[k] for k in self.apart))

    def whole(self, place: Sequence[Expr]) -> tuple[Expr, ...]:
        """The element that is there."""
        inner = dict(zip(self.apart, place[len(self.factors) :], strict=True))
        return tuple(
            place[k] * f + inner[k] if f > 1 else place[k] for k, f in enumerate(self.factors)
        )

    def joined(self, apart: Compute) -> Compute:
        """What was computed apart, as a whole with its channels innermost in memory."""
        shape = self._whole_shape(apart.shape)
        last = channels_last_strides(shape)
        outer = [s * f for s, f in zip(last, self.factors, strict=True)]
        placed = replace(apart, strides=(*outer, *(last[k] for k in self.apart)))
        return compute(shape, lambda *i: placed[self.place(i)], channels_last=True)

    def _whole_shape(self, apart: Sequence[int]) -> tuple[int, ...]:
        return tuple(n * f for n, f in zip(apart, self.factors, strict=False))


@dataclass
class Splits:
    """The tensors that are joined, by name, with what they are joined from."""

    found: dict[str, tuple[Split, Compute]] = field(default_factory=dict)

    def note(self, t: Tensor) -> None:
        """Remember t if it is joined."""
        if isinstance(t, Compute) and (found := _split_of(t)) is not None:
            self.found[t.name] = found

    def follow(self, t: Tensor) -> Tensor:
        """t taken apart too, if it is a map that reads all joined tensors in place."""
        if not isinstance(t, Compute) or t.reduction is not None or t.strides is not None:
            return t
        joined = [s for s in sources(t) if s.name in self.found]
        splits = {self.found[s.name][0] for s in joined}
        if len(splits) != 1 or not all(reads_in_place(t, s) for s in joined):
            return t
        split = splits.pop()
        made = compute(split.shape(t.shape), lambda *place: self._element(t, split, place))
        return replace(split.joined(replace(made, op=t.op, node=t.node)), node=t.node)

    def _element(self, t: Compute, split: Split, place: tuple[Expr, ...]) -> Expr:
        def rule(n: Node) -> Node | None:
            if isinstance(n, Load) and n.buffer.name in self.found:
                return Load(self.found[n.buffer.name][1], place)
            return None

        env = dict(zip(t.axes, split.whole(place), strict=True))
        return rewrite(substitute(t.body, env), rule)  # type: ignore[return-value]


def _split_of(t: Compute) -> tuple[Split, Compute] | None:
    """How t is joined, and from what, if it is."""
    match t.body:
        case Load(buffer=Compute(strides=tuple()) as b, index=index) if len(index) > t.rank:
            split = Split(tuple(map(phases_of, index[: t.rank])))
            here = [Var(a) for a in t.axes]
            fits = split.shape(t.shape) == b.shape
            return (split, b) if fits and index == split.place(here) else None
    return None


def phases_of(place: Expr) -> int:
    """How many positions share a place, from where the one of an axis is: x // n, perhaps moved
    before and after."""
    match place:
        case Apply(op=ScalarOp.SUB, args=(inner, Const())):
            return phases_of(inner)
        case Apply(
            op=ScalarOp.FLOORDIV,
            args=(Var() | Apply(op=ScalarOp.ADD, args=(Var(), Const())), Const(value=f)),
        ):
            return int(f)
    return 1
