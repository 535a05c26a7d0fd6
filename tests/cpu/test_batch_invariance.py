"""What a row is batched with changes nothing: alone, among others, after a restart, beside another engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import packhorse
from tests.cpu import reference
from tests.cpu.engine import load
from tests.models import save_classifier

TEXTS = reference.texts_of_all_lengths(64)
TOLERANCE = 1e-5


def scores(engine: packhorse.Engine, texts: list[str]) -> np.ndarray:
    return np.array(engine.predict(texts)["scores"].to_pylist(), np.float32)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrix products large enough that torch splits them over threads, which changes the last bits."""
    folder = tmp_path_factory.mktemp("wide")
    return save_classifier(folder, hidden_size=256, intermediate_size=1_024, initializer_range=0.1)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("batching", ["padded", "fixed"])
def test_exact_rows_alone_equal_rows_in_shuffled_batches(
    classifiers: dict[str, Path], kind: str, batching: str
) -> None:
    order = np.random.default_rng(3).permutation(len(TEXTS))
    with load(classifiers[kind], exact=True, scores="all") as engine:
        alone = np.concatenate([scores(engine, [text]) for text in TEXTS])
    for batch_size in (1, 7, 32):
        settings = {"exact": True, "scores": "all", "batching": batching, "batch_size": batch_size}
        with load(classifiers[kind], **settings) as engine:
            shuffled = scores(engine, [TEXTS[i] for i in order])
        np.testing.assert_allclose(shuffled, alone[order], atol=TOLERANCE)


def test_two_exact_runs_write_the_same_bytes(wide: Path, tmp_path: Path) -> None:
    for out in ("one", "two"):
        packhorse.run(wide, {"text": TEXTS}, tmp_path / out, exact=True, scores="all", shard_rows=20, devices="cpu")
    parts = [sorted((tmp_path / out).glob("part-*")) for out in ("one", "two")]
    assert [p.read_bytes() for p in parts[0]] == [p.read_bytes() for p in parts[1]]
    assert len(parts[0]) == 4


def test_an_exact_engine_stays_exact_beside_another_engine(wide: Path) -> None:
    with load(wide, exact=True, scores="all") as engine:
        before = scores(engine, TEXTS)
        with load(wide):
            np.testing.assert_array_equal(scores(engine, TEXTS), before)


def test_duplicates_have_the_value_of_the_row_they_repeat(bert: Path) -> None:
    texts = TEXTS * 3
    with load(bert, scores="all") as engine:
        np.testing.assert_array_equal(scores(engine, texts), np.tile(scores(engine, TEXTS), (3, 1)))
    with load(bert, scores="all", dedup=False) as engine:
        expected = reference.logits(bert, TEXTS).softmax(1)
        np.testing.assert_allclose(scores(engine, texts), np.tile(expected, (3, 1)), atol=TOLERANCE)
