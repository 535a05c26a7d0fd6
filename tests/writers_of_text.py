"""Folders of small models that write: random weights, a byte-level tokenizer, and what plain transformers writes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.generators import byte_level_tokenizer, seq2seq_model, tiny_llm

VOCAB, POSITIONS = 320, 128
IDS = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
KINDS = ("llama", "qwen3", "gpt2", "t5", "bart")
DECODERS = ("llama", "qwen3", "gpt2")
ENDS = list(range(7, VOCAB, 16))  # one token in sixteen ends an output, so that outputs have very different lengths
WORDS = ["the", "stop", "of", "opera", "there", "end.", "naïve", "café", "漢字", "42", "a", "film", "plot:", "\n"]
CHAT = (
    "{% for m in messages %}<|end|>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|end|>assistant: {% endif %}"
)


def save_writer(
    folder: Path, kind: str, ends: Sequence[int] | None = ENDS, chat: str | None = None, **config: Any
) -> Path:
    """kind: one of KINDS. ends: ids that end an output. chat: its template. 128 positions, or a tokenizer's limit of
    128 where the model has none."""
    if kind in DECODERS:
        model = tiny_llm(kind, VOCAB, **config)
    else:
        start = 0 if kind == "t5" else 2
        model = seq2seq_model(kind, **{**IDS, "decoder_start_token_id": start, **config})
        model.generation_config.no_repeat_ngram_size = 2  # else they soon write one token forever
    save_tokenizer_of(folder, ends_texts=kind not in DECODERS, chat=chat)
    if ends is ENDS and kind not in DECODERS:  # of all ids they write few
        ends = _written_at_steps(model, folder)
    model.generation_config.eos_token_id = None if ends is None else list(ends)
    model.save_pretrained(folder)
    return folder


def _written_at_steps(model: Any, folder: Path) -> list[int]:
    """Ids that the first texts have at later and later steps, and none of them at its first."""
    free = Reference(folder, model)
    written = [free.generate(text, max_new_tokens=24)[0].ids for text in texts(20)]
    return sorted({ids[2 * i + 3] for i, ids in enumerate(written[:9])} - {ids[0] for ids in written})


def save_tokenizer_of(folder: Path, ends_texts: bool = False, chat: str | None = None) -> None:
    """Byte-level BPE of 320 tokens; ends_texts: an end token behind each text, as encoders are given it."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend = byte_level_tokenizer(VOCAB)
    if ends_texts:
        backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=POSITIONS
    )
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)


def texts(count: int, longest: int = 18, seed: int = 0) -> list[str]:
    """Different ones of 1 to `longest` words, in no order."""
    draw = np.random.default_rng(seed)
    return [" ".join([str(i), *draw.choice(WORDS, n - 1)]) for i, n in enumerate(draw.integers(1, longest, count))]


class Written(NamedTuple):
    """ids: without the prompt and padding, the end token included."""

    ids: list[int]
    text: str
    num_prompt_tokens: int


class Reference:
    """transformers alone, one prompt at a time, in fp32."""

    def __init__(self, folder: Path, model: Any = None) -> None:
        """model: instead of that of the folder."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

        torch.set_num_threads(1)
        if model is None:
            is_seq2seq = AutoConfig.from_pretrained(folder).is_encoder_decoder
            auto = AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM
            model = auto.from_pretrained(folder, dtype=torch.float32).eval()
        self.model = model
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def generate(self, text: str, special: bool = True, **settings: Any) -> list[Written]:
        """One output, or num_return_sequences of them."""
        ids = self.tokenizer(text, return_tensors="pt", add_special_tokens=special).input_ids
        asked = copy.deepcopy({"do_sample": False, **settings})
        if "stop_strings" in asked:
            asked["tokenizer"] = self.tokenizer
        written = self.model.generate(ids, attention_mask=ids.new_ones(ids.shape), **asked)
        start = 1 if self.model.config.is_encoder_decoder else ids.shape[1]
        return [self._written(row[start:].tolist(), ids.shape[1]) for row in written]

    @property
    def ends(self) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [] if ends is None else [ends]

    def _written(self, ids: list[int], num_prompt_tokens: int) -> Written:
        first = next((i for i, token in enumerate(ids) if token in self.ends), len(ids))
        ids = ids[: first + 1]
        return Written(ids, self.tokenizer.decode(ids, skip_special_tokens=True), num_prompt_tokens)

    def logits(self, text: str, written: Sequence[int]) -> Any:
        """[len(written), V] of one plain forward over prompt and output: those that each id was chosen by."""
        import torch

        ids = self.tokenizer(text, return_tensors="pt").input_ids
        before = torch.tensor([list(written)])[:, :-1]
        if self.model.config.is_encoder_decoder:
            start = torch.tensor([[self.model.config.decoder_start_token_id]])
            inputs = {"input_ids": ids, "decoder_input_ids": torch.cat([start, before], 1)}
        else:
            inputs = {"input_ids": torch.cat([ids, before], 1)}
        with torch.inference_mode():
            return self.model(**inputs).logits[0, -len(written) :]

    def allowed(self, logits: Any, written: Sequence[int]) -> Any:
        """A copy of logits() without the ids that the model's no_repeat_ngram_size of 2 forbids."""
        logits = logits.clone()
        if self.model.generation_config.no_repeat_ngram_size == 2:
            before = [self.model.config.decoder_start_token_id, *written]
            for step in range(len(written)):
                pairs = itertools.pairwise(before[: step + 1])
                logits[step, [b for a, b in pairs if a == before[step]]] = -float("inf")
        return logits

    def logprobs(self, text: str, written: Sequence[int]) -> list[float]:
        """log_softmax of logits(), at the ids written."""
        scores = self.logits(text, written).log_softmax(-1)
        return [float(scores[step, token]) for step, token in enumerate(written)]
