"""How many bytes a model's weights take once loaded, from the headers of its safetensors files. No weight is read."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from packhorse.errors import ModelError, UsageError
from packhorse.generation import QUANTIZED, Quantization
from packhorse.models.kv_cache import text_config
from packhorse.models.preflight import read_object

MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
PRECISION_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
STORED_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip  # others: 8
FLOATS = ("F64", "F32", "F16", "BF16")

# Heads that a body alone, or a classifier, does not have; input embeddings, and heads that quantizers leave alone.
LANGUAGE_HEADS = re.compile(
    r"(^|\.)(lm_head|cls|embed_out|predictions|generator_\w+|vocab_(transform|layer_norm|projector)|final_logits_bias)(\.|$)"
)
ALL_HEADS = re.compile(r"(^|\.)(classifier|score|classification_head|qa_outputs|pre_classifier|summary)(\.|$)")
EMBEDDINGS = re.compile(r"(^|\.)(\w*embed\w*|wte|wpe|shared|relative_attention_bias)(\.|$)")
OUTPUT_EMBEDDINGS = ("lm_head.weight", "cls.predictions.decoder.weight", "embed_out.weight")
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
T5_OUT = re.compile(r"\.DenseReluDense\.wo\.")  # too large for float16, and left alone by transformers' quantizers
EXPERTS = re.compile(r"\.experts(\.|$)")  # one parameter of all experts, and no linear layer, once loaded


class Stored(NamedTuple):
    """A tensor as its file has it."""

    name: str
    dtype: str  # as safetensors writes it: F32, BF16, I8, ...
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.numel * STORED_BITS.get(self.dtype, 8) // 8


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that transformers reads: model.safetensors, else those that the index lists. Raises ModelError."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return (whole,)
    if index.is_file():
        names = read_object(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise ModelError(f"{index}: has no weight_map")
        return tuple(folder / name for name in sorted({str(n) for n in names.values()}))
    raise ModelError(f"{folder}: neither {whole.name} nor {index.name} is there")


def read_stored(files: Iterable[Path]) -> tuple[Stored, ...]:
    """The tensors of all files, by their headers: 8 bytes of length, then JSON (https://huggingface.co/docs/safetensors).
    Raises ModelError where one cannot be read."""
    return tuple(stored for path in files for stored in _of_file(path))


def _of_file(path: Path) -> list[Stored]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, MAX_HEADER_BYTES)))
        items = [(name, value) for name, value in header.items() if name != "__metadata__"]
        return [Stored(name, str(v["dtype"]), tuple(int(n) for n in v["shape"])) for name, v in items]
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: its header cannot be read as safetensors: {error}") from error


def loaded(stored: Sequence[Stored], config: Mapping[str, Any], kind: str) -> tuple[Stored, ...]:
    """Those that the model has for its task (kind: classify, pool or generate), tied ones once."""
    names = {s.name for s in stored}
    sizes = {s.shape for s in stored if s.name not in OUTPUT_EMBEDDINGS and EMBEDDINGS.search(s.name)}
    is_tied = text_config(config).get("tie_word_embeddings", bool(config.get("is_encoder_decoder")))

    def is_kept(s: Stored) -> bool:
        if s.dtype not in FLOATS and "quantization_config" not in config:
            return False  # position_ids and masks of older files: made anew
        if len(s.shape) == 4 and s.shape[:2] == (1, 1):
            return False  # GPT-2's causal masks
        if s.name.endswith(COPIES) and any(n.endswith("shared.weight") for n in names):
            return False
        if is_tied and s.name.endswith(OUTPUT_EMBEDDINGS) and s.shape in sizes:
            return False
        return not (
            (kind != "generate" and LANGUAGE_HEADS.search(s.name)) or (kind == "pool" and ALL_HEADS.search(s.name))
        )

    return tuple(s for s in stored if is_kept(s))


def is_quantized(s: Stored) -> bool:
    """Whether int8 and int4 are made of it: the weight of a linear layer of the body, no embedding and no head."""
    is_matrix = len(s.shape) == 2 and s.name.endswith("weight") and s.dtype in FLOATS
    others = (EMBEDDINGS, LANGUAGE_HEADS, ALL_HEADS, EXPERTS, T5_OUT)
    return is_matrix and not any(names.search(s.name) for names in others)


def weight_bytes(
    kept: Sequence[Stored], config: Mapping[str, Any], precision: str, quantization: Quantization, base: str = "bf16"
) -> int:
    """Bytes of `loaded` tensors. precision: fp32, bf16, fp16, or int8, int4 and fp8, whose other layers are in `base`.

    A checkpoint that is quantized already counts as it is stored. Raises UsageError for another precision.
    """
    if precision not in PRECISION_BYTES and precision not in QUANTIZED:
        raise UsageError(f"precision {precision}: sizes are known of {', '.join((*PRECISION_BYTES, *QUANTIZED))}")
    if "quantization_config" in config:
        return sum(s.num_bytes for s in kept)
    plain = base if precision in QUANTIZED else precision

    def num_bytes(s: Stored) -> int:
        if precision in QUANTIZED and is_quantized(s):
            return quantized_bytes(s, precision, quantization, PRECISION_BYTES[plain])
        return s.numel * (4 if plain == "fp16" and T5_OUT.search(s.name) else PRECISION_BYTES[plain])

    return sum(map(num_bytes, kept))


def quantized_bytes(s: Stored, precision: str, quantization: Quantization, plain: int) -> int:
    """Of one linear layer's weights with their scales.

    bitsandbytes: int8 with a float32 a row; 4 bits with a float32 a block of 64, or, quantized doubly, a byte a block
    and a float32 for 256 of them. torchao: int8 and fp8 with a scale a row in the type of the rest; 4 bits with a scale
    and a zero point of 16 bits each a group of 128, or of group_size.
    """
    rows, options = s.shape[0], quantization.options
    if precision != "int4":
        return s.numel + rows * (plain if quantization.method == "torchao" else 4)
    if quantization.method == "torchao":
        return s.numel // 2 + s.numel // int(options.get("group_size", 128)) * 4
    blocks = math.ceil(s.numel / 64)
    scales = blocks + math.ceil(blocks / 256) * 4 if options.get("bnb_4bit_use_double_quant") else blocks * 4
    return math.ceil(s.numel / 2) + scales
