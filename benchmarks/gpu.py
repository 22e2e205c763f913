"""Everything that wants an NVIDIA GPU, measured and checked by one command.

python benchmarks/gpu.py [--only PART[:CASES] ...] [--resume] [--minutes N] [--list]

Each part runs in processes of its own, and each case's row is written as soon as it is there: what
crashes or hangs loses itself alone, and --resume goes on where a run ended. Returns 1 if a case
failed, 2 where nothing can be measured, 3 if time was too short for all.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# A checkout works without being installed.
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks", "compiler", "kernels")]

from gpu_parts.harness import Harness, Wanted, Watch  # noqa: E402
from gpu_parts.machine import describe  # noqa: E402
from gpu_parts.part import Part, Setting  # noqa: E402
from gpu_parts.record import DONE, FAILED, Record, Row  # noqa: E402
from gpu_parts.tables import headline  # noqa: E402
from tilewright.errors import DeviceError  # noqa: E402

MODULE = "gpu_parts.parts"
FAILURE, UNUSABLE, UNFINISHED = 1, 2, 3


class Lines(Watch):
    """A line for each case that has ended, and a bar where rich is installed."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._bar: Any = None
        try:
            from rich.progress import Progress, TimeElapsedColumn
        except ImportError:
            return
        self._progress = Progress(*Progress.get_default_columns(), TimeElapsedColumn())
        self._bar = self._progress.add_task("", total=None)

    def __enter__(self) -> Lines:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._progress:
            self._progress.stop()

    def line(self, text: str) -> None:
        if self._progress:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def part(self, part: Part, cases: Sequence[str]) -> None:
        self.line(f"\n{part.name}: {part.title}, {len(cases)} cases")
        if self._progress:
            self._progress.reset(self._bar, total=len(cases), description=part.name)

    def case(self, part: Part, case: str) -> None:
        if self._progress:
            self._progress.update(self._bar, description=f"{part.name}: {case}")

    def row(self, row: Row) -> None:
        self.line(shown(row))
        if self._progress:
            self._progress.advance(self._bar)


def shown(row: Row) -> str:
    """One line on a case."""
    what = f"  {row.case or row.part}: "
    if row.status == DONE:
        return f"{what}{headline(row)} ({row.wall:.1f} s)"
    return f"{what}{row.status.upper()}: {row.reason}"


def arguments_of(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--only", nargs="+", default=[], metavar="PART[:CASES]", help="as in matmul 'conv:* f16'")
    add("--json", type=Path, default=ROOT / "docs" / "gpu.json", help="where figures are added")
    add("--resume", action="store_true", help="go on with the last run: what failed or is missing")
    add("--list", action="store_true", help="show the parts and their cases")
    add("--minutes", type=float, default=float("inf"), help="end in time")
    add("--models", type=Path, default=ROOT / "benchmarks" / "models", help="folder of ONNX files")
    add("--seconds", type=float, default=Setting.seconds, help="of a turn of one side")
    add("--compiled", default=Setting.compiled, help="mode of torch.compile; empty for none")
    add("--module", default=MODULE, help=argparse.SUPPRESS)
    add("--scale", type=float, default=1.0, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    begin, arguments = time.monotonic(), arguments_of(words)
    module = import_module(arguments.module)
    parts: Mapping[str, Part] = module.PARTS
    setting = Setting(
        scale=arguments.scale,
        seconds=arguments.seconds,
        models=str(arguments.models.resolve()),
        compiled=arguments.compiled,
    )
    try:
        wanted = Wanted.parse(arguments.only, list(parts))
        if arguments.list:
            return show_list(list(parts.values()), wanted, setting)
        module.require()
        record = begin_record(arguments.json, arguments.resume)
    except (ValueError, DeviceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    finished = record.finished() if arguments.resume else set()
    with Lines() as lines:
        deadline = begin + 60 * arguments.minutes
        harness = Harness(arguments.module, setting, record, lines, deadline)
        harness.run(list(parts.values()), wanted, finished)
        return conclude(record, harness, lines)


def begin_record(path: Path, resume: bool) -> Record:
    machine = describe()
    if resume and path.exists():
        return Record.resume(path, machine)
    return Record.begin(path, datetime.now(UTC).isoformat(timespec="seconds"), machine)


def show_list(parts: Sequence[Part], wanted: Wanted, setting: Setting) -> int:
    for part in parts:
        if wanted.has(part.name):
            print(f"{part.name}: {part.title}")
            for case in part.cases(setting):
                if wanted.matches(part.name, case):
                    print(f"  {part.name}:{case}")
    return 0


def conclude(record: Record, harness: Harness, lines: Lines) -> int:
    """The last lines, and the exit code."""
    rows = record.rows
    counts = {status: sum(r.status == status for r in rows) for status in {r.status for r in rows}}
    told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    lines.line(f"\n{record.path}: {told or 'nothing'}")
    failed = [r for r in rows if r.status == FAILED]
    for row in failed:
        lines.line(f"FAILED {row.part}:{row.case}: {row.reason}\n{row.details}".rstrip())
    if harness.left:
        named = ", ".join(harness.left[:5])
        lines.line(f"no time for {len(harness.left)} ({named} ...): go on with --resume")
    return FAILURE if failed else UNFINISHED if harness.left else 0


if __name__ == "__main__":
    sys.exit(main())
