"""transformers.pipeline with a batch size: rows in input order, each batch padded to its longest row.

Truncation is on (a long row would crash the model), to the same maximum length as for every other contender.
All scores are asked for (`top_k=None`). Of the feature-extraction pipeline only `_forward` is replaced, by
one that pools: its own output has lost the attention mask, and would carry every hidden state of every row to
the host.

Computed tokens: the rows are tokenized once more after the timed part, cut into batches in input order, and
each batch counted as rows x longest.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from packhorse.comparison.contenders._measure import Predict, measure, padded_work, rows_in_order
from packhorse.comparison.contract import ModelSpec, Options, Result, Rows, Work


def run_pipeline(model: ModelSpec, rows: Rows, options: Options, batch_size: int) -> Result:
    """Measure a pipeline with this batch size."""

    def load(model: ModelSpec, options: Options) -> Predict:
        loader = load_embedder if model.task == "embedding" else load_classifier
        return loader(model, options, batch_size)

    def count_work(texts: list[str], lengths: np.ndarray) -> Work:
        return padded_work(lengths, rows_in_order(len(lengths), batch_size))

    return measure(load, count_work, model, rows, options)


def load_classifier(model: ModelSpec, options: Options, batch_size: int) -> Predict:
    """The text-classification pipeline; a probability goes to the column of its label."""
    from transformers import pipeline

    from packhorse.comparison.contenders._torch import DTYPES, device

    path, dtype = str(model.transformer), DTYPES[options.precision]
    classify = pipeline("text-classification", model=path, device=device(), dtype=dtype)
    columns: dict[str, int] = classify.model.config.label2id

    def predict(texts: list[str]) -> np.ndarray:
        settings = {
            "batch_size": batch_size,
            "top_k": None,
            "truncation": True,
            "max_length": model.max_length,
        }
        outputs = np.empty((len(texts), len(columns)), dtype=np.float32)
        for row, scores in enumerate(classify(texts, **settings)):
            for score in scores:
                outputs[row, columns[score["label"]]] = score["score"]
        return outputs

    return predict


def load_embedder(model: ModelSpec, options: Options, batch_size: int) -> Predict:
    """The feature-extraction pipeline, with pooling by hand."""
    from transformers import FeatureExtractionPipeline, pipeline

    from packhorse.comparison.contenders._torch import DTYPES, device, pool

    class PoolingPipeline(FeatureExtractionPipeline):
        def _forward(self, model_inputs: Any) -> Any:
            hidden = self.model(**model_inputs).last_hidden_state
            return pool(model, hidden, model_inputs["attention_mask"])

    embed = pipeline(
        "feature-extraction",
        model=str(model.transformer),
        pipeline_class=PoolingPipeline,
        device=device(),
        dtype=DTYPES[options.precision],
        tokenize_kwargs={"truncation": True, "max_length": model.max_length},
    )

    def predict(texts: list[str]) -> np.ndarray:
        return np.stack([row.numpy() for row in embed(texts, batch_size=batch_size, return_tensors=True)])

    return predict
