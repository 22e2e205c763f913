"""Kernels below what the machine can do: operations per byte against operations per second."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tilewright.explore.pages import amount, nbytes, time
from tilewright.explore.svg import CHARACTER, element, picture, text, title
from tilewright.explore.theme import document
from tilewright.runtime.ceilings import Ceilings
from tilewright.runtime.profile import Profile, StepProfile
from tilewright.schedule.cost import Cost

WIDTH, HEIGHT = 700.0, 340.0
LEFT, RIGHT, TOP, BOTTOM = 66.0, 150.0, 30.0, 44.0
NAMED = 8  # points that have a name beside them
LARGEST, SMALLEST = 9.0, 3.0  # radius


@dataclass(frozen=True)
class Point:
    """A kernel: `seconds` are measured, or None where only its least time is known."""

    name: str
    operators: str
    flops: float
    bytes: float
    seconds: float | None
    share: float = 0.0


def points_of(steps: Sequence[StepProfile]) -> list[Point]:
    """The kernels of a profile."""
    total = sum(s.seconds for s in steps) or 1.0
    return [
        Point(s.name, s.operators, s.flops, s.bytes, s.seconds, s.seconds / total)
        for s in steps
        if s.kind == "kernel"
    ]


def point(name: str, operators: str, cost: Cost, seconds: float | None) -> Point:
    """One kernel by itself."""
    return Point(name, operators, cost.flops, cost.bytes, seconds, 1.0)


class _Scale:
    """Logarithmic axes that hold all points and the ridge of the roof."""

    def __init__(self, points: Sequence[Point], limits: Ceilings) -> None:
        ridge = limits.flops / limits.bandwidth
        across = [p.flops / p.bytes for p in points if p.flops and p.bytes]
        rates = [p.flops / (p.seconds or 1) for p in points if p.flops and p.seconds]
        self.x0, self.x1 = _decades([*across, ridge / 30, ridge * 4])
        self.y0, self.y1 = _decades([*rates, limits.flops / 300, limits.flops * 1.2])

    def x(self, value: float) -> float:
        place = (math.log10(max(value, 1e-30)) - self.x0) / (self.x1 - self.x0)
        return LEFT + min(max(place, 0.0), 1.0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        place = (math.log10(max(value, 1e-30)) - self.y0) / (self.y1 - self.y0)
        return HEIGHT - BOTTOM - min(max(place, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)


def roofline(points: Sequence[Point], limits: Ceilings) -> str:
    """An SVG element of WIDTH. Points are as large as their share of the time; a ring is the least
    time of a kernel that was not measured."""
    silent = sum(not p.flops for p in points)
    points = [p for p in points if p.flops]
    scale = _Scale(points, limits)
    parts = [text("GFLOP/s", LEFT - 8, TOP - 12, "dim", "end")]
    words = "FLOP per byte that must move"
    parts.append(text(words, LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 8, "dim", "middle"))
    if silent:
        words = f"{silent} kernels without arithmetic are not here"
        parts.append(text(words, WIDTH - RIGHT, TOP - 12, "dim", "end"))
    parts += _grid(scale)
    parts += _roofs(scale, limits)
    largest = sorted(points, key=lambda p: -p.share)
    parts += _names(largest[:NAMED], scale, limits)
    parts += [_point(p, scale, limits) for p in largest]
    return picture(parts, WIDTH, HEIGHT, "kernels below the limits of the machine")


def write(profile: Profile, path: str | os.PathLike[str]) -> None:
    """Writes the kernels of a profile as a file of SVG."""
    svg = document(roofline(points_of(profile.steps), profile.ceilings))
    Path(path).write_text(svg, encoding="utf-8")


def _decades(values: Sequence[float]) -> tuple[float, float]:
    logs = [math.log10(v) for v in values]
    return float(math.floor(min(logs))), float(math.ceil(max(logs)))


def _grid(scale: _Scale) -> list[str]:
    parts = []
    for k in range(int(scale.x0), int(scale.x1) + 1):
        x = scale.x(10.0**k)
        parts.append(element("path", d=f"M{x:.1f} {TOP:.1f}V{HEIGHT - BOTTOM:.1f}", cls="grid"))
        parts.append(text(f"{10.0**k:g}", x, HEIGHT - BOTTOM + 15, "dim", "middle"))
    for k in range(int(scale.y0), int(scale.y1) + 1):
        y = scale.y(10.0**k)
        parts.append(element("path", d=f"M{LEFT:.1f} {y:.1f}H{WIDTH - RIGHT:.1f}", cls="grid"))
        parts.append(text(f"{10.0 ** (k - 9):g}", LEFT - 8, y + 4, "dim", "end"))
    return parts


def _roofs(scale: _Scale, limits: Ceilings) -> list[str]:
    """The limits of memory, and of each level of caches that was measured."""
    rates = [("memory", limits.bandwidth, "roof")]
    rates += [(f"{nbytes(size)}", rate, "level") for size, rate in limits.levels]
    parts, taken = [], list[float]()
    for name, rate, cls in rates:
        knee, start = limits.flops / rate, 10.0**scale.x0
        first = f"M{scale.x(start):.1f} {scale.y(start * rate):.1f}"
        if start * rate < 10.0**scale.y0:  # enters from below
            first = f"M{scale.x(10.0**scale.y0 / rate):.1f} {scale.y(10.0**scale.y0):.1f}"
        d = f"{first}L{scale.x(knee):.1f} {scale.y(limits.flops):.1f}"
        if cls == "roof":
            d += f"H{WIDTH - RIGHT:.1f}"
        what = "" if cls == "roof" else "up to "
        tip = title(f"{what}{name}: {rate / 1e9:,.1f} GB/s")
        parts.append(element("g", tip + element("path", d=d, cls=cls)))
        y = TOP + 70 + LINE * len(taken)
        taken.append(y)
        letter = "" if cls == "roof" else "abcdefgh"[len(taken) - 2]
        label = f"{letter} {rate / 1e9:,.0f} GB/s, {what}{name}".lstrip()
        if letter:
            parts.append(text(letter, scale.x(knee), scale.y(limits.flops) - 4, "dim", "middle"))
        parts.append(text(label, WIDTH - RIGHT + 8, y, "dim"))
    peak = f"{limits.flops / 1e9:,.0f} GFLOP/s"
    parts.append(text(peak, WIDTH - RIGHT + 8, scale.y(limits.flops) + 4, "name"))
    return parts


LINE = 15.0


def _place(p: Point, scale: _Scale, limits: Ceilings) -> tuple[float, float]:
    seconds = p.seconds or limits.seconds(p.flops, p.bytes) or 1.0
    return scale.x(p.flops / p.bytes if p.bytes else 1e30), scale.y(p.flops / seconds)


def _point(p: Point, scale: _Scale, limits: Ceilings) -> str:
    x, y = _place(p, scale, limits)
    least = limits.seconds(p.flops, p.bytes)
    what = f"{time(p.seconds)}, " if p.seconds else ""
    lines = [f"{p.name}: {p.operators}", f"{what}at least {time(least)}"]
    lines.append(f"{amount(p.flops)}FLOP, {nbytes(p.bytes)}")
    radius = max(SMALLEST, LARGEST * math.sqrt(min(p.share, 1.0)))
    cls = "point" if p.seconds else "least"
    return element("g", title("\n".join(lines)) + element("circle", cx=x, cy=y, r=radius, cls=cls))


def _names(points: Sequence[Point], scale: _Scale, limits: Ceilings) -> list[str]:
    """Names beside points, where no other name is."""
    parts, taken = [], list[tuple[float, float, float]]()
    for p in points:
        x, y = _place(p, scale, limits)
        name = p.name.partition("_")[0]
        width = CHARACTER * (len(name) + 1)
        for place in (y + 4, y + 16, y - 8, y + 28, y - 20):
            if all(abs(place - b) > 11 or x + width < a or a + w < x for a, b, w in taken):
                taken.append((x + 10, place, width))
                parts.append(text(name, x + 10, place, "name on"))
                break
    return parts
