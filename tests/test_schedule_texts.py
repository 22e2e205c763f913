"""Directives as text: read into what they say, never evaluated."""

from __future__ import annotations

import dataclasses
import string
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilewright
from tilewright.errors import ScheduleError
from tilewright.loops.ir import LoopKind
from tilewright.schedule import texts
from tilewright.schedule.directives import Bind, Block, Merge
from tilewright.schedule.texts import DIRECTIVES, read_schedule

WORDS = st.text(string.ascii_letters + string.digits + "_' \\\n", max_size=8)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    str: WORDS,
    int: st.integers(-99, 99),
    bool: st.booleans(),
    LoopKind: st.sampled_from(LoopKind),
}


@st.composite
def directives(draw: st.DrawFn) -> Any:
    kind = draw(st.sampled_from(list(DIRECTIVES.values())))
    hints = get_type_hints(kind)
    return kind(**{f.name: draw(VALUES[hints[f.name]]) for f in dataclasses.fields(kind)})


@given(st.lists(directives(), max_size=4))
def test_what_is_printed_can_be_read(made: list[Any]) -> None:
    wanted = tuple(made)
    assert read_schedule(made) == wanted
    assert read_schedule(", ".join(map(str, made))) == wanted
    assert read_schedule("\n".join(map(str, made))) == wanted
    assert read_schedule(list(map(str, made))) == wanted


def test_all_directives_are_in_the_table() -> None:
    """Each class of the package with a kernel on both sides of its call."""
    folder = Path(tilewright.__file__).parent / "schedule"
    call = "    def __call__(self, kernel: Kernel) -> Kernel:"
    found = {
        block.partition(":")[0].strip()
        for file in folder.glob("*.py")
        for block in file.read_text().split("\nclass ")[1:]
        if call in block and not block.startswith("Directive(")
    }
    assert found == set(DIRECTIVES)
    assert len(DIRECTIVES) == len(texts.OF_CPUS) + len(texts.OF_GPUS)


def test_short_forms() -> None:
    assert read_schedule("Block('a', 14, overlap=True)") == (Block("a", 14, overlap=True),)
    assert read_schedule("[Bind('a'), Merge('a', inner='b')]") == (Bind("a"), Merge("a", "b"))
    assert read_schedule("Bind('a', LoopKind.UNROLLED)") == (Bind("a", LoopKind.UNROLLED),)
    assert read_schedule("Bind('a', 'unrolled')") == (Bind("a", LoopKind.UNROLLED),)
    assert read_schedule("") == () == read_schedule([])
    assert read_schedule([Bind("a"), "Bind('b')"]) == (Bind("a"), Bind("b"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Block('a')", r"Block takes \(axis: str, factor: int, overlap: bool = False\)"),
        ("Block('a', '3')", "Block takes"),
        ("Block('a', True)", "Block takes"),
        ("Block('a', 2, axis='b')", "Block takes"),
        ("Block('a', 2, wrong=1)", "Block takes"),
        ("Bind('a', 'sideways')", "Bind takes"),
        ("Block('a', n)", "'n' is not a literal"),
        ("Block('a', open('x'))", "not a literal"),
        ("Block(*'ab')", "not a literal"),
        ("Block(**{'axis': 'a'})", "Block takes"),
        ("Blocks('a', 2)", "is not a directive: those are"),
        ("x = Block('a', 2)", "is not a directive"),
        ("os.remove('a')", "is not a directive"),
        ("Block('a', 2", "is not a list of directives"),
        ("3", "is not a directive"),
    ],
)
def test_other_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        read_schedule(text)


def test_other_objects_are_refused() -> None:
    with pytest.raises(ScheduleError, match="is not a directive"):
        read_schedule([3])  # type: ignore[list-item]
