"""The file of figures: runs, each with its machine and a row for each case, written row by row."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

DONE, FAILED, UNAVAILABLE = "done", "failed", "unavailable"


@dataclass(frozen=True)
class Row:
    """What became of a case; `figures` if it was measured, otherwise the `reason`."""

    part: str
    case: str
    status: str
    wall: float = 0.0
    figures: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    details: str = ""  # of a failure: where it happened


def as_data(value: Any) -> Any:
    """As JSON has it; what it has no number for is null."""
    match value:
        case Mapping():
            return {str(k): as_data(v) for k, v in value.items()}
        case list() | tuple():
            return [as_data(v) for v in value]
        case float() if not math.isfinite(value):
            return None
    return value


class Record:
    """The last run of the file, which rows are added to; what was there before is kept."""

    def __init__(self, path: Path, runs: list[dict[str, Any]]) -> None:
        self.path, self._runs = path, runs

    @classmethod
    def begin(cls, path: Path, date: str, machine: Mapping[str, Any]) -> Record:
        """A new run behind those that are there."""
        record = cls(path, read(path))
        record._runs.append({"date": date, "machine": dict(machine), "rows": []})
        record._write()
        return record

    @classmethod
    def resume(cls, path: Path, machine: Mapping[str, Any]) -> Record:
        """The last run; ValueError if there is none, or it is that of another GPU or revision."""
        record = cls(path, read(path))
        if not record._runs:
            raise ValueError(f"{path} has no run to go on with")
        there = record._runs[-1]["machine"]
        for key in ("gpu", "revision"):
            if there.get(key) != machine.get(key):
                raise ValueError(
                    f"the last run in {path} is of the {key} {there.get(key)!r}, not of "
                    f"{machine.get(key)!r}: begin a new one, without --resume"
                )
        return record

    @property
    def rows(self) -> list[Row]:
        return [Row(**row) for row in self._runs[-1]["rows"]]

    def finished(self) -> set[tuple[str, str]]:
        """The cases that need not be done again; failures are."""
        return {(r.part, r.case) for r in self.rows if r.status != FAILED}

    def add(self, row: Row) -> None:
        """Takes the place of an older row of this case; it is on disk afterwards."""
        rows = self._runs[-1]["rows"]
        rows[:] = [r for r in rows if (r["part"], r["case"]) != (row.part, row.case)]
        rows.append(as_data(asdict(row)))
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text(json.dumps({"runs": self._runs}, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, self.path)


def read(path: Path) -> list[dict[str, Any]]:
    """The runs of a file, none if there is no file."""
    if not path.exists():
        return []
    runs: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return runs
