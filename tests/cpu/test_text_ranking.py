"""Cross-encoders against sentence-transformers' CrossEncoder.predict, and their folders as it writes and wrote them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import packhorse
from packhorse.errors import HostileModelError, ModelError, UsageError
from tests.cpu import reference
from tests.cpu.embedders import edit_json
from tests.cpu.engine import load
from tests.models import save_classifier

TASK = "text-ranking"
DOCUMENTS = [*reference.texts_of_all_lengths(24), "العربية", "e\u0301 🙂🙂"]
QUERIES = DOCUMENTS[::-1]
TOLERANCE = 1e-4
ACTIVATIONS = ["linear.Identity", "activation.Sigmoid", "activation.Tanh", "activation.GELU", "activation.SiLU",
               "activation.ReLU"]  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sequence classifier of one label whose logits lie around 0; transformers' own folder."""
    from safetensors.torch import load_file, save_file

    folder = save_classifier(tmp_path_factory.mktemp("plain") / "bert", num_labels=1)
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] -= reference.logits(folder, QUERIES, DOCUMENTS).median()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def today(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As sentence-transformers saves it today: modules.json, activation and length of its own."""
    import torch
    from sentence_transformers import CrossEncoder

    folder = tmp_path_factory.mktemp("today") / "ranker"
    CrossEncoder(str(plain), max_length=40, activation_fn=torch.nn.Tanh(), device="cpu").save_pretrained(str(folder))
    return folder


def copied(folder: Path, to: Path, **config: Any) -> Path:
    shutil.copytree(folder, to)
    edit_json(to / "config.json", **config)
    return to


def expected(folder: Path) -> np.ndarray:
    """[rows] or [rows, labels], by sentence-transformers."""
    from sentence_transformers import CrossEncoder

    pairs = list(zip(QUERIES, DOCUMENTS, strict=True))
    scores: np.ndarray = CrossEncoder(str(folder), device="cpu").predict(pairs)
    assert np.ptp(scores) > 100 * TOLERANCE, "rows too alike to tell a mix-up"
    return scores


def assert_as_expected(table: pa.Table, wanted: np.ndarray, column: str = "score") -> None:
    assert table["error"].null_count == len(table)
    np.testing.assert_allclose(np.array(table[column].to_pylist()), wanted, atol=TOLERANCE)


def test_a_folder_of_today_in_every_entrance(today: Path, tmp_path: Path) -> None:
    wanted = expected(today)
    with load(today) as engine:
        assert (engine.task, engine.plan.max_length, engine.plan.attention) == (TASK, 40, "packed")
        assert_as_expected(engine.predict(QUERIES, DOCUMENTS), wanted)
        engine.run({"query": QUERIES, "passage": DOCUMENTS}, str(tmp_path / "out/"), shard_rows=10)
    assert_as_expected(pq.read_table(tmp_path / "out"), wanted)
    lines = [json.dumps({"a": q, "b": d}) for q, d in zip(QUERIES, DOCUMENTS, strict=True)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    report = packhorse.run(
        today, tmp_path / "in.jsonl", tmp_path / "out.parquet", text_column="a", pair_column="b", devices="cpu"
    )
    assert_as_expected(pq.read_table(tmp_path / "out.parquet"), wanted)
    lost = reference.tokens_lost(today, QUERIES, DOCUMENTS, 40)
    assert report.counters.truncated_rows == sum(n > 0 for n in lost) > 3
    assert report.counters.truncated_tokens == sum(lost)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activation_of_config_json(plain: Path, tmp_path: Path, activation: str) -> None:
    own = {"activation_fn": f"torch.nn.modules.{activation}", "version": "4.1.0"}
    folder = copied(plain, tmp_path / "ranker", sentence_transformers=own)
    with load(folder) as engine:
        assert engine.task == TASK
        assert_as_expected(engine.predict(QUERIES, DOCUMENTS), expected(folder))


def test_the_activation_of_older_folders(plain: Path, tmp_path: Path) -> None:
    name = "torch.nn.modules.linear.Identity"
    folder = copied(plain, tmp_path / "ranker", sbert_ce_default_activation_function=name)
    with load(folder) as engine:
        assert_as_expected(engine.predict(QUERIES, DOCUMENTS), expected(folder))


def test_a_plain_folder_classifies_unless_it_is_asked_to_rank(plain: Path) -> None:
    with load(plain) as engine:
        assert engine.task == "text-classification"
    with load(plain, task=TASK) as engine:
        assert_as_expected(engine.predict(QUERIES, DOCUMENTS), expected(plain))  # through a sigmoid


@pytest.mark.parametrize("settings", [{}, {"attention": "sdpa"}], ids=["packed", "padded"])
def test_several_labels_have_a_list_of_scores(bert: Path, settings: dict[str, Any]) -> None:
    with load(bert, task=TASK, **settings) as engine:
        table = engine.predict(QUERIES, DOCUMENTS)
    assert_as_expected(table, expected(bert), "scores")
    assert json.loads(table.schema.field("scores").metadata[b"labels"]) == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_an_activation_that_is_code_from_elsewhere_is_refused(plain: Path, today: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("os.system", "torch.hub.load", "torch.nn.modules.linear.Linear")):
        config = {"sentence_transformers": {"activation_fn": name}}
        with pytest.raises(HostileModelError, match=f"config.json: activation_fn '{name}' is not one of torch.nn's"):
            load(copied(plain, tmp_path / str(number), **config))
    folder = copied(today, tmp_path / "today")
    edit_json(folder / "config_sentence_transformers.json", activation_fn="builtins.print")
    with pytest.raises(HostileModelError, match=r"config_sentence_transformers\.json: activation_fn 'builtins.print'"):
        load(folder)


def test_other_modules_are_refused_by_name(today: Path, tmp_path: Path) -> None:
    folder = copied(today, tmp_path / "ranker")
    kinds = ("base.modules.transformer.Transformer", "cross_encoder.modules.logit_score.LogitScore")
    modules = [
        {"idx": i, "name": str(i), "path": "", "type": f"sentence_transformers.{k}"} for i, k in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="modules Transformer > LogitScore is not supported"):
        load(folder)


def test_rows_without_a_text_are_errors(today: Path) -> None:
    with load(today) as engine:
        table = engine.predict(["a", None, "a"], ["b", "b", None])
        alone = engine.predict(["a"], ["b"])
    assert [error and error["kind"] for error in table["error"].to_pylist()] == [None, "null_text", "null_text"]
    assert table["score"].to_pylist()[1:] == [None, None]
    np.testing.assert_allclose(table["score"][0].as_py(), alone["score"][0].as_py(), atol=1e-6)


def test_documents_have_to_be_given(today: Path, tmp_path: Path) -> None:
    with load(today) as engine, pytest.raises(UsageError, match=r"predict\(texts, pairs\)"):
        engine.predict(["a"])
    with pytest.raises(UsageError, match="say --pair-column NAME"):
        packhorse.run(today, {"query": ["a"], "other": ["b"]}, tmp_path / "out", text_column="query", devices="cpu")
