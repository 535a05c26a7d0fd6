"""What a row's prompt is: a column of text, a template over columns, or chat messages. Imports no torch."""

from packhorse.prompts.source import PromptSource, make_prompts

__all__ = ["PromptSource", "make_prompts"]
