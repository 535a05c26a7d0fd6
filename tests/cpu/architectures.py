"""Tiny classifiers and bodies of many architectures, with random weights and the WordPiece tokenizer of the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.models import save_tokenizer

LABELS = 3
VOCAB = 200
CLS, SEP = 2, 3  # ids of the tokenizer's special tokens

_SIZE = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0, "num_labels": LABELS,
}  # fmt: skip
# RoBERTa-like position tables begin behind the padding id, which is 0 here: one more row for the same length.
_SHIFTED = _SIZE | {"max_position_embeddings": 65}
_T5 = {
    "vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "pad_token_id": 0,
    "eos_token_id": SEP, "decoder_start_token_id": 0, "num_labels": LABELS,
}  # fmt: skip
_BART = {
    "vocab_size": VOCAB, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
    "init_std": 0.3, "pad_token_id": 0, "bos_token_id": CLS, "eos_token_id": SEP, "decoder_start_token_id": SEP,
    "forced_eos_token_id": SEP, "num_labels": LABELS,
}  # fmt: skip
_OPT = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64,
    "word_embed_proj_dim": 32, "max_position_embeddings": 64, "init_std": 0.3, "pad_token_id": 0,
    "num_labels": LABELS,
}  # fmt: skip
_XLNET = {
    "vocab_size": VOCAB, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "initializer_range": 0.3,
    "pad_token_id": 0, "num_labels": LABELS,
}  # fmt: skip
_MODERN = {"cls_token_id": CLS, "sep_token_id": SEP, "bos_token_id": CLS, "eos_token_id": SEP, "local_attention": 8}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "electra": ("ElectraConfig", _SIZE | {"embedding_size": 16}),
    "albert": ("AlbertConfig", _SIZE | {"embedding_size": 16}),
    "deberta-v2": ("DebertaV2Config", _SIZE),
    "modernbert": ("ModernBertConfig", _SIZE | _MODERN | {"global_attn_every_n_layers": 2}),
    "mpnet": ("MPNetConfig", _SIZE | {"pad_token_id": 1, "max_position_embeddings": 66}),
    "xlm-roberta": ("XLMRobertaConfig", _SHIFTED),
    "llama": ("LlamaConfig", _SIZE),
    "qwen3": ("Qwen3Config", _SIZE | {"num_key_value_heads": 2, "head_dim": 8}),
    "opt": ("OPTConfig", _OPT),
    "bart": ("BartConfig", _BART),
    "t5": ("T5Config", _T5),
    "xlnet": ("XLNetConfig", _XLNET),
}
TAKES_TOKEN_TYPES = {"electra", "albert", "deberta-v2", "xlnet"}


def save(folder: Path, kind: str, auto: str, **changes: Any) -> Path:
    """A model of an architecture, as the AutoModel class `auto` builds it."""
    import torch
    import transformers

    name, config = CONFIGS[kind]
    torch.manual_seed(0)
    made = getattr(transformers, name)(**config | changes)
    getattr(transformers, auto).from_config(made).save_pretrained(folder)
    types = ("token_type_ids",) if kind in TAKES_TOKEN_TYPES else ()
    save_tokenizer(folder, inputs=("input_ids", *types, "attention_mask"))
    return folder


def save_gpt2(folder: Path, eos: str) -> Path:
    """A GPT-2 classifier as they come: neither config nor tokenizer has a padding token, `eos` ends a text."""
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast

    from tests.models import word_piece_tokenizer

    tokenizer = word_piece_tokenizer()
    tokenizer.post_processor = None  # no special tokens around a text
    tokenizer.add_special_tokens([eos])
    end = tokenizer.token_to_id(eos)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=2, n_head=4, num_labels=LABELS, initializer_range=0.3,
        bos_token_id=end, eos_token_id=end,
    )  # fmt: skip
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, unk_token="[UNK]", model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    return folder
