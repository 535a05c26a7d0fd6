"""An evaluation in a terminal: progress on stderr, tables on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from packhorse.evaluating.evaluation import Evaluation
from packhorse.report.text import duration

LIVE_EVERY_S, PLAIN_EVERY_S = 0.2, 10.0
SHOWN_PAIRS = 10  # of labels that are taken for each other
CLEAR = "\r\x1b[K"

OnRows = Callable[[float, float], None]


@contextmanager
def progress(stream: TextIO = sys.stderr, clock: Callable[[], float] = time.monotonic) -> Iterator[OnRows]:
    """Shows rows and rows/s on a line that moves in a terminal, or as a line now and then."""
    is_live = stream.isatty()
    every, start = LIVE_EVERY_S if is_live else PLAIN_EVERY_S, clock()
    last = start

    def on_rows(rows: float, total: float) -> None:
        nonlocal last
        now = clock()
        if now - last < every:
            return
        last = now
        about = "~" if total % 1 else ""  # where it was estimated from a sample
        line = f"{rows:,.0f} of {about}{max(total, rows):,.0f} rows, {duration(now - start)}"
        stream.write(f"{CLEAR}{line}" if is_live else f"{line}\n")
        stream.flush()

    try:
        yield on_rows
    finally:
        if is_live:
            stream.write(CLEAR)
            stream.flush()


def print_evaluation(found: Evaluation, console: Console) -> None:
    """Main figures first, then those of each label, then what was counted."""
    what = found.measured if found.measured == "retrieval" else found.task
    console.print(f"{what} with {found.model} on {found.input}", markup=False, soft_wrap=True)
    console.print(_figures(found))
    metrics = found.metrics
    if metrics.get("labels"):
        console.print(_labels(metrics["labels"]))
    for kind in ("answerable", "unanswerable"):
        if kind in metrics:
            console.print(f"  {kind}: " + ", ".join(f"{name} {shown(value)}" for name, value in metrics[kind].items()))
    if "confusion" in metrics:
        _print_confusion(metrics["confusion"], console)
    for line in _counted(found):
        console.print(f"  {line}", markup=False, soft_wrap=True)


def shown(value: Any) -> str:
    """A figure: counts whole, others with 4 decimals."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:,.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _figures(found: Evaluation) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name in found.headline:
        table.add_row(f"[bold]{name}[/bold]", f"[bold]{shown(found.metrics[name])}[/bold]")
    for name, value in found.metrics.items():
        if name not in found.headline and not isinstance(value, list | Mapping):
            table.add_row(name, shown(value))
    table.columns[1].justify = "right"
    return table


def _labels(labels: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2))
    for name in labels[0]:
        table.add_column(name, justify="left" if name == "label" else "right")
    for label in labels:
        table.add_row(*(escape(shown(value)) for value in label.values()))  # brackets of a label are no markup
    return table


def _print_confusion(confusion: Mapping[str, Any], console: Console) -> None:
    names, pairs = confusion["labels"], confused(confusion)[:SHOWN_PAIRS]
    if pairs:
        console.print("  taken for another label most often:")
    for pair in pairs:
        console.print(
            f"    {names[pair.label]} as {names[pair.predicted]}: {pair.rows:,}", markup=False, soft_wrap=True
        )


class Confused(NamedTuple):
    """Numbers of the labels."""

    label: int
    predicted: int
    rows: int


def confused(confusion: Mapping[str, Any]) -> list[Confused]:
    """Where label and prediction differ, the most rows first."""
    cells = [Confused(i, j, rows) for i, row in enumerate(confusion["matrix"]) for j, rows in enumerate(row)]
    return sorted((c for c in cells if c.label != c.predicted and c.rows), key=lambda c: -c.rows)


def _counted(found: Evaluation) -> list[str]:
    what, why = ("queries", "not judged") if found.measured == "retrieval" else ("rows", "without a label")
    lines = [
        f"{found.measured_rows:,} of {found.rows:,} {what} measured, {found.unlabelled_rows:,} {why}, "
        f"{found.error_rows:,} in error"
    ]
    if found.errors:
        lines.append("errors: " + ", ".join(f"{count:,} {kind}" for kind, count in found.errors.items()))
    if found.truncated_texts:
        lines.append(f"{found.truncated_texts:,} texts were cut: --long windows reads them whole")
    plan = found.plan
    lines.append(
        f"{plan['backend']} {plan['precision']} on {found.device}: {duration(found.seconds)}, "
        f"{found.rows_per_s:,.1f} rows/s, and {duration(found.setup_s)} of set-up"
    )
    return [*lines, *plan["notes"]]
