"""Models from configs whose linear layers are wide enough to quantize, and requests to load them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from packhorse.data import ModelDescription, Reduction, Tokens, offsets_of
from packhorse.generation import Quantization
from packhorse.load_request import LoadRequest

VOCAB, LABELS, HIDDEN, LAYERS = 300, 3, 128, 2
BERT_LIKE = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 256}
COMMON = {"vocab_size": VOCAB, "initializer_range": 0.1, "pad_token_id": 0}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", BERT_LIKE | COMMON),
    "roberta": ("RobertaConfig", BERT_LIKE | COMMON | {"type_vocab_size": 1}),
    "distilbert": ("DistilBertConfig", {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 256} | COMMON),
    "llama": ("LlamaConfig", BERT_LIKE | COMMON | {"num_key_value_heads": 2}),
    "gpt2": ("GPT2Config", {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "vocab_size": VOCAB}
             | {"initializer_range": 0.1}),
    "t5": ("T5Config", {"d_model": HIDDEN, "d_kv": 32, "d_ff": 256, "num_layers": LAYERS, "num_heads": 4}
           | {"vocab_size": VOCAB, "decoder_start_token_id": 0, "pad_token_id": 0}),
}  # fmt: skip


def save(folder: Path, kind: str, auto: str, **changes: Any) -> Path:
    """Weights and config. auto: AutoModelForCausalLM, ..."""
    name, values = CONFIGS[kind]
    config = getattr(transformers, name)(**copy.deepcopy(values) | {"num_labels": LABELS} | changes)
    torch.manual_seed(0)
    getattr(transformers, auto).from_config(config).save_pretrained(folder)
    return folder


def rows_of(lengths: tuple[int, ...], seed: int = 0) -> Tokens:
    ids = np.random.default_rng(seed).integers(5, VOCAB, sum(lengths)).astype(np.int32)
    return Tokens(ids, offsets_of(np.array(lengths, np.int64)))


def request(
    folder: Path, precision: str, quantization: Quantization, task: str = "text-classification", **changes: Any
) -> LoadRequest:
    reduction = Reduction("classify", LABELS) if task == "text-classification" else Reduction("pool")
    description = ModelDescription(
        folder=folder, commit=None, task=task, num_layers=LAYERS, attention_width=HIDDEN, max_length=64,
        labels=("a", "b", "c"), **changes,
    )  # fmt: skip
    pair = rows_of((4, 4, 11, 2))
    return LoadRequest(
        description=description, reduction=reduction, device="cpu", precision=precision, workers=2, threads=1,
        trial=pair, rows=rows_of((3, 9, 17, 5, 30)), longest=None, attention="auto", provider="auto", onnx_file=None,
        compiled=False, model_key=lambda: "", quantization=quantization,
    )  # fmt: skip


def cosine(left: Any, right: Any) -> float:
    left, right = (torch.as_tensor(x).float().flatten() for x in (left, right))
    return float(torch.cosine_similarity(left - left.mean(), right - right.mean(), 0))
