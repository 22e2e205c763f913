"""Dumped kernels that a user has changed, read from the folder `Options.override`.

A dumped file has the digest of the generated source at the end of its name. Either its source may
be changed, or the directives after `# schedule` in its header; a file that was not changed says
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tilewright.errors import EditRefused, InputError, UnsupportedError
from tilewright.runtime.dump import AS_LOWERED, DIGITS, SCHEDULE_MARK, UNCHANGED_MARK, short_digest

NAME = re.compile(rf"_([0-9a-f]{{{DIGITS}}})\.py$")


@dataclass(frozen=True)
class Override:
    """A changed file: it has either another source, or another schedule as text."""

    path: Path
    source: str | None
    schedule: str | None

    def refused(self, reason: object) -> EditRefused:
        """The error for a file that is wrong."""
        found = EditRefused(f"{self.path}: {reason}")
        found.file = self.path
        return found


def read_overrides(folder: Path | None) -> dict[str, Override]:
    """The changed files of a folder, by the digest of the source that they stand for.

    InputError if the folder is not there, EditRefused for a file in which both were changed.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise InputError(f"the folder of overriding kernels is not there: {folder}")
    found: dict[str, Override] = {}
    for path in sorted(folder.glob("*.py")):
        named = NAME.search(path.name)
        changed = _changed(path, named[1]) if named else None
        if named and changed:
            found[named[1]] = changed
    return found


def _changed(path: Path, digits: str) -> Override | None:
    head, source = split_page(path.read_text(encoding="utf-8"))
    steps = _after(head, SCHEDULE_MARK)
    unchanged = _after(head, UNCHANGED_MARK)
    has_schedule = steps is not None and unchanged not in (None, short_digest(steps))
    has_source = short_digest(source) != digits
    if has_schedule and has_source:
        raise Override(path, source, steps).refused("its source and its schedule are both changed")
    if not has_schedule and not has_source:
        return None
    schedule = None if not has_schedule else ("" if steps == AS_LOWERED else steps)
    return Override(path, source if has_source else None, schedule)


def refuse_overrides(folder: Path | None, sources: Iterable[str]) -> None:
    """UnsupportedError if a changed file is for one of these kernels, which are not the CPU's."""
    changed = read_overrides(folder)
    for source in sources:
        if found := changed.get(short_digest(source)):
            raise UnsupportedError(
                f"{found.path}: only kernels for the CPU can be overridden, not those on a GPU"
            )


def split_page(page: str) -> tuple[list[str], str]:
    """The comments that a dumped file begins with, and its source."""
    lines = page.splitlines(keepends=True)
    count = next((k for k, line in enumerate(lines) if not line.startswith("#")), len(lines))
    source = "".join(lines[count:])
    return [line.rstrip("\n") for line in lines[:count]], source.lstrip("\n")


def _after(head: list[str], mark: str) -> str | None:
    start = f"# {mark}"
    found = next((line for line in head if line.startswith(start)), None)
    return None if found is None else found[len(start) :].strip()
