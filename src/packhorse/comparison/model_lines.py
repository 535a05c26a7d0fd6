"""Several models side by side: the speed of packhorse on each, its size, and its agreement with the first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from packhorse.comparison.agreement import Agreement, agreement
from packhorse.comparison.contract import Frozen, Job, Measurement, ModelSpec
from packhorse.comparison.discover import parse_contender
from packhorse.comparison.processes import ChildError, run_child
from packhorse.comparison.subject import weights_bytes
from packhorse.comparison.trials import WARMUP_ROWS

CONTENDER = "packhorse:auto"


class ModelLine(Frozen):
    """One model. `weights_bytes`: of its weight files; `ratio`: its rows/s to those of the first model."""

    name: str
    weights_bytes: int
    max_length: int
    precision: str | None = None
    rows_per_s: float | None = None
    tokens_per_s: float | None = None
    padding_efficiency: float | None = None
    peak_bytes: int | None = None
    load_s: float | None = None
    ratio: float | None = None
    agreement: Agreement | None = None
    error: str = ""


def compare_models(
    models: list[ModelSpec], rows_file: Path, work_dir: Path, limit_s: float | None, say: Callable[[str], None]
) -> list[ModelLine]:
    """Runs packhorse on each. One that fails is a line with the reason."""
    first: tuple[Measurement, np.ndarray] | None = None
    lines = []
    for number, model in enumerate(models):
        try:
            found = _run(model, rows_file, work_dir / f"model-{number}", limit_s)
        except ChildError as error:
            say(f"{model.name}: {error}")
            lines.append(_line(model, None, None, None, str(error)))
            continue
        first = first or (found if number == 0 else None)
        agreed = agreement(first[1], found[1], models[0], model) if first else None
        say(f"{model.name}: {found[0].rows_per_s:,.1f} rows/s")
        lines.append(_line(model, found[0], first and first[0], agreed, ""))
    return lines


def _run(model: ModelSpec, rows_file: Path, folder: Path, limit_s: float | None) -> tuple[Measurement, np.ndarray]:
    folder.mkdir()
    contender = parse_contender(CONTENDER, model.task)
    options = contender.options(WARMUP_ROWS, folder, limit_s)
    return run_child(Job(module=contender.module.__name__, model=model, rows_file=rows_file, options=options), folder)


def _line(
    model: ModelSpec, found: Measurement | None, first: Measurement | None, agreed: Agreement | None, error: str
) -> ModelLine:
    known = {"name": model.name, "weights_bytes": weights_bytes(model.folder), "max_length": model.max_length}
    if found is None:
        return ModelLine(**known, error=error)
    same = ("precision", "rows_per_s", "tokens_per_s", "padding_efficiency", "peak_bytes", "load_s")
    return ModelLine(
        **known,
        **{name: getattr(found, name) for name in same},
        ratio=found.rows_per_s / first.rows_per_s if first else None,
        agreement=agreed,
    )
