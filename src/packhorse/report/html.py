"""report.html: report.json as a page that needs nothing else. No script, no request, every figure with its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packhorse.report.charts import NARROW, WIDE, roofline, throughput
from packhorse.report.figures import Figures

TEMPLATES = Path(__file__).parent / "templates"
IS_LIMIT = 0.75  # of the wall time: a lane that was busy so long held up the others


def render(report: dict[str, Any]) -> str:
    """The page of a RunReport.to_dict(). Nothing in it was computed elsewhere but places in pictures."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    sizes = {"narrow": NARROW, "wide": WIDE}
    return environment.get_template("report.html").render(
        r=report,
        fig=Figures(report),
        limit=_limit(report),
        throughputs={n: throughput(report, w) for n, w in sizes.items()} if len(report["throughput"]) > 1 else {},
        rooflines={name: chart for name, w in sizes.items() if (chart := roofline(report, w))},
        bars=_bars(report),
    )


def _limit(report: dict[str, Any]) -> dict[str, Any] | None:
    """Which lane to name as the limit, by its index, and whether it was busy long enough to be one."""
    if report["limiting_stage"] is None or not report["lanes"]:
        return None
    shares = [lane["busy_share"] for lane in report["lanes"]]
    busiest = shares.index(max(shares))
    return {"lane": busiest, "is_limit": shares[busiest] >= IS_LIMIT, "others": [i for i in range(3) if i != busiest]}


def _bars(report: dict[str, Any]) -> dict[str, float]:
    """What each bar's full width stands for."""
    rates = [_rate(a)[1] for a in report["plan"].get("alternatives", [])]
    return {
        "rows": max((bucket["rows"] for bucket in report["lengths"]), default=1),
        "tokens_per_s": max((rate for rate in rates if rate), default=1.0),
    }


def _rate(alternative: dict[str, Any]) -> tuple[str, float | None]:
    kind = "measured_tokens_per_s" if alternative["measured_tokens_per_s"] else "predicted_tokens_per_s"
    return kind, alternative[kind]
