"""Whether a model fits, before any of it is loaded: from its config.json and the headers of its safetensors files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packhorse.generation import Quantization
from packhorse.models.kv_cache import HEADS, HIDDEN, CacheShape, cache_shape, first_of, text_config
from packhorse.models.weight_sizes import PRECISION_BYTES, Stored, loaded, read_stored, weight_bytes

INTERMEDIATE = ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "hidden_dim", "decoder_ffn_dim", "ffn_hidden_size")
# Beside the model: a process with torch and transformers imported holds 0.5 GB (measured, CPU build); a CUDA context
# and the workspaces of its libraries take about as much of the device.
OVERHEAD_BYTES = 512 * 2**20
COMPOSED = ("gelu_new", "gelu_fast", "gelu_python", "quick_gelu")  # activations that transformers writes in Python
ALTERNATIVES = ("bf16", "int8", "int4")


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes on one device that holds the whole model."""

    precision: str
    num_parameters: int  # as they are stored: a checkpoint that is quantized already packs several into one
    weights_bytes: int
    kv_cache_bytes: int  # of max_rows rows at their longest; 0 for a model that does not write
    activation_bytes: int
    overhead_bytes: int
    max_rows: int
    new_tokens: int
    row_bytes: int  # of kv_cache_bytes, one row's
    token_bytes: int  # by which a row grows with each further token
    weights_by_precision: Mapping[str, int]  # of what is smaller than this precision
    largest_layer_bytes: int  # what a device has to have room for, whatever the map

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.working_bytes

    @property
    def working_bytes(self) -> int:
        """All but the weights."""
        return self.kv_cache_bytes + self.activation_bytes + self.overhead_bytes


def predict_memory(
    config: Mapping[str, Any],
    weight_files: Iterable[Path],
    precision: str,
    quantization: Quantization,
    max_rows: int,
    prompt_tokens: int,
    new_tokens: int,
    max_batch_tokens: int,
    kind: str = "generate",
    base: str = "bf16",
) -> MemoryNeed:
    """What max_rows rows of prompt_tokens + new_tokens each take, max_batch_tokens of them computed in one forward (or
    in the forwards that run at the same time).

    config: of config.json. kind: of the Reduction: generate, classify or pool; only the first keeps keys and values.
    base: what the layers are in that int8 and int4 leave alone. Raises ModelError, or UsageError for a precision of
    which no size is known.
    """
    kept = loaded(read_stored(weight_files), config, kind)
    plain = PRECISION_BYTES.get(precision, PRECISION_BYTES[base])
    cache = cache_shape(config)
    writes = kind == "generate"
    row = _row_values(cache, prompt_tokens, new_tokens) * plain if writes else 0
    longer = _row_values(cache, prompt_tokens, new_tokens + 1) * plain if writes else 0
    return MemoryNeed(
        precision=precision,
        num_parameters=sum(s.numel for s in kept),
        weights_bytes=weight_bytes(kept, config, precision, quantization, base),
        kv_cache_bytes=max_rows * row,
        activation_bytes=activation_bytes(config, plain, max_batch_tokens, max_rows if writes else 0),
        overhead_bytes=OVERHEAD_BYTES,
        max_rows=max_rows,
        new_tokens=new_tokens,
        row_bytes=row,
        token_bytes=longer - row,
        weights_by_precision=_smaller(kept, config, precision, quantization, base),
        largest_layer_bytes=_largest_layer(kept, config, precision, quantization, base),
    )


def _row_values(cache: CacheShape, prompt_tokens: int, new_tokens: int) -> int:
    """The last new token is never put into the cache. A decoder with an encoder begins with one token of its own."""
    if cache.cross_layers:
        return cache.num_values(1, new_tokens, prompt_tokens)
    return cache.num_values(1, prompt_tokens + max(new_tokens - 1, 0))


def activation_bytes(config: Mapping[str, Any], value_bytes: int, tokens: int, rows: int) -> int:
    """The most that one forward of so many tokens holds beside weights and cache; rows: whose logits are computed.

    Four of [tokens, hidden] live throughout (embeddings, the layer's input, residual, norm), with sines and cosines of
    the positions in float32, beside the larger of
    - the feed-forward layer: three of [tokens, intermediate] (gate, up, their product); five where the activation is
      written in several operators (gelu_new);
    - attention: queries, keys and values twice, before and after positions are turned into them, and three more of the
      queries' size on the way, or for keys and values repeated for every head; scores are never held whole;
    or, after the layers, the logits of the rows' last tokens: in the model's type, in float32, and once more while they
    are processed.
    """
    config = text_config(config)
    hidden = int(first_of(config, *HIDDEN) or 0)
    heads = int(first_of(config, *HEADS) or 1)
    head = int(first_of(config, "head_dim", "d_kv") or hidden // heads)
    queries = heads * head
    is_composed = first_of(config, "hidden_act", "activation_function", "dense_act_fn") in COMPOSED
    feed_forward = (5 if is_composed else 3) * int(first_of(config, *INTERMEDIATE) or 4 * hidden)
    attention = 2 * (queries + cache_shape(config).values_per_token) + 3 * queries
    logits = rows * int(config.get("vocab_size") or 0) * (value_bytes + 4 + 4)
    body = (4 * hidden + max(feed_forward, attention)) * value_bytes + 2 * head * 4
    return max(tokens * body, logits)


def _smaller(
    kept: tuple[Stored, ...], config: Mapping[str, Any], precision: str, quantization: Quantization, base: str
) -> dict[str, int]:
    """Of the precisions that take less than this one; none where the checkpoint is quantized already."""
    if "quantization_config" in config:
        return {}
    sizes = {name: weight_bytes(kept, config, name, quantization, base) for name in (precision, *ALTERNATIVES)}
    now = sizes.pop(precision)
    return {name: size for name, size in sizes.items() if size < now}


def _largest_layer(
    kept: tuple[Stored, ...], config: Mapping[str, Any], precision: str, quantization: Quantization, base: str
) -> int:
    """Tensors whose names begin alike up to their first number are one layer; those without a number are their own."""
    layers: dict[str, list[Stored]] = {}
    for stored in kept:
        parts = stored.name.split(".")
        numbered = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        name = stored.name.rpartition(".")[0] if numbered is None else ".".join(parts[: numbered + 1])
        layers.setdefault(name, []).append(stored)
    return max((weight_bytes(layer, config, precision, quantization, base) for layer in layers.values()), default=0)


# -- what would make it fit


def fits(need: MemoryNeed, free_bytes: Mapping[str, int]) -> list[str]:
    """What would make it fit, a sentence each; none where the first device holds all of it.

    free_bytes: by device ("0", "1", "cpu"), the one that is to hold the model first.
    """
    first, free = next(iter(free_bytes.items()))
    if need.total_bytes <= free:
        return []
    lines = [
        f"It needs {_gb(need.total_bytes)} ({_parts(need)}), and {first} has {_gb(free)} free: "
        f"{_gb(need.total_bytes - free)} too little."
    ]
    return [*lines, *_precisions(need, free), *_rows(need, free), *_tokens(need, free), *_devices(need, free_bytes)]


def over_ranks(need: MemoryNeed, count: int) -> MemoryNeed:
    """What one of so many ranks needs, each on a device of its own: weights, keys and values are shared out evenly.
    Activations are counted whole: what of them lies on every rank (hidden states, logits) is most of it."""
    return replace(
        need,
        weights_bytes=-(-need.weights_bytes // count),
        kv_cache_bytes=-(-need.kv_cache_bytes // count),
        row_bytes=-(-need.row_bytes // count),
        token_bytes=-(-need.token_bytes // count),
        weights_by_precision={},  # what is smaller than bf16 is not cut
        largest_layer_bytes=-(-need.largest_layer_bytes // count),
    )


def fits_ranks(need: MemoryNeed, free_bytes: Mapping[str, int]) -> list[str]:
    """The same of a model that --tensor-parallel cuts. need: of one rank. free_bytes: of the ranks' devices."""
    device, free = min(free_bytes.items(), key=lambda item: item[1])
    if need.total_bytes <= free:
        return []
    return [
        f"Each of {len(free_bytes)} ranks needs {_gb(need.total_bytes)} ({_parts(need)}), and {device} has {_gb(free)} "
        f"free: {_gb(need.total_bytes - free)} too little.",
        "More devices: each then holds less of the weights.",
        *_rows(need, free),
        *_tokens(need, free),
    ]


def fits_split(need: MemoryNeed, max_memory: Mapping[str, int], free_bytes: Mapping[str, int]) -> list[str]:
    """The same of a model that --device-map splits. max_memory: bytes of weights by device, as --max-memory says;
    without it all that is free on the devices is theirs, and of what a forward needs."""
    if not max_memory:
        together = sum(free_bytes.values())
        return [] if need.total_bytes + need.largest_layer_bytes <= together else fits(need, free_bytes)
    allowed = sum(max_memory.values())
    wanted = need.weights_bytes + need.largest_layer_bytes
    if need.weights_bytes <= next(iter(max_memory.values())) or wanted <= allowed:
        return []
    return [
        f"Its weights in {need.precision} take {_gb(need.weights_bytes)}, and --max-memory allows {_gb(allowed)} in "
        f"all, where a device keeps room for the largest layer ({_gb(need.largest_layer_bytes)}).",
        f"Raise --max-memory by {_gb(wanted - allowed)}, or add that much as disk=..., which is read at every forward.",
    ]


def _parts(need: MemoryNeed) -> str:
    parts = {
        f"weights in {need.precision}": need.weights_bytes,
        f"keys and values of {need.max_rows:,} rows": need.kv_cache_bytes,
        "activations": need.activation_bytes,
        "torch itself": need.overhead_bytes,
    }
    return ", ".join(f"{name} {_gb(size)}" for name, size in parts.items() if size)


def _precisions(need: MemoryNeed, free: int) -> list[str]:
    """A lower precision's cache is counted as it is now: bf16 would halve that of fp32 too."""
    return [
        f"--precision {name}: weights of {_gb(size)}, {_gb(size + need.working_bytes)} in all"
        f"{'' if size + need.working_bytes <= free else ', still too much'}."
        for name, size in need.weights_by_precision.items()
    ]


def _rows(need: MemoryNeed, free: int) -> list[str]:
    if not need.row_bytes:
        return []
    count = (free - need.total_bytes + need.kv_cache_bytes) // need.row_bytes
    if count < 1:
        return ["Fewer rows at a time do not help: there is no room for a single one."]
    return [f"Fewer rows at a time: {min(count, need.max_rows):,} of these {need.max_rows:,} fit."]


def _tokens(need: MemoryNeed, free: int) -> list[str]:
    growth = need.max_rows * need.token_bytes
    if not growth:
        return []
    count = need.new_tokens - -(-(need.total_bytes - free) // growth)
    return [f"Fewer new tokens: {count:,} a row instead of {need.new_tokens:,}."] if count >= 1 else []


def _devices(need: MemoryNeed, free_bytes: Mapping[str, int]) -> list[str]:
    together = sum(size for device, size in free_bytes.items() if device != "disk")
    names = ", ".join(f"{device} ({_gb(size)})" for device, size in free_bytes.items())
    room = need.largest_layer_bytes  # that the first device keeps free, for layers that are brought to it
    if len(free_bytes) > 1 and need.total_bytes + room <= together:
        return [f"--device-map auto: its layers over {names}."]
    if max(free_bytes.values()) < need.working_bytes + room:
        return [f"No device holds even its largest layer ({_gb(room)}) and what a forward needs beside it."]
    return [
        "--device-map auto --max-memory cpu=...,disk=... --offload-folder FOLDER: what does not fit is read from the "
        "disk at every forward, which is slow."
    ]


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
