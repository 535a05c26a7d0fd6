"""The settings that a job writes with: the model's own generation_config, and over it what was asked for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig

from packhorse.backends.torch.generation.compat import prepare_special_tokens
from packhorse.errors import ModelError, UsageError, did_you_mean, first_line

# Where neither the job nor the model says how long an output may get.
DEFAULT_MAX_NEW_TOKENS = 256

# transformers wants floats for these; JSON writes 2 for 2.0.
FLOATS = frozenset({
    "temperature", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty",
    "encoder_repetition_penalty", "length_penalty", "guidance_scale", "diversity_penalty", "penalty_alpha",
})  # fmt: skip

# Asked for, these would change what comes out in a way that a row's output cannot hold or cannot repeat.
REFUSED = {
    "max_time": "where an output ends would depend on the machine. Use max_new_tokens",
    **dict.fromkeys(
        ("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
        "packhorse writes text and, with --logprobs, the log-probabilities of its tokens, not tensors",
    ),
}

# Where keys and values lie changes no token: a model's own wish for it is no reason for transformers' generate(), which
# follows one that was asked for. A quantized cache does change them.
OF_MEMORY = ("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory")

# Settings of which only transformers' own generate() knows what they mean, and the values that ask for nothing.
OF_LIBRARY: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0.0),
    "guidance_scale": (None, 1.0),
    "dola_layers": (None,),
    "constraints": (None,),
    "force_words_ids": (None,),
    "watermarking_config": (None,),
    "token_healing": (None, False),
    "use_mtp": (None, False),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "speculation_type": (None,),
    "is_assistant": (None, False),
    "low_memory": (None, False),
    "use_cache": (None, True),
    "cache_implementation": (None,),
    "cache_config": (None,),
    "max_cache_len": (None,),
    "prefill_chunk_size": (None,),
}


def effective_config(model: Any, settings: Mapping[str, Any], device: torch.device) -> GenerationConfig:
    """What generate(**settings) would use, put together by transformers itself; max_new_tokens is 256 where nobody
    gives a length. Raises UsageError for names and values that transformers does not take, ModelError where the
    model's own settings are the reason."""
    _check_names(settings)
    _check_own(model, device)
    settings = {name: _as_float(value) if name in FLOATS else value for name, value in settings.items()}
    try:
        config, _ = model._prepare_generation_config(None, **settings)
        prepare_special_tokens(model, config, device)
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"--generation {_listed(settings)}: transformers refuses this: {first_line(error)}") from error
    has_length = settings.get("max_length") is not None or model.generation_config.max_length is not None
    if config.max_new_tokens is None and not has_length:
        config.max_new_tokens = DEFAULT_MAX_NEW_TOKENS
    return config


def _check_own(model: Any, device: torch.device) -> None:
    """What no output should depend on is taken out of the model's own settings, where generate() finds it too. So is
    the number of outputs, which the columns of a job depend on: only the job says it."""
    own = model.generation_config
    for name in (*REFUSED, "num_return_sequences", *(OF_MEMORY if own.cache_implementation != "quantized" else ())):
        if getattr(own, name, None) is not None:
            setattr(own, name, None)
    try:
        config, _ = model._prepare_generation_config(None)
        prepare_special_tokens(model, config, device)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"generation_config.json of this model cannot be used: {first_line(error)}") from error


def library_reason(config: GenerationConfig) -> str | None:
    """The setting that only transformers' own generate() follows; None where there is none."""
    for name, nothing in OF_LIBRARY.items():
        value = getattr(config, name, None)
        if value not in nothing:
            return f"{name}={value!r} is followed by transformers' own generate() alone"
    return None


def row_config(config: GenerationConfig, start: int, limit: int) -> GenerationConfig:
    """generate()'s config of one output that begins with `start` tokens and gets at most `limit` more: it counts
    max_length and min_length from the first token on (GenerationMixin._prepare_generated_length). The min_length that
    it makes of min_new_tokens is left out: another processor does the same by min_new_tokens itself."""
    own = copy.copy(config)
    own.max_length = start + limit
    if own.min_new_tokens is not None:
        own.min_length = 0
    return own


def _check_names(settings: Mapping[str, Any]) -> None:
    legal = sorted(n for n in vars(GenerationConfig()) if not n.startswith("_") and n != "transformers_version")
    for name, value in settings.items():
        if name not in legal:
            raise UsageError(
                f"--generation {name}={value}: transformers' GenerationConfig has no such field"
                f"{did_you_mean(name, legal) or '. Its fields are in the documentation of GenerationConfig.'}"
            )
        if name in REFUSED and value:
            raise UsageError(f"--generation {name}={value}: {REFUSED[name]}.")


def _as_float(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _listed(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())
