"""Channels that a convolution computes group by group stay two axes in the maps after it.

So these maps read the results at their own places, and complete them where they are computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tilewright.fusion.inline import channels_last_strides, reads_in_place
from tilewright.loops.ir import Expr, Load, Node, Var, rewrite, substitute
from tilewright.ops.tensor import Compute, Tensor, compute, sources


def joined(stored: Compute) -> Compute:
    """(n, group, channel of it, spatial...) as (n, channel, spatial...), in memory too: channels
    last."""
    batch, groups, share, *spatial = stored.shape
    shape = (batch, groups * share, *spatial)
    last = channels_last_strides(shape)
    placed = replace(stored, strides=(last[0], share * last[1], *last[1:]))
    return compute(
        shape,
        lambda n, c, *at: placed[(n, c // share, c % share, *at)],
        channels_last=True,
    )


@dataclass
class Splits:
    """Tensors that are joined from groups, by name."""

    found: dict[str, Compute] = field(default_factory=dict)

    def note(self, t: Tensor) -> None:
        """Remember t if it is joined."""
        if isinstance(t, Compute) and (stored := _stored(t)) is not None:
            self.found[t.name] = stored

    def follow(self, t: Tensor) -> Tensor:
        """t as a map over groups too, where all its reads of joined tensors are in place."""
        if not isinstance(t, Compute) or t.reduction is not None or t.strides is not None:
            return t
        joins = [s for s in sources(t) if s.name in self.found]
        shares = {self.found[s.name].shape[2] for s in joins}
        if len(shares) != 1 or not all(reads_in_place(t, s) for s in joins):
            return t
        return replace(self._split(t, shares.pop()), node=t.node)

    def _split(self, t: Compute, share: int) -> Compute:
        batch, channels, *spatial = t.shape

        def element(n: Expr, g: Expr, c: Expr, *at: Expr) -> Expr:
            index = (n, g * share + c, *at)

            def rule(node: Node) -> Node | None:
                if isinstance(node, Load) and node.buffer.name in self.found:
                    return Load(self.found[node.buffer.name], (n, g, c, *at))
                return None

            inner = rewrite(t.body, rule)
            return substitute(inner, dict(zip(t.axes, index, strict=True)))  # type: ignore[return-value]

        made = compute((batch, channels // share, share, *spatial), element)
        return joined(replace(made, op=t.op, node=t.node))


def _stored(t: Compute) -> Compute | None:
    """What t is joined from, if it is."""
    match t.body:
        case Load(buffer=Compute(strides=tuple()) as b) if len(b.shape) == t.rank + 1 > 3:
            return b if t.body == _body(t, b) else None
    return None


def _body(t: Compute, b: Compute) -> Expr:
    """The body of t as a join of b."""
    n, c, *at = (Var(a) for a in t.axes)
    share = b.shape[2]
    return b[(n, c // share, c % share, *at)]
