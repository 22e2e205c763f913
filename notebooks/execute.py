"""Executes lessons, each in a fresh kernel, and writes them with their outputs.

python notebooks/execute.py [LESSON ...] --out build/lessons [--html]

A lesson is a Markdown file with code blocks; Jupyter opens it as a notebook with jupytext.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
ROOT = HERE.parent
SOURCES = ("compiler", "kernels")
LIMIT = 300  # seconds that a cell may take


def lessons() -> list[Path]:
    """All of them, in order."""
    return sorted(HERE.glob("[0-9][0-9]_*.md"))


def execute(path: Path) -> Any:
    """The lesson as a notebook with outputs; raises CellExecutionError if a cell fails."""
    notebook = jupytext.read(path)
    paths = [str(ROOT / s) for s in SOURCES] + [os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    client = NotebookClient(
        notebook,
        timeout=LIMIT,
        kernel_name="python3",
        resources={"metadata": {"path": str(HERE)}},
    )
    client.execute(env=environment)
    return notebook


def write(notebook: Any, path: Path, folder: Path, html: bool) -> None:
    """The executed lesson as .ipynb, and as a page."""
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{path.stem}.ipynb")
    if html:
        from nbconvert import HTMLExporter

        body, _ = HTMLExporter().from_notebook_node(notebook)
        (folder / f"{path.stem}.html").write_text(body, encoding="utf-8")


def main() -> int:
    """Executes what the command line names; the exit code is 1 if a lesson fails."""
    parser = argparse.ArgumentParser(description="Executes lessons.")
    parser.add_argument("lessons", nargs="*", type=Path, metavar="LESSON", help="all if none")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "lessons")
    parser.add_argument("--html", action="store_true", help="write pages as well")
    arguments = parser.parse_args()
    failed = 0
    for path in arguments.lessons or lessons():
        start = time.perf_counter()
        try:
            write(execute(path), path, arguments.out, arguments.html)
        except Exception as error:
            failed = 1
            print(f"{path.name} FAILED\n{error}")
            continue
        print(f"{path.name}: {time.perf_counter() - start:.1f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
