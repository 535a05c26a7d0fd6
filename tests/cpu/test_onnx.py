"""The ONNX Runtime backend against plain transformers, row by row in fp32: graphs that are exported on the fly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packhorse.config import EngineConfig
from packhorse.data import Batch, Tokens
from packhorse.errors import BatchRefusedError, UsageError
from packhorse.loading import Loader
from tests.cpu import architectures, embedders, reference
from tests.cpu.engine import load
from tests.models import save_classifier

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TEXTS = reference.texts_of_all_lengths()
TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of these tests alone."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "packhorse" / "onnx"


def scores(folder: Path, texts: list[str] = TEXTS, pairs: list[str] | None = None, **settings: Any) -> np.ndarray:
    """[n, labels]."""
    with load(folder, backend="onnx", scores="all", **settings) as engine:
        return np.array(engine.predict(texts, pairs)["scores"].to_pylist(), np.float32)


def expected(
    folder: Path, texts: list[str] = TEXTS, pairs: list[str] | None = None, max_length: int = 64
) -> np.ndarray:
    return reference.logits(folder, texts, pairs, max_length).softmax(1).numpy()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    cosine: np.ndarray = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return cosine


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_classifiers_equal_transformers_row_by_row(classifiers: dict[str, Path], kind: str) -> None:
    wanted = expected(classifiers[kind])
    assert wanted.std(0).max() > 100 * TOLERANCE
    np.testing.assert_allclose(scores(classifiers[kind]), wanted, atol=TOLERANCE)


def test_pairs_equal_transformers_row_by_row(bert: Path) -> None:
    pairs = TEXTS[::-1]
    np.testing.assert_allclose(scores(bert, pairs=pairs), expected(bert, pairs=pairs), atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["modernbert", "qwen3"])
def test_other_architectures_equal_transformers_row_by_row(kind: str, tmp_path: Path) -> None:
    """A sliding window and rotary positions; a causal model with fewer key heads that reads its last token."""
    folder = architectures.save(tmp_path / kind, kind, "AutoModelForSequenceClassification")
    np.testing.assert_allclose(scores(folder), expected(folder), atol=TOLERANCE)


def test_rows_of_512_tokens_and_of_one(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path, max_position_embeddings=512, initializer_range=0.6)
    embedders.edit_json(folder / "tokenizer_config.json", model_max_length=512)
    texts = ["good film " * 300, "a bad row " * 180, "the end"]
    np.testing.assert_allclose(scores(folder, texts), expected(folder, texts, max_length=512), atol=TOLERANCE)

    import torch

    model, _ = reference.load(folder)
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([[7]])).logits.softmax(1).numpy()
    one = Batch(Tokens(np.array([7], np.int32), np.array([0, 1], np.int64)))
    loader = Loader(EngineConfig(model=str(folder), backend="onnx", devices="cpu"))
    np.testing.assert_allclose(loader.model("fp32").forward(one).numpy(), wanted, atol=TOLERANCE)
    loader.close()


def test_embeddings_with_dense_layer_and_prompt_equal_sentence_transformers(encoder: Path, tmp_path: Path) -> None:
    folder = embedders.save_today(
        tmp_path / "model", encoder, pooling=("cls", "max", "mean"), after=[embedders.dense(96, 8)],
        include_prompt=False, prompts={"query": "find: "}, default_prompt_name="query",
    )  # fmt: skip
    with load(folder, backend="onnx") as engine:
        values = engine.embed(TEXTS)
    np.testing.assert_allclose(values, embedders.encoded(folder, TEXTS), atol=TOLERANCE)


def test_pooling_that_was_asked_for(encoder: Path) -> None:
    wanted = np.stack([states[-1].numpy() for states in reference.hidden_states(encoder, TEXTS)])
    with load(encoder, backend="onnx", pooling="last") as engine:
        np.testing.assert_allclose(engine.embed(TEXTS), wanted, atol=TOLERANCE)


def test_int8_embeddings_are_close_and_a_row_has_the_values_that_it_has_alone(encoder: Path) -> None:
    with load(encoder, backend="onnx", precision="fp32") as engine:
        wanted = engine.embed(TEXTS)
    with load(encoder, backend="onnx", precision="int8") as engine:
        together = engine.embed(TEXTS)
        alone = np.concatenate([engine.embed([text]) for text in TEXTS[:12]])
        assert "int8" in " ".join(engine.plan.notes)
    assert cosines(together, wanted).min() > 0.995
    assert cosines(together[:12], alone).min() > 0.999


def test_int8_scores_are_close(bert: Path) -> None:
    values = scores(bert, precision="int8")
    assert cosines(values, expected(bert)).min() > 0.9
    assert np.abs(values - expected(bert)).mean() < 0.05


def test_a_model_is_exported_once(bert: Path, cache: Path) -> None:
    scores(bert)
    before = {p: p.stat().st_mtime_ns for p in cache.rglob("*")}
    again = scores(bert)
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*")} == before
    assert not list(cache.glob("*.tmp"))
    np.testing.assert_allclose(again, expected(bert), atol=TOLERANCE)


def test_a_cache_that_cannot_be_written_is_done_without(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    np.testing.assert_allclose(scores(bert), expected(bert), atol=TOLERANCE)
    assert not list(tmp_path.glob("packhorse-onnx-*"))


def test_exporting_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = save_classifier(tmp_path, num_labels=2)
    capfd.readouterr()
    scores(folder, ["a good film"])
    assert capfd.readouterr() == ("", "")


def test_the_plan_says_how_it_runs(bert: Path) -> None:
    with load(bert, backend="onnx") as engine:
        assert (engine.plan.backend, engine.plan.device, engine.plan.precision) == ("onnx", "cpu", "fp32")
        assert engine.plan.attention == "fused"
        assert engine.plan.max_length == 64
        assert "MultiHeadAttention" in " ".join(engine.plan.notes)
        assert "onnxruntime" in engine.plan.versions


def test_a_token_outside_the_vocabulary_is_refused(bert: Path) -> None:
    loader = Loader(EngineConfig(model=str(bert), backend="onnx", devices="cpu"))
    batch = Batch(Tokens(np.array([2, 9_999, 3], np.int32), np.array([0, 3], np.int64)))
    with pytest.raises(BatchRefusedError, match="9999"):
        loader.model("fp32").forward(batch)
    loader.close()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_processor_has_no_half_precision_kernels(bert: Path, precision: str) -> None:
    with pytest.raises(UsageError, match=rf"--precision {precision}.*fp32, int8.*--backend torch"):
        load(bert, backend="onnx", precision=precision)


def test_a_model_that_cannot_be_exported_says_so(tmp_path: Path) -> None:
    from packhorse.errors import ModelError

    folder = architectures.save(tmp_path / "t5", "t5", "AutoModelForSequenceClassification")
    with pytest.raises(ModelError, match="t5"):
        load(folder, backend="onnx")
