"""Settings of generation by the names of transformers' GenerationConfig, as vLLM's SamplingParams has them.

Where temperature, top_k, top_p and min_p are given together, vLLM applies min_p before top_k and top_p, transformers
after them. vLLM's repetition_penalty is transformers'.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.errors import UsageError, did_you_mean
from packhorse.generation import Decoding

DEFAULT_MAX_NEW_TOKENS = 256
ANOTHER = "--backend torch has it"

# What transformers does where nobody says anything (GenerationConfig._get_default_generation_params), as vLLM names it.
SAMPLED = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
MAPPED = frozenset(
    {*SAMPLED, *PENALTIES}
    | {"do_sample", "max_new_tokens", "max_length", "min_new_tokens", "min_length", "eos_token_id", "stop_strings"}
    | {"num_return_sequences"}
)

# vLLM has none of these; a model or a user who leaves them at the value shown, at nothing or at 0 asks for nothing.
LACKING: Mapping[str, Any] = dict.fromkeys(
    (
        "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "suppress_tokens",
        "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty",
        "watermarking_config", "prompt_lookup_num_tokens", "penalty_alpha", "dola_layers", "max_time", "constraints",
        "force_words_ids", "renormalize_logits", "token_healing", "remove_invalid_values", "assistant_early_exit",
        "diversity_penalty", "speculation_type", "use_mtp",
    )
) | {"num_beams": 1, "num_beam_groups": 1, "guidance_scale": 1.0, "encoder_repetition_penalty": 1.0}  # fmt: skip
LACKING_SAMPLED: Mapping[str, Any] = {"typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_h": None}

# They change no token, or nothing without beams, or belong to how transformers runs.
IGNORED = frozenset(
    {
        "pad_token_id", "bos_token_id", "decoder_start_token_id", "early_stopping", "length_penalty", "use_cache",
        "cache_implementation", "cache_config", "max_cache_len", "return_legacy_cache", "output_attentions",
        "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate", "low_memory",
        "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
        "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight", "max_matching_ngram_size",
        "compile_config", "disable_compile", "continuous_batching_config", "transformers_version",
        "_from_model_config", "_commit_hash", "prefill_chunk_size", "trust_remote_code",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sampling:
    """What all rows share, and how a row's own part is made."""

    common: Mapping[str, Any]  # keywords of vllm.SamplingParams; "constraint": those of StructuredOutputsParams
    end_ids: tuple[int, ...]
    num_samples: int
    seed: int
    max_new_tokens: int
    max_length: int | None  # of prompt and output together, where no max_new_tokens is said
    min_new_tokens: int
    min_length: int  # of prompt and output together

    @property
    def is_sampled(self) -> bool:
        return bool(self.common["temperature"] > 0)

    def max_tokens(self, prompt_tokens: int, longest: int) -> int:
        """Of an output; below 1 where there is no room. longest: that vLLM takes, prompt and output together."""
        asked = self.max_new_tokens if self.max_length is None else self.max_length - prompt_tokens
        return min(asked, longest - prompt_tokens)

    def min_tokens(self, prompt_tokens: int, max_tokens: int) -> int:
        return min(max(self.min_new_tokens, self.min_length - prompt_tokens, 0), max_tokens)

    def seed_of(self, key: int, sample: int) -> int | None:
        """63 bits, a function of the job's seed, the row's key and the sample's number alone."""
        if not self.is_sampled:
            return None
        text = f"{self.seed}:{key}:{sample}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def read_sampling(folder: Path, decoding: Decoding) -> Sampling:
    """Raises UsageError where vLLM cannot do what the settings, or the model's own, ask for."""
    own, source = _of_model(folder)
    asked = dict(decoding.settings)
    _check(asked, own, source)
    settings = {k: v for k, v in {**own, **asked}.items() if v is not None}
    ends = settings.get("eos_token_id", ())
    end_ids = tuple(int(i) for i in (ends if isinstance(ends, list | tuple) else [ends]))
    max_new_tokens, max_length = _lengths(asked, own)
    return Sampling(
        common=_common(settings, decoding, end_ids),
        end_ids=end_ids,
        num_samples=decoding.num_samples,
        seed=decoding.seed,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        min_new_tokens=int(settings.get("min_new_tokens", 0)),
        min_length=int(settings.get("min_length", 0)),
    )


def _of_model(folder: Path) -> tuple[dict[str, Any], str]:
    """generation_config.json; without one what the model's config says, as transformers reads it."""
    path = folder / "generation_config.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
    else:
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        found = {**(config.get("text_config") or {}), **config}
    known = MAPPED | LACKING.keys() | LACKING_SAMPLED.keys()
    return {name: value for name, value in found.items() if name in known}, path.name


def _check(asked: Mapping[str, Any], own: Mapping[str, Any], source: str) -> None:
    known = MAPPED | LACKING.keys() | LACKING_SAMPLED.keys() | IGNORED
    for name in asked:
        if name not in known:
            raise UsageError(f"--generation {name}: vLLM knows no such setting{did_you_mean(name, known)}")
    settings = {**own, **asked}
    lacking = {**LACKING, **(LACKING_SAMPLED if settings.get("do_sample") else {})}
    for name, neutral in lacking.items():
        value = settings.get(name)
        if value and value != neutral:
            where = f"--generation {name}={value}" if name in asked else f"{source} of the model says {name} {value}"
            off = "leave it out" if name in asked else f"say --generation {name}={json.dumps(neutral)}"
            raise UsageError(f"{where}: vLLM has no {name}; {ANOTHER}, or {off}")


def _common(settings: Mapping[str, Any], decoding: Decoding, end_ids: tuple[int, ...]) -> dict[str, Any]:
    """ignore_eos: which tokens end an output is told by stop_token_ids, as transformers has it, not by vLLM's own look
    at the tokenizer; only what follows a grammar ends at that too."""
    common: dict[str, Any] = {name: settings.get(name, value) for name, value in PENALTIES.items()}
    if settings.get("do_sample"):
        common |= {name: settings.get(name, value) for name, value in SAMPLED.items()}
    else:
        common["temperature"] = 0.0
    stops = settings.get("stop_strings") or ()
    stops = [stops] if isinstance(stops, str) else list(stops)
    common |= {
        "n": 1, "stop_token_ids": list(end_ids), "ignore_eos": not decoding.is_constrained, "stop": stops,
        "detokenize": bool(stops), "skip_special_tokens": False,
    }  # fmt: skip
    if decoding.with_logprobs:
        common["logprobs"] = 0  # of the chosen token alone
    if decoding.json_schema is not None:
        common["constraint"] = {"json": decoding.json_schema}
    elif decoding.choices is not None:
        common["constraint"] = {"choice": list(decoding.choices)}
    return common


def _lengths(asked: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[int, int | None]:
    """Most tokens of an output, and of prompt and output together where that was said instead. What was asked for goes
    before what the model says, max_new_tokens before max_length."""
    for settings in (asked, own):
        if settings.get("max_new_tokens"):
            return int(settings["max_new_tokens"]), None
        if settings.get("max_length"):
            return int(settings["max_length"]), int(settings["max_length"])
    return DEFAULT_MAX_NEW_TOKENS, None
