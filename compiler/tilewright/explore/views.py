"""How results show themselves in notebooks and terminals; `runtime.display` comes here by name."""

from __future__ import annotations

import shutil
import sys
from typing import Any

from tilewright.explore.answer_view import answer_page, verdict_page
from tilewright.explore.kernel_view import kernel_page
from tilewright.explore.model_view import model_page
from tilewright.explore.page_html import html
from tilewright.explore.page_text import plain, renderable
from tilewright.explore.pages import Page
from tilewright.explore.profile_view import profile_page
from tilewright.runtime.levels import Levels
from tilewright.runtime.model import CompiledModel
from tilewright.runtime.profile import Profile
from tilewright.runtime.report import Explanation
from tilewright.runtime.verdict import Verdict

WIDTH = 100  # of text where there is no terminal


def page(shown: Any, below: bool = True) -> Page:
    """What there is to see of a model, a kernel, a profile or an answer. `below` asks for the
    levels of a kernel below its source as well."""
    match shown:
        case CompiledModel():
            return model_page(shown)
        case Levels():
            return kernel_page(shown, below)
        case Profile():
            return profile_page(shown)
        case Explanation():
            return answer_page(shown)
        case Verdict():
            return verdict_page(shown)
    raise TypeError(f"there is no page for {type(shown).__name__}")


def bundle(shown: Any) -> dict[str, str]:
    """The forms that Jupyter chooses from."""
    found = page(shown)
    is_text = isinstance(shown, (Profile, Explanation, Verdict))
    text = str(shown) if is_text else plain(found, WIDTH)
    return {"text/html": html(found), "text/plain": text}


def rich(shown: Any) -> Any:
    """What rich prints."""
    return renderable(page(shown, below=False))


def show(shown: Any, width: int | None = None) -> None:
    """Prints a page: with rich where it is installed and this is a terminal, otherwise plainly."""
    wide = width or shutil.get_terminal_size((WIDTH, 24)).columns
    if sys.stdout.isatty():
        try:
            from rich.console import Console
        except ImportError:
            pass
        else:
            Console(width=width, highlight=False).print(rich(shown))
            return
    print(plain(page(shown, below=False), wide))
