"""What the site's pages are made of that is kept elsewhere: the README and the command's help."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from tilewright.explore import cli

ROOT = Path(__file__).parent.parent
README = "<!-- README -->"
HELP = "<!-- help -->"


def on_page_markdown(markdown: str, **unused: Any) -> str:
    """Fills in the places of a page."""
    if README in markdown:
        markdown = markdown.replace(README, _readme())
    if HELP in markdown:
        markdown = markdown.replace(HELP, _help())
    return markdown


def _readme() -> str:
    """The README; links into the source are to files that the site does not have."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[([^]]*)\]\(docs/[^)]+\)", r"*\1*", text)
    return re.sub(r"\[([^]]+)\]\((?!https?://|#)[^)]+\)", r"`\1`", text)


def _help() -> str:
    top = cli.parser()
    parts = [f"```text\n{top.format_help()}```"]
    (commands,) = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    for name, made in commands.choices.items():
        parts.append(f"## {name}\n\n```text\n{made.format_help()}```")
    return "\n\n".join(parts)
