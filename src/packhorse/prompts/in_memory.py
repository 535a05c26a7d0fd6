"""Chats that come as Python objects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from packhorse.data import RowError


def as_chats(prompts: Sequence[Any]) -> tuple[pa.Array | None, dict[int, RowError]]:
    """[n] JSON text of each chat, and the prompts that cannot be one; None where none of them is a list: then they are
    texts. A text among chats is a chat of one user message."""
    if not any(isinstance(prompt, list) for prompt in prompts):
        return None, {}
    texts: list[str | None] = []
    errors: dict[int, RowError] = {}
    for row, prompt in enumerate(prompts):
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        try:
            text = None if messages is None else json.dumps(messages)
        except (TypeError, ValueError) as error:
            text, errors[row] = None, RowError("bad_messages", f"no chat messages: {error}")
        texts.append(text)
    return pa.array(texts, pa.large_string()), errors
