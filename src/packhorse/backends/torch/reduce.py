"""A Reduction on the device: what is left of hidden states or of a head's output. Always in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from packhorse.backends.torch import vocabulary
from packhorse.backends.torch.places import inputs
from packhorse.data import Batch, DenseLayer, Reduction
from packhorse.errors import ModelError
from packhorse.packing.pack import Pack


class Reducer(nn.Module):
    """Called with a model's output and the rows' lengths [B]; gives [N, width], N as Reduction.per says."""

    def __init__(self, reduction: Reduction, device: str) -> None:
        super().__init__()
        self.reduction = reduction
        self._post = (
            nn.ModuleList(Dense(p) if isinstance(p, DenseLayer) else Normalize() for p in reduction.post)
            .to(device)
            .eval()
        )

    def forward(self, output: Any, lengths: torch.Tensor) -> torch.Tensor:
        kind = self.reduction.kind
        if kind == "classify":
            return activate(output.logits.float(), self.reduction.activation)
        if kind == "pool":
            hidden, skip = output.last_hidden_state, self.reduction.skip_tokens
            return self._posted(torch.cat([pool(hidden, lengths, mode, skip) for mode in self.reduction.pooling], 1))
        is_token = torch.arange(_of_tokens(output, kind).shape[1], device=lengths.device) < lengths[:, None]
        return self.tokens(output, lambda values: values[is_token])

    def packed(self, hidden: torch.Tensor, pack: Pack, head: Callable[[], Any]) -> torch.Tensor:
        """The same from a pack's hidden states [T, H], or from the output of the model's head on them."""
        if self.reduction.kind == "classify":
            return activate(head().logits.float(), self.reduction.activation)
        if self.reduction.kind == "pool":
            skip = self.reduction.skip_tokens
            return self._posted(
                torch.cat([pool_packed(hidden, pack, mode, skip) for mode in self.reduction.pooling], 1)
            )
        return self.tokens(head(), lambda values: values[0])

    def tokens(self, output: Any, only: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Of an output with a line for each token: [T, width]. only: leaves the tokens of the rows, one after the
        other, of [B, S, ...]."""
        kind = self.reduction.kind
        if kind == "spans":
            return torch.stack([only(output.start_logits), only(output.end_logits)], -1).float()
        values = only(_of_tokens(output, kind)).float()
        return activate(values, self.reduction.activation) if kind == "tokens" else self._posted(values)

    def inputs(self, batch: Batch) -> dict[str, np.ndarray]:
        """What it needs beside the model's inputs."""
        return inputs(self.reduction, batch) if self.reduction.reads_vocabulary else {}

    def vocabulary(
        self, hidden: torch.Tensor, lengths: torch.Tensor, places: torch.Tensor, ids: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:  # fmt: skip
        """hidden: [T, H] of the rows' tokens, one row after the other. places: [M] the tokens whose logits are needed,
        ids: [M] those to be scored there. head: [m, H] -> logits [m, V], called on a few tokens at a time."""
        return vocabulary.reduce(self.reduction, hidden, lengths, places, ids, head)

    def _posted(self, values: torch.Tensor) -> torch.Tensor:
        for layer in self._post:
            values = layer(values)
        return values


def _of_tokens(output: Any, kind: str) -> torch.Tensor:
    """[B, S, ...]."""
    if kind == "spans":
        logits: torch.Tensor = output.start_logits
        return logits
    found: torch.Tensor = output.logits if kind == "tokens" else output.last_hidden_state
    return found


def activate(logits: torch.Tensor, activation: str) -> torch.Tensor:
    """[..., C] logits to scores."""
    if activation == "softmax":
        return logits.softmax(-1)
    return logits.sigmoid() if activation == "sigmoid" else logits


def pool(hidden: torch.Tensor, lengths: torch.Tensor, mode: str, skip: int) -> torch.Tensor:
    """[B, S, H] hidden states, [B] lengths -> [B, H] float32. The first `skip` tokens, a prompt, are left out.

    As sentence_transformers.models.Pooling does, except that `last` is the row's last token wherever padding is.
    """
    if mode in ("last", "cls"):  # gathered: indexing by row numbers would fix their number in an exported graph
        place = lengths - 1 if mode == "last" else torch.where(lengths > skip, skip, 0)
        return hidden.gather(1, place.view(-1, 1, 1).expand(-1, 1, hidden.shape[2])).squeeze(1).float()
    position = torch.arange(hidden.shape[1], device=hidden.device)
    is_pooled = ((position < lengths[:, None]) & (position >= skip)).unsqueeze(-1)
    if mode == "max":
        return hidden.float().masked_fill(~is_pooled, float("-inf")).amax(1)
    total = (hidden * is_pooled.to(hidden.dtype)).sum(1, dtype=torch.float32)
    return total / (lengths - skip).clamp(min=1).unsqueeze(1)


def pool_packed(hidden: torch.Tensor, pack: Pack, mode: str, skip: int) -> torch.Tensor:
    """[T, H] hidden states of a pack -> [n, H] float32, as pool() does."""
    if mode == "last":
        return hidden[pack.ends].float()
    if mode == "cls":
        return hidden[pack.starts + torch.where(pack.lengths > skip, skip, 0)].float()
    if hidden.is_cuda:
        return _segments(hidden, pack, mode, skip)
    pooled = hidden.new_empty(len(pack.lengths), hidden.shape[1], dtype=torch.float32)
    row = 0
    for run in pack.runs:  # rows of one length are a block
        block = hidden[run.start : run.start + run.rows * run.length].view(run.rows, run.length, -1)[:, skip:]
        out = pooled[row : row + run.rows]
        if mode == "max":
            torch.amax(block.float(), 1, out=out) if run.length > skip else out.fill_(float("-inf"))
        else:
            out.copy_(block.sum(1, dtype=torch.float32) / max(run.length - skip, 1))
        row += run.rows
    return pooled


def _segments(hidden: torch.Tensor, pack: Pack, mode: str, skip: int) -> torch.Tensor:
    """Without a loop over runs, for devices where each launch costs more than its work."""
    lengths = (pack.lengths - skip).clamp(min=0)
    if skip:
        place = torch.arange(len(hidden), device=hidden.device) - pack.starts.repeat_interleave(pack.lengths)
        hidden = hidden[place >= skip]
    reduce = "max" if mode == "max" else "sum"
    values = torch.segment_reduce(hidden.float(), reduce, lengths=lengths, axis=0, unsafe=True)
    return values if mode == "max" else values / lengths.clamp(min=1).unsqueeze(1)


class Normalize(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return F.normalize(values, dim=-1)


class Dense(nn.Module):
    """A sentence-transformers Dense module, from its folder's safetensors. Raises ModelError without them."""

    def __init__(self, layer: DenseLayer) -> None:
        super().__init__()
        path = Path(layer.folder) / "model.safetensors"
        if not path.is_file():
            raise ModelError(f"{path}: missing; the weights of a Dense module are read from safetensors alone")
        with safe_open(path, "pt") as file:  # beside a transformer's own, where it is ColBERT's
            names = [name for name in file.keys() if name.split(".")[0] in ("linear", "residual")]  # noqa: SIM118
            weights = {name: file.get_tensor(name) for name in names}
        self.linear = nn.Linear(layer.in_features, layer.out_features, layer.bias)
        self.activation = getattr(nn, layer.activation)()
        self.residual: nn.Module | None = None
        if layer.residual:
            square = layer.in_features == layer.out_features
            self.residual = nn.Identity() if square else nn.Linear(layer.in_features, layer.out_features, bias=False)
        try:
            self.load_state_dict(weights)
        except RuntimeError as error:
            raise ModelError(f"{path}: does not fit its config.json: {error}") from error
        self.float()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.activation(self.linear(values))
        return projected if self.residual is None else projected + self.residual(values)
