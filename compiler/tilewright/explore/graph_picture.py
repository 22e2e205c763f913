"""The graph of a call as a picture: a box for each kernel, a line for each buffer between two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import sqrt

from tilewright.explore.flow import INPUT, Flow, Step, Value
from tilewright.explore.layers import Layout, lay_out
from tilewright.explore.pages import amount, nbytes, time
from tilewright.explore.repeats import Repeat, repeats
from tilewright.explore.svg import CHARACTER, element, picture, shorten, text, title
from tilewright.runtime.ceilings import Ceilings

BOX, PILL, LINE, PAD = 204.0, 150.0, 14.0, 9.0
MOST_LINES = 3  # of operators in a box
GAP, LANE, ROW_GAP = 26.0, 14.0, 44.0
MARGIN = 24.0
COLUMN = 1500.0  # least height from which on a picture goes on beside itself
ASPECT = 2.0  # of the width of a long picture to its height
MOST_NAMED = 6  # nodes in a tip


@dataclass
class Box:
    """A step, or several that are the same; or a value that comes from or goes to the caller."""

    steps: list[int] = field(default_factory=list)
    value: int | None = None
    seconds: float = 0.0
    weight: float = 0.0  # what it costs, in comparison with the others

    @property
    def is_step(self) -> bool:
        return self.value is None


@dataclass
class Drawing:
    """Boxes, lines with the values that they carry, and frames around those that stand for
    several."""

    boxes: list[Box]
    edges: dict[tuple[int, int], list[int]]
    back: dict[tuple[int, int], list[int]]  # from one period to the next
    frames: list[tuple[list[int], Repeat]]


def graph_picture(found: Flow, ceilings: Ceilings | None, folds: bool) -> tuple[str, float, float]:
    """An SVG element, its width and height. If it `folds`, the kernels of layers that repeat are
    drawn once."""
    drawing = _draw(found, ceilings, repeats([s.token for s in found.steps]) if folds else [])
    widths = {n: BOX if b.is_step else PILL for n, b in enumerate(drawing.boxes)}
    layout = lay_out(widths, list(drawing.edges), GAP, LANE)
    return _Painter(found, drawing, layout).paint()


def can_fold(found: Flow) -> bool:
    """Whether some layers repeat."""
    return bool(repeats([s.token for s in found.steps]))


def cost_of(step: Step, ceilings: Ceilings | None) -> float:
    """Seconds of a call if that was measured, otherwise the least there can be, or operations."""
    if step.seconds is not None:
        return step.seconds
    if step.kernel is None:
        return 0.0
    cost = step.kernel.cost
    return ceilings.seconds(cost.flops, cost.bytes) if ceilings else cost.flops + cost.bytes


def _draw(found: Flow, ceilings: Ceilings | None, folded: Sequence[Repeat]) -> Drawing:
    """Values that come from the caller first, steps, then values that go to the caller."""
    boxes: list[Box] = []
    sources: dict[int, int] = {}
    for v, value in enumerate(found.values):
        if value.kind == INPUT and value.readers:
            sources[v] = len(boxes)
            boxes.append(Box(value=v))
    box_of, frames = _fold(found, ceilings, folded, boxes)
    edges: dict[tuple[int, int], list[int]] = {}
    back: dict[tuple[int, int], list[int]] = {}
    for v, value in enumerate(found.values):
        starts = {box_of[w] for w in value.writers} or ({sources[v]} if v in sources else set())
        for a in sorted(starts):
            for b in sorted({box_of[r] for r in value.readers}):
                if a != b:
                    (edges if a < b else back).setdefault((a, b), []).append(v)
        for name in value.outputs:
            boxes.append(Box(value=v))
            del name
            for a in sorted(starts):
                edges.setdefault((a, len(boxes) - 1), []).append(v)
    total = max((b.weight for b in boxes), default=0.0)
    for box in boxes:
        box.weight = box.weight / total if total else 0.0
    return Drawing(boxes, edges, back, frames)


def _fold(
    found: Flow, ceilings: Ceilings | None, folded: Sequence[Repeat], boxes: list[Box]
) -> tuple[list[int], list[tuple[list[int], Repeat]]]:
    """The box of each step; and the boxes of each repeat."""
    box_of = [-1] * len(found.steps)
    frames: list[tuple[list[int], Repeat]] = []
    inside = {k: r for r in folded for k in range(r.start, r.end)}
    for k, step in enumerate(found.steps):
        r = inside.get(k)
        first = k if r is None else r.start + (k - r.start) % r.period
        if first == k:
            box_of[k] = len(boxes)
            boxes.append(Box())
            if r is not None:
                if k == r.start:
                    frames.append(([], r))
                frames[-1][0].append(box_of[k])
        box_of[k] = box_of[first]
        box = boxes[box_of[k]]
        box.steps.append(k)
        box.seconds += step.seconds or 0.0
        box.weight += cost_of(step, ceilings)
    return box_of, frames


class _Painter:
    """Places layers below each other, and parts of a long picture beside each other."""

    def __init__(self, found: Flow, drawing: Drawing, layout: Layout) -> None:
        self.found, self.drawing, self.layout = found, drawing, layout
        self.lines = [self._lines(b) for b in drawing.boxes]
        self.height = [
            2 * PAD + LINE * (len(lines) + (2 if b.is_step else 1)) - 4
            for b, lines in zip(drawing.boxes, self.lines, strict=True)
        ]
        self._place()

    def paint(self) -> tuple[str, float, float]:
        parts = [self._frame(boxes, repeat) for boxes, repeat in self.drawing.frames]
        parts += [self._edge(*e) for e in self.drawing.edges if e not in self.long]
        parts += [self._box(n) for n in range(len(self.drawing.boxes))]
        parts += self._labels()
        label = f"{len(self.found.steps)} steps and the buffers between them"
        return picture(parts, self.width, self.full_height, label), self.width, self.full_height

    # -- places

    def _lines(self, b: Box) -> list[str]:
        """The operators in a box, as many as there is room for."""
        if not b.is_step:
            return []
        words, lines = list(self.found.steps[b.steps[0]].operators), [""]
        room = int((BOX - 2 * PAD) / CHARACTER)
        for word in words:
            joined = f"{lines[-1]} · {word}" if lines[-1] else word
            if len(joined) <= room or not lines[-1]:
                lines[-1] = joined
            else:
                lines.append(word)
        if len(lines) > MOST_LINES:
            lines = [*lines[: MOST_LINES - 1], f"{lines[MOST_LINES - 1]} · …"]
        return [shorten(line, BOX - 2 * PAD) for line in lines]

    def _place(self) -> None:
        layout = self.layout
        layers = max(layout.layer.values(), default=0) + 1
        tall = [0.0] * layers
        for n, at in layout.layer.items():
            tall[at] = max(tall[at], self.height[n])
        self.top, self.column = [0.0] * layers, [0] * layers
        rows: list[list[float]] = [[] for _ in tall]
        for n, at in layout.layer.items():
            rows[at].append(layout.x[n])
        across = 2 * BOX + sum(max(row) - min(row) for row in rows if row) / layers
        long = sqrt(sum(t + ROW_GAP for t in tall) * across / ASPECT)
        y, column = MARGIN, 0
        for at in range(layers):
            if y > max(COLUMN, long) and at + 1 < layers and not self._is_inside_frame(at):
                y, column = MARGIN, column + 1
            self.top[at], self.column[at] = y, column
            y += tall[at] + ROW_GAP
        self.full_height = MARGIN + max(
            (self.top[at] + tall[at] + LINE for at in range(layers)), default=0.0
        )
        self._place_columns(column + 1)

    def _is_inside_frame(self, at: int) -> bool:
        """Whether a repeat has begun above this layer and goes on."""
        for boxes, _ in self.drawing.frames:
            layers = [self.layout.layer[b] for b in boxes]
            if min(layers) < at <= max(layers):
                return True
        return False

    def _place_columns(self, columns: int) -> None:
        """Moves each column to the right of the one before it."""
        layout = self.layout
        left, right = [0.0] * columns, [0.0] * columns
        items = [(layout.x[n], layout.layer[n], self._half(n)) for n in layout.x]
        items += [(x, at, LANE / 2) for bends in layout.bends.values() for x, at in bends]
        seen: dict[int, list[tuple[float, float]]] = {}
        for x, at, half in items:
            seen.setdefault(self.column[at], []).append((x - half, x + half))
        offset = MARGIN
        self.shift, self.left = [0.0] * columns, [0.0] * columns
        for k in range(columns):
            spans = seen.get(k, [(0.0, 0.0)])
            left[k], right[k] = min(a for a, _ in spans), max(b for _, b in spans)
            self.left[k], self.shift[k] = offset, offset - left[k]
            offset += right[k] - left[k] + 3 * GAP
        self.width = offset - 3 * GAP + MARGIN + 10 * CHARACTER
        split = {e for e in self.drawing.edges if self._columns(e) > 1}
        next_door = {e for e in split if self._columns(e) == 2 and not layout.bends.get(e)}
        self.long = set(layout.long) | (split - next_door)
        self.side = next_door

    def _columns(self, edge: tuple[int, int]) -> int:
        a, b = (self.column[self.layout.layer[n]] for n in edge)
        return 1 + b - a

    def _half(self, n: int) -> float:
        return (BOX if self.drawing.boxes[n].is_step else PILL) / 2

    def _x(self, n: int) -> float:
        return self.layout.x[n] + self.shift[self.column[self.layout.layer[n]]]

    def _y(self, n: int) -> float:
        return self.top[self.layout.layer[n]]

    # -- shapes

    def _box(self, n: int) -> str:
        box, x, y = self.drawing.boxes[n], self._x(n) - self._half(n), self._y(n)
        return self._step_box(n, box, x, y) if box.is_step else self._value_box(box, x, y)

    def _value_box(self, box: Box, x: float, y: float) -> str:
        assert box.value is not None
        value = self.found.values[box.value]
        name = value.name if value.kind == INPUT else ", ".join(value.outputs)
        rect = element("rect", x=x, y=y, width=PILL, height=2 * PAD + LINE, rx=16, cls="value")
        words = shorten(name, PILL - 2 * PAD)
        tip = title(f"{value.kind} {name}\n{value.shape}, {nbytes(value.nbytes)}")
        label = text(words, x + PILL / 2, y + PAD + LINE - 3, "name", "middle")
        return element("g", tip + rect + label)

    def _step_box(self, n: int, box: Box, x: float, y: float) -> str:
        step, height = self.found.steps[box.steps[0]], self.height[n]
        cls = "step" if step.kernel is not None else "host"
        parts = [title(self._tip(box, step))]
        parts.append(element("rect", x=x, y=y, width=BOX, height=height, rx=6, cls=cls))
        share = f"fill-opacity:{0.04 + 0.4 * box.weight:.2f}"
        size = {"x": x, "y": y, "width": BOX, "height": height, "rx": 6}
        if step.kernel is not None:
            parts.append(element("rect", **size, cls="cost", style=share))
            width = max(1.5, box.weight * (BOX - 12))
            parts.append(
                element("rect", x=x + 6, y=y + height - 5, width=width, height=3.0, cls="bar")
            )
        times = f" ×{len(box.steps)}" if len(box.steps) > 1 else ""
        short = step.name.partition("_")[0] if step.kernel is not None else step.name
        parts.append(text(f"{short}{times}", x + PAD, y + PAD + LINE - 5, "name"))
        right = shorten(self._figure(box, step), BOX - 2 * PAD - CHARACTER * (len(short) + 8))
        parts.append(text(right, x + BOX - PAD, y + PAD + LINE - 5, "", "end"))
        for k, line in enumerate(self.lines[n]):
            parts.append(text(line, x + PAD, y + PAD + LINE * (k + 2) - 5))
        return element("g", "".join(parts))

    def _figure(self, box: Box, step: Step) -> str:
        """The most telling number about a step."""
        if step.seconds is not None:
            return time(box.seconds)
        if step.kernel is None:
            return ""
        flops = step.kernel.cost.flops * len(box.steps)
        return f"{amount(flops)}FLOP" if flops else nbytes(step.kernel.cost.bytes * len(box.steps))

    def _tip(self, box: Box, step: Step) -> str:
        lines = [step.name if step.kernel is None else f"{step.name}: {step.kernel.graph}"]
        if step.nodes:
            more = ", …" if len(step.nodes) > MOST_NAMED else ""
            lines.append(f"nodes {', '.join(step.nodes[:MOST_NAMED])}{more}")
        if len(box.steps) > 1:
            names = (self.found.steps[k].name.partition("_")[0] for k in box.steps)
            lines.append(f"the same in {', '.join(names)}")
        if step.kernel is not None:
            cost = step.kernel.cost
            lines.append(f"{amount(cost.flops)}FLOP, {nbytes(cost.bytes)}, {tasks(step.kernel)}")
            if step.weights:
                lines.append(f"{nbytes(step.weights)} of constants")
        if step.seconds is not None:
            lines.append(f"{time(step.seconds)} in a call")
        for word, values in (("reads", step.reads), ("writes", step.writes)):
            lines += [f"{word} {self.found.values[v].shape}" for v in values]
        return "\n".join(lines)

    def _edge(self, a: int, b: int) -> str:
        start = self._x(a), self._y(a) + self.height_of(a)
        end = self._x(b), self._y(b)
        if (a, b) in self.side:  # from the end of one column to the top of the next
            middle = self.left[self.column[self.layout.layer[b]]] - GAP
            d = (
                f"M{start[0]:.1f} {start[1]:.1f}V{start[1] + 16:.1f}H{middle:.1f}"
                f"V{end[1] - 12:.1f}H{end[0]:.1f}V{end[1]:.1f}"
            )
            return self._line(d, end, self.drawing.edges[a, b])
        points = [start]
        for x, at in self.layout.bends.get((a, b), []):
            shifted = x + self.shift[self.column[at]]
            points += [(shifted, self.top[at]), (shifted, self.top[at] + 40)]
        points.append(end)
        d = f"M{start[0]:.1f} {start[1]:.1f}"
        for (x0, y0), (x1, y1) in pairwise(points):
            bend = min(30.0, (y1 - y0) / 2)
            d += f"C{x0:.1f} {y0 + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1:.1f}"
        return self._line(d, end, self.drawing.edges[a, b])

    def _line(self, d: str, end: tuple[float, float], values: Sequence[int]) -> str:
        x, y = end
        tip = f"M{x - 4:.1f} {y - 7:.1f}L{x:.1f} {y:.1f}L{x + 4:.1f} {y - 7:.1f}Z"
        names = "\n".join(self._value(self.found.values[v]) for v in values)
        return element(
            "g", title(names) + element("path", d=d, cls="edge") + element("path", d=tip, cls="tip")
        )

    def _value(self, value: Value) -> str:
        return f"{value.shape}, {nbytes(value.nbytes)}"

    def height_of(self, n: int) -> float:
        box = self.drawing.boxes[n]
        return self.height[n] if box.is_step else 2 * PAD + LINE

    def _frame(self, boxes: Sequence[int], repeat: Repeat) -> str:
        left = min(self._x(b) - self._half(b) for b in boxes) - 12
        right = max(self._x(b) + self._half(b) for b in boxes) + 12
        top = min(self._y(b) for b in boxes) - 22
        bottom = max(self._y(b) + self.height_of(b) for b in boxes) + LINE + 8
        rect = element(
            "rect", x=left, y=top, width=right - left, height=bottom - top, rx=10, cls="group"
        )
        words = f"{repeat.count} times"
        return rect + text(words, left + 8, top + 13, "grouptext on")

    def _labels(self) -> list[str]:
        """What a step writes below it, and where lines that are not drawn come from."""
        parts = []
        for n, box in enumerate(self.drawing.boxes):
            x, y = self._x(n), self._y(n) + self.height_of(n)
            values = [box.value] if box.value is not None else []
            if box.is_step:
                values = list(self.found.steps[box.steps[0]].writes)
            elif box.value is not None and self.found.values[box.value].kind != INPUT:
                continue
            shown = [self.found.values[v].shape for v in values if v is not None]
            if shown:
                more = f" +{len(shown) - 1}" if len(shown) > 1 else ""
                parts.append(text(shown[0] + more, x + 7, y + 13, "dim on"))
        for n, words in self._missing().items():
            right = self._x(n) + self._half(n)
            parts.append(
                text(shorten(words, self._half(n) - 8), right, self._y(n) - 4, "dim on", "end")
            )
        return parts

    def _missing(self) -> dict[int, str]:
        """Where lines that are not drawn come from; from the second time on: `then`."""
        found: dict[int, list[str]] = {}
        for word, edges in (("from", sorted(self.long)), ("then", sorted(self.drawing.back))):
            for a, b in edges:
                names = found.setdefault(b, [])
                names.append(
                    self._name(a) if word in " ".join(names) else f"{word} {self._name(a)}"
                )
        return {b: ", ".join(names) for b, names in found.items()}

    def _name(self, n: int) -> str:
        box = self.drawing.boxes[n]
        if box.value is not None:
            return self.found.values[box.value].name
        return self.found.steps[box.steps[0]].name.partition("_")[0]


def tasks(kernel: object) -> str:
    """How a kernel is cut up."""
    threads = getattr(kernel, "threads", None)
    count = getattr(kernel, "tasks", 0)
    if threads is None:
        return f"{count} tasks" if count != 1 else "1 task"
    return f"{count} blocks of {threads} threads"
