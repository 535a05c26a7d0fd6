"""What stands beside an openvino_model.xml of ours: packhorse.json, which tells what the graph computes."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.data import ModelCost, reduction_json
from packhorse.errors import ModelError, UsageError
from packhorse.load_request import LoadRequest

NAME = "packhorse.json"
FORMAT = 2


@dataclass(frozen=True, slots=True)
class Record:
    reduction: dict[str, Any] | None  # inside the graph, as reduction_json writes it; None: outputs are the model's own
    pad_id: int
    cost: ModelCost
    max_length: int | None
    weights: str  # float or int8
    bin_bytes: int = 0  # of openvino_model.bin; a copy that was cut short is noticed

    def save(self, folder: Path) -> None:
        fields = dataclasses.asdict(self) | {"cost": self.cost.to_dict()}
        (folder / NAME).write_text(json.dumps({"format": FORMAT} | fields, indent=1))


def read_record(folder: Path) -> Record | None:
    """None where there is none. Raises ModelError where it is no record of ours."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields.pop("format") != FORMAT:
            raise ValueError("of another version of packhorse")
        return Record(**fields | {"cost": ModelCost.from_dict(fields["cost"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path}: cannot be read: {error}; export the model again") from error


def check_reduction(record: Record, request: LoadRequest) -> None:
    """Raises UsageError where the graph reduces in another way than the settings ask for."""
    asked = reduction_json(request.reduction)
    inside = record.reduction
    if inside is None or inside == asked:
        return
    names = sorted(k for k in asked if asked[k] != inside.get(k))
    differs = ", ".join(f"{k} {inside.get(k)!r}, not {asked[k]!r}" for k in names)
    raise UsageError(
        f"{request.description.folder}: its openvino_model.xml was exported with {differs}; "
        "leave out the flags that change it, or export the model again"
    )
