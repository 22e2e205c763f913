"""Elements of SVG as text; everything that a model names is escaped here."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

CHARACTER = 6.7  # about the width of one at 11 pixels


def clean(text: str) -> str:
    """The text without what XML cannot hold."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " for c in text)


def attributes(values: dict[str, object]) -> str:
    """A class is `cls`, and `-` is spelled `_`."""
    spelled = ((("class" if k == "cls" else k.replace("_", "-")), v) for k, v in values.items())
    return "".join(
        f' {k}="{_number(v) if isinstance(v, float) else escape(clean(str(v)))}"'
        for k, v in spelled
    )


def element(name: str, inside: str = "", /, **values: object) -> str:
    """An element around SVG."""
    return (
        f"<{name}{attributes(values)}>{inside}</{name}>"
        if inside
        else (f"<{name}{attributes(values)}/>")
    )


def text(words: str, x: float, y: float, cls: str = "", anchor: str = "start") -> str:
    values: dict[str, object] = {"x": x, "y": y, "text_anchor": anchor}
    return element("text", escape(clean(words)) or " ", **(values | ({"cls": cls} if cls else {})))


def title(words: str) -> str:
    """What a pointer over an element shows; lines are kept."""
    lines = (escape(clean(line)) for line in words.splitlines())
    return f"<title>{'&#10;'.join(lines)}</title>"


def picture(parts: Iterable[str], width: float, height: float, label: str) -> str:
    """A whole picture."""
    values = {
        "cls": "tw-svg",
        "viewBox": f"0 0 {_number(width)} {_number(height)}",
        "width": float(width),
        "height": float(height),
        "role": "img",
        "aria-label": label,
    }
    named = attributes(values).replace("aria-label", "aria-label")
    return f'<svg xmlns="http://www.w3.org/2000/svg"{named}>{"".join(parts)}</svg>'


def shorten(words: str, room: float) -> str:
    """The text as far as there is room for it."""
    most = max(1, int(room / CHARACTER))
    return words if len(words) <= most else words[: most - 1] + "…"


def _number(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
