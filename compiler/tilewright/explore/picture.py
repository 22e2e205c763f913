"""Ratios as a picture: a bar for each model and number of threads, in SVG.

Written by hand and not by a plotting library, because a style sheet inside an SVG file can follow
the reader's light or dark theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tilewright.explore.many import Rows

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 190, 60, 52, 34
BAR, GAP = 9, 7
COLOURS = (("#2f6fb7", "#6ea8e6"), ("#d9822b", "#f0a85c"), ("#4b9b5f", "#7cc78f"))  # light, dark
STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #24292f }
.value { font-size: 10px }
.title { font-size: 14px; font-weight: 600 }
.grid { stroke: #24292f; stroke-opacity: 0.15 }
.one { stroke: #24292f; stroke-width: 1.5 }
"""
DARK = "text { fill: #e6edf3 } .grid, .one { stroke: #e6edf3 }"


def picture(found: Rows) -> str:
    """An SVG document: models by their ratios, the fastest first, and a line at 1."""
    threads = sorted(found.means)
    bars = _bars(found, threads)
    most = max((r for _, ratios in bars for r in ratios if r is not None), default=1.0)
    height = TOP + len(bars) * (len(threads) * BAR + GAP) + BOTTOM
    scale = (WIDTH - LEFT - RIGHT) / max(most, 1.25)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' role="img" aria-label="{_title(found)}">',
        f"<style>{STYLE}{_colours(len(threads))}</style>",
        f'<text class="title" x="{LEFT}" y="20">{_title(found)}</text>',
        *_legend(found, threads),
        *_lines(scale, most, height),
        *(part for k, bar in enumerate(bars) for part in _group(k, bar, scale)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _title(found: Rows) -> str:
    return escape(f"Speed of tilewright over {found.against} (1 is equal, longer is faster)")


def _bars(found: Rows, threads: Sequence[int]) -> list[tuple[str, list[float | None]]]:
    """Names, and a ratio for each number of threads."""
    ratios: dict[str, dict[int, float]] = {}
    for row in found.rows:
        if row.found is not None:
            ratios.setdefault(row.name, {})[row.threads] = row.found.ratio
    bars = [(name, [given.get(t) for t in threads]) for name, given in ratios.items()]
    return sorted(bars, key=lambda bar: -max(r or 0 for r in bar[1]))


def _colours(count: int) -> str:
    light, dark = (
        " ".join(f".t{k} {{ fill: {COLOURS[k % len(COLOURS)][theme]} }}" for k in range(count))
        for theme in (0, 1)
    )
    return f"{light}\n@media (prefers-color-scheme: dark) {{ {DARK} {dark} }}"


def _legend(found: Rows, threads: Sequence[int]) -> list[str]:
    parts = []
    for k, count in enumerate(threads):
        x = LEFT + 190 * k
        label = f"threads: {count}, mean {found.means[count]:.2f}"
        parts.append(f'<rect class="t{k}" x="{x}" y="30" width="10" height="10" rx="2"/>')
        parts.append(f'<text x="{x + 16}" y="39">{label}</text>')
    return parts


def _lines(scale: float, most: float, height: int) -> list[str]:
    """Upright lines at every half, and a strong one at 1."""
    parts = []
    step = 0.5 if most < 5 else 1.0
    for k in range(1 + int(max(most, 1.25) / step)):
        value = k * step
        x = LEFT + scale * value
        kind = "one" if value == 1 else "grid"
        parts.append(f'<path class="{kind}" d="M{x:.1f} {TOP - 6}V{height - BOTTOM + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 12}" text-anchor="middle">{value:g}</text>')
    return parts


def _group(place: int, bar: tuple[str, list[float | None]], scale: float) -> list[str]:
    """The bars of one model, their values, and its name."""
    name, ratios = bar
    top = TOP + place * (len(ratios) * BAR + GAP)
    middle = top + len(ratios) * BAR / 2 + 4
    parts = [f'<text x="{LEFT - 8}" y="{middle:.1f}" text-anchor="end">{escape(name)}</text>']
    for k, ratio in enumerate(ratios):
        if ratio is not None:
            y, width = top + k * BAR, scale * ratio
            parts.append(
                f'<rect class="t{k}" x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 1}"/>'
            )
            label = f'x="{LEFT + width + 4:.1f}" y="{y + BAR - 1}">{ratio:.2f}'
            parts.append(f'<text class="value" {label}</text>')
    return parts
