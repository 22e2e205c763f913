"""Nodes of a directed graph in layers, so that edges point down and few of them cross.

Sugiyama's way, small: layers by the longest path, places within a layer by the mean place of the
neighbours, sweeping down and up, then coordinates that bring neighbours above each other. It needs
no library, and a graph of a thousand nodes takes a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

SWEEPS = 6
LONGEST = 12  # layers that an edge may cross; a longer one is only named at its ends


@dataclass
class Layout:
    """Centres of nodes, and for each edge the points that it passes between its ends.

    `long` are the edges that are not drawn. Layers are numbered from the top.
    """

    x: dict[int, float] = field(default_factory=dict)
    layer: dict[int, int] = field(default_factory=dict)
    bends: dict[tuple[int, int], list[tuple[float, int]]] = field(default_factory=dict)
    long: list[tuple[int, int]] = field(default_factory=list)


def lay_out(
    widths: Mapping[int, float], edges: Sequence[tuple[int, int]], gap: float, lane: float
) -> Layout:
    """A place for each node of a graph without cycles whose nodes are numbered in order.

    `gap` is kept free between neighbours, and `lane` is what an edge takes that passes by.
    """
    layer = _layers(sorted(widths), edges)
    drawn = [e for e in dict.fromkeys(edges) if layer[e[1]] - layer[e[0]] <= LONGEST]
    result = Layout(layer=layer, long=[e for e in dict.fromkeys(edges) if e not in set(drawn)])
    sizes = dict(widths)
    chains, links = _chains(drawn, layer, sizes, lane)
    rows = _rows(layer | {d: at for c in chains.values() for d, at in c})
    above, below = _neighbours(links)
    _order(rows, above, below)
    x = _coordinates(rows, sizes, above, below, gap)
    result.x = {n: x[n] for n in widths}
    result.bends = {e: [(x[d], at) for d, at in chain] for e, chain in chains.items()}
    return result


def _layers(nodes: Sequence[int], edges: Sequence[tuple[int, int]]) -> dict[int, int]:
    """One below the lowest of those it depends on; sources stand just above their first user."""
    before: dict[int, list[int]] = {n: [] for n in nodes}
    after: dict[int, list[int]] = {n: [] for n in nodes}
    for a, b in edges:
        before[b].append(a)
        after[a].append(b)
    layer: dict[int, int] = {}
    for n in nodes:
        layer[n] = max((layer[p] + 1 for p in before[n]), default=0)
    for n in nodes:
        if not before[n] and after[n]:
            layer[n] = max(0, min(layer[s] for s in after[n]) - 1)
    return layer


def _chains(
    edges: Sequence[tuple[int, int]], layer: Mapping[int, int], sizes: dict[int, float], lane: float
) -> tuple[dict[tuple[int, int], list[tuple[int, int]]], list[tuple[int, int]]]:
    """For each edge a place in every layer that it crosses, shared by edges from one node."""
    chains: dict[tuple[int, int], list[tuple[int, int]]] = {}
    links: dict[tuple[int, int], None] = {}
    known: dict[tuple[int, int], int] = {}
    for a, b in edges:
        chain, last = [], a
        for at in range(layer[a] + 1, layer[b]):
            place = known.get((a, at))
            if place is None:
                place = known[a, at] = -len(known) - 1
                sizes[place] = lane
            chain.append((place, at))
            links[last, place] = None
            last = place
        links[last, b] = None
        chains[a, b] = chain
    return chains, list(links)


def _rows(layer: Mapping[int, int]) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for n, at in layer.items():
        rows[at].append(n)
    return rows


def _neighbours(
    links: Sequence[tuple[int, int]],
) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for a, b in links:
        above.setdefault(b, []).append(a)
        below.setdefault(a, []).append(b)
    return above, below


def _order(
    rows: list[list[int]], above: Mapping[int, list[int]], below: Mapping[int, list[int]]
) -> None:
    """Sorts each row by where the neighbours are, down and up in turns."""
    place = {n: float(k) for row in rows for k, n in enumerate(row)}
    for sweep in range(SWEEPS):
        near, order = (above, rows) if sweep % 2 == 0 else (below, rows[::-1])
        for row in order:
            row.sort(key=lambda n: _mean([place[m] for m in near.get(n, ())], place[n]))
            place.update((n, float(k)) for k, n in enumerate(row))


def _coordinates(
    rows: list[list[int]],
    sizes: Mapping[int, float],
    above: Mapping[int, list[int]],
    below: Mapping[int, list[int]],
    gap: float,
) -> dict[int, float]:
    x: dict[int, float] = {}
    for row in rows:
        x.update(zip(row, _apart([0.0] * len(row), row, sizes, gap), strict=True))
    for sweep in range(SWEEPS):
        near, order = (above, rows) if sweep % 2 == 0 else (below, rows[::-1])
        for row in order:
            wanted = [_mean([x[m] for m in near.get(n, ())], x[n]) for n in row]
            x.update(zip(row, _apart(wanted, row, sizes, gap), strict=True))
    return x


def _apart(
    wanted: Sequence[float], row: Sequence[int], sizes: Mapping[int, float], gap: float
) -> list[float]:
    """Places near the wanted ones, in order and far enough from each other: the mean of pushing
    everything to the right and of pushing everything to the left, which both are."""
    between = [(sizes[a] + sizes[b]) / 2 + gap for a, b in pairwise(row)]
    right = list(wanted)
    for k, space in enumerate(between):
        right[k + 1] = max(right[k + 1], right[k] + space)
    left = list(wanted)
    for k in range(len(between) - 1, -1, -1):
        left[k] = min(left[k], left[k + 1] - between[k])
    return [(a + b) / 2 for a, b in zip(right, left, strict=True)]


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
