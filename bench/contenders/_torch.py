"""What hand-written contenders and the reference share: a loaded model, and outputs as float32 rows."""

from typing import Any

import numpy as np
import torch

from bench.contract import ModelSpec, Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def device() -> str:
    """`cuda` where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(model: ModelSpec, precision: Precision) -> tuple[Any, Any]:
    """The tokenizer and the network, on the device, in inference mode of its layers."""
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    kind = AutoModel if model.task == "embedding" else AutoModelForSequenceClassification
    network = kind.from_pretrained(model.folder, dtype=DTYPES[precision]).to(device()).eval()
    return AutoTokenizer.from_pretrained(model.folder), network


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
    if model.pooling == "cls":
        rows = hidden[:, 0].float()
    else:
        weights = attention_mask.unsqueeze(-1).float()  # [B, S, 1]
        rows = (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1)
    return torch.nn.functional.normalize(rows, dim=-1) if model.normalize else rows
