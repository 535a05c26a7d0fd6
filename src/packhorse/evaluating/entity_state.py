"""Entities of tagged words, counted on the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torchmetrics import Metric

OUTSIDE = "O"
PREFIXES = ("B", "I", "E", "L", "S", "U")  # IOB2, IOBES, BILOU
BEGINNING, ENDING = ("B", "S", "U"), ("E", "L", "S", "U")
ONLY_TYPE = "entity"  # of labels that are prefixes alone: B, I, O


class Tags(NamedTuple):
    """Of each of the model's labels: the number of its entity type, -1 for O; whether an entity begins, and ends, at
    such a word whatever stands beside it."""

    types: torch.Tensor  # [labels] of int64
    begins: torch.Tensor  # [labels] of bool
    ends: torch.Tensor  # [labels] of bool
    names: tuple[str, ...]  # of the types

    @classmethod
    def of(cls, labels: tuple[str, ...]) -> Tags:
        """A label without a prefix is a type whose words one after the other are one entity."""
        parts = [_parted(label) for label in labels]
        names = tuple(dict.fromkeys(kind for _, kind in parts if kind != OUTSIDE))
        types = torch.tensor([names.index(kind) if kind != OUTSIDE else -1 for _, kind in parts])
        begins, ends = (torch.tensor([p in which for p, _ in parts]) for which in (BEGINNING, ENDING))
        return cls(types, begins, ends, names)


def _parted(label: str) -> tuple[str, str]:
    """Prefix and type."""
    prefix, dash, kind = label.partition("-")
    if dash and kind and prefix in PREFIXES:
        return prefix, kind
    return (label, ONLY_TYPE) if label in PREFIXES else ("", label)


class Entities(Metric):
    """counts [types, 3] entities: predicted, in the labels, and in both with the same words and type; words [2]: those
    with the right tag, and all. Which tags begin, go on and end an entity is seqeval's default reading, that of
    conlleval: an I- that follows another type, or nothing, begins one too."""

    full_state_update = False
    counts: torch.Tensor
    words: torch.Tensor
    types: torch.Tensor
    begins: torch.Tensor
    ends: torch.Tensor

    def __init__(self, tags: Tags) -> None:
        super().__init__()
        beyond = torch.tensor([-1])  # the last one, which tag -1 finds: of a word without a prediction
        self.register_buffer("types", torch.cat([tags.types, beyond]))
        self.register_buffer("begins", torch.cat([tags.begins, beyond > 0]))
        self.register_buffer("ends", torch.cat([tags.ends, beyond > 0]))
        self.add_state("counts", torch.zeros(len(tags.names), 3, dtype=torch.int64), "sum")
        self.add_state("words", torch.zeros(2, dtype=torch.int64), "sum")

    def update(
        self, predicted: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor, is_measured: torch.Tensor
    ) -> None:
        """Of words, one row's after the other's: [n] predicted tags, -1 for none; true ones; the number of each word's
        row; whether that is measured."""
        ours, ours_end = self._found(predicted, rows)
        theirs, theirs_end = self._found(labels, rows)
        is_same = ours & theirs & (self.types[predicted] == self.types[labels]) & (ours_end == theirs_end)
        for column, (begins, tags) in enumerate(((ours, predicted), (theirs, labels), (is_same, labels))):
            added = (begins & is_measured).to(torch.int64)
            self.counts[:, column].index_add_(0, self.types[tags].clamp(min=0), added)
        self.words += torch.stack([((predicted == labels) & is_measured).sum(), is_measured.sum()])

    def _found(self, tags: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[n] whether an entity begins at a word, and [n] the last word of the entity that a word is part of."""
        types, begins, ends = self.types[tags], self.begins[tags], self.ends[tags]
        goes_on = (types[1:] == types[:-1]) & (rows[1:] == rows[:-1]) & ~begins[1:] & ~ends[:-1] & (types[1:] >= 0)
        edge = goes_on.new_zeros(1)
        is_first = (types >= 0) & ~torch.cat([edge, goes_on])
        is_last = ~torch.cat([goes_on, edge])
        here = torch.arange(len(tags), device=tags.device)
        last = torch.where(is_last, here, len(tags)).flip(0).cummin(0).values.flip(0)
        return is_first, last

    def compute(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.counts, self.words
