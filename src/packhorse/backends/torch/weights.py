"""A model's weights from its folder, and what its modules tell about lengths and padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from packhorse.backends.torch.merge import merge_adapter
from packhorse.backends.torch.quantization.choice import base_of
from packhorse.backends.torch.quantization.memory import weight_bytes as weight_bytes
from packhorse.backends.torch.quiet import quiet
from packhorse.data import Adapter, ModelDescription, Reduction
from packhorse.errors import ModelError
from packhorse.packing.heads import position_table


def load_weights(
    description: ModelDescription,
    reduction: Reduction,
    dtype: torch.dtype,
    attention: str | None = None,
    quantized: Mapping[str, Any] | None = None,
) -> Any:
    """The transformers model in eval mode. attention: an implementation by transformers' name. quantized: keyword
    arguments of from_pretrained that stand above dtype (quantization.loading). Raises ModelError."""
    auto = auto_class(reduction, description.is_encoder_decoder)
    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    options["dtype"] = torch.float32 if description.adapter else dtype
    options |= quantized or {}
    if description.adapter is not None:  # merged in fp32, then cast
        options |= _room_for_head(description.adapter, reduction)
    with quiet():
        try:
            model, loading = auto.from_pretrained(
                description.folder, use_safetensors=True, local_files_only=True, trust_remote_code=False,
                output_loading_info=True, **options,
            )  # fmt: skip
        except (OSError, ValueError, TypeError, RuntimeError, KeyError, ImportError) as error:
            raise ModelError(f"{description.folder}: cannot be loaded for {description.task}: {error}") from error
    # Embeddings come from the last hidden state, so a pooler that was never trained is not used.
    missing = {k for k in loading["missing_keys"] if reduction.kind == "classify" or "pooler." not in k}
    if description.adapter is not None:
        missing |= {str(key[0]) for key in loading.get("mismatched_keys", ())}
        merged = merge_adapter(model, description)
        model, missing = merged.model.to(dtype), missing - merged.replaced
    _check_complete(model, description, reduction, sorted(missing))
    return model.eval()


def auto_class(reduction: Reduction, is_encoder_decoder: bool = False) -> Any:
    """Of transformers, for the task."""
    with quiet():  # transformers imports quantization libraries on its way, which warn
        from transformers import (
            AutoModel,
            AutoModelForCausalLM,
            AutoModelForMaskedLM,
            AutoModelForQuestionAnswering,
            AutoModelForSeq2SeqLM,
            AutoModelForSequenceClassification,
            AutoModelForTokenClassification,
        )

    if reduction.kind == "generate":
        return AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM
    if reduction.kind == "score":
        return AutoModelForMaskedLM if reduction.is_masked else AutoModelForCausalLM
    of_kind = {
        "classify": AutoModelForSequenceClassification, "tokens": AutoModelForTokenClassification,
        "spans": AutoModelForQuestionAnswering, "fill": AutoModelForMaskedLM, "sparse": AutoModelForMaskedLM,
    }  # fmt: skip
    return of_kind.get(reduction.kind, AutoModel)


def _room_for_head(adapter: Adapter, reduction: Reduction) -> dict[str, Any]:
    """For from_pretrained: a head of the adapter's size, where it brings one."""
    if reduction.kind not in ("classify", "tokens") or adapter.num_labels is None:
        return {}
    return {"num_labels": adapter.num_labels, "ignore_mismatched_sizes": True}


def _check_complete(model: Any, description: ModelDescription, reduction: Reduction, missing: list[str]) -> None:
    if missing:
        listing = ", ".join(missing[:4]) + (" ..." if len(missing) > 4 else "")
        raise ModelError(
            f"{description.folder}: has no weights for {listing}, so its "
            f"outputs for {description.task} would be random. Is it the right model or --task?"
        )
    if reduction.kind in ("classify", "tokens") and model.config.num_labels != reduction.width:
        raise ModelError(
            f"{description.folder}: {model.config.num_labels} labels in the model, {reduction.width} in its config"
        )


def base_precision(precision: str, device: str) -> str:
    """What the weights are loaded in: for packhorse's own int8 the type in which all but the linear layers stay."""
    return precision if precision != "int8" else base_of(device)


def pad_id(config: Any) -> int:
    """The model's padding id. Where it has none (GPT-2), its head is told of one that no text has, and so reads a row's
    last token, as it does for a row alone; the trial then finds that such a model cannot be padded."""
    pad = getattr(config, "pad_token_id", None)
    if pad is None or pad < 0:  # below 0: set here before
        config.pad_token_id = -1
        return 0
    return int(pad)


def max_positions(model: nn.Module) -> int | None:
    """Tokens that a learned position table can place. RoBERTa-like tables begin behind their padding index."""
    table = position_table(model)
    if table is None:
        return None
    return table.num_embeddings - (table.padding_idx + 1 if table.padding_idx is not None else 0)
