"""The terminal's view: what was measured on, and one line per contender."""

import shutil
import sys

from rich.console import Console
from rich.table import Table

from bench.machine import Machine
from bench.summary import EndToEnd, Summary

MIB = 1024**2
WIDTH = 160

# Heading and justification.
COLUMNS = (
    ("contender", "left"),
    ("precision", "left"),
    ("rows timed", "right"),
    ("rows/s", "right"),
    ("real tokens/s", "right"),
    ("padding\nefficiency", "right"),
    ("peak\nMiB", "right"),
    ("load s", "right"),
    ("wall s", "right"),
    ("max difference\nto reference", "right"),
)


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


def build_table(summaries: list[Summary], baseline: str) -> Table:
    """One line per contender, in the order they ran."""
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for heading, justify in COLUMNS:
        table.add_column(heading, justify="right" if justify == "right" else "left", no_wrap=True)
    table.add_column(f"ratio to\n{baseline}", justify="left", overflow="fold")
    for summary in summaries:
        table.add_row(*_cells(summary), style="red" if summary.error else None)
    return table


def end_to_end_lines(found: list[EndToEnd]) -> list[str]:
    """What of its backend's own speed packhorse keeps."""
    return [
        f"{one.contender} end to end / {one.loop}: {one.ratio:.2f}{_range(one.ratios)}, medians of rows/s by round"
        for one in found
    ]


def _cells(summary: Summary) -> list[str]:
    if summary.error:
        return [summary.contender, summary.precision, "failed", *[""] * (len(COLUMNS) - 3), summary.error]
    return [
        summary.contender,
        summary.precision,
        f"{summary.num_rows:,}",
        _number(summary.rows_per_s),
        _number(summary.tokens_per_s),
        "-" if summary.padding_efficiency is None else f"{summary.padding_efficiency:.1%}",
        f"{(summary.peak_bytes or 0) / MIB:,.0f}",
        f"{summary.load_s:.1f}",
        f"{summary.wall_s:.1f}",
        _difference(summary),
        _ratio(summary),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _difference(summary: Summary) -> str:
    difference = "-" if summary.max_difference is None else f"{summary.max_difference:.1e}"
    return f"{difference} ({summary.num_compared} rows)"


def _ratio(summary: Summary) -> str:
    if summary.ratio is None:
        return f"- ({summary.no_ratio_because})"
    return f"{summary.ratio:.2f}x{_range(summary.ratios)}"


def _range(ratios: tuple[float, ...]) -> str:
    return f" ({min(ratios):.2f}-{max(ratios):.2f})" if len(ratios) > 1 else ""
