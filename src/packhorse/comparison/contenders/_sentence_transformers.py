"""SentenceTransformer.encode: sorted by length in characters, longest first, then padded batches.

Computed tokens: the rows are tokenized once more after the timed part, put in the order of `encode` (the same
argsort), and each batch counted as rows x longest.
"""

from __future__ import annotations

import numpy as np

from packhorse.comparison.contenders._measure import Predict, measure, padded_work, rows_in_order
from packhorse.comparison.contract import ModelSpec, Options, Result, Rows, Work


def run_encode(model: ModelSpec, rows: Rows, options: Options, batch_size: int) -> Result:
    """Measure `encode` with this batch size."""

    def load(model: ModelSpec, options: Options) -> Predict:
        return load_encoder(model, options, batch_size)

    def count_work(texts: list[str], lengths: np.ndarray) -> Work:
        in_order = lengths[np.argsort([-len(text) for text in texts])]
        return padded_work(in_order, rows_in_order(len(in_order), batch_size))

    return measure(load, count_work, model, rows, options)


def load_encoder(model: ModelSpec, options: Options, batch_size: int) -> Predict:
    """The model as sentence-transformers loads it, pooling and normalizing included."""
    from sentence_transformers import SentenceTransformer

    from packhorse.comparison.contenders._torch import DTYPES, device

    encoder = SentenceTransformer(str(model.folder), device=device(), model_kwargs={"dtype": DTYPES[options.precision]})

    encoder.max_seq_length = model.max_length

    def predict(texts: list[str]) -> np.ndarray:
        rows = encoder.encode(texts, batch_size=batch_size, convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(rows, dtype=np.float32)

    return predict
