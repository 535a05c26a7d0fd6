"""Settings of single tasks, by the names of transformers' pipelines where those have them, and of long texts."""

from __future__ import annotations

from collections import Counter
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

OWN_TASKS = (
    "text-classification", "feature-extraction", "token-classification", "question-answering", "fill-mask",
    "zero-shot-classification", "text-ranking", "sparse-embedding", "multi-vector-embedding", "perplexity",
)  # fmt: skip
WINDOWED = tuple(task for task in OWN_TASKS if task not in ("fill-mask", "zero-shot-classification"))

# Tasks that each setting belongs to; those of others refuse it.
OF_TASKS = {
    "scores": ("text-classification",),
    "function_to_apply": ("text-classification",),
    "pooling": ("feature-extraction",),
    "normalize": ("feature-extraction", "multi-vector-embedding"),
    "embedding_format": ("feature-extraction", "multi-vector-embedding"),
    "aggregation": ("token-classification",),
    "ignore_labels": ("token-classification",),
    "targets": ("fill-mask",),
    "labels": ("zero-shot-classification",),
    "hypothesis_template": ("zero-shot-classification",),
    "multi_label": ("zero-shot-classification",),
    "max_answer_len": ("question-answering",),
    "handle_impossible_answer": ("question-answering",),
    "stride": WINDOWED,
    "combine": ("text-classification", "feature-extraction", "text-ranking"),
    "top_k": ("fill-mask", "question-answering", "sparse-embedding"),
    "logprobs": ("perplexity",),
}


class TaskSettings(BaseModel):
    """What single tasks are told."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    function_to_apply: Literal["auto", "softmax", "sigmoid", "none"] = "auto"
    """text-classification: what makes scores of logits; auto: as the model's problem_type says."""
    aggregation: Literal["none", "simple", "first", "average", "max"] = "simple"
    """token-classification: how tokens become entities, as transformers' aggregation_strategy; none: tokens."""
    ignore_labels: tuple[str, ...] = ("O",)
    """token-classification: labels that are no entities."""
    targets: tuple[str, ...] | None = None
    """fill-mask: words whose scores are wanted, instead of the likeliest ones."""
    labels: tuple[str, ...] | None = None
    """zero-shot-classification: labels to choose from."""
    hypothesis_template: str = "This example is {}."
    """zero-shot-classification: sentence that a label is put in."""
    multi_label: bool = False
    """zero-shot-classification: any number of labels may be true, each by itself."""
    max_answer_len: int = Field(15, ge=1)
    """question-answering: most tokens of an answer."""
    handle_impossible_answer: bool = False
    """question-answering: the empty answer is one of those to choose from."""
    stride: int | None = Field(None, ge=0)
    """Tokens that a window shares with the one before."""
    combine: Literal["mean", "max", "first", "all"] = "mean"
    """How the windows of a long text become one result; all: a list of them (embeddings)."""

    @model_validator(mode="after")
    def _template_has_a_place(self) -> Self:
        if not _takes_a_label(self.hypothesis_template):
            raise ValueError(f"--hypothesis-template {self.hypothesis_template!r}: give {{}} once, for the label")
        for flag, values in (("--labels", self.labels), ("--targets", self.targets)):
            if values is not None and (not values or "" in values):
                raise ValueError(f"{flag} {','.join(values)!r}: at least one, none of them empty")
        twice = [label for label, count in Counter(self.labels or ()).items() if count > 1]
        if twice:
            raise ValueError(f"--labels {','.join(self.labels or ())!r}: {twice[0]!r} stands there twice")
        return self


def _takes_a_label(template: str) -> bool:
    """Whether str.format puts one into it, as transformers' pipeline does."""
    try:
        return template.format("a label") != template.format("another")
    except (IndexError, KeyError, ValueError, AttributeError):
        return False
