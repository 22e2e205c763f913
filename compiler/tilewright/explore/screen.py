"""Text, tables and source on the terminal: with rich's colours where rich is installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol

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
        self._console.print(text, markup=False)

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

    def source(self, code: str) -> None:
        from rich.syntax import Syntax

        lines = code.rstrip().splitlines()
        width = max(map(len, lines), default=0)  # a long line is left to the terminal
        syntax = Syntax("\n".join(lines), "python", theme="ansi_light", code_width=width)
        self._console.print(syntax, no_wrap=True, overflow="ignore", crop=False)


def open_screen() -> Screen:
    """The best screen that this Python has; characters that the output lacks become `?`."""
    reconfigure: Any = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    try:
        return RichScreen()
    except ImportError:
        return PlainScreen()
