"""Efficiency over the number of devices as a picture: SVG with the colours of light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 52, 500, 40, 350
LABEL_PX = 17  # between two labels, at least
# Okabe and Ito's colours, and two more: told apart by most eyes, on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#888888", "#7b61c9")
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #222 }
.axis { stroke: #bbb } .grid { stroke: #e6e6e6 } .line { fill: none; stroke-width: 2.2 } .page { fill: #fff }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .axis { stroke: #666 } .grid { stroke: #333 } .page { fill: #15181c }
}"""


def picture(points: Sequence[dict[str, Any]]) -> str:
    """points: what scale_simulation.py writes, of several scenarios at several numbers of devices."""
    most = max(point["world"]["devices"] for point in points)
    names = list(dict.fromkeys(point["scenario"] for point in points))

    def at(point: dict[str, Any]) -> tuple[float, float]:
        share = math.log(point["world"]["devices"]) / math.log(max(most, 2))
        return LEFT + share * (RIGHT - LEFT), BOTTOM - point["efficiency"] * (BOTTOM - TOP)

    lines = {name: [at(point) for point in points if point["scenario"] == name] for name in names}
    drawn = [_line(places, COLOURS[i % len(COLOURS)]) for i, places in enumerate(lines.values())]
    return "\n".join([_head(), *_grid(most), *drawn, *_labels(lines), "</svg>"]) + "\n"


def _head() -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'aria-label="Share of the devices\' time in which they compute, over their number"><style>{STYLE}</style>'
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>'
        f'<text x="{LEFT}" y="20">share of the devices\' time in which they compute</text>'
    )


def _grid(most: int) -> list[str]:
    found = []
    for percent in range(0, 101, 25):
        y = BOTTOM - percent / 100 * (BOTTOM - TOP)
        found.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        found.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{percent}%</text>')
    for power in range(int(math.log10(max(most, 1)) + 1e-9) + 1):
        x = LEFT + power * math.log(10) / math.log(max(most, 2)) * (RIGHT - LEFT)
        found.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{BOTTOM}" y2="{BOTTOM + 5}"/>')
        found.append(f'<text x="{x:.1f}" y="{BOTTOM + 21}" text-anchor="middle">{10**power:,}</text>')
    found.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>')
    return [*found, f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">devices</text>']


def _line(places: list[tuple[float, float]], colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="line" style="stroke:{colour}" points="{path}"/>'


def _labels(lines: dict[str, list[tuple[float, float]]]) -> list[str]:
    """At the ends of the lines, from above to below, moved where they would touch."""
    found = []
    ends = sorted(enumerate(lines.items()), key=lambda line: line[1][1][-1][1])
    for (i, (name, places)), label_y in zip(ends, _apart([places[-1][1] + 4 for _, (_, places) in ends]), strict=True):
        x, y = places[-1]
        colour = COLOURS[i % len(COLOURS)]
        path = f"M{x + 3:.1f} {y:.1f}L{x + 16:.1f} {label_y - 4:.1f}"
        found.append(f'<path d="{path}" class="line" style="stroke:{colour}"/>')
        found.append(f'<text x="{x + 20:.1f}" y="{label_y:.1f}">{escape(name)}</text>')
    return found


def _apart(wanted: Sequence[float]) -> list[float]:
    """Ascending heights, LABEL_PX apart and none below the axis: moved down, and up again from there."""
    placed: list[float] = []
    for y in wanted:
        placed.append(max(y, placed[-1] + LABEL_PX) if placed else y)
    limit = float(BOTTOM)
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - LABEL_PX
    return placed
