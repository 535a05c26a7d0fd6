"""sparse-embedding: SPLADE's weights of a masked language model, as sentence-transformers' SparseEncoder gives them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import packhorse
from packhorse.errors import HostileModelError, ModelError, UsageError
from tests.cpu.command import forked
from tests.cpu.embedders import MAX_LENGTH, edit_json, save_body, write_json, write_modules
from tests.cpu.engine import load
from tests.models import save_tokenizer

TEXTS = [
    "the film was great", "a dull plot, not funny. at all", "", " \n ", "日本語 и emoji 😀", "zip", "e\u0301 é",
    "\u05e9\u05dc\u05d5\u05dd the end", "good, bad! " * 40, "the film was great", "it is " + "very " * 30 + "long",
]  # fmt: skip
VOCABULARY = 200
TOLERANCE = 1e-4
OLD = "sentence_transformers.sparse_encoder.models.{}"
TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
POOLING = "sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling"


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model with random weights, without anything of sentence-transformers."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("masked")
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=MAX_LENGTH, initializer_range=0.3,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    save_tokenizer(folder, model_max_length=MAX_LENGTH)
    return folder


def splade(folder: Path, masked: Path, strategy: str, activation: str, **config: Any) -> Path:
    """A SparseEncoder's folder, which shares the model's files."""
    folder.mkdir()
    for file in masked.iterdir():
        (folder / file.name).symlink_to(file)
    write_modules(folder, [(TRANSFORMER, ""), (POOLING, "1_SpladePooling")])
    pooling = {"pooling_strategy": strategy, "activation_function": activation, "word_embedding_dimension": None}
    write_json(folder / "1_SpladePooling" / "config.json", pooling)
    write_json(folder / "sentence_bert_config.json", {"transformer_task": "fill-mask"} | MODALITY)
    write_json(folder / "config_sentence_transformers.json", {"model_type": "SparseEncoder"} | config)
    return folder


MODALITY = {
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "module_output_name": "token_embeddings",
}


def dense(table: pa.Table) -> np.ndarray:
    """[rows, V] of a table's lists, which have to be ascending, and of weights above 0; NaN where null."""
    made = np.zeros((len(table), VOCABULARY), np.float32)
    for i, (indices, values) in enumerate(zip(table["indices"].to_pylist(), table["values"].to_pylist(), strict=True)):
        if indices is None:
            assert values is None
            made[i] = np.nan
            continue
        assert indices == sorted(set(indices))
        assert min(values, default=1) > 0
        made[i, indices] = values
    return made


def encoded(folder: Path, texts: list[str]) -> np.ndarray:
    """[n, V] by sentence-transformers."""
    from sentence_transformers import SparseEncoder

    values: np.ndarray = SparseEncoder(str(folder), device="cpu").encode(texts, convert_to_sparse_tensor=False).numpy()
    return values


def one_by_one(folder: Path, rows: list[list[int]]) -> np.ndarray:
    """[n, V] of rows of ids, each alone, by the formula."""
    import torch
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = [model(input_ids=torch.tensor([ids])).logits[0] for ids in rows]
        return np.stack([np.log1p(np.maximum(x.numpy(), 0)).max(0) for x in logits])


def ids_of(folder: Path, text: str, **settings: Any) -> list[int]:
    from transformers import AutoTokenizer

    ids: list[int] = AutoTokenizer.from_pretrained(folder)(text, **settings)["input_ids"]
    return ids


def assert_equal(found: np.ndarray, expected: np.ndarray) -> None:
    assert expected.std(0).max() > 100 * TOLERANCE, "rows too alike to tell a mix-up"
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=1e-5)


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize(("strategy", "activation"), [("max", "relu"), ("sum", "log1p_relu")])
def test_a_sparse_encoder_is_honoured(
    masked: Path, tmp_path: Path, strategy: str, activation: str, attention: str
) -> None:
    folder = splade(tmp_path / "model", masked, strategy, activation)
    with load(folder, attention=attention, precision="fp32") as engine:
        assert engine.task == "sparse-embedding"
        assert (engine.plan.attention == "packed") == (attention == "auto")
        found = engine.predict(TEXTS)
    assert_equal(dense(found), encoded(folder, TEXTS))


def test_a_plain_masked_model_gives_what_each_row_alone_gives(masked: Path) -> None:
    with load(masked, task="sparse-embedding", precision="fp32") as engine:
        found = engine.predict([*TEXTS[:3], None, *TEXTS[3:]])  # type: ignore[list-item]
    rows = [ids_of(masked, text, truncation=True) for text in TEXTS]
    values = dense(found)
    assert np.isnan(values[3]).all()
    assert found["error"][3].as_py()["kind"] == "null_text"
    assert_equal(np.delete(values, 3, 0), one_by_one(masked, rows))
    assert found.schema.field("indices").type == pa.list_(pa.int32())
    assert found.schema.field("values").type == pa.list_(pa.float32())
    assert found.schema.field("indices").metadata == {b"packhorse.embedding_width": b"200"}


def test_only_the_largest_weights_are_kept(masked: Path, tmp_path: Path) -> None:
    folder = splade(tmp_path / "model", masked, "max", "relu", max_active_dims=12)
    expected = encoded(folder, TEXTS)
    assert ((expected > 0).sum(1) == 12).all()
    with load(folder, precision="fp32") as engine:
        assert_equal(dense(engine.predict(TEXTS)), expected)
    with load(folder, precision="fp32", top_k=3) as engine:
        found = dense(engine.predict(TEXTS))
    assert ((found > 0).sum(1) == 3).all()
    np.testing.assert_allclose(np.sort(found, 1)[:, -3:], np.sort(expected, 1)[:, -3:], atol=TOLERANCE)


def test_windows_have_the_largest_weights_of_each(masked: Path) -> None:
    long = ["good, bad! " * 40, "zip", "it is very long " * 20]
    with load(masked, task="sparse-embedding", precision="fp32", long="windows", stride=10, max_length=32) as engine:
        found = dense(engine.predict(long))
    for values, text in zip(found, long, strict=True):
        ids = ids_of(masked, text, add_special_tokens=False)
        starts = range(0, max(len(ids) - 10, 1), 20)
        windows = [[2, *ids[start : start + 30], 3] for start in starts]
        np.testing.assert_allclose(values, one_by_one(masked, windows).max(0), atol=TOLERANCE)


def test_a_sum_has_no_overlapping_windows(masked: Path, tmp_path: Path) -> None:
    folder = splade(tmp_path / "model", masked, "sum", "relu")
    with pytest.raises(UsageError, match="--stride 5: this model adds the weights"):
        load(folder, long="windows", stride=5)
    with load(folder, precision="fp32", long="windows", max_length=12) as engine, load(folder, max_length=12) as short:
        both = dense(engine.predict(["very good film not very sad in the end made me read"]))
        parts = dense(short.predict(["very good film not very sad in the end made", "me read"]))
    np.testing.assert_allclose(both[0], parts.sum(0), rtol=1e-4, atol=TOLERANCE)


MODULES = {
    "static": ([OLD.format("SparseStaticEmbedding")], ModelError, "asymmetric encoder"),
    "router": (["sentence_transformers.base.modules.router.Router", POOLING], ModelError, "asymmetric"),
    "auto encoder": ([TRANSFORMER, OLD.format("SparseAutoEncoder")], ModelError, "SparseAutoEncoder"),
    "order": ([POOLING, TRANSFORMER], ModelError, "SpladePooling > Transformer; supported is a Transformer"),
    "code": ([TRANSFORMER, "mine.Pooling"], HostileModelError, "mine.Pooling"),
}


@pytest.mark.parametrize("case", MODULES)
def test_other_modules_are_refused_by_name(masked: Path, tmp_path: Path, case: str) -> None:
    kinds, error, words = MODULES[case]
    folder = splade(tmp_path / "model", masked, "max", "relu")
    write_modules(folder, [(kind, f"{i}_x" if i else "") for i, kind in enumerate(kinds)])
    with pytest.raises(error, match=words):
        load(folder)


def test_another_pooling_is_refused_by_name(masked: Path, tmp_path: Path) -> None:
    folder = splade(tmp_path / "model", masked, "mean", "relu")
    with pytest.raises(ModelError, match="pooling_strategy 'mean'"):
        load(folder)


def test_an_encoder_without_a_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no weights for cls"):
        load(save_body(tmp_path / "body"), task="sparse-embedding")


def test_modules_of_older_folders(masked: Path, tmp_path: Path) -> None:
    folder = splade(tmp_path / "model", masked, "max", "relu")
    write_modules(folder, [(OLD.format("MLMTransformer"), ""), (OLD.format("SpladePooling"), "1_SpladePooling")])
    edit_json(folder / "config_sentence_transformers.json", prompts={"query": "very ", "document": ""})
    with load(folder, precision="fp32", prompt_name="query") as engine, load(folder, precision="fp32") as plain:
        assert engine.predict(["good film"])["values"] == plain.predict(["very good film"])["values"]


def test_files_and_what_cannot_hold_it(masked: Path, tmp_path: Path) -> None:
    folder = splade(tmp_path / "model", masked, "max", "relu")
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate([*TEXTS, None])]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    settings: dict[str, Any] = {"input": str(tmp_path / "in.jsonl"), "model": str(folder), "precision": "fp32"}
    for name in ("o.parquet", "o.jsonl"):
        packhorse.run(output=str(tmp_path / name), devices="cpu", **settings)
    with pytest.raises(UsageError, match="npy holds embeddings, and this model does sparse-embedding"):
        packhorse.run(output=str(tmp_path / "o.npy"), devices="cpu", **settings)
    table = pq.read_table(tmp_path / "o.parquet")
    assert_equal(dense(table)[:-1], encoded(folder, TEXTS))
    read = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["indices"] for row in read] == table["indices"].to_pylist()
    values = [row["values"] and np.array(row["values"], np.float32).tolist() for row in read]
    assert values == table["values"].to_pylist()


def test_the_command_writes_csv(masked: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('text,id\nthe film was great,1\n"",2\n')
    done = forked(
        "run", masked, tmp_path / "in.csv", "-o", tmp_path / "o.csv", "--task", "sparse-embedding", "--top-k", 2
    )
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "o.csv").open()))
    assert [len(json.loads(row["indices"])) for row in rows] == [2, 2]
    assert [len(json.loads(row["values"])) for row in rows] == [2, 2]


def test_rows_without_any_weight_are_empty_and_known() -> None:
    """Rows of 1 to 700 tokens, whose logits are made in pieces."""
    import torch

    from packhorse.backends.torch.vocabulary import reduce
    from packhorse.data import Reduction, Tokens, offsets_of
    from packhorse.sequences import num_values

    torch.manual_seed(0)
    lengths = torch.tensor([3, 700, 1, 2, 40])
    logits = torch.randn(int(lengths.sum()), 50)
    logits[703:704], logits[706:] = -1.0, -2.0  # the third row and the last
    none = torch.empty(0, dtype=torch.int64)
    for strategy in ("max", "sum"):
        reduction = Reduction("sparse", 3, pooling=(strategy,))
        found = reduce(reduction, logits, lengths, none, none, lambda some: some).numpy()
        weights = np.zeros((5, 50), np.float32)
        np.add.at(weights, (found[:, 0].astype(int), found[:, 1].astype(int)), found[:, 2])
        rows = np.split(np.log1p(np.maximum(logits.numpy(), 0)), np.cumsum(lengths.numpy())[:-1])
        expected = np.stack([row.max(0) if strategy == "max" else row.sum(0) for row in rows])
        np.testing.assert_allclose(weights, expected, rtol=1e-4)
        tokens = Tokens(np.zeros(746, np.int32), offsets_of(lengths.numpy()))
        counts = num_values(reduction, tokens, found)
        assert counts is not None
        assert counts.tolist() == np.maximum((expected > 0).sum(1), 1).tolist()


@pytest.mark.parametrize("strategy", ["max", "sum"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_no_number_stays_with_its_row(strategy: str, wrong: float) -> None:
    """A sum over tokens is a product with zeros and ones: 0 x NaN is NaN."""
    import torch

    from packhorse.backends.torch.vocabulary import reduce
    from packhorse.data import Reduction

    lengths = torch.tensor([3, 2, 4])
    logits = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    logits[4, 1] = wrong
    nothing = torch.empty(0, dtype=torch.int64)
    entries = reduce(
        Reduction("sparse", 3, pooling=(strategy,)), logits, lengths, nothing, nothing, lambda hidden: hidden
    ).numpy()
    found = np.zeros((3, 5), np.float32)
    found[entries[:, 0].astype(int), entries[:, 1].astype(int)] = entries[:, 2]
    weights = np.log1p(np.maximum(logits.numpy(), 0))
    for row, (begin, end) in enumerate([(0, 3), (3, 5), (5, 9)]):
        wanted = getattr(weights[begin:end], strategy)(0)
        assert np.isfinite(found[row]).all() == (row != 1)
        if row != 1:
            np.testing.assert_allclose(found[row], wanted, rtol=1e-6)
