"""What stands beside an openvino_model.xml of ours: packhorse.json, which tells what the graph computes."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.backends.torch.graph_values import differences
from packhorse.errors import ModelError, UsageError
from packhorse.load_request import LoadRequest
from packhorse.model_cost import ModelCost

NAME = "packhorse.json"
FORMAT = 2


@dataclass(frozen=True, slots=True)
class Record:
    reduction: dict[str, Any] | None  # inside the graph, as graph_json writes it; None: outputs are the model's own
    pad_id: int
    cost: ModelCost
    max_length: int | None
    weights: str  # float or int8
    bin_bytes: int = 0  # of openvino_model.bin; a copy that was cut short is noticed
    notes: tuple[str, ...] = ()  # of how it was made, for the plan

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
        notes = tuple(map(str, fields.get("notes", ())))
        return Record(**fields | {"cost": ModelCost.from_dict(fields["cost"]), "notes": notes})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path}: cannot be read: {error}; export the model again") from error


def check_reduction(record: Record, request: LoadRequest) -> None:
    """Raises UsageError where the graph reduces in another way than the settings ask for."""
    found = "" if record.reduction is None else differences(record.reduction, request.reduction)
    if found:
        raise UsageError(f"{request.description.folder}: its openvino_model.xml was exported with {found}")
