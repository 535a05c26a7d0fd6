"""Tables of blocks: every row sees its own tokens, whatever it shares."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from packhorse.backends.torch.generation.paged_batch import PagedBatch, PagedStep


class Remembering:
    """A PagedModel whose blocks hold ids, and whose logits [n, 1] are a hash of all that a sequence's table shows."""

    block_size = 4
    windows: Mapping[int, int | None] = {}

    def __init__(self) -> None:
        self.blocks = np.zeros((0, self.block_size), np.int64)

    def reserve(self, num_blocks: int) -> None:
        more = np.full((max(num_blocks - len(self.blocks), 0), self.block_size), -1, np.int64)
        self.blocks = np.concatenate([self.blocks, more])

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self.blocks[list(targets)] = self.blocks[list(sources)]

    def forward(self, step: PagedStep) -> torch.Tensor:
        arrays = step.arrays()
        seen = []
        for i, (start, stop) in enumerate(itertools.pairwise(arrays["starts"].tolist())):
            table = arrays["blocks"][arrays["block_starts"][i] : arrays["block_starts"][i + 1]]
            past, end = int(step.past[i]), int(step.past[i]) + stop - start
            assert arrays["position_ids"][start:stop].tolist() == list(range(past, end))
            assert len(table) == -(-end // self.block_size) and end <= arrays["longest"]
            for at, token in zip(range(past, end), step.ids[start:stop], strict=True):
                self.blocks[table[at // self.block_size], at % self.block_size] = token
            seen.append(hash(tuple(self.blocks[table].ravel()[:end].tolist())) % 2**40)
        return torch.tensor(seen, dtype=torch.float64)[:, None]


class Text:
    def __init__(self, ids: list[int]) -> None:
        self.ids, self.length = ids, len(ids) - 1

    @property
    def last_id(self) -> int:
        return self.ids[-1]

    def digest(self, end: int) -> int:
        return hash(tuple(self.ids[:end])) % 2**40


@pytest.mark.parametrize("seed", range(5))
def test_rows_see_their_own_tokens_alone_whatever_blocks_they_share(seed: int) -> None:
    """Prompts that go on from others, several rows of one prompt, rows that leave in any order."""
    rng = np.random.default_rng(seed)
    batch: PagedBatch[Text] = PagedBatch(Remembering())
    running: list[Text] = []
    beginning = rng.integers(0, 9, rng.integers(1, 10)).astype(np.int32)
    _, (prefix,) = batch.prefill([beginning])
    for _ in range(60):
        if rng.random() < 0.3:
            new = [rng.integers(0, 9, rng.integers(1, 11)).astype(np.int32) for _ in range(rng.integers(1, 4))]
            before = beginning.tolist() if (behind := rng.random() < 0.5) else []
            logits, keys = batch.prefill(new, prefix if behind else None)
            wholes = [[*before, *text.tolist()] for text in new]
            assert logits[:, 0].tolist() == [Text(whole).digest(len(whole)) for whole in wholes]
            for whole, own in zip(wholes, keys, strict=True):
                for first in range(rng.integers(0, 4)):
                    running.append(Text([*whole, first]))
                    batch.enter(running[-1], own)
            batch.forget(keys)
        elif running:
            rows, logits = batch.decode()
            assert {id(row) for row in rows} == {id(row) for row in running}
            assert logits[:, 0].tolist() == [row.digest(row.length) for row in rows]
            for row in rows:
                row.ids.append(int(rng.integers(0, 9)))
            finished = [row for row in running if rng.random() < 0.1]
            batch.leave(finished)
            running = [row for row in running if row not in finished]
    batch.leave(running)
    assert batch.num_running == 0
    batch.forget([prefix])
    assert batch.num_used == 0
