"""Embeddings: a sentence-transformers folder is honoured whole, so it gives what SentenceTransformer.encode gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import packhorse
from tests.cpu import embedders, reference
from tests.cpu.engine import load

TEXTS = reference.texts_of_all_lengths()
TOLERANCE = 1e-5
HIDDEN = embedders.HIDDEN


def embedded(folder: Path, texts: list[str] = TEXTS, **settings: Any) -> np.ndarray:
    with load(folder, **settings) as engine:
        assert engine.task == "feature-extraction"
        return engine.embed(texts)


def assert_equal(found: np.ndarray, expected: np.ndarray) -> None:
    assert expected.std(0).max() > 100 * TOLERANCE, "rows too alike to tell a mix-up"
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", ("mean", "cls"), ("cls", "max")], ids=str)
def test_pooling_of_a_folder_saved_today(bodies: dict[str, Path], tmp_path: Path, pooling: Any) -> None:
    folder = embedders.save_today(tmp_path, bodies["uncased"], pooling)
    assert_equal(embedded(folder), embedders.encoded(folder, TEXTS))


@pytest.mark.parametrize("pooling", [["mean"], ["cls"], ["max"], ["lasttoken"], ["mean", "cls"], []], ids=str)
def test_pooling_of_an_older_folder(bodies: dict[str, Path], tmp_path: Path, pooling: list[str]) -> None:
    folder = embedders.save_older(tmp_path / "model", bodies["uncased"], pooling)
    assert_equal(embedded(folder), embedders.encoded(folder, TEXTS))


DENSE_LAYERS = {
    "Tanh": {"outputs": 16},
    "no bias": {"outputs": 16, "bias": False},
    "GELU": {"outputs": 48, "activation": "GELU"},
    "Identity": {"outputs": 8, "activation": "Identity"},
    "residual": {"outputs": HIDDEN, "residual": True},
    "residual to another width": {"outputs": 16, "residual": True},
}


@pytest.mark.parametrize("layer", DENSE_LAYERS)
def test_a_dense_layer_and_normalize_follow_the_pooling(bodies: dict[str, Path], tmp_path: Path, layer: str) -> None:
    from sentence_transformers.base.modules import Normalize

    after = [embedders.dense(HIDDEN, **DENSE_LAYERS[layer]), Normalize()]
    folder = embedders.save_today(tmp_path, bodies["uncased"], after=after)
    found = embedded(folder)
    assert found.shape == (len(TEXTS), DENSE_LAYERS[layer]["outputs"])
    assert_equal(found, embedders.encoded(folder, TEXTS))


def test_an_older_folder_with_two_dense_layers(bodies: dict[str, Path], tmp_path: Path) -> None:
    from sentence_transformers.base.modules import Normalize

    after = [embedders.dense(2 * HIDDEN, 24, "ReLU"), Normalize(), embedders.dense(24, 16, "Sigmoid")]
    folder = embedders.save_older(tmp_path / "model", bodies["uncased"], ("mean", "max"), after)
    assert_equal(embedded(folder), embedders.encoded(folder, TEXTS))


@pytest.mark.parametrize("layout", ["today", "older"])
def test_max_seq_length_cuts(bodies: dict[str, Path], tmp_path: Path, layout: str) -> None:
    if layout == "today":
        folder = embedders.save_today(tmp_path, bodies["uncased"], max_seq_length=12)
    else:
        folder = embedders.save_older(tmp_path / "model", bodies["uncased"], sentence={"max_seq_length": 12})
    assert_equal(embedded(folder), embedders.encoded(folder, TEXTS))


def test_a_null_max_seq_length_leaves_it_to_the_tokenizer(bodies: dict[str, Path], tmp_path: Path) -> None:
    folder = embedders.save_older(tmp_path / "model", bodies["uncased"], sentence={"max_seq_length": None})
    embedders.edit_json(folder / "tokenizer_config.json", model_max_length=20)
    assert_equal(embedded(folder), embedders.encoded(folder, TEXTS))


def test_do_lower_case_with_a_tokenizer_that_keeps_case(bodies: dict[str, Path], tmp_path: Path) -> None:
    texts = ["A GOOD Film", "a good film", "NOT Very Well MADE", "Ünlucky İstanbul"]
    folder = embedders.save_older(tmp_path / "model", bodies["cased"], sentence={"do_lower_case": True})
    found = embedded(folder, texts)
    assert_equal(found, embedders.encoded(folder, texts))
    np.testing.assert_allclose(found[0], found[1], atol=TOLERANCE)
    plain = embedders.save_older(tmp_path / "plain", bodies["cased"])
    assert np.abs(embedded(plain, texts)[0] - found[0]).max() > 0.1


PROMPTS = {"query": "good film: ", "passage": "a ", "nothing": ""}


@pytest.mark.parametrize("include_prompt", [True, False], ids=["pooled", "left out"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
def test_a_prompt_stands_before_each_text(
    bodies: dict[str, Path], tmp_path: Path, pooling: str, include_prompt: bool
) -> None:
    folder = embedders.save_today(tmp_path, bodies["uncased"], pooling, include_prompt=include_prompt, prompts=PROMPTS)
    assert_equal(embedded(folder, prompt_name="query"), embedders.encoded(folder, TEXTS, prompt_name="query"))
    assert_equal(embedded(folder), embedders.encoded(folder, TEXTS))


@pytest.mark.parametrize("layout", ["today", "older"])
def test_the_default_prompt_is_used_and_another_can_be_named(
    bodies: dict[str, Path], tmp_path: Path, layout: str
) -> None:
    config = {"prompts": PROMPTS, "default_prompt_name": "query"}
    if layout == "today":
        folder = embedders.save_today(tmp_path, bodies["uncased"], **config)
    else:
        folder = embedders.save_older(tmp_path / "model", bodies["uncased"], config=config)
    assert_equal(embedded(folder), embedders.encoded(folder, TEXTS))
    for name in PROMPTS:
        assert_equal(embedded(folder, prompt_name=name), embedders.encoded(folder, TEXTS, prompt_name=name))


@pytest.mark.parametrize("prompt_name", [None, "query"])
def test_padding_and_truncation_in_tokenizer_json_count_for_nothing(
    bodies: dict[str, Path], tmp_path: Path, prompt_name: str | None
) -> None:
    """all-MiniLM-L6-v2's file has both baked in."""
    folder = embedders.save_today(tmp_path, bodies["uncased"], include_prompt=False, prompts=PROMPTS)
    padding = {"strategy": {"Fixed": 32}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    truncation = {"max_length": 32, "strategy": "LongestFirst", "direction": "Right", "stride": 0}
    embedders.edit_json(
        folder / "tokenizer.json", padding=padding | {"pad_to_multiple_of": None}, truncation=truncation
    )
    found = embedded(folder, prompt_name=prompt_name)
    assert_equal(found, embedders.encoded(folder, TEXTS, prompt_name=prompt_name))


def test_an_unknown_prompt_name_is_a_usage_error_that_suggests(bodies: dict[str, Path], tmp_path: Path) -> None:
    folder = embedders.save_today(tmp_path, bodies["uncased"], prompts=PROMPTS)
    with pytest.raises(packhorse.PackhorseError, match="'query'") as caught:
        load(folder, prompt_name="qury")
    assert caught.value.exit_code == 2


def test_run_writes_what_encode_gives(bodies: dict[str, Path], tmp_path: Path) -> None:
    folder = embedders.save_today(tmp_path / "model", bodies["uncased"], "cls")
    packhorse.run(folder, {"text": [*TEXTS, None]}, tmp_path / "out", devices="cpu")
    table = pq.read_table(tmp_path / "out")
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), HIDDEN)
    assert table["embedding"].to_pylist()[-1] is None
    assert_equal(np.array(table["embedding"].to_pylist()[:-1]), embedders.encoded(folder, TEXTS))


@pytest.mark.parametrize("pooling", [None, "mean", "cls", "max", "last"], ids=str)
@pytest.mark.parametrize("normalize", [None, True], ids=["raw", "normalized"])
def test_a_plain_encoder_folder_pools_as_told(encoder: Path, pooling: str | None, normalize: bool | None) -> None:
    pool = {
        "mean": lambda h: h.mean(0), "cls": lambda h: h[0], "max": lambda h: h.max(0).values, "last": lambda h: h[-1],
    }[pooling or "mean"]  # fmt: skip
    expected = np.stack([pool(h).numpy() for h in reference.hidden_states(encoder, TEXTS)])
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert_equal(embedded(encoder, pooling=pooling, normalize=normalize), expected)


def test_a_body_without_pooler_weights_loads(tmp_path: Path) -> None:
    folder = embedders.save_body(tmp_path, pooler=False)
    expected = np.stack([h.mean(0).numpy() for h in reference.hidden_states(folder, TEXTS)])
    assert_equal(embedded(folder), expected)


def test_float16_embeddings(encoder: Path, tmp_path: Path) -> None:
    expected = np.stack([h.mean(0).numpy() for h in reference.hidden_states(encoder, TEXTS)])
    with load(encoder, embedding_format="float16") as engine:
        engine.run({"text": TEXTS}, str(tmp_path / "out"))
        np.testing.assert_allclose(engine.embed(TEXTS), expected.astype(np.float16), atol=2e-3)
    column = pq.read_table(tmp_path / "out")["embedding"]
    assert column.type == pa.list_(pa.float16(), HIDDEN)
    np.testing.assert_allclose(np.array(column.to_pylist(), np.float32), expected, rtol=2e-3, atol=2e-3)


def test_a_row_in_error_is_nan_and_leaves_the_others_alone(encoder: Path) -> None:
    expected = np.stack([h.mean(0).numpy() for h in reference.hidden_states(encoder, TEXTS)])
    texts: list[Any] = [*TEXTS[:5], None, *TEXTS[5:], "\ud800"]
    found = embedded(encoder, texts)
    assert np.isnan(found[[5, -1]]).all()
    assert_equal(np.delete(found, [5, -1], 0)[: len(TEXTS)], expected)


def refused(folder: Path, *words: str, exit_code: int = 1, **settings: Any) -> None:
    """Loading or embedding ends in a PackhorseError with all of these words in it."""
    with pytest.raises(packhorse.PackhorseError) as caught:
        load(folder, **settings).embed(TEXTS)
    assert [word for word in words if word not in str(caught.value)] == []
    assert caught.value.exit_code == exit_code


@pytest.mark.parametrize(
    ("module", "exit_code"),
    [
        ("sentence_transformers.models.CNN", 1),
        ("sentence_transformers.sentence_transformer.modules.word_weights.WordWeights", 1),
        ("somebodys_package.Pooler", 3),
        ("os.system", 3),
    ],
)
def test_a_module_that_is_not_supported_is_refused_by_name(
    bodies: dict[str, Path], tmp_path: Path, module: str, exit_code: int
) -> None:
    folder = embedders.save_older(tmp_path / "model", bodies["uncased"])
    modules = [("sentence_transformers.models.Transformer", ""), ("sentence_transformers.models.Pooling", "1_Pooling")]
    embedders.write_modules(folder, [*modules, (module, "2_Other")])
    refused(folder, "modules.json", module, exit_code=exit_code)


@pytest.mark.parametrize("layout", ["today", "older"])
def test_weightedmean_pooling_is_refused_by_name(bodies: dict[str, Path], tmp_path: Path, layout: str) -> None:
    if layout == "today":
        folder = embedders.save_today(tmp_path, bodies["uncased"], "weightedmean")
    else:
        folder = embedders.save_older(tmp_path / "model", bodies["uncased"], ["weightedmean"])
    refused(folder, "1_Pooling", "weightedmean")


def test_a_dense_layer_of_a_foreign_activation_is_refused(bodies: dict[str, Path], tmp_path: Path) -> None:
    folder = embedders.save_today(tmp_path, bodies["uncased"], after=[embedders.dense(HIDDEN, 16)])
    embedders.edit_json(folder / "2_Dense" / "config.json", activation_function="somebodys_package.Act")
    refused(folder, "2_Dense", "somebodys_package.Act", exit_code=3)


def test_a_dense_layer_on_the_tokens_is_refused(bodies: dict[str, Path], tmp_path: Path) -> None:
    folder = embedders.save_today(tmp_path, bodies["uncased"], after=[embedders.dense(HIDDEN, 16)])
    embedders.edit_json(folder / "2_Dense" / "config.json", module_input_name="token_embeddings")
    refused(folder, "2_Dense", "token_embeddings")


def test_a_dense_layer_without_safetensors_is_refused(bodies: dict[str, Path], tmp_path: Path) -> None:
    folder = embedders.save_today(tmp_path, bodies["uncased"], after=[embedders.dense(HIDDEN, 16)])
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    refused(folder, "2_Dense", "safetensors")


def test_a_pooling_that_does_not_fit_the_dense_layer_is_refused(bodies: dict[str, Path], tmp_path: Path) -> None:
    after = [embedders.dense(2 * HIDDEN, 16)]
    folder = embedders.save_older(tmp_path / "model", bodies["uncased"], ("mean", "cls"), after)
    assert_equal(embedded(folder), embedders.encoded(folder, TEXTS))
    with pytest.raises(packhorse.PackhorseError, match="pooling"):
        embedded(folder, pooling="cls")
