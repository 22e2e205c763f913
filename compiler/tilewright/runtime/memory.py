"""Offsets in one arena for buffers whose lifetimes are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64
MAX_BYTES = 1 << 40


@dataclass(frozen=True)
class Lifetime:
    """A buffer of `nbytes` that is written first at step `first` and read last at step `last`."""

    nbytes: int
    first: int
    last: int


def place(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """An offset for each buffer, so that no two that live at the same time overlap, and the
    arena's size in bytes.

    Largest first, each at the lowest offset that is free for its whole life.
    """
    offsets = [0] * len(lifetimes)
    placed: list[int] = []
    size = 0
    for k in sorted(range(len(lifetimes)), key=lambda k: -lifetimes[k].nbytes):
        taken = sorted(
            (offsets[j], offsets[j] + _rounded(lifetimes[j].nbytes))
            for j in placed
            if _meet(lifetimes[j], lifetimes[k])
        )
        at, need = 0, _rounded(lifetimes[k].nbytes)
        for start, end in taken:
            if at + need <= start:
                break
            at = max(at, end)
        offsets[k] = at
        placed.append(k)
        size = max(size, at + need)
    return offsets, size


def _rounded(n: int) -> int:
    return max(-(-n // ALIGNMENT), 1) * ALIGNMENT


def _meet(a: Lifetime, b: Lifetime) -> bool:
    return a.first <= b.last and b.first <= a.last
