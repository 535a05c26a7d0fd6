"""How many bytes of keys and values a model that writes keeps a token, from its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LAYERS = ("num_decoder_layers", "decoder_layers", "num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("decoder_attention_heads", "num_attention_heads", "n_head", "n_heads", "num_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
HIDDEN = ("hidden_size", "d_model", "n_embd", "dim")
WITHOUT_KEYS = (
    "linear_attention",
    "conv",
    "mamba",
    "moe",
    "mlp",
    "recurrent",
)  # kinds of layers whose state has one size


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Numbers, keys and values together, that each attention layer keeps."""

    values_per_token: int  # of one layer
    windows: tuple[int | None, ...]  # tokens that each layer keeps at most; None: all of them
    cross_layers: int = 0  # layers that also keep the source's tokens (encoder-decoder)

    def num_values(self, rows: int, tokens: int, source_tokens: int = 0) -> int:
        """Of rows with so many tokens in the cache, and so many of an encoder's."""
        kept = sum(tokens if window is None else min(tokens, window) for window in self.windows)
        return rows * self.values_per_token * (kept + self.cross_layers * source_tokens)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A model of several kinds of input has its language model's values in a part of their own."""
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) and first_of(nested, *HIDDEN) else config


def first_of(config: Mapping[str, Any], *names: str) -> Any:
    return next((config[n] for n in names if config.get(n) is not None), None)


def cache_shape(config: Mapping[str, Any]) -> CacheShape:
    """2 x key-value heads x head size numbers a layer and token: Ainslie et al. 2023 (GQA), Shazeer 2019 (MQA).

    Models with compressed keys (MLA, as DeepSeek's) keep them unfolded in transformers' cache: heads x (size of the
    keys + that of the values). Layers of a state of fixed size (Mamba, linear attention) count nothing.
    """
    config = text_config(config)
    heads = int(first_of(config, *HEADS) or 1)
    hidden = int(first_of(config, *HIDDEN) or 0)
    if config.get("kv_lora_rank"):
        keys = int(config.get("qk_nope_head_dim") or 0) + int(config.get("qk_rope_head_dim") or 0)
        width = heads * (keys + int(config.get("v_head_dim") or keys))
    else:
        width = 2 * _kv_heads(config, heads) * int(first_of(config, "head_dim", "d_kv") or hidden // heads)
    windows = _windows(config, int(first_of(config, *LAYERS) or 0))
    return CacheShape(width, windows, len(windows) if config.get("is_encoder_decoder") else 0)


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    if config.get("multi_query") and not config.get("new_decoder_architecture"):  # Falcon 7B, StarCoder
        return 1
    return int(first_of(config, *KV_HEADS) or heads)


def _windows(config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """transformers keeps window - 1 tokens of a layer with a sliding window, and none of one that uses another's."""
    kinds = _kinds(config, layers)
    sizes = {"sliding_attention": config.get("sliding_window"), "chunked_attention": config.get("attention_chunk_size")}
    shared = int(config.get("num_kv_shared_layers") or 0)
    kept = [k for k in kinds[: layers - shared] if k not in WITHOUT_KEYS]
    found = [sizes.get(k) for k in kept]
    return tuple(None if size is None else int(size) - 1 for size in found)


def _kinds(config: Mapping[str, Any], layers: int) -> list[str]:
    """Of each layer, by transformers' names. Configs from before layer_types say it in other ways."""
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        return [str(kind) for kind in kinds]
    window = config.get("sliding_window") is not None and config.get("use_sliding_window", True) is not False
    if not window:
        chunked = config.get("attention_chunk_size") is not None
        return ["chunked_attention" if chunked else "full_attention"] * layers
    pattern = config.get("sliding_window_pattern") or {"gemma2": 2, "gemma3_text": 6}.get(str(config.get("model_type")))
    whole = (
        int(config["max_window_layers"]) if config.get("use_sliding_window") and "max_window_layers" in config else 0
    )

    def is_whole(i: int) -> bool:
        return i < whole if pattern is None else (i + 1) % int(pattern) == 0

    return ["full_attention" if is_whole(i) else "sliding_attention" for i in range(layers)]
