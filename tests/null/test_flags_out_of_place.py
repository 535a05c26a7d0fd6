"""A flag that would change nothing is refused: it was meant to change something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import packhorse
from packhorse.config import EngineConfig, RunConfig, validated
from packhorse.errors import UsageError
from packhorse.generation import Quantization
from packhorse.models.memory import fits_split, predict_memory
from tests.models import save_null_model


def rows_of(path: Path, count: int = 3, words: int = 3) -> Path:
    path.write_text("".join(json.dumps({"text": "film " * (words + i), "id": i}) + "\n" for i in range(count)))
    return path


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"quantization": "torchao"}, "--quantization torchao"),
        ({"quantization_options": {"a": 1}}, "--quantization-options"),
    ],
)
def test_who_quantizes_is_refused_where_nothing_is_quantized(
    settings: dict[str, Any], flag: str, precision: str
) -> None:
    with pytest.raises(UsageError, match=f"{flag}: goes with --precision int8, int4 or fp8, not {precision}"):
        validated(EngineConfig, {"model": "m", "precision": precision, **settings})


def test_a_plan_of_a_file_says_the_precision_itself() -> None:
    config = validated(
        RunConfig, {"model": "m", "input": "i", "output": "o/", "plan": "p.json", "quantization": "torchao"}
    )
    assert config.quantization == "torchao"


@pytest.mark.parametrize("backend", ["null", "onnx", "openvino"])
@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"device_map": "auto"}, "--device-map"),
        ({"tensor_parallel": True}, "--tensor-parallel"),
        ({"precision": "int8", "quantization": "torchao"}, "--precision int8|--quantization"),
    ],
)
def test_placing_and_quantizing_belong_to_torch(
    tmp_path: Path, backend: str, settings: dict[str, Any], flag: str
) -> None:
    model = save_null_model(tmp_path / "model")
    with pytest.raises(UsageError, match=f"({flag}).*backend"):
        packhorse.run(model, rows_of(tmp_path / "r.jsonl"), tmp_path / "out/", backend=backend, **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"engine": "static"}, "--engine static: belongs to --backend torch, this is null"),
        ({"scores": "all"}, "--scores: belongs to text-classification"),
        ({"pooling": "mean"}, "--pooling: belongs to feature-extraction"),
        ({"tolerance": 0.1}, "--tolerance: belongs to classification and embeddings"),
        ({"text_column": "text", "pair_column": "text"}, "--pair-column text: a prompt is one text; --template"),
    ],
)
def test_a_model_that_writes_takes_no_settings_of_values(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    model = save_null_model(tmp_path / "model", architecture="BertLMHeadModel")
    rows = rows_of(tmp_path / "r.jsonl")
    with pytest.raises(UsageError, match=words):
        packhorse.run(model, rows, tmp_path / "out/", backend="null", task="text-generation", **settings)


def test_a_seed_column_is_of_no_use_to_a_classifier(tmp_path: Path) -> None:
    model = save_null_model(tmp_path / "model")
    with pytest.raises(UsageError, match="--seed-column id: belongs to generation"):
        packhorse.run(model, rows_of(tmp_path / "r.jsonl"), tmp_path / "out/", backend="null", seed_column="id")


def test_texts_longer_than_a_classifier_takes_are_error_rows_where_that_is_said(tmp_path: Path) -> None:
    model = save_null_model(tmp_path / "model", max_length=16)
    rows = rows_of(tmp_path / "r.jsonl", 12, words=8)  # 10 to 21 tokens with the two special ones
    packhorse.run(model, rows, tmp_path / "cut.jsonl", backend="null")
    packhorse.run(model, rows, tmp_path / "out.jsonl", backend="null", long="error", overwrite=True)
    cut, out = (
        [json.loads(line) for line in (tmp_path / n).read_text().splitlines()] for n in ("cut.jsonl", "out.jsonl")
    )
    assert [row["error"] and row["error"]["kind"] for row in out] == [None] * 7 + ["prompt_too_long"] * 5
    assert out[:7] == cut[:7] and all(row["error"] is None for row in cut)


def test_what_max_memory_allows_is_held_against_the_weights_alone(tmp_path: Path) -> None:
    """A device map places weights; what a forward needs beside them is no part of --max-memory."""
    config = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 10}
    header = {
        f"model.layers.{i}.mlp.up_proj.weight": {"dtype": "F32", "shape": [8, 8], "data_offsets": [0, 0]}
        for i in range(2)
    }
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    need = predict_memory(config, [path], "fp32", Quantization(), 4, 10, 10, 64)
    assert need.weights_bytes == 2 * 64 * 4 and need.largest_layer_bytes == 256
    free = {"cpu": 10**12}
    assert fits_split(need, {"cpu": 512}, free) == []  # all on one device, which then keeps no room
    assert fits_split(need, {"cpu": 400, "disk": 368}, free) == []
    told = fits_split(need, {"cpu": 400}, free)
    assert len(told) == 2 and "--max-memory allows" in told[0]
    assert fits_split(need, {}, free) == [] and fits_split(need, {}, {"cpu": 1_000}) != []
