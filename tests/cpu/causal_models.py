"""Decoders that the continuous engine takes, each made once, and prompts for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from packhorse.data import Int32s, Tokens, offsets_of
from packhorse.generation import Prompts
from tests.generators import VOCAB, causal_model

GQA = {"num_key_value_heads": 2}
HEADS = {**GQA, "head_dim": 16}
WINDOW = 16
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-gqa": ("llama", GQA),
    "qwen2": ("qwen2", GQA),
    "qwen3": ("qwen3", HEADS),
    "gpt2": ("gpt2", {}),
    "mistral-window": ("mistral", {**HEADS, "sliding_window": WINDOW}),
    "gemma3-windows": ("gemma3_text", {
        **HEADS, "sliding_window": WINDOW, "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
        "tie_word_embeddings": False,
    }),
    "granite-scaled-logits": ("granite", {"logits_scaling": 4.0}),
    "deepseek-wide-keys": ("deepseek_v3", {
        "n_routed_experts": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
        "v_head_dim": 16, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    }),
}  # fmt: skip
LENGTHS = (1, 2, 5, 5, 17, 63, 64, 130, 7, 40)

_models: dict[str, Any] = {}


def model_of(name: str) -> Any:
    if name not in _models:
        kind, config = MODELS[name]
        _models[name] = causal_model(kind, **config)
    return _models[name]


def texts(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[Int32s]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, VOCAB, n).astype(np.int32) for n in lengths]


def prompts_of(ids: Sequence[Int32s], keys: Sequence[int] | None = None) -> Prompts:
    lengths = np.array([len(i) for i in ids], np.int64)
    tokens = Tokens(np.concatenate(ids), offsets_of(lengths))
    return Prompts(tokens, np.array(range(len(ids)) if keys is None else keys, np.uint64))
