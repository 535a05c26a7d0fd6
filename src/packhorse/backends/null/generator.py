"""Generation without a model: how much is written, and what, is a checksum of the prompt, its key and the step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from packhorse.data import Int32s, Reduction, offsets_of
from packhorse.errors import DeviceOutOfMemoryError
from packhorse.generation import LENGTH, STOP, Decoding, Generated, Prompts
from packhorse.model_cost import ModelCost
from packhorse.stages import OnStep

MAX_NEW_TOKENS = 256
FIRST_ID, NUM_IDS = 5, 30  # behind the special tokens of a small vocabulary


class NullGenerator:
    """`capacity_rows`: more at the same time are out of memory. `before_step` is called with the step's number."""

    device = "cpu"
    cost = ModelCost()
    weight_bytes = 0
    attention = "none"
    engine = "null"
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        decoding: Decoding,
        max_length: int | None,
        capacity_rows: int | None = None,
        before_step: Callable[[int], None] | None = None,
    ) -> None:
        self.reduction = Reduction("generate")
        self.max_length = max_length
        self.max_new_tokens = int(decoding.settings.get("max_new_tokens") or MAX_NEW_TOKENS)
        self.is_sampled = bool(decoding.settings.get("do_sample"))
        self._decoding, self._capacity, self._before_step = decoding, capacity_rows, before_step

    def generate(self, prompts: Prompts, max_rows: int, max_prefill_tokens: int, on_step: OnStep) -> Generated:
        outputs: list[Int32s] = []
        for first in range(0, prompts.num_rows, max_rows):
            rows = range(first, min(first + max_rows, prompts.num_rows))
            if self._capacity is not None and len(rows) > self._capacity:
                raise DeviceOutOfMemoryError(f"{len(rows)} rows at once do not fit")
            if self._before_step is not None:
                self._before_step(first // max_rows)
            made = [self._written(prompts, row, sample) for row in rows for sample in range(self._decoding.num_samples)]
            outputs += made
            on_step(len(rows), int(prompts.tokens.lengths[rows].sum()) + sum(map(len, made)))
        lengths = np.array([len(ids) for ids in outputs], np.int64)
        reasons = np.where(lengths < self.max_new_tokens, STOP, LENGTH).astype(np.int8)
        ids = np.concatenate([np.empty(0, np.int32), *outputs])
        logprobs = -(ids % 7).astype(np.float32) if self._decoding.with_logprobs else None
        return Generated(ids, offsets_of(lengths), reasons, np.zeros(len(outputs), np.int32), logprobs)

    def _written(self, prompts: Prompts, row: int, sample: int) -> Int32s:
        tokens = prompts.tokens
        ids = tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]]
        seed = f"{self._decoding.seed}/{prompts.keys[row]}/{sample}" if self.is_sampled else str(sample)
        digest = hashlib.blake2b(ids.tobytes() + seed.encode(), digest_size=8).digest()
        noise = np.random.default_rng(int.from_bytes(digest, "little"))
        length = int(noise.integers(1, self.max_new_tokens + 1))
        return noise.integers(FIRST_ID, FIRST_ID + NUM_IDS, length).astype(np.int32)

    def peak_bytes(self) -> int | None:
        return None

    def close(self) -> None: ...
