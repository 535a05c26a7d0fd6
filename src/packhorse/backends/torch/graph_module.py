"""A transformers model and its reduction as one torch module, for whoever makes a graph of it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from packhorse.backends.torch import vocabulary
from packhorse.backends.torch.graph_values import input_names
from packhorse.backends.torch.head_proof import check_head
from packhorse.backends.torch.layouts import Padded
from packhorse.backends.torch.reduce import Reducer
from packhorse.backends.torch.weights import pad_id
from packhorse.data import Batch, Float32s, Reduction, Tokens
from packhorse.load_request import LoadRequest
from packhorse.packing.heads import PackedModel
from packhorse.sequences import comparable

Outputs: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]


class GraphModule(nn.Module):
    """input_ids, attention_mask and, where the model has them, token_type_ids [B, S]; places, targets [M] as
    graph_values.input_names says -> the outputs that graph_values.output_names lists."""

    def __init__(self, model: Any, request: LoadRequest, takes_type_ids: bool) -> None:
        """Raises ModelError where a model that is to score what comes next sees it."""
        super().__init__()
        self.model, self.takes_type_ids = model, takes_type_ids
        self.pad_id = pad_id(model.config)
        model.config.use_cache = False  # a cache would be an output
        self.reducer = Reducer(request.reduction, "cpu")
        self._apart, self._padded = PackedModel(model), Padded(model, self.reducer, "cpu", "auto")
        self.notes: tuple[str, ...] = ()
        if request.reduction.reads_vocabulary:
            known = dataclasses.replace(request, trial=self._known(request.trial))
            base = {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(model.dtype, "fp32")
            self.notes = check_head(self._padded, model, request.reduction, known, base)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        places: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
    ) -> Outputs:
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        given |= {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        reduction = self.reducer.reduction
        if places is not None:
            return _of_places(reduction, self._logits(given, places).float(), targets)
        output = self.model(**given)
        if reduction.kind == "sparse":
            return vocabulary.padded_weights(reduction, output.logits.float(), attention_mask)
        if reduction.per == "token":
            return self.reducer.tokens(output, lambda values: values)
        values: torch.Tensor = self.reducer(output, attention_mask.sum(1))
        return values

    def _logits(self, given: dict[str, torch.Tensor], places: torch.Tensor) -> torch.Tensor:
        """[M, V]. Where the head can be called on some tokens it sees these alone: of all they would be [B, S, V]."""
        if self._padded.calls_head_apart:
            hidden = self._apart.padded_hidden(given).flatten(0, 1)[places]
            of_places: torch.Tensor = self._apart.of_tokens(hidden).logits.flatten(0, 1)
            return of_places
        logits: torch.Tensor = self.model(**given).logits
        return logits.flatten(0, 1)[places]

    def alone(self, tokens: Tokens) -> list[Float32s]:
        """Of each row alone, by the model's own forward and without this module's: values that can be compared."""
        known = self._known(tokens)
        rows = (Batch(known.take(np.array([i]))) for i in range(known.num_rows))
        return [comparable(self.reducer.reduction, self._padded.plain(row).numpy()) for row in rows]

    def _known(self, tokens: Tokens) -> Tokens:
        """What the model takes of them."""
        return tokens if self.takes_type_ids else Tokens(tokens.ids, tokens.offsets, None, tokens.targets)


def example_places(reduction: Reduction) -> dict[str, torch.Tensor]:
    """For tracing a batch of at least 2 rows of 9: neither as many as there are rows nor one, nor all of one row."""
    return {name: torch.tensor([1, 4, 10]) for name in input_names(reduction)}


def _of_places(reduction: Reduction, logits: torch.Tensor, targets: torch.Tensor | None) -> Outputs:
    """logits: [M, V]."""
    if targets is not None:
        return logits.gather(1, targets[:, None]) - logits.logsumexp(1, keepdim=True)
    probabilities = logits.softmax(1)
    if reduction.columns:
        # Flattened above and expanded here: of a Gather with a constant index NNCF makes one of another rank in int8.
        return probabilities.gather(1, torch.tensor([reduction.columns]).expand(probabilities.shape[0], -1))
    best = probabilities.topk(min(reduction.top_k, logits.shape[1]), 1)
    return best.values, best.indices


def reduce_on_host(reducer: Reducer, fields: dict[str, np.ndarray], batch: Batch) -> Float32s:
    """[N, width] of the model's own outputs for a padded batch. fields: [B, ...] each, by the names of transformers."""
    tensors = {name: torch.from_numpy(values) for name, values in fields.items()}
    lengths = torch.from_numpy(np.ascontiguousarray(batch.tokens.lengths))
    with torch.inference_mode():
        if not reducer.reduction.reads_vocabulary:
            reduced: Float32s = reducer(SimpleNamespace(**tensors), lengths).numpy()
            return reduced
        logits = tensors["logits"]
        is_token = torch.arange(logits.shape[1]) < lengths[:, None]
        wanted = {name: torch.from_numpy(array) for name, array in reducer.inputs(batch).items()}
        values: Float32s = reducer.vocabulary(
            logits[is_token], lengths, wanted["places"], wanted["targets"], lambda rows: rows
        ).numpy()
    return values
