"""The tables of the README, made of the table of combinations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tests.contracts.combinations.table import (
    ALL,
    CONTINUOUS,
    ENCODERS,
    PRECISIONS,
    VALUES,
    WITH_ENCODER,
    WORKS,
    Combination,
)


class Column(NamedTuple):
    title: str
    task: str
    backend: str
    batching: str
    device_map: str


COLUMNS = (
    Column("encoder, packed", ENCODERS[0], "torch", "packed", "none"),
    Column("encoder, padded", ENCODERS[0], "torch", "padded", "none"),
    Column("LLM, continuous", CONTINUOUS, "torch", "packed", "none"),
    Column("LLM, static", CONTINUOUS, "torch", "padded", "none"),
    Column("encoder-decoder", WITH_ENCODER, "torch", "padded", "none"),
    Column("ONNX Runtime", ENCODERS[0], "onnx", "padded", "none"),
    Column("OpenVINO", ENCODERS[0], "openvino", "padded", "none"),
)
SPLIT = (
    Column("encoder, `--device-map`", ENCODERS[0], "torch", "packed", "auto"),
    Column("LLM, `--device-map`", CONTINUOUS, "torch", "padded", "auto"),
)
FLAGS = {
    "fp32": "`fp32`",
    "bf16": "`bf16`",
    "int8": "`int8`",
    **{p: f"`{p.split()[0]} --quantization {p.split()[1]}`" for p in PRECISIONS if " " in p},
}


def tables() -> str:
    """Markdown: by precision, by attention, and why what is refused is refused."""
    notes: list[str] = []
    by_precision = _table("`--precision`", [*COLUMNS, *SPLIT], [(FLAGS[p], p, "auto") for p in PRECISIONS], notes)
    attentions = [(f"`{a}`", _precision_of(a), a) for a in VALUES["attention"]]
    by_attention = _table("`--attention`", COLUMNS, attentions, notes)
    reasons = [f"{number}. `{reason}`" for number, reason in enumerate(notes, 1)]
    return "\n".join([*by_precision, "", *by_attention, "", *reasons])


def combinations_of_readme() -> list[Combination]:
    rows = [(p, "auto", column) for p in PRECISIONS for column in (*COLUMNS, *SPLIT)]
    rows += [(_precision_of(a), a, column) for a in VALUES["attention"] for column in COLUMNS]
    return [_found(column, precision, attention) for precision, attention, column in rows]


def _precision_of(attention: str) -> str:
    return "bf16" if attention.startswith("flash") else "fp32"


def _table(name: str, columns: Sequence[Column], rows: Sequence[tuple[str, str, str]], notes: list[str]) -> list[str]:
    """rows: title, precision, attention. notes: reasons so far, in the order of their numbers."""
    lines = [f"| {name} | " + " | ".join(column.title for column in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for title, precision, attention in rows:
        cells = [_cell(_found(column, precision, attention), notes) for column in columns]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def _cell(combination: Combination, notes: list[str]) -> str:
    if combination.outcome == WORKS:
        return "yes"
    reason = _for_all_values(combination)
    if reason not in notes:
        notes.append(reason)
    return f"no ({notes.index(reason) + 1})"


def _for_all_values(combination: Combination) -> str:
    """The refusal with NAME in the place of the value that the row is about, where several rows have it."""
    precision, _, method = combination.precision.partition(" ")
    outcome = combination.outcome
    if method or outcome.startswith("--device-map"):
        outcome = outcome.replace(f"--precision {precision}", "--precision NAME")
    return outcome.replace(combination.attention, "NAME") if combination.attention != "auto" else outcome


def _found(column: Column, precision: str, attention: str) -> Combination:
    key = (column.task, column.backend, precision, attention, column.batching, column.device_map)
    return next(combination for combination in ALL if combination.key == key)
