"""zero-shot-classification: which of some labels a text is about, by a model of natural language inference.

A text is the premise, a template with a label in it the hypothesis; what counts is the model's logit for entailment.
Which output that is, and how scores are made of it, is as in transformers' ZeroShotClassificationPipeline.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from packhorse.config import EngineConfig
from packhorse.data import Float32s, Float64s, Int64s, ModelDescription, Reduction
from packhorse.errors import UsageError
from packhorse.sequences import Results, Sequencing
from packhorse.stages import Task


def make(description: ModelDescription, settings: EngineConfig) -> Task:
    return ZeroShotClassification(description.labels, settings)


class ZeroShotClassification:
    """Columns labels (a row's own, the likeliest first) and scores: a softmax over the row's labels; where any number
    of them may be true, or there is one, of each its entailment against contradiction."""

    name = "zero-shot-classification"
    max_value = float(np.finfo(np.float32).max)

    def __init__(self, names: tuple[str, ...], settings: EngineConfig) -> None:
        """names: of the model's outputs. Raises UsageError where none is entailment."""
        self._width, self._settings = len(names), settings
        self._entailment = entailment(names)
        self._contradiction = len(names) - 1 if self._entailment == 0 else 0

    def reduction(self) -> Reduction:
        return Reduction("classify", self._width, "none")

    def sequencing(self) -> Sequencing:
        s = self._settings
        return Sequencing(
            "labels", "error" if s.long == "error" else "truncate", cut="first", labels=s.labels or (),
            template=s.hypothesis_template,
        )  # fmt: skip

    def fields(self, width: int) -> list[pa.Field]:
        return [pa.field("labels", pa.list_(pa.large_string())), pa.field("scores", pa.list_(pa.float32()))]

    def finish(self, results: Results) -> list[pa.Array]:
        """Of values [pairs of a row and a label, outputs of the model]."""
        firsts = results.firsts()
        row_of = np.repeat(np.arange(results.num_rows), np.diff(firsts))
        is_kept = results.is_valid[row_of]
        counts = np.diff(firsts) * results.is_valid
        values, row_of = results.dense()[is_kept].astype(np.float64), row_of[is_kept]
        scores = self._scores(values, row_of, counts)
        order = _by_score(scores, row_of)
        labels = [label for row in np.flatnonzero(results.is_valid).tolist() for label in results.tokenized.labels[row]]
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
        flat = (pa.array(labels, pa.large_string()).take(pa.array(order)), pa.array(scores[order], pa.float32()))
        mask = pa.array(~results.is_valid)
        return [pa.ListArray.from_arrays(offsets, column, mask=mask) for column in flat]

    def _scores(self, values: Float64s, row_of: Int64s, counts: Int64s) -> Float32s:
        """values [pairs, outputs], row_of [pairs] ascending, counts: pairs of each row."""
        entail = values[:, self._entailment]
        alone = 1 / (1 + np.exp(np.minimum(values[:, self._contradiction] - entail, 700)))  # a softmax of two
        if self._settings.multi_label:
            return alone.astype(np.float32)
        return np.where(counts[row_of] == 1, alone, _softmax(entail, row_of, len(counts))).astype(np.float32)


def entailment(names: tuple[str, ...]) -> int:
    """The output whose name begins with "entail", in any case. Raises UsageError where there is none."""
    found = next((i for i, name in enumerate(names) if name.lower().startswith("entail")), None)
    if found is None:
        raise UsageError(
            f"--task zero-shot-classification: the model's labels are {', '.join(names) or 'none'}, and none begins "
            "with 'entail': it takes a model of natural language inference. Where this is one, name its outputs in the "
            "id2label of config.json"
        )
    return found


def _softmax(logits: Float64s, row_of: Int64s, num_rows: int) -> Float64s:
    """[pairs] over those of the same row."""
    largest = np.full(num_rows, -np.inf)
    np.maximum.at(largest, row_of, logits)
    powers = np.exp(logits - largest[row_of])
    return powers / np.bincount(row_of, powers, num_rows)[row_of]


def _by_score(scores: Float32s, row_of: Int64s) -> Int64s:
    """[pairs] row by row, the highest first; of equal ones the later, as numpy's reversed argsort has it."""
    places = np.arange(len(scores))
    return np.lexsort((-places, -scores, row_of))
