"""Chat messages of rows: read from a column, looked at one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from packhorse.data import RowError
from packhorse.errors import UsageError, did_you_mean
from packhorse.prompts.columns import RowErrors, is_text, values_of

ROLES = ("system", "user", "assistant", "tool", "developer")
SYSTEM_ROLES = ("system", "developer")
KIND = "bad_messages"

Message = dict[str, Any]
Messages = list[Message]


class BadMessagesError(ValueError):
    """What is wrong with a row's messages, for its error."""


def check_column(schema: pa.Schema, name: str) -> None:
    """Raises UsageError where the column cannot hold messages."""
    if name not in schema.names:
        near = did_you_mean(name, schema.names)
        raise UsageError(f"--messages-column {name}: no such column{near}; the input has {', '.join(schema.names)}")
    kind = schema.field(name).type
    if not is_text(kind) and not _holds_structs(kind):
        raise UsageError(
            f"--messages-column {name}: the column is {kind}; messages are lists of objects with role and content, "
            "or JSON text of such lists. A column of plain text goes with --text-column and --chat"
        )


def _holds_structs(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and pa.types.is_struct(kind.value_type)


def read_messages(
    name: str, column: pa.ChunkedArray, errors: RowErrors
) -> tuple[list[Messages | None], dict[int, RowError]]:
    """[n] messages of the column's rows, without the keys whose value is null. None for a row in `errors`, and for one
    that has no messages as they have to be, which is in error from now on."""
    values, failed = values_of(name, column, errors)
    rows: list[Messages | None] = [None] * len(values)
    for i, value in enumerate(values):
        if i in errors or i in failed:
            continue
        try:
            rows[i] = checked(_parsed(value))
        except BadMessagesError as error:
            failed[i] = RowError(KIND, f"column {name!r}: {error}")
    return rows, failed


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadMessagesError(f"not JSON: {error}") from error


def checked(messages: Any) -> Messages:
    """The messages, each without the keys whose value is null. Raises BadMessagesError, which says what was seen."""
    if messages is None:
        raise BadMessagesError("null, and messages are a list of objects")
    if not isinstance(messages, list):
        raise BadMessagesError(f"{_named(messages)}, and messages are a list of objects")
    if not messages:
        raise BadMessagesError("the list of messages is empty")
    return [_checked_message(m, f"message {i} of {len(messages)}") for i, m in enumerate(messages, 1)]


def _checked_message(message: Any, which: str) -> Message:
    if not isinstance(message, dict):
        raise BadMessagesError(f"{which} is {_named(message)}, not an object with role and content")
    given = {key: value for key, value in message.items() if value is not None}
    role = given.get("role")
    if role not in ROLES:
        seen = f"has the role {str(role)[:40]!r}" if "role" in given else "has no role"
        raise BadMessagesError(f"{which} {seen}; roles are {', '.join(ROLES)}")
    if "content" not in given and role == "assistant" and given.get("tool_calls"):
        return given
    problem = _problem(given["content"]) if "content" in given else "has no content"
    if problem:
        raise BadMessagesError(f"{which} {problem}; content is text, or a list of objects with type 'text' and text")
    if isinstance(given.get("content"), list):  # of Parquet, each part has the keys of all; templates ask what is there
        given["content"] = [{k: v for k, v in part.items() if v is not None} for part in given["content"]]
    return given


def _problem(content: Any) -> str | None:
    if isinstance(content, str):
        return None
    if not isinstance(content, list):
        return f"has {_named(content)} as content"
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            seen = f"of type {str(part.get('type'))[:40]!r}" if isinstance(part, dict) else f"that is {_named(part)}"
            return f"has a part {seen} in its content"
    return None


def _named(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", str: "a text", dict: "an object", list: "a list"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def with_system(messages: Messages, system_prompt: str | None) -> Messages:
    """The system prompt put first, unless the row has a system (or developer) message of its own, which wins."""
    if system_prompt is None or any(message["role"] in SYSTEM_ROLES for message in messages):
        return messages
    return [{"role": "system", "content": system_prompt}, *messages]


def with_joined_parts(messages: Messages) -> Messages:
    """Contents that are lists of parts as one text, a line break between parts."""
    return list(_joined(messages))


def _joined(messages: Messages) -> Iterator[Message]:
    for message in messages:
        content = message.get("content")
        is_list = isinstance(content, list)
        yield message | {"content": "\n".join(part["text"] for part in content)} if is_list else message  # type: ignore[union-attr]
