"""A modest display for compilations that take long enough to make people wonder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

Progress = Callable[[int, int], None]

PATIENCE = 1.0  # seconds without a display
WIDTH = 30


def silent(done: int, total: int) -> None:
    """Shows nothing."""


def default_progress(what: str = "compiling kernels") -> Progress:
    """A bar in a notebook or a terminal that appears after a second; elsewhere nothing."""
    notebook = _notebook_display(what)
    if notebook is not None:
        return _Delayed(notebook)
    if sys.stderr is not None and sys.stderr.isatty():
        return _Delayed(partial(_show_in_terminal, what=what))
    return silent


class _Delayed:
    """Passes reports on once PATIENCE is over; the last one only if others were shown."""

    def __init__(self, show: Progress) -> None:
        self._show = show
        self._since = time.monotonic()
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        if self._shown or (done < total and time.monotonic() - self._since > PATIENCE):
            self._shown = True
            self._show(done, total)


def bar(done: int, total: int, what: str = "compiling kernels") -> str:
    """One line: the share as a bar, and in numbers."""
    full = WIDTH * done // max(total, 1)
    return f"{what} [{'#' * full}{'.' * (WIDTH - full)}] {done}/{total}"


def _show_in_terminal(done: int, total: int, what: str) -> None:
    end = "\n" if done == total else ""
    print(f"\r{bar(done, total, what)}", end=end, file=sys.stderr, flush=True)


def _notebook_display(what: str) -> Progress | None:
    """A display that updates in place, where this is a Jupyter kernel."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if type(shell).__name__ != "ZMQInteractiveShell":
        return None
    handle: Any = None

    def show(done: int, total: int) -> None:
        nonlocal handle
        line = {"text/plain": bar(done, total, what)}
        if handle is None:
            handle = ipython.display.display(line, raw=True, display_id=True)
        else:
            handle.update(line, raw=True)

    return show
