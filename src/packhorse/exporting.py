"""A model written as a folder that another engine runs as it stands."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.config import EngineConfig, validated
from packhorse.data import Position
from packhorse.errors import UsageError
from packhorse.loading import Loader
from packhorse.loading.material import Material
from packhorse.readers import open_input
from packhorse.readers.columns import column_texts, guess_text_column
from packhorse.readers.cut import cut_shards

BACKENDS = ("onnx", "openvino")
CALIBRATION_ROWS = 1_024


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written. num_bytes: of all files; seconds: loading, converting and proving included."""

    folder: Path
    backend: str
    precision: str
    num_bytes: int
    seconds: float


def export(
    model: str | Path,
    folder: str | Path,
    backend: str = "onnx",
    precision: str = "fp32",
    calibration: str | None = None,
    text_column: str | None = None,
    **settings: Any,
) -> Exported:
    """Writes a model for a backend, its reduction inside the graph, as a folder that `packhorse run FOLDER` loads.

    model: a folder, or an id on the hub. folder: a new or empty one. backend: "onnx" or "openvino". precision: "fp32",
    "int8", and what else the backend has. calibration: Parquet or JSONL whose first 1,024 rows set the scales of int8.
    settings: those of load().

    Raises UsageError where the folder holds something or a name is wrong, ModelError where the model cannot be written.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target}: exists and is not an empty folder; choose another")
    if backend not in BACKENDS:
        raise UsageError(f"--backend {backend}: models are written for {' or '.join(BACKENDS)}")
    if precision == "auto":
        raise UsageError("--precision auto: a written model has one precision; say which")
    values = {"model": str(model), "backend": backend, "precision": precision} | settings
    config: EngineConfig = validated(EngineConfig, values)
    texts = _calibration_texts(calibration, text_column)
    begin = time.perf_counter()
    loader = Loader(config.on_first_device(), Material(config, wants_weights=True))
    try:
        loader.see(texts, None)
        loader.export(target)
    finally:
        loader.close()
    num_bytes = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
    return Exported(target, backend, precision, num_bytes, time.perf_counter() - begin)


def _calibration_texts(address: str | None, text_column: str | None) -> list[str | None]:
    if address is None:
        return []
    reader = open_input(address)
    column = guess_text_column(reader.schema(), text_column, None)
    start = Position(0, 0)
    chunks = reader.read(start, [column], [column])
    first = next(cut_shards(chunks, start, 0, 0, [column], CALIBRATION_ROWS, 4, CALIBRATION_ROWS), None)
    return column_texts(first.table[column], first.errors) if first else []
