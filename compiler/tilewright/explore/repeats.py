"""Where a sequence repeats itself: the layers of a model are the same kernels over and over."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

LEAST_SAVED = 4  # elements that a repeat must save to be worth a mention
LONGEST = 400  # elements of a period


@dataclass(frozen=True)
class Repeat:
    """`count` times the same `period` elements, from `start` on."""

    start: int
    period: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.period * self.count

    @property
    def saved(self) -> int:
        """Elements that are left out if one period stands for all."""
        return self.period * (self.count - 1)


def repeats(items: Sequence[Hashable]) -> list[Repeat]:
    """Repeats that do not overlap, in order; those that save most are found first."""
    numbers: dict[Hashable, int] = {}
    tokens = [numbers.setdefault(item, len(numbers)) for item in items]
    found = sorted(_candidates(tokens), key=lambda r: (-r.saved, r.period, r.start))
    taken = [False] * len(tokens)
    chosen = []
    for r in found:
        if not any(taken[r.start : r.end]):
            taken[r.start : r.end] = [True] * (r.end - r.start)
            chosen.append(r)
    return sorted(chosen, key=lambda r: r.start)


def _candidates(tokens: Sequence[int]) -> list[Repeat]:
    """Every longest run of equal neighbours, for each period."""
    size, found = len(tokens), []
    for period in range(1, min(size // 2, LONGEST) + 1):
        run = 0
        for k in range(size - period + 1):
            if k + period < size and tokens[k] == tokens[k + period]:
                run += 1
                continue
            if run >= period:
                repeat = Repeat(k - run, period, run // period + 1)
                if repeat.saved >= LEAST_SAVED:
                    found.append(repeat)
            run = 0
    return found
