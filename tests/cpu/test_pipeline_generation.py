"""packhorse.pipeline of models that write: beside transformers.pipeline, or plain generate() where that is gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import packhorse
from packhorse.errors import UsageError
from tests.writers_of_text import CHAT, Reference, save_writer

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8}
TEXT = "the stop of opera"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_writer(tmp_path_factory.mktemp("llama"), "llama", chat=CHAT))


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_writer(tmp_path_factory.mktemp("t5"), "t5")
    config = json.loads((folder / "config.json").read_text())
    config["task_specific_params"] = {
        "translation_en_to_fr": {"prefix": "a film: ", "max_length": 9, "num_beams": 2, "early_stopping": True},
        "summarization": {"prefix": "plot: ", "max_length": 12},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


CALLS: list[tuple[Any, dict[str, Any]]] = [
    (TEXT, {}),
    ([TEXT, "a film"], {}),
    (TEXT, {"return_full_text": False}),
    ([user(TEXT)], {}),
    ([[user("the")], [user("of film")]], {}),
    ([user(TEXT)], {"return_full_text": False}),
    ([user(TEXT), assistant("of")], {}),
    ([user(TEXT), assistant("of")], {"continue_final_message": True}),
    (TEXT, {"prefix": "film a "}),
    (TEXT, {"temperature": 0.0, "top_p": None}),
    (TEXT, {"max_length": 12, "max_new_tokens": None}),
    (TEXT, {"min_new_tokens": 8, "pad_token_id": 0}),
    ("the stop", {"stop_sequence": ["e", "t"], "max_new_tokens": 30}),
    (TEXT, {"num_beams": 3}),
    (TEXT, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}),
]


def test_calls_give_what_transformers_gives(llama: str) -> None:
    from transformers import pipeline

    theirs = pipeline("text-generation", llama, device="cpu")
    with packhorse.pipeline("text-generation", llama, device="cpu") as ours:
        for given, settings in CALLS:
            assert ours(given, **GREEDY | settings) == theirs(given, **GREEDY | settings), (given, settings)


def test_a_generation_config_stands_for_all_that_was_said(llama: str) -> None:
    from transformers import GenerationConfig, pipeline

    config = GenerationConfig(do_sample=False, max_new_tokens=5, pad_token_id=0)
    theirs = pipeline("text-generation", llama, device="cpu", max_new_tokens=3, return_full_text=False)
    with packhorse.pipeline("text-generation", llama, device="cpu", max_new_tokens=3, return_full_text=False) as ours:
        assert ours(TEXT, generation_config=config) == theirs(TEXT, generation_config=config)
        assert ours(TEXT, do_sample=False) == theirs(TEXT, do_sample=False)
        with pytest.raises(UsageError, match="generation_config=5"):
            ours(TEXT, generation_config=5)


def test_generators_of_chats_and_of_messages(llama: str) -> None:
    with packhorse.pipeline("text-generation", llama, device="cpu", **GREEDY) as pipe:
        chats = [[user("the")], [user("of film"), assistant("a")]]
        assert list(pipe(chat for chat in chats)) == pipe(chats)
        assert pipe(message for message in chats[1]) == pipe(chats[1])


def test_samples_are_repeated_by_their_seed(llama: str) -> None:
    with packhorse.pipeline("text-generation", llama, device="cpu", do_sample=True, max_new_tokens=8) as pipe:
        one = pipe(["the", "of"], seed=1)
        assert one != pipe(["the", "of"], seed=2) and one == pipe(["the", "of"], seed=1)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"return_tensors": True}, "generated_token_ids"),
        ({"tools": [{"a": 1}]}, "apply_chat_template"),
        ({"handle_long_generation": "hole"}, "truncation=True"),
        ({"src_lang": "en"}, "src_lang"),
        ({"generate_kwargs": {}}, "no parameter 'generate_kwargs'"),
        ({"return_text": True, "return_full_text": True}, "exclude each other"),
    ],
)
def test_what_is_not_done_is_refused_in_words(llama: str, given: dict[str, Any], match: str) -> None:
    with packhorse.pipeline("text-generation", llama) as pipe, pytest.raises(UsageError, match=match):
        pipe(TEXT, **given)


def test_a_chat_is_ended_by_whom_the_template_wants(llama: str) -> None:
    refused = pytest.raises(ValueError, match="item 0: continue_final_message=False")
    with packhorse.pipeline("text-generation", llama) as pipe, refused:
        pipe([user("a"), assistant("b")], continue_final_message=False)


def test_parameters_of_the_model_for_its_task(t5: Path) -> None:
    reference = Reference(t5)
    french = [
        reference.generate(f"a film: {text}", max_length=9, num_beams=2, early_stopping=True)[0].text
        for text in (TEXT, "café")
    ]
    with packhorse.pipeline("translation_en_to_fr", str(t5)) as pipe:
        assert pipe([TEXT, "café"]) == [{"translation_text": text} for text in french]
        assert pipe(TEXT) == [{"translation_text": french[0]}]
    with packhorse.pipeline("summarization", str(t5), max_length=7) as pipe:  # over the model's own
        expected = reference.generate(f"plot: {TEXT}", max_length=7, num_beams=1)[0].text
        assert pipe(TEXT) == [{"summary_text": expected}]


def test_several_outputs_of_each_text(t5: Path) -> None:
    settings: dict[str, Any] = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 6}
    expected = [[{"generated_text": one.text} for one in Reference(t5).generate(text, **settings)] for text in "ab"]
    with packhorse.pipeline("text2text-generation", str(t5), **settings) as pipe:
        assert pipe("a") == expected[0] and pipe(["a", "b"]) == expected == list(pipe(iter("ab")))
