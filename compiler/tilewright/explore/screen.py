"""Text, tables and source on the terminal: with rich's colours where rich is installed."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from tilewright.runtime.progress import default_progress

NARROWEST = 100  # a table of kernels and their source need this many columns


class Screen(Protocol):
    """Where a program shows its results."""

    def heading(self, text: str) -> None:
        """Starts a part."""

    def line(self, text: str) -> None:
        """Shows text as it is."""

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Shows rows under titles; all but the first two columns are numbers."""

    def source(self, code: str) -> None:
        """Shows Python."""

    def show(self, thing: Any) -> None:
        """Shows a result that knows how it looks."""


class PlainScreen:
    """Prints."""

    def heading(self, text: str) -> None:
        print(f"\n{text}\n{'-' * len(text)}")

    def line(self, text: str) -> None:
        print(text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        for row in (columns, ["-" * w for w in widths], *rows):
            cells = (
                cell.ljust(w) if k < 2 else cell.rjust(w)
                for k, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            print("  ".join(cells).rstrip())

    def source(self, code: str) -> None:
        print(code)

    def show(self, thing: Any) -> None:
        print(thing)


class RichScreen:
    """Prints with colours, and without them where the output is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        console = Console(highlight=False)
        width = None if console.is_terminal else max(console.width, NARROWEST)
        self._console: Any = Console(highlight=False, width=width)

    def heading(self, text: str) -> None:
        from rich.rule import Rule

        self._console.print()
        self._console.print(Rule(text, align="left", style="cyan"))

    def line(self, text: str) -> None:
        whole = not self._console.is_terminal  # programs read lines, and wrap them themselves
        self._console.print(text, markup=False, soft_wrap=whole)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD)
        for k, column in enumerate(columns):
            table.add_column(escape(column), justify="left" if k < 2 else "right")
        for row in rows:
            table.add_row(*map(escape, row))
        self._console.print(table)

    def show(self, thing: Any) -> None:
        self._console.print(thing)

    def source(self, code: str) -> None:
        from rich.syntax import Syntax

        lines = code.rstrip().splitlines()
        width = max(map(len, lines), default=0)  # a long line is left to the terminal
        syntax = Syntax("\n".join(lines), "python", theme="ansi_light", code_width=width)
        self._console.print(syntax, no_wrap=True, overflow="ignore", crop=False)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar of progress on the error output where that is a terminal, gone when all is done.

    What the context gives is called with the name of each of the `total` parts as it begins.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed
    except ImportError:
        yield _plain_progress(total)
        return
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Elapsed()
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as shown:
        task, begun = shown.add_task("", total=total), itertools.count()
        yield lambda name: shown.update(task, description=name, completed=next(begun))


def _plain_progress(total: int) -> Callable[[str], None]:
    show, begun = default_progress("comparing"), itertools.count()
    return lambda name: show(next(begun), total)


def open_screen() -> Screen:
    """The best screen that this Python has; characters that the output lacks become `?`."""
    reconfigure: Any = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    try:
        return RichScreen()
    except ImportError:
        return PlainScreen()
