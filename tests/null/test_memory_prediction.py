"""Sizes of well-known models from their shapes alone; what a refusal says. No weights and no torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from packhorse.errors import ModelError, UsageError
from packhorse.generation import Quantization
from packhorse.models.kv_cache import cache_shape
from packhorse.models.memory import OVERHEAD_BYTES, MemoryNeed, fits, predict_memory
from packhorse.models.weight_sizes import weight_files

Shapes = dict[str, tuple[int, ...]]

LLAMA_3_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_2_7B = LLAMA_3_8B | {"intermediate_size": 11008, "num_key_value_heads": 32, "vocab_size": 32000}
BERT_BASE = {
    "model_type": "bert", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "vocab_size": 30522,
    "num_attention_heads": 12,
}  # fmt: skip


def llama_shapes(config: Mapping[str, Any]) -> Shapes:
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    layer: Shapes = {
        "self_attn.q_proj.weight": (hidden, hidden), "self_attn.o_proj.weight": (hidden, hidden),
        "self_attn.k_proj.weight": (kv, hidden), "self_attn.v_proj.weight": (kv, hidden),
        "mlp.gate_proj.weight": (inner, hidden), "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner), "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }  # fmt: skip
    layers = {f"model.layers.{i}.{k}": v for i in range(config["num_hidden_layers"]) for k, v in layer.items()}
    tables = {"model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden)}
    return layers | tables | {"model.norm.weight": (hidden,)}


def bert_shapes() -> Shapes:
    """With a masked language model's head, which embeddings do not load, and the position ids of older files."""
    hidden, inner = 768, 3072
    linears = {"attention.self.query": (hidden, hidden), "attention.self.key": (hidden, hidden)}
    linears |= {"attention.self.value": (hidden, hidden), "attention.output.dense": (hidden, hidden)}
    linears |= {"intermediate.dense": (inner, hidden), "output.dense": (hidden, inner)}
    found: Shapes = {}
    for i in range(12):
        for name, shape in linears.items():
            found |= {f"bert.encoder.layer.{i}.{name}.weight": shape, f"bert.encoder.layer.{i}.{name}.bias": shape[:1]}
        for norm in ("attention.output", "output"):
            found |= {f"bert.encoder.layer.{i}.{norm}.LayerNorm.{part}": (hidden,) for part in ("weight", "bias")}
    for table, rows in {"word": 30522, "position": 512, "token_type": 2}.items():
        found[f"bert.embeddings.{table}_embeddings.weight"] = (rows, hidden)
    found |= {f"bert.embeddings.LayerNorm.{part}": (hidden,) for part in ("weight", "bias")}
    found |= {"bert.pooler.dense.weight": (hidden, hidden), "bert.pooler.dense.bias": (hidden,)}
    found |= {"cls.predictions.transform.dense.weight": (hidden, hidden), "cls.predictions.bias": (30522,)}
    return found


def header(path: Path, shapes: Mapping[str, Iterable[int]], dtype: str = "F32") -> Path:
    """A safetensors file without its data: what is not read need not be there."""
    text = json.dumps(
        {"__metadata__": {"format": "pt"}}
        | {name: {"dtype": dtype, "shape": list(shape), "data_offsets": [0, 0]} for name, shape in shapes.items()}
    ).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return path


def need_of(config: Mapping[str, Any], files: Iterable[Path], precision: str = "bf16", **changes: Any) -> MemoryNeed:
    asked = {"max_rows": 8, "prompt_tokens": 900, "new_tokens": 101, "max_batch_tokens": 8192} | changes
    return predict_memory(config, files, precision, asked.pop("quantization", Quantization()), **asked)


# -- weights


@pytest.mark.parametrize(
    ("config", "num_parameters"), [(LLAMA_2_7B, 6_738_415_616), (LLAMA_3_8B, 8_030_261_248)], ids=["2-7b", "3-8b"]
)
def test_parameters_are_the_published_ones(config: dict[str, Any], num_parameters: int, tmp_path: Path) -> None:
    need = need_of(config, [header(tmp_path / "model.safetensors", llama_shapes(config))])
    assert (need.num_parameters, need.weights_bytes) == (num_parameters, 2 * num_parameters)


def test_embeddings_load_no_head_and_no_position_ids(tmp_path: Path) -> None:
    main = header(tmp_path / "a.safetensors", bert_shapes())
    ids = header(tmp_path / "b.safetensors", {"bert.embeddings.position_ids": (1, 512)}, "I64")
    need = need_of(BERT_BASE, [main, ids], "fp32", kind="pool")
    assert need.num_parameters == 109_482_240  # BertModel of bert-base-uncased
    assert (need.weights_bytes, need.kv_cache_bytes) == (4 * 109_482_240, 0)


def test_tied_embeddings_count_once_though_the_file_has_them_twice(tmp_path: Path) -> None:
    files = [header(tmp_path / "model.safetensors", llama_shapes(LLAMA_2_7B))]
    apart, tied = need_of(LLAMA_2_7B, files), need_of(LLAMA_2_7B | {"tie_word_embeddings": True}, files)
    assert apart.num_parameters - tied.num_parameters == 32000 * 4096


@pytest.mark.parametrize(
    ("precision", "method", "bits"),
    [("int8", "bitsandbytes", 8), ("int8", "torchao", 8), ("int4", "bitsandbytes", 4.5), ("int4", "torchao", 4.25)],
)
def test_quantized_layers_with_their_scales(precision: str, method: str, bits: float, tmp_path: Path) -> None:
    """4 bits: a float32 for 64 weights (bitsandbytes), two of 16 bits for 128 (torchao). A scale a row hardly shows."""
    need = need_of(
        LLAMA_3_8B, [header(tmp_path / "m.safetensors", llama_shapes(LLAMA_3_8B))], precision,
        quantization=Quantization(method),
    )  # fmt: skip
    tables = 2 * 128256 * 4096  # embeddings and head stay in bf16
    expected = (8_030_261_248 - tables) * bits / 8 + tables * 2
    assert need.weights_bytes == pytest.approx(expected, rel=0.001)


def test_a_checkpoint_that_is_quantized_counts_as_it_is_stored(tmp_path: Path) -> None:
    packed = header(tmp_path / "a.safetensors", {"model.layers.0.mlp.up_proj.qweight": (512, 14336)}, "I32")
    scales = header(tmp_path / "b.safetensors", {"model.layers.0.mlp.up_proj.scales": (32, 14336)}, "F16")
    need = need_of(LLAMA_3_8B | {"quantization_config": {"quant_method": "gptq"}}, [packed, scales])
    assert need.weights_bytes == 512 * 14336 * 4 + 32 * 14336 * 2
    assert need.weights_by_precision == {}


def test_all_shards_of_an_index_are_read(tmp_path: Path) -> None:
    shards = {f"model.layers.{i}.mlp.up_proj.weight": f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)}
    for name, file in shards.items():
        header(tmp_path / file, {name: (64, 32)})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert need_of(LLAMA_3_8B, weight_files(tmp_path), "fp32").weights_bytes == 2 * 64 * 32 * 4


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b'{"a": {}}']
)
def test_a_broken_header_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors: its header cannot be read as safetensors"):
        need_of(LLAMA_3_8B, weight_files(tmp_path))


def test_no_weights_at_all_and_no_such_precision(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        weight_files(tmp_path)
    with pytest.raises(UsageError, match="int3: sizes are known of fp32, bf16, fp16, int8, int4, fp8"):
        need_of(LLAMA_3_8B, [header(tmp_path / "m.safetensors", {"a.weight": (2, 2)})], "int3")


# -- keys and values

FALCON_7B = {"hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32, "multi_query": True}
DEEPSEEK_V2_LITE = {
    "num_hidden_layers": 27, "num_attention_heads": 16, "hidden_size": 2048, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "bytes_a_token"),
    [
        (LLAMA_2_7B, 512 * 1024),  # half a MiB a token in 16 bits, as is well known
        (LLAMA_3_8B, 128 * 1024),
        (FALCON_7B, 2 * 2 * 32 * 64),
        (DEEPSEEK_V2_LITE, 2 * 27 * 16 * (128 + 64 + 128)),
        ({"text_config": LLAMA_3_8B, "vision_config": {"hidden_size": 1280}}, 128 * 1024),
    ],
    ids=["mha", "gqa", "mqa", "mla", "nested"],
)
def test_keys_and_values_a_token(config: dict[str, Any], bytes_a_token: int) -> None:
    assert cache_shape(config).num_values(rows=3, tokens=50) * 2 == 3 * 50 * bytes_a_token


def test_windows_keep_one_token_less_than_they_see() -> None:
    mistral = LLAMA_3_8B | {"sliding_window": 4096}
    assert cache_shape(mistral).num_values(1, 10_000) == cache_shape(LLAMA_3_8B).num_values(1, 4095)
    off = LLAMA_3_8B | {"sliding_window": 4096, "use_sliding_window": False}
    assert cache_shape(off).num_values(1, 10_000) == cache_shape(LLAMA_3_8B).num_values(1, 10_000)
    gemma = {"model_type": "gemma2", "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4}
    assert cache_shape(gemma | {"sliding_window": 11}).windows == (10, None, 10, None)
    kinds = {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2}
    assert cache_shape(LLAMA_3_8B | kinds).windows == (None,)


def test_an_encoder_decoder_keeps_the_source_too() -> None:
    t5_small = {"is_encoder_decoder": True, "d_model": 512, "d_kv": 64, "num_heads": 8, "num_layers": 6}
    assert cache_shape(t5_small).num_values(2, 10, source_tokens=100) == 2 * (2 * 6 * 8 * 64) * 110


# -- what would make it fit


@pytest.fixture
def need(tmp_path: Path) -> MemoryNeed:
    return need_of(LLAMA_3_8B, [header(tmp_path / "model.safetensors", llama_shapes(LLAMA_3_8B))])


def test_what_fits_needs_no_words(need: MemoryNeed) -> None:
    assert need.kv_cache_bytes == 8 * 1000 * 128 * 1024  # 900 + 101 - 1: the last token is never put into the cache
    assert need.total_bytes == need.weights_bytes + need.kv_cache_bytes + need.activation_bytes + OVERHEAD_BYTES
    assert fits(need, {"0": need.total_bytes}) == []
    assert fits(need, {"0": need.total_bytes - 1}) != []


def test_rows_and_tokens_that_are_said_to_fit_do(need: MemoryNeed, tmp_path: Path) -> None:
    free = need.total_bytes - 300_000_000
    words = fits(need, {"0": free})
    assert "300.0 MB too little" in words[0]
    assert "Fewer rows at a time: 5 of these 8 fit." in words  # 3 x 131 MB of keys and values go
    assert "Fewer new tokens: 0" not in " ".join(words)
    files = [tmp_path / "model.safetensors"]
    assert (
        need_of(LLAMA_3_8B, files, max_rows=5).total_bytes <= free < need_of(LLAMA_3_8B, files, max_rows=6).total_bytes
    )
    tight = need.total_bytes - 50_000_000
    (line,) = [x for x in fits(need, {"0": tight}) if x.startswith("Fewer new tokens")]
    count = int(line.split(":")[1].split()[0])
    assert need_of(LLAMA_3_8B, files, new_tokens=count).total_bytes <= tight
    assert need_of(LLAMA_3_8B, files, new_tokens=count + 1).total_bytes > tight


def test_precisions_are_offered_with_their_sizes(need: MemoryNeed) -> None:
    words = " ".join(fits(need, {"0": 11 * 10**9}))
    assert "--precision int8: weights of 9.09 GB" in words
    assert "still too much" in words.split("--precision int4")[0]  # 9.1 GB, and 2.6 GB beside them
    assert "--precision int4: weights of 6.03 GB, 8.59 GB in all." in words
    assert "--precision bf16" not in words


def test_devices_together(need: MemoryNeed) -> None:
    half = 12 * 10**9
    assert "--device-map auto: its layers over 0 (12.00 GB), 1 (12.00 GB)." in fits(need, {"0": half, "1": half})
    assert any("--offload-folder" in line for line in fits(need, {"cpu": half}))
    assert any("No device holds even its largest layer (1.05 GB)" in line for line in fits(need, {"0": 10**9}))
    assert "Fewer rows at a time do not help: there is no room for a single one." in fits(need, {"0": 10**9})
