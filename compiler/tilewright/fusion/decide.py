"""Points at which kernels could be made in several ways that all compute the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Point:
    """A decision of one kind: which of some numbers, and which one the cost model takes.

    `structure` gives what else it depends on, names of models and tensors never; equal ones are
    decided alike. `work` is roughly the number of operations at stake.
    """

    kind: str
    structure: Callable[[], Hashable]
    options: tuple[int, ...]
    default: int
    work: float


Pick = Callable[[Point], int]


def by_cost_model(point: Point) -> int:
    """What is taken when nothing was measured."""
    return point.default
