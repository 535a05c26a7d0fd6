"""A backend without a model: each row's "prediction" is a checksum of its tokens. No torch, so order, resume,
faults and scale can be tried in seconds; a run with it is the cost of everything around the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from packhorse.backends.null.generator import NullGenerator
from packhorse.config import EngineConfig
from packhorse.data import Batch, Float32s, Int64s, ModelDescription, Reduction, TokenizerParts, offsets_of
from packhorse.errors import DeviceOutOfMemoryError, ModelError
from packhorse.load_request import LoadRequest
from packhorse.model_cost import ModelCost
from packhorse.sequences import num_values

PRECISIONS = ("fp32",)
NEEDS_WEIGHTS = False
MAX_BATCH_TOKENS = 16_384


def choose_device(settings: EngineConfig) -> str:
    return "cpu"


def own_precision(description: ModelDescription, settings: EngineConfig) -> str | None:
    return None


def supported_precisions(device: str) -> tuple[str, ...]:
    return ("fp32",)


def default_batch_tokens(device: str, precision: str, width: int) -> int:
    return MAX_BATCH_TOKENS


def num_workers(device: str, cores: int) -> int:
    return 1


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"tokenizers": version("tokenizers")}


def best_gemm(device: str, precision: str, threads: int, seen: float) -> float | None:
    return None


def is_prepared(request: LoadRequest) -> bool:
    return True


def can_compile(device: str) -> bool:
    return False


def free_bytes(device: str) -> int | None:
    return None


def ceilings(device: str, precisions: Sequence[str], threads: int) -> None:
    """None: there is no device to measure."""
    return


def known_ceilings(device: str, threads: int) -> None:
    return


def load_tokenizer(description: ModelDescription) -> TokenizerParts:
    """tokenizer.json as it stands, without transformers."""
    from tokenizers import Tokenizer

    path = description.folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{path}: missing; the null backend reads no other kind of tokenizer")
    return TokenizerParts(Tokenizer.from_file(str(path)), True, "right")


def load(request: LoadRequest) -> NullModel | NullGenerator:
    if request.decoding is not None:
        return NullGenerator(request.decoding, request.description.max_length)
    return NullModel(request.reduction)


NULL_VOCABULARY = 1_000
NULL_STEP = np.float32(0.37)  # between the lines of a row


class NullModel:
    """`capacity_tokens`: a batch with more padded tokens is out of memory. `before_batch` is called with each batch."""

    device = "cpu"
    cost = ModelCost()
    weight_bytes = 0
    max_length: int | None = None
    pads_safely = True
    attention = "none"
    is_packed = False
    notes: tuple[str, ...] = ()
    in_flight = 3

    def __init__(
        self,
        reduction: Reduction,
        capacity_tokens: int | None = None,
        before_batch: Callable[[Batch], None] | None = None,
    ) -> None:
        self.reduction = dataclasses.replace(reduction)
        self._capacity = capacity_tokens
        self._before_batch = before_batch

    def computed_tokens(self, lengths: Int64s) -> int:
        return int(lengths.max(initial=0)) * len(lengths)

    def forward(self, batch: Batch) -> Checksums:
        if self._before_batch is not None:
            self._before_batch(batch)
        if self._capacity is not None and self.computed_tokens(batch.tokens.lengths) > self._capacity:
            raise DeviceOutOfMemoryError(f"a batch of {batch.num_rows} rows x {batch.max_seqlen} tokens does not fit")
        return Checksums(_made_up(batch, self.reduction))

    def peak_bytes(self) -> int | None:
        return None

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Checksums:
    values: Float32s

    def numpy(self) -> Float32s:
        return self.values


def _made_up(batch: Batch, reduction: Reduction) -> Float32s:
    """[N, width], as many as the reduction leaves; of sparse rows one entry each."""
    values = _checksums(batch, reduction.width)
    if reduction.per == "row":
        return values
    if reduction.per == "entry":
        rows = np.arange(batch.num_rows, dtype=np.float32)
        return np.column_stack([rows, np.floor(values[:, :1] * NULL_VOCABULARY), values[:, 1:2]]).astype(np.float32)
    counts = num_values(reduction, batch.tokens, values)
    assert counts is not None
    number = np.arange(int(counts.sum())) - np.repeat(offsets_of(counts)[:-1], counts)
    lines: Float32s = np.repeat(values, counts, axis=0) + number[:, None].astype(np.float32) * NULL_STEP
    return (lines % 1).astype(np.float32)


def _checksums(batch: Batch, width: int) -> Float32s:
    """[rows, width] in [0, 1): 24 bits of a hash of the row's ids and their places, another one a column."""
    tokens = batch.tokens
    place = np.arange(len(tokens.ids)) - np.repeat(tokens.offsets[:-1], tokens.lengths)
    terms = (tokens.ids.astype(np.uint64) + np.uint64(1)) * (
        place.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)
    )
    if tokens.type_ids is not None:
        terms += tokens.type_ids.astype(np.uint64) << np.uint64(40)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    rows = sums[tokens.offsets[1:]] - sums[tokens.offsets[:-1]]
    columns = (np.arange(1, width + 1, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)) | np.uint64(1)
    mixed = (rows[:, None] * columns) >> np.uint64(40)
    return (mixed.astype(np.float64) / (1 << 24)).astype(np.float32)
