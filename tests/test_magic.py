"""`%%kernel` in IPython's own shell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from edit_samples import SCALED, compiled, floats, replaced

pytest.importorskip("IPython")
from IPython.core.interactiveshell import InteractiveShell

X = floats(40)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance()
    made.run_line_magic("load_ext", "tilewright")
    made.user_ns["model"] = compiled(SCALED, X, cache_dir=tmp_path / "cache")
    made.user_ns["given"] = {"x": X}
    yield made
    InteractiveShell.clear_instance()


def kernel_of(shell: Any) -> Any:
    return shell.user_ns["model"].kernels[0]


def cell(shell: Any, line: str, body: str = "") -> tuple[Any, str]:
    """What comes of a cell, and what the next one is filled with."""
    shell.rl_next_input = None
    filled: list[str] = []
    shell.set_next_input = lambda text, replace=False: filled.append(text)
    result = shell.run_cell(f"%%kernel {line}\n{body}" if body else f"%kernel {line}")
    return result.error_in_exec, "".join(filled)


def faster(source: str) -> str:
    return replaced(source, "(exp_f32(p0[i0]) * p1[0])", "p1[0] * exp_f32(p0[i0])")


def test_a_cell_is_filled_edited_and_run(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    error, text = cell(shell, "model k0")
    line, _, body = text.partition("\n")
    assert error is None and line == "%%kernel model k0" and body == kernel_of(shell).source
    error, _ = cell(shell, "model k0 --feeds given", faster(body))
    assert error is None and kernel_of(shell).origin == "edited"
    shown = capsys.readouterr().out
    assert "k0_exp_mul edited" in shown and "the model's own data" in shown
    np.testing.assert_allclose(shell.user_ns["model"](X), np.exp(X) * 1.5, rtol=1e-6)


def test_a_cell_pins_and_resets(shell: Any, tmp_path: Path) -> None:
    body = faster(kernel_of(shell).source)
    assert cell(shell, "model 0 --pin", body)[0] is None
    assert kernel_of(shell).origin == "pinned edit"
    again = compiled(SCALED, X, cache_dir=tmp_path / "cache")
    assert again.kernels[0].origin == "pinned edit"
    assert cell(shell, "model k0 --reset") == (None, "")
    assert kernel_of(shell).origin == "generated"
    assert compiled(SCALED, X, cache_dir=tmp_path / "cache").kernels[0].origin == "generated"


def test_a_cell_holds_a_schedule(shell: Any) -> None:
    error, text = cell(shell, "model k0 --schedule --show")
    assert error is None and text.startswith("%%kernel model k0 --schedule\nBind(")
    error, _ = cell(shell, "model k0 --schedule", "Block('row0', 8)\nBind('row0')\n")
    kernel = kernel_of(shell)
    assert error is None and kernel.origin == "rescheduled" and len(kernel.schedule) == 2


def test_showing_changes_nothing(shell: Any) -> None:
    error, text = cell(shell, "model k0 --show", "anything")
    assert error is None and kernel_of(shell).source in text
    assert kernel_of(shell).origin == "generated"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model k7", "there is no such kernel"),
        ("other k0", "no variable 'other'"),
        ("given k0", "a compiled model is wanted"),
        ("model", "required: kernel"),
        ("model k0 --every-shape", "--every-shape is of --pin"),
    ],
)
def test_wrong_lines_say_so(shell: Any, line: str, message: str) -> None:
    error, _ = cell(shell, line, "\n")
    assert type(error).__name__ == "UsageError" and message in str(error)


def test_wrong_cells_say_so(shell: Any) -> None:
    source = kernel_of(shell).source
    error, _ = cell(shell, "model k0", replaced(source, "* p1[0]", "+ p1[0]"))
    assert "p2[0]: wanted" in str(error) and isinstance(error.__cause__, tw.EditRefused)
    error, _ = cell(shell, "model k0", replaced(source, "p2[i0] =", "p2[i0] = ="))
    assert "line 12" in str(error)
    error, _ = cell(shell, "model k0 --schedule", "Block('row9', 3)")
    assert "no loop over row9" in str(error)
    assert kernel_of(shell).origin == "generated"
