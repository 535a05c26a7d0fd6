"""The terminal's view: what was measured on, one line per contender, model and step of a sweep."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from packhorse.comparison.compare import Comparison
from packhorse.comparison.machine import Machine
from packhorse.comparison.model_lines import ModelLine
from packhorse.comparison.summary import EndToEnd, Summary

MIB = 1024**2
WIDTH = 170  # characters, where the output goes to a file
WIDE = 140  # characters that all columns need


class Column(NamedTuple):
    """A heading, a cell of it, and whether a narrow terminal shows it too."""

    heading: str
    cell: Callable[[Any], str]
    is_kept: bool = True


def console() -> Console:
    """Wide enough for the table when the output goes to a file."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    return Console(width=width, highlight=False)


def machine_lines(machine: Machine, versions: dict[str, str]) -> list[str]:
    """Hardware, system and versions, as text."""
    memory = f"{machine.memory_bytes / 1024**3:.0f} GiB"
    cores = f"{machine.cores} cores ({machine.physical_cores or '?'} physical)"
    return [
        f"hardware  {machine.cpu}, {cores}, {memory}; {' '.join(machine.flags) or 'flags unknown'}",
        *(f"          {accelerator}" for accelerator in machine.accelerators),
        f"system    {machine.system}",
        "versions  " + ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]


def print_comparison(screen: Console, found: Comparison) -> None:
    """All of it, for `packhorse bench`."""
    print_lines(screen, machine_lines(found.machine, found.versions))
    if found.contenders:
        screen.print(build_table(found.contenders, found.settings["baseline"], screen.width))
    for name, points in found.sweeps.items():
        heading = name.replace("_", " ")
        print_lines(screen, ["", f"dynamic padding by {heading}"])
        screen.print(_table([Column(heading, lambda point: f"{point.value:,}"), *POINT_COLUMNS], points, screen.width))
    if found.models:
        print_lines(screen, ["", f"packhorse on each model; ratio and agreement: to {found.models[0].name}"])
        screen.print(_table(MODEL_COLUMNS, found.models, screen.width))
    narrow = screen.width < WIDE and found.contenders
    print_lines(screen, [*found.notes, *(["A wider terminal, --json and --html show more columns."] if narrow else [])])


def print_lines(screen: Console, lines: Sequence[str]) -> None:
    """Plain text: brackets in a name are no markup."""
    for line in lines:
        screen.print(Text(line), soft_wrap=True)


def build_table(summaries: list[Summary], baseline: str, width: int = WIDTH) -> Table:
    """One line per contender, in the order they ran."""
    return _table([*COLUMNS, Column(f"ratio to\n{baseline}", _ratio)], summaries, width)


def end_to_end_lines(found: list[EndToEnd]) -> list[str]:
    """What of its backend's own speed packhorse keeps."""
    return [
        f"{one.contender} end to end / {one.loop}: {one.ratio:.2f}{_range(one.ratios)}, medians of rows/s by round"
        for one in found
    ]


def _table(columns: Sequence[Column], lines: Sequence[Any], width: int) -> Table:
    """Numbers to the right; the last column, which may hold a sentence, is folded. A line with an error shows that."""
    shown = [column for column in columns if column.is_kept or width >= WIDE]
    table = Table(box=None, header_style="bold", padding=(0, 1))
    names = 1 + sum(column.heading == "precision" for column in shown)
    for number, column in enumerate(shown):
        is_last = number == len(shown) - 1
        left = number < names or is_last
        table.add_column(column.heading, justify="left" if left else "right", no_wrap=not is_last, overflow="fold")
    for line in lines:
        cells = [column.cell(line) for column in (shown[:names] if line.error else shown)]
        empty = [""] * (len(shown) - names - 1) if line.error else []
        table.add_row(*map(Text, [*cells, *empty, *([line.error] if line.error else [])]), style=_style(line))
    return table


def _style(line: Any) -> str | None:
    return "red" if line.error else None


def number(value: float | None) -> str:
    """With one digit behind the point below 100."""
    return "-" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _mib(value: int | None) -> str:
    return "-" if value is None else f"{value / MIB:,.0f}"


def _batch_ms(value: float | None) -> str:
    return "-" if value is None else number(value * 1e3)


def _tiny(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _difference(summary: Summary) -> str:
    return f"{_tiny(summary.max_difference)} ({summary.num_compared} rows)"


def _ratio(summary: Summary) -> str:
    if summary.ratio is None:
        return f"- ({summary.no_ratio_because})"
    return f"{summary.ratio:.2f}x{_range(summary.ratios)}"


def _range(ratios: tuple[float, ...]) -> str:
    return f" ({min(ratios):.2f}-{max(ratios):.2f})" if len(ratios) > 1 else ""


def _agreement(line: ModelLine) -> str:
    agreed = line.agreement
    if agreed is None or agreed.reason:
        return f"- ({agreed.reason})" if agreed else "-"
    if agreed.rank_correlation is not None:
        cosine = "" if agreed.mean_cosine is None else f", mean cosine {agreed.mean_cosine:.4f}"
        return f"rank correlation {agreed.rank_correlation:.4f} of {agreed.num_pairs:,} similarities{cosine}"
    same = "" if agreed.label_agreement is None else f"{agreed.label_agreement:.2%} of labels, "
    return f"{same}scores {_tiny(agreed.mean_score_difference)} apart, at most {_tiny(agreed.max_score_difference)}"


COLUMNS = (
    Column("contender", lambda summary: summary.contender),
    Column("precision", lambda summary: summary.precision),
    Column("rows timed", lambda summary: f"{summary.num_rows:,}", is_kept=False),
    Column("ms/batch", lambda summary: _batch_ms(summary.batch_s), is_kept=False),
    Column("rows/s", lambda summary: number(summary.rows_per_s)),
    Column("real\ntokens/s", lambda summary: number(summary.tokens_per_s), is_kept=False),
    Column("padding\nefficiency", lambda summary: _share(summary.padding_efficiency)),
    Column("peak\nMiB", lambda summary: _mib(summary.peak_bytes), is_kept=False),
    Column("set-up s", lambda summary: number(summary.load_s), is_kept=False),
    Column("wall s", lambda summary: number(summary.wall_s), is_kept=False),
    Column("max difference\nto reference", _difference),
)
POINT_COLUMNS: tuple[Column, ...] = (
    Column("ms/batch", lambda point: _batch_ms(point.batch_s)),
    Column("rows/s", lambda point: number(point.rows_per_s)),
    Column("real\ntokens/s", lambda point: number(point.tokens_per_s)),
    Column("padding\nefficiency", lambda point: _share(point.padding_efficiency)),
    Column("peak\nMiB", lambda point: _mib(point.peak_bytes)),
    Column("max difference\nto reference", lambda point: _tiny(point.max_difference)),
)
MODEL_COLUMNS = (
    Column("model", lambda line: line.name),
    Column("precision", lambda line: line.precision or ""),
    Column("weights\nMiB", lambda line: _mib(line.weights_bytes)),
    Column("max\nlength", lambda line: f"{line.max_length:,}", is_kept=False),
    Column("rows/s", lambda line: number(line.rows_per_s)),
    Column("real\ntokens/s", lambda line: number(line.tokens_per_s), is_kept=False),
    Column("peak\nMiB", lambda line: _mib(line.peak_bytes), is_kept=False),
    Column("set-up s", lambda line: number(line.load_s), is_kept=False),
    Column("ratio", lambda line: "-" if line.ratio is None else f"{line.ratio:.2f}x"),
    Column("agreement", _agreement),
)
