"""A kernel under scheduling."""

from __future__ import annotations

from collections.abc import Callable

from tilewright.errors import ScheduleError, VerifyError
from tilewright.loops.ir import Const, Kernel
from tilewright.loops.locate import find_loop, outer_loops
from tilewright.schedule.directives import Bind, Directive, Merge, schedule
from tilewright.schedule.journal import Journal


class Builder:
    """A kernel under scheduling: `attempt` applies a directive if it is legal. A journal takes
    down what was tried."""

    def __init__(self, kernel: Kernel, journal: Journal | None = None) -> None:
        self.kernel, self.journal = kernel, journal

    def remark(self, text: str) -> None:
        """Says why the schedule goes this way."""
        if self.journal is not None:
            self.journal.remark(text)

    def attempt(self, directive: Directive) -> bool:
        try:
            self.kernel = schedule(self.kernel, (directive,))
        except ScheduleError as error:
            if self.journal is not None:
                self.journal.tried(directive, error)
            return False
        if self.journal is not None:
            self.journal.tried(directive)
        return True

    def attempt_if_shown(self, directive: Directive) -> bool:
        """As `attempt`, for a directive that numbers the elements of several loops anew: not where
        interval analysis cannot follow its indices through quotients and remainders."""
        try:
            return self.attempt(directive)
        except VerifyError as error:
            if self.journal is not None:
                self.journal.tried(directive, error)
            return False

    @property
    def axes(self) -> list[str]:
        return [n.axis for n in outer_loops(self.kernel.body)]

    def extent(self, axis: str) -> int:
        found = find_loop(self.kernel, axis)
        return int(found.extent.value) if found and isinstance(found.extent, Const) else 1

    def merge_all(self, keep: Callable[[str], bool] = lambda axis: True) -> None:
        """Merge neighbouring outer loops wherever that is legal, innermost first."""
        k = len(self.axes) - 2
        while k >= 0:
            outer, inner = self.axes[k], self.axes[k + 1]
            if keep(inner):
                self.attempt(Merge(outer, inner))
            k -= 1

    def bind(self, axes: list[str]) -> None:
        """Run as many of these loops as tasks as may be, outermost first."""
        for axis in axes:
            if not self.attempt(Bind(axis)):
                return
