"""Constrained output: whatever a model of random weights would like to write, what ended is what was asked for."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from packhorse.backends.torch.generation.constrain import encoded_vocabulary
from packhorse.backends.torch.generation.stepping import Row, Stepper
from packhorse.errors import UsageError
from packhorse.generation import LENGTH, STOP, Decoding
from tests.generators import byte_level_tokenizer, sentencepiece_tokenizer, tiny_llm
from tests.models import word_piece_tokenizer

pytest.importorskip("xgrammar")

EOS = 2
LABELS = {"enum": ["yes", "no", 'a "quoted" one', "é\n"]}
REVIEW = {
    "type": "object",
    "properties": {
        "label": LABELS,
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
        "is_spam": {"type": "boolean"},
    },
    "required": ["label", "stars", "tags", "is_spam"],
}
TOKENIZERS = {"byte_level": byte_level_tokenizer, "sentencepiece": sentencepiece_tokenizer}


@pytest.fixture(scope="module")
def llm() -> Any:
    torch.set_num_threads(1)
    return tiny_llm("llama", vocab_size=400)  # more than the tokenizers have


def write(stepper: Stepper, count: int = 12, seed: int = 0) -> list[Row]:
    """Rows from random scores of a model: other ones at each step, end tokens as likely as any."""
    generator = torch.Generator().manual_seed(seed)
    rows = [stepper.row(np.array([5, 6, 7], np.int32), key, 0) for key in range(count)]
    while live := [row for row in rows if not row.is_done]:
        stepper.step(live, torch.randn(len(live), 400, generator=generator) * 3)
    return rows


def text_of(tokenizer: Tokenizer, row: Row) -> str:
    return tokenizer.decode(row.ids, skip_special_tokens=True)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_what_ended_is_valid_json_for_the_schema(kind: str, sampled: bool, llm: Any) -> None:
    tokenizer = TOKENIZERS[kind]()
    asked = {"max_new_tokens": 120, "do_sample": sampled, "eos_token_id": EOS}
    stepper = Stepper(llm, tokenizer, Decoding(asked, json_schema=json.dumps(REVIEW)), None)
    rows = write(stepper)
    ended = [json.loads(text_of(tokenizer, row)) for row in rows if row.reason == STOP]
    assert len(ended) >= 8
    for value in ended:
        assert list(value) == ["label", "stars", "tags", "is_spam"]
        assert value["label"] in LABELS["enum"] and value["stars"] in range(1, 6) and type(value["is_spam"]) is bool
        assert len(value["tags"]) <= 2 and all(isinstance(t, str) and len(t) <= 4 for t in value["tags"])
    assert all(row.last_id == EOS for row in rows if row.reason == STOP)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_what_ended_is_one_of_the_choices(kind: str, llm: Any) -> None:
    tokenizer, choices = TOKENIZERS[kind](), ("yes", "yes please", 'say "no"\\', "né\n", "{a} | [b]", "零😀")
    asked = {"max_new_tokens": 60, "do_sample": True, "eos_token_id": EOS}
    rows = write(Stepper(llm, tokenizer, Decoding(asked, choices=choices), None), 60)
    assert all(row.reason == STOP for row in rows)
    assert {text_of(tokenizer, row) for row in rows} == set(choices)


def test_greedy_takes_the_best_token_that_is_allowed(llm: Any) -> None:
    tokenizer = byte_level_tokenizer()
    stepper = Stepper(llm, tokenizer, Decoding({"max_new_tokens": 9, "eos_token_id": EOS}, choices=("no", "yes")), None)
    row = stepper.row(np.array([5], np.int32), 0, 0)
    best = [tokenizer.token_to_id(c) for c in "yes"]
    for token_id in best:
        logits = torch.full((1, 400), 0.0)
        logits[0, [EOS, 350, 399]] = 9.0  # far better, and not allowed: no end yet, ids beyond the tokenizer
        logits[0, token_id] = 1.0
        stepper.step([row], logits)
    assert row.ids == best and not row.is_done
    stepper.step([row], torch.randn(1, 400))
    assert row.ids == [*best, EOS] and row.is_done and row.reason == STOP


def test_an_output_that_was_cut_off_says_so(llm: Any) -> None:
    asked = {"max_new_tokens": 4, "eos_token_id": EOS}
    stepper = Stepper(llm, byte_level_tokenizer(), Decoding(asked, json_schema=json.dumps(REVIEW)), None)
    assert {row.reason for row in write(stepper)} == {LENGTH}


def test_the_grammar_holds_where_other_settings_forbid_all_it_leaves(llm: Any) -> None:
    """min_new_tokens forbids the end where nothing but the end is possible."""
    tokenizer = byte_level_tokenizer()
    asked = {"max_new_tokens": 30, "min_new_tokens": 20, "eos_token_id": EOS, "do_sample": True, "top_k": 3}
    rows = write(Stepper(llm, tokenizer, Decoding(asked, choices=("yes", "no")), None))
    assert {text_of(tokenizer, row) for row in rows} == {"yes", "no"} and {row.reason for row in rows} == {STOP}


def test_samples_are_drawn_from_what_the_grammar_leaves(llm: Any) -> None:
    """top_k counts allowed tokens: none of them is among the best 3 of all."""
    tokenizer = byte_level_tokenizer()
    asked = {"max_new_tokens": 1, "eos_token_id": EOS, "do_sample": True, "top_k": 3}
    stepper = Stepper(llm, tokenizer, Decoding(asked, choices=("a", "b")), None)
    rows = [stepper.row(np.array([5], np.int32), key, 0) for key in range(2000)]
    a, b = (tokenizer.token_to_id(c) for c in "ab")
    logits = torch.zeros(1, 400)
    logits[0, a], logits[0, b], logits[0, 300:] = -5.0, -5.0 + np.log(3), 5.0
    stepper.step(rows, logits.expand(2000, -1))
    share = np.mean([row.last_id == b for row in rows])
    assert {row.last_id for row in rows} == {a, b} and abs(share - 0.75) < 0.04


def test_a_model_without_an_end_token_ends_where_the_output_is_complete(llm: Any) -> None:
    model, tokenizer = tiny_llm("llama", vocab_size=400), byte_level_tokenizer()
    model.generation_config.eos_token_id = None
    rows = write(Stepper(model, tokenizer, Decoding({"max_new_tokens": 30}, choices=("yes", "maybe")), None))
    assert {row.reason for row in rows} == {STOP}
    assert {text_of(tokenizer, row) for row in rows} <= {"yes", "maybe"}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_stand_for_the_bytes_that_they_decode_to(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    size = tokenizer.get_vocab_size()
    vocabulary = encoded_vocabulary(tokenizer, size + 9, "--choices")
    assert len(vocabulary) == size + 9 and not any(vocabulary[size:]) and not vocabulary[0] and not vocabulary[EOS]
    text = "naïve  stop: 零 of\tthe opera yes"
    joined = b"".join(vocabulary[i] for i in tokenizer.encode(text, add_special_tokens=False).ids)
    assert joined.decode().removeprefix(" ") == text


def test_vocabularies_without_bytes_are_refused(llm: Any) -> None:
    word_piece, bpe = word_piece_tokenizer(), Tokenizer(models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>"))
    word_piece.decoder = decoders.WordPiece()
    bpe.decoder, bpe.pre_tokenizer = decoders.BPEDecoder(), pre_tokenizers.Whitespace()
    for tokenizer, name in ((word_piece, "WordPiece"), (bpe, "BPEDecoder"), (word_piece_tokenizer(), "none")):
        with pytest.raises(UsageError, match=rf"--choices: this tokenizer's decoder \({name}\)"):
            Stepper(llm, tokenizer, Decoding(choices=("a",)), None)


# Each with an output that breaks it: xgrammar would take it, or it has to see that it does not.
BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"type": "integer", "minimum": 5}, "3"),
    ({"type": "integer", "exclusiveMaximum": 5}, "5"),
    ({"type": "number", "maximum": 5}, "7.5"),
    ({"type": "number", "exclusiveMinimum": 5}, "5"),
    ({"type": "string", "minLength": 3}, '"a"'),
    ({"type": "string", "maxLength": 3}, '"aaaa"'),
    ({"type": "string", "pattern": "^a+$"}, '"b"'),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, "[1]"),
    ({"type": "array", "items": {"type": "integer"}, "maxItems": 1}, "[1, 2]"),
    ({"type": "array", "items": {"type": "integer"}}, '["a"]'),
    ({"type": "array", "prefixItems": [{"type": "integer"}], "items": False}, "[1, 2]"),
    ({"type": "object", "properties": {"a": {}}, "required": ["a"]}, "{}"),
    ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, '{"b": 1}'),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, '{"b": "c"}'),
    ({"type": "object", "properties": {"a": {}, "b": {}}, "maxProperties": 1}, '{"a": 1, "b": 1}'),
    ({"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1}, "{}"),
    ({"type": "object", "patternProperties": {"^a$": {"type": "integer"}}, "additionalProperties": False}, '{"b": 1}'),
    ({"type": "object", "propertyNames": {"type": "string", "pattern": "^a$"}}, '{"b": 1}'),
    ({"enum": ["a", 1, None]}, "2"),
    ({"const": {"a": 1}}, '{"a": 2}'),
    ({"type": ["integer", "null"]}, '"a"'),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, '"a"'),
    ({"oneOf": [{"type": "integer"}, {"type": "null"}]}, '"a"'),
    ({"allOf": [{"type": "integer"}]}, '"a"'),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}}, '"a"'),
    *(({"type": "string", "format": name}, '"? ?"') for name in (
        "date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "uri-reference"
    )),
    ({"type": "string", "pattern": "^(?!a).$"}, '"a"'),
    ({"type": "string", "pattern": "^\\\\ba$"}, '" a"'),
    ({"type": "object", "patternProperties": {"^(?!a).$": {}}, "additionalProperties": False}, '{"a": null}'),
    ({"type": "string", "format": "phone"}, '"?"'),
    ({"type": "number", "multipleOf": 5}, "7"),
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "[1, 1]"),
    ({"type": "array", "items": {"type": "integer"}, "contains": {"const": 5}}, "[1]"),
    ({"type": "string", "pattern": "^a+$", "maxLength": 2}, '"aaa"'),
    ({"not": {"const": 5}}, "5"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "5"),
    ({"allOf": [{"type": "integer"}, {"minimum": 5}]}, "3"),
    ({"type": "object", "properties": {}, "anyOf": [{"required": ["a"]}]}, "{}"),
    ({"type": "integer", "if": {"minimum": 5}, "then": {"const": 7}}, "6"),
    ({"type": "object", "properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}}, '{"a": 1}'),
    ({"type": "string", "enum": ["a", 1]}, "1"),
    ({"type": "integer", "const": True}, "true"),
    ({"$ref": "#/$defs/a", "minimum": 5, "$defs": {"a": {"type": "integer"}}}, "3"),
    ({"$ref": "https://example.org/schema"}, "3"),
    ({"minimum": 5}, "3"),
    ({"type": "object", "properties": {"a": {"type": "integer", "not": {"const": 1}}}}, '{"a": 1}'),
    ({"type": ["integer", "string"], "minimum": 5}, "3"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "text"), BROKEN)
def test_no_output_breaks_the_schema(schema: dict[str, Any], text: str, llm: Any) -> None:
    """The schema is refused, or its grammar refuses the text. jsonschema says that the text does break it."""
    jsonschema = pytest.importorskip("jsonschema")
    if "example.org" not in str(schema) and "format" not in schema:
        assert not jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    asked = {"max_new_tokens": 50, "eos_token_id": EOS}
    try:
        stepper = Stepper(llm, byte_level_tokenizer(), Decoding(asked, json_schema=json.dumps(schema)), None)
    except UsageError as error:
        assert "--json-schema" in str(error)
        return
    matcher = stepper._constraint._matcher()  # type: ignore[union-attr]
    assert not (matcher.accept_string(text) and matcher.accept_token(EOS))


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string", "pattern": '^"$'}, '"""'),
        ({"type": "string", "pattern": "^\\\\$"}, '"\\"'),
        ({"type": "string", "pattern": "^\\x22$"}, '"""'),
        ({"type": "string", "pattern": "^\\n$"}, '"\n"'),
        ({"type": "string", "pattern": "^.$"}, '"""'),
        ({"type": "string", "pattern": "^[^a]$"}, '"\\"'),
        ({"type": "string", "maxLength": 3}, '"a"b"'),
    ],
)
def test_no_output_is_anything_but_json(schema: dict[str, Any], text: str, llm: Any) -> None:
    with pytest.raises(ValueError, match="line 1"):
        json.loads(text)
    try:
        stepper = Stepper(llm, byte_level_tokenizer(), Decoding(json_schema=json.dumps(schema)), None)
    except UsageError as error:
        assert "in the pattern" in str(error)
        return
    assert not stepper._constraint._matcher().accept_string(text)  # type: ignore[union-attr]


def test_control_characters_are_no_tokens_of_json(llm: Any) -> None:
    schema = json.dumps({"type": "string", "maxLength": 3})
    tokenizer = byte_level_tokenizer()
    rows = write(Stepper(llm, tokenizer, Decoding({"max_new_tokens": 40}, json_schema=schema), None), 60)
    texts = [text_of(tokenizer, row) for row in rows if row.reason == STOP]
    values = [json.loads(text) for text in texts]
    # A byte that is no UTF-8 becomes a character of its own when it is decoded.
    assert len(values) > 50 and all(len(value) <= 3 for value in values if "\ufffd" not in value)


def test_valid_texts_are_possible(llm: Any) -> None:
    schemas = [
        (REVIEW, {"label": "é\n", "stars": 5, "tags": ["a", "b"], "is_spam": False}),
        ({"type": "string", "format": "date"}, "2026-11-21"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/t"}}, "$defs": {"t": {"type": "null"}}}, {"a": None}),
        ({"type": "string", "enum": ["a"], "description": "one", "title": "T"}, "a"),
    ]
    for schema, value in schemas:
        asked = {"max_new_tokens": 50, "eos_token_id": EOS}
        stepper = Stepper(llm, byte_level_tokenizer(), Decoding(asked, json_schema=json.dumps(schema)), None)
        matcher = stepper._constraint._matcher()  # type: ignore[union-attr]
        texts = (json.dumps(value), json.dumps(value, ensure_ascii=False))
        assert any(matcher.fork().accept_string(text) for text in texts)


@pytest.mark.parametrize(
    ("decoding", "words"),
    [
        (Decoding(json_schema="{"), "--json-schema is not JSON"),
        (Decoding(json_schema='{"type": "strin"}'), "--json-schema at #: there is no type 'strin'"),
        (Decoding(json_schema='{"$ref": "#/$defs/b"}'), "--json-schema: no grammar"),
        (Decoding(json_schema="3"), "--json-schema at #"),
        (Decoding(json_schema="{}", choices=("a",)), "--json-schema and --choices"),
        (Decoding(choices=()), "--choices"),
        (Decoding(choices=("a", "")), "none of them empty"),
        (Decoding({"stop_strings": ["a"]}, choices=("a",)), "--choices and stop_strings"),
        (Decoding({"num_beams": 2}, choices=("a",)), "--choices: num_beams=2"),
    ],
)
def test_what_cannot_be_meant_is_refused(decoding: Decoding, words: str, llm: Any) -> None:
    with pytest.raises(UsageError, match=words):
        Stepper(llm, byte_level_tokenizer(), decoding, None)


def test_a_missing_package_is_named(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with pytest.raises(
        UsageError, match=r'--choices takes the package xgrammar.*pip install "packhorse\[constrained\]"'
    ):
        Stepper(llm, byte_level_tokenizer(), Decoding(choices=("a",)), None)
