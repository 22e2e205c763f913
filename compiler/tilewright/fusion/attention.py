"""Attention: a product, the softmax of its rows and a second product, as one kernel.

Found by what is computed, whatever operators it came from. A task takes some rows of one batch
entry (a head, mostly): their scores against all keys, what the model does to the scores, softmax
and the sums of values all happen in its scratch, so that no matrix of scores is ever in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tilewright.dtypes import DType
from tilewright.fusion.attention_loops import Attention, Form
from tilewright.fusion.contraction import ranges_of
from tilewright.fusion.inline import topological
from tilewright.fusion.renew import renewed
from tilewright.loops.affine import Ranges, simplify_loads
from tilewright.loops.ir import (
    Apply,
    Cast,
    Const,
    Expr,
    Load,
    Node,
    Select,
    Var,
    dtype_of,
    rewrite,
    substitute,
    variables,
    walk,
)
from tilewright.loops.locate import main_load
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.tensor import Compute, Nest, NestOutput, Tensor, sources

MAX_NODES = 80  # of the expression that a score becomes
MAX_CHEAP = 6  # functions in an operand that a block computes as it reads
CHEAP = (ScalarOp.ADD, ScalarOp.SUB, ScalarOp.MUL, ScalarOp.NEG)
MAX_STEPS = 12  # maps between the products and the softmax
Readers = Mapping[str, frozenset[str]]  # names of the tensors that read a tensor
Found = TypeVar("Found", "_Product", "_Softmax")


@dataclass(frozen=True)
class _Product:
    """A sum over `depth` of products of two loads."""

    result: Compute
    left: Load
    right: Load
    depth: str
    extent: int


@dataclass(frozen=True)
class _Softmax:
    """The softmax of `scores`, in the axes of `result`, along the last one."""

    result: Compute
    scores: Load
    parts: tuple[str, ...]


def find_attention(
    t: Tensor, readers: Readers, outputs: frozenset[str], form: Form
) -> NestOutput | None:
    """The attention that t is the result of, as the result of a loop nest; None if it is none."""
    whole = _product(t)
    if whole is None or whole.result.dtype is not DType.F32:
        return None
    for weights, values in ((whole.left, whole.right), (whole.right, whole.left)):
        found = _matched(whole, weights, values, form.maps)
        if found is None or not _only_here(found.names, whole.result.name, readers, outputs):
            continue
        if form.fits(found.attention):
            return _nest(whole.result, found.attention, form, whole.result.name in outputs)
    return None


def with_attention(outputs: Sequence[Tensor], form: Form) -> list[Tensor]:
    """Equal outputs, in which each attention that the form takes is a nest."""
    order = topological(outputs)
    readers, names = readers_of(order), frozenset(t.name for t in outputs)
    done: dict[str, Tensor] = {}
    for t in order:
        current = renewed(t, done)
        done[t.name] = find_attention(current, readers, names, form) or current
    return [done[t.name] for t in outputs]


def readers_of(order: Sequence[Tensor]) -> Readers:
    """Who reads each tensor."""
    found: dict[str, set[str]] = {t.name: set() for t in order}
    for t in order:
        for s in sources(t):
            found[s.name].add(t.name)
    return {name: frozenset(reading) for name, reading in found.items()}


@dataclass(frozen=True)
class _Matched:
    attention: Attention
    names: frozenset[str]  # what it computes on the way


def _matched(whole: _Product, weights: Load, values: Load, maps: bool) -> _Matched | None:
    """The attention with these weights and values, in the axes of its result."""
    outer = _expanded(weights, _softmax)
    if outer is None:
        return None
    softmax, weight, passed = outer
    inner = _expanded(
        _moved(softmax.scores, softmax.result, _place(weight, softmax.result)), _product
    )
    if inner is None:
        return None
    product, score, more = inner
    at = _place(score, product.result)
    ranges = ranges_of(whole.result) | {product.depth: (0.0, float(product.extent - 1))}
    loads = [
        _resolved(_moved(x, product.result, at), ranges, maps)
        for x in (product.left, product.right)
    ]
    query, key = loads if whole.depth in variables(loads[1]) else loads[::-1]
    value = _resolved(values, ranges, maps)
    score, weight = simplify_loads(score, ranges), simplify_loads(weight, ranges)
    used = variables(query) | variables(key) | variables(score) | variables(weight)
    rows = _rows(whole.result, variables(query) - variables(key), used | variables(value))
    columns = [a for a in whole.result.axes if a in variables(value) - used]
    if not rows or len(columns) != 1 or (len(rows) > 1 and not maps):
        return None
    row = max(rows, key=lambda a: whole.result.shape[whole.result.axes.index(a)])
    attention = Attention(
        whole.result.axes,
        whole.result.shape,
        (row, columns[0]),
        (whole.depth, whole.extent),
        (product.depth, product.extent),
        query,
        key,
        value,
        (product.result.name, score),
        (softmax.result.name, weight),
        weights.buffer.name,
    )
    names = {product.result.name, softmax.result.name, *softmax.parts, *passed, *more}
    return _Matched(attention, frozenset(names))


def _rows(t: Compute, own: frozenset[str], used: frozenset[str]) -> list[str]:
    """The axes that only the query follows; a single row has one that nothing follows."""
    found = [a for a in t.axes if a in own]
    single = [a for a, n in zip(t.axes, t.shape, strict=True) if n == 1 and a not in used]
    return found or single[-1:]


def _expanded(
    e: Expr, match: Callable[[Tensor], Found | None]
) -> tuple[Found, Expr, frozenset[str]] | None:
    """What `match` finds behind maps, e in terms of it, and the names of those maps."""
    passed: set[str] = set()
    for _ in range(MAX_STEPS):
        buffers = {n.buffer.name: n.buffer for n in walk(e) if isinstance(n, Load)}
        tensors = [b for b in buffers.values() if isinstance(b, Compute)]
        found = {b.name: m for b in tensors if (m := match(b)) is not None}
        leading = [b for b in tensors if b.name not in found and _leads_to(b, match)]
        if not leading:
            first = next(iter(found.values()), None)
            return (first, e, frozenset(passed)) if first and len(found) == 1 else None
        if sum(1 for _ in walk(e)) > MAX_NODES:
            return None
        passed.add(leading[0].name)
        e = _inlined(e, leading[0])
    return None


def _leads_to(t: Tensor, match: Callable[[Tensor], Found | None], steps: int = MAX_STEPS) -> bool:
    """Whether something that `match` finds is among the sources of t, with maps between."""
    if steps == 0 or not isinstance(t, Compute) or t.reduction is not None:
        return False
    return any(match(s) is not None or _leads_to(s, match, steps - 1) for s in sources(t))


def _inlined(e: Expr, t: Compute) -> Expr:
    def rule(n: Node) -> Node | None:
        if isinstance(n, Load) and n.buffer.name == t.name:
            return substitute(t.body, dict(zip(t.axes, n.index, strict=True)))
        return None

    return rewrite(e, rule)  # type: ignore[return-value]


def _place(e: Expr, t: Compute) -> tuple[Expr, ...]:
    """The index at which e reads t: the same wherever it does, or an impossible one."""
    places = {n.index for n in walk(e) if isinstance(n, Load) and n.buffer.name == t.name}
    return places.pop() if len(places) == 1 else (Const(-1, DType.I64),) * t.rank


def _moved(load: Load, t: Compute, at: Sequence[Expr]) -> Load:
    """A load in the body of t, for the element of t at another index."""
    return substitute(load, dict(zip(t.axes, at, strict=True)))  # type: ignore[return-value]


def _resolved(load: Load, ranges: Ranges, maps: bool) -> Expr:
    """The load behind all views; with `maps` what cheap functions of one load make of it."""
    e: Expr = load
    while (behind := _behind(e, maps)) is not None:
        e = behind
    return simplify_loads(e, ranges)


def _behind(e: Expr, maps: bool) -> Expr | None:
    """The expression in terms of what its only load of more than a number is computed from."""
    load = main_load(e)
    if load is None or not isinstance(b := load.buffer, Compute) or b.reduction is not None:
        return None
    if not isinstance(b.body, Load) and not (maps and _is_cheap(b.body)):
        return None
    body = substitute(b.body, dict(zip(b.axes, load.index, strict=True)))
    return rewrite(e, lambda n: body if n is load else None)  # type: ignore[return-value]


def _is_cheap(e: Expr) -> bool:
    nodes = [n for n in walk(e) if isinstance(n, (Apply, Cast, Select))]
    arithmetic = all(isinstance(n, Cast) or _is_arithmetic(n) for n in nodes)
    return arithmetic and len(nodes) <= MAX_CHEAP and main_load(e) is not None


def _is_arithmetic(n: Node) -> bool:
    return isinstance(n, Apply) and (n.op in CHEAP or dtype_of(n) is DType.I64)


def _widened(e: Expr) -> Expr:
    """The load of a half that is cast to float32; anything else as it is."""
    match e:
        case Cast(dtype=DType.F32, arg=Load(buffer=b) as load) if b.dtype.compute is DType.F32:
            return load
    return e


def _product(t: Tensor) -> _Product | None:
    match t:
        case Compute(reduction=r, body=Apply(op=ScalarOp.MUL, args=args)):
            x, y = map(_widened, args)
            is_sum = r is not None and r.op is ScalarOp.ADD and len(r.axes) == 1
            if is_sum and t.rank > 1 and isinstance(x, Load) and isinstance(y, Load):
                return _Product(t, x, y, *r.axes[0])  # type: ignore[union-attr]
    return None


def _softmax(t: Tensor) -> _Softmax | None:
    """exp(x - max x) / sum of it, as the operator is defined."""
    match t:
        case Compute(
            reduction=None,
            body=Apply(op=ScalarOp.DIV, args=(Load(buffer=Compute() as e) as p, Load() as s)),
        ):
            pass
        case _:
            return None
    match e:
        case Compute(
            reduction=None,
            body=Apply(
                op=ScalarOp.EXP, args=(Apply(op=ScalarOp.SUB, args=(Load() as x, Load() as m)),)
            ),
        ):
            pass
        case _:
            return None
    if not _is_here(p, t) or not _is_here(x, e) or t.dtype is not DType.F32:
        return None
    if not _reduces(s, ScalarOp.ADD, e, t) or not _reduces(m, ScalarOp.MAX, x.buffer, e):
        return None
    scores = _moved(x, e, tuple(Var(a) for a in t.axes))
    return _Softmax(t, scores, (e.name, s.buffer.name, m.buffer.name))


def _is_here(load: Load, t: Compute) -> bool:
    """Whether t reads at its own index."""
    return len(load.index) == t.rank and all(
        n == 1 or i == Var(a) for i, a, n in zip(load.index, t.axes, t.shape, strict=True)
    )


def _reduces(load: Load, op: ScalarOp, x: object, t: Compute) -> bool:
    """Whether the load is of the reduction of x along its last axis, in the row of t."""
    r = load.buffer
    if not isinstance(r, Compute) or r.reduction is None or r.reduction.op is not op:
        return False
    body = r.body
    if not isinstance(body, Load) or body.buffer is not x or len(r.reduction.axes) != 1:
        return False
    row = [i for i, n in zip(load.index, r.shape, strict=True) if n > 1]
    own = [Var(a) for a, n in zip(r.axes, r.shape, strict=True) if n > 1]
    last, extent = r.reduction.axes[0]
    inside = [i for i, n in zip(body.index, body.buffer.shape, strict=True) if n > 1]
    expected = [*own, Var(last)] if extent > 1 else own
    here = [Var(a) for a, n in zip(t.axes[:-1], t.shape[:-1], strict=True) if n > 1]
    return inside == expected and row == here and t.shape[-1] == extent


def _only_here(
    names: frozenset[str], result: str, readers: Readers, outputs: frozenset[str]
) -> bool:
    """Whether nobody else reads what happens on the way."""
    allowed = names | {result}
    return not names & outputs and all(readers[n] <= allowed for n in names if n in readers)


def _nest(t: Compute, a: Attention, form: Form, is_output: bool) -> NestOutput:
    strides = None if is_output else _rows_first(t, a)
    result = NestOutput(t.name, t.dtype, t.shape, strides, nest=[])
    result.nest.append(Nest(form.loops(a, result), (result,), "Attention", t.node))
    return result


def _rows_first(t: Compute, a: Attention) -> tuple[int, ...]:
    """Strides with the dimension before the rows, the heads, inside of them: what follows an
    attention reads it that way."""
    row, column = (t.axes.index(x) for x in (a.row, a.column))
    others = [k for k in range(t.rank) if k not in (row, column)]
    inner = [k for k in others if k == row - 1]
    order = [*(k for k in others if k not in inner), row, *inner, column]
    strides, step = [0] * t.rank, 1
    for k in reversed(order):
        strides[k] = step
        step *= t.shape[k]
    return tuple(strides)
