"""What stands in the metadata of a .onnx file that packhorse exported."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.data import ModelCost, Reduction, reduction_json
from packhorse.errors import ModelError

KEY = "packhorse"
OUTPUT = "values"  # [B, width] float32: the reduction is inside the graph


@dataclass(frozen=True, slots=True)
class Baked:
    reduction: dict[str, Any]  # as reduction_json()
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
    wanted = reduction_json(asked)
    differing = [k for k in wanted if wanted[k] != baked.reduction.get(k) and not (k == "width" and not wanted[k])]
    if differing:
        seen = ", ".join(f"{k} {_short(baked.reduction.get(k))}, not {_short(wanted[k])}" for k in differing)
        raise ModelError(
            f"{path}: was exported with {seen}; leave out the settings that change it, or export the model again"
        )


def _short(value: Any) -> str:
    return "none" if value in ("", [], None) else json.dumps(value) if not isinstance(value, str) else value
