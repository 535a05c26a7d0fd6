"""Numbers as people read them, and the page's way to them: a JSON Pointer (RFC 6901) into the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from packhorse.report.text import duration

PREFIXES = ("", "k", "M", "G", "T", "P")
NOT_KNOWN = "not measured"


def pointer(*keys: str | int) -> str:
    """The JSON Pointer of nested keys."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


def at(report: Any, path: str) -> Any:
    """The value at a JSON Pointer. Raises KeyError or IndexError where there is none."""
    for key in path.split("/")[1:]:
        name = key.replace("~1", "/").replace("~0", "~")
        report = report[int(name) if isinstance(report, list) else name]
    return report


def digits(value: float) -> str:
    """Three significant digits, whole numbers from 100 on."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    places = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{places}f}" if abs(value) >= 0.01 else f"{value:.2g}"


def scaled(value: float, unit: str) -> str:
    """With the prefix of a thousand, a million, ...: 568 GFLOP/s."""
    power = next((p for p in range(len(PREFIXES)) if abs(value) < 999.5 * 1_000**p), len(PREFIXES) - 1)
    return f"{digits(value / 1_000**power)} {PREFIXES[power]}{unit}"


def percent(share: float) -> str:
    return "below 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def byte_count(count: float) -> str:
    powers = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
    return next((f"{digits(count / size)} {unit}" for unit, size in powers if count >= size), f"{count:.0f} bytes")


def seconds(value: float) -> str:
    if value < 0.9995:
        return f"{value * 1_000:.0f} ms"
    return duration(value) if value < 172_800 else f"{value / 86_400:.1f} days"


def joules(value: float) -> str:
    return scaled(value, "J") if value < 3_600 else scaled(value / 3_600, "Wh")


FORMATS: dict[str, Callable[[Any], str]] = {
    "text": str,
    "words": lambda v: v.replace("_", " "),
    "range": lambda v: v.replace("-", "–"),
    "count": lambda v: f"{v:,.0f}",
    "rate": digits,
    "percent": percent,
    "seconds": seconds,
    "bytes": byte_count,
    "joules": joules,
    "flops": lambda v: scaled(v, "FLOP/s"),
    "bandwidth": lambda v: scaled(v, "B/s"),
    "intensity": lambda v: f"{digits(v)} FLOP/byte",
    "difference": lambda v: f"{v:.2g}",
}


class Figures:
    """Gives the page its figures. Each carries its path in report.json and its value there, so that both can be
    compared."""

    def __init__(self, report: dict[str, Any]) -> None:
        self._report = report

    def mark(self, *keys: str | int) -> Markup:
        """The attributes alone, for shapes."""
        path = pointer(*keys)
        return Markup('data-key="{}" data-value="{}"').format(path, json.dumps(at(self._report, path)))

    def words(self, style: str, *keys: str | int) -> str:
        """The figure as text."""
        value = at(self._report, pointer(*keys))
        return NOT_KNOWN if value is None else FORMATS[style](value)

    def __call__(self, style: str, *keys: str | int) -> Markup:
        """The figure as an element."""
        return Markup("<span {}>{}</span>").format(self.mark(*keys), self.words(style, *keys))
