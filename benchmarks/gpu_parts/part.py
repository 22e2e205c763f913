"""What a part of the measurements is, and how much of it is wanted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu_parts.bench import Bench

Figures = dict[str, Any]


class Unavailable(Exception):
    """A case that cannot be measured here, for a reason that is no fault of the compiler's."""


@dataclass(frozen=True)
class Setting:
    """How much is measured: `scale` shrinks extents (for tests), the rest is time and files."""

    scale: float = 1.0
    seconds: float = 0.05  # of one turn of one side
    turns: int = 5
    models: str = "benchmarks/models"
    compiled: str = "default"  # torch.compile's mode; empty for none

    def size(self, extent: int, multiple: int = 8) -> int:
        """The extent at this scale, still a multiple where it was one."""
        if self.scale == 1:
            return extent
        step = multiple if extent % multiple == 0 else 1
        return max(1, round(extent * self.scale / step)) * step

    @property
    def folder(self) -> Path:
        return Path(self.models)

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Setting:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Part:
    """Cases by name, each of which is measured for itself within `limit` seconds.

    `run` returns the case's figures; those under "wrong", if any, say why its results are wrong.
    """

    name: str
    title: str
    cases: Callable[[Setting], Sequence[str]]
    run: Callable[[Bench, str], Figures]
    limit: float = 120.0


Parts = Mapping[str, Part]
