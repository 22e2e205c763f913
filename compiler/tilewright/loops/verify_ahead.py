"""What must hold of copies and products that hardware goes on with while the threads do other
things:

* a copy for step n goes to stage n % stages, and one thread starts it;
* a stage is read only after a wait for the step that it was filled for;
* what a product reads is overwritten only after it was waited for, and then a barrier;
* sums are used only once all products that add to them were waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tilewright.loops.affine import Range, linear
from tilewright.loops.ir import (
    Accumulate,
    Apply,
    Arrived,
    Barrier,
    Commit,
    Expr,
    Fetch,
    Load,
    Node,
    Settle,
    Space,
    Store,
    Wait,
    Wgmma,
    children,
    walk,
)
from tilewright.loops.scalars import ScalarOp

Element = tuple[Expr, ...]
Places = dict[Element, tuple[Range, ...]]  # with the range of each index, and of the offset


@dataclass
class Phase:
    """What the threads read and write between two points at which they meet."""

    reads: dict[str, Places] = field(default_factory=dict)
    writes: dict[str, Places] = field(default_factory=dict)
    of_one: bool = False  # a single thread does all of it
    copied: dict[str, int] = field(default_factory=dict)  # asynchronously; the stages there are
    fetched: set[str] = field(default_factory=set)  # by hardware
    wrong: str = ""  # about what was fetched
    summed: set[str] = field(default_factory=set)  # by products that go on
    own: set[str] = field(default_factory=set)  # registers that are used, but for those


Event = Phase | Barrier | Commit | Wait | Arrived | Settle


def note_ahead(phase: Phase, loop: Node) -> None:
    """Adds to a phase what hardware does for it."""
    for n in walk(loop):
        if isinstance(n, Fetch):
            for box in n.boxes:
                phase.fetched.add(box.target.name)
                if box.target.shape[0] != n.stages or not is_stage(box.place[0], n):
                    phase.wrong = f"{box.target.name} is not filled stage by stage"
            if not phase.of_one:
                phase.wrong = "several threads fetch the same boxes"
        if isinstance(n, Wgmma):
            phase.summed.add(n.sums.name)
    phase.own = {b for n in _outside(loop) if (b := _register(n))}


def is_stage(place: Expr, n: Fetch | Arrived) -> bool:
    """Whether a place among the stages is that of the step."""
    is_remainder = isinstance(place, Apply) and place.op is ScalarOp.MOD
    number = place.args[0] if is_remainder else place  # type: ignore[union-attr]
    distance = linear(number - n.step, {})
    return not distance.terms and distance.constant % n.stages == 0


def _outside(n: Node) -> Iterator[Node]:
    """All nodes but those of products."""
    yield n
    if not isinstance(n, Wgmma):
        for c in children(n):
            yield from _outside(c)


def _register(n: Node) -> str:
    is_one = isinstance(n, (Load, Store, Accumulate)) and n.buffer.space is Space.THREAD
    return n.buffer.name if is_one else ""  # type: ignore[union-attr]


@dataclass
class UnderWay:
    """Copies and products that the threads have not heard the end of."""

    apart: Callable[[Places, Places], bool]
    targets: set[str] = field(default_factory=set)
    arrived: Arrived | None = None
    running: list[Phase] = field(default_factory=list)
    ended: list[Phase] = field(default_factory=list)  # as far as a warp knows of its own

    def see(self, event: Event) -> str:
        """What is wrong with what happens next; empty if nothing is."""
        match event:
            case Arrived():
                self.arrived = event
            case Settle(pending=pending):
                keep = len(self.running) - pending
                self.ended += self.running[:keep] if keep > 0 else []
                self.running = self.running[max(keep, 0) :]
            case Barrier():
                self.ended = []
            case Phase():
                return self.phase(event)
        return ""

    def phase(self, p: Phase) -> str:
        if p.wrong:
            return p.wrong
        if early := next((b for b in p.reads if b in self.targets and self.is_early(p, b)), None):
            return f"{early} is read before what was fetched to it has arrived"
        sums = {b for product in self.running for b in product.summed}
        if used := next((b for b in sorted(p.own) if b in sums), None):
            return f"{used} is used while products add to it"
        for product in (*self.running, *self.ended):
            for name, places in product.reads.items():
                if name in p.writes and not self.apart(places, p.writes[name]):
                    return f"{name} is overwritten while a product reads it"
        self.targets |= p.fetched
        if p.summed:
            self.running.append(p)
        return ""

    def is_early(self, p: Phase, name: str) -> bool:
        arrived = self.arrived
        return arrived is None or not all(is_stage(at[0], arrived) for at in p.reads[name])
