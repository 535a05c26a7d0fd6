"""Prompts and texts against transformers' own tokenizers: apply_chat_template, tokenizer(text), decode."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.utils import chat_template_utils

from packhorse.errors import UsageError
from packhorse.prompts import make_prompts
from packhorse.tokenize.detokenize import FLAG_OF_BPE, cleans_up, detokenizer
from packhorse.tokenize.fast import FastTokenizer
from packhorse.tokenize.huge import TokenizeSettings
from tests.models import WORDS, word_piece_tokenizer
from tests.null.reference import some_texts
from tests.null.test_quick_tokenizers import byte_level_tokenizer, unigram_tokenizer
from tests.null.test_tokens import lists

CHATML = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content is defined %}{{- '<think>' + message.reasoning_content }}{%- endif %}
        {%- generation %}{{- message.content }}{%- endgeneration %}
        {%- for call in message.tool_calls or [] %}{{- call | tojson }}{%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role != 'system' %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
# Trims messages, begins with the model's own token, and reads lists of parts.
HEADERS = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|header|>' + message['role'] + '</header|>\\n\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] | trim }}
    {%- else %}
        {%- for part in message['content'] %}{{- part['text'] | trim }}{%- endfor %}
    {%- endif %}
    {{- eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header|>assistant</header|>\\n\\n' }}{%- endif %}
"""
STRICT = """{{ bos_token }}{% set ns = namespace(last='') %}{% for message in messages %}
{%- if message['role'] not in ('user', 'assistant') %}{{ raise_exception('Only user and assistant roles!') }}{% endif %}
{%- if message['role'] == ns.last %}{{ raise_exception('Roles must alternate, user first!') }}{% endif %}
{%- set ns.last = message['role'] %}
{%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"""
TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "strict": STRICT}

TEXT = st.sampled_from(["hi", " spaced \n", "<|im_end|>", "<s>[INST]", "é 漢 {{ x }}", "", "a\nb"])
PARTS = st.lists(TEXT.map(lambda text: {"type": "text", "text": text}), min_size=1, max_size=3)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "developer"]), "content": TEXT},
    optional={"name": st.just("n"), "thinking": TEXT, "reasoning": st.none() | TEXT, "tool_calls": st.just([{"f": 1}])},
)


def saved(folder: Path, template: str | None, backend: Tokenizer | None = None, **config: Any) -> Any:
    """The folder's tokenizer as AutoTokenizer loads it."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend or byte_level_tokenizer(), **names, **config)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module", params=TEMPLATES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("chat") / request.param
    return folder, saved(folder, TEMPLATES[request.param])


def expected_of(tokenizer: Any, messages: list[dict[str, Any]]) -> str | None:
    """None: transformers raises."""
    goes_on = messages[-1]["role"] == "assistant"
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not goes_on, continue_final_message=goes_on
        )
    except Exception:  # noqa: BLE001 - whatever a template raises
        return None


def prompts_of(folder: Path, rows: list[Any]) -> list[str | None]:
    table = pa.table({"m": [json.dumps(row) for row in rows]})
    prompts, errors = make_prompts(table.schema, messages_column="m", model_folder=folder).texts(table, {})
    assert set(errors) == {i for i, prompt in enumerate(prompts) if prompt is None}
    assert {error.kind for error in errors.values()} <= {"bad_messages"}
    return prompts


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.lists(MESSAGE, min_size=1, max_size=4), min_size=20, max_size=20))
def test_chats_are_those_of_apply_chat_template(model: tuple[Path, Any], rows: list[list[dict[str, Any]]]) -> None:
    folder, tokenizer = model
    if not hasattr(chat_template_utils, "_REASONING_FIELDS"):  # older versions know reasoning_content by no other name
        rows = [[{k: v for k, v in m.items() if k not in ("thinking", "reasoning")} for m in row] for row in rows]
    assert prompts_of(folder, rows) == [expected_of(tokenizer, row) for row in rows]


@pytest.fixture(scope="module")
def parts_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("parts")
    return folder, saved(folder, HEADERS)


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(PARTS, min_size=5, max_size=5))
def test_parts_are_those_of_a_template_that_reads_them(
    parts_model: tuple[Path, Any], rows: list[list[dict[str, str]]]
) -> None:
    folder, tokenizer = parts_model
    for role in ("user", "assistant"):
        chats = [[{"role": role, "content": parts}] for parts in rows]
        assert prompts_of(folder, chats) == [expected_of(tokenizer, chat) for chat in chats]


def test_what_a_strict_template_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    saved(tmp_path, STRICT)
    table = pa.table({"m": [json.dumps([{"role": "user", "content": "a"}] * n) for n in (1, 2, 1)]})
    prompts, errors = make_prompts(table.schema, messages_column="m", model_folder=tmp_path).texts(table, {})
    assert prompts == ["<s>[INST] a [/INST]", None, "<s>[INST] a [/INST]"]
    assert "Roles must alternate, user first!" in errors[1].message


@pytest.mark.parametrize("legacy", [False, True])
def test_special_tokens_are_those_of_the_tokenizer(legacy: bool, tmp_path: Path) -> None:
    """By the names in tokenizer_config.json, as text and as objects, and in the file that older folders have."""
    saved(tmp_path, "{{ bos_token }}|{{ pad_token }}|{{ image_token }}|{{ mask_token is defined }}|{{ sep_token }}")
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"image_token": "<img>", "mask_token": None}
    if legacy:
        config.pop("added_tokens_decoder", None)
        config.pop("bos_token")
        named = {"bos_token": {"content": "</s>", "lstrip": False, "normalized": False, "rstrip": False}}
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    path.write_text(json.dumps(config))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    messages = [{"role": "user", "content": "a"}]
    expected = expected_of(tokenizer, messages)
    assert expected is not None and expected.endswith("|<pad>|<img>|False|")
    assert prompts_of(tmp_path, [messages]) == [expected]


def test_a_token_that_no_file_names_is_that_of_the_tokenizers_class(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, LlamaTokenizer

    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "▁", "a"])}
    LlamaTokenizer(vocab=vocab, merges=[]).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if not key.endswith("s_token")}
    path.write_text(json.dumps(config | {"chat_template": HEADERS}))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    messages = [{"role": "user", "content": "a"}]
    assert tokenizer.bos_token == "<s>"
    assert prompts_of(tmp_path, [messages]) == [expected_of(tokenizer, messages)]


def test_named_templates_are_found_where_transformers_finds_them(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path, {"default": "the default", "rag": "another"})  # type: ignore[arg-type]
    assert (tmp_path / "additional_chat_templates").is_dir()
    messages = [{"role": "user", "content": "a"}]
    assert prompts_of(tmp_path, [messages]) == [expected_of(tokenizer, messages)] == ["the default"]
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match="templates rag, and none is the default"):
        prompts_of(tmp_path, [messages])


# -- ids


def metaspace_tokenizer() -> Tokenizer:
    """As Llama 2's: byte-fallback BPE where a lower one eighth block stands for a space, and its decoder."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train_from_iterator(
        some_words(), trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", "<pad>", *alphabet])
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def some_words() -> list[str]:
    return [text for text in some_texts(500) if text]


def decoding_unigram() -> Tokenizer:
    tokenizer = unigram_tokenizer()
    tokenizer.add_special_tokens(["<pad>"])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return tokenizer


def decoding_word_piece() -> Tokenizer:
    tokenizer = word_piece_tokenizer()
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>", "<pad>"])
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": byte_level_tokenizer, "metaspace": metaspace_tokenizer, "unigram": decoding_unigram,
    "word_piece": decoding_word_piece,
}  # fmt: skip


@pytest.fixture(scope="module", params=[(kind, flag) for kind in KINDS for flag in (None, False, True)], ids=str)
def decoding(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    kind, flag = request.param
    folder = tmp_path_factory.mktemp("decoding")
    return folder, saved(
        folder, None, KINDS[kind](), **({} if flag is None else {"clean_up_tokenization_spaces": flag})
    )


@settings(max_examples=12, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 450), max_size=12), min_size=40, max_size=40))
def test_texts_are_those_that_the_tokenizer_decodes(decoding: tuple[Path, Any], rows: list[list[int]]) -> None:
    folder, tokenizer = decoding
    backend = tokenizer.backend_tokenizer
    if tokenizer.clean_up_tokenization_spaces and not hasattr(tokenizer, FLAG_OF_BPE):
        pytest.skip("older versions of transformers clean up BPE's texts too, which damages them")
    rows += [tokenizer("it isn't good , is it ? it 's ' me ' .").input_ids, [10**6, 5]]
    made = detokenizer(backend, cleans_up(folder, backend))([np.array(row, np.int32) for row in rows])
    assert made == [tokenizer.decode(row, skip_special_tokens=True) for row in rows]


@settings(max_examples=12, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from([*WORDS, "<s>", "</s>", " <pad>x", "漢"])).map(" ".join), max_size=12))
def test_ids_are_those_without_special_tokens(decoding: tuple[Path, Any], texts: list[str]) -> None:
    _, tokenizer = decoding
    own = FastTokenizer(tokenizer.backend_tokenizer, TokenizeSettings(None, with_special_tokens=False))
    tokens = own.tokenize(texts, None).tokens
    own.close()
    assert lists(tokens.ids, tokens.offsets) == [tokenizer(t, add_special_tokens=False).input_ids for t in texts]
    around = FastTokenizer(tokenizer.backend_tokenizer, TokenizeSettings(None))
    tokens = around.tokenize(texts, None).tokens
    around.close()
    assert lists(tokens.ids, tokens.offsets) == [tokenizer(text).input_ids for text in texts]
