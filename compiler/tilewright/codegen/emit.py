"""Loop nests to Numba source for the CPU. Printing is the only thing that happens here.

The text is canonical: parameters, axes, local buffers and lifted numbers are named in order of
appearance, and
integer constants that only say how large or how far apart things are become parameters. Equal text
is the same
kernel; the numbers travel in its argument table: [errors, pointers..., numbers..., first/last task
bounds].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, assert_never

import numpy as np

from tilewright.codegen.spelling import (
    ACCUMULATE,
    ADD_PRODUCT,
    CHECKED,
    FLOAT_FUNCTIONS,
    INFIX,
    INTEGER_FUNCTIONS,
    SUFFIX,
    module_of,
)
from tilewright.codegen.tiles import Target, indent, print_copied_tile, print_tile
from tilewright.dtypes import DType
from tilewright.loops.affine import Linear, linear
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
    walk,
)
from tilewright.loops.locate import axis_ranges, offset
from tilewright.loops.scalars import ScalarOp

SUMS = frozenset((ScalarOp.ADD, ScalarOp.SUB, ScalarOp.MUL))
INTEGER_TYPES = frozenset(SUFFIX.values())  # names that kernels import
QUOTIENTS = frozenset((ScalarOp.FLOORDIV, ScalarOp.MOD))


@dataclass(frozen=True)
class Emitted:
    """A printed kernel: `numbers` fill its table after the pointers, then come the tasks' `chunk`
    (iterations of the
    parallel loops to a task) where `iterations` is not None. `checks` counts the error codes it
    may report."""

    text: str
    numbers: tuple[int, ...]
    iterations: int | None
    checks: int


def emit(kernel: Kernel) -> Emitted:
    """The source of a kernel and the numbers that were lifted out of it."""
    return Emitter(kernel).run()


@dataclass
class Emitter:
    """Prints a kernel for the CPU. What other targets print otherwise stands in methods of its
    own."""

    kernel: Kernel
    alone: ClassVar[bool] = True  # indices that come from scratch are kept out of vectors
    numbers: list[int] = field(default_factory=list)
    named: dict[tuple[str, ...], str] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    locals: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    special: set[str] = field(default_factory=set)
    checks: int = 0
    iterations: int | None = None

    def run(self) -> Emitted:
        self.ranges = axis_ranges(self.kernel.body)
        body = self._tasks(self.kernel.body)
        head = [
            f"    p{k} = {self.use(SUFFIX[b.dtype])}(args, {k + 1})"
            for k, b in enumerate(self.kernel.params)
        ]
        first = len(self.kernel.params) + 1
        head += [
            f"    n{k} = {self.use('integer')}(args, {first + k})" for k in range(len(self.numbers))
        ]
        if self.iterations is not None:
            head.append(f"    chunk = {self.use('integer')}(args, {first + len(self.numbers)})")
        if self.checks:
            head += [f"    errors = {self.use('stack_i64')}(1)", "    errors[0] = 0"]
            body.append(f"{self.use('report')}(errors, {self.use('i64')}(args, 0))")
        text = (
            "\n".join([*self._imports(), "", "", "def kernel(task, args):", *head, *indent(body)])
            + "\n"
        )
        return Emitted(text, tuple(self.numbers), self.iterations, self.checks)

    def _imports(self) -> list[str]:
        names: dict[str, list[str]] = {}
        for n in sorted(self.used):
            names.setdefault(self.module(n), []).append(n)
        special = [n for n in ("inf", "nan") if n in self.special]
        first = [f"from math import {', '.join(special)}"] if special else []
        return [*first, *(f"from {m} import {', '.join(v)}" for m, v in sorted(names.items()))]

    def module(self, name: str) -> str:
        """The module that a name is imported from."""
        return module_of(name)

    def use(self, name: str) -> str:
        self.used.add(name)
        return name

    def number(self, value: int, *key: str) -> str:
        """A lifted number; the same key is the same parameter."""
        if key and key in self.named:
            return self.named[key]
        name = f"n{len(self.numbers)}"
        self.numbers.append(int(value))
        if key:
            self.named[key] = name
        return name

    # -- statements

    def _tasks(self, s: Stmt) -> list[str]:
        """The parallel loops around a body, as one range of iterations per task."""
        loops: list[For] = []
        while isinstance(s, For) and s.kind is LoopKind.PARALLEL:
            loops.append(s)
            s = s.body
        if not loops:
            return self._statement(s)
        extents = [int(n.extent.value) for n in loops if isinstance(n.extent, Const)]
        assert len(extents) == len(loops), "parallel loops have fixed extents"
        self.iterations = math.prod(extents)
        total = self.number(self.iterations)
        bounds = f"range(task * chunk, min(task * chunk + chunk, {total}))"
        names = [self.axis(n.axis) for n in loops]
        if loops[-1].together:
            lines = self._together(loops, names, extents)
            return [f"for t in {bounds}:", *indent([*lines, *self._statement(s)])]
        if len(loops) == 1:
            return [f"for {names[0]} in {bounds}:", *indent(self._statement(s))]
        lines = [
            f"rest = t // {(last := self.number(extents[-1]))}",
            f"{names[-1]} = t - rest * {last}",
        ]
        for name, n in zip(names[-2:0:-1], extents[-2:0:-1], strict=True):
            size = self.number(n)
            lines += [f"{name} = rest % {size}", f"rest = rest // {size}"]
        lines.append(f"{names[0]} = rest")
        return [f"for t in {bounds}:", *indent([*lines, *self._statement(s)])]

    def _together(self, loops: list[For], names: list[str], extents: list[int]) -> list[str]:
        """The iteration number t as axes, some iterations of the innermost loop at a time."""
        inner, outer = self.number(extents[-1]), self.number(extents[-2])
        count = self.number(loops[-1].together)
        lines = [
            f"rest = t // ({inner} * {outer})",
            f"place = t - rest * ({inner} * {outer})",
            f"first = place // ({count} * {outer}) * {count}",
            f"width = min({count}, {inner} - first)",
            f"place = place - first * {outer}",
            f"{names[-2]} = place // width",
            f"{names[-1]} = first + place - {names[-2]} * width",
        ]
        for name, n in zip(names[-3::-1], extents[-3::-1], strict=True):
            size = self.number(n)
            lines += [f"{name} = rest % {size}", f"rest = rest // {size}"]
        return lines

    def axis(self, axis: str) -> str:
        name = f"i{len(self.axes)}"
        return self.axes.setdefault(axis, f"{name}_" if name in INTEGER_TYPES else name)

    def _statement(self, s: Stmt) -> list[str]:
        match s:
            case For():
                return self._loop(s)
            case If(condition=condition, body=body):
                return [f"if {self.expr(condition)}:", *indent(self._statement(body))]
            case Block(stmts=stmts):
                return [line for t in stmts for line in self._statement(t)]
            case Alloc():
                return self._allocate(s)
            case Store(buffer=b, index=index, value=value):
                return [self._store(b, index, self.expr(value))]
            case Accumulate():
                return [self._accumulate(s)]
            case Tile():
                return self._tile(s)
            case Barrier() | Combine() | Commit() | Wait() | Mma() | Stages() | Fetch():
                raise NotImplementedError("the tasks of this target do not meet")
            case Box() | Arrived() | Wgmma() | Settle():
                raise NotImplementedError("the tasks of this target do not meet")
            case _:
                assert_never(s)

    def _loop(self, s: For) -> list[str]:
        head = f"for {self.axis(s.axis)} in range({self.extent(s, s.extent)}):"
        last = [f"{self.use('unrolled')}()"] if s.kind is LoopKind.UNROLLED else []
        return [head, *indent([*self._statement(s.body), *last])]

    def _allocate(self, s: Alloc) -> list[str]:
        b = s.buffer
        name = self.locals.setdefault(b.name, f"a{len(self.locals)}")
        if (copied := print_copied_tile(self, s, name, self.ranges)) is not None:
            return copied
        lines = self._statement(s.body)
        if b.shape:
            size = max(1, math.prod(b.shape))
            lines.insert(0, f"{name} = {self.use(f'stack_{stored_kind(b.dtype)}')}({size})")
        return lines

    def _tile(self, s: Tile) -> list[str]:
        name = self.locals[s.acc.name]
        printed = print_tile(self, s, self.ranges, Target(name, name))
        return printed or self._statement(s.meaning)

    def extent(self, s: For, extent: Expr) -> str:
        if isinstance(extent, Const):
            return str(extent.value) if s.baked else self.number(int(extent.value))
        return self._index(extent)

    def _accumulate(self, s: Accumulate) -> str:
        """One step of a reduction; float sums and products may be reordered."""
        old, dtype = self._load(s.buffer, s.index), s.buffer.dtype.compute
        if not dtype.is_float or s.op not in ACCUMULATE:
            return self._store(
                s.buffer, s.index, self._apply(s.op, dtype, [old, self.expr(s.value)])
            )
        step, args = self._step_of(s.op, s.value)
        values = ", ".join([old, *map(self.expr, args)])
        return self._store(s.buffer, s.index, f"{self.use(f'{step}_{SUFFIX[dtype]}')}({values})")

    def _step_of(self, op: ScalarOp, value: Expr) -> tuple[str, tuple[Expr, ...]]:
        match op, value:
            case ScalarOp.ADD, Apply(op=ScalarOp.MUL, args=factors):
                return ADD_PRODUCT, factors
        return ACCUMULATE[op], (value,)

    def _store(self, b: Buffer, index: tuple[Expr, ...], value: str) -> str:
        if b.space is Space.LOCAL and not b.shape:
            return f"{self.locals[b.name]} = {value}"
        name, at = self._place(b, index)
        if b.dtype is DType.BOOL:
            return f"{self.use('store_b8')}({name}, {at}, {value})"
        if b.dtype.compute is not b.dtype and b.space is Space.GLOBAL:
            return f"{self.use('store_' + SUFFIX[b.dtype])}({name}, {at}, {value})"
        return f"{name}[{at}] = {value}"

    # -- expressions

    def expr(self, e: Expr) -> str:
        match e:
            case Const(value=value, dtype=dtype):
                return self._constant(value, dtype)
            case Var(name=name):
                return self.axis(name)
            case Load(buffer=b, index=index):
                return self._load(b, index)
            case Cast(dtype=dtype, arg=arg):
                return self._cast(dtype, arg)
            case Select(condition=c, then=then, otherwise=otherwise):
                parts = self.expr(then), self.expr(c), self.expr(otherwise)
                if _is_safe(then) and _is_safe(otherwise):
                    return f"{self.use('select')}({parts[1]}, {parts[0]}, {parts[2]})"
                return f"({parts[0]} if {parts[1]} else {parts[2]})"
            case Apply(op=op, args=args):
                if dtype_of(e) is DType.I64 and (
                    op in SUMS or (op in QUOTIENTS and _is_positive(args[1]))
                ):
                    return self._index(e)
                return self._apply(op, dtype_of(args[0]).compute, [self.expr(a) for a in args])
            case _:
                assert_never(e)

    def _constant(self, value: float | int | bool, dtype: DType) -> str:
        if dtype is DType.BOOL:
            return str(bool(value))
        if dtype is DType.I64:
            return str(value) if value in (0, 1, -1) else self.number(int(value))
        if not dtype.is_float:
            return f"{self.use('to_' + SUFFIX[dtype])}({value})"
        if math.isfinite(value):
            text = repr(value) if dtype is DType.F64 else str(np.float32(value))
        else:
            self.special.add(word := "nan" if math.isnan(value) else "inf")
            text = f"-{word}" if value < 0 else word
        return f"{self.use('to_f64' if dtype is DType.F64 else 'to_f32')}({text})"

    def _load(self, b: Buffer, index: tuple[Expr, ...]) -> str:
        if b.space is Space.LOCAL and not b.shape:
            return self.locals[b.name]
        name, at = self._place(b, index)
        if b.dtype is DType.BOOL or (b.dtype.compute is not b.dtype and b.space is Space.GLOBAL):
            return f"{self.use('load_' + SUFFIX[b.dtype])}({name}, {at})"
        if self.alone and b.space is Space.LOCAL and b.dtype is DType.I64 and b.values is not None:
            return f"{self.use('alone')}({name}[{at}])"  # an index into other buffers
        return f"{name}[{at}]"

    def _place(self, b: Buffer, index: tuple[Expr, ...]) -> tuple[str, str]:
        """The pointer and the offset of an element, as text."""
        name, owner = self.memory(b)
        return name, self.linear(offset(b, index, self.ranges), owner)

    def memory(self, b: Buffer) -> tuple[str, str | None]:
        """A buffer's name, and the owner of lifted offsets into it: local ones and columns of
        records have none."""
        if b.space is Space.LOCAL:
            return self.locals[b.name], None
        is_column = len(b.shape) == 1 and b.strides not in (None, (1,))
        return b.name, None if is_column else b.name

    def linear(self, form: Linear, owner: str | None) -> str:
        """A linear form; its coefficients are literals without an owner, lifted numbers with
        one."""
        parts = []
        for atom, c in form.terms:
            text = self._atom(atom)
            if c == 1:
                parts.append(text)
            elif owner is None:
                parts.append(f"{text} * {c}")
            else:
                parts.append(f"{text} * {self.number(c, owner, text, str(c))}")
        if form.constant or not parts:
            lifted = owner is not None and form.constant not in (0, 1, -1)
            parts.append(
                self.number(form.constant, owner or "", str(form.constant))
                if lifted
                else str(form.constant)
            )
        return " + ".join(parts)

    def _atom(self, e: Expr) -> str:
        match e:
            case Var():
                return self.axis(e.name)
            case Apply(op=ScalarOp.FLOORDIV | ScalarOp.MOD, args=(x, Const(value=d))) if int(d) > 0:
                sign = "//" if e.op is ScalarOp.FLOORDIV else "%"
                return f"({self._index(x)} {sign} {int(d)})"
            case Apply(op=ScalarOp.MIN | ScalarOp.MAX, args=(a, b)):
                name = "min" if e.op is ScalarOp.MIN else "max"
                return f"{name}({self._index(a)}, {self._index(b)})"
            case Apply(op=ScalarOp.ADD | ScalarOp.SUB | ScalarOp.MUL):
                return f"({self._apply(e.op, DType.I64, [self.expr(a) for a in e.args])})"
        return self.expr(e)

    def _index(self, e: Expr) -> str:
        form = linear(e, self.ranges)
        if form.constant == 0 and len(form.terms) == 1 and form.terms[0][1] == 1:
            return self._atom(form.terms[0][0])
        return f"({self.linear(form, 'index')})"

    def _cast(self, dtype: DType, arg: Expr) -> str:
        value, source = self.expr(arg), dtype_of(arg)
        if dtype is DType.BOOL:
            return f"{self.use('to_bool')}({value})"
        if source.compute is dtype:
            return value
        return f"{self.use('to_' + SUFFIX[dtype])}({value})"

    def _apply(self, op: ScalarOp, dtype: DType, args: list[str]) -> str:
        joined = ", ".join(args)
        if op in CHECKED and dtype.is_integer:
            self.checks += 1
            return f"{self.use(CHECKED[op])}({joined}, errors, {self.checks})"
        if dtype is DType.BOOL and op in (ScalarOp.MAX, ScalarOp.MIN):
            op = ScalarOp.OR if op is ScalarOp.MAX else ScalarOp.AND
        narrow = dtype.is_integer and dtype is not DType.I64
        if op in INFIX and not (narrow and op in INTEGER_FUNCTIONS):
            text = f"({args[0]} {INFIX[op]} {args[1]})"
            return (
                f"{self.use('to_' + SUFFIX[dtype])}{text}" if narrow and op.rule == "same" else text
            )
        match op:
            case ScalarOp.DIV:
                return f"({args[0]} / {args[1]})"
            case ScalarOp.NEG if not narrow:
                return f"(-{args[0]})"
            case ScalarOp.NOT:
                return f"(not {args[0]})"
        if dtype.is_float:
            return f"{self.use(f'{FLOAT_FUNCTIONS[op]}_{SUFFIX[dtype]}')}({joined})"
        return f"{self.use(INTEGER_FUNCTIONS[op])}({joined})"


def stored_kind(dtype: DType) -> str:
    """How elements are held in scratch: halves as float32, booleans as bytes."""
    return "u8" if dtype is DType.BOOL else SUFFIX[dtype.compute]


def _is_safe(e: Expr) -> bool:
    """Whether the expression may be evaluated although its value is not wanted: no load, no
    check."""
    unsafe = (ScalarOp.CHECK, ScalarOp.DIV, ScalarOp.REM, ScalarOp.MOD)
    return not any(
        isinstance(n, Load) or (isinstance(n, Apply) and n.op in unsafe) for n in walk(e)
    )


def _is_positive(e: Expr) -> bool:
    return isinstance(e, Const) and e.value > 0
