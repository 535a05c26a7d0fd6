"""Where prompts come from, chosen once for a job."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from packhorse.data import RowError
from packhorse.errors import UsageError
from packhorse.prompts.chat_template import ChatTemplate
from packhorse.prompts.columns import RowErrors, is_text, texts_of
from packhorse.prompts.messages import (
    KIND,
    BadMessagesError,
    Messages,
    check_column,
    read_messages,
    with_system,
)
from packhorse.prompts.template import Template, read_template

Texts = tuple[list[str | None], dict[int, RowError]]
ManyMessages = tuple[list[Messages | None], dict[int, RowError]]


class PromptSource:
    """Rows to prompts.

    columns: those that are read, by their own types but for text_columns, which readers are asked to give as
    large_string. adds_special_tokens: whether the tokenizer puts its special tokens around a prompt; a chat template
    has written them itself. tells_time: whether prompts may depend on the time that was given.
    """

    def __init__(
        self,
        schema: pa.Schema,
        columns: list[str],
        texts: Callable[[pa.Table, RowErrors], Texts],
        chat: ChatTemplate | None = None,
    ) -> None:
        self.columns = columns
        self.text_columns = [name for name in columns if is_text(schema.field(name).type)]
        self.adds_special_tokens = chat is None
        self.tells_time = chat is not None and chat.tells_time
        self._texts = texts

    def texts(self, table: pa.Table, errors: RowErrors) -> Texts:
        """[n] prompts, and the rows that have none. errors: rows that are in error already: None, and nothing is said
        about them again. A null in a column of plain text is None and no error yet: the tokenizer finds it."""
        return self._texts(table, errors)


def make_prompts(
    schema: pa.Schema,
    text_column: str | None = None,
    template: str | None = None,
    messages_column: str | None = None,
    chat: bool | None = None,
    system_prompt: str | None = None,
    model_folder: Path | None = None,
    now: datetime | None = None,
) -> PromptSource:
    """schema: the input's. Of text_column, template (@FILE: what stands there) and messages_column one is given.

    chat: through the chat template of model_folder; None: where there are messages or a system prompt. now: the time
    for templates that ask for it; None: this moment, once for all prompts. Raises UsageError, ModelError or
    HostileModelError.
    """
    _check_one(text_column, template, messages_column)
    is_chat = chat if chat is not None else messages_column is not None or system_prompt is not None
    if not is_chat:
        if messages_column is not None or system_prompt is not None:
            flag = "--messages-column" if messages_column is not None else "--system-prompt"
            raise UsageError(f"{flag} goes through the chat template: drop it, or --no-chat")
        columns, texts = _plain(schema, text_column, template)
        return PromptSource(schema, columns, texts)
    if model_folder is None:
        raise UsageError("--chat: only a model's folder has a chat template, and none was given")
    chat_template = ChatTemplate(model_folder, now or datetime.now())
    columns, messages = _messages(schema, text_column, template, messages_column)
    return PromptSource(schema, columns, _through(chat_template, messages, system_prompt), chat_template)


def _check_one(text_column: str | None, template: str | None, messages_column: str | None) -> None:
    flags = {"--text-column": text_column, "--template": template, "--messages-column": messages_column}
    given = [flag for flag, value in flags.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} both say what the prompt is: drop one of them")
    if not given:
        raise UsageError("which column has the prompt? Say --text-column, --template or --messages-column")


def _plain(
    schema: pa.Schema, text_column: str | None, template: str | None
) -> tuple[list[str], Callable[[pa.Table, RowErrors], Texts]]:
    if template is not None:
        parsed = Template(read_template(template))
        parsed.check(schema)
        return parsed.columns, parsed.render
    name = str(text_column)
    return [name], lambda table, errors: texts_of(name, table[name], errors)


def _messages(
    schema: pa.Schema, text_column: str | None, template: str | None, messages_column: str | None
) -> tuple[list[str], Callable[[pa.Table, RowErrors], ManyMessages]]:
    if messages_column is not None:
        check_column(schema, messages_column)
        return [messages_column], lambda t, errors: read_messages(messages_column, t[messages_column], errors)
    columns, texts = _plain(schema, text_column, template)

    def as_user(table: pa.Table, errors: RowErrors) -> ManyMessages:
        prompts, failed = texts(table, errors)
        return [None if p is None else [{"role": "user", "content": p}] for p in prompts], failed

    return columns, as_user


def _through(
    chat_template: ChatTemplate, read: Callable[[pa.Table, RowErrors], ManyMessages], system_prompt: str | None
) -> Callable[[pa.Table, RowErrors], Texts]:
    def texts(table: pa.Table, errors: RowErrors) -> Texts:
        rows, failed = read(table, errors)
        prompts: list[str | None] = [None] * len(rows)
        for i, messages in enumerate(rows):
            if messages is not None:
                prompt = _rendered(chat_template, with_system(messages, system_prompt))
                if isinstance(prompt, RowError):
                    failed[i] = prompt
                else:
                    prompts[i] = prompt
        return prompts, failed

    return texts


def _rendered(chat_template: ChatTemplate, messages: Messages) -> str | RowError:
    try:
        prompt = chat_template.render(messages)
        prompt.encode()
    except BadMessagesError as error:
        return RowError(KIND, str(error))
    except UnicodeEncodeError:  # JSON can spell it
        return RowError("lone_surrogate", "the messages have half a surrogate pair, which is no character")
    return prompt
