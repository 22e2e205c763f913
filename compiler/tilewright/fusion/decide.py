"""What was decided: why values are computed apart, and between ways that compute the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Refusal:
    """Why one value is not computed inside another, or does not share a kernel with it.

    The values are named by operators and shape; the nodes are those that each of them computes.
    """

    value: str
    how: str  # "is not computed inside" or "does not share a kernel with"
    other: str
    why: str
    nodes: tuple[str, ...] = ()
    other_nodes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.value} {self.how} {self.other}: {self.why}"


Reason = Refusal | str


@dataclass(frozen=True, eq=False)
class Point:
    """A decision of one kind: which of some numbers, and which one the cost model takes.

    `structure` gives what else it depends on, names of models and tensors never; equal ones are
    decided alike. `work` is roughly the number of operations at stake, and `names` is what reports
    call the options where numbers say nothing.
    """

    kind: str
    structure: Callable[[], Hashable]
    options: tuple[int, ...]
    default: int
    work: float
    names: Mapping[int, str] = field(default_factory=dict)

    def name(self, option: int) -> str:
        """What reports call it."""
        return self.names.get(option, str(option))


Pick = Callable[[Point], int]


def by_cost_model(point: Point) -> int:
    """What is taken when nothing was measured."""
    return point.default
