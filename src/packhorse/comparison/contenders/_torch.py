"""What hand-written contenders and the reference share: a loaded model, and outputs as float32 rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from packhorse.comparison.contract import ModelSpec, Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}


def device() -> str:
    """`cuda` where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(model: ModelSpec, precision: Precision) -> tuple[Any, Any]:
    """The tokenizer and the network, on the device, in inference mode of its layers; int8: its linear layers."""
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    kind = AutoModel if model.task == "embedding" else AutoModelForSequenceClassification
    network = kind.from_pretrained(model.transformer, dtype=DTYPES[precision]).to(device()).eval()
    if precision == "int8":
        network = torch.ao.quantization.quantize_dynamic(network, {torch.nn.Linear}, dtype=torch.qint8)
    return AutoTokenizer.from_pretrained(model.transformer), network


def outputs_of(model: ModelSpec, network: Any, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """Forward one batch: probabilities [B, C] or embeddings [B, D], float32, on the host."""
    if model.task == "embedding":
        rows = pool(model, network(**inputs).last_hidden_state, inputs["attention_mask"])
    else:
        rows = probabilities(network(**inputs).logits.float(), network.config)
    return rows.cpu().numpy()


def probabilities(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """As the text-classification pipeline does: sigmoid for one or independent labels, else softmax."""
    if config.problem_type == "regression":
        return logits
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return logits.sigmoid()
    return logits.softmax(dim=-1)


def pool(model: ModelSpec, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Sentence embeddings [B, D] in float32 from hidden states [B, S, D]."""
    mask = attention_mask.unsqueeze(-1)  # [B, S, 1]
    if model.pooling == "cls":
        rows = hidden[:, 0].float()
    elif model.pooling == "last":
        rows = hidden[torch.arange(len(hidden)), attention_mask.sum(dim=1) - 1].float()
    elif model.pooling == "max":
        rows = hidden.float().masked_fill(mask == 0, -torch.inf).amax(dim=1)
    else:
        rows = (hidden.float() * mask.float()).sum(dim=1) / mask.float().sum(dim=1)
    return torch.nn.functional.normalize(rows, dim=-1) if model.normalize else rows
