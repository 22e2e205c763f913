"""Weights of Winograd's algorithm, and the way back from them: so the taps need not stay in memory.

Three of the points give the taps back up to the rounding of the transformed weights. What is
missing is a few units in the last place: a byte for each element, and a list of the few that lack
more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.fusion.weights import aligned_zeros

TAPS = 3
POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))}
NEAR = 127  # units in the last place that a byte holds
FEW = 16  # elements of which one may be listed

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Matrices:
    """A', G and B' of F(m, 3)."""

    a: Array
    g: Array
    b: Array

    @cached_property
    def back(self) -> Array:
        """The inverse of three rows of G, with exact zeros."""
        inverse = np.linalg.inv(self.g[list(self.rows)])
        return np.where(np.abs(inverse) < 1e-9, 0.0, inverse)

    @property
    def rows(self) -> tuple[int, int, int]:
        """Of zero, of another point and of infinity."""
        return 0, 1, len(self.g) - 1


def matrices(m: int) -> Matrices:
    """The matrices of F(m, 3), each point's row of G and column of B' scaled to equal size."""
    points = POINTS[m]

    def vandermonde(n: int) -> Array:
        rows = [[p**i for i in range(n)] for p in points]
        return np.array([*rows, [0.0] * (n - 1) + [1.0]])

    b, g = np.linalg.inv(vandermonde(m + 2)).T, vandermonde(TAPS)
    scale = np.sqrt(np.abs(b).max(axis=1) / np.abs(g).max(axis=1))
    return Matrices(vandermonde(m).T, g * scale[:, None], b / scale[:, None])


def transformed(taps: Array, tables: Matrices, width: int) -> Array:
    """G g G' for every pair of channels, in panels, zero beyond the last channel."""
    outputs, inputs = taps.shape[:2]
    points, panels = tables.g.shape[0] ** 2, -(-outputs // width)
    out = aligned_zeros((panels, points, inputs, width), np.dtype(np.float32))
    for k in range(panels):
        some = taps[k * width : (k + 1) * width].astype(np.float64)
        spread = np.einsum("pi,ocij,qj->pqco", tables.g, some, tables.g, optimize=True)
        out[k, :, :, : len(some)] = spread.reshape(points, inputs, len(some))
    return out


@dataclass(frozen=True, eq=False)
class Original:
    """The taps that transformed weights were made of, bit by bit."""

    spread: Array
    tables: Matrices
    outputs: int
    missing: Array  # units in the last place, as bytes
    places: Array  # of the elements that lack more
    values: Array

    @staticmethod
    def of(taps: Array, spread: Array, tables: Matrices) -> Original | None:
        """What is needed beside `spread`; None if that is not much less than the taps."""
        taps = np.ascontiguousarray(taps)
        missing, places = np.empty(taps.shape, np.int8), [np.empty(0, np.int64)]
        for at, guess in _about(spread, tables, len(taps)):
            lacking = taps[at].view(np.int32).astype(np.int64) - guess.view(np.int32)
            near = np.abs(lacking) <= NEAR
            missing[at] = np.where(near, lacking, 0)
            places.append(np.flatnonzero(~near) + at.start * taps[0].size)
        listed = np.concatenate(places)
        if listed.size * FEW > taps.size:
            return None
        return Original(spread, tables, len(taps), missing, listed, taps.reshape(-1)[listed])

    def __call__(self) -> Array:
        """The taps."""
        taps = np.empty(self.missing.shape, np.float32)
        for at, part in _about(self.spread, self.tables, self.outputs):
            bits = part.view(np.int32)
            bits += self.missing[at]
            taps[at] = part
        taps.reshape(-1)[self.places] = self.values
        taps.flags.writeable = False
        return taps


def _about(spread: Array, tables: Matrices, outputs: int) -> Iterator[tuple[slice, Array]]:
    """The taps up to rounding, panel by panel; the same bits each time, by operations on single
    elements."""
    panels, _, inputs, width = spread.shape
    alpha, some = len(tables.g), np.ix_(tables.rows, tables.rows)
    for k in range(panels):
        at = slice(k * width, min(k * width + width, outputs))
        part = np.empty((at.stop - at.start, inputs, TAPS, TAPS), np.float32)
        with np.errstate(all="ignore"):
            points = spread[k].reshape(alpha, alpha, inputs, width)[some].astype(np.float64)
            for i, line in enumerate(_combined(points, tables.back)):
                for j, tap in enumerate(_combined(line, tables.back)):
                    part[:, :, i, j] = tap.T[: len(part)]
        yield at, part


def _combined(parts: Array, back: Array) -> list[Array]:
    """The three sums of the parts by the rows of `back`."""
    sums = []
    for row in back:
        first, *rest = (c * x for c, x in zip(row, parts, strict=True) if c)
        for x in rest:
            first = first + x
        sums.append(first)
    return sums
