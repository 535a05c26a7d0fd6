"""A model exported to a folder, and that folder run in the place of the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import packhorse
from packhorse.errors import ModelError, UsageError
from packhorse.exporting import export
from tests.cpu import embedders, reference
from tests.cpu.engine import load

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TEXTS = reference.texts_of_all_lengths(24)
TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def test_an_exported_classifier_runs_as_the_model(bert: Path, tmp_path: Path) -> None:
    exported = export(str(bert), tmp_path / "model", "onnx", devices="cpu")
    names = {p.name for p in exported.folder.iterdir()}
    assert {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert "model.safetensors" not in names
    assert (exported.backend, exported.precision) == ("onnx", "fp32")
    assert exported.num_bytes == sum(p.stat().st_size for p in exported.folder.rglob("*") if p.is_file())

    packhorse.run(
        str(exported.folder), {"text": TEXTS}, str(tmp_path / "out.parquet"), devices="cpu", scores="all", quiet=True
    )
    table = pq.read_table(tmp_path / "out.parquet")
    wanted = reference.logits(bert, TEXTS).softmax(1).numpy()
    np.testing.assert_allclose(np.array(table["scores"].to_pylist()), wanted, atol=TOLERANCE)
    assert table["label"].to_pylist() == [f"LABEL_{i}" for i in wanted.argmax(1)]


@pytest.fixture(scope="module")
def sentences(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A sentence-transformers folder with a Dense layer, and its export."""
    from sentence_transformers.sentence_transformer.modules import Normalize

    root = tmp_path_factory.mktemp("sentences")
    folder = embedders.save_today(root / "model", encoder, after=[embedders.dense(32, 8), Normalize()])
    return folder, export(str(folder), root / "exported", "onnx", devices="cpu").folder


def test_an_exported_embedder_does_not_pool_twice(sentences: tuple[Path, Path]) -> None:
    folder, exported = sentences
    with load(exported) as engine:
        assert (engine.plan.backend, engine.task) == ("onnx", "feature-extraction")
        values = engine.embed(TEXTS)
    assert values.shape == (len(TEXTS), 8)
    np.testing.assert_allclose(values, embedders.encoded(folder, TEXTS), atol=TOLERANCE)


@pytest.mark.parametrize(("settings", "named"), [({"normalize": False}, "post"), ({"pooling": "cls"}, "pooling")])
def test_a_reduction_that_is_not_the_exported_one_is_refused(
    sentences: tuple[Path, Path], settings: dict[str, object], named: str
) -> None:
    with pytest.raises(ModelError, match=rf"model\.onnx: was exported with {named}"):
        load(sentences[1], **settings)


def test_an_int8_export_stays_int8(encoder: Path, tmp_path: Path) -> None:
    exported = export(str(encoder), tmp_path / "model", "onnx", "int8", devices="cpu")
    with load(exported.folder, backend="onnx") as engine:
        values, notes = engine.embed(TEXTS), " ".join(engine.plan.notes)
    assert "int8" in notes
    with load(encoder) as engine:
        wanted = engine.embed(TEXTS)
    cosine = (values * wanted).sum(1) / np.linalg.norm(values, axis=1) / np.linalg.norm(wanted, axis=1)
    assert 0.995 < cosine.min() < 0.9999999


def test_metadata_of_another_shape_is_named(sentences: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    import onnx

    folder = Path(shutil.copytree(sentences[1], tmp_path / "model"))
    model = onnx.load(folder / "model.onnx")
    assert set(json.loads(model.metadata_props[0].value)) >= {"reduction", "precision", "versions", "max_length"}
    model.metadata_props[0].value = '{"cost": "free"}'
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(ModelError, match=r"model\.onnx: its metadata 'packhorse'"):
        load(folder)


def test_a_folder_that_holds_something_is_left_alone(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(UsageError, match="not an empty folder"):
        export(str(bert), tmp_path, "onnx")


@pytest.mark.parametrize("backend", ["torch", "null"])
def test_a_backend_that_writes_nothing_says_so(bert: Path, tmp_path: Path, backend: str) -> None:
    with pytest.raises(UsageError, match=rf"--backend {backend}: models are written for onnx"):
        export(str(bert), tmp_path / "model", backend)
    assert not (tmp_path / "model").exists()
