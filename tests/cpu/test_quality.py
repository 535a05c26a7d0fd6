"""Perplexity, agreement and divergence of two language models, against a plain implementation in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from transformers import AutoModelForCausalLM

from packhorse.backends.torch import quality
from packhorse.backends.torch.quality import compare_language_models
from tests.cpu.quantizable import rows_of, save


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """One, and the same with noise on its weights."""
    folder: Path = save(tmp_path_factory.mktemp("quality") / "llama", "llama", "AutoModelForCausalLM")
    first, second = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.005)
    return first, second


def plainly(first: Any, second: Any, rows: list[list[int]]) -> dict[str, float]:
    """Token by token: what each predicts behind every beginning of every row."""
    ours, theirs, agreed, divergence = [], [], [], []
    for row in rows:
        for i in range(1, len(row)):
            with torch.inference_mode():
                a, b = (
                    log_softmax(model(input_ids=torch.tensor([row[:i]])).logits[0, -1].numpy().astype(np.float64))
                    for model in (first, second)
                )
            ours.append(-a[row[i]])
            theirs.append(-b[row[i]])
            agreed.append(a.argmax() == b.argmax())
            divergence.append(float(np.sum(np.exp(a) * (a - b))))
    return {
        "num_tokens": len(ours),
        "reference_perplexity": float(np.exp(np.mean(ours))),
        "quantized_perplexity": float(np.exp(np.mean(theirs))),
        "top_1_agreement": float(np.mean(agreed)),
        "mean_kl": float(np.mean(divergence)),
    }


@pytest.mark.parametrize("positions", [3, 256])
def test_figures_are_those_of_a_plain_implementation(
    models: tuple[Any, Any], positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "POSITIONS", positions)  # however the positions are cut into pieces
    lengths = (5, 1, 12, 2, 9)
    rows = rows_of(lengths)
    found = compare_language_models(*models, rows, "cpu")
    pieces = [rows.ids[a:b].tolist() for a, b in zip(rows.offsets, rows.offsets[1:], strict=False)]
    expected = plainly(*models, pieces)
    assert found["num_tokens"] == sum(lengths) - len(lengths) == expected["num_tokens"]
    assert found == pytest.approx(expected, rel=1e-4)
    assert 0.1 < expected["top_1_agreement"] < 1 and expected["mean_kl"] > 0.01  # there is something to tell


def test_a_model_agrees_with_itself(models: tuple[Any, Any]) -> None:
    found = compare_language_models(models[0], models[0], rows_of((4, 30)), "cpu")
    assert found["top_1_agreement"] == 1 and found["mean_kl"] == 0
    assert found["reference_perplexity"] == found["quantized_perplexity"]


def test_rows_of_one_token_predict_nothing(models: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="no row has two tokens"):
        compare_language_models(*models, rows_of((1, 1)), "cpu")
