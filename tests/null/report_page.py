"""report.html read back: its figures, the words beside them, and what it would fetch. A parser of its own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "br", "img", "input", "link", "hr"}
SHAPES = {"i", "rect", "line", "circle", "desc"}
UNITS = {
    "": 1, "%": 0.01, "ms": 0.001, "s": 1, "days": 86_400, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
    "bytes": 1, "J": 1, "kJ": 1e3, "Wh": 3.6e3, "kWh": 3.6e6, "MWh": 3.6e9, "FLOP/byte": 1,
} | {p + unit: 10.0 ** (3 * i) for i, p in enumerate(["", "k", "M", "G", "T", "P"]) for unit in ("FLOP/s", "B/s")} | {
    p: 10.0 ** (3 * i) for i, p in enumerate(["", "k", "M", "G", "T", "P"])
}  # fmt: skip
NAMES_WITH_DIGITS = re.compile(r"fp32|bf16|fp16|int8|fp8|sha256")


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""

    @property
    def key(self) -> str | None:
        return self.attributes.get("data-key")


@dataclass
class Page(HTMLParser):
    """`figures`: elements with a path; `loose`: text that belongs to no figure and to no axis."""

    source: str
    elements: list[Element] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[Element] = []
        self.feed(self.source)
        assert not self._open, f"not closed: {self._open}"

    @property
    def figures(self) -> list[Element]:
        return [e for e in self.elements if e.key is not None]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1].tag == tag, f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data
        owners = [e for e in self._open if e.key or e.tag == "style" or "axis" in (e.attributes.get("class") or "")]
        in_head = any(e.tag == "head" for e in self._open)
        if data.strip() and not owners and not in_head:
            self.loose.append(data)


def value_at(report: Any, path: str) -> Any:
    """RFC 6901."""
    for key in path.split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        report = report[int(key)] if isinstance(report, list) else report[key]
    return report


def number_at_the_end(text: str) -> float:
    """Of words like "17 min 31 s", "26,080", "96.0%" or "wall time 1.16 TFLOP/s"."""
    parts = re.search(r"(?:(\d+) h )?(\d+) min(?: (\d+) s)?$", text)
    if parts:
        hours, minutes, seconds = (int(p or 0) for p in parts.groups())
        return 3_600 * hours + 60 * minutes + seconds
    found = re.search(r"(-?[\d,]*\.?\d+(?:e[+-]\d+)?)\s*([A-Za-z/%]*)\*?$", text)
    assert found, f"no number in {text!r}"
    return float(found[1].replace(",", "")) * UNITS[found[2]]


def check_figures(html: str, report: dict[str, Any]) -> Page:
    """Each figure is the value at its path in the report, and says so in words; no number stands elsewhere."""
    page = Page(html)
    assert len(page.figures) > 20
    for figure in page.figures:
        assert figure.key is not None
        value = value_at(report, figure.key)
        assert json.loads(figure.attributes["data-value"] or "") == value, figure
        if figure.tag not in SHAPES:
            _check_words(figure, value)
    for text in page.loose:
        assert not re.search(r"\d", NAMES_WITH_DIGITS.sub("", text)), f"a number from nowhere: {text!r}"
    return page


def _check_words(figure: Element, value: Any) -> None:
    words = " ".join(figure.text.split())
    last_key = (figure.key or "").split("/")[-1].replace("~1", "/").replace("~0", "~")
    if isinstance(value, str):
        assert words.replace("–", "-").replace(" ", "_") == "_".join(value.split()), figure
    elif value is None:
        assert words == "not measured", figure
    elif words == "below 0.1%":
        assert 0 < value < 0.001, figure
    elif words != last_key:  # a kind of error, whose count stands in the next column
        shown = number_at_the_end(words)
        assert abs(shown - value) <= max(0.006 * abs(value), 0.0051 if "%" in words else 0.0006), (figure, shown)
