"""How results show themselves. What draws them is imported when somebody looks at them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

VIEWS = "tilewright.explore.views"


class Displayed:
    """An object that notebooks and rich show with more than its text."""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """For Jupyter: a page that needs nothing from elsewhere, and text."""
        bundle: dict[str, str] = import_module(VIEWS).bundle(self)
        return bundle

    def __rich__(self) -> Any:
        """For rich: the same as tables and text."""
        return import_module(VIEWS).rich(self)

    def show(self, width: int | None = None) -> None:
        """Prints the same for a terminal of that width, by default for this one."""
        import_module(VIEWS).show(self, width)
