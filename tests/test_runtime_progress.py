"""The display stays away from fast compilations and from logs."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from tilewright.runtime import progress
from tilewright.runtime.progress import bar, default_progress, silent


class Terminal:
    """A stderr that says it is a terminal, and keeps what it is told."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


class Handle:
    """What IPython returns for a display that can be updated."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def update(self, line: dict[str, str], raw: bool) -> None:
        self.lines.append(line["text/plain"])


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error is a terminal (not as a fixture: pytest replaces it after those)."""
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_bar_shows_the_share() -> None:
    assert bar(0, 4) == f"compiling kernels [{'.' * 30}] 0/4"
    assert bar(2, 4) == f"compiling kernels [{'#' * 15}{'.' * 15}] 2/4"
    assert bar(0, 0).endswith("0/0")


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    show = default_progress()
    for done in range(4):
        show(done, 3)
    assert terminal.text == ""


def test_long_work_ends_with_a_full_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    show = default_progress()
    show(1, 2)
    show(2, 2)
    assert terminal.text == f"\r{bar(1, 2)}\r{bar(2, 2)}\n"


def test_log_file_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    monkeypatch.setattr(terminal, "isatty", lambda: False)
    assert default_progress() is silent
    monkeypatch.setattr(sys, "stderr", None)
    assert default_progress() is silent


def test_notebook_updates_one_display(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Handle()

    def display(line: dict[str, str], raw: bool, display_id: bool) -> Handle:
        handle.update(line, raw)
        return handle

    shell = type("ZMQInteractiveShell", (), {})()
    ipython = SimpleNamespace(get_ipython=lambda: shell, display=SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    show = default_progress()
    show(1, 2)
    show(2, 2)
    assert handle.lines == [bar(1, 2), bar(2, 2)]
