"""An evaluation as a page that needs nothing else. No script, no request, every figure with its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packhorse.evaluating.matrix import MOST_LABELS, picture
from packhorse.evaluating.text import confused, shown
from packhorse.report.figures import Figures, at, pointer
from packhorse.report.html import TEMPLATES as REPORT

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_PAIRS = 30
WRITTEN = {"ndcg": "nDCG", "mrr": "MRR", "map": "MAP"}
MEANINGS = {
    "accuracy": "share of the right ones",
    "f1": "harmonic mean of precision and recall",
    "f1_micro": "of all labels together",
    "f1_macro": "mean over labels",
    "f1_weighted": "mean weighted by rows",
    "matthews_correlation": "1 all right, 0 as by chance",
    "calibration_error": "how far confidence is from accuracy",
    "precision": "of what was found, what is right",
    "recall": "of what there is, what was found",
    "spearman": "of the ranks",
    "pearson": "of the numbers",
    "mean_squared_error": "of prediction and label",
    "exact_match": "answers equal to a label",
    "perplexity": "of all tokens together",
    "mean_perplexity": "mean over texts",
    "ndcg@10": "gains by rank, against the best order",
    "mrr@10": "1 / rank of the first relevant document",
    "recall@10": "of the relevant ones, among the first 10",
    "recall@100": "of the relevant ones, among the first 100",
    "map@100": "mean of precisions at relevant documents",
}


def _title(name: str) -> str:
    """Of a figure, as people write it."""
    kind, at, depth = name.partition("@")
    words = kind.replace("_", " ")
    return WRITTEN.get(kind, words[:1].upper() + words[1:]) + at + depth


class _Figures(Figures):
    """With a style for metrics, which are shown as in a terminal."""

    def words(self, style: str, *keys: str | int) -> str:
        return shown(at(self._report, pointer(*keys))) if style == "figure" else super().words(style, *keys)


def render(evaluation: dict[str, Any]) -> str:
    """The page of an Evaluation.to_dict()."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([TEMPLATES, REPORT]), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    metrics = evaluation["metrics"]
    confusion = metrics.get("confusion")
    is_shown = confusion is not None and len(confusion["labels"]) <= MOST_LABELS
    return environment.get_template("evaluation.html").render(
        e=evaluation,
        fig=_Figures(evaluation),
        title=_title,
        meanings=MEANINGS,
        others=[k for k, v in metrics.items() if k not in evaluation["headline"] and not isinstance(v, list | dict)],
        kinds=[kind for kind in ("answerable", "unanswerable") if kind in metrics],
        matrix=picture(confusion) if is_shown else None,
        pairs=confused(confusion)[:SHOWN_PAIRS] if confusion is not None else [],
    )
