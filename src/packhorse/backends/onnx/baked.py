"""What stands in the metadata of a .onnx file that packhorse exported."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.backends.torch.graph_values import differences
from packhorse.data import Reduction
from packhorse.errors import ModelError
from packhorse.model_cost import ModelCost

KEY = "packhorse"


@dataclass(frozen=True, slots=True)
class Baked:
    reduction: dict[str, Any]  # as graph_json()
    precision: str
    max_length: int | None
    pad_id: int
    cost: ModelCost
    attention: str
    notes: tuple[str, ...]
    versions: dict[str, str]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self) | {"cost": self.cost.to_dict()}, sort_keys=True)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Baked:
        """Raises KeyError, TypeError or ValueError where it is of another shape."""
        limit = value["max_length"]
        return cls(
            reduction=dict(value["reduction"]),
            precision=str(value["precision"]),
            max_length=None if limit is None else int(limit),
            pad_id=int(value["pad_id"]),
            cost=ModelCost.from_dict(value["cost"]),
            attention=str(value["attention"]),
            notes=tuple(map(str, value["notes"])),
            versions={str(k): str(v) for k, v in value["versions"].items()},
        )


def check_reduction(baked: Baked, asked: Reduction, path: Path) -> None:
    """Raises ModelError where what is asked for is not what the graph was exported to do."""
    found = differences(baked.reduction, asked)
    if found:
        raise ModelError(f"{path}: was exported with {found}")
