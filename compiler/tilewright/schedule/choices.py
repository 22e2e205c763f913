"""Which way is taken at each point of decision: measured ones first, else the cost model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from tilewright.fusion.decide import Point

DIGEST_BYTES = 16


@dataclass(frozen=True)
class Decision:
    """What was decided at points of one key."""

    key: str
    point: Point
    value: int

    @property
    def is_tuned(self) -> bool:
        """Whether the cost model would take another way."""
        return self.value != self.point.default

    def __str__(self) -> str:
        """One line for reports."""
        taken, usual = self.point.name(self.value), self.point.name(self.point.default)
        return f"{self.point.kind} {taken} as measured, not {usual}"


class Choices:
    """Decides the points of one plan. `kept` are measured winners by key, `trial` goes before
    them; a number that is no option of a point is ignored. Only `watched` choices remember
    points at which nothing measured is known."""

    def __init__(
        self,
        kept: Mapping[str, int] | None = None,
        trial: Mapping[str, int] | None = None,
        watched: bool = False,
    ) -> None:
        self._known = {**(kept or {}), **(trial or {})}
        self._watched = watched
        self._decided: dict[str, Decision] = {}

    def pick(self, point: Point) -> int:
        """The way to take."""
        if not self._known and not self._watched:
            return point.default  # and the key need not be computed
        key = key_of(point)
        value = self._known.get(key, point.default)
        if value not in point.options:
            value = point.default
        self._decided.setdefault(key, Decision(key, point, value))
        return value

    @property
    def known(self) -> Mapping[str, int]:
        """The numbers that are taken, by key."""
        return self._known

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What was decided so far, each key once."""
        return tuple(self._decided.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """Where measured ways were taken."""
        return tuple(str(d) for d in self.decisions if d.is_tuned)


def key_of(point: Point) -> str:
    """The same in every process for points of equal kind and structure."""
    text = f"{point.kind} {point.structure()!r}"
    return blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()
