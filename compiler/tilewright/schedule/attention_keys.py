"""Attention of a few rows: all threads of a block go through the keys of one row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from tilewright.dtypes import DType
from tilewright.errors import ScheduleError
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Barrier,
    Block,
    Buffer,
    Combine,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Load,
    LoopKind,
    Space,
    Stmt,
    Store,
    Var,
    index_const,
    substitute,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify_threads import WARP
from tilewright.ops.common import minimum, select
from tilewright.schedule.attention import (
    GROUP,
    LOWEST,
    ZERO,
    baked,
    find_attention,
    finite,
    load_of,
    power,
    reading,
    registers,
    written_out,
)
from tilewright.schedule.attention_threads import ThreadProgram
from tilewright.schedule.cooperate import THREAD
from tilewright.schedule.staging import WITHIN
from tilewright.schedule.vectors import is_adjacent


@dataclass(frozen=True)
class AttentionKeys:
    """Share the keys of a row among the threads of a block, `width` threads to a key, each team
    taking `together` keys at a time; what the teams found is put together at the end."""

    width: int
    threads: int = 256
    together: int = 4

    def __call__(self, kernel: Kernel) -> Kernel:
        attention = find_attention(kernel)
        if attention is None:
            raise ScheduleError(f"{self}: the kernel is no attention")
        if WARP % self.width or self.threads % WARP:
            raise ScheduleError(f"{self}: teams are no parts of warps")
        return _Splitting(attention, self.threads, self).run(kernel)

    @property
    def teams(self) -> int:
        return self.threads // self.width


@dataclass
class _Splitting(ThreadProgram):
    how: AttentionKeys

    def registers(self) -> Mapping[str, tuple[int, ...]]:
        return {
            "query": (self.depth_groups * GROUP,),
            "sums": (self.column_groups * GROUP,),
            "score": (self.how.together,),
            **dict.fromkeys(("top", "total", "scale", "all"), ()),
        }

    @cached_property
    def shared(self) -> dict[str, Buffer]:
        """What the teams found."""
        columns = self.column_groups * self.how.width * GROUP
        shapes = {"parts": (self.how.teams, columns), "totals": (self.how.teams,)}
        return {n: Buffer(n, DType.F32, s, space=Space.SHARED) for n, s in shapes.items()}

    @cached_property
    def depth_groups(self) -> int:
        """Groups of a query or key that a thread has."""
        return -(-self.of.depth[1] // (self.how.width * GROUP))

    @cached_property
    def column_groups(self) -> int:
        return -(-self.of.column[1] // (self.how.width * GROUP))

    @cached_property
    def steps(self) -> int:
        return -(-self.of.keys[2] // (self.how.teams * self.how.together))

    @cached_property
    def ranges(self) -> dict[str, tuple[float, float]]:
        sizes = {
            **dict([*self.of.batch, self.of.row]),
            THREAD: self.threads,
            "step": self.steps,
            "u": self.how.together,
            "g": max(self.depth_groups, self.column_groups),
            WITHIN: GROUP,
        }
        return {a: (0.0, n - 1.0) for a, n in sizes.items()}

    @property
    def team(self) -> Expr:
        return Var(THREAD) // self.how.width

    def group(self, g: Expr) -> Expr:
        """The group of elements that is a thread's g-th."""
        return g * self.how.width + Var(THREAD) % self.how.width

    def key(self, u: Expr) -> Expr:
        return (Var("step") * self.how.together + u) * self.how.teams + self.team

    # -- the block

    def run(self, kernel: Kernel) -> Kernel:
        step = Block(
            (
                self.by_threads(self.multiply()),
                *self.whole_products(),
                self.by_threads(Block((self.weigh(), self.sum_values()))),
            )
        )
        at_once = self.how.teams * self.how.together
        body = Block(
            (
                self.by_threads(self.start()),
                For("step", self.of.steps(Var(self.of.row[0]), at_once), step),
                self.by_threads(self.put("all", value=self.at("top"))),
                Combine(self.own["all"], ScalarOp.MAX, self.threads),
                self.by_threads(self.leave()),
                Barrier(),
                self.by_threads(self.finish()),
            )
        )
        blocks = [*self.of.batch, self.of.row]
        return self.bound(kernel, body, list(self.shared.values()), blocks)

    # -- the steps of a thread

    def start(self) -> Stmt:
        g, v, c = Var("g"), Var(WITHIN), Var("c")

        def element(k: Expr) -> Expr:
            return substitute(self.of.query, {self.of.depth[0]: k})  # type: ignore[return-value]

        def keep(value: Expr) -> Stmt:
            return self.put("query", g * GROUP + v, value=value)

        none = [self.put("top", value=LOWEST), self.put("total", value=ZERO)]
        sums = baked("c", self.column_groups * GROUP, self.put("sums", c, value=ZERO))
        return Block(
            (*none, sums, self.each_group(self.depth_groups, self.of.depth[1], element, keep))
        )

    def each_group(
        self,
        groups: int,
        extent: int,
        element: Callable[[Expr], Expr],
        use: Callable[[Expr], Stmt],
    ) -> Stmt:
        """Reads a thread's groups of a line in memory, zero beyond its end, and uses each element
        (axes g and v)."""
        return baked("g", groups, self._read(extent, element, use))

    def _read(
        self, extent: int, element: Callable[[Expr], Expr], use: Callable[[Expr], Stmt]
    ) -> Stmt:
        v, place = Var(WITHIN), self.group(Var("g")) * GROUP + Var(WITHIN)
        value = element(place)
        source = load_of(value)
        held = registers("held", GROUP, dtype=source.buffer.dtype)
        taken = reading(value, source, Load(held, (v,)))
        if extent % (self.how.width * GROUP):
            taken = select(place < extent, taken, ZERO)
        used = baked(WITHIN, GROUP, use(taken))
        fill = self._whole(source, held, extent, element) or self._single(held, extent, element)
        return Alloc(held, Block((fill, used)))

    def _whole(
        self, source: Load, held: Buffer, extent: int, element: Callable[[Expr], Expr]
    ) -> Stmt | None:
        """By vectors, where memory allows it."""
        v, group = Var(WITHIN), self.group(Var("g"))
        copy = Store(held, (v,), source)
        loop = For(WITHIN, index_const(GROUP), copy, LoopKind.VECTOR, baked=True)
        if extent % GROUP or not is_adjacent(source.buffer, source.index, loop, self.ranges):
            return None
        if extent % (self.how.width * GROUP) == 0:
            return loop
        none = baked(WITHIN, GROUP, Store(held, (v,), Const(0.0, held.dtype)))
        last = extent // GROUP - 1
        inside = load_of(element(minimum(group, last) * GROUP + v))
        known = replace(loop, body=Store(held, (v,), inside))
        return Block((none, If(group <= last, known)))

    def _single(self, held: Buffer, extent: int, element: Callable[[Expr], Expr]) -> Stmt:
        place = self.group(Var("g")) * GROUP + Var(WITHIN)
        inside = load_of(element(minimum(place, extent - 1)))
        value = select(place < extent, inside, Const(0.0, held.dtype))
        return baked(WITHIN, GROUP, Store(held, (Var(WITHIN),), value))

    def multiply(self) -> Stmt:
        """A thread's part of the products of its team's keys."""
        of, u = self.of, Var("u")

        def element(k: Expr) -> Expr:
            env = of.place(index_const(0), self.key(u)) | {of.depth[0]: k}
            return substitute(of.key, env)  # type: ignore[return-value]

        def use(value: Expr) -> Stmt:
            place = Var("g") * GROUP + Var(WITHIN)
            return self.add("score", u, value=self.at("query", place) * value)

        parts = self.each_group(self.depth_groups, of.depth[1], element, use)
        zero = self.put("score", u, value=ZERO)
        return baked("u", self.how.together, Block((zero, parts)))

    def whole_products(self) -> list[Stmt]:
        u = Var("u")
        parts = (
            self.by_threads(self.put("all", value=self.at("score", u))),
            Combine(self.own["all"], ScalarOp.ADD, self.how.width),
            self.by_threads(self.put("score", u, value=self.at("all"))),
        )
        return written_out("u", self.how.together, Block(parts))

    def weigh(self) -> Stmt:
        """The weights of a team's keys; what was summed before is scaled to the new top."""
        u, c = Var("u"), Var("c")
        whole = self.of.keys[2] % (self.how.teams * self.how.together) == 0
        score = self.of.scored(self.at("score", u), Var(self.of.row[0]), self.key(u), whole)
        scale = power(self.at("top") - finite(self.at("all")))
        weight = power(self.at("score", u) - finite(self.at("top")))
        count, columns = self.how.together, self.column_groups * GROUP
        scaled = self.put("sums", c, value=self.at("sums", c) * self.at("scale"))
        taken = Block(
            (self.put("score", u, value=weight), self.add("total", value=self.at("score", u)))
        )
        return Block(
            (
                self.put("all", value=self.at("top")),
                baked(
                    "u",
                    count,
                    Block(
                        (
                            self.put("score", u, value=score),
                            self.highest("all", self.at("score", u)),
                        )
                    ),
                ),
                self.put("scale", value=scale),
                self.put("top", value=self.at("all")),
                self.put("total", value=self.at("total") * self.at("scale")),
                baked("c", columns, scaled),
                baked("u", count, taken),
            )
        )

    def sum_values(self) -> Stmt:
        of, u = self.of, Var("u")

        def element(c: Expr) -> Expr:
            env = of.place(index_const(0), self.key(u)) | {of.column[0]: c}
            return substitute(of.value, env)  # type: ignore[return-value]

        def use(value: Expr) -> Stmt:
            place = Var("g") * GROUP + Var(WITHIN)
            return self.add("sums", place, value=self.at("score", u) * value)

        values = self.each_group(self.column_groups, of.column[1], element, use)
        return baked("u", self.how.together, values)

    # -- what the teams found

    def leave(self) -> Stmt:
        """A team's sums, scaled to the top of all."""
        g, v = Var("g"), Var(WITHIN)
        scale = power(self.at("top") - finite(self.at("all")))
        at = (self.team, self.group(g) * GROUP + v)
        part = self.at("sums", g * GROUP + v) * self.at("scale")
        total = Store(self.shared["totals"], (self.team,), self.at("total") * self.at("scale"))
        kept = baked(WITHIN, GROUP, Store(self.shared["parts"], at, part))
        sums = baked("g", self.column_groups, kept)
        first = (Var(THREAD) % self.how.width).eq(0)
        return Block((self.put("scale", value=scale), If(first, total), sums))

    def finish(self) -> Stmt:
        count, t = self.of.column[1], Var("t")
        column = Var("c") * self.threads + Var(THREAD)
        whole, total = registers("whole"), registers("weight")
        parts = Block(
            (
                Accumulate(whole, (), ScalarOp.ADD, Load(self.shared["parts"], (t, column))),
                Accumulate(total, (), ScalarOp.ADD, Load(self.shared["totals"], (t,))),
            )
        )
        row = Var(self.of.row[0])
        share = self.of.share(Load(whole, ()), Load(total, ()), row)
        body: Stmt = Block(
            (
                Store(whole, (), ZERO),
                Store(total, (), ZERO),
                For("t", index_const(self.how.teams), parts, baked=True),
                self.of.stored(row, column, share),
            )
        )
        body = Alloc(whole, Alloc(total, body))
        body = If(column < count, body) if count % self.threads else body
        return baked("c", -(-count // self.threads), body)
