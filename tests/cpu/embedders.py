"""Tiny sentence-transformers folders, in the layout that is saved today and in the one of older models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.models import save_tokenizer

HIDDEN = 32
MAX_LENGTH = 64
LEGACY_FLAGS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "lasttoken": "pooling_mode_lasttoken",
    "weightedmean": "pooling_mode_weightedmean_tokens",
}


def save_body(folder: Path, lowercase: bool = True, pooler: bool = True) -> Path:
    """A BERT body with random weights, and a tokenizer that lower-cases or does not."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=MAX_LENGTH, initializer_range=0.3,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=pooler).save_pretrained(folder)
    save_tokenizer(folder, model_max_length=MAX_LENGTH)
    edit_json(folder / "tokenizer.json", normalizer={"type": "BertNormalizer", "lowercase": lowercase} | _NORMALIZER)
    return folder


_NORMALIZER = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None}


def dense(inputs: int, outputs: int, activation: str = "Tanh", bias: bool = True, residual: bool = False) -> Any:
    """A sentence-transformers Dense module with random weights."""
    import torch
    from sentence_transformers.base.modules import Dense

    torch.manual_seed(1)
    function = getattr(torch.nn, activation)()
    return Dense(inputs, outputs, bias=bias, activation_function=function, use_residual=residual)


def save_today(
    folder: Path,
    body: Path,
    pooling: str | tuple[str, ...] = "mean",
    after: Sequence[Any] = (),
    include_prompt: bool = True,
    max_seq_length: int | None = None,
    **settings: Any,
) -> Path:
    """As SentenceTransformer.save writes it. settings: those of SentenceTransformer, prompts for example."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(body), max_seq_length=max_seq_length)
    modules = [transformer, Pooling(HIDDEN, pooling, include_prompt=include_prompt), *after]
    SentenceTransformer(modules=modules, device="cpu", **settings).save(str(folder), create_model_card=False)
    return folder


def save_older(
    folder: Path,
    body: Path,
    pooling: Sequence[str] = ("mean",),
    after: Sequence[Any] = (),
    include_prompt: bool = True,
    sentence: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> Path:
    """As sentence-transformers 2 wrote it: module types `sentence_transformers.models.X`, a flag a pooling mode.

    sentence: sentence_bert_config.json, config: config_sentence_transformers.json.
    """
    shutil.copytree(body, folder, dirs_exist_ok=True)
    types = ["Transformer", "Pooling", *(type(module).__name__ for module in after)]
    paths = ["", *(f"{i}_{name}" for i, name in enumerate(types) if i)]
    write_modules(folder, [(f"sentence_transformers.models.{t}", p) for t, p in zip(types, paths, strict=True)])
    flags = {flag: mode in pooling for mode, flag in LEGACY_FLAGS.items()}
    write_json(
        folder / paths[1] / "config.json",
        {"word_embedding_dimension": HIDDEN, "include_prompt": include_prompt} | flags,
    )
    for module, path in zip(after, paths[2:], strict=True):
        (folder / path).mkdir()
        module.save(str(folder / path))
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": MAX_LENGTH, "do_lower_case": False} | (sentence or {})
    )
    write_json(folder / "config_sentence_transformers.json", config or {"__version__": {}})
    return folder


def encoded(folder: Path, texts: Sequence[str], **settings: Any) -> np.ndarray:
    """[n, width] by sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    vectors: np.ndarray = SentenceTransformer(str(folder), device="cpu").encode(list(texts), **settings)
    return vectors


def write_modules(folder: Path, modules: Sequence[tuple[str, str]]) -> None:
    """modules.json of (type, path)."""
    listing = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (kind, path) in enumerate(modules)]
    write_json(folder / "modules.json", listing)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def edit_json(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text()) | changes)
