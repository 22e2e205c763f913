"""The equation of Einsum: which dimension carries which label, and how long each label is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.ops.common import fail


@dataclass(frozen=True)
class Equation:
    """One label to each operand dimension, those of the result, and the extent of each label."""

    terms: tuple[tuple[str, ...], ...]
    output: tuple[str, ...]
    extents: dict[str, int]


def parse(equation: str, shapes: Sequence[Sequence[int]]) -> Equation:
    """The equation applied to operands of these shapes; the dimensions of an ellipsis are labelled
    ".0", ".1" ...
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    written = left.split(",")
    if len(written) != len(shapes):
        raise fail(f"the equation {equation!r} has {len(written)} terms for {len(shapes)} operands")
    dots = max(
        (len(s) - _letters(t) for t, s in zip(written, shapes, strict=True) if "..." in t),
        default=0,
    )
    terms = tuple(_labels(t, len(s), dots) for t, s in zip(written, shapes, strict=True))
    output = _explicit(right, dots, left) if arrow else _implicit(left, dots)
    extents = _extents(terms, shapes)
    for label in output:
        if label not in extents:
            raise fail(f"the result label {label!r} of {equation!r} occurs in no operand")
    return Equation(terms, output, extents)


def _letters(term: str) -> int:
    letters = term.replace("...", "", 1)
    if letters and not (letters.isascii() and letters.isalpha()):
        raise fail(f"{term!r} is no term of letters with at most one ellipsis")
    return len(letters)


def _labels(term: str, rank: int, dots: int) -> tuple[str, ...]:
    """The labels of a term; an ellipsis that stands for fewer dimensions has the last ones."""
    letters = _letters(term)
    missing = rank - letters
    if missing < 0 or (missing and "..." not in term):
        raise fail(f"the term {term!r} does not fit an operand of rank {rank}")
    before, _, after = term.partition("...")
    return (
        (*before, *(f".{k}" for k in range(dots - missing, dots)), *after)
        if "..." in term
        else tuple(term)
    )


def _explicit(right: str, dots: int, left: str) -> tuple[str, ...]:
    letters = _letters(right)
    if len(set(right.replace("...", ""))) != letters:
        raise fail(f"a label occurs twice in the result term {right!r}")
    if "..." in right and "..." not in left:
        raise fail("the result term has an ellipsis, but no operand has one")
    return _labels(right, letters + dots, dots) if "..." in right else tuple(right)


def _implicit(left: str, dots: int) -> tuple[str, ...]:
    counts = Counter(c for c in left if c.isalpha())
    return (*(f".{k}" for k in range(dots)), *sorted(c for c, n in counts.items() if n == 1))


def _extents(terms: Sequence[Sequence[str]], shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    extents: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for label, n in zip(term, shape, strict=True):
            known = extents.setdefault(label, n)
            if n not in (1, known) and known != 1:
                raise fail(f"the label {label!r} stands for both {known} and {n}")
            extents[label] = n if known == 1 else known
    return extents
