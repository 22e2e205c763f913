"""Which producers are computed inside their consumers. Each edge is decided on its own, and the
reason is kept.

Afterwards only *real* tensors are left: those that some kernel stores. A producer that one
consumer inlines and
another does not is both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from tilewright.fusion.contraction import Contraction, find_contraction, ranges_of
from tilewright.fusion.decide import Reason, Refusal
from tilewright.fusion.renew import renewed
from tilewright.fusion.winograd import WinogradCompute
from tilewright.loops.affine import simplify_loads
from tilewright.loops.ir import (
    Apply,
    Buffer,
    Expr,
    Load,
    Node,
    Select,
    Var,
    children,
    makes_checks,
    rewrite,
    substitute,
    variables,
    walk,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.tensor import Compute, NestOutput, Placeholder, Tensor, sources

MAX_NODES = 300  # expression nodes of one kernel's body
CHEAP = 3  # arithmetic that is sooner done again than loaded
ALIASING_BYTES = 4096  # lines this far apart share a set of the first-level cache
LINE_BYTES = 64
MIN_CHANNELS = 16  # for which a copy with channels innermost pays
EXPENSIVE = frozenset(
    getattr(ScalarOp, n)
    for n in (
        "EXP LOG SIN COS TAN ASIN ACOS ATAN SINH COSH TANH ASINH ACOSH ATANH ERF SIGMOID LOG1P"
        " EXPM1 POW RATIONAL_SIGMOID RATIONAL_TANH"
    ).split()
)


@dataclass
class Program:
    """What is left to compute after inlining: real tensors in order, producers first."""

    inputs: tuple[Placeholder, ...]
    outputs: tuple[Tensor, ...]
    order: list[Tensor]
    consumers: dict[str, list[Tensor]]
    contractions: dict[str, Contraction]
    decisions: list[Reason] = field(default_factory=list)
    checked: dict[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # nodes whose checks a tensor's body makes

    def on_tiles(self, t: Tensor) -> bool:
        """Whether t is a matmul or convolution that starts a kernel of its own."""
        return t.name in self.contractions or isinstance(t, WinogradCompute)


def topological(outputs: Sequence[Tensor]) -> list[Tensor]:
    """All tensors that the outputs are computed from, producers first."""
    done: dict[str, Tensor] = {}
    stack: list[tuple[Tensor, bool]] = [(t, False) for t in reversed(outputs)]
    while stack:
        t, ready = stack.pop()
        if t.name in done:
            continue
        if ready:
            done[t.name] = t
            continue
        stack.append((t, True))
        stack.extend((s, False) for s in sources(t) if s.name not in done)
    return list(done.values())


def inline(inputs: Sequence[Placeholder], outputs: Sequence[Tensor]) -> Program:
    """The program in which every edge that may and should be inlined is."""
    return _Inliner(inputs, outputs).run()


class _Inliner:
    def __init__(self, inputs: Sequence[Placeholder], outputs: Sequence[Tensor]) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.order = topological(outputs)
        self.consumers: dict[str, list[Tensor]] = {t.name: [] for t in self.order}
        for t in self.order:
            for s in sources(t):
                self.consumers[s.name].append(t)
        self.output_names = {t.name for t in outputs}
        self.done: dict[str, Tensor] = {}
        self.contractions: dict[str, Contraction] = {}
        self.decisions: list[Reason] = []
        self.checked: dict[str, tuple[str, ...]] = {}
        self.math_ok = self._views_that_take_math()
        self.for_convolutions = self._read_by_convolutions()
        self.evaluations: dict[str, float] = {}

    def run(self) -> Program:
        for t in self.order:
            self.done[t.name] = self._visit(t) if isinstance(t, Compute) else renewed(t, self.done)
        outputs = tuple(self.done[t.name] for t in self.outputs)
        order = [self.done[t.name] for t in topological(outputs)]
        consumers: dict[str, list[Tensor]] = {t.name: [] for t in order}
        for t in order:
            for s in sources(t):
                consumers[s.name].append(t)
        live = {n: c for n, c in self.contractions.items() if n in consumers}
        return Program(self.inputs, outputs, order, consumers, live, self.decisions, self.checked)

    def _views_that_take_math(self) -> set[str]:
        """Views whose readers can compute as they read: not those that end in a tile or in a
        hand-written nest."""
        good: set[str] = set()
        for t in reversed(self.order):
            if (
                isinstance(t, Compute)
                and is_view(t)
                and all(self._takes_math(c, good) for c in self.consumers[t.name])
            ):
                good.add(t.name)
        return good

    def _takes_math(self, consumer: Tensor, good: set[str]) -> bool:
        if not isinstance(consumer, Compute) or isinstance(consumer, WinogradCompute):
            return False
        if find_contraction(consumer) is not None:
            return False
        return not is_view(consumer) or consumer.name in good

    def _read_by_convolutions(self) -> set[str]:
        """Maps that only convolutions read, or maps of such, and whose channels in C order would
        all fall into one set of the cache: tiles step through channels."""
        found: set[str] = set()
        for t in reversed(self.order):
            if (
                isinstance(t, Compute)
                and t.reduction is None
                and t.rank > 2
                and t.shape[1] >= MIN_CHANNELS
                and prod(t.shape[2:]) * t.dtype.itemsize % ALIASING_BYTES == 0
                and self.consumers[t.name]
                and all(self._steps_through(c, t, found) for c in self.consumers[t.name])
            ):
                found.add(t.name)
        return found

    def _steps_through(self, consumer: Tensor, t: Compute, found: set[str]) -> bool:
        if not isinstance(consumer, Compute) or consumer.rank != t.rank:
            return False
        product = find_contraction(consumer) if consumer.channels_last else None
        if product is None or product.a.load.buffer.name != t.name:
            return consumer.name in found
        channel = product.a.load.index[1]
        return isinstance(channel, Var) and channel.name in product.depth

    def _visit(self, t: Compute) -> Compute:
        return self._lay_out(self._inline_into(t))

    def _lay_out(self, t: Compute) -> Compute:
        """t with channels innermost in memory, where it or its readers ask for that or it follows a
        tensor that has it, and with lines that do not all fall into one set of the cache.

        Results of the model that nothing else reads stay in C order.
        """
        is_result = t.name in self.output_names
        if t.rank < 2 or t.strides is not None or (is_result and not self.consumers[t.name]):
            return t
        order = tuple(range(t.rank))
        asked = t.channels_last or t.name in self.for_convolutions
        if t.rank > 2 and (asked or self._follows(t)):
            order = channels_last_order(t.rank)
        gap = 0
        fills_sets = t.shape[order[-1]] * t.dtype.itemsize % ALIASING_BYTES == 0
        if fills_sets and not is_result and self._is_multiplied(t):
            gap = LINE_BYTES // t.dtype.itemsize
        if not gap and order == tuple(range(t.rank)):
            return t
        return replace(t, strides=strides_in(order, t.shape, gap))

    def _is_multiplied(self, t: Compute) -> bool:
        """Whether a matmul or convolution reads t row by row."""
        found = (find_contraction(c) for c in self.consumers[t.name] if isinstance(c, Compute))
        return any(c and c.a.load.buffer.name == t.name for c in found)

    def _follows(self, t: Compute) -> bool:
        loads = [
            n
            for n in walk(t.body)
            if isinstance(n, Load) and len(n.index) == t.rank and n.buffer.strides
        ]
        return any(
            is_channels_last(n.buffer)
            and all(variables(i) <= {a} for i, a in zip(n.index, t.axes, strict=True))
            for n in loads
        )

    def _inline_into(self, t: Compute) -> Compute:
        self.checked[t.name] = (t.node,) if makes_checks(t.body) else ()
        if isinstance(t, WinogradCompute):
            return self._apply(t, set())
        contraction = find_contraction(t)
        chosen = {s.name for s in sources(t) if isinstance(self.done[s.name], Compute)}
        if contraction is not None:
            return self._visit_contraction(t, contraction, chosen)
        chosen = {n for n in chosen if not self._refuse(self.done[n], t)}
        return self._apply(t, chosen)

    def _visit_contraction(self, t: Compute, contraction: Contraction, chosen: set[str]) -> Compute:
        views: set[str] = set()
        for n in chosen:
            p = self.done[n]
            if isinstance(p, Compute) and p.reduction is None and is_view(p):
                trial = self._apply(t, views | {n})
                found = find_contraction(trial)
                # With other columns the operands would have changed places, and the results would
                # be written across memory.
                if found is not None and found.columns == contraction.columns:
                    views.add(n)
                    contraction = found
                else:
                    self._note(p, t, "the tile could not step through it with fixed strides")
            elif isinstance(p, Compute) and p.reduction is None:
                self._note(p, t, "arithmetic on a matmul operand would be repeated for every tile")
        result = self._apply(t, views)
        self.contractions[t.name] = find_contraction(result) or contraction
        return result

    def _refuse(self, p: Tensor, c: Compute) -> str | None:
        """Why c does not compute p as it reads it, or None."""
        why = self._why_not(p, c)
        if why and isinstance(p, Compute) and p.reduction is None:
            self._note(p, c, why)
        return why

    def _why_not(self, p: Tensor, c: Compute) -> str | None:
        if not isinstance(p, Compute) or p.reduction is not None:
            return "it is a reduction"
        if not sources(p):
            return None
        view = is_view(p)
        if not view and is_view(c) and c.name not in self.math_ok:
            return "its readers need plain memory"
        if self._is_epilogue(p) and not (len(self.consumers[p.name]) == 1 and reads_in_place(c, p)):
            return "it stays with the reduction it completes"
        if p.name in self.output_names and not view and cost(p.body) > CHEAP:
            return "it is an output, so it is in memory anyway"
        if not view and self._stays(p) and _operands(p) > 1:
            return "it is in memory anyway, where one read takes the place of several"
        if not view and _slides_over(c, p):
            return "a window would compute its elements again and again, and not on tiles"
        if not view and self._repetition(p) > (4.0 if cost(p.body) <= CHEAP else 1.0):
            return f"it would be computed {self._repetition(p):.0f} times over"
        if count_nodes(p.body) * max(1, _loads(c.body, p.name)) + count_nodes(c.body) > MAX_NODES:
            return "the kernel would grow too large"
        return None

    def _stays(self, p: Compute) -> bool:
        """Whether some consumer reads p from memory whatever the others do."""
        return any(not self._takes_math(c, self.math_ok) for c in self.consumers[p.name])

    def _is_epilogue(self, p: Compute) -> bool:
        return any(
            isinstance(s, Compute)
            and s.reduction is not None
            and self._sole_reader(s, p)
            and reads_in_place(p, s)
            for s in sources(p)
        )

    def _sole_reader(self, s: Tensor, p: Compute) -> bool:
        """Whether s is read by p alone, as far as p has taken over its producers' reads."""
        readers = {c.name for c in self.consumers[s.name]}
        return s.name not in self.output_names and len(readers) == 1

    def _repetition(self, p: Compute) -> float:
        if p.name not in self.evaluations:
            total = 0.0
            for c in self.consumers[p.name]:
                if isinstance(c, Compute):
                    domain = (
                        c.size * float(np.prod([n for _, n in c.reduction.axes]))
                        if c.reduction
                        else c.size
                    )
                    reads = _places if cost(p.body) <= CHEAP else _loads
                    total += domain * reads(c.body, p.name)
            self.evaluations[p.name] = total / max(p.size, 1)
        return self.evaluations[p.name]

    def _apply(self, t: Compute, chosen: set[str]) -> Compute:
        """t with the chosen producers' bodies in place of their loads, and other producers in
        their final form."""
        memo: dict[tuple[str, tuple[Expr, ...]], Expr] = {}

        def rule(n: object) -> Expr | None:
            if not isinstance(n, Load):
                return None
            p = self.done[n.buffer.name]
            if n.buffer.name not in chosen or not isinstance(p, Compute):
                return Load(p, n.index) if p is not n.buffer else None
            key = (p.name, n.index)
            if key not in memo:
                memo[key] = substitute(p.body, dict(zip(p.axes, n.index, strict=True)))  # type: ignore[assignment]
            return memo[key]

        body: Expr = rewrite(t.body, rule)  # type: ignore[arg-type,assignment]
        if body is t.body:
            return t
        inlined = [p for n in sorted(chosen) if isinstance(p := self.done[n], Compute)]
        nodes = [c for p in inlined for c in self.checked.get(p.name, ())]
        self.checked[t.name] = tuple(dict.fromkeys([*self.checked[t.name], *nodes]))
        ops = dict.fromkeys(o for p in (*inlined, t) for o in p.op.split("+") if o)
        inside = dict.fromkeys(n for p in inlined for n in p.nodes)
        return replace(
            t,
            body=simplify_loads(body, ranges_of(t)),
            op="+".join(ops),
            inside=tuple(dict.fromkeys((*inside, *t.inside))),
        )

    def _note(self, p: Tensor, c: Compute, why: str) -> None:
        self.decisions.append(
            Refusal(label(p), "is not computed inside", label(c), why, nodes_of(p), nodes_of(c))
        )


def channels_last_order(rank: int) -> tuple[int, ...]:
    """The dimensions N, C, spatial... as they are stored: N, spatial..., C."""
    return (0, *range(2, rank), 1)


def channels_last_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of an N, C, spatial... tensor that is stored as N, spatial..., C."""
    return strides_in(channels_last_order(len(shape)), shape)


def strides_in(order: Sequence[int], shape: Sequence[int], gap: int = 0) -> tuple[int, ...]:
    """Strides that store the dimensions in this order, with a gap after each innermost line."""
    strides, step = [0] * len(shape), 1
    for k in reversed(order):
        strides[k] = step
        step *= shape[k]
        if k == order[-1]:
            step += gap
    return tuple(strides)


def is_channels_last(b: Buffer) -> bool:
    """Whether channels, and then the spatial dimensions, are innermost in memory."""
    if b.strides is None or len(b.shape) < 3:
        return False
    gap = b.strides[-1] - b.shape[1] if b.shape[1] > 0 else 0
    return b.strides == strides_in(channels_last_order(len(b.shape)), b.shape, gap)


def label(t: Tensor) -> str:
    """A tensor in messages: its operator and shape."""
    name = (
        t.op
        if isinstance(t, Compute)
        else t.nest[0].op
        if isinstance(t, NestOutput)
        else type(t).__name__
    )
    return f"{name or 'value'}[{'x'.join(map(str, t.shape))}]"


def nodes_of(t: Tensor) -> tuple[str, ...]:
    """The model's nodes that a tensor computes."""
    if isinstance(t, NestOutput):
        return (t.nest[0].node,) if t.nest[0].node else ()
    return t.nodes if isinstance(t, Compute) else ()


def is_view(t: Compute) -> bool:
    """Whether the elements are those of another tensor, at other places."""
    return t.reduction is None and isinstance(t.body, Load)


def reads_in_place(c: Compute, p: Tensor) -> bool:
    """Whether every read of p in the map c is at c's own index."""
    if c.reduction is not None or c.shape != p.shape:
        return False
    here = tuple(Var(a) for a in c.axes)
    loads = [n for n in walk(c.body) if isinstance(n, Load) and n.buffer.name == p.name]
    return all(_same_place(n.index, here, c.shape) for n in loads)


def _same_place(index: tuple[Expr, ...], here: tuple[Var, ...], shape: tuple[int, ...]) -> bool:
    return all(n == 1 or i == v for i, v, n in zip(index, here, shape, strict=True))


def _slides_over(c: Compute, p: Tensor) -> bool:
    """Whether c reduces over windows of p: an axis of the result and a summed one share a
    dimension."""
    summed = frozenset(a for a, _ in c.reduction.axes) if c.reduction else frozenset[str]()
    loads = (n for n in walk(c.body) if isinstance(n, Load) and n.buffer.name == p.name)
    indices = (variables(i) for n in loads for i in n.index)
    return any(v & summed and v - summed for v in indices)


def _places(body: Expr, name: str) -> int:
    """How many elements are read; LLVM computes what is read again at the same place once."""
    loads = (n for n in walk(body) if isinstance(n, Load) and n.buffer.name == name)
    return len({n.index for n in loads})


def _operands(p: Compute) -> int:
    """How many tensors of p's own size, or larger, an element of p needs."""
    return sum(1 for s in sources(p) if s.size >= p.size)


def _loads(body: Expr, name: str) -> int:
    return sum(1 for n in walk(body) if isinstance(n, Load) and n.buffer.name == name)


def count_nodes(e: Node) -> int:
    """Nodes of an expression when printed in full."""
    return 1 + sum(map(count_nodes, children(e)))


def cost(e: Node) -> int:
    """Rough work of one evaluation, in additions."""
    own = 0
    match e:
        case Load():
            return 0
        case Apply(op=op):
            own = 10 if op in EXPENSIVE else 4 if op in (ScalarOp.DIV, ScalarOp.SQRT) else 1
        case Select():
            own = 1
    return own + sum(map(cost, children(e)))
