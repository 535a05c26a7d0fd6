"""A transformers model and its reduction as one torch module that can be traced."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from packhorse.backends.torch.reduce import Reducer
from packhorse.backends.torch.weights import load_weights, pad_id
from packhorse.load_request import LoadRequest


class Graph(nn.Module):
    """input_ids, attention_mask, perhaps token_type_ids, [B, S] each -> [B, width] float32."""

    def __init__(self, request: LoadRequest, takes_type_ids: bool, attention: str | None = None) -> None:
        """attention: an implementation by transformers' name; None: the model's own choice. Raises ModelError."""
        super().__init__()
        self.model = load_weights(request.description, request.reduction, torch.float32, attention)
        self.pad_id = pad_id(self.model.config)
        self.reducer = Reducer(request.reduction, "cpu")
        # A tokenizer may offer types to a model without a use for them (DistilBERT).
        self.takes_type_ids = takes_type_ids and "token_type_ids" in inspect.signature(self.model.forward).parameters

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        values: torch.Tensor = self.reducer(output, attention_mask.sum(1))
        return values


def reduce_outside(reducer: Reducer, values: Any, lengths: Any) -> Any:
    """numpy [B, C] logits or [B, S, H] hidden states, [B] lengths -> numpy [B, width]."""
    tensor = torch.from_numpy(values)
    with torch.inference_mode():
        output = SimpleNamespace(logits=tensor, last_hidden_state=tensor)
        return reducer(output, torch.from_numpy(lengths)).numpy()
