"""Products of float32 as tensor cores take them: of factors rounded to TF32."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tilewright.dtypes import DType
from tilewright.errors import ScheduleError
from tilewright.loops.ir import (
    Accumulate,
    Apply,
    Const,
    Expr,
    Kernel,
    Load,
    Node,
    Select,
    rewrite,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.schedule.block_tiles import find_product


@dataclass(frozen=True)
class RoundFactors:
    """Round both factors of a product of float32 to TF32.

    Unlike other directives it changes numbers, and says so in the loops; it is for whoever asked
    for TF32.
    """

    def __call__(self, kernel: Kernel) -> Kernel:
        product = find_product(kernel)
        if product is None or product.total.dtype is not DType.F32:
            raise ScheduleError(f"{self}: the kernel is no sum of products of float32")

        def rule(n: Node) -> Node | None:
            if not isinstance(n, Accumulate) or n.buffer is not product.total:
                return None
            assert isinstance(n.value, Apply)
            return replace(n, value=Apply(ScalarOp.MUL, tuple(map(self.rounded, n.value.args))))

        return replace(kernel, body=rewrite(kernel.body, rule))  # type: ignore[arg-type]

    def rounded(self, factor: Expr) -> Expr:
        """A factor that is an element of float32, or zero."""
        match factor:
            case Load(buffer=b) if b.dtype is DType.F32:
                return Apply(ScalarOp.TF32, (factor,))
            case Select(then=then, otherwise=Const(value=0)):
                return replace(factor, then=self.rounded(then))
        raise ScheduleError(f"{self}: a factor is no element of float32")
