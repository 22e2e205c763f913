"""The site builds without a warning; what it shows of the command is what the command says."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the site needs tilewright[docs]")
jupytext = pytest.importorskip("jupytext", reason="the site needs tilewright[docs]")

from mkdocs.commands.build import build  # noqa: E402
from mkdocs.config import load_config  # noqa: E402

from execute import lessons  # noqa: E402

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as built, with lessons that have not been executed."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(
        ROOT / "docs" / "site", folder / "site", ignore=shutil.ignore_patterns("lessons")
    )
    for lesson in lessons():
        notebook = jupytext.read(lesson)
        target = folder / "site" / "lessons" / f"{lesson.stem}.ipynb"
        target.parent.mkdir(exist_ok=True)
        jupytext.write(notebook, target)
    config = load_config(
        str(ROOT / "mkdocs.yml"), docs_dir=str(folder / "site"), site_dir=str(folder / "out")
    )
    counted: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: counted.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("mkdocs").addHandler(handler)
    try:
        build(config)
    finally:
        logging.getLogger("mkdocs").removeHandler(handler)
    assert not counted
    return folder / "out"


def text(page: Path) -> str:
    return re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))


def test_the_reference_has_what_people_call(site: Path) -> None:
    model = text(site / "reference" / "model.html")
    assert "A callable with the model's meaning" in model and "warmup" in model
    assert "Take" in text(site / "reference" / "schedules.html")


def test_every_lesson_is_on_the_site(site: Path) -> None:
    assert {p.stem for p in (site / "lessons").glob("*.html")} == {p.stem for p in lessons()}


def test_the_command_line_page_shows_every_subcommand(site: Path) -> None:
    from tilewright.explore import cli

    page = text(site / "command_line.html")
    assert all(f"usage: tilewright {c.name}" in page for c in cli.COMMANDS)


def test_no_page_links_to_files_that_only_the_repository_has(site: Path) -> None:
    found = re.findall(r'href="([^"]+)"', (site / "index.html").read_text(encoding="utf-8"))
    local = [h for h in found if not re.match(r"https?:|#|mailto:|data:", h)]
    missing = [h for h in local if not (site / h.partition("#")[0]).exists()]
    assert local and not missing
