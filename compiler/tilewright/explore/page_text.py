"""Pages for terminals: as plain text of some width, and for rich."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from tilewright.explore.highlight import RICH
from tilewright.explore.pages import Block, Choice, Code, Page, Part, Picture, Table, Text

LONGEST_CODE = 60  # lines; more are cut off, as a page shows the most important
LONGEST_TABLE = 80
GAP = 2
LEAST = 8  # characters of a column that gives way
MARK = "> "


def plain(page: Page, width: int) -> str:
    """Lines no longer than `width`, code apart."""
    lines = [*_wrapped(page.title, width), *(w for f in page.facts for w in _wrapped(f, width))]
    for part in _shallow(page):
        lines += ["", part.title, "-" * len(part.title)]
        for block in part.blocks:
            lines += _plain(block, width)
    return "\n".join(line.rstrip() for line in lines)


def _shallow(page: Page) -> list[Part]:
    return [p for p in page.parts if not p.is_deep]


def _plain(block: Block, width: int) -> Iterator[str]:
    match block:
        case Text(text=text):
            for line in text.splitlines():
                yield from _wrapped(line, width)
        case Table():
            yield from table(block, width)
        case Code(text=text, title=title, marked=marked):
            if title:
                yield title
            for k, line in enumerate(shown_lines(text)):
                yield (MARK if k in marked else "  ") + line
        case Picture(title=title, instead=instead):
            if instead:
                yield from _wrapped(f"{title}: {instead}" if title else instead, width)
        case Choice(names=names, blocks=blocks):
            for name, inner in zip(names, blocks, strict=True):
                found = list(_plain(inner, width))
                if found:
                    yield from (f"[{name}]", *found)


def shown_lines(text: str) -> list[str]:
    """The first lines of a source, and how many more there are."""
    lines = text.splitlines()
    if len(lines) <= LONGEST_CODE:
        return lines
    return [*lines[:LONGEST_CODE], f"... {len(lines) - LONGEST_CODE:,} more lines"]


def shown_rows(t: Table) -> tuple[Sequence[tuple[str, ...]], str]:
    """The rows to show, and what is said of those that are not."""
    if len(t.rows) <= LONGEST_TABLE:
        return t.rows, ""
    return t.rows[:LONGEST_TABLE], f"... {len(t.rows) - LONGEST_TABLE:,} more rows"


def table(t: Table, width: int) -> Iterator[str]:
    """Lines of a table that is as wide as `width` at most: texts are shortened, then the last
    columns are left out and named."""
    rows, more = shown_rows(t)
    widths = [max(map(len, column)) for column in zip(t.columns, *rows, strict=True)]
    kept = len(widths)
    while True:
        free = width - GAP * (kept - 1) - sum(widths[t.texts : kept])
        room = _shared(widths[: t.texts], free)
        if sum(room) <= free or kept <= t.texts:
            break
        kept -= 1
    sizes = [*room, *widths[t.texts : kept]]
    titles = (t.columns, tuple("-" * w for w in sizes)) if any(t.columns) else ()
    for row in (*titles, *rows):
        cells = (
            _cut(c, w).ljust(w) if k < t.texts else c.rjust(w)
            for k, (c, w) in enumerate(zip(row, sizes, strict=False))
        )
        yield (" " * GAP).join(cells)
    if more:
        yield more
    if kept < len(widths):
        yield from _wrapped(f"(wider: {', '.join(t.columns[kept:])})", width)


def _shared(widths: Sequence[int], free: int) -> list[int]:
    """The widths of texts, the widest of which give way until they fit or are LEAST."""
    sizes = list(widths)
    while sum(sizes) > free and max(sizes, default=0) > LEAST:
        sizes[sizes.index(max(sizes))] -= 1
    return sizes


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 20), break_on_hyphens=False) or [""]


def renderable(page: Page) -> Any:
    """The page for rich."""
    from rich.console import Group
    from rich.rule import Rule
    from rich.text import Text as Words

    parts: list[Any] = [Words(page.title, style="bold")]
    parts += [Words(f, style="dim") for f in page.facts]
    for part in _shallow(page):
        parts.append(Rule(Words(part.title), align="left", style="cyan"))
        parts += [r for block in part.blocks for r in _rich(block)]
    return Group(*parts)


def _rich(block: Block) -> Iterator[Any]:
    from rich.text import Text as Words

    match block:
        case Text(text=text):
            yield Words(text)
        case Table():
            yield _RichTable(block)
        case Code(text=text, language=language, title=title, marked=marked):
            if title:
                yield Words(title, style="bold")
            yield _syntax("\n".join(shown_lines(text)), language, marked)
        case Picture(title=title, instead=instead):
            if instead:
                yield Words(f"{title}: {instead}" if title else instead)
        case Choice(names=names, blocks=blocks):
            for name, inner in zip(names, blocks, strict=True):
                found = list(_rich(inner))
                if found:
                    yield Words(f"[{name}]", style="bold")
                    yield from found


class _RichTable:
    """A table that leaves out columns as the plain one does."""

    def __init__(self, t: Table) -> None:
        self._table = t

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text as Words

        lines = list(table(self._table, options.max_width))
        if any(self._table.columns):
            yield Words(lines.pop(0), style="bold", no_wrap=True, overflow="crop")
        yield Words("\n".join(lines), no_wrap=True, overflow="crop")


def _syntax(text: str, language: str, marked: frozenset[int]) -> Any:
    from rich.syntax import Syntax

    lines = {k + 1 for k in marked}  # rich counts from 1
    if language not in RICH:
        from rich.text import Text as Words

        return Words(text, no_wrap=True, overflow="ignore")
    return Syntax(text, RICH[language], theme="ansi_light", highlight_lines=lines, word_wrap=False)
