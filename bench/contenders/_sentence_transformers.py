"""SentenceTransformer.encode: sorted by length in characters, longest first, then padded batches.

Computed tokens: the rows are tokenized once more after the timed part, put in the order of `encode` (the same
argsort), and each batch counted as rows x longest.
"""

import numpy as np

from bench.contenders._measure import Predict, measure, padded_tokens
from bench.contract import ModelSpec, Options, Result, Rows


def run_encode(model: ModelSpec, rows: Rows, options: Options, batch_size: int) -> Result:
    """Measure `encode` with this batch size."""

    def load(model: ModelSpec, options: Options) -> Predict:
        return load_encoder(model, options, batch_size)

    def computed_tokens(texts: list[str], lengths: np.ndarray) -> int:
        return padded_tokens(lengths[np.argsort([-len(text) for text in texts])], batch_size)

    return measure(load, computed_tokens, model, rows, options)


def load_encoder(model: ModelSpec, options: Options, batch_size: int) -> Predict:
    """The model as sentence-transformers loads it, pooling and normalizing included."""
    from sentence_transformers import SentenceTransformer

    from bench.contenders._torch import DTYPES, device

    encoder = SentenceTransformer(str(model.folder), device=device(), model_kwargs={"dtype": DTYPES[options.precision]})

    def predict(texts: list[str]) -> np.ndarray:
        rows = encoder.encode(texts, batch_size=batch_size, convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(rows, dtype=np.float32)

    return predict
