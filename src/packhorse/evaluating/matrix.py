"""Where the cells and names of a confusion matrix stand in its picture."""

from __future__ import annotations

from typing import Any, NamedTuple

MOST_LABELS = 30
WIDTH = 980.0
CHAR, LONGEST_NAME = 7.2, 20  # pixels of a letter; letters of a name that are shown
LARGEST_CELL = 88.0
FOR_COUNTS = 30.0  # pixels of a cell that a count fits into
DARK = 0.55  # share from which on a count is written in the colour of the paper


class Cell(NamedTuple):
    """A row of the matrix is a label, a column a prediction."""

    row: int
    column: int
    x: float
    y: float
    share: float  # of the label's rows
    is_dark: bool


class Name(NamedTuple):
    text: str  # shortened
    full: str
    at: float  # middle of its row and column, from the matrix's corner


class Picture(NamedTuple):
    width: float
    height: float
    left: float
    top: float
    cell: float
    size: float  # of the whole matrix
    has_counts: bool
    cells: list[Cell]
    names: list[Name]


def picture(confusion: dict[str, Any]) -> Picture:
    """Of up to MOST_LABELS labels."""
    names, matrix = confusion["labels"], confusion["matrix"]
    shown = [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…" for name in names]
    longest = max(len(name) for name in shown) * CHAR
    left, top = longest + 34, longest * 0.72 + 44
    cell = min((WIDTH - left) / len(names), LARGEST_CELL)
    size = cell * len(names)
    middles = [(i + 0.5) * cell for i in range(len(names))]
    return Picture(
        max(left + size + longest * 0.72, 420), top + size + 4, left, top, cell, size, cell >= FOR_COUNTS,
        [c for i, row in enumerate(matrix) for c in _cells(i, row, cell)],
        [Name(text, name, at) for text, name, at in zip(shown, names, middles, strict=True)],
    )  # fmt: skip


def _cells(i: int, row: list[int], cell: float) -> list[Cell]:
    total = max(sum(row), 1)
    return [Cell(i, j, j * cell, i * cell, count / total, count / total > DARK) for j, count in enumerate(row)]
