"""Running rows whose keys and values lie in blocks: a row's table says which, and rows share the blocks of what they
both go on from until one of them writes into it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol

import numpy as np
import torch

from packhorse.backends.torch.generation.slots import R
from packhorse.data import Int32s, Int64s, offsets_of


@dataclass(frozen=True, slots=True)
class PagedStep:
    """New tokens of n sequences side by side, each behind what its blocks hold of it."""

    ids: Int64s  # [T]
    lengths: Int64s  # [n] new tokens of each
    past: Int64s  # [n] tokens of each whose keys are there
    tables: Sequence[Sequence[int]]  # [n] blocks of each, room for the new tokens among them

    def arrays(self) -> dict[str, np.ndarray]:
        """By input of the graph."""
        starts = offsets_of(self.lengths)
        blocks = np.fromiter(itertools.chain.from_iterable(self.tables), np.int32)
        return {
            "input_ids": self.ids,
            "position_ids": np.arange(starts[-1]) + np.repeat(self.past - starts[:-1], self.lengths),
            "last": starts[1:] - 1,
            "past_lens": self.past.astype(np.int32),
            "starts": starts.astype(np.int32),
            "blocks": blocks,
            "block_starts": offsets_of(np.array([len(table) for table in self.tables], np.int64)).astype(np.int32),
            "longest": np.array((self.past + self.lengths).max(), np.int32),
        }


class PagedModel(Protocol):
    """A model over blocks that it holds."""

    block_size: int  # tokens
    windows: Mapping[int, int | None]

    def reserve(self, num_blocks: int) -> None: ...  # at least; what the blocks hold stays
    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None: ...
    def forward(self, step: PagedStep) -> torch.Tensor: ...  # logits [n, V], valid until the next call


@dataclass(eq=False, slots=True)
class Table:
    """Where the keys of a text's tokens lie."""

    blocks: list[int]
    length: int  # tokens


class Blocks:
    """Which blocks are free, and how many tables each of the others is in."""

    def __init__(self, model: PagedModel) -> None:
        self._model = model
        self._free: list[int] = []
        self._uses: list[int] = []

    @property
    def num_used(self) -> int:
        return len(self._uses) - len(self._free)

    def share(self, table: Table) -> Table:
        """Another table of the same tokens."""
        for block in table.blocks:
            self._uses[block] += 1
        return Table(list(table.blocks), table.length)

    def release(self, table: Table) -> None:
        for block in table.blocks:
            self._uses[block] -= 1
            if not self._uses[block]:
                self._free.append(block)

    def extend(self, tables: Sequence[Table], lengths: Sequence[int]) -> None:
        """Room for so many more tokens of each, in blocks that no other table is in. `length` grows with it."""
        size = self._model.block_size
        copies: list[tuple[int, int]] = []
        for table, more in zip(tables, lengths, strict=True):
            if table.length % size and self._uses[table.blocks[-1]] > 1:
                own, shared = self._take(), table.blocks[-1]
                self._uses[shared] -= 1
                table.blocks[-1] = own
                copies.append((shared, own))
            table.length += more
            table.blocks += [self._take() for _ in range(-(-table.length // size) - len(table.blocks))]
        self._model.reserve(len(self._uses))
        if copies:
            self._model.copy_blocks(*zip(*copies, strict=True))

    def _take(self) -> int:
        if not self._free:
            self._uses.append(0)
            self._free.append(len(self._uses) - 1)
        block = self._free.pop()
        self._uses[block] = 1
        return block


class PagedBatch(Generic[R]):
    """A RunningBatch whose keys are Tables."""

    def __init__(self, model: PagedModel) -> None:
        self._model = model
        self._blocks = Blocks(model)
        self._tables: dict[R, Table] = {}
        self.windows = model.windows

    @property
    def num_running(self) -> int:
        return len(self._tables)

    @property
    def num_used(self) -> int:
        """Blocks that hold keys."""
        return self._blocks.num_used

    def prefill(self, texts: Sequence[Int32s], behind: Table | None = None) -> tuple[torch.Tensor, list[Table]]:
        tables = [Table([], 0) if behind is None else self._blocks.share(behind) for _ in texts]
        return self._forward(np.concatenate(texts), tables, [len(text) for text in texts]), tables

    def forget(self, keys: Sequence[Table]) -> None:
        for table in keys:
            self._blocks.release(table)

    def enter(self, running: R, keys: Table) -> None:
        self._tables[running] = self._blocks.share(keys)

    def decode(self) -> tuple[list[R], torch.Tensor]:
        rows = list(self._tables)
        ids = np.array([row.last_id for row in rows])
        logits = self._forward(ids, list(self._tables.values()), [1] * len(rows))
        for row in rows:
            row.length += 1
        return rows, logits

    def leave(self, finished: Sequence[R]) -> None:
        for row in finished:
            self._blocks.release(self._tables.pop(row))

    def _forward(self, ids: np.ndarray, tables: Sequence[Table], lengths: Sequence[int]) -> torch.Tensor:
        past = np.array([table.length for table in tables], np.int64)
        self._blocks.extend(tables, lengths)
        step = PagedStep(ids.astype(np.int64), np.array(lengths, np.int64), past, [table.blocks for table in tables])
        return self._model.forward(step)
