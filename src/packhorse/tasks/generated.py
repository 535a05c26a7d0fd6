"""Columns of text that a model has written, as several tasks have them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from packhorse.config import EngineConfig
from packhorse.data import Bools, Int64s, Reduction, offsets_of
from packhorse.generation import FINISH_REASONS, Generated
from packhorse.sequences import Sequencing
from packhorse.stages import Detokenize


class GeneratedText:
    """Columns of text, finish_reason, num_prompt_tokens and num_generated_tokens; on request generated_token_ids and
    logprobs, a number for each token written, the last one the end token where there was one. With several outputs a
    prompt all but num_prompt_tokens are lists of them. Null where a row is in error."""

    def __init__(self, name: str, text_column: str, settings: EngineConfig) -> None:
        decoding = settings.decoding()
        self.name = name
        self._text_column = text_column
        self._num_samples, self._with_logprobs = decoding.num_samples, decoding.with_logprobs

    def reduction(self) -> Reduction:
        return Reduction("generate")

    def sequencing(self) -> Sequencing:
        return Sequencing()

    def fields(self, width: int) -> list[pa.Field]:
        """width: of no meaning here."""
        own = {self._text_column: pa.large_string(), "finish_reason": pa.large_string()}
        counts = {"num_prompt_tokens": pa.int32(), "num_generated_tokens": pa.int32()}
        tokens = {"generated_token_ids": pa.list_(pa.int32()), "logprobs": pa.list_(pa.float32())}
        kinds = own | counts | (tokens if self._with_logprobs else {})
        return [pa.field(name, self._kind(name, kind)) for name, kind in kinds.items()]

    def finish_generated(
        self, generated: Generated, prompt_lengths: Int64s, is_valid: Bools, detokenize: Detokenize
    ) -> list[pa.Array]:
        """The columns of n prompts, in the order of fields(). prompt_lengths: [n] tokens; is_valid: [n]; detokenize:
        gives the texts of rows of ids."""
        if not is_valid.any():
            generated = self._nothing(len(is_valid))  # no engine was asked
        self._check(generated, len(is_valid))
        outputs = [generated.ids[a:b] for a, b in zip(generated.offsets[:-1], generated.offsets[1:], strict=True)]
        reasons = pa.array(FINISH_REASONS, pa.large_string()).take(pa.array(generated.reasons, pa.int8()))
        columns = [
            self._by_prompt(pa.array(detokenize(outputs), pa.large_string()), is_valid),
            self._by_prompt(reasons, is_valid),
            pa.array(prompt_lengths, pa.int32(), mask=~is_valid),
            self._by_prompt(pa.array(generated.lengths, pa.int32()), is_valid),
        ]
        if self._with_logprobs:
            flat = (pa.array(generated.ids, pa.int32()), pa.array(generated.logprobs, pa.float32()))
            columns += [self._by_prompt(lists(values, generated.offsets), is_valid) for values in flat]
        return columns

    def _kind(self, name: str, kind: pa.DataType) -> pa.DataType:
        return kind if self._num_samples == 1 or name == "num_prompt_tokens" else pa.list_(kind)

    def _by_prompt(self, values: pa.Array, is_valid: Bools) -> pa.Array:
        """[n * k] values of outputs as [n], null where not valid."""
        if self._num_samples == 1:
            return values.take(pa.array(np.arange(len(is_valid)), mask=~is_valid))
        sizes = np.where(is_valid, self._num_samples, 0)
        kept = values.take(pa.array(np.flatnonzero(np.repeat(is_valid, self._num_samples))))
        return lists(kept, offsets_of(sizes), is_valid)

    def _nothing(self, num_prompts: int) -> Generated:
        outputs = num_prompts * self._num_samples
        reasons, near_ties = np.zeros(outputs, np.int8), np.zeros(outputs, np.int32)
        offsets, logprobs = np.zeros(outputs + 1, np.int64), np.empty(0, np.float32)
        return Generated(np.empty(0, np.int32), offsets, reasons, near_ties, logprobs)

    def _check(self, generated: Generated, num_prompts: int) -> None:
        if len(generated.lengths) != num_prompts * self._num_samples:
            raise RuntimeError(
                f"{len(generated.lengths)} outputs came for {num_prompts} prompts with {self._num_samples} each"
            )
        if self._with_logprobs and generated.logprobs is None:
            raise RuntimeError("log-probabilities were asked for, and the model's engine gave none")


def lists(values: pa.Array, offsets: Int64s, is_valid: Bools | None = None) -> pa.Array:
    """A list column: row i is values[offsets[i]:offsets[i + 1]], null where not valid."""
    mask = None if is_valid is None else pa.array(~is_valid)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=mask)
