"""Kernels for people to read while a model compiles: on stderr, or as files in a folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol

from tilewright.options import Options
from tilewright.runtime.store import digest

SHOW_SCHEDULES, SHOW_SOURCES = 2, 3  # levels of Options.debug
DIGITS = 12  # of digests in names of files
SCHEDULE_MARK, UNCHANGED_MARK = "schedule ", "unchanged "  # in the comments of a file
AS_LOWERED = "as lowered"


class Readable(Protocol):
    """What there is to read of a kernel."""

    @property
    def name(self) -> str: ...
    @property
    def graph(self) -> str: ...
    @property
    def loops(self) -> str: ...
    @property
    def schedule(self) -> tuple[str, ...]: ...
    @property
    def source(self) -> str: ...
    @property
    def generated(self) -> str: ...


def publish(kernels: Sequence[Readable], options: Options) -> None:
    """Prints what `options.debug` asks for, and fills the folder `options.dump`."""
    if options.debug >= SHOW_SCHEDULES:
        for kernel in kernels:
            steps = _steps(kernel)
            print(f"tilewright: {kernel.name} of {kernel.graph}: {steps}", file=sys.stderr)
            if options.debug >= SHOW_SOURCES:
                print(kernel.source, file=sys.stderr)
    if options.dump is not None:
        options.dump.mkdir(parents=True, exist_ok=True)
        for kernel in kernels:
            digits = short_digest(kernel.generated)
            place = options.dump / f"{kernel.name.partition('_')[2]}_{digits}.py"
            if options.dump != options.override or not place.exists():  # a user's file stays
                place.write_text(page(kernel), encoding="utf-8")


def short_digest(text: str) -> str:
    """Of a source or a schedule, as names of files have it."""
    return digest(text)[:DIGITS]


def _steps(kernel: Readable) -> str:
    return ", ".join(kernel.schedule) or AS_LOWERED


def page(kernel: Readable) -> str:
    """A Python file: the source below its graph, its schedule and its loops, as comments. The
    digest of the schedule tells whether somebody changed it (see `overrides`)."""
    facts = [
        f"graph     {kernel.graph}",
        f"{SCHEDULE_MARK} {_steps(kernel)}",
        f"{UNCHANGED_MARK}{short_digest(_steps(kernel))}",
        "loops",
        *(f"  {line}" for line in kernel.loops.splitlines()),
    ]
    return "\n".join(f"# {line}" for line in facts) + "\n\n" + kernel.source
