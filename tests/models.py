"""Small models made from configs: no download, real code paths. Weights are wide enough that rows differ."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "a", "bad", "be", "boring", "brave", "cat", "dog", "dull", "end", "film", "funny", "good", "great", "in", "is",
    "it", "long", "made", "me", "movie", "not", "of", "old", "plot", "read", "row", "sad", "short", "the", "time",
    "to", "very", "was", "well", "what", "zip",
]  # fmt: skip
CHARS = list("abcdefghijklmnopqrstuvwxyz0123456789.,!?'-")


def word_piece_tokenizer() -> Tokenizer:
    """A lower-casing WordPiece tokenizer, BERT's template for singles and pairs."""
    vocab = [*SPECIALS, *WORDS, *(c for c in CHARS if c not in WORDS), *("##" + c for c in CHARS)]
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(vocab)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab.index("[CLS]")), ("[SEP]", vocab.index("[SEP]"))],
    )
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def save_tokenizer(
    folder: Path,
    model_max_length: int = 64,
    inputs: tuple[str, ...] = ("input_ids", "token_type_ids", "attention_mask"),
) -> None:
    """tokenizer.json and tokenizer_config.json of the WordPiece tokenizer, loadable by AutoTokenizer."""
    from transformers import PreTrainedTokenizerFast

    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    PreTrainedTokenizerFast(
        tokenizer_object=word_piece_tokenizer(),
        model_max_length=model_max_length,
        model_input_names=list(inputs),
        **{f"{k}_token": v for k, v in names.items()},
    ).save_pretrained(folder)


def save_null_model(
    folder: Path, num_labels: int = 2, max_length: int = 64, architecture: str = "BertForSequenceClassification"
) -> Path:
    """A folder that the null backend loads: a config and a tokenizer.json, no weights, made without torch."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": [architecture], "model_type": "bert", "hidden_size": 32, "num_attention_heads": 4,
        "num_hidden_layers": 2, "max_position_embeddings": max_length, "pad_token_id": 0,
        "id2label": {str(i): f"L{i}" for i in range(num_labels)},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    word_piece_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def save_classifier(folder: Path, kind: str = "bert", num_labels: int = 3, **config: Any) -> Path:
    """A sequence classifier with random weights: kind is bert, roberta or distilbert."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        BertConfig,
        DistilBertConfig,
        RobertaConfig,
    )

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    small = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    common = {"vocab_size": 200, "initializer_range": 0.3, "num_labels": num_labels, "pad_token_id": 0}
    made = {
        "bert": lambda: BertConfig(**size, **common, max_position_embeddings=64),
        "roberta": lambda: RobertaConfig(
            **size, **common, max_position_embeddings=65, type_vocab_size=1, bos_token_id=2, eos_token_id=3
        ),
        "distilbert": lambda: DistilBertConfig(**small, **common, max_position_embeddings=64),
    }[kind]()
    for key, value in config.items():
        setattr(made, key, value)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(copy.deepcopy(made)).save_pretrained(folder)
    save_tokenizer(
        folder,
        inputs=("input_ids", "token_type_ids", "attention_mask") if kind == "bert" else ("input_ids", "attention_mask"),
    )
    return folder


def save_head(folder: Path, name: str, max_length: int = 64, **config: Any) -> Path:
    """A BERT of transformers' class of that name, with random weights."""
    import torch
    import transformers

    made = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=200,
        initializer_range=0.3, pad_token_id=0, max_position_embeddings=max_length, **config,
    )  # fmt: skip
    made.label2id = {label: i for i, label in made.id2label.items()}
    torch.manual_seed(0)
    getattr(transformers, name)(copy.deepcopy(made)).save_pretrained(folder)
    save_tokenizer(folder, max_length)
    return folder
