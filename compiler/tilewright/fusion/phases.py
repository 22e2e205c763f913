"""Convolutions of several phases, each written to its places at once instead of sorted later.

A transposed convolution sums the channels of all phases side by side; a view puts them in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from tilewright.fusion.contraction import find_contraction, ranges_of
from tilewright.fusion.splits import Split, phases_of
from tilewright.fusion.winograd import WinogradCompute
from tilewright.loops.affine import simplify_loads
from tilewright.loops.ir import Expr, Load, substitute
from tilewright.ops.tensor import Compute, Tensor, compute

PASS = 64  # products that take as long as to load a result and to store it elsewhere


def in_place(t: Tensor, lanes: Mapping[int, int]) -> Tensor | None:
    """t as sums that stand at once where t has them, if it is the one view of all phases."""
    if not isinstance(t, Compute) or t.rank < 3 or t.reduction is not None:
        return None
    match t.body:
        case Load(buffer=Compute(reduction=r, strides=None) as sums, index=index) if r:
            split = Split((1, 1, *map(phases_of, index[2:])))
        case _:
            return None
    if isinstance(sums, WinogradCompute) or len(index) != t.rank or not split.apart:
        return None
    uneven = any(n % f for n, f in zip(t.shape, split.factors, strict=True))
    if uneven or t.size > sums.size or not _pays(t, sums, lanes.get(t.dtype.bits, 1)):
        return None
    made = _apart(sums, index, t, split)
    found = find_contraction(made)
    if found is None or found.columns != made.axes[1] or found.rows not in made.axes[2:]:
        return None
    return split.joined(replace(made, op=sums.op or t.op, node=t.node))


def _apart(sums: Compute, index: tuple[Expr, ...], t: Compute, split: Split) -> Compute:
    """The sums at the places of t, a dimension for every phase."""
    assert sums.reduction is not None
    names = [a for a, _ in sums.reduction.axes]
    dims = len(split.shape(t.shape))

    def element(*axes: Expr) -> Expr:
        whole = dict(zip(t.axes, split.whole(axes[:dims]), strict=True))
        at = [substitute(i, whole) for i in index]
        env = dict(zip((*sums.axes, *names), (*at, *axes[dims:]), strict=True))
        return substitute(sums.body, env)  # type: ignore[arg-type,return-value]

    over = [n for _, n in sums.reduction.axes]
    made = compute(split.shape(t.shape), element, reduce=sums.reduction.op, over=over)
    made = replace(made, exact=sums.exact)
    return replace(made, body=simplify_loads(made.body, ranges_of(made)))


def _pays(t: Compute, sums: Compute, lanes: int) -> bool:
    """Whether vectors that each phase fills for itself cost less than to sort."""
    assert sums.reduction is not None
    empty = -t.shape[1] % lanes
    return empty * prod(n for _, n in sums.reduction.axes) <= PASS * t.shape[1]
