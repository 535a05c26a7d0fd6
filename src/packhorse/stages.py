"""What each stage must offer, as Protocols. Whoever fits one is a stage: there is nothing to register."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from packhorse.data import Batch, BatchPlan, Bools, Chunk, Float32s, Int64s, Position, Reduction
from packhorse.generation import Generated, Prompts
from packhorse.model_cost import ModelCost
from packhorse.sequences import Results, Sequencing, Tokenized


class Reader(Protocol):
    """Rows of the input, in one order for ever, from any position on."""

    files: Sequence[str]
    raw_column: str | None  # pseudo-column that is the row as it stands in the file
    rescues: bool  # whether a column `_rescued_data` is made by it, of what fits no other

    def schema(self) -> pa.Schema: ...
    def num_rows(self) -> int | None: ...  # None: not known before reading
    def progress(self, position: Position) -> float: ...  # share of the input before it, 0 to 1
    def fingerprint(self) -> list[dict[str, object]]: ...
    def spread(self, places: int) -> list[Position]: ...  # where reading may begin, at even steps through the input
    def read(self, start: Position, columns: Sequence[str], text_columns: Sequence[str]) -> Iterator[Chunk]: ...


class Tokenizer(Protocol):
    """Texts, or lists of words; second texts, or lists of labels."""

    def tokenize(self, texts: Sequence[Any], pairs: Sequence[Any] | None) -> Tokenized: ...
    def close(self) -> None: ...


class Planner(Protocol):
    def __call__(self, lengths: Int64s, max_batch_tokens: int, batch_size: int | None) -> BatchPlan: ...


class Output(Protocol):
    """The result of a forward, perhaps still on its way from the device."""

    def numpy(self) -> Float32s: ...  # [N, width], N as Reduction.per says; waits


class LoadedModel(Protocol):
    """A backend's loaded model. `forward` raises DeviceOutOfMemoryError where a batch does not fit, and
    BatchRefusedError where the model itself refuses what stands in one of its rows."""

    reduction: Reduction  # its width is known now
    cost: ModelCost
    weight_bytes: int  # of all weights as they lie in memory or, for a graph, in its file; embedding tables included
    device: str
    pads_safely: bool  # whether a row in a padded batch has the output that it has alone
    max_length: int | None  # tokens the loaded weights can position; None: no limit known
    attention: str  # how it is computed, by the names of --attention
    is_packed: bool  # rows of any lengths run together, without padding
    notes: tuple[str, ...]  # what was tried and why it was not taken, for the plan
    in_flight: int  # batches worth handing over before the first result is waited for

    def forward(self, batch: Batch) -> Output: ...
    def computed_tokens(self, lengths: Int64s) -> int: ...  # of a batch of these rows, padding included
    def peak_bytes(self) -> int | None: ...  # of the device's memory; None where it is the host's
    def close(self) -> None: ...


OnBatch = Callable[[int, int, int], None]  # rows, real tokens, computed tokens
OnStep = Callable[[int, int], None]  # rows that were finished, tokens computed since the last call; may raise


class Generator(Protocol):
    """A loaded model that writes. `generate` raises DeviceOutOfMemoryError where so many rows do not fit at once."""

    reduction: Reduction  # of kind generate
    cost: ModelCost  # of a forward over prompt and output; causal
    weight_bytes: int
    device: str
    max_length: int | None  # tokens that prompt and output may have together; None: no limit known
    max_new_tokens: int  # what was asked for, else what the model's generation_config.json says, else 256
    is_sampled: bool  # whether outputs depend on Prompts.keys
    attention: str
    engine: str  # continuous | openvino | static | generate | paged | vllm | null

    @property
    def notes(self) -> tuple[str, ...]: ...  # what was tried and not taken; may grow while it generates

    def generate(self, prompts: Prompts, max_rows: int, max_prefill_tokens: int, on_step: OnStep) -> Generated: ...
    def peak_bytes(self) -> int | None: ...
    def close(self) -> None: ...


@runtime_checkable
class Laid(Protocol):
    """A model whose modules were laid on devices by --device-map."""

    device_map: Mapping[str, str] | None  # device of every module; None: there was no map


@runtime_checkable
class SeveralEngines(Protocol):
    """A Generator with more than one way to write, around the same weights. `engine` and `attention` are those of the
    last `write_with`."""

    def engines(self) -> Mapping[str, str | None]: ...  # why one is not for this job; None: it may be tried
    def write_with(self, engine: str) -> None: ...  # auto: the first that is right; UsageError where it is not
    def setup_s(self, engine: str) -> float: ...  # that its first write_with takes, about
    def forced(self, lengths: Int64s) -> AbstractContextManager[None]: ...  # of outputs, by their prompt's key


class Task(Protocol):
    """Turns reduced values into columns."""

    name: str
    max_value: float  # the largest number that its columns hold

    def reduction(self) -> Reduction: ...
    def fields(self, width: int) -> list[pa.Field]: ...
    def sequencing(self) -> Sequencing: ...
    def finish(self, results: Results) -> list[pa.Array]: ...  # null where not valid


Detokenize = Callable[[Sequence[np.ndarray]], list[str]]  # token ids to their texts, without special tokens


class GeneratingTask(Task, Protocol):
    """Turns what was written into columns."""

    def finish_generated(
        self, generated: Generated, prompt_lengths: Int64s, is_valid: Bools, detokenize: Detokenize
    ) -> list[pa.Array]: ...


class Writer(Protocol):
    """Paths are of files on a disk, in the order of files()."""

    extension: str  # of a part

    def files(self, name: str) -> tuple[str, ...]: ...  # all that make up a part, or a whole output, of that name
    def write(self, table: pa.Table, paths: Sequence[str]) -> None: ...
    def assemble(self, parts: Sequence[Sequence[str]], paths: Sequence[str]) -> None: ...  # the rows of all, in order

    def merge(self, part: Sequence[str], rows: Sequence[int], table: pa.Table, paths: Sequence[str]) -> None:
        """The part with the table's rows in the places of those rows of it, which ascend."""
