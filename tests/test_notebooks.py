"""Every lesson runs from top to bottom in a fresh kernel, and is kept without outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

jupytext = pytest.importorskip("jupytext", reason="lessons need jupytext and nbclient")
pytest.importorskip("nbclient", reason="lessons need jupytext and nbclient")

from cuda_harness import missing  # noqa: E402
from execute import execute, lessons  # noqa: E402
from tilewright.runtime.cuda.toolchain import TO_COMPILE  # noqa: E402

NAMES = [
    "01_from_onnx_to_assembly",
    "02_how_fusion_decides",
    "03_schedules_by_hand",
    "04_dynamic_shapes_and_the_cache",
    "05_cuda_without_a_gpu",
    "06_adding_an_operator",
    "07_editing_a_kernel",
]


def test_all_lessons_are_there() -> None:
    assert [p.stem for p in lessons()] == NAMES


@pytest.mark.parametrize("path", lessons(), ids=lambda p: p.stem[:2])
def test_a_lesson_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "cuda" in path.stem and missing(TO_COMPILE):
        pytest.skip(missing(TO_COMPILE))
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path))
    notebook: Any = execute(path)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code)
    assert any(c.outputs for c in code)


@pytest.mark.parametrize("path", lessons(), ids=lambda p: p.stem[:2])
def test_sources_are_text_without_outputs(path: Path) -> None:
    notebook = jupytext.read(path)
    assert notebook.cells[0].source.startswith("# ")
    assert not any(c.get("outputs") for c in notebook.cells)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 115 and path.stat().st_size < 20_000
