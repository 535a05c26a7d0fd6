"""The forward of a shard whose rows are written on: prompts in, outputs and errors out, in input order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from packhorse.counters import Counters
from packhorse.data import Int64s, RowError, offsets_of, ranges
from packhorse.errors import DeviceOutOfMemoryError
from packhorse.generation import Generated, Prompts, UInt64s
from packhorse.histogram import by_length
from packhorse.sequences import Tokenized
from packhorse.stages import Generator, OnBatch, OnStep
from packhorse.tokenize.dedup import Unique

# A budget of one row and so few tokens is not lowered any more: memory is not what they take.
LEAST_PREFILL_TOKENS = 64


def keys_of(column: pa.ChunkedArray | None, numbers: Int64s) -> tuple[UInt64s, dict[int, RowError]]:
    """[n] what each row's samples depend on: its number in the input, or the value of the seed column, hashed where it
    is no integer; a null there is an error."""
    if column is None:
        return numbers.astype(np.uint64), {}
    if pa.types.is_integer(column.type):
        errors = {i: _no_seed() for i in np.flatnonzero(column.is_null().to_numpy()).tolist()}
        wrapped = column.fill_null(0).to_numpy().astype(np.int64, copy=False)
        return wrapped.view(np.uint64), errors
    values = column.to_pylist()
    errors = {i: _no_seed() for i, value in enumerate(values) if value is None}
    return np.array([_hash(str(value)) for value in values], np.uint64), errors


def _no_seed() -> RowError:
    return RowError("null_seed", "the seed column is null in this row")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def generate(
    prompts: Prompts, model: Generator, max_rows: int, max_prefill_tokens: int, on_batch: OnBatch, counters: Counters
) -> Generated:
    """The outputs of the prompts. Raises DeviceOutOfMemoryError where so many rows do not fit, and RuntimeError where
    the engine did not answer for each of them. Where the budget has no less to give, each prompt runs by itself, and
    one that does not fit is in errors."""

    def on_step(rows: int, tokens: int) -> None:
        counters.batches += 1
        counters.computed_tokens += tokens
        on_batch(rows, tokens, tokens)

    counters.batches = counters.computed_tokens = 0  # nothing of a try that ran out of memory
    with counters.timed("compute_s"):
        if not prompts.num_rows:
            return empty(0, 1)
        known = set(model.notes)
        run = _one_by_one if max_rows == 1 and max_prefill_tokens <= LEAST_PREFILL_TOKENS else _together
        generated = run(prompts, model, max_rows, max_prefill_tokens, on_step)
        counters.notes |= dict.fromkeys([note for note in model.notes if note not in known], 1)
    if len(generated.reasons) % prompts.num_rows or len(generated.offsets) != len(generated.reasons) + 1:
        raise RuntimeError(f"the engine gave {len(generated.reasons)} outputs for {prompts.num_rows} prompts")
    _count(generated, prompts, model, counters)
    return generated


def _together(prompts: Prompts, model: Generator, max_rows: int, max_tokens: int, on_step: OnStep) -> Generated:
    return model.generate(prompts, max_rows, max_tokens, on_step)


def _one_by_one(prompts: Prompts, model: Generator, max_rows: int, max_tokens: int, on_step: OnStep) -> Generated:
    parts: list[Generated] = []
    errors: dict[int, RowError] = {}
    for row in range(prompts.num_rows):
        try:
            parts.append(model.generate(prompts.take(np.array([row])), max_rows, max_tokens, on_step))
        except DeviceOutOfMemoryError as error:
            errors[row] = RowError("out_of_memory", f"the row alone does not fit on the device: {error}")
    samples = len(parts[0].reasons) if parts else 1
    whole = iter(parts)
    return _joined([empty(1, samples) if row in errors else next(whole) for row in range(prompts.num_rows)], errors)


def _joined(parts: Sequence[Generated], errors: Mapping[int, RowError]) -> Generated:
    """parts: of one prompt each."""
    logprobs = [part.logprobs for part in parts if part.logprobs is not None]
    return Generated(
        np.concatenate([part.ids for part in parts]),
        offsets_of(np.concatenate([part.lengths for part in parts])),
        np.concatenate([part.reasons for part in parts]),
        np.concatenate([part.near_ties for part in parts]),
        np.concatenate(logprobs) if logprobs else None,
        {**errors, **{row: error for row, part in enumerate(parts) for error in part.errors.values()}},
    )


def _count(generated: Generated, prompts: Prompts, model: Generator, counters: Counters) -> None:
    lengths, samples = prompts.tokens.lengths, len(generated.reasons) // prompts.num_rows
    written = generated.lengths.reshape(-1, samples)
    counters.generated_tokens = int(written.sum())
    counters.near_ties = int(generated.near_ties.sum())
    counters.real_tokens = int(lengths.sum()) + counters.generated_tokens
    whole = lengths[:, None] + written
    flops = model.cost.flops
    counters.flops = flops(whole.reshape(-1)) - (samples - 1) * flops(lengths)  # a prompt is computed once
    counters.length_computed = by_length(lengths, lengths)


def empty(num_rows: int, num_samples: int) -> Generated:
    """num_rows prompts without outputs."""
    outputs = num_rows * num_samples
    return Generated(
        np.empty(0, np.int32), np.zeros(outputs + 1, np.int64), np.ones(outputs, np.int8), np.zeros(outputs, np.int32)
    )


def spread(generated: Generated, unique: Unique, num_rows: int) -> Generated:
    """Outputs of the unique prompts to all rows that they stand for; rows without a prompt have empty ones."""
    prompts = len(unique.rows)
    if not prompts:
        return empty(num_rows, 1)
    samples = len(generated.reasons) // prompts
    stands = np.where(unique.inverse >= 0, unique.inverse, prompts)  # the last one is the empty output
    outputs = (stands[:, None] * samples + np.arange(samples)).reshape(-1)
    lengths = np.append(generated.lengths, np.zeros(samples, np.int64))[outputs]
    offsets = offsets_of(lengths)
    starts = np.append(generated.offsets[:-1], np.zeros(samples, np.int64))[outputs]
    where = ranges(starts, lengths)
    reasons, ties = (
        np.append(v, np.zeros(samples, v.dtype))[outputs] for v in (generated.reasons, generated.near_ties)
    )
    logprobs = None if generated.logprobs is None else generated.logprobs[where]
    return Generated(generated.ids[where], offsets, reasons, ties, logprobs, _spread(generated.errors, unique))


def _spread(errors: Mapping[int, RowError], unique: Unique) -> dict[int, RowError]:
    return {int(row): error for u, error in errors.items() for row in np.flatnonzero(unique.inverse == u)}


def all_errors(generated: Generated, tokenized: Tokenized) -> dict[int, RowError]:
    """By row of the shard."""
    return dict(sorted({**generated.errors, **tokenized.errors}.items()))
