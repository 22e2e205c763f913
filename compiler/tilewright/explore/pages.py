"""What is shown of an object, before it is known where: parts with text, tables, code, pictures.

`page_html` and `page_text` show pages in notebooks and in terminals.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Text:
    """Lines as they are."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows under titles. The first `texts` columns are text, the others numbers; `bars` are
    shares from 0 to 1, one to a row, drawn behind its first number."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1
    bars: tuple[float, ...] = ()


@dataclass(frozen=True)
class Code:
    """Source in a language, folded if it is long; `marked` are numbers of lines that differ from
    the text shown before."""

    text: str
    language: str
    title: str = ""
    marked: frozenset[int] = frozenset()
    is_folded: bool = False


@dataclass(frozen=True)
class Picture:
    """An SVG element, with a text in its place where there are no pictures."""

    svg: str
    width: float
    instead: str = ""
    can_zoom: bool = False
    title: str = ""


@dataclass(frozen=True)
class Choice:
    """One of several blocks; `chosen` is the one to begin with."""

    names: tuple[str, ...]
    blocks: tuple[Block, ...]
    chosen: int = 0


Block = Text | Table | Code | Picture | Choice


@dataclass(frozen=True)
class Part:
    """A tab of a page; one that `is_deep` is too long for text."""

    title: str
    blocks: tuple[Block, ...]
    is_deep: bool = False


@dataclass(frozen=True)
class Page:
    """Everything that is shown of an object; `facts` are short lines below the title."""

    title: str
    facts: tuple[str, ...] = ()
    parts: tuple[Part, ...] = field(default=())


def amount(value: float) -> str:
    """A number with a prefix: 1.2 M."""
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {prefix}"
    return f"{value:.3g} "


def nbytes(value: float) -> str:
    return f"{amount(value)}B"


def time(seconds: float) -> str:
    """1.2 ms."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} µs"
