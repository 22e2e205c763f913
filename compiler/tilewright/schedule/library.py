"""Products of matrices as a library knows them: three pieces of memory with strides.

A kernel that is one becomes two: the product, which a library may compute in place of its loops,
and what our kernel does to the sums afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

from tilewright.dtypes import DType
from tilewright.fusion.lower import Lowered
from tilewright.loops.affine import Linear, Range
from tilewright.loops.ir import (
    Alloc,
    Block,
    Buffer,
    Cast,
    Expr,
    For,
    Kernel,
    Load,
    LoopKind,
    Node,
    Stmt,
    Store,
    Var,
    rewrite,
    walk,
)
from tilewright.loops.locate import axis_ranges, offset, outer_loops
from tilewright.ops.tensor import Tensor, placeholder
from tilewright.schedule.block_tiles import Axes, Product, find_product

FACTORS = (DType.F32, DType.F16, DType.BF16)
MOST = (1 << 31) - 1  # of an extent or a stride: the library counts in 32 bits


@dataclass(frozen=True)
class Matrix:
    """A matrix for each of a batch: elements between its rows, its columns and the next one. `slot`
    is the kernel's parameter that it lies in, from the start."""

    slot: int
    dtype: DType
    row: int
    column: int
    batch: int

    def __str__(self) -> str:
        return f"{self.dtype.name.lower()} with strides {self.batch}, {self.row}, {self.column}"


@dataclass(frozen=True)
class Gemm:
    """c = a @ b for a `batch` of matrices of rows x depth and depth x columns, summed in float32.

    In a and in b rows or columns are contiguous, in c rows.
    """

    rows: int
    columns: int
    depth: int
    batch: int
    a: Matrix
    b: Matrix
    c: Matrix

    def __str__(self) -> str:
        return (
            f"{self.batch} x ({self.rows} x {self.depth}) @ ({self.depth} x {self.columns}): "
            f"a of {self.a}, b of {self.b}, c of {self.c}, sums of float32"
        )


@dataclass(frozen=True)
class LibraryProduct:
    """A product for a library, and the kernel that goes on with its sums, if one must."""

    gemm: Gemm
    lowered: Lowered  # the same as loops
    rest: Lowered | None


def library_product(n: Lowered) -> LibraryProduct | None:
    """The parts of a kernel that is a product of matrices as they lie in memory."""
    product = find_product(n.kernel) if n.group.nest is None else None
    if product is None or product.total.dtype != DType.F32:
        return None
    if not product.rows or not product.columns:
        return None
    loops = outer_loops(n.kernel.body)
    if any(loop.kind not in (LoopKind.SERIAL, LoopKind.PARALLEL) for loop in loops):
        return None
    pure, rest = _split(n, product, loops)
    again = find_product(pure.kernel)
    assert again is not None
    gemm = _gemm(pure.kernel, again)
    return LibraryProduct(gemm, pure, rest) if gemm else None


def _split(n: Lowered, product: Product, loops: Sequence[For]) -> tuple[Lowered, Lowered | None]:
    """The product with its sums in memory, and the kernel that reads them."""
    if _is_plain(product):
        return n, None
    kernel, extents = n.kernel, dict(_all(product))
    order = [a for a, _ in (*product.batch, *product.rows, *product.columns)]
    tensor = placeholder([extents[a] for a in order], DType.F32)
    sums = Buffer(tensor.name, DType.F32, tensor.shape)
    index = tuple(Var(a) for a in order)
    inner = loops[-1].body
    assert isinstance(inner, Alloc) and isinstance(inner.body, Block)
    first, nest, *stores = inner.body.stmts

    def reads(node: Node) -> Node | None:
        same = isinstance(node, Load) and node.buffer is product.total
        return Load(sums, index) if same else None

    total = Load(product.total, _first_index(first))
    whole = Alloc(product.total, Block((first, nest, Store(sums, index, total))))
    after = [rewrite(s, reads) for s in stores]
    body = after[0] if len(after) == 1 else Block(tuple(after))  # type: ignore[arg-type]
    tensors = dict(zip((b.name for b in kernel.params), n.tensors, strict=True))
    tensors[sums.name] = tensor
    made = _kernel(n, loops, whole, sums, frozenset({sums.name}), tensors)
    return made, _kernel(n, loops, body, sums, kernel.outputs, tensors)  # type: ignore[arg-type]


def _first_index(first: Stmt) -> tuple[Expr, ...]:
    assert isinstance(first, Store)
    return first.index


def _kernel(
    n: Lowered,
    loops: Sequence[For],
    body: Stmt,
    sums: Buffer,
    outputs: frozenset[str],
    tensors: Mapping[str, Tensor],
) -> Lowered:
    """The body in the same loops, over the buffers that it uses."""
    used = {x.buffer.name for x in walk(body) if isinstance(x, (Load, Store))}
    params = [b for b in (sums, *n.kernel.params) if b.name in used]
    ordered = sorted(params, key=lambda b: b.name in outputs)  # inputs first
    named = {b.name: replace(b, name=f"p{k}") for k, b in enumerate(ordered)}
    for loop in reversed(loops):
        body = replace(loop, body=body)

    def rename(x: Node) -> Node | None:
        if isinstance(x, (Load, Store)) and x.buffer.name in named:
            return replace(x, buffer=named[x.buffer.name])
        return None

    made = replace(
        n.kernel,
        params=tuple(named.values()),
        body=rewrite(body, rename),  # type: ignore[arg-type]
        outputs=frozenset(named[name].name for name in outputs),
    )
    return replace(n, kernel=made, tensors=tuple(tensors[b.name] for b in ordered))


def _all(product: Product) -> Axes:
    return [*product.batch, *product.rows, *product.columns]


def _is_plain(product: Product) -> bool:
    """Whether the sums are stored as they are, or rounded to the factors' type."""
    if len(product.stores) != 1:
        return False
    (store,) = product.stores
    assert isinstance(store, Store)
    value, factor = store.value, _element(product.a)
    if isinstance(value, Cast) and factor is not None and value.dtype == factor.buffer.dtype:
        value = value.arg
    return isinstance(value, Load) and value.buffer is product.total and _rows_lie(product, store)


def _rows_lie(product: Product, store: Store) -> bool:
    ranges = {a: (0.0, n - 1.0) for a, n in _all(product)}
    form = offset(store.buffer, store.index, ranges)
    return _matrix(0, store.buffer, form, product.rows, product.columns, product.batch) is not None


def _element(factor: Expr) -> Load | None:
    """What a factor reads, if it is an element as it is, or widened."""
    inner = factor.arg if isinstance(factor, Cast) and factor.dtype == DType.F32 else factor
    return inner if isinstance(inner, Load) and inner.buffer.dtype in FACTORS else None


def _gemm(kernel: Kernel, product: Product) -> Gemm | None:
    ranges = axis_ranges(kernel.body)
    a, b = _element(product.a), _element(product.b)
    store = [s for s in walk(kernel.body) if isinstance(s, Store)][-1]
    if a is None or b is None or a.buffer.dtype != b.buffer.dtype:
        return None
    sides = (
        (a, product.rows, product.depth),
        (b, product.depth, product.columns),
        (store, product.rows, product.columns),
    )
    found = [_placed(kernel, x, r, c, product.batch, ranges) for x, r, c in sides]
    extents = [
        prod(n for _, n in axes)
        for axes in (product.rows, product.columns, product.depth, product.batch)
    ]
    left, right, result = found
    if left is None or right is None or result is None or max(extents) > MOST:
        return None
    m, n, k, batch = extents
    fits = _lies(left, m, k) and _lies(right, k, n) and result.column == 1
    fits = fits and (m == 1 or result.row >= n)
    return Gemm(m, n, k, batch, left, right, result) if fits else None


def _placed(
    kernel: Kernel,
    access: Load | Store,
    rows: Axes | tuple[tuple[str, int], ...],
    columns: Axes | tuple[tuple[str, int], ...],
    batch: Axes | tuple[tuple[str, int], ...],
    ranges: Mapping[str, Range],
) -> Matrix | None:
    slot = [b.name for b in kernel.params].index(access.buffer.name)
    form = offset(access.buffer, access.index, ranges)
    return _matrix(slot, access.buffer, form, rows, columns, batch)


def _matrix(
    slot: int,
    buffer: Buffer,
    form: Linear,
    rows: Sequence[tuple[str, int]],
    columns: Sequence[tuple[str, int]],
    batch: Sequence[tuple[str, int]],
) -> Matrix | None:
    """Where all of an access is one stride for the rows, one for the columns, one for the batch."""
    if form.constant or form.nonlinear_axes():
        return None
    followed = {a for a, _ in (*rows, *columns, *batch)}
    if any(not isinstance(t, Var) or t.name not in followed for t, _ in form.terms):
        return None
    strides = [_stride(form, axes) for axes in (rows, columns, batch)]
    if any(s is None or not 0 <= s <= MOST for s in strides):
        return None
    row, column, step = (s or 0 for s in strides)
    if (not row and _many(rows)) or (not column and _many(columns)):
        return None  # one line for all
    return Matrix(slot, buffer.dtype, row or 1, column or 1, step)


def _many(axes: Sequence[tuple[str, int]]) -> bool:
    return prod(n for _, n in axes) > 1


def _stride(form: Linear, axes: Sequence[tuple[str, int]]) -> int | None:
    """Elements from one combination of the axes to the next; None if there is no one number."""
    longer = [(form.coefficient(a), n) for a, n in axes if n > 1]
    for (outer, _), (inner, n) in pairwise(longer):
        if outer != inner * n:
            return None
    return longer[-1][0] if longer else 0


def _lies(m: Matrix, rows: int, columns: int) -> bool:
    """Whether rows or columns are contiguous, and do not overlap."""
    return (m.column == 1 and m.row >= (columns if rows > 1 else 1)) or (
        m.row == 1 and m.column >= (rows if columns > 1 else 1)
    )
