"""Models and rows with labels for tests of evaluations, and what a model says of them, by packhorse.load alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import packhorse
from tests.models import save_tokenizer

TEXTS = [
    "a good film", "not a very funny plot", "dull", "the dog was sad and the cat was good", "read me", "very long",
    "it is well made", "boring, very long", "zip", "你好 world 🙂", "brave old movie", "bad end", "what a plot",
    "short", "two hours in the row",
]  # fmt: skip


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scores_of(model: Path, texts: Sequence[str], **settings: Any) -> np.ndarray:
    """[n, labels] of a classifier."""
    with packhorse.load(model, scores="all", precision="fp32", **settings) as engine:
        return np.array(engine.predict(list(texts))["scores"].to_pylist(), np.float32)


TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-LOC", "S-LOC")
MAX_LENGTH = 24  # of taggers


def save_tagger(folder: Path, names: Sequence[str] = TAGS) -> Path:
    from transformers import BertConfig, BertForTokenClassification

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        initializer_range=0.5, max_position_embeddings=MAX_LENGTH, id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )  # fmt: skip
    BertForTokenClassification(config).save_pretrained(folder)
    save_tokenizer(folder, MAX_LENGTH)
    return folder


def save_language_model(folder: Path, kind: str) -> Path:
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    size = {"vocab_size": 200, "initializer_range": 0.4, "max_position_embeddings": 64}
    if kind == "masked":
        narrow = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        BertForMaskedLM(BertConfig(**size, **narrow)).save_pretrained(folder)
    else:
        GPT2LMHeadModel(GPT2Config(**size, n_embd=32, n_layer=2, n_head=4)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def with_prompts(folder: Path, body: Path) -> Path:
    """A sentence-transformers folder whose prompt is left out of the mean."""
    import shutil

    shutil.copytree(body, folder)
    (folder / "modules.json").write_text(json.dumps([
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]))  # fmt: skip
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "include_prompt": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    prompts = {"prompts": {"query": "read the plot: ", "other": "zip "}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder
