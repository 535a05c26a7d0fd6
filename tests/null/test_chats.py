"""Prompts of chat messages, row by row, by templates written here whose texts are known."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from packhorse.data import JSON_TEXT, RowError
from packhorse.errors import HostileModelError, ModelError, UsageError
from packhorse.prompts import make_prompts

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
USER = [{"role": "user", "content": "hi"}]
NOON = datetime.datetime(2024, 2, 29, 12, 0)


def chat_folder(folder: Path, template: str | None = CHATML, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    given = {} if template is None else {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(given | config))
    return folder


def chat(
    folder: Path, column: pa.Array | list[Any], kind: pa.DataType | None = None, system: str | None = None
) -> tuple[list[str | None], dict[int, RowError]]:
    values = column if isinstance(column, pa.Array) else pa.array(column, kind)
    table = pa.table({"messages": values})
    source = make_prompts(table.schema, messages_column="messages", system_prompt=system, model_folder=folder, now=NOON)
    assert not source.adds_special_tokens and source.columns == ["messages"]
    return source.texts(table, {})


def as_json(rows: list[Any]) -> list[str]:
    return [json.dumps(row) for row in rows]


def test_messages_are_the_same_as_structs_and_as_json(tmp_path: Path) -> None:
    rows = [USER, [{"role": "system", "content": "be"}, *USER, {"role": "assistant", "content": "yes"}, *USER]]
    expected = [
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nbe<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    ]
    folder = chat_folder(tmp_path)
    assert chat(folder, rows) == (expected, {})
    assert chat(folder, as_json(rows), pa.large_string()) == (expected, {})
    field = pa.field("messages", pa.large_string(), metadata=JSON_TEXT)
    table = pa.table([as_json(rows)], schema=pa.schema([field]))
    source = make_prompts(table.schema, messages_column="messages", model_folder=folder)
    assert source.texts(table, {}) == (expected, {}) and source.text_columns == ["messages"]


def test_a_prompt_of_columns_is_one_message_of_the_user(tmp_path: Path) -> None:
    table = pa.table({"a": ["hi", None]})
    for asked in ({"text_column": "a"}, {"template": "{a}"}):
        source = make_prompts(table.schema, **asked, chat=True, model_folder=chat_folder(tmp_path))  # type: ignore[arg-type]
        prompts, errors = source.texts(table, {})
        assert prompts == ["<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", None]
        assert {r: e.kind for r, e in errors.items()} == ({1: "null_text"} if "template" in asked else {})


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_system_prompt_comes_first_unless_the_row_has_its_own(role: str, tmp_path: Path) -> None:
    rows = [USER, [{"role": role, "content": "mine"}, *USER]]
    prompts, _ = chat(chat_folder(tmp_path), as_json(rows), system="be brief")
    assert str(prompts[0]).startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user")
    assert str(prompts[1]).startswith(f"<|im_start|>{role}\nmine<|im_end|>\n<|im_start|>user")


BAD = [
    ("null", "null, and messages are a list"),
    ('"hi"', "a text, and messages are a list"),
    ("[]", "the list of messages is empty"),
    ("not json", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ('["hi"]', "message 1 of 1 is a text"),
    ('[{"content": "hi"}]', "message 1 of 1 has no role"),
    ('[{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}]', "message 2 of 2 has the role 'bot'"),
    ('[{"role": "user"}]', "message 1 of 1 has no content"),
    ('[{"role": "user", "content": null}]', "has no content"),
    ('[{"role": "user", "content": 5}]', "has a number as content"),
    ('[{"role": "user", "content": {"text": "a"}}]', "has an object as content"),
    ('[{"role": "user", "content": [{"type": "image", "url": "x"}]}]', "has a part of type 'image'"),
    ('[{"role": "user", "content": ["a"]}]', "has a part that is a text"),
]


def test_a_row_with_bad_messages_is_an_error_and_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    rows = [json.dumps(USER), *(text for text, _ in BAD), None, json.dumps(USER)]
    prompts, errors = chat(chat_folder(tmp_path), rows, pa.large_string())
    good = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert prompts == [good, *[None] * (len(BAD) + 1), good]
    assert [row for row, error in errors.items() if error.kind == "bad_messages"] == list(range(1, len(rows) - 1))
    for row, (_, words) in enumerate(BAD, 1):
        assert words in errors[row].message and "column 'messages'" in errors[row].message


def test_half_a_surrogate_pair_costs_its_row_alone(tmp_path: Path) -> None:
    rows = [json.dumps([{"role": "user", "content": content}]) for content in ("\ud83d", "\ud83d\ude00")]
    prompts, errors = chat(chat_folder(tmp_path), rows)
    assert {row: error.kind for row, error in errors.items()} == {0: "lone_surrogate"}
    assert prompts[1] == "<|im_start|>user\n\U0001f600<|im_end|>\n<|im_start|>assistant\n"


def test_a_row_in_error_already_is_not_looked_at(tmp_path: Path) -> None:
    table = pa.table({"m": ["broken", json.dumps(USER)]})
    source = make_prompts(table.schema, messages_column="m", model_folder=chat_folder(tmp_path))
    prompts, errors = source.texts(table, {0: RowError("invalid_utf8", "")})
    assert prompts[0] is None and prompts[1] is not None and not errors


def test_what_a_template_refuses_is_an_error_in_its_own_words(tmp_path: Path) -> None:
    strict = "{% if messages|length > 1 %}{{ raise_exception('roles must alternate') }}{% endif %}ok"
    prompts, errors = chat(chat_folder(tmp_path, strict), as_json([USER, USER * 2, USER]))
    assert prompts == ["ok", None, "ok"]
    assert errors[1].kind == "bad_messages" and "roles must alternate" in errors[1].message


def test_parts_are_joined_by_line_breaks_where_the_template_reads_only_text(tmp_path: Path) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    for form in ("{{ messages[0].content }}", "{{ messages[0].content | tojson }}", CHATML):
        prompts = chat(chat_folder(tmp_path, form), as_json([parts]))[0]
        assert prompts == chat(chat_folder(tmp_path, form), as_json([[{"role": "user", "content": "a\nb"}]]))[0]
    reads_parts = "{% for part in messages[0].content %}<{{ part.text }}>{% endfor %}"
    assert chat(chat_folder(tmp_path, reads_parts), as_json([parts]))[0] == ["<a><b>"]


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.append(1) }}",
        "{{ strftime_now.__self__.max }}",
        "{{ namespace.__init__.__globals__ }}",
    ],
)
def test_a_hostile_template_reaches_nothing(attack: str, tmp_path: Path) -> None:
    with pytest.raises(HostileModelError, match="sandbox"):
        chat(chat_folder(tmp_path, attack), as_json([USER]))


def test_a_prompt_that_grows_without_end_is_stopped(tmp_path: Path) -> None:
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'x' * 99999 }}{% endfor %}{% endfor %}"
    _, errors = chat(chat_folder(tmp_path, endless), as_json([USER]))
    assert errors[0].kind == "bad_messages" and "20,000,000 characters" in errors[0].message


def test_a_template_that_is_none_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be compiled.*endfor"):
        chat(chat_folder(tmp_path, "{% for x in y %}"), as_json([USER]))


def test_a_model_without_a_template_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no chat template") as refusal:
        chat(chat_folder(tmp_path, None), as_json([USER]))
    assert "--text-column" in str(refusal.value)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UsageError, match="no chat template"):
        chat(tmp_path, as_json([USER]))


def test_a_file_wins_over_the_config_and_the_default_over_others(tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "rag"}, {"name": "default", "template": "default"}]
    folder = chat_folder(tmp_path, None, chat_template=named)
    assert chat(folder, as_json([USER]))[0] == ["default"]
    (folder / "chat_template.jinja").write_text("file")
    assert chat(folder, as_json([USER]))[0] == ["file"]
    with pytest.raises(UsageError, match="rag, tools, and none is the default"):
        other = [{"name": n, "template": n} for n in ("tools", "rag")]
        chat(chat_folder(tmp_path / "other", None, chat_template=other), as_json([USER]))


def test_the_time_stands_still(tmp_path: Path) -> None:
    folder = chat_folder(tmp_path, "{{ strftime_now('%d %b %Y %H:%M') }}")
    assert chat(folder, as_json([USER, USER]))[0] == ["29 Feb 2024 12:00"] * 2
    schema = pa.schema({"m": pa.string()})
    assert make_prompts(schema, messages_column="m", model_folder=folder).tells_time
    assert not make_prompts(schema, messages_column="m", model_folder=chat_folder(tmp_path)).tells_time


def test_chats_load_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import pyarrow as pa; from packhorse.prompts import make_prompts\n"
        "assert not {'torch', 'transformers', 'jinja2'} & set(sys.modules)\n"
        "t = pa.table({'a': ['hi']})\n"
        "s = make_prompts(t.schema, text_column='a', chat=True, model_folder=Path(sys.argv[1]))\n"
        "assert s.texts(t, {})[0][0].startswith('<s>'); assert 'torch' not in sys.modules\n"
    )
    folder = chat_folder(tmp_path, "{{ bos_token }}" + CHATML, bos_token="<s>")
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True)
