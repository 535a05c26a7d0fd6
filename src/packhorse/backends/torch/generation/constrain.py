"""Constrained output: only tokens that a JSON schema, or a list of choices, leaves possible, through xgrammar."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer

from packhorse.backends.torch.generation.schemas import checked_schema
from packhorse.backends.torch.generation.stops import byte_kind, decoder_types, token_bytes
from packhorse.errors import UsageError
from packhorse.generation import Decoding

METASPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space


class Matched(Protocol):
    """A row that is written under a grammar."""

    matcher: Any  # None before its first step


class Constraint:
    """A grammar, compiled once, and where each row stands in it.

    A row ends with an end token, which is possible only where the output is complete. For a model without an end
    token it ends at the first place where the output is complete.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos: Collection[int], decoding: Decoding) -> None:
        """vocab_size: the model's, which may be more than the tokenizer's. Raises UsageError where xgrammar is missing
        or cannot read the tokenizer, and for schemas or choices that no grammar can be made of."""
        flag = "--json-schema" if decoding.json_schema is not None else "--choices"
        if decoding.json_schema is not None and decoding.choices is not None:
            raise UsageError("--json-schema and --choices: an output follows one of them. Leave one of them out.")
        self._xgrammar = _xgrammar(flag)
        self._vocab_size, self._eos = vocab_size, frozenset(eos)
        vocabulary = encoded_vocabulary(tokenizer, vocab_size, flag)
        if decoding.json_schema is not None:  # JSON escapes control characters; xgrammar's strings with lengths do not
            vocabulary = [b"" if any(byte < 0x20 for byte in token) else token for token in vocabulary]
        info = self._xgrammar.TokenizerInfo(
            vocabulary, self._xgrammar.VocabType.RAW, vocab_size=vocab_size, stop_token_ids=sorted(self._eos)
        )
        self._grammar = _compiled(self._xgrammar.GrammarCompiler(info, max_threads=1), decoding)
        self._batch = self._xgrammar.BatchGrammarMatcher()

    def mask(self, rows: Sequence[Matched], scores: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        """scores [B, V] float32 with -inf where a row's grammar leaves no token. Where logits processors forbid all
        that the grammar leaves, the grammar holds: the scores are then those of raw [B, V]."""
        for row in rows:
            if row.matcher is None:
                row.matcher = self._matcher()
        bitmask = self._xgrammar.allocate_token_bitmask(len(rows), self._vocab_size)
        self._batch.batch_fill_next_token_bitmask([row.matcher for row in rows], bitmask)
        bitmask = bitmask.to(scores.device)
        masked = self._applied(scores, bitmask)
        if scores is raw:
            return masked
        is_dead = masked.amax(-1, keepdim=True) == -torch.inf
        return torch.where(is_dead, self._applied(raw, bitmask), masked)

    def accept(self, row: Matched, token_id: int) -> bool:
        """Whether the output is complete with that token."""
        if not row.matcher.accept_token(token_id):
            raise RuntimeError(f"token {token_id} is not among those that the grammar leaves")
        return bool(row.matcher.is_terminated())

    def _matcher(self) -> Any:
        return self._xgrammar.GrammarMatcher(self._grammar, terminate_without_stop_token=not self._eos)

    def _applied(self, scores: torch.Tensor, bitmask: torch.Tensor) -> torch.Tensor:
        masked = scores.clone(memory_format=torch.contiguous_format)
        kind = "auto" if scores.device.type in ("cpu", "cuda") else "torch_native"
        width = min(self._vocab_size, scores.shape[1])
        self._xgrammar.apply_token_bitmask_inplace(masked, bitmask, vocab_size=width, backend=kind)
        masked[:, width:] = -torch.inf
        return masked


def encoded_vocabulary(tokenizer: Tokenizer, vocab_size: int, flag: str) -> list[bytes]:
    """[vocab_size] the bytes that each token stands for inside a text; none for special tokens, for ids beyond the
    tokenizer's vocabulary and for the unknown token: a grammar never takes them. Raises UsageError for vocabularies
    whose tokens have no bytes of their own."""
    types = decoder_types(tokenizer)
    kind = byte_kind(tokenizer)
    if kind is None and "Metaspace" not in types:
        seen = ", ".join(sorted(types)) or "none"
        raise UsageError(
            f"{flag}: this tokenizer's decoder ({seen}) puts spaces between tokens by rules that a grammar cannot "
            "follow. It takes a byte-level BPE or a SentencePiece vocabulary (GPT-2, Llama, Qwen, T5 have one)."
        )
    vocabulary = [b""] * vocab_size
    for token, token_id in tokenizer.get_vocab(with_added_tokens=False).items():
        if token_id < vocab_size:
            vocabulary[token_id] = _bytes_of(token, kind)
    for token_id, added in tokenizer.get_added_tokens_decoder().items():
        if token_id < vocab_size:
            vocabulary[token_id] = b"" if added.special else added.content.encode()
    unknown = _unknown_id(tokenizer)
    if unknown is not None and unknown < vocab_size:
        vocabulary[unknown] = b""
    return vocabulary


def _bytes_of(token: str, kind: str | None) -> bytes:
    found = token_bytes(token, kind)
    if found is not None:
        return found
    return token.encode() if kind == "byte_level" else token.replace(METASPACE, " ").encode()


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    model = json.loads(tokenizer.to_str())["model"]
    named = model.get("unk_token")
    return tokenizer.token_to_id(named) if isinstance(named, str) else model.get("unk_id")


def _compiled(compiler: Any, decoding: Decoding) -> Any:
    """The separators of JSON are ', ' and ': ', as json.dumps has them: where any white space is possible, a model may
    write nothing else until its tokens are used up."""
    if decoding.choices is not None:
        return compiler.compile_grammar(choice_grammar(decoding.choices))
    schema = checked_schema(decoding.json_schema or "")
    try:
        return compiler.compile_json_schema(json.dumps(schema), any_whitespace=False)
    except (RuntimeError, ValueError) as error:
        words = re.sub(r"^\[[\d:]+\] \S+: ", "", str(error).strip().splitlines()[0])
        raise UsageError(f"--json-schema: no grammar can be made of it: {words}") from error


def choice_grammar(choices: Sequence[str]) -> str:
    """EBNF of the choices, each exactly as it stands there. Raises UsageError where there is none, or an empty one."""
    if not choices or not all(choices):
        raise UsageError(f"--choices {list(choices)!r}: at least one choice, none of them empty.")
    return "root ::= " + " | ".join(f'"{_escaped(choice)}"' for choice in choices)


def _escaped(text: str) -> str:
    """Quotes, backslashes and control characters by their numbers; all else stands for itself."""
    return "".join(f"\\x{ord(c):02x}" if c in '"\\' or ord(c) < 32 or ord(c) == 127 else c for c in text)


def _xgrammar(flag: str) -> Any:
    try:
        import xgrammar
    except ImportError as error:
        raise UsageError(
            f"{flag} takes the package xgrammar, which is not installed. Install it with: "
            'pip install "packhorse[constrained]"'
        ) from error
    return xgrammar
