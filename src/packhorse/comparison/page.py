"""A comparison as one HTML page: tables and inline plots, no script, no other file.

Every figure on it is looked up in the JSON by its path and carries that path (data-key) and the raw value (data-value).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

MIB = 1024**2
PLOT_WIDTH, PLOT_HEIGHT = 340, 170  # user units, one a pixel on a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 16, 34
INSET = 16  # the first mark stands clear of the axis' own labels


class Mark(NamedTuple):
    """A point of a line plot. `x_key`, `y_key`: where its numbers stand in the JSON."""

    x: float
    y: float
    x_key: str
    y_key: str


class LinePlot(NamedTuple):
    """A line over evenly spaced values. `top`: the highest mark."""

    title: str
    axis: str
    form: str
    marks: list[Mark]
    top: Mark

    @property
    def path(self) -> str:
        """For the `points` of a polyline."""
        return " ".join(f"{mark.x:.1f},{mark.y:.1f}" for mark in self.marks)


def render(content: dict[str, Any]) -> str:
    """The page of Comparison.to_dict(). Everything from outside is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        figure=lambda key, form, tag="span": figure(content, key, form, tag),
        bars=bars(content["contenders"]),
        plots={name: line_plots(name, points) for name, points in content["sweeps"].items()},
        size={"width": PLOT_WIDTH, "height": PLOT_HEIGHT, "left": LEFT, "right": PLOT_WIDTH - RIGHT},
        floor=PLOT_HEIGHT - BOTTOM,
    )
    return environment.get_template("page.html").render(content=content)


def figure(content: dict[str, Any], key: str, form: str, tag: str = "span") -> Markup:
    """A value of the JSON as text that names where it stands there; a dash where it is null."""
    value = look_up(content, key)
    shown = "–" if value is None else FORMS[form](value)
    raw = json.dumps(value, ensure_ascii=False)
    return Markup('<{} data-key="{}" data-value="{}">{}</{}>').format(Markup(tag), key, raw, shown, Markup(tag))


def look_up(content: Any, key: str) -> Any:
    """`contenders.3.rows_per_s` in the JSON. Raises KeyError or IndexError where it has no such place."""
    for part in key.split("."):
        content = content[int(part)] if isinstance(content, list) else content[part]
    return content


def bars(summaries: Sequence[dict[str, Any]]) -> list[float]:
    """Length of each contender's bar in percent of the longest; 0 for one without a rate."""
    rates = [summary["rows_per_s"] or 0.0 for summary in summaries]
    longest = max(rates, default=0.0) or 1.0
    return [round(100 * rate / longest, 2) for rate in rates]


def line_plots(name: str, points: Sequence[dict[str, Any]]) -> list[LinePlot]:
    """rows/s and padding efficiency over a sweep; none where fewer than two points have them."""
    axis = {"batch_size": "rows a batch", "max_length": "maximum length in tokens"}[name]
    wanted = (("rows/s", "rows_per_s", "rate"), ("padding efficiency", "padding_efficiency", "share"))
    return [plot for title, field, form in wanted if (plot := _plot(name, points, title, axis, field, form))]


def _plot(name: str, points: Sequence[dict[str, Any]], title: str, axis: str, field: str, form: str) -> LinePlot | None:
    known = [(number, point[field]) for number, point in enumerate(points) if point[field] is not None]
    if len(known) < 2:
        return None
    highest = max(value for _, value in known) or 1.0
    step, height = (PLOT_WIDTH - LEFT - INSET - RIGHT) / (len(points) - 1), PLOT_HEIGHT - TOP - BOTTOM
    marks = [
        Mark(
            LEFT + INSET + number * step,
            TOP + height * (1 - value / highest),
            f"sweeps.{name}.{number}.value",
            f"sweeps.{name}.{number}.{field}",
        )
        for number, value in known
    ]
    return LinePlot(title, axis, form, marks, min(marks, key=lambda mark: mark.y))


def _rate(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


FORMS: dict[str, Callable[[Any], str]] = {
    "text": str,
    "count": lambda value: f"{value:,}",
    "rate": _rate,
    "share": lambda value: f"{value:.1%}",
    "mib": lambda value: f"{value / MIB:,.0f}",
    "gib": lambda value: f"{value / 1024**3:,.0f}",
    "ms": lambda value: _rate(value * 1e3),
    "tiny": lambda value: f"{value:.1e}",
    "ratio": lambda value: f"{value:.2f}x",
    "cosine": lambda value: f"{value:.4f}",
}
