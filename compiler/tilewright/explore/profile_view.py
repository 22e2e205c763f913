"""What is shown of a profile: its table, its place below the machine's limits, its threads."""

from __future__ import annotations

from tilewright.explore.pages import Block, Page, Part, Picture, Table, Text, time
from tilewright.explore.roofline import WIDTH, points_of, roofline
from tilewright.explore.svg import element, picture, shorten, text, title
from tilewright.runtime.profile import COLUMNS, Profile, StepProfile

BAR, GAP, LEFT, ROOM = 9.0, 9.0, 200.0, 420.0
HUES = 6
MOST_BALANCED = 60  # kernels whose threads are drawn, those that take longest


def profile_page(profile: Profile) -> Page:
    """The table, the roofline, and how busy the threads were."""
    total = sum(s.seconds for s in profile.steps) or 1.0
    largest = max((s.seconds for s in profile.steps), default=0.0) or 1.0
    # Time is the first number, so that its bar is behind it: calls come after it.
    order = [0, 1, 3, 4, 2, *range(5, len(COLUMNS))]
    rows = tuple(tuple(row[k] for k in order) for row in profile.rows())
    table = Table(
        tuple(COLUMNS[k] for k in order),
        rows,
        texts=2,
        bars=tuple(s.seconds / largest for s in profile.steps),
    )
    parts = [Part("steps", (table,)), Part("roofline", (_roofline(profile),))]
    busy = [s for s in profile.steps if len(s.busy) > 1]
    if busy:
        parts.append(Part("threads", _threads(busy, total)))
    return Page(f"profile of {profile.model}", tuple(profile.summary.splitlines()), tuple(parts))


def _roofline(profile: Profile) -> Block:
    points = points_of(profile.steps)
    if not points:
        return Text("no kernels")
    bound: dict[str, float] = {}
    for s in profile.kernels:
        bound[s.bound] = bound.get(s.bound, 0.0) + s.seconds
    words = ", ".join(f"{time(t)} in kernels bound by {name}" for name, t in bound.items())
    return Picture(roofline(points, profile.ceilings), WIDTH, words)


def _threads(busy: list[StepProfile], total: float) -> tuple[Block, ...]:
    shown = sorted(busy, key=lambda s: -s.seconds)[:MOST_BALANCED]
    shown.sort(key=busy.index)
    svg, width = balance_picture(shown)
    worst = min(busy, key=lambda s: s.balance or 0.0)
    lost = sum(max(s.busy) - sum(s.busy) / len(s.busy) for s in busy)
    words = (
        f"Time of each thread in tasks, in one run. Waiting for the busiest "
        f"thread costs {time(lost)} of {time(total)}; {worst.name} is the least even, "
        f"{worst.balance or 0.0:.0%}."
    )
    return Text(words), Picture(svg, width)


def balance_picture(busy: list[StepProfile]) -> tuple[str, float]:
    """An SVG element and its width: a bar for each thread of each kernel."""
    longest = max(max(s.busy) for s in busy) or 1.0
    width, y, parts = LEFT + ROOM + 70.0, 10.0, list[str]()
    for s in busy:
        height = len(s.busy) * BAR
        words = shorten(s.name, LEFT - 12)
        parts.append(text(words, LEFT - 8, y + height / 2 + 4, "", "end"))
        for k, seconds in enumerate(s.busy):
            across = max(seconds / longest * ROOM, 0.5)
            size = {"x": LEFT, "y": y + k * BAR, "width": across, "height": BAR - 1.5}
            tip = title(f"{s.name}: {time(seconds)} in tasks of a thread")
            parts.append(element("g", tip + element("rect", **size, cls=f"s{k % HUES}")))
        even = f"{s.balance:.0%}" if s.balance is not None else ""
        parts.append(text(even, LEFT + ROOM + 8, y + height / 2 + 4, "dim"))
        y += height + GAP
    return picture(parts, width, y + 6, "time in tasks of each thread"), width
