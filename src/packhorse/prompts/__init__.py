"""What a row's prompt is: a column of text, a template over columns, or chat messages. Imports no torch."""

from packhorse.prompts.in_memory import as_chats
from packhorse.prompts.source import PromptSource, make_prompts

__all__ = ["PromptSource", "as_chats", "make_prompts"]
