"""Reading between the elements: linear interpolation at points that come from data."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from tilewright.dtypes import DType
from tilewright.loops.ir import Cast, Expr, apply
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, inside, select
from tilewright.ops.tensor import Tensor


def corners(x: Tensor, lead: Sequence[Expr], base: Sequence[Expr], moved: Sequence[Expr]) -> Expr:
    """x interpolated linearly at base + moved in its last dimensions, in the type that arithmetic
    on x is done in; what lies outside counts as zero.
    """
    dtype = x.dtype.compute
    points = [Cast(dtype, b) + cast(dtype, m) for b, m in zip(base, moved, strict=True)]
    floors = [apply(ScalarOp.FLOOR, p) for p in points]
    total: Expr | None = None
    for corner in itertools.product((0, 1), repeat=len(points)):
        at: list[Expr] = [
            Cast(DType.I64, f) + 1 if c else Cast(DType.I64, f)
            for f, c in zip(floors, corner, strict=True)
        ]
        value: Expr = cast(dtype, x[(*lead, *at)])
        for i, n in zip(reversed(at), reversed(x.shape[len(lead) :]), strict=True):
            value = select(inside(i, n), value, 0)
        for p, f, c in zip(points, floors, corner, strict=True):
            value = value * (p - f if c else f + 1 - p)
        total = value if total is None else total + value
    assert total is not None
    return total
