"""A pack: where the rows stand in one sequence of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from packhorse.data import Int64s, offsets_of


class Run(NamedTuple):
    """Neighbouring rows of one length."""

    start: int  # of its first token in the pack
    rows: int
    length: int


class KeyValues(Protocol):
    """Keys and values that outlive a forward: those of rows that are being written."""

    def attend(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scale: float,
        window: int | None,
    ) -> torch.Tensor: ...  # query [1, h, T, d], key and value [1, k, T, d] -> [1, T, h, d]; causal  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """The boundaries of n rows in a sequence of T tokens."""

    runs: tuple[Run, ...]  # none on CUDA, whose kernels read cu_seqlens
    lengths: torch.Tensor  # [n] int64, on the device
    cu_seqlens: torch.Tensor  # [n + 1] int32, on the device
    max_seqlen: int
    kernel: str = "auto"  # on CUDA: auto, flash_attention_2 or flash_attention_3
    where: torch.Tensor | None = None  # [T] each token's place in the padded batch [B * S] that it comes from
    mask_shape: tuple[int, int] | None = None  # [B, S] of that batch
    masks: dict[tuple[int, int | None, bool], torch.Tensor] = field(default_factory=dict)  # made once for all layers
    attended: list[str] = field(default_factory=list)  # who called the attention function
    cache: KeyValues | None = None  # attends in place of the pack, to more keys than the forward's own

    @property
    def starts(self) -> torch.Tensor:
        """[n] each row's first token."""
        return self.cu_seqlens[:-1].long()

    @property
    def ends(self) -> torch.Tensor:
        """[n] each row's last token."""
        return self.cu_seqlens[1:].long() - 1

    def padded(self, values: torch.Tensor) -> torch.Tensor:
        """[T, ...] of the pack -> [B, S, ...] of the padded batch that it comes from, zeros elsewhere."""
        if self.where is None or self.mask_shape is None:
            raise ValueError("this pack comes from no padded batch")
        out = values.new_zeros(self.mask_shape[0] * self.mask_shape[1], *values.shape[1:])
        return out.index_copy(0, self.where, values).unflatten(0, self.mask_shape)

    def mask(self, length: int, window: int | None, is_causal: bool) -> torch.Tensor | None:
        """[length, length] True where a token may look; None where it may look everywhere in its row."""
        if not is_causal and (window is None or window >= length):
            return None
        key = (length, window, is_causal)
        if key not in self.masks:
            place = torch.arange(length, device=self.lengths.device)
            distance = place[:, None] - place
            may_look = distance.abs() < (window or length)
            self.masks[key] = may_look & (distance >= 0) if is_causal else may_look
        return self.masks[key]


def make_pack(lengths: Int64s, device: Any, kernel: str = "auto") -> Pack:
    """lengths: [n] tokens of each row, in the order in which the rows stand."""
    offsets = offsets_of(lengths)
    is_cuda = torch.device(device).type == "cuda"
    on_device = {"device": device, "non_blocking": True}
    return Pack(
        () if is_cuda else runs_of(lengths, offsets),
        torch.from_numpy(np.ascontiguousarray(lengths, np.int64)).to(**on_device),
        torch.from_numpy(offsets.astype(np.int32)).to(**on_device),
        int(lengths.max(initial=0)),
        kernel,
    )


def runs_of(lengths: Int64s, offsets: Int64s) -> tuple[Run, ...]:
    firsts = np.flatnonzero(np.diff(lengths, prepend=-1))
    counts = np.diff(np.append(firsts, len(lengths)))
    return tuple(Run(int(offsets[f]), int(n), int(lengths[f])) for f, n in zip(firsts, counts, strict=True))


def pack_of_mask(mask: torch.Tensor) -> Pack:
    """The pack of a padded batch. mask: [B, S] True for real tokens, wherever they stand; a row may have none.

    Rows are ordered by length, so that those of one length are a run.
    """
    lengths = mask.sum(1)
    order = torch.argsort(lengths, stable=True, descending=True)
    order = order[lengths[order] > 0]
    rows, columns = mask[order].nonzero(as_tuple=True)
    pack = make_pack(lengths[order].cpu().numpy(), mask.device)
    return replace(pack, where=order[rows] * mask.shape[1] + columns, mask_shape=(mask.shape[0], mask.shape[1]))


def row_positions(ids: np.ndarray, lengths: Int64s, padding_idx: int | None) -> Int64s:
    """[T] positions that start anew in every row.

    padding_idx: of a RoBERTa-like position table, whose positions begin behind it and skip tokens that are padding
    (a text may contain the padding token's name).
    """
    starts = np.repeat(offsets_of(lengths)[:-1], lengths)
    if padding_idx is None:
        positions: Int64s = np.arange(len(ids)) - starts
        return positions
    is_text = ids != padding_idx
    seen = offsets_of(is_text.astype(np.int64))
    counted: Int64s = (seen[1:] - seen[starts]) * is_text + padding_idx
    return counted
