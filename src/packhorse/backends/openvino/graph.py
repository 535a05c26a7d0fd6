"""A transformers model and its reduction as one torch module that can be traced."""

from __future__ import annotations

import inspect

import torch

from packhorse.backends.torch.graph_module import GraphModule
from packhorse.backends.torch.weights import load_weights
from packhorse.load_request import LoadRequest


class Graph(GraphModule):
    """What is converted."""

    def __init__(self, request: LoadRequest, takes_type_ids: bool, attention: str | None = None) -> None:
        """attention: an implementation by transformers' name; None: the model's own choice. Raises ModelError."""
        model = load_weights(request.description, request.reduction, torch.float32, attention)
        # A tokenizer may offer types to a model without a use for them (DistilBERT).
        takes_type_ids = takes_type_ids and "token_type_ids" in inspect.signature(model.forward).parameters
        super().__init__(model, request, takes_type_ids)
