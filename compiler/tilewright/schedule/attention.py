"""An attention in a kernel: what schedules for blocks of threads need to know of it."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.dtypes import DType
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Apply,
    Block,
    Buffer,
    Cast,
    Const,
    Expr,
    For,
    Kernel,
    Load,
    Node,
    Select,
    Space,
    Stmt,
    Store,
    index_const,
    rewrite,
    substitute,
    variables,
)
from tilewright.loops.locate import main_load, outer_loops
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import minimum, select

GROUP = 4  # elements that lie side by side in one thread
LOWEST = Const(float("-inf"), DType.F32)
ZERO = Const(0.0, DType.F32)


@dataclass(frozen=True)
class RowAttention:
    """sum over keys of softmax(score(sum over depth of query * key)) * value, in the axes of the
    kernel's outer loops and `column`. `score` reads the sum as `product`. Where `empty` holds
    all weights of a row are zero; it may ask whether they are numbers. `half` is the type that
    weights are rounded to, if they are.
    """

    batch: tuple[tuple[str, int], ...]
    row: tuple[str, int]
    column: tuple[str, int]
    depth: tuple[str, int]
    keys: tuple[str, str, int]  # the axis of the scores, that of the values, and their extent
    needed: Expr  # how many of them a row needs, no fewer than the rows before it
    query: Expr
    key: Expr
    value: Expr
    product: Buffer
    score: Expr
    empty: Expr | None
    half: DType | None
    store: Store

    def place(self, row: Expr, key: Expr, column: Expr | None = None) -> dict[str, Expr]:
        """The axes as expressions, none beyond the operands: what lies there is repeated."""
        score_key, value_key, keys = self.keys
        at: dict[str, Expr] = {self.row[0]: limited(row, self.row[1])}
        at[score_key] = at[value_key] = limited(key, keys)
        if column is not None:
            at[self.column[0]] = limited(column, self.column[1])
        return at

    def scored(self, product: Expr, row: Expr, key: Expr, whole: bool) -> Expr:
        """What becomes of a product; the least score beyond the last key, unless all keys of a tile
        are there (`whole`)."""

        def rule(n: Node) -> Node | None:
            return product if isinstance(n, Load) and n.buffer == self.product else None

        score: Expr = rewrite(substitute(self.score, self.place(row, key)), rule)  # type: ignore[assignment]
        return score if whole else select(key < self.keys[2], score, LOWEST)

    @property
    def is_masked(self) -> bool:
        """Whether what becomes of a score depends on its key."""
        return self.keys[0] in variables(self.score)

    def steps(self, row: Expr, keys: int) -> Expr:
        """How often `keys` keys have to be taken until a row has all it needs."""
        if isinstance(self.needed, Const):
            return index_const(-(-self.keys[2] // keys))
        place = self.place(row, index_const(0))
        needed: Expr = substitute(self.needed, place)  # type: ignore[assignment]
        return (needed + (keys - 1)) // keys

    def share(self, sums: Expr, total: Expr, row: Expr, inverse: Expr | None = None) -> Expr:
        """The result, from sums that were not divided yet, with 1 / total if that is at hand."""
        share = sums / total if inverse is None else sums * inverse
        if self.empty is None:
            return share
        nothing = select(total.eq(ZERO), sums, ZERO)
        if isinstance(self.empty, Apply) and self.empty.op is ScalarOp.ISNAN:
            return select(total > 0, share, nothing)
        condition: Expr = substitute(self.empty, self.place(row, index_const(0)))  # type: ignore[assignment]
        return select(condition, nothing, share)

    def stored(self, row: Expr, column: Expr, value: Expr) -> Store:
        index = substitute(
            Store(self.store.buffer, self.store.index, ZERO),
            {self.row[0]: row, self.column[0]: column},
        )
        half = self.store.buffer.dtype
        rounded = value if half is DType.F32 else Cast(half, value)
        return Store(index.buffer, index.index, rounded)  # type: ignore[union-attr]


def find_attention(kernel: Kernel) -> RowAttention | None:
    """The attention that a kernel computes row by row, if it is nothing else."""
    loops = outer_loops(kernel.body)
    sizes = [(n.axis, int(n.extent.value)) for n in loops if isinstance(n.extent, Const)]
    body = loops[-1].body if loops else kernel.body
    stmts = _within_allocations(body)
    if len(sizes) != len(loops) or len(stmts) != 5:
        return None
    first, second, last = stmts[1], stmts[3], stmts[4]
    if not (isinstance(first, For) and _is_powers(second) and isinstance(last, For)):
        return None
    scored, summed = _within_allocations(first.body), _within_allocations(last.body)
    match scored, summed:
        case (
            (
                Store(buffer=product),
                For(body=Accumulate(value=Apply(op=ScalarOp.MUL, args=(query, key)))) as deep,
                Store(buffer=scores, value=score),
                Accumulate(op=ScalarOp.MAX),
            ),
            (
                Store(),
                For(body=Accumulate(value=Apply(op=ScalarOp.MUL, args=(weight, value)))) as over,
                Store() as store,
            ),
        ):
            pass
        case _:
            return None
    whole, half = _unrounded(weight)
    return RowAttention(
        batch=tuple(sizes[:-1]),
        row=sizes[-1],
        column=_size(last),
        depth=_size(deep),
        keys=(first.axis, over.axis, scores.shape[0]),
        needed=over.extent,
        query=query,
        key=key,
        value=value,
        product=product,
        score=score,
        empty=whole.condition if isinstance(whole, Select) else None,
        half=half,
        store=store,
    )


def _within_allocations(s: Stmt) -> tuple[Stmt, ...]:
    while isinstance(s, Alloc):
        s = s.body
    return s.stmts if isinstance(s, Block) else ()


def _is_powers(s: Stmt) -> bool:
    match s:
        case For(body=Block(stmts=(Store(value=Apply(op=ScalarOp.EXP)), Accumulate()))):
            return True
    return False


def _unrounded(e: Expr) -> tuple[Expr, DType | None]:
    """What is rounded to a half, and that type; e itself if it is not."""
    match e:
        case Cast(dtype=DType.F32, arg=Cast(dtype=DType.F16 | DType.BF16 as half, arg=arg)):
            return arg, half
    return e, None


def _size(loop: For) -> tuple[str, int]:
    assert isinstance(loop.extent, Const)
    return loop.axis, int(loop.extent.value)


def limited(index: Expr, extent: int) -> Expr:
    """The index, or the last one."""
    return minimum(index, extent - 1)


def finite(top: Expr) -> Expr:
    """What is taken off the scores of a row: its greatest one, or zero as long as it has none."""
    return select(top.eq(LOWEST), ZERO, top)


def power(x: Expr) -> Expr:
    return Apply(ScalarOp.EXP, (x,))


def load_of(e: Expr) -> Load:
    """The load in an operand, of which the rest makes a float32."""
    found = main_load(e)
    assert found is not None
    return found


def reading(e: Expr, source: Load, value: Expr) -> Expr:
    """The operand, with its load already done."""
    return rewrite(e, lambda n: value if n is source else None)  # type: ignore[return-value]


def written_out(axis: str, count: int, body: Stmt) -> list[Stmt]:
    """The iterations of a loop one after the other."""
    return [substitute(body, {axis: index_const(k)}) for k in range(count)]  # type: ignore[misc]


def baked(axis: str, count: int, body: Stmt) -> Stmt:
    """A loop whose extent is a literal; none for a single iteration."""
    if count == 1:
        return substitute(body, {axis: index_const(0)})  # type: ignore[return-value]
    return For(axis, index_const(count), body, baked=True)


def registers(name: str, *shape: int, dtype: DType = DType.F32) -> Buffer:
    """What one thread keeps within a loop over threads."""
    return Buffer(name, dtype, shape, space=Space.LOCAL)
