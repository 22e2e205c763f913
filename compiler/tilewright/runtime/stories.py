"""Why a kernel is as it is: how its schedule was found, why it was compiled. Made when asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tilewright.loops.ir import Kernel
from tilewright.runtime.cache import COMPILED
from tilewright.runtime.misses import why_compiled
from tilewright.runtime.store import Store
from tilewright.schedule.journal import Attempt, Journal

TAKEN_BACK = "legal, but taken back for another way"


@dataclass(frozen=True)
class Story:
    """`attempts` are the directives tried and remarks between them; `came_from` is disk or
    compiled (in this process), `miss` why it was compiled."""

    attempts: tuple[Attempt, ...]
    came_from: str
    miss: str = ""


Choose = Callable[[Journal], Kernel]


def story(choose: Choose, origin: str, fields: Mapping[str, str], store: Store) -> Story:
    """The story of a kernel that `choose` schedules and that came from `origin`."""
    journal = Journal()
    final = choose(journal)
    miss = why_compiled(fields, store) if origin == COMPILED else ""
    return Story(_without_detours(journal.attempts, final), origin, miss)


def _without_detours(attempts: list[Attempt], final: Kernel) -> tuple[Attempt, ...]:
    """Directives that the final schedule has not are marked."""
    waiting = [str(d) for d in final.schedule]
    found = []
    for a in reversed(attempts):  # a way that was taken back comes before the one that stays
        if not a.remark and not a.refused:
            if waiting and waiting[-1] == a.directive:
                waiting.pop()
            else:
                a = Attempt(a.directive, TAKEN_BACK)
        found.append(a)
    return tuple(reversed(found))
