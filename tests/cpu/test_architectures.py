"""Many architectures, each against plain transformers row by row: right, or refused, never silently wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import packhorse
from tests.cpu import architectures, reference
from tests.cpu.engine import load

TEXTS = reference.texts_of_all_lengths(24)
SPECIAL = ["good [SEP] film", "[PAD]", "bad [PAD] [PAD]", "[CLS] a [MASK]", "a plain film"]  # the model's own tokens
TOLERANCE = 1e-5


def predicted(folder: Path, texts: list[str]) -> np.ndarray:
    with load(folder, scores="all") as engine:
        return np.array(engine.predict(texts)["scores"].to_pylist(), np.float32)


@pytest.mark.parametrize("kind", [k for k in architectures.CONFIGS if k != "xlnet"])
def test_a_classifier_equals_transformers_row_by_row(tmp_path: Path, kind: str) -> None:
    folder = architectures.save(tmp_path, kind, "AutoModelForSequenceClassification")
    texts = TEXTS if kind in ("bart", "t5") else TEXTS + SPECIAL
    expected = reference.logits(folder, texts).softmax(1)
    assert expected.std(0).max() > 0.01, "rows too alike to tell a mix-up"
    np.testing.assert_allclose(predicted(folder, texts), expected, atol=TOLERANCE)


def test_an_end_token_written_in_a_text_does_not_stop_the_other_rows(tmp_path: Path) -> None:
    """BART's head wants as many end tokens in every row of a batch, and raises ValueError otherwise."""
    folder = architectures.save(tmp_path, "bart", "AutoModelForSequenceClassification")
    with load(folder, scores="all") as engine:
        rows = engine.predict(SPECIAL).to_pylist()
    expected = reference.logits(folder, SPECIAL).softmax(1).numpy()
    for row, wanted in zip(rows, expected, strict=True):
        if row["error"] is None:
            np.testing.assert_allclose(row["scores"], wanted, atol=TOLERANCE)
    assert rows[-1]["error"] is None


def test_a_model_that_reads_the_last_position_is_not_padded_on_the_right(tmp_path: Path) -> None:
    """XLNet's head takes output[:, -1], so a row padded on the right would be read at its padding."""
    folder = architectures.save(tmp_path, "xlnet", "AutoModelForSequenceClassification")
    try:
        found = predicted(folder, TEXTS)
    except packhorse.PackhorseError:
        return  # refused: as good
    np.testing.assert_allclose(found, reference.logits(folder, TEXTS).softmax(1), atol=TOLERANCE)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return architectures.save_gpt2(tmp_path_factory.mktemp("gpt2"), eos="<|endoftext|>")


def test_gpt2_without_a_padding_token_equals_row_by_row(gpt2: Path) -> None:
    texts = [t for t in TEXTS if t.strip()]
    np.testing.assert_allclose(predicted(gpt2, texts), reference.logits(gpt2, texts).softmax(1), atol=TOLERANCE)


def test_gpt2_texts_that_end_in_the_end_of_text_token_equal_row_by_row(gpt2: Path) -> None:
    """Without a padding token transformers reads the very last token, be it the end of text or not."""
    texts = ["good film", "good film<|endoftext|>", "a very long and dull plot<|endoftext|><|endoftext|>"]
    np.testing.assert_allclose(predicted(gpt2, texts), reference.logits(gpt2, texts).softmax(1), atol=TOLERANCE)


def test_a_text_without_any_token_is_a_row_in_error(gpt2: Path) -> None:
    with load(gpt2) as engine:
        rows = engine.predict(["good", "", "bad"]).to_pylist()
    assert [row["error"] and row["error"]["kind"] for row in rows] == [None, "no_tokens", None]
    assert rows[1]["label"] is None and rows[1]["score"] is None


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_causal_body_pools_the_last_token_of_each_row(tmp_path: Path, kind: str) -> None:
    folder = architectures.save(tmp_path, kind, "AutoModel")
    with load(folder, pooling="last", normalize=True) as engine:
        assert engine.task == "feature-extraction"
        found = engine.embed(TEXTS)
    last = np.stack([h[-1].numpy() for h in reference.hidden_states(folder, TEXTS)])
    np.testing.assert_allclose(found, last / np.linalg.norm(last, axis=1, keepdims=True), atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["electra", "deberta-v2", "modernbert", "mpnet", "xlm-roberta", "qwen3"])
def test_a_body_averages_the_tokens_of_each_row(tmp_path: Path, kind: str) -> None:
    folder = architectures.save(tmp_path, kind, "AutoModel")
    with load(folder) as engine:
        found = engine.embed(TEXTS)
    expected = np.stack([h.mean(0).numpy() for h in reference.hidden_states(folder, TEXTS)])
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
