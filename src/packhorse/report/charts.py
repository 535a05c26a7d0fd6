"""Where the marks of the charts stand: plain numbers for the templates, which draw them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from packhorse.report.figures import PREFIXES

TIME_STEPS_S = (
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400, 172_800,
    432_000, 864_000,
)  # fmt: skip
TIME_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
NARROW, WIDE = 340, 980  # px: a chart is drawn for a phone and for a desktop, and the page shows one of them
LABEL_PX = 15  # between two labels, at least
NEAR = 1.12  # two points of a roofline nearer than this factor are drawn as one


@dataclass(frozen=True)
class Tick:
    at: float  # px
    label: str


@dataclass(frozen=True)
class Bar:
    index: int  # in report["throughput"]
    x: float
    width: float
    y: float  # top of the real tokens
    height: float
    y_computed: float  # top of the computed ones
    height_computed: float


@dataclass(frozen=True)
class Throughput:
    """Real tokens per second over the wall time; y grows downwards."""

    width: int
    height: int
    left: int
    bottom: int
    bars: list[Bar]
    commits: list[tuple[int, float]]  # index in report["commits"], x
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    mean_y: float


def throughput(report: dict[str, Any], width: int) -> Throughput:
    """The chart of report["throughput"]; height and margins are the same at each width."""
    rates, wall_s = report["throughput"], max(report["wall_s"], 1e-9)
    height, left, top, bottom = 262, 44, 32, 224
    y_ticks = linear_ticks(max(r["computed_tokens_per_s"] for r in rates), 3)
    most = y_ticks[-1]

    def x(seconds: float) -> float:
        return left + min(seconds / wall_s, 1.0) * (width - left)

    def y(rate: float) -> float:
        return bottom - rate / most * (bottom - top)

    def bar(i: int, rate: dict[str, float]) -> Bar:
        begin, end = x(rate["begin_s"]), x(rate["end_s"])
        tops = y(rate["real_tokens_per_s"]), y(rate["computed_tokens_per_s"])
        sizes = (begin, end - begin + 0.5, *(size for top in tops for size in (top, bottom - top)))  # no seams
        return Bar(i, *(round(size, 2) for size in sizes))

    bars = [bar(i, rate) for i, rate in enumerate(rates)]
    commits = [(i, x(c["elapsed_s"])) for i, c in enumerate(report["commits"])]
    x_ticks = [Tick(x(s), time_label(s)) for s in time_ticks(wall_s, 8 if width == WIDE else 4)]
    ticks = [Tick(y(v), round_number(v)) for v in y_ticks]
    return Throughput(width, height, left, bottom, bars, commits, x_ticks, ticks, y(report["tokens_per_s"]))


def linear_ticks(most: float, count: int) -> list[float]:
    """From 0 to at least `most`, in steps of 1, 2, 2.5 or 5 times a power of ten."""
    raw = max(most, 1e-9) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999999)
    return [step * i for i in range(math.ceil(most / step * 0.999999) + 1)] if most > 0 else [0.0, step]


def time_ticks(wall_s: float, most: int) -> list[float]:
    """Multiples of the smallest common unit that gives at most `most` of them; none for 0 itself."""
    step = next((s for s in TIME_STEPS_S if wall_s / s <= most), TIME_STEPS_S[-1])
    return [float(step * i) for i in range(1, int(wall_s / step) + 1)]


def time_label(seconds: float) -> str:
    """In the largest unit of which it is a multiple, or a half: 90 min, 1.5 h, 2 d."""
    size, unit = next((size, unit) for size, unit in TIME_UNITS if seconds >= size and seconds % (size / 2) == 0)
    return f"{seconds / size:g} {unit}"


def round_number(value: float) -> str:
    """Of a tick: 250, 40k, 2.5M."""
    power = max(min(int(math.log10(value) // 3), len(PREFIXES) - 1), 0) if value else 0
    return f"{value / 1_000**power:g}{PREFIXES[power]}"


@dataclass(frozen=True)
class Line:
    """A roof: from (x1, y1) to (x2, y2), its label to the right of it."""

    keys: tuple[str, ...]  # where its height is in the report
    name: str  # the precision
    is_measured: bool
    x1: float
    y1: float
    x2: float
    y2: float
    label_y: float


@dataclass(frozen=True)
class Point:
    key: str
    name: str
    y: float
    label_y: float


@dataclass(frozen=True)
class Roofline:
    width: int
    height: int
    left: int
    right: int
    bottom: int
    slope: Line | None  # the memory's bandwidth
    roofs: list[Line]
    x: float  # of the run
    points: list[Point]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def roofline(report: dict[str, Any], width: int) -> Roofline | None:
    """Log-log: FLOPs per byte against FLOP/s. None where ceilings or the bytes moved are not known."""
    ceilings, intensity = report["ceilings"], report["arithmetic_intensity"]
    if not ceilings or not intensity or not ceilings.get("gemm_flops_per_s"):
        return None
    height, left, right, top, bottom = 400, 44, width - (264 if width == WIDE else 112), 34, 350
    levels = _levels(ceilings)
    bandwidth = ceilings.get("copy_bytes_per_s")
    highest = max(value for *_, value in levels) * 1.6
    lowest = min(report["flops_per_s"], min(value for *_, value in levels)) / 8
    ridge = highest / bandwidth if bandwidth else intensity
    low_x, high_x = min(intensity, lowest / bandwidth if bandwidth else intensity) / 2, max(intensity, ridge) * 10
    x = _log_scale(low_x, high_x, left, right)
    y = _log_scale(lowest, highest, bottom, top)
    labels = _apart([y(value) + 4 for *_, value in levels])
    roofs = [
        Line(keys, name, measured, x(max(value / bandwidth, low_x)) if bandwidth else left, y(value), right, y(value),
             label_y)
        for (keys, name, measured, value), label_y in zip(levels, labels, strict=True)
    ]  # fmt: skip
    slope = _slope(bandwidth, low_x, lowest, levels, x, y) if bandwidth else None
    return Roofline(
        width, height, left, right, bottom, slope, roofs, x(intensity), _points(report, y),
        _log_ticks(low_x, high_x, x, 1 if width == WIDE else 2), _log_ticks(lowest, highest, y, 1),
    )  # fmt: skip


Level = tuple[tuple[str, ...], str, bool, float]


def _levels(ceilings: dict[str, Any]) -> list[Level]:
    """The roofs, highest first: where they are in the report, what they are, whether measured, FLOP/s."""
    levels = [
        (("ceilings", kind, precision), precision, measured, value)
        for kind, measured in (("gemm_flops_per_s", True), ("peak_flops_per_s", False))
        for precision, value in (ceilings.get(kind) or {}).items()
        if value
    ]
    return sorted(levels, key=lambda level: -level[3])


def _slope(bandwidth: float, low_x: float, lowest: float, levels: list[Level], x: Any, y: Any) -> Line:
    """Bandwidth times intensity, from the picture's edge up to the highest roof."""
    begin, end = max(low_x, lowest / bandwidth), levels[0][3] / bandwidth
    keys = ("ceilings", "copy_bytes_per_s")
    return Line(keys, "copy bandwidth", True, x(begin), y(begin * bandwidth), x(end), y(levels[0][3]), 0)


def _points(report: dict[str, Any], y: Any) -> list[Point]:
    wall, device = report["flops_per_s"], report["device_flops_per_s"]
    if device < wall * NEAR:
        return [Point("flops_per_s", "this run", y(wall), y(wall) + 4)]
    low = y(wall) + 4
    return [
        Point("device_flops_per_s", "device time", y(device), min(y(device) + 4, low - LABEL_PX)),
        Point("flops_per_s", "wall time", y(wall), low),
    ]


def _apart(labels: list[float]) -> list[float]:
    """Labels from above to below, moved down where they would touch."""
    placed: list[float] = []
    for label in labels:
        placed.append(max(label, placed[-1] + LABEL_PX) if placed else label)
    return placed


def _log_scale(low: float, high: float, at_low: float, at_high: float) -> Any:
    span = math.log(high / low)
    return lambda value: at_low + math.log(max(value, 1e-300) / low) / span * (at_high - at_low)


def _log_ticks(low: float, high: float, scale: Any, every: int) -> list[Tick]:
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    return [Tick(scale(10.0**p), round_number(10.0**p)) for p in powers if p % every == 0]
