"""translation: [{translation_text}], each text in the model's other language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from packhorse.pipelines.generated import flat as together
from packhorse.pipelines.generated import inputs, merged, of_model, outputs, parameters, row, settings
from packhorse.pipelines.task import Given

__all__ = ["inputs", "merged", "of_model", "parameters", "results", "row", "settings", "single", "together"]


def results(table: pa.Table, items: Sequence[Any], given: Given) -> list[Any]:
    return [[{"translation_text": text} for text in texts] for texts in outputs(table)]


def single(result: Any, item: Any, called: Given) -> Any:
    return result
