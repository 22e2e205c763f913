"""What every pass may assume and must leave true. A VerifyError is a bug in this compiler.

* every axis is bound by one loop, every buffer is a parameter or allocated around its use;
* every index has the buffer's rank and lies inside its shape, by interval analysis under the
guards around it;
* elements of a buffer with known limits stay between them (constants do: they are measured);
* operands of a scalar function agree in type, values are stored in the buffer's type;
* no two iterations of a parallel loop are known to write one element (unless overlapping blocks
compute it twice, from the same operands);
* the local buffers of a kernel fit on a stack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NoReturn, assert_never

from tilewright.dtypes import DType
from tilewright.errors import VerifyError
from tilewright.loops.affine import Linear, Range, interval, linear
from tilewright.loops.facts import Facts, bounds, contradictory, learn, learn_extent, unlearn
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Apply,
    Arrived,
    Barrier,
    Block,
    Box,
    Buffer,
    Cast,
    Combine,
    Commit,
    Const,
    Expr,
    Fetch,
    For,
    If,
    Kernel,
    Load,
    LoopKind,
    Mma,
    Select,
    Settle,
    Space,
    Stages,
    Stmt,
    Store,
    Tile,
    Var,
    Wait,
    Wgmma,
    dtype_of,
    variables,
    walk,
)
from tilewright.loops.locate import MAX_SCRATCH_BYTES, axis_ranges, scratch_bytes
from tilewright.loops.scalars import MONOIDS, ScalarOp
from tilewright.loops.verify_threads import has_threads, verify_threads


def verify(kernel: Kernel) -> Kernel:
    """The kernel itself, once it is known to be sound; VerifyError otherwise."""
    scope = _Scope((kernel.name,), {b.name: b for b in kernel.params})
    if (scratch := scratch_bytes(kernel.body)) > MAX_SCRATCH_BYTES:
        scope.fail(f"{scratch:,} bytes of scratch; a task has {MAX_SCRATCH_BYTES:,}")
    _Verifier(frozenset(kernel.outputs)).statement(kernel.body, scope)
    if has_threads(kernel):
        verify_threads(kernel)
    return kernel


@dataclass(frozen=True)
class _Scope:
    """What is visible and known at one place of a kernel, and the way there."""

    path: tuple[str, ...]
    buffers: Mapping[str, Buffer]
    ranges: Mapping[str, Range] = field(default_factory=dict)
    facts: Facts = field(default_factory=dict)

    def at(self, step: str) -> _Scope:
        return replace(self, path=(*self.path, step))

    def knowing(self, facts: Facts) -> _Scope:
        return replace(self, facts=facts)

    def inside(self, loop: For, top: float) -> _Scope:
        facts = learn_extent(loop.axis, loop.extent, self.ranges, self.facts)
        ranges = {**self.ranges, loop.axis: (0.0, top)}
        return replace(self.at(f"for {loop.axis}"), ranges=ranges, facts=facts)

    def fail(self, why: str) -> NoReturn:
        raise VerifyError(f"{' > '.join(self.path)}: {why}")


@dataclass(frozen=True)
class _Verifier:
    outputs: frozenset[str]

    def statement(self, s: Stmt, scope: _Scope) -> None:
        match s:
            case For():
                self._loop(s, scope)
            case If(condition=condition, body=body):
                self.boolean(condition, scope)
                known = learn(condition, scope.ranges, scope.facts)
                self.statement(body, scope.knowing(known).at("if"))
            case Block(stmts=stmts):
                for t in stmts:
                    self.statement(t, scope)
            case Alloc(buffer=b, body=body):
                if b.name in scope.buffers or b.space is Space.GLOBAL:
                    scope.fail(f"local buffer {b.name} is defined twice or not local")
                self.statement(body, replace(scope, buffers={**scope.buffers, b.name: b}))
            case Tile(meaning=meaning, acc=acc):
                if acc.name not in scope.buffers:
                    scope.fail(f"the tile's buffer {acc.name} is not in scope")
                self.statement(meaning, scope.at("tile"))
            case Store() | Accumulate():
                self._write(s, scope.at(f"write {s.buffer.name}"))
            case Combine(buffer=b):
                if scope.buffers.get(b.name) != b:
                    scope.fail(f"the combined buffer {b.name} is not in scope")
            case Mma(sums=sums, meaning=meaning) | Wgmma(sums=sums, meaning=meaning):
                if sums.name not in scope.buffers:
                    scope.fail(f"the sums {sums.name} are not in scope")
                self.statement(meaning, scope.at("mma"))
            case Fetch(boxes=boxes):
                for box in boxes:
                    self.statement(box, scope)
            case Box(target=target, meaning=meaning):
                if target.name not in scope.buffers:
                    scope.fail(f"the target {target.name} of a copy is not in scope")
                self.statement(meaning, scope.at("box"))
            case Barrier() | Commit() | Wait() | Stages() | Arrived() | Settle():
                pass
            case _:
                assert_never(s)

    def _loop(self, s: For, scope: _Scope) -> None:
        if s.axis in scope.ranges:
            scope.fail(f"axis {s.axis} shadows an outer axis")
        self.expression(s.extent, scope)
        apart = (LoopKind.PARALLEL, LoopKind.BLOCK)  # threads choose who writes: `verify_threads`
        if s.kind in apart and (why := shared_writes(s) or colliding_writes(s)):
            scope.fail(why)
        top = interval(s.extent, scope.ranges)[1] - 1
        if top >= 0:  # else it never runs
            self.statement(s.body, scope.inside(s, top))

    def _write(self, s: Store | Accumulate, scope: _Scope) -> None:
        if isinstance(s, Accumulate) and s.op not in MONOIDS:
            scope.fail(f"{s.op.name} is no reduction")
        if s.buffer.space is Space.GLOBAL and s.buffer.name not in self.outputs:
            scope.fail("an input is written to")
        self._access(s.buffer, s.index, scope)
        got = self.expression(s.value, scope)
        if got is not s.buffer.dtype:
            scope.fail(f"{got.name} is stored to a buffer of {s.buffer.dtype.name}")
        if s.buffer.values is not None:
            self._keeps_range(s, s.buffer.values, scope)

    def _keeps_range(self, s: Store | Accumulate, values: tuple[int, int], scope: _Scope) -> None:
        """Elements of a buffer with known limits stay between them."""
        low, high = bounds(s.value, scope.ranges, scope.facts)
        if isinstance(s, Accumulate) or low < values[0] or high > values[1]:
            scope.fail(f"{s.buffer.name} holds values in {values}, stored is [{low:g}, {high:g}]")

    def boolean(self, e: Expr, scope: _Scope) -> None:
        if self.expression(e, scope) is not DType.BOOL:
            scope.fail("a condition is not boolean")

    def expression(self, e: Expr, scope: _Scope) -> DType:
        match e:
            case Const():
                pass
            case Var(name=name):
                if name not in scope.ranges:
                    scope.fail(f"axis {name} is used outside its loop")
            case Load(buffer=b, index=index):
                self._access(b, index, scope.at(f"read {b.name}"))
            case Cast(arg=arg):
                self.expression(arg, scope)
            case Select():
                self._select(e, scope)
            case Apply(op=op, args=args):
                kinds = {self.expression(a, scope) for a in args}
                if len(kinds) != 1 or len(args) != op.arity:
                    scope.fail(f"{op.name} of {[k.name for k in kinds]} and {len(args)} operands")
            case _:
                assert_never(e)
        return dtype_of(e)

    def _select(self, e: Select, scope: _Scope) -> None:
        self.boolean(e.condition, scope)
        holds = scope.knowing(learn(e.condition, scope.ranges, scope.facts))
        fails = scope.knowing(unlearn(e.condition, scope.ranges, scope.facts))
        first, second = self.expression(e.then, holds), self.expression(e.otherwise, fails)
        if first is not second:
            scope.fail(f"the sides of a select are {first.name} and {second.name}")

    def _access(self, b: Buffer, index: tuple[Expr, ...], scope: _Scope) -> None:
        if scope.buffers.get(b.name) != b:
            scope.fail("the buffer is not in scope")
        if len(index) != len(b.shape):
            scope.fail(f"{len(index)} indices for rank {len(b.shape)}")
        never = contradictory(scope.facts)
        for i, n in zip(index, b.shape, strict=True):
            if self.expression(i, scope) is not DType.I64:
                scope.fail("an index is not int64")
            low, high = bounds(i, scope.ranges, scope.facts)
            if (low < 0 or high >= n) and high >= low and not never:
                scope.fail(f"index {i} spans [{low:g}, {high:g}], the extent is {n}")


def shared_writes(loop: For) -> str | None:
    """Why two iterations of the loop could write different values to one element, or None."""
    if isinstance(loop.extent, Const) and loop.extent.value <= 1:
        return None
    local = {n.buffer.name for n in walk(loop.body) if isinstance(n, Alloc)}
    for n in walk(loop.body):
        if isinstance(n, (Store, Accumulate)) and n.buffer.name not in local:
            if not any(loop.axis in variables(i) for i in n.index):
                return f"parallel axis {loop.axis} writes {n.buffer.name} without indexing by it"
            if isinstance(n, Accumulate) and any(_overlaps(i, loop.axis) for i in n.index):
                name = n.buffer.name
                return f"parallel axis {loop.axis} accumulates into shared elements of {name}"
    return None


def _overlaps(index: Expr, axis: str) -> bool:
    return any(
        isinstance(n, Apply) and n.op is ScalarOp.MIN and axis in variables(n) for n in walk(index)
    )


def colliding_writes(loop: For) -> str | None:
    """Why two iterations are sure to write one element, although each indexes by the axis; or None.

    Such are an index by a quotient of the axis alone, and one by a sum with an inner axis that
    reaches the next iteration's elements.
    """
    if isinstance(loop.extent, Const) and loop.extent.value <= 1:
        return None
    ranges = axis_ranges(loop)
    local = {n.buffer.name for n in walk(loop.body) if isinstance(n, Alloc)}
    inner = {n.axis: ranges[n.axis][1] for n in walk(loop.body) if isinstance(n, For)}
    for n in walk(loop.body):
        if isinstance(n, (Store, Accumulate)) and n.buffer.name not in local:
            forms = [linear(i, ranges) for i in n.index if loop.axis in variables(i)]
            if _by_quotients(forms, loop.axis) or _reaches_next(forms, loop.axis, inner):
                return f"parallel axis {loop.axis} writes elements of {n.buffer.name} twice"
    return None


def _by_quotients(forms: list[Linear], axis: str) -> bool:
    """Whether the axis occurs in nothing but quotients by constants."""
    atoms = [a for form in forms for a, _ in form.terms if axis in variables(a)]
    quotients = [isinstance(a, Apply) and a.op is ScalarOp.FLOORDIV for a in atoms]
    return bool(atoms) and all(quotients)


def _reaches_next(forms: list[Linear], axis: str, inner: Mapping[str, float]) -> bool:
    """Whether one step of the axis is some steps of an inner axis."""
    if len(forms) != 1 or axis in forms[0].nonlinear_axes():
        return False
    step = forms[0].coefficient(axis)
    return any(
        (c := forms[0].coefficient(a)) and step % c == 0 and abs(step // c) <= last
        for a, last in inner.items()
    )
