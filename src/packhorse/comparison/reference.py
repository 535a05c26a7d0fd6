"""The reference: plain transformers, fp32, one row at a time, no padding. Nothing of packhorse is in it."""

from __future__ import annotations

import numpy as np

from packhorse.comparison.contenders._measure import Predict, measure
from packhorse.comparison.contenders._torch import load_model, outputs_of
from packhorse.comparison.contract import ModelSpec, Options, Result, Rows, Work


def run(model: ModelSpec, rows: Rows, options: Options) -> Result:
    """Outputs of every row, computed alone."""
    return measure(load, lambda texts, lengths: Work(int(lengths.sum()), len(texts)), model, rows, options)


def load(model: ModelSpec, options: Options) -> Predict:
    """The model in fp32, whatever the contenders run in."""
    import torch

    tokenizer, network = load_model(model, "fp32")

    def predict(texts: list[str]) -> np.ndarray:
        with torch.inference_mode():
            return np.concatenate([outputs_of(model, network, one(text)) for text in texts])

    def one(text: str) -> dict[str, torch.Tensor]:
        encoded = tokenizer(text, truncation=True, max_length=model.max_length, return_tensors="pt")
        return dict(encoded.to(network.device))

    return predict
