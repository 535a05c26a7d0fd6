"""Tiny models of the architectures that packing is tried on: 330 positions, weights narrow enough to compare to 1e-5.

Linear layers of 64 x 64 and more, so that those of oneDNN take their place.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoTokenizer

from tests.cpu import architectures
from tests.models import WORDS, save_tokenizer

MAX_LENGTH = 320
VOCAB = architectures.VOCAB
# One, two, a few; beyond the longest row that plain products are used for (256); many equal ones.
LENGTHS = (1, 2, 5, 30, 300, 1, 5, 5, 5, 30, 30, 2, 257, 256, 17, 5)
WINDOW = 7  # of sliding attention, far below some of the lengths

_POSITIONS = {"max_position_embeddings": 330, "initializer_range": 0.1}
_SIZE = {
    "vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "pad_token_id": 0, "num_labels": architectures.LABELS,
}  # fmt: skip
_DECODER = {"bos_token_id": 2, "eos_token_id": 3, "use_cache": False}
_GQA = {"num_key_value_heads": 2, "head_dim": 16}
_SMALL = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}
_GPT2 = {
    "vocab_size": VOCAB, "n_positions": 330, "n_embd": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.1,
    "num_labels": architectures.LABELS, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
_OPT = {"ffn_dim": 128, "word_embed_proj_dim": 64, "init_std": 0.1, **_DECODER}
_BERT = _SIZE | _POSITIONS
_MORE_POSITIONS = _BERT | {"max_position_embeddings": 331}  # a RoBERTa-like table begins behind the padding id, 0
_MODERN = {
    "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3, "local_attention": 2 * WINDOW,
    "global_attn_every_n_layers": 2,
}  # fmt: skip

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", _BERT),
    "roberta": ("RobertaConfig", _MORE_POSITIONS | {"type_vocab_size": 1}),
    "xlm-roberta": ("XLMRobertaConfig", _MORE_POSITIONS),
    "camembert": ("CamembertConfig", _MORE_POSITIONS),
    "distilbert": (
        "DistilBertConfig",
        _SMALL | {"vocab_size": VOCAB, "pad_token_id": 0, "num_labels": 3} | _POSITIONS,
    ),
    "electra": ("ElectraConfig", _BERT | {"embedding_size": 32}),
    "albert": ("AlbertConfig", _BERT | {"embedding_size": 32}),
    "modernbert": ("ModernBertConfig", _BERT | _MODERN),
    "nomic_bert": ("NomicBertConfig", _BERT),
    "eurobert": ("EuroBertConfig", _BERT | _DECODER | {"num_key_value_heads": 4}),
    "qwen3": ("Qwen3Config", _BERT | _DECODER | _GQA),
    "llama": ("LlamaConfig", _BERT | _DECODER | _GQA),
    "mistral": ("MistralConfig", _BERT | _DECODER | _GQA | {"sliding_window": WINDOW}),
    "gpt2": ("GPT2Config", _GPT2),
    "opt": ("OPTConfig", _SIZE | _OPT | {"max_position_embeddings": 330}),
    # Those whose attention is more than query, key and value of the row's own tokens:
    "mpnet": ("MPNetConfig", _BERT | {"max_position_embeddings": 332, "pad_token_id": 1}),
    "deberta-v2": ("DebertaV2Config", _BERT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "bloom": ("BloomConfig", _SIZE | _DECODER | {"n_head": 4, "n_layer": 2, "initializer_range": 0.1}),
    "falcon": ("FalconConfig", _SIZE | _DECODER | {"initializer_range": 0.1, "ffn_hidden_size": 128, "alibi": True}),
    "gemma2": ("Gemma2Config", _BERT | _DECODER | _GQA | {"attn_logit_softcapping": 1.0, "sliding_window": WINDOW}),
}
REFUSED = ("mpnet", "deberta-v2", "bloom", "falcon", "gemma2")
PACKED = tuple(kind for kind in CONFIGS if kind not in REFUSED)
TAKES_TOKEN_TYPES = ("bert", "electra", "albert", "nomic_bert")


def made(kind: str, auto: str = "AutoModelForSequenceClassification", seed: int = 0, **changes: Any) -> Any:
    """A model in eval mode, of a config of its own. auto: AutoModel, AutoModelForTokenClassification, ..."""
    name, values = CONFIGS[kind]
    if not hasattr(transformers, name):
        pytest.skip(f"this version of transformers has no {name}")
    config = getattr(transformers, name)(**copy.deepcopy(values) | changes)
    torch.manual_seed(seed)
    model = getattr(transformers, auto).from_config(copy.deepcopy(config)).eval()
    with torch.no_grad():  # norms and biases are born as 1 and 0: a mistake in either would not show
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def save(folder: Path, kind: str, auto: str = "AutoModelForSequenceClassification", **changes: Any) -> Path:
    made(kind, auto, **changes).save_pretrained(folder)
    types = ("token_type_ids",) if kind in TAKES_TOKEN_TYPES else ()
    save_tokenizer(folder, MAX_LENGTH, ("input_ids", *types, "attention_mask"))
    return folder


def without_special_tokens(folder: Path) -> Path:
    """So that a text of one word is a row of one token."""
    from tests.cpu.embedders import edit_json

    edit_json(folder / "tokenizer.json", post_processor=None)
    assert len(AutoTokenizer.from_pretrained(folder)("good film")["input_ids"]) == 2
    return folder


def texts(lengths: tuple[int, ...] = LENGTHS, seed: int = 3) -> list[str]:
    """Texts of so many words, each of them one token."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, n)) for n in lengths]


def ids_of(lengths: tuple[int, ...] = LENGTHS, seed: int = 3) -> list[torch.Tensor]:
    """[s] each: token ids of rows, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, VOCAB, (n,), generator=generator) for n in lengths]
