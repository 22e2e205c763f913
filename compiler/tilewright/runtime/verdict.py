"""What a user hears of a change to a kernel that was found to be right."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.runtime.display import Displayed
from tilewright.runtime.tolerance import MOVES, ULPS

TOLERANCE = f"{ULPS:g} ulps, and {MOVES:g} times what inputs wrong by eps * sqrt({{terms}}) move it"


@dataclass(frozen=True)
class Times:
    """Seconds of a kernel in several runs."""

    median: float
    least: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        return cls(statistics.median(seconds), min(seconds))

    def __str__(self) -> str:
        return f"{self.median * 1e6:,.1f} us (least {self.least * 1e6:,.1f})"


@dataclass(frozen=True)
class Verdict(Displayed):
    """A change that is in place. `error` is the largest difference from the generated kernel as a
    share of its largest element; `places` counts the kernels of live plans that changed."""

    kernel: str
    change: str
    before: Times
    after: Times
    error: float
    tolerance: str
    checked: tuple[str, ...]
    places: int

    @property
    def speedup(self) -> float:
        """How many times as fast as what ran there before, by medians."""
        return self.before.median / self.after.median if self.after.median > 0 else 1.0

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """What there is to say, by name."""
        where = "1 kernel" if self.places == 1 else f"{self.places} kernels"
        return (
            ("right", f"largest error {self.error:.1e} of the largest element"),
            ("checked", "; ".join(self.checked)),
            ("allowed", self.tolerance),
            ("before", str(self.before)),
            ("now", str(self.after)),
            ("speedup", f"{self.speedup:.2f}"),
            ("in place of", where),
        )

    def __str__(self) -> str:
        lines = [f"{self.kernel} {self.change}: {self.speedup:.2f} times as fast"]
        return "\n".join([*lines, *(f"  {name:11} {text}" for name, text in self.rows)])
