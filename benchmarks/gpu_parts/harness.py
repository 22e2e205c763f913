"""Runs the cases of parts, each part in processes of its own.

What fails, hangs or crashes is a row, and the next case begins in a new process.
"""

from __future__ import annotations

import fnmatch
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gpu_parts.part import Part, Setting
from gpu_parts.record import DONE, FAILED, UNAVAILABLE, Record, Row
from tilewright.explore.engines import Engine, EngineError

LEAST_SECONDS = 5.0  # that a case may need: with fewer left, none begins
ALL = "*"


class PartProcess(Engine):
    """An engine that takes what it started with it when it is ended."""

    def close(self) -> None:
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        super().close()


@dataclass(frozen=True)
class Wanted:
    """Parts by name, and patterns of their cases."""

    patterns: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, words: Sequence[str], parts: Sequence[str]) -> Wanted:
        """From `part` and `part:pattern`, all parts without words. ValueError for unknown ones."""
        pairs = [(p, c or ALL) for p, _, c in (w.partition(":") for w in words or parts)]
        if unknown := sorted({p for p, _ in pairs} - set(parts)):
            raise ValueError(f"no such part: {', '.join(unknown)}; there are {', '.join(parts)}")
        return cls(tuple(pairs))

    def has(self, part: str) -> bool:
        return any(p == part for p, _ in self.patterns)

    def matches(self, part: str, case: str) -> bool:
        return any(p == part and fnmatch.fnmatchcase(case, c) for p, c in self.patterns)


class Watch:
    """What is told while cases run; tells nobody."""

    def part(self, part: Part, cases: Sequence[str]) -> None:
        """A part begins, with these cases to do."""

    def case(self, part: Part, case: str) -> None:
        """A case begins."""

    def row(self, row: Row) -> None:
        """A case has ended."""


class Harness:
    """`deadline` is a time of `time.monotonic`; what has not begun by then is left."""

    def __init__(
        self,
        module: str,
        setting: Setting,
        record: Record,
        watch: Watch,
        deadline: float = float("inf"),
    ) -> None:
        self._module, self._setting, self._record = module, setting, record
        self._watch, self._deadline = watch, deadline
        self._engine: PartProcess | None = None
        self.left: list[str] = []  # for want of time

    def run(self, parts: Sequence[Part], wanted: Wanted, finished: set[tuple[str, str]]) -> None:
        """All wanted cases but the finished ones."""
        for part in parts:
            if wanted.has(part.name):
                try:
                    self._part(part, lambda p, c: wanted.matches(p, c) and (p, c) not in finished)
                finally:
                    self._close()

    def _part(self, part: Part, is_wanted: Callable[[str, str], bool]) -> None:
        if self._remaining() < LEAST_SECONDS:
            self.left.append(part.name)
            return
        try:
            names = self._start(part).hello["cases"]
        except EngineError as error:
            self._add(Row(part.name, "", FAILED, reason=str(error)))
            return
        cases = [c for c in names if is_wanted(part.name, c)]
        self._watch.part(part, cases)
        for case in cases:
            if self._remaining() < LEAST_SECONDS:
                self.left.append(f"{part.name}:{case}")
                continue
            self._watch.case(part, case)
            self._case(part, case)

    def _case(self, part: Part, case: str) -> None:
        begin, limit = time.monotonic(), min(part.limit, self._remaining())
        try:
            engine = self._engine or self._start(part)
            engine.limit = limit
            row = _row(part.name, case, engine.ask("run", case=case))
        except EngineError as error:
            self._close()
            if self._remaining() <= 0 and limit < part.limit:
                self.left.append(f"{part.name}:{case}")
                return
            row = Row(part.name, case, FAILED, time.monotonic() - begin, reason=str(error))
        if row.status == FAILED:
            self._close()  # whatever it did to the device, the next one begins anew
        self._add(row)

    def _start(self, part: Part) -> PartProcess:
        words = ["-m", "gpu_parts.worker", self._module, part.name, self._setting.as_json()]
        engine = PartProcess(part.name, words, min(part.limit, self._remaining()))
        engine.__enter__()
        self._engine = engine
        return engine

    def _close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _remaining(self) -> float:
        return self._deadline - time.monotonic()

    def _add(self, row: Row) -> None:
        self._record.add(row)
        self._watch.row(row)


def _row(part: str, case: str, answer: dict[str, Any]) -> Row:
    wall = answer["wall"]
    if "unavailable" in answer:
        return Row(part, case, UNAVAILABLE, wall, reason=answer["unavailable"])
    if "failed" in answer:
        details = answer["details"]
        return Row(part, case, FAILED, wall, reason=answer["failed"], details=details)
    figures = answer["figures"]
    if figures.get("wrong"):
        return Row(part, case, FAILED, wall, figures, reason=str(figures["wrong"]))
    return Row(part, case, DONE, wall, figures)
