"""What an evaluation found, as data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Evaluation:
    """metrics: by name, JSON values; shares are from 0 to 1, and what nothing was found for is None.

    measured: what was: labels, pairs, entities, answers, texts or retrieval. headline: names of the main metrics. rows:
    those that were read, of retrieval queries; measured_rows, unlabelled_rows and error_rows are these; computed_rows:
    of retrieval the documents too. truncated_texts:
    of which the model saw a part. seconds: of reading, computing and measuring; setup_s: of what came before. plan: how
    it was computed.
    """

    model: str
    input: str
    task: str
    measured: str
    metrics: dict[str, Any]
    headline: tuple[str, ...]
    rows: int
    computed_rows: int
    measured_rows: int
    unlabelled_rows: int
    error_rows: int
    errors: dict[str, int]
    truncated_texts: int
    seconds: float
    setup_s: float
    device: str
    plan: dict[str, Any]

    @property
    def rows_per_s(self) -> float:
        return self.computed_rows / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"headline": list(self.headline), "rows_per_s": self.rows_per_s}

    def save_json(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def save_html(self, path: str | Path) -> None:
        """One page that needs no other file."""
        from packhorse.evaluating.page import render

        Path(path).write_text(render(self.to_dict()), encoding="utf-8")
