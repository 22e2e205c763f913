"""Pages as HTML for notebooks: tabs, folds and zoom of plain HTML and CSS, with nothing from
elsewhere, so that they work in saved notebooks and where no script may run."""

from __future__ import annotations

import secrets
from html import escape
from itertools import count

from tilewright.explore.highlight import STYLE as SYNTAX
from tilewright.explore.highlight import highlighted
from tilewright.explore.pages import Block, Choice, Code, Page, Picture, Table, Text
from tilewright.explore.svg import clean
from tilewright.explore.theme import PICTURES, variables

ZOOMS = (("whole", 0.0), ("50 %", 0.5), ("100 %", 1.0), ("200 %", 2.0))
NATURAL = 2  # the zoom to begin with
MOST_TABS = 24

STYLE = (
    """\
.tw{color:var(--tw-fg);background:var(--tw-bg);border:1px solid var(--tw-line);border-radius:8px;
padding:10px 12px;margin:4px 0;font:13px/1.45 system-ui,-apple-system,"Segoe UI","DejaVu Sans",
sans-serif;max-width:100%;box-sizing:border-box;overflow:hidden;text-align:left}
.tw *{box-sizing:border-box}
.tw .tw-title{font-weight:650;font-size:15px;overflow-wrap:anywhere}
.tw .tw-fact{color:var(--tw-dim);overflow-wrap:anywhere}
.tw .tw-tabs{display:flex;flex-wrap:wrap;align-items:flex-end;margin-top:8px}
.tw input.tw-r{position:absolute;opacity:0;pointer-events:none;width:1px;height:1px;margin:0}
.tw label.tw-t{order:1;padding:4px 11px;margin:0;cursor:pointer;color:var(--tw-dim);
border-bottom:2px solid var(--tw-line);font-weight:500;font-size:13px}
.tw label.tw-t:hover{color:var(--tw-fg)}
.tw input.tw-r:checked+label.tw-t{color:var(--tw-fg);border-bottom-color:var(--tw-accent)}
.tw input.tw-r:focus-visible+label.tw-t{outline:2px solid var(--tw-accent);outline-offset:-2px}
.tw .tw-p{order:9;display:none;width:100%;padding-top:10px;min-width:0}
.tw .tw-pane{overflow:auto;max-height:620px;border:1px solid var(--tw-line);border-radius:6px;
resize:vertical;background:var(--tw-bg)}
.tw .tw-pane svg{display:block;max-width:none;height:auto}
.tw .tw-x{overflow-x:auto;max-height:620px;overflow-y:auto}
.tw table.tw-table{border-collapse:collapse;margin:0;color:var(--tw-fg);font-size:12px;
background:var(--tw-bg);border:0}
.tw table.tw-table th{color:var(--tw-dim);font-weight:600;border-bottom:1px solid var(--tw-line);
position:sticky;top:0;background:var(--tw-bg)}
.tw table.tw-table th,.tw table.tw-table td{padding:2px 10px 2px 0;text-align:right;
white-space:nowrap;vertical-align:top}
.tw table.tw-table tr,.tw table.tw-table tbody tr:nth-child(odd),
.tw table.tw-table tbody tr:nth-child(even){background:transparent}
.tw table.tw-table tbody tr:hover{background:var(--tw-soft)}
.tw table.tw-table .l{text-align:left}
.tw table.tw-table td.w{white-space:normal;min-width:14em;max-width:34em;overflow-wrap:anywhere}
.tw table.tw-table td.b{min-width:120px;background:linear-gradient(to right,
color-mix(in srgb,var(--tw-cost) 45%,transparent) var(--s),transparent var(--s))}
.tw pre.tw-code{margin:0;padding:8px 10px;background:var(--tw-soft);color:var(--tw-fg);
border:0;border-radius:6px;overflow:auto;max-height:560px;white-space:pre;tab-size:4;
font:12px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.tw pre.tw-code code{background:transparent;color:inherit;font:inherit;padding:0;border:0;
white-space:pre}
.tw pre.tw-code span.h{display:block;background:var(--tw-mark);margin:0 -10px;padding:0 10px 0 7px;
border-left:3px solid var(--tw-markline)}
.tw pre.tw-text{margin:0;background:transparent;color:var(--tw-fg);border:0;padding:0;
white-space:pre-wrap;overflow-wrap:anywhere;font:inherit}
.tw details{margin:4px 0}.tw summary{cursor:pointer;color:var(--tw-fg)}
.tw .tw-sub{font-weight:600;margin:6px 0 4px}
.tw .tw-b+.tw-b{margin-top:10px}
"""
    + "".join(
        f".tw .tw-tabs>input.tw-r:nth-of-type({k}):checked~.tw-p.p{k}{{display:block}}\n"
        for k in range(1, MOST_TABS + 1)
    )
    + "".join(
        f".tw .tw-tabs>input.tw-r:nth-of-type({k}):checked~.tw-z .tw-pane>svg"
        + (
            f"{{width:calc(var(--w)*{zoom}px)}}\n"
            if zoom
            else "{width:auto;height:auto;max-width:100%;max-height:600px}\n"
        )
        for k, (_, zoom) in enumerate(ZOOMS, 1)
    )
)


def html(page: Page, key: str | None = None) -> str:
    """The page as an element; `key` makes the names of its controls its own."""
    writer = _Writer(key or secrets.token_hex(5))
    style = f"<style>{variables('.tw')}{STYLE}{SYNTAX}{PICTURES}</style>"
    facts = "".join(f'<div class="tw-fact">{_text(f)}</div>' for f in page.facts)
    blocks = [(p.title, "".join(map(writer.block, p.blocks))) for p in page.parts]
    tabs = writer.tabs(blocks) if blocks else ""
    head = f'<div class="tw-title">{_text(page.title)}</div>{facts}'
    return f'<div class="tw">{style}{head}{tabs}</div>'


def _text(words: str) -> str:
    return escape("\n".join(clean(line) for line in words.split("\n")))


class _Writer:
    def __init__(self, key: str) -> None:
        self._key, self._next = key, count()

    def block(self, block: Block) -> str:
        match block:
            case Text(text=words):
                inside = f'<pre class="tw-text">{_text(words)}</pre>'
            case Table():
                inside = _table(block)
            case Code():
                inside = _code(block)
            case Picture():
                inside = self._picture(block)
            case Choice(names=names, blocks=blocks, chosen=chosen):
                pairs = zip(names, map(self.block, blocks), strict=True)
                inside = self.tabs(list(pairs), chosen)
        return f'<div class="tw-b">{inside}</div>'

    def tabs(self, parts: list[tuple[str, str]], chosen: int = 0) -> str:
        """One part at a time; folds where there are too many for that."""
        if len(parts) > MOST_TABS:
            folds = (f"<summary>{_text(title)}</summary>{inside}" for title, inside in parts)
            return "".join(f"<details>{fold}</details>" for fold in folds)
        name, panels = f"tw{self._key}{next(self._next)}", []
        controls = self._controls(name, [title for title, _ in parts], chosen)
        for k, (_, inside) in enumerate(parts, 1):
            panels.append(f'<div class="tw-p p{k}">{inside}</div>')
        return f'<div class="tw-tabs">{controls}{"".join(panels)}</div>'

    def _controls(self, name: str, titles: list[str], chosen: int) -> str:
        return "".join(
            f'<input class="tw-r" type="radio" name="{name}" id="{name}-{k}"'
            f"{' checked' if k == chosen else ''}>"
            f'<label class="tw-t" for="{name}-{k}">{_text(title)}</label>'
            for k, title in enumerate(titles)
        )

    def _picture(self, p: Picture) -> str:
        title = f'<div class="tw-sub">{_text(p.title)}</div>' if p.title else ""
        pane = f'<div class="tw-pane" style="--w:{p.width:.0f}">{p.svg}</div>'
        if not p.can_zoom:
            return title + pane
        name = f"tw{self._key}{next(self._next)}"
        controls = self._controls(name, [words for words, _ in ZOOMS], NATURAL)
        zoom = f'<div class="tw-z" style="order:9;width:100%;min-width:0">{pane}</div>'
        return f'{title}<div class="tw-tabs">{controls}{zoom}</div>'


def _table(t: Table) -> str:
    head = "".join(
        f'<th class="{"l" if k < t.texts else ""}">{_text(c)}</th>' for k, c in enumerate(t.columns)
    )
    rows = "".join(f"<tr>{_cells(t, n, row)}</tr>" for n, row in enumerate(t.rows))
    titles = f"<thead><tr>{head}</tr></thead>" if any(t.columns) else ""
    table = f'<table class="tw-table">{titles}<tbody>{rows}</tbody></table>'
    return f'<div class="tw-x">{table}</div>'


def _cells(t: Table, n: int, row: tuple[str, ...]) -> str:
    cells = []
    for k, cell in enumerate(row):
        cls = "l" + (" w" if len(cell) > 40 else "") if k < t.texts else ""
        style = ""
        if k == t.texts and t.bars:
            cls, style = "b", f' style="--s:{100 * t.bars[n]:.1f}%"'
        cells.append(f'<td class="{cls}"{style}>{_text(cell)}</td>')
    return "".join(cells)


def _code(c: Code) -> str:
    lines = highlighted(c.text, c.language)
    shown = "".join(
        f'<span class="h">{line or " "}</span>' if k in c.marked else f"{line}\n"
        for k, line in enumerate(lines)
    )
    code = f'<pre class="tw-code"><code>{shown}</code></pre>'
    if c.is_folded:
        what = c.title or "source"
        return f"<details><summary>{_text(what)} ({len(lines):,} lines)</summary>{code}</details>"
    return (f'<div class="tw-sub">{_text(c.title)}</div>' if c.title else "") + code
