"""Flags of single tasks, and of long texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from packhorse.cli.flags import Flag, names

LabelsColumn = Annotated[
    str | None, Flag(help="zero-shot-classification: column with the labels of each row, a list or a text with commas.")
]
FunctionToApply = Annotated[
    Literal["auto", "softmax", "sigmoid", "none"],
    Flag(help="text-classification: what makes scores of logits; auto: as the model says."),
]
Aggregation = Annotated[
    Literal["none", "simple", "first", "average", "max"],
    Flag(help="token-classification: how tokens become entities; none: a line for each token."),
]
IgnoreLabels = Annotated[str | None, Flag(help="token-classification: labels that are no entities, by comma; O.")]
Targets = Annotated[str | None, Flag(help="fill-mask: words whose scores are wanted, by comma.")]
Labels = Annotated[str | None, Flag(help="zero-shot-classification: labels to choose from, by comma.")]
HypothesisTemplate = Annotated[str, Flag(help="zero-shot-classification: sentence that a label is put in.")]
MultiLabel = Annotated[bool, Flag("--multi-label", help="zero-shot-classification: each label by itself.")]
MaxAnswerLen = Annotated[int, Flag(help="question-answering: most tokens of an answer.")]
HandleImpossibleAnswer = Annotated[
    bool, Flag("--handle-impossible-answer", help="question-answering: an answer may be empty.")
]
Stride = Annotated[int | None, Flag(help="Tokens that a window of --long windows shares with the one before.")]
Combine = Annotated[
    Literal["mean", "max", "first", "all"], Flag(help="How windows become one result; all: a list of embeddings.")
]


def parsed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a command's parameters those of this file that are lists, as settings."""
    ignored, labels = names(values["ignore_labels"]), names(values["labels"])
    return {
        "ignore_labels": ("O",) if ignored is None else ignored, "targets": names(values["targets"]),
        "labels": labels and tuple(label.strip() for label in labels),
    }  # fmt: skip
