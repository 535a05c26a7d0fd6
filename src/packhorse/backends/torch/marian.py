"""Marian's tokenizer (Helsinki-NLP/opus-mt-*) as a tokenizers.Tokenizer: transformers has only one in Python, which
needs the package sentencepiece.

A text is a code, `>>fr<<`, or none, and then what source.spm cuts. The pieces' ids are those of vocab.json, where those
of both languages stand in an order of its own; a piece that it lacks is the unknown token. A Unigram model alone would
take any token of the vocabulary anywhere; marks, characters that no text has for a reason, keep apart:

    "▁" MARK ">>fr<<" END    a code, which is one only where a text begins
    MARK "東京" END          a run of characters that source.spm does not know: looked up as a whole
    HIDDEN "▁über"           known to target.spm only: decoded, never encoded
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from packhorse.backends.torch import spm
from packhorse.data import UNKNOWN_FROM, TokenizerParts
from packhorse.errors import ModelError

SPACE = "\u2581"
# Noncharacters; the last two: a code that vocab.json lacks, and a mark in a text.
MARK, END, HIDDEN, NO_CODE, TAKEN = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3", "\ufdd4"
MARKS = MARK + END + HIDDEN + NO_CODE
CODE = r">>[\s\S]*?<<"
SPECIAL = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}


class Vocabulary(NamedTuple):
    """ids: of vocab.json; pieces: scores of what source.spm matches; codes, foreign: those with a MARK."""

    ids: dict[str, int]
    pieces: dict[str, float]
    codes: list[str]
    foreign: list[str]
    known: str  # the characters of all pieces
    special: dict[str, str]  # by their role, SPECIAL


def is_marian(folder: Path) -> bool:
    """Whether it has Marian's files and none of the tokenizers library."""
    names = ("source.spm", "target.spm", "vocab.json")
    return all((folder / name).is_file() for name in names) and not (folder / "tokenizer.json").is_file()


def load_marian(folder: Path) -> TokenizerParts:
    """The tokens of transformers' MarianTokenizer, and its texts. Raises ModelError for files that are not understood.

    Where a character that source.spm's rules replace carries a combining mark (a superscript two with an accent), the
    tokenizers library drops the mark and SentencePiece keeps it.
    """
    model = spm.read_model(folder / "source.spm")
    _check(folder, model)
    config = _object(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    if config.get("separate_vocabs"):
        raise ModelError(f"{folder}: a Marian tokenizer with separate_vocabs is not known here")
    vocabulary = _vocabulary(folder, model, config)
    return TokenizerParts(_tokenizer(vocabulary, model.charsmap), False, str(config.get("truncation_side", "right")))


def _check(folder: Path, model: spm.SentencePieceModel) -> None:
    """Raises ModelError for a model of another kind than Marian's."""
    usual = model.adds_prefix and model.removes_spaces and model.escapes_spaces
    kinds = {piece.kind for piece in model.pieces}
    if model.model_type != spm.UNIGRAM or spm.NORMAL not in kinds or kinds & {spm.USER_DEFINED, spm.BYTE}:
        raise ModelError(f"{folder / 'source.spm'}: is no Unigram model of plain pieces, as Marian's are")
    if not usual or model.is_suffix or model.restores:
        raise ModelError(f"{folder / 'source.spm'}: treats spaces otherwise than Marian's models do")


def _vocabulary(folder: Path, model: spm.SentencePieceModel, config: dict[str, Any]) -> Vocabulary:
    ids = _object(folder / "vocab.json")
    if sorted(ids.values()) != list(range(len(ids))):
        raise ModelError(f"{folder / 'vocab.json'}: its ids are not 0 to {len(ids) - 1:,}, each once")
    special = {role: _content(config.get(role, usual)) for role, usual in SPECIAL.items()}
    added = [_content(token) for token in (config.get("added_tokens_decoder") or {}).values()]
    missing = [token for token in [*special.values(), *added] if token not in ids]
    if missing:
        raise ModelError(f"{folder / 'vocab.json'}: has no {', '.join(missing)}")
    pieces = {piece.text: piece.score for piece in model.pieces if piece.kind == spm.NORMAL}
    known = set("".join(pieces))
    others = [token for token in ids if token not in pieces and token not in special.values()]
    codes = [token for token in others if re.fullmatch(CODE, token) and "<<" not in token[:-2]]
    foreign = [token for token in others if not known & set(token)]
    return Vocabulary(ids, pieces, codes, foreign, "".join(sorted(known)), special)


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds a JSON {type(value).__name__}, not an object")
    return value


def _tokenizer(vocabulary: Vocabulary, charsmap: bytes) -> Any:
    from tokenizers import AddedToken, Tokenizer, models, processors

    normalizer = _normalizer(vocabulary, charsmap)
    unk, eos = (vocabulary.special[role] for role in ("unk_token", "eos_token"))
    tokenizer = Tokenizer(models.Unigram(_listed(vocabulary, normalizer), vocabulary.ids[unk], False))
    tokenizer.normalizer = normalizer
    tokenizer.decoder = _decoder()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in vocabulary.special.values()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A $B {eos}", special_tokens=[(eos, vocabulary.ids[eos])]
    )
    return tokenizer


def _listed(vocabulary: Vocabulary, normalizer: Any) -> list[tuple[str, float]]:
    """What the model matches, by id, and the scores; behind vocab.json's what it lacks."""
    marked = {token: f"{MARK}{token}{END}" for token in vocabulary.foreign}
    marked |= {code: normalizer.normalize_str(code) for code in vocabulary.codes}
    plain = {*vocabulary.pieces, *vocabulary.special.values()}
    strings = {token: token if token in plain else marked.get(token, HIDDEN + token) for token in vocabulary.ids}
    ordered = sorted(vocabulary.ids, key=vocabulary.ids.__getitem__)
    listed = [(strings[token], vocabulary.pieces.get(token, 0.0)) for token in ordered]
    absent = [(token, score) for token, score in vocabulary.pieces.items() if token not in vocabulary.ids]
    return listed + ([(UNKNOWN_FROM, 0.0), *absent] if absent else [])


def _normalizer(vocabulary: Vocabulary, charsmap: bytes) -> Any:
    """Marks, then what SentencePiece does: its map of characters, one space between words, none around, one before.

    No rule puts a character before the first in place of nothing: a normalizer behind such a rule can panic.
    """
    from tokenizers import normalizers

    codes = "|".join(re.escape(code[1:]) for code in vocabulary.codes)
    has_code = rf"\A>(?={codes})" if codes else "(?!)"
    foreign = f"[^{re.escape(vocabulary.known)} {SPACE}{MARKS}]"
    runs = [(f"(?<!{foreign})(?={foreign})", MARK), (f"(?<={foreign})(?!{foreign})", END)]
    code = rf"\A(?:{SPACE}{MARK}{CODE}{END}|{NO_CODE})"
    return normalizers.Sequence([
        *_replace((f"[{MARKS}]", TAKEN)),
        *_replace((has_code, f"{MARK}>"), (rf"\A{MARK}{CODE}\K", END), (rf"\A{CODE}", NO_CODE)),
        *_charsmap(charsmap),
        *_replace((r"\A +| +\z", ""), (" {2,}", " ")),
        normalizers.Prepend(SPACE),
        *_replace((rf"\A{SPACE}{NO_CODE}", NO_CODE), (rf"{code}\K *(?=[^ ])", SPACE), (" ", SPACE)),
        *(_replace(*runs) if vocabulary.foreign else []),
    ])  # fmt: skip


def _charsmap(charsmap: bytes) -> list[Any]:
    """SentencePiece's rules take the longest match, the library's the shortest, of what a combining mark belongs to:
    rules that compose are given what is composed already (Vietnamese, Japanese and Korean as macOS writes names)."""
    from tokenizers import normalizers

    if not charsmap:
        return []
    rules = normalizers.Precompiled(charsmap)
    composes = rules.normalize_str("e\u0301") == "\u00e9"
    return [normalizers.NFC(), rules] if composes else [rules]


def _replace(*rules: tuple[str, str]) -> list[Any]:
    from tokenizers import Regex, normalizers

    return [normalizers.Replace(Regex(pattern), content) for pattern, content in rules]


def _decoder() -> Any:
    from tokenizers import Regex, decoders

    shown = decoders.Replace(Regex(f"{SPACE}{MARK}|[{MARKS}]"), "")
    strip = decoders.Replace(Regex(r"\A +| +\z"), "")  # decoders.Strip panics where nothing is left
    return decoders.Sequence([shown, decoders.Replace(SPACE, " "), decoders.Fuse(), strip])
