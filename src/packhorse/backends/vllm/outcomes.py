"""What became of each output that was asked for: its tokens, or why there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from packhorse.backends.vllm.sampling import Sampling
from packhorse.data import Float32s, Int32s, RowError, offsets_of
from packhorse.generation import LENGTH, STOP, Generated, Prompts
from packhorse.stages import OnStep

REASONS = {"stop": STOP, "length": LENGTH}


@dataclass(frozen=True, slots=True)
class Output:
    ids: Int32s
    reason: int
    logprobs: Float32s | None


@dataclass(slots=True)
class Outcomes:
    """Of all outputs of some prompts, by number: prompt x samples + sample."""

    prompts: Prompts
    sampling: Sampling
    on_step: OnStep
    outputs: dict[int, Output] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    _left: dict[int, int] = field(default_factory=dict)  # by prompt: outputs still to come

    def is_open(self, number: int) -> bool:
        return number not in self.outputs and number not in self.errors

    def prompt(self, number: int) -> Int32s:
        tokens, row = self.prompts.tokens, number // self.sampling.num_samples
        return tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]]

    def take(self, rows: Sequence[Mapping[str, Any]], payload: bytes) -> None:
        """Finished outputs as the server tells them; what is not whole stays open."""
        total = sum(row["length"] for row in rows)
        ids = np.frombuffer(payload, "<i4", total).astype(np.int32, copy=False)
        logprobs = np.frombuffer(payload, "<f4", offset=ids.nbytes).astype(np.float32, copy=False)
        start = finished = computed = 0
        for row in rows:
            end = start + row["length"]
            output = whole(row, ids[start:end], logprobs[start:end] if len(logprobs) else None, self.sampling.end_ids)
            start = end
            if output is not None and self.is_open(row["number"]):
                self.outputs[row["number"]] = output
                finished += self._closes(row["number"])
                computed += len(self.prompt(row["number"])) + len(output.ids)
        self.on_step(finished, computed)

    def fail(self, number: int, message: str) -> None:
        if self.is_open(number):
            self.errors[number] = message
            self.on_step(self._closes(number), 0)

    def _closes(self, number: int) -> int:
        """1 where that was the last output of its prompt."""
        row = number // self.sampling.num_samples
        self._left[row] = self._left.get(row, self.sampling.num_samples) - 1
        return int(self._left[row] == 0)

    def generated(self, with_logprobs: bool) -> Generated:
        """All outputs are closed. A prompt with one that failed has none."""
        samples = self.sampling.num_samples
        errors = {number // samples: message for number, message in sorted(self.errors.items(), reverse=True)}
        nothing = Output(np.empty(0, np.int32), LENGTH, np.empty(0, np.float32))
        outputs = [
            nothing if number // samples in errors else self.outputs[number]
            for number in range(self.prompts.num_rows * samples)
        ]
        logprobs = [o.logprobs for o in outputs if o.logprobs is not None] if with_logprobs else None
        return Generated(
            ids=np.concatenate([nothing.ids, *(o.ids for o in outputs)]),
            offsets=offsets_of(np.array([len(o.ids) for o in outputs], np.int64)),
            reasons=np.array([o.reason for o in outputs], np.int8),
            near_ties=np.zeros(len(outputs), np.int32),  # vLLM does not tell
            logprobs=None if logprobs is None else np.concatenate([np.empty(0, np.float32), *logprobs]),
            errors={row: RowError("engine_failed", message) for row, message in sorted(errors.items())},
        )


def whole(row: Mapping[str, Any], ids: Int32s, logprobs: Float32s | None, end_ids: tuple[int, ...]) -> Output | None:
    """None where vLLM gave the output up, or gave nothing. An end token is the last id, as vLLM has it; where it told
    that one ended the output and left it out, it is put back, its log-probability not known."""
    reason = REASONS.get(row["finish_reason"])
    if reason is None:
        return None
    end = row["stop_reason"] if isinstance(row["stop_reason"], int) else None
    if reason == STOP and end is None and row["stop_reason"] is None and len(end_ids) == 1:
        end = end_ids[0]
    if reason == STOP and end is not None and (not len(ids) or ids[-1] != end):
        ids = np.append(ids, np.int32(end))
        logprobs = None if logprobs is None else np.append(logprobs, np.float32("nan"))
    return Output(ids, reason, logprobs) if len(ids) else None
