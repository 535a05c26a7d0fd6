"""multi-vector-embedding: a vector for each token, as late interaction (ColBERT) has documents and queries encoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import packhorse
from packhorse.errors import HostileModelError, ModelError, UsageError
from tests.cpu.embedders import HIDDEN, edit_json, save_body, write_modules
from tests.cpu.engine import load
from tests.cpu.late_interaction import DENSE, NATIVE, TRANSFORMER, Reference, native, pylate, stanford

TEXTS = [
    "the film was great", "a dull plot, not funny. at all!", "", " \n ", "日本語 и emoji 😀", "zip", "e\u0301 é ...",
    "\u05e9\u05dc\u05d5\u05dd the end", "good, bad! " * 40, "the film was great", "[MASK] it",
]  # fmt: skip
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_body(tmp_path_factory.mktemp("encoder") / "body")


def vectors_of(table: pa.Table) -> list[np.ndarray | None]:
    return [row if row is None else np.array(row) for row in table["embeddings"].to_pylist()]


def assert_equal(found: list[np.ndarray | None], expected: list[np.ndarray], tolerance: float = TOLERANCE) -> None:
    assert [None if row is None else row.shape for row in found] == [row.shape for row in expected]
    assert np.concatenate(expected).std(0).max() > 100 * tolerance, "vectors too alike to tell a mix-up"
    for row, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(row), wanted, atol=tolerance)


def predicted(folder: Path, texts: list[str] = TEXTS, **settings: Any) -> list[np.ndarray | None]:
    with load(folder, **{"precision": "fp32"} | settings) as engine:
        assert engine.task == "multi-vector-embedding"
        return vectors_of(engine.predict(texts))


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_a_plain_encoder_gives_its_hidden_states(body: Path, attention: str) -> None:
    with load(body, task="multi-vector-embedding", precision="fp32", attention=attention) as engine:
        assert (engine.plan.attention == "packed") == (attention == "auto")
        table = engine.predict([*TEXTS, None])  # type: ignore[list-item]
    reference = Reference(body)
    expected = [reference.vectors(reference.ids(text, 64), is_projected=False) for text in TEXTS]
    assert_equal(vectors_of(table)[:-1], expected)
    assert table["embeddings"][-1].as_py() is None
    assert table["error"][-1].as_py()["kind"] == "null_text"
    assert table.schema.field("embeddings").type == pa.list_(pa.list_(pa.float32(), HIDDEN))
    assert table.schema.field("embeddings").metadata == {b"packhorse.embedding_width": b"32"}


def test_vectors_as_they_are_and_in_half_the_bytes(body: Path) -> None:
    plain = predicted(body, task="multi-vector-embedding", normalize=False)
    assert max(np.linalg.norm(row, axis=1).max() for row in plain if row is not None) > 2
    found = predicted(body, task="multi-vector-embedding", embedding_format="float16")
    assert_equal(found, [row / np.linalg.norm(row, axis=1, keepdims=True) for row in plain if row is not None], 1e-3)


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_documents_of_a_pylate_folder(body: Path, tmp_path: Path, attention: str) -> None:
    folder = pylate(tmp_path / "model", body)
    reference = Reference(folder)
    assert_equal(predicted(folder, attention=attention), [reference.document(text, "[D] ", 18) for text in TEXTS])
    assert_equal(predicted(folder, prompt_name="document", max_length=40),
                 [reference.document(text, "[D] ", 40) for text in TEXTS])  # fmt: skip


@pytest.mark.parametrize("attends", [False, True])
def test_queries_of_a_pylate_folder(body: Path, tmp_path: Path, attends: bool) -> None:
    folder = pylate(tmp_path / "model", body, attend_to_expansion_tokens=attends)
    with load(folder, precision="fp32", prompt_name="query") as engine:
        assert (engine.plan.attention == "packed") == attends
        found = vectors_of(engine.predict(TEXTS))
    reference = Reference(folder)
    assert_equal(found, [reference.query(text, "[Q] ", 14, attends) for text in TEXTS])


def test_queries_that_are_not_filled_up(body: Path, tmp_path: Path) -> None:
    folder = pylate(tmp_path / "model", body, do_query_expansion=False, skiplist_words=["was"], query_prefix="me")
    reference = Reference(folder)
    found = predicted(folder, prompt_name="query")
    assert_equal(found, [reference.vectors(reference.ids(text, 14, "me")) for text in TEXTS])
    expected = [reference.document(text, "[D] ", 18, "")[[True] * 4 + [False] + [True] * 2] for text in TEXTS[:1]]
    assert_equal(predicted(folder, TEXTS[:1]), expected)


def test_a_marker_that_is_no_token_is_text(body: Path, tmp_path: Path) -> None:
    folder = pylate(tmp_path / "model", body, document_prefix="it. ")
    reference = Reference(folder)
    expected = [reference.vectors(reference.ids("it. zip", 18))[[True, True, False, True, True]]]
    assert_equal(predicted(folder, ["zip"]), expected)


def test_a_folder_of_stanfords_colbert(body: Path, tmp_path: Path) -> None:
    folder = stanford(tmp_path / "model", body, doc_maxlen=24, query_maxlen=16)
    reference = Reference(folder)
    assert_equal(predicted(folder), [reference.document(text, "zip", 24) for text in TEXTS])
    found = predicted(folder, prompt_name="query")
    assert_equal(found, [reference.query(text, "me", 16) for text in TEXTS])


EXPANSION: dict[str, Any] = {"strategy": "min", "attend": False, "token": "sad", "length": 12}


@pytest.mark.parametrize("expansion", [EXPANSION, {"strategy": "fixed", "attend": True, "length": 12}, None], ids=str)
def test_a_folder_of_sentence_transformers(body: Path, tmp_path: Path, expansion: dict[str, Any] | None) -> None:
    encoders = pytest.importorskip("sentence_transformers", reason="the reference")
    if not hasattr(encoders, "MultiVectorEncoder"):
        pytest.skip("this sentence-transformers has no MultiVectorEncoder")
    folder = native(tmp_path / "model", body, query_expansion=expansion)
    encoder = encoders.MultiVectorEncoder(str(folder), device="cpu")
    assert_equal(predicted(folder), encoder.encode_document(TEXTS, convert_to_numpy=True))
    found = predicted(folder, prompt_name="query")
    assert_equal(found, encoder.encode_query(TEXTS, convert_to_numpy=True))


def windows_of(ids: list[int], room: int, stride: int) -> list[list[int]]:
    return [ids[start : start + room] for start in range(0, max(len(ids) - stride, 1), room - stride)]


@pytest.mark.parametrize("stride", [0, 5])
def test_windows_are_read_as_one_text(body: Path, tmp_path: Path, stride: int) -> None:
    folder = pylate(tmp_path / "model", body, skiplist_words=[])
    reference = Reference(folder)
    texts = ["it is very long " * 12, "zip", "", "made me read " * 9]
    marker = reference.tokenizer.convert_tokens_to_ids("[D] ")
    expected = []
    for text in texts:
        parts = windows_of(reference.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids, 13, stride)
        found = [reference.vectors([2, marker, *part, 3]) for part in parts]
        texts_of = [vectors[2 + stride * (i > 0) : -1] for i, vectors in enumerate(found)]
        expected.append(np.concatenate([found[0][:2], *texts_of, found[-1][-1:]]))
    assert_equal(predicted(folder, texts, long="windows", stride=stride, max_length=16), expected)


def test_a_run_and_what_cannot_hold_it(body: Path, tmp_path: Path) -> None:
    folder = pylate(tmp_path / "model", body)
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate([*TEXTS, None])]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    source = str(tmp_path / "in.jsonl")
    settings: dict[str, Any] = {"devices": "cpu", "precision": "fp32", "shard_rows": 5}
    for name in ("o.parquet", "o.jsonl"):
        packhorse.run(folder, source, str(tmp_path / name), **settings)
    with pytest.raises(UsageError, match="npy holds embeddings, and this model does multi-vector-embedding"):
        packhorse.run(folder, source, str(tmp_path / "o.npy"), **settings)
    table = pq.read_table(tmp_path / "o.parquet")
    reference = Reference(folder)
    assert_equal(vectors_of(table)[:-1], [reference.document(text, "[D] ", 18) for text in TEXTS])
    read = [json.loads(line)["embeddings"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    values = [row and np.array(row, np.float32).tolist() for row in read]
    assert values == table["embeddings"].to_pylist()


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "int8": ({"embedding_format": "int8"}, "--embedding-format int8: multi-vector-embedding has float32 and float16"),
    "prompt": ({"prompt_name": "querry"}, "no such prompt; it has 'query', 'document'.*query"),
    "windows": ({"prompt_name": "query", "long": "windows"}, "a query is filled up to 14 tokens"),
    "length": ({"prompt_name": "query", "max_length": 20}, "--max-length 20: this model's queries have 14 tokens"),
    "pooling": ({"pooling": "cls"}, "--pooling: belongs to feature-extraction"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(body: Path, tmp_path: Path, case: str) -> None:
    settings, words = MISTAKES[case]
    with pytest.raises(UsageError, match=words):
        load(pylate(tmp_path / "model", body), **settings)


def test_a_prompt_that_is_text_has_no_windows(body: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only the first window has it"):
        load(native(tmp_path / "model", body), long="windows").predict(["zip"])


def test_modules_that_are_not_computed_are_refused(body: Path, tmp_path: Path) -> None:
    folder = native(tmp_path / "model", body, {"keep_only_token_ids": [7]})
    with pytest.raises(ModelError, match="keep_only_token_ids"):
        load(folder)
    for kind, error in ((NATIVE.format("x.HierarchicalPooling"), ModelError), ("mine.Dense", HostileModelError)):
        write_modules(folder, [(TRANSFORMER, ""), (kind, "1_Dense")])
        with pytest.raises(error, match=kind):
            load(folder)
    write_modules(folder, [(TRANSFORMER, ""), (DENSE, "1_Dense")])
    edit_json(folder / "1_Dense" / "config.json", module_input_name="sentence_embedding")
    with pytest.raises(ModelError, match="only on the token embeddings"):
        load(folder)
    edit_json(folder / "1_Dense" / "config.json", module_input_name="token_embeddings", in_features=99)
    with pytest.raises(ModelError, match="takes vectors of 99 numbers, and the model's have 32"):
        load(folder)


def test_shards_end_before_their_vectors_are_too_many() -> None:
    from packhorse.data import Chunk, Position, Reduction
    from packhorse.readers.cut import cut_shards, text_output

    rows = 64
    table = pa.table({"text": ["x" * 100_000] * rows})
    chunk = Chunk(table, 0, np.arange(rows + 1), np.full(rows, 100_000))
    of_text = text_output(Reduction("vectors", 128), 128)
    shards = list(cut_shards([chunk], Position(0, 0), 0, 0, ["text"], None, 512, None, of_text))
    assert [shard.shard.num_rows for shard in shards] == [20, 20, 20, 4]  # 2 MiB of text: 256 MiB of vectors
    assert text_output(Reduction("pool", 128), 128) == 0
