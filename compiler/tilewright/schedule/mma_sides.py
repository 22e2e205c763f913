"""The factors of a product on tensor cores: how they lie in memory, and which types there are."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tilewright.dtypes import DType
from tilewright.loops.ir import Apply, Cast, Const, Expr, Load, Select
from tilewright.loops.scalars import ScalarOp
from tilewright.schedule.block_tiles import Product, memory_step
from tilewright.schedule.vectors import VECTOR_BYTES

TURNED_PAD = 8  # words after a line of words: lanes that read across lines have a bank each
HALVES = (DType.F16, DType.BF16)
BYTES = (DType.I8, DType.U8)


@dataclass(frozen=True)
class Side:
    """A factor as it lies in memory: an element, or zero where `inside` does not hold."""

    element: Load
    inside: Expr | None
    wide: DType  # what it is multiplied in
    depth_last: bool  # neighbours in memory are neighbours in the sum

    @property
    def dtype(self) -> DType:
        return self.element.buffer.dtype

    def factor(self, staged: Load) -> Expr:
        """What is multiplied: the element widened, or rounded."""
        is_single = self.dtype is DType.F32
        return Apply(ScalarOp.TF32, (staged,)) if is_single else Cast(self.wide, staged)

    @property
    def pad(self) -> int:
        """Elements after each line, so that those that are read at a time have banks of their
        own."""
        if self.dtype is DType.F32 and not self.depth_last:
            return TURNED_PAD
        return VECTOR_BYTES // self.dtype.itemsize


def side_of(factor: Expr, product: Product) -> Side | None:
    """A factor as it lies in memory; None if it is no element that tensor cores take."""
    match factor:
        case Cast(dtype=wide, arg=Load() as element):
            along = element.buffer.dtype in BYTES or _lies_along(element, product)
            return Side(element, None, wide, along)
        case Apply(op=ScalarOp.TF32, args=(Load() as element,)):
            return Side(element, None, DType.F32, _lies_along(element, product))
        case Select(condition=c, then=then, otherwise=Const(value=0)):
            found = side_of(then, product)
            if found is None:
                return None
            both = c if found.inside is None else Apply(ScalarOp.AND, (c, found.inside))
            return replace(found, inside=both)
    return None


def _lies_along(element: Load, product: Product) -> bool:
    """Whether more neighbours in memory are neighbours in the sum than in the results: the pixels
    of an image are both."""

    def run(axes: tuple[tuple[str, int], ...]) -> int:
        return max((n for axis, n in axes if memory_step(element, axis) == 1), default=0)

    return run(product.depth) > run((*product.rows, *product.columns))


def multiplies(left: DType, right: DType, total: DType) -> bool:
    """Whether an instruction multiplies these types and sums them up in that one."""
    if left in (*HALVES, DType.F32):
        return left is right and total is DType.F32
    return left in BYTES and right in BYTES and total is DType.I32
