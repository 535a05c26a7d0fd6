"""What is predicted before loading against what transformers holds afterwards."""

from __future__ import annotations

import copy
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from packhorse.generation import Quantization
from packhorse.models.memory import MemoryNeed, predict_memory
from packhorse.models.weight_sizes import weight_files

VOCAB, ROWS, PROMPT, NEW = 700, 3, 21, 12
_IDS = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0, "vocab_size": VOCAB}
_SIZE = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4}
_LLAMA = _IDS | _SIZE
_SEQ2SEQ = {"decoder_start_token_id": 0}
_GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128}
_T5 = {"d_model": 64, "d_kv": 24, "d_ff": 128, "num_layers": 2, "num_heads": 4}
_BART = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 2, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 128,
}  # fmt: skip
_GEMMA = {"head_dim": 32, "sliding_window": 8, "num_key_value_heads": 1}
_WINDOWS = {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _LLAMA),
    "llama-gqa-tied": ("Llama", _LLAMA | {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", _LLAMA | {"num_key_value_heads": 2}),
    "qwen2-windows": ("Qwen2", _LLAMA | _WINDOWS),
    "qwen3": ("Qwen3", _LLAMA | {"num_key_value_heads": 2, "head_dim": 32}),
    "mistral": ("Mistral", _LLAMA | {"num_key_value_heads": 2, "sliding_window": 10}),
    "gemma3": ("Gemma3Text", _LLAMA | _GEMMA | {"num_hidden_layers": 7}),
    "gpt2": ("GPT2", _IDS | _GPT2),
    "falcon-mqa": ("Falcon", _LLAMA | {"new_decoder_architecture": False, "multi_query": True, "alibi": False}),
    "bigcode": ("GPTBigCode", _IDS | _GPT2),
    "t5": ("T5", _IDS | _T5 | _SEQ2SEQ),
    "t5-untied": ("T5", _IDS | _T5 | _SEQ2SEQ | {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}),
    "bart": ("Bart", _IDS | _BART | _SEQ2SEQ | {"forced_eos_token_id": None}),
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def saved(kind: str, settings: dict[str, Any], folder: Path, auto: Any) -> Path:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**copy.deepcopy(settings))
    auto.from_config(config).save_pretrained(folder, max_shard_size="100KB")
    return folder


def writer(name: str, folder: Path) -> tuple[Path, Any]:
    kind, settings = WRITERS[name]
    is_pair = kind in ("T5", "Bart")
    auto = transformers.AutoModelForSeq2SeqLM if is_pair else transformers.AutoModelForCausalLM
    return saved(kind, settings, folder, auto), auto


def prediction(folder: Path, precision: str, method: Quantization | None = None, **changes: Any) -> MemoryNeed:
    config = json.loads((folder / "config.json").read_text())
    asked = {"max_rows": ROWS, "prompt_tokens": PROMPT, "new_tokens": NEW, "max_batch_tokens": ROWS * PROMPT} | changes
    return predict_memory(config, weight_files(folder), precision, method or Quantization(), **asked)


def held_bytes(model: Any) -> int:
    """Of parameters, each once, and of the scales that quantized ones carry."""
    tensors = list(model.parameters())
    tensors += [t for p in model.parameters() for t in vars(getattr(p, "quant_state", None) or p).values()]
    tensors += [getattr(p, "SCB", None) for p in model.parameters()]
    storages = {t.data_ptr(): t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor)}
    return sum(storages.values())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", WRITERS)
def test_weights_and_cache_of_a_model_that_writes(name: str, precision: str, tmp_path: Path) -> None:
    folder, auto = writer(name, tmp_path)
    model = auto.from_pretrained(folder, dtype=PRECISIONS[precision]).eval()
    need = prediction(folder, precision)
    assert need.weights_bytes == pytest.approx(held_bytes(model), rel=0.01)
    ids = torch.randint(3, VOCAB, (ROWS, PROMPT), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True
        )
    assert need.kv_cache_bytes == cache_bytes(written.past_key_values)
    assert need.kv_cache_bytes == ROWS * need.row_bytes


def cache_bytes(cache: Any) -> int:
    parts = [getattr(cache, part, None) for part in ("self_attention_cache", "cross_attention_cache")]
    layers = [layer for part in parts if part for layer in part.layers] or cache.layers
    return sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values))


@pytest.mark.parametrize(("saved_as", "kind"), [("MaskedLM", "pool"), ("SequenceClassification", "classify")])
@pytest.mark.parametrize("name", ["Bert", "DistilBert", "Electra", "Roberta"])
def test_weights_of_an_encoder(name: str, saved_as: str, kind: str, tmp_path: Path) -> None:
    """A masked language model's head is not loaded for embeddings."""
    settings = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    small = {"vocab_size": VOCAB, "dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 128}
    sizes = small if name == "DistilBert" else settings | {"intermediate_size": 128}
    folder = saved(name, sizes, tmp_path, getattr(transformers, f"AutoModelFor{saved_as}"))
    auto = transformers.AutoModelForSequenceClassification if kind == "classify" else transformers.AutoModel
    need = prediction(folder, "fp32", kind=kind)
    model = auto.from_pretrained(folder)
    new = {"pooler.dense.weight", "pooler.dense.bias"} if saved_as == "MaskedLM" else set()  # not in the file, not used
    unused = sum(p.numel() * 4 for name, p in model.named_parameters() if name in new)
    assert need.weights_bytes == pytest.approx(held_bytes(model) - unused, rel=0.01)
    assert need.kv_cache_bytes == 0


@pytest.mark.parametrize(
    ("precision", "options"),
    [("int8", {}), ("int4", {"bnb_4bit_quant_type": "nf4"}), ("int4", {"bnb_4bit_use_double_quant": True})],
)
@pytest.mark.parametrize("name", ["llama", "llama-gqa-tied", "gpt2", "t5"])
def test_weights_that_bitsandbytes_made(name: str, precision: str, options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder, auto = writer(name, tmp_path)
    config = transformers.BitsAndBytesConfig(
        load_in_8bit=precision == "int8",
        load_in_4bit=precision == "int4",
        bnb_4bit_quant_storage=torch.uint8,
        **options,
    )
    model = auto.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=config, device_map={"": "cpu"})
    need = prediction(folder, precision, Quantization("bitsandbytes", options))
    assert need.weights_bytes == pytest.approx(held_bytes(model), rel=0.02)


class Peak(TorchDispatchMode):
    """Most bytes that tensors made inside held at one moment."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most, self._alive = 0, 0, set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs or {})) if isinstance(t, torch.Tensor)}
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), known)
        self.most = max(self.most, self.now)
        return output

    def _count(self, storage: Any, known: set[int]) -> None:
        key = storage._cdata
        if key in known or key in self._alive:
            return
        self._alive.add(key)
        size = storage.nbytes()
        self.now += size
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "llama-gqa-tied"])
def test_activations_hold_what_a_prefill_takes(name: str, tmp_path: Path) -> None:
    folder, auto = writer(name, tmp_path)
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(3, VOCAB, (2, 120), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), Peak() as peak:
        model(input_ids=ids, logits_to_keep=1, use_cache=False)
    need = prediction(folder, "fp32", max_rows=2, max_batch_tokens=ids.numel())
    assert peak.most <= need.activation_bytes <= 1.5 * peak.most
