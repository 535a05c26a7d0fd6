"""A model folder's own openvino_model.xml, as exported by packhorse or by Optimum Intel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from packhorse.backends.openvino.graph_cost import graph_cost
from packhorse.backends.openvino.packages import import_openvino
from packhorse.backends.openvino.record import Record, check_reduction, read_record
from packhorse.backends.torch.graph_values import HIDDEN, MODEL_OUTPUTS
from packhorse.data import ModelDescription
from packhorse.errors import HostileModelError, ModelError
from packhorse.load_request import LoadRequest

XML, BIN = "openvino_model.xml", "openvino_model.bin"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
PLACES = ("places", "targets")  # of graphs of ours, whose head is called on some tokens


class Found(NamedTuple):
    """An openvino.Model and what it computes."""

    model: Any
    record: Record


def find_in_folder(request: LoadRequest) -> Found:
    """The folder's own graph, beside its config or in openvino/. Raises ModelError where it has none that fits."""
    folder = request.description.folder
    place = _place(folder)
    if place is None:
        raise ModelError(
            f"{folder}: has neither safetensors to convert nor an {XML}; --backend torch or onnx may have a use for it"
        )
    for name in (XML, BIN):
        _check_inside(place / name, request)
    try:
        model = import_openvino().Core().read_model(place / XML, place / BIN)
    except RuntimeError as error:
        raise ModelError(f"{place / XML}: cannot be read by OpenVINO: {_brief(error)}") from error
    record = read_record(place)
    _check_inputs(model, place / XML, INPUTS if record is None else (*INPUTS, *PLACES))
    record = record or _record_of_strangers(model, request)
    check_reduction(record, request)
    return Found(model, record)


def holds_int8(description: ModelDescription) -> bool:
    """Whether a quantized graph is all that the folder has to load. Raises ModelError as read_record does."""
    place = _place(description.folder)
    if place is None or has_weights(description):
        return False
    record = read_record(place)
    if record is not None:
        return record.weights == "int8"
    return b'type="FakeQuantize"' in (place / XML).read_bytes()


def has_weights(description: ModelDescription) -> bool:
    """Whether there is a checkpoint to convert."""
    return description.source != "graph" and any(description.folder.glob("*.safetensors"))


def output_indices(model: Any, record: Record, kind: str, own: tuple[str, ...]) -> dict[str, int]:
    """Which outputs are read, by name: of our graphs `own`, of others' the model's own. Raises ModelError."""
    here = {name: i for i, output in enumerate(model.outputs) for name in output.get_names()}
    if record.reduction is not None:
        return {name: here.get(name, i) for i, name in enumerate(own)}
    choices = MODEL_OUTPUTS.get(kind, ())
    found = next((names for names in choices if set(names) <= here.keys()), None)
    if found is None:
        wanted = " or ".join(" and ".join(names) for names in choices)
        raise ModelError(f"{XML}: none of its outputs ({', '.join(sorted(here))}) is {wanted}; is --task right?")
    return {field: here[name] for field, name in zip(HIDDEN[0] if found in HIDDEN else found, found, strict=True)}


def input_names(model: Any) -> tuple[str, ...]:
    """By the names of transformers, in the graph's order."""
    return tuple(next((n for n in (*INPUTS, *PLACES) if n in i.get_names()), i.get_any_name()) for i in model.inputs)


def _place(folder: Path) -> Path | None:
    return next((p for p in (folder, folder / "openvino") if (p / XML).is_file()), None)


def _check_inside(path: Path, request: LoadRequest) -> None:
    """A hub's folder is made of links into its own cache; any other has to hold its files itself."""
    if not path.is_file():
        raise ModelError(f"{path}: missing")
    folder = request.description.folder
    if request.description.commit is None and not path.resolve().is_relative_to(folder.resolve()):
        raise HostileModelError(f"{path}: a link that leaves the model's folder")


def _check_inputs(model: Any, path: Path, known: tuple[str, ...]) -> None:
    unknown = [name for name in input_names(model) if name not in known]
    if unknown or "input_ids" not in input_names(model):
        raise ModelError(f"{path}: takes {', '.join(input_names(model))}; supported are {', '.join(INPUTS)}")


def _record_of_strangers(model: Any, request: LoadRequest) -> Record:
    """Of a graph without packhorse.json: its outputs are the model's own, the rest is read off graph and config."""
    config = json.loads((request.description.folder / "config.json").read_text(encoding="utf-8"))
    operations = {op.get_type_name() for op in model.get_ops()}
    pad_id = config.get("pad_token_id")
    positions = config.get("max_position_embeddings")
    if positions and "CumSum" in operations:  # RoBERTa's positions count real tokens, from behind the padding id on
        positions -= (pad_id or 0) + 1
    return Record(
        reduction=None,
        pad_id=int(pad_id or 0),
        cost=graph_cost(model, request.description),
        max_length=positions,
        weights="int8" if "FakeQuantize" in operations else "float",
    )


def _brief(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line and not line.startswith("Exception from")]
    return lines[0] if lines else str(error)
