"""The memory of a plan over its kernels: each buffer is a rectangle, as long as it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tilewright.explore.flow import Flow, Value
from tilewright.explore.pages import nbytes
from tilewright.explore.svg import CHARACTER, element, picture, shorten, text, title

LEFT, RIGHT, TOP, BOTTOM = 70.0, 20.0, 34.0, 40.0
LEAST_WIDTH, MOST_WIDTH, HEIGHT = 560.0, 2400.0, 300.0
COLUMN = 26.0  # of a kernel
HUES = 6
LABEL = 12.0  # height that a name needs
TICKS = 4


@dataclass(frozen=True)
class Span:
    """A buffer from the kernel that writes it first to the one that needs it last."""

    value: Value
    first: int
    last: int


def spans(found: Flow, stage: int) -> list[Span]:
    """The buffers of a stage's plan that lie in its memory; kernels are counted from 0."""
    number = {k: n for n, k in enumerate(found.kernels(stage))}
    result = []
    for value in found.values:
        users = [number[k] for k in (*value.writers, *value.readers) if k in number]
        if value.stage == stage and value.offset is not None and users:
            result.append(Span(value, min(users), max(users)))
    return result


def live(lying: Sequence[Span], kernels: int) -> list[int]:
    """The bytes that are needed while each kernel runs."""
    changes = [0] * (kernels + 1)
    for s in lying:
        changes[s.first] += s.value.nbytes
        changes[s.last + 1] -= s.value.nbytes
    return list(accumulate(changes[:kernels]))


def memory_picture(found: Flow, stage: int) -> tuple[str, float]:
    """An SVG element and its width; kernels from left to right, addresses upwards."""
    kernels = found.kernels(stage)
    lying, size = spans(found, stage), max(found.arenas[stage], 1)
    width = min(MOST_WIDTH, max(LEAST_WIDTH, LEFT + RIGHT + COLUMN * len(kernels)))
    across = (width - LEFT - RIGHT) / max(len(kernels), 1)
    up = (HEIGHT - TOP - BOTTOM) / size
    parts = [_heading(lying, len(kernels), size)]
    parts += _grid(size, up, width)
    parts += [_rectangle(k, s, across, up) for k, s in enumerate(lying)]
    parts.append(_live(live(lying, len(kernels)), across, up))
    parts += [_name(s, across, up) for s in lying]
    parts += _numbers(len(kernels), across)
    middle = LEFT + (width - LEFT - RIGHT) / 2
    parts.append(text("kernel", middle, HEIGHT - 6, "dim", "middle"))
    return picture(parts, width, HEIGHT, "memory of the plan over its kernels"), width


def _heading(lying: Sequence[Span], kernels: int, size: int) -> str:
    needed = max(live(lying, kernels), default=0)
    words = (
        f"{nbytes(size)} of memory; the line is what each kernel needs, {nbytes(needed)} at most"
    )
    return text(words, LEFT, 16, "name")


def _grid(size: int, up: float, width: float) -> list[str]:
    parts = []
    for k in range(TICKS + 1):
        value = size * k / TICKS
        y = HEIGHT - BOTTOM - value * up
        parts.append(element("path", d=f"M{LEFT:.1f} {y:.1f}H{width - RIGHT:.1f}", cls="grid"))
        parts.append(text(nbytes(value), LEFT - 6, y + 4, "dim", "end"))
    return parts


def _rectangle(k: int, s: Span, across: float, up: float) -> str:
    x, width = LEFT + s.first * across, (s.last - s.first + 1) * across
    offset = s.value.offset or 0
    height = max(s.value.nbytes * up, 0.75)
    y = HEIGHT - BOTTOM - (offset + s.value.nbytes) * up
    cls = f"c{k % HUES}"
    tip = f"{s.value.shape}\n{nbytes(s.value.nbytes)} at {offset:,}\nk{s.first} to k{s.last}"
    parts = [title(tip), element("rect", x=x, y=y, width=width, height=height, cls=cls)]
    return element("g", "".join(parts))


def _name(s: Span, across: float, up: float) -> str:
    """The shape of a buffer, where there is room for it."""
    width, height = (s.last - s.first + 1) * across, s.value.nbytes * up
    if height <= LABEL or width <= 6 * CHARACTER:
        return ""
    middle = HEIGHT - BOTTOM - (s.value.offset or 0) * up - height / 2
    words = shorten(s.value.shape.partition(" ")[2], width - 6)
    return text(words, LEFT + s.first * across + 3, middle + 4)


def _live(needed: Sequence[int], across: float, up: float) -> str:
    points = []
    for k, value in enumerate(needed):
        y = HEIGHT - BOTTOM - value * up
        points += [f"{LEFT + k * across:.1f} {y:.1f}", f"{LEFT + (k + 1) * across:.1f} {y:.1f}"]
    return element("path", d="M" + "L".join(points), cls="live") if points else ""


def _numbers(kernels: int, across: float) -> list[str]:
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if n * across > 24)
    y = HEIGHT - BOTTOM + 14
    return [
        text(str(k), LEFT + (k + 0.5) * across, y, "dim", "middle")
        for k in range(0, kernels, every)
    ]
