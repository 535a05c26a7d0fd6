"""How an input is read, where its name does not tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from packhorse.config import RunConfig


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    """input_format: the name of a reader's file, or auto. The others are settings of single formats."""

    input_format: str = "auto"
    delimiter: str | None = None  # of CSV; None: a comma
    header: bool = True  # whether the first line of CSV and TSV has the names of the columns

    @classmethod
    def of(cls, config: RunConfig) -> ReaderOptions:
        return cls(config.input_format, config.delimiter, config.header)

    def given(self) -> dict[str, Any]:
        """What was asked for, by the name of its flag."""
        found = {} if self.delimiter is None else {"delimiter": self.delimiter}
        return found if self.header else {**found, "header": False}


FLAGS = {"delimiter": "--delimiter", "header": "--no-header"}
