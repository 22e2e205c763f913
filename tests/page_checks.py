"""What pages and pictures must be, whatever they show."""

from __future__ import annotations

import re
import xml.etree.ElementTree as xml
from html.parser import HTMLParser

VOID = {"input", "br", "meta", "hr", "img"}
SVG = "{http://www.w3.org/2000/svg}"


class Parsed(HTMLParser):
    """Tags that are balanced, and what is in them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.radios: list[tuple[str, str, bool]] = []
        self.targets: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        assert not [n for n in values if n.startswith("on")], values
        assert not {"src", "href", "xlink:href"} & values.keys(), values
        if tag == "input":
            key = str(values["name"]), str(values["id"]), "checked" in values
            self.radios.append(key)
        if tag == "label":
            self.targets.add(str(values["for"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> within {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.words)


def check_page(text: str) -> Parsed:
    """Well formed, without scripts and anything from elsewhere; each group of tabs has one that is
    open, and every label is that of a tab."""
    found = Parsed(text)
    assert "script" not in found.tags and "link" not in found.tags and "@import" not in text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "url(" not in text
    groups: dict[str, int] = {}
    for name, _, is_checked in found.radios:
        groups[name] = groups.get(name, 0) + is_checked
    assert set(groups.values()) <= {1}
    ids = [i for _, i, _ in found.radios]
    assert len(set(ids)) == len(ids) and set(ids) == found.targets
    for svg in pictures(text):
        check_picture(svg)
    return found


def pictures(text: str) -> list[str]:
    """The SVG elements in a page."""
    return re.findall(r"<svg\b.*?</svg>", text, re.DOTALL)


def check_picture(svg: str) -> xml.Element:
    """Well formed, and every shape lies within the picture."""
    root = xml.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for rect in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(rect.attrib[k]) for k in ("x", "y", "width", "height"))
        assert x >= -1 and x + w <= width + 1 and y >= -1 and y + h <= height + 1, rect.attrib
        assert w >= 0 and h >= 0
    for words in root.iter(f"{SVG}text"):
        assert 0 <= float(words.attrib["x"]) <= width and 0 <= float(words.attrib["y"]) <= height
    return root
