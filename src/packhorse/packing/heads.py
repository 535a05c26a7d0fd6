"""A transformers model run on packs: its body on one sequence of tokens, its own head on what the head reads."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from packhorse.packing.attention import PackingError
from packhorse.packing.pack import Pack

# What a head reads of each row; last_text: its last token that is not the model's padding token.
Reads = Literal["first", "last", "last_text", "all"]
READS: tuple[Reads, ...] = ("first", "last", "last_text", "all")


class PackedModel:
    """Shares the model's modules and changes none of them, so any number of threads may call it.

    The model's attention implementation has to be attention.NAME while it is called.
    """

    def __init__(self, model: Any, reads: Reads = "all") -> None:
        self._model = model
        self._body = model.base_model
        self._head = None if self._body is model else _head_alone(model)
        self._reads = reads
        self._takes = set(inspect.signature(self._body.forward).parameters)

    def hidden(self, ids: torch.Tensor, type_ids: torch.Tensor | None, positions: torch.Tensor, pack: Pack) -> Any:
        """ids, type_ids, positions: [T] -> last hidden states [T, H]."""
        inputs = {"input_ids": ids[None], "pack": pack}
        if "position_ids" in self._takes:
            inputs["position_ids"] = positions[None]
        if type_ids is not None and "token_type_ids" in self._takes:
            inputs["token_type_ids"] = type_ids[None]
        if "use_cache" in self._takes:
            inputs["use_cache"] = False
        hidden = self._body(**inputs)[0][0]
        if not pack.attended:
            raise PackingError(f"{type(self._body).__name__} does not use transformers' AttentionInterface")
        return hidden

    def of_tokens(self, hidden: torch.Tensor) -> Any:
        """The output of the model's own forward on some tokens [m, H], for heads that look at each alone."""
        if self._head is None:
            return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden[None])
        return self._head(inputs_embeds=hidden[None])

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[m, H] -> [m, V]."""
        logits: torch.Tensor = self.of_tokens(hidden).logits[0]
        return logits.to(hidden.device)  # a head may lie on another one

    def padded_hidden(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[B, S, H] of the model's padded inputs."""
        hidden: torch.Tensor = self._body(**self.taken(inputs))[0]
        return hidden

    def taken(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Those that the body takes, as keyword arguments of it; no keys and values are kept."""
        arguments: dict[str, Any] = {k: v for k, v in inputs.items() if k in self._takes}
        return arguments | ({"use_cache": False} if "use_cache" in self._takes else {})

    def head(self, hidden: torch.Tensor, pack: Pack, ids: torch.Tensor) -> Any:
        """The output of the model's own forward, whose body now only hands on the hidden states [T, H]."""
        if self._head is None:
            raise TypeError("a model without a head has none to call")
        if self._reads == "all":
            padded, mask = pad_hidden(hidden, pack)
            return self._head(inputs_embeds=padded, attention_mask=mask)
        return self._head(inputs_embeds=hidden[self._places(pack, ids)].unsqueeze(1))

    def _places(self, pack: Pack, ids: torch.Tensor) -> torch.Tensor:
        """[n] the token of each row that the head reads."""
        if self._reads == "first":
            return pack.starts
        if self._reads == "last":
            return pack.ends
        here = torch.arange(len(ids), device=ids.device)
        row = torch.arange(len(pack.lengths), device=ids.device).repeat_interleave(pack.lengths)
        is_text = (ids != self._model.config.pad_token_id).long()
        return pack.starts.scatter_reduce(0, row, here * is_text, "amax")


def pad_hidden(hidden: torch.Tensor, pack: Pack) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, H] -> [n, S, H] with zeros behind each row, and the mask [n, S]."""
    mask = torch.arange(pack.max_seqlen, device=hidden.device) < pack.lengths[:, None]
    padded = hidden.new_zeros(*mask.shape, hidden.shape[-1])
    padded[mask] = hidden
    return padded, mask.long()


def _head_alone(model: Any) -> Any:
    """The model with a stand-in for its body; parameters are shared, the model itself is left as it is."""
    head = copy.copy(model)
    head._modules = dict(model._modules)
    head._modules[model.base_model_prefix] = _Body(model.base_model)
    head.__dict__.pop("forward", None)  # of a model on several devices: one that calls the model's own body
    return head


def pooled(body: Any, hidden: torch.Tensor) -> Any:
    """What the body's pooler makes of hidden states [n, S, H], as the body itself calls it; None without a pooler."""
    pooler, activation = getattr(body, "pooler", None), getattr(body, "pooler_activation", None)
    if pooler is None:
        return None
    return pooler(hidden) if activation is None else activation(pooler(hidden[:, 0]))  # two steps: ALBERT


def position_table(model: nn.Module) -> nn.Embedding | None:
    """A learned position table; None where positions are computed."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith(("position_embeddings", "wpe")):
            return module
    return None


class _Body(nn.Module):
    """Stands where a body stood: hands on the hidden states that it is given as embeddings, pooled as the body does."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.config = body.config
        self.pooler = getattr(body, "pooler", None)
        self.pooler_activation = getattr(body, "pooler_activation", None)
        self.embeddings = getattr(body, "embeddings", None)  # DeBERTa-v2's newer head reads them

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> BaseModelOutputWithPoolingAndCrossAttentions:
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=inputs_embeds, pooler_output=pooled(self, inputs_embeds)
        )
