"""Directives that could stand in another's place: measured ones, where measurements are known."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tilewright.fusion.decide import Pick, Point, by_cost_model
from tilewright.loops.ir import Kernel
from tilewright.loops.locate import axis_ranges
from tilewright.loops.structure import structure
from tilewright.schedule.builder import Builder
from tilewright.schedule.directives import Directive


def vary(
    builder: Builder,
    before: Kernel,
    kind: str,
    usual: Directive,
    others: Sequence[Directive],
    pick: Pick,
) -> None:
    """After `usual` made the builder's kernel from the one before: another takes its place if
    that is picked and allowed."""
    if pick is by_cost_model:
        return  # and the point need not be described
    ways = list(dict.fromkeys((*others, usual)))
    texts = tuple(map(str, ways))
    taken = pick(
        Point(
            kind,
            lambda: (texts, structure(before)),  # so that no number means another way later
            tuple(range(len(ways))),
            ways.index(usual),
            _iterations(before),
            dict(enumerate(texts)),
        )
    )
    made, builder.kernel = builder.kernel, before
    if ways[taken] == usual or not builder.attempt_if_shown(ways[taken]):
        builder.kernel = made


def _iterations(kernel: Kernel) -> float:
    return float(prod(high + 1 for _, high in axis_ranges(kernel.body).values()))
