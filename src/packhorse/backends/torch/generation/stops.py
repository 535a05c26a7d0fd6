"""Where an output ends by itself: end tokens and stop strings, at the step at which transformers' criteria stop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from packhorse.data import Int32s
from packhorse.errors import UsageError

# Put before a token so that its decoder treats it as one inside a text (StopStringCriteria.clean_tokenizer_vocab).
PREFIX = "abcdef"


class StopStrings:
    """Whether the last token of an output completes a stop string.

    As transformers' StopStringCriteria has it: prompt and output are one text, put together from what each token
    stands for inside a text; a stop string counts where it ends inside the last token and begins at most as many
    tokens earlier as the longest stop string has characters (bytes for byte-level and byte-fallback vocabularies).
    What a token stands for is looked up when it first comes, not for a whole vocabulary in advance; a stop string that
    no token can end, which transformers refuses, therefore stops nothing.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: str | Sequence[str]) -> None:
        """Raises UsageError for stop strings that are no text, and where this tokenizer's decoder does not give back
        what it was given."""
        strings = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings)
        if not strings or not all(isinstance(s, str) and s for s in strings):
            raise UsageError(
                f"--generation stop_strings={stop_strings!r}: one text or a list of texts, none of them empty."
            )
        self.tokenizer, self._decoder = tokenizer, tokenizer.decoder
        self._kind = byte_kind(tokenizer)
        self._texts: dict[int, Any] = {}
        self._before: list[Any] = [
            tokenizer.id_to_token(i) for i in tokenizer.encode(PREFIX, add_special_tokens=False).ids
        ]
        self._strings = strings if self._kind is None else [s.encode() for s in strings]
        self._nothing: Any = "" if self._kind is None else b""
        self.window = max(len(s) for s in self._strings)  # tokens that are looked at
        self._inside_a_text(PREFIX[-1])

    def ends(self, start: Int32s, ids: Sequence[int]) -> bool:
        """start: what the output goes on from (the prompt; of an encoder-decoder model the decoder's own start).
        ids: what was generated, at least one."""
        tail = list(ids[-self.window :])
        if len(tail) < self.window and len(start):
            tail = [*start[len(tail) - self.window :].tolist(), *tail]
        texts = [self._text(i) for i in tail]
        joined = self._nothing.join(texts)
        last = len(joined) - len(texts[-1])
        return any(joined.find(s, max(0, last - len(s) + 1)) >= 0 for s in self._strings) if texts[-1] else False

    def _text(self, token_id: int) -> Any:
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self._read(token_id)
        return text

    def _read(self, token_id: int) -> Any:
        """Of an id beyond the vocabulary a mark that is in no stop string."""
        token = self.tokenizer.id_to_token(token_id)
        if token is None:
            return "\x00\uffff" if self._kind is None else b"\xff\xff"
        found = token_bytes(token, self._kind)
        if found is not None:
            return found
        text = self._inside_a_text(token)
        return text if self._kind is None else text.encode()

    def _inside_a_text(self, token: str) -> str:
        tokens: list[str] = [*self._before, token]
        text: str = self._decoder.decode(tokens) if self._decoder is not None else " ".join(tokens)
        if PREFIX not in text:
            raise UsageError(
                f"--generation stop_strings: this tokenizer gives {PREFIX!r} back as {text!r}, so that transformers "
                "cannot tell where a stop string ends. Leave stop_strings out and cut the text afterwards."
            )
        return text[text.index(PREFIX) + len(PREFIX) :]


def byte_kind(tokenizer: Tokenizer) -> str | None:
    """byte_fallback or byte_level where tokens stand for bytes, by the tokenizer's decoder; None where for text."""
    types = decoder_types(tokenizer)
    return "byte_fallback" if "ByteFallback" in types else "byte_level" if "ByteLevel" in types else None


def decoder_types(tokenizer: Tokenizer) -> set[str]:
    """Of the tokenizer's decoder and of all that it is made of."""
    decoder = json.loads(tokenizer.to_str()).get("decoder") if tokenizer.decoder is not None else None
    return set(_types(decoder))


def _types(node: Any) -> list[str]:
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    own = [node["type"]] if isinstance(node, dict) and isinstance(node.get("type"), str) else []
    return own + [name for part in inner for name in _types(part)]


def token_bytes(token: str, kind: str | None) -> bytes | None:
    """The bytes that a token of a byte vocabulary stands for; None where it stands for text."""
    if kind == "byte_level" and all(c in BYTE_OF for c in token):
        return bytes(BYTE_OF[c] for c in token)
    is_byte = kind == "byte_fallback" and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    if is_byte and all(c in "0123456789abcdefABCDEF" for c in token[3:5]):
        return bytes([int(token[3:5], 16)])
    return None


def _byte_of() -> dict[str, int]:
    """GPT-2's alphabet for bytes: printable ones of Latin-1 stand for themselves, the others, in order, for the
    characters from 256 on (bytes_to_unicode of OpenAI's gpt-2, encoder.py)."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF = _byte_of()
